"""Write text with a trained model, in PyTorch, on a CPU, an Apple GPU or CUDA.

    python -m torchgpt.generate [--checkpoint=HF_DIR] [--prompt=TEXT] [--output=FILE]

Without --prompt it asks for prompts until `exit`, `quit` or the end of the input.
"""

import sys
from collections.abc import Callable

from absl import flags

from scratchgpt import cli as command
from scratchgpt.errors import UserError

_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "Hugging Face directory or workdir; empty: newest runs/*/export")
_PROMPT = flags.DEFINE_string("prompt", None, "text to continue; none: ask for prompts")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 200, "tokens to write at most")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0 is greedy")
_TOP_K = flags.DEFINE_integer("top_k", 0, "sample from the k likeliest tokens; 0: from all")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "sample from the likeliest tokens with this total probability")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "continuations to write")
_SEED = flags.DEFINE_integer("seed", 0, "of the random choices", 0, 2**32 - 1)
_DEVICE = flags.DEFINE_string("device", "auto", "auto, cpu, mps or cuda")
_OUTPUT = flags.DEFINE_string("output", "", "file to write the text to as well")


class Writer:
    """Shows tokens as text as soon as they make whole characters, and keeps the text."""

    def __init__(self, decode: Callable[[list[int]], str], show: Callable[[str], None]):
        self._decode, self._show = decode, show
        self._ids: list[int] = []
        self.text = ""

    def add(self, token: int) -> None:
        """One more token. A character cut between tokens is held back until its last byte is there."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if not text.endswith("\ufffd"):
            self._show(text[len(self.text) :])
            self.text = text

    def finish(self) -> str:
        """Show what was held back; returns the whole text."""
        text = self._decode(self._ids) if self._ids else ""
        self._show(text[len(self.text) :])
        self.text = text
        return text


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def main() -> None:
    """Continue one prompt, or ask for prompts."""
    from scratchgpt.sampling_flags import check_sampling
    from scratchgpt.workdir import resolve_export

    check_sampling(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _MAX_NEW_TOKENS.value, _NUM_SAMPLES.value)
    directory = resolve_export(_CHECKPOINT.value)
    import torch  # only now: --help and wrong flags answer at once

    from data_prep.tokenizers import load_tokenizer
    from scratchgpt.labels import check_writes_text
    from torchgpt.device import pick_device
    from torchgpt.hf import load_model
    from torchgpt.sampling import generate

    tokenizer = load_tokenizer(directory)
    model = load_model(directory, pick_device(_DEVICE.value))
    check_writes_text(model.config, directory)
    generator = torch.Generator().manual_seed(_SEED.value)

    def write(prompt: str) -> str:
        """Show ``prompt`` with its continuations as they are made; returns the same text."""
        ids = list(tokenizer.encode(prompt)) or [tokenizer.end_of_text_id]
        texts = []
        for i in range(_NUM_SAMPLES.value):
            _show("\n---\n" if i else "")
            _show(prompt)
            writer = Writer(tokenizer.decode, _show)
            for token in generate(
                model,
                ids,
                max_new_tokens=_MAX_NEW_TOKENS.value,
                temperature=_TEMPERATURE.value,
                top_k=_TOP_K.value,
                top_p=_TOP_P.value,
                generator=generator,
                stop_ids=[tokenizer.end_of_text_id],
            ):
                writer.add(token)
            texts.append(prompt + writer.finish())
        _show("\n")
        return "\n---\n".join(texts) + "\n"

    written = write(_PROMPT.value) if _PROMPT.value is not None else _converse(write)
    if _OUTPUT.value:
        from scratchgpt.files import write_text

        write_text(_OUTPUT.value, written)


def _converse(write: Callable[[str], str]) -> str:
    """Ask for prompts until `exit`, `quit`, the end of the input or Ctrl-C; returns all that was written."""
    if sys.stdin.isatty():
        print("Write the beginning of a text; `exit` ends.", file=sys.stderr)
    written = []
    while True:
        try:
            prompt = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            break
        if prompt.strip() in ("exit", "quit"):
            break
        try:
            written.append(write(prompt))
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
