"""A model with its tokenizer, ready to continue texts and to answer: what the command and the server have in common."""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_prep.chat import ChatFormat, Message
from data_prep.tokenizers import load_tokenizer
from scratchgpt.errors import UserError
from scratchgpt.labels import check_writes_text
from scratchgpt.sampling_flags import rows_at_once
from torchgpt.batch import generate_batch
from torchgpt.chat import Shown, fit_conversation
from torchgpt.fast_decoding import FastDecoder
from torchgpt.hf import load_model
from torchgpt.int8 import quantize
from torchgpt.sampling import Step, generate_steps
from torchgpt.text_stream import TextStream


@dataclass(frozen=True)
class Settings:
    """How to write a text."""

    max_new_tokens: int
    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    stop: Sequence[str] = ()  # strings before the first of which the text ends
    alternatives: int | None = None  # how many to tell with each token; None: not even its own log probability

    def sampling(self) -> dict[str, Any]:
        """What both ways to generate, of one text and of many, are told."""
        return {name: getattr(self, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p")}


class Piece(NamedTuple):
    """One token of a text that is being written."""

    text: str  # "" for all but the last token of a character
    token: int
    logprob: float | None  # of the token, in nats; None: not asked for
    alternatives: list[tuple[int, float]]  # (token, log probability) of the likeliest, likeliest first


class Generation:
    """One text being written. Iterating computes a token at a time and gives the pieces that are certain by then.

    Attributes:
      prompt: the ids that are continued.
      n_tokens: tokens computed so far.
      finish_reason: None until it is finished; then "stop" (at a stop token or string) or "length".
    """

    def __init__(
        self,
        writer: "Writer",
        prompt: list[int],
        settings: Settings,
        generator: torch.Generator,
        stop_ids: Collection[int],
    ):
        self.prompt, self.n_tokens, self.finish_reason = prompt, 0, None
        self._settings = settings
        self._stream = TextStream(writer.tokenizer.decode, settings.stop)
        self._held: deque[Step] = deque()
        self._steps = generate_steps(
            writer.model,
            prompt,
            **settings.sampling(),
            generator=generator,
            stop_ids=stop_ids,
            decoder=writer.decoder,
        )

    @property
    def text(self) -> str:
        """What the pieces so far make up."""
        return self._stream.text

    def __iter__(self) -> Iterator[list[Piece]]:
        for step in self._steps:
            self.n_tokens += 1
            self._held.append(step)
            yield self._pieces(self._stream.add(step.token))
            if self._stream.stopped:
                break
        yield self._pieces(self._stream.finish())
        ended = self._stream.stopped or self.n_tokens < self._settings.max_new_tokens
        self.finish_reason = "stop" if ended else "length"

    def _pieces(self, texts: list[str]) -> list[Piece]:
        count, pieces = self._settings.alternatives, []
        for text in texts:
            step = self._held.popleft()
            inside = (None, []) if count is None else (step.logprob, step.alternatives(count))
            pieces.append(Piece(text, step.token, *inside))
        return pieces


class Writer:
    """A loaded model.

    Attributes:
      model, tokenizer: as loaded.
      decoder: the model's fast way from token to token.
      chat_format: how a conversation becomes tokens; None for a model that was not tuned on instructions.
    """

    def __init__(self, directory: Path, device: torch.device, needs_chat: bool = False, weights: str = "float32"):
        """Load a Hugging Face directory; ``weights`` is float32 or int8.

        Raises UserError, with ``needs_chat`` also for a model that cannot chat.
        """
        self.tokenizer = load_tokenizer(directory)
        self.chat_format = None
        try:
            self.chat_format = ChatFormat(self.tokenizer)
        except UserError:
            if needs_chat:
                raise
        self.model = load_model(directory, device)
        if weights == "int8":
            quantize(self.model)
        self.decoder = FastDecoder(self.model)
        check_writes_text(self.model.config, directory)

    @property
    def context_length(self) -> int:
        """How many tokens the model sees at once."""
        return self.model.config.context_length

    def encode(self, text: str) -> list[int]:
        """Ids of a text to continue; an empty one begins after the end of another. Raises UserError."""
        return [int(i) for i in self.tokenizer.encode(text)] or [self.tokenizer.end_of_text_id]

    def continue_text(self, prompt: list[int], settings: Settings, generator: torch.Generator) -> Generation:
        """The text that follows ``prompt``; beyond the context it goes on from the last half of it."""
        return Generation(self, prompt, settings, generator, [self.tokenizer.end_of_text_id])

    def write_all(self, prompts: Sequence[Sequence[int]], settings: Settings, generator: torch.Generator) -> list[str]:
        """What follows each of the prompts (token ids), computed together. ``settings.stop`` is left out."""
        return self._together(prompts, settings, generator, [self.tokenizer.end_of_text_id])

    def answer_all(self, shown: Sequence[Shown], settings: Settings, generator: torch.Generator) -> list[str]:
        """The answers to conversations that :meth:`fit` gave, computed together."""
        prompts, limits = [one.prompt for one in shown], [one.max_new_tokens for one in shown]
        return self._together(prompts, settings, generator, self.chat_format.stop_ids, limits)

    def _together(self, prompts, settings, generator, stop_ids, limits=None) -> list[str]:
        written, rows = [], rows_at_once(self.model.config)
        for i in range(0, len(prompts), rows):
            written += generate_batch(
                self.model,
                prompts[i : i + rows],
                **settings.sampling(),
                generator=generator,
                stop_ids=stop_ids,
            )
        limits = limits or [settings.max_new_tokens] * len(written)
        return [self.tokenizer.decode(tokens[:limit]) for tokens, limit in zip(written, limits, strict=True)]

    def fit(self, messages: Sequence[Message], settings: Settings, drop_turns: bool = True) -> Shown:
        """What of a conversation fits; see :func:`torchgpt.chat.fit_conversation`."""
        return fit_conversation(self.chat_format, messages, self.context_length, settings.max_new_tokens, drop_turns)

    def answer(self, shown: Shown, settings: Settings, generator: torch.Generator) -> Generation:
        """The answer to the conversation that :meth:`fit` gave."""
        settings = replace(settings, max_new_tokens=shown.max_new_tokens)
        return Generation(self, shown.prompt, settings, generator, self.chat_format.stop_ids)
