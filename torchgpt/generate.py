"""Write text with a trained model, or talk to one, in PyTorch, on a CPU, an Apple GPU or CUDA.

    python -m torchgpt.generate [--checkpoint=HF_DIR] [--prompt=TEXT] [--output=FILE]
    python -m torchgpt.generate --prompts=FILE [--instruct] [--output=FILE]
    python -m torchgpt.generate --instruct [--checkpoint=HF_DIR] [--prompt=TEXT] [--system=TEXT] [--output=FILE]

Without --prompt it asks for prompts until `exit`, `quit` or the end of the input. With --instruct a model tuned on
instructions answers: it prints the answers alone, remembers the conversation, and begins a new one at `/reset`.
--prompts writes for many prompts at once, which is much faster than one after the other.
"""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from scratchgpt import cli as command
from scratchgpt.errors import UserError
from scratchgpt.signals import StopSignal

if TYPE_CHECKING:
    import torch

    from data_prep.chat import Message
    from torchgpt.writer import Generation, Settings, Writer

_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "Hugging Face directory or workdir; empty: newest runs/*/export")
_PROMPT = flags.DEFINE_string("prompt", None, "text to continue, or to answer; none: ask for prompts")
_PROMPTS = flags.DEFINE_string("prompts", "", "file with a prompt a line, instead of --prompt; blank lines are skipped")
_INSTRUCT = flags.DEFINE_bool("instruct", False, "answer, by a model tuned on instructions, instead of continuing")
_SYSTEM = flags.DEFINE_string("system", "", "what the model is told before a conversation, with --instruct")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 200, "tokens to write at most")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0 is greedy")
_TOP_K = flags.DEFINE_integer("top_k", 0, "sample from the k likeliest tokens; 0: from all")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "sample from the likeliest tokens with this total probability")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "continuations of each prompt to write")
_SEED = flags.DEFINE_integer("seed", 0, "of the random choices", 0, 2**32 - 1)
_DEVICE = flags.DEFINE_string("device", "auto", "auto, cpu, mps or cuda")
_WEIGHTS = flags.DEFINE_enum(
    "weights", "float32", ["float32", "int8"], "int8: matrices rounded to 8 bits, faster on a CPU and a little off"
)
_OUTPUT = flags.DEFINE_string("output", "", "file to write the text to as well")


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def main() -> None:
    """Write for one prompt, or ask for prompts."""
    from scratchgpt.files import check_writable
    from scratchgpt.sampling_flags import check_sampling, read_prompts
    from scratchgpt.workdir import resolve_export

    check_sampling(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _MAX_NEW_TOKENS.value, _NUM_SAMPLES.value)
    if _SYSTEM.value and not _INSTRUCT.value:
        raise UserError("--system needs --instruct: a text that is only continued has no system message")
    if _PROMPTS.value and _PROMPT.value is not None:
        raise UserError("--prompt and --prompts: give one of them")
    if _INSTRUCT.value and not _PROMPTS.value and _PROMPT.value is None and _NUM_SAMPLES.value > 1:
        raise UserError("--num_samples needs --prompt with --instruct: a conversation goes on from one answer")
    if _INSTRUCT.value and _PROMPT.value is not None and not _PROMPT.value.strip():
        raise UserError("--prompt is empty: with --instruct there must be something to answer")
    if _OUTPUT.value:
        check_writable(Path(_OUTPUT.value), _PROMPTS.value)
    prompts = read_prompts(_PROMPTS.value) if _PROMPTS.value else None
    directory = resolve_export(_CHECKPOINT.value)
    import torch  # only now: --help and wrong flags answer at once

    from torchgpt.device import pick_device
    from torchgpt.writer import Settings, Writer

    writer = Writer(directory, pick_device(_DEVICE.value), needs_chat=_INSTRUCT.value, weights=_WEIGHTS.value)
    settings = Settings(_MAX_NEW_TOKENS.value, _TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
    generator = torch.Generator().manual_seed(_SEED.value)
    if prompts is not None:
        written = _all_at_once(writer, prompts, settings, generator)
    else:
        make = _Conversation if _INSTRUCT.value else _Continuations
        respond = make(writer, settings, generator)
        written = respond(_PROMPT.value) if _PROMPT.value is not None else _ask(respond)
    if _OUTPUT.value:
        from scratchgpt.files import write_text

        write_text(_OUTPUT.value, written)


def _all_at_once(writer: "Writer", prompts: dict[str, str], settings: "Settings", generator: "torch.Generator") -> str:
    """Show the prompts with their continuations, or the answers alone, in the prompts' order; returns the text."""
    from data_prep.chat import Message
    from scratchgpt.sampling_flags import check_prompt, errors_of

    begins = []  # of the texts: what is known of each before anything is written
    for place, prompt in prompts.items():
        with errors_of(place):
            if _INSTRUCT.value:
                begins += [writer.fit([*_system(), Message("user", prompt)], settings)] * _NUM_SAMPLES.value
            else:
                ids = writer.encode(prompt)
                check_prompt(ids, writer.model.config)
                begins += [ids] * _NUM_SAMPLES.value
    texts = (writer.answer_all if _INSTRUCT.value else writer.write_all)(begins, settings, generator)
    if not _INSTRUCT.value:
        repeated = [prompt for prompt in prompts.values() for _ in range(_NUM_SAMPLES.value)]
        texts = [prompt + text for prompt, text in zip(repeated, texts, strict=True)]
    written = "\n---\n".join(texts) + "\n"
    _show(written)
    return written


def _stream(generation: "Generation") -> str:
    """Show a text as it is made, up to its end; returns it. Ctrl-C is raised between two tokens, not within one."""
    with StopSignal() as stop:
        for pieces in generation:
            _show("".join(piece.text for piece in pieces))
            if stop.received is not None:
                break
    if stop.received == signal.SIGINT:
        raise KeyboardInterrupt
    if stop.received is not None:
        sys.exit(128 + stop.received)
    return generation.text


class _Continuations:
    """Called with a prompt, shows it with its continuations as they are made, and returns the same text."""

    greeting = "Write the beginning of a text; `exit` ends."

    def __init__(self, writer: "Writer", settings: "Settings", generator: "torch.Generator"):
        self._start = lambda ids: writer.continue_text(ids, settings, generator)
        self._writer = writer

    def __call__(self, prompt: str) -> str:
        from scratchgpt.sampling_flags import check_prompt

        ids, texts = self._writer.encode(prompt), []
        check_prompt(ids, self._writer.model.config)  # before the prompt is shown
        for i in range(_NUM_SAMPLES.value):
            _show("\n---\n" if i else "")
            _show(prompt)
            texts.append(prompt + _stream(self._start(ids)))
        _show("\n")
        return "\n---\n".join(texts) + "\n"


def _system() -> "list[Message]":
    """What a conversation begins with."""
    from data_prep.chat import Message

    return [Message("system", _SYSTEM.value)] if _SYSTEM.value else []


class _Conversation:
    """Called with a message, shows the answer as it is made, and returns it."""

    greeting = "Write a message; `/reset` begins a new conversation, `exit` ends."

    def __init__(self, writer: "Writer", settings: "Settings", generator: "torch.Generator"):
        self._writer, self._settings, self._generator = writer, settings, generator
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self._messages = _system()

    def __call__(self, prompt: str) -> str:
        from data_prep.chat import Message

        shown = self._writer.fit([*self._messages, Message("user", prompt)], self._settings)
        if shown.dropped:
            print(
                f"note: the conversation outgrew the model's context of {self._writer.context_length} tokens; its"
                f" oldest {shown.dropped} messages are forgotten",
                file=sys.stderr,
                flush=True,
            )
        texts = []
        for i in range(_NUM_SAMPLES.value):
            _show("\n---\n" if i else "")
            generation = self._writer.answer(shown, self._settings, self._generator)
            try:
                _stream(generation)
            except KeyboardInterrupt:  # stops this answer, not the conversation
                if _PROMPT.value is not None:
                    raise
            texts.append(generation.text)
        _show("\n")
        self._messages = [*shown.messages, Message("assistant", texts[-1])]
        return "\n---\n".join(texts) + "\n"


def _ask(respond: "_Continuations | _Conversation") -> str:
    """Ask for prompts until `exit`, `quit`, the end of the input or Ctrl-C; returns all that was written."""
    if sys.stdin.isatty():
        print(respond.greeting, file=sys.stderr)
    is_chat = isinstance(respond, _Conversation)
    written = []
    while True:
        try:
            prompt = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            break
        if prompt.strip() in ("exit", "quit"):
            break
        if is_chat and prompt.strip() in ("", "/reset"):
            if prompt.strip():
                respond.reset()
            continue
        try:
            written.append((f"> {prompt}\n" if is_chat else "") + respond(prompt))
        except UserError as e:  # a character the model does not know, say; the next prompt may do
            print(f"error: {e}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:  # stops this text, not the conversation
            print()
    return "\n".join(written)


def cli() -> None:
    """Entry point of the console script ``infer``."""
    command.run(main, __doc__)


if __name__ == "__main__":
    cli()
