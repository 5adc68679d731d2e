"""Talk to a trained model on a local web page, and through an interface like OpenAI's.

    python -m torchgpt.serve [--checkpoint=HF_DIR] [--port=8000]

The page is at http://127.0.0.1:8000/ and the interface at http://127.0.0.1:8000/v1 then. Ctrl-C ends it.
"""

import contextlib
import ipaddress
import socket
import sys

from absl import flags

from scratchgpt import cli as command
from scratchgpt.errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on ``host`` and ``port``. Raises UserError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as e:
        raise UserError(f"--host={host} is no address of this machine: {e}") from e
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there it would share a port in use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as e:
        listener.close()
        raise UserError(f"cannot listen on {host} port {port} ({e.strerror}): choose another --port or --host") from e
    return listener


if __name__ == "__main__":
    _CHECKPOINT = flags.DEFINE_string(
        "checkpoint", "", "Hugging Face directory or workdir; empty: newest runs/*/export"
    )
    _HOST = flags.DEFINE_string("host", "127.0.0.1", "address to listen on; 0.0.0.0 lets the whole network in")
    _PORT = flags.DEFINE_integer("port", 8000, "port to listen on; 0: any free one", 0, 65535)
    _DEVICE = flags.DEFINE_string("device", "auto", "auto, cpu, mps or cuda")
    _WEIGHTS = flags.DEFINE_enum(
        "weights", "float32", ["float32", "int8"], "int8: matrices rounded to 8 bits, faster on a CPU and a little off"
    )
    _MAX_CONCURRENT = flags.DEFINE_integer("max_concurrent", 4, "texts written at the same time", 1)
    _MAX_WAITING = flags.DEFINE_integer(
        "max_waiting", 32, "texts that may wait for their turn before others are refused", 0
    )
    _MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 1024, "tokens that a request may ask for", 1)

    def main() -> None:
        """Serve until Ctrl-C."""
        from scratchgpt.workdir import EXPORT, resolve_export

        directory = resolve_export(_CHECKPOINT.value)
        with listen(_HOST.value, _PORT.value) as listener:
            import uvicorn  # only now: --help and wrong flags answer at once

            from torchgpt.device import pick_device
            from torchgpt.serving.app import make_app
            from torchgpt.serving.engine import Engine
            from torchgpt.writer import Writer

            writer = Writer(directory, pick_device(_DEVICE.value), weights=_WEIGHTS.value)
            whole = directory.resolve()
            name = whole.parent.name if whole.name == EXPORT else whole.name
            address, port = listener.getsockname()[:2]
            engine = Engine(_MAX_CONCURRENT.value, _MAX_WAITING.value)
            app = make_app(writer, name, address, engine, _MAX_NEW_TOKENS.value)
            what = "chat with" if writer.chat_format else "continue texts with"
            shown = f"[{address}]" if ":" in address else address
            print(f"{what} {name} at http://{shown}:{port}/ (Ctrl-C ends)", flush=True)
            if not ipaddress.ip_address(address).is_loopback:
                print("note: other machines can reach it; there is no password", file=sys.stderr, flush=True)
            # a text that is being written must not hold up the end for long
            config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, server_header=False)
            with contextlib.suppress(KeyboardInterrupt):  # how it ends
                uvicorn.Server(config).run(sockets=[listener])

    command.run(main, __doc__)
