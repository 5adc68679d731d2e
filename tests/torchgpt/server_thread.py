"""The server of ``python -m torchgpt.serve`` in a thread of the tests, on a free port."""

import contextlib
import threading
from pathlib import Path

import openai
import torch
import uvicorn

from torchgpt.serve import listen
from torchgpt.serving.app import make_app
from torchgpt.serving.engine import Engine
from torchgpt.writer import Writer

DEADLINE = 120  # seconds after which a test gives up; nothing takes nearly as long


class Running:
    """A server that runs.

    Attributes:
      port: on 127.0.0.1.
      client: of the ``openai`` package; it does not try again.
      name: of the model.
    """

    def __init__(self, port: int, name: str):
        self.port, self.name = port, name
        self.url = f"http://127.0.0.1:{port}"
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE)

    def chat(self, *turns: str, **options):
        """Answer to ``turns``, of user and assistant in turn."""
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
        return self.client.chat.completions.create(model=self.name, messages=messages, **options)

    def complete(self, prompt, **options):
        """What follows ``prompt``."""
        return self.client.completions.create(model=self.name, prompt=prompt, **options)


@contextlib.contextmanager
def running(directory: Path, max_concurrent: int = 4, max_waiting: int = 32, max_new_tokens: int = 1024):
    """A server that answers within the block."""
    writer, name = Writer(directory, torch.device("cpu")), directory.name
    with listen("127.0.0.1", 0) as listener:
        address, port = listener.getsockname()
        app = make_app(writer, name, address, Engine(max_concurrent, max_waiting), max_new_tokens)
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield Running(port, name)
        finally:
            server.should_exit = True
            thread.join()
