"""Texts in the JSON of OpenAI's answers: whole, or as the chunks of a stream."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

from data_prep.tokenizers import Tokenizer
from torchgpt.writer import Generation, Piece


class Shape:
    """How the answer to one request looks; what the two kinds have in common.

    Attributes:
      head: the fields that are the same in all of its chunks.
    """

    prefix: str
    kinds: tuple[str, str]  # the "object" of an answer and of a chunk

    def __init__(self, model: str, tokenizer: Tokenizer, is_chunk: bool, **extra: Any):
        self._tokenizer = tokenizer
        self.head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "object": self.kinds[is_chunk],
            "created": int(time.time()),
            "model": model,
            **extra,
        }

    def token_text(self, token: int) -> str:
        """The token on its own; bytes that are no whole character become U+FFFD."""
        return self._tokenizer.decode([token])

    def first(self, index: int) -> list[dict[str, Any]]:
        """Choices of the chunk that opens text ``index``."""
        return []

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        """The choice of a chunk with one token of text ``index``."""
        raise NotImplementedError

    def last(self, index: int, finish_reason: str) -> dict[str, Any]:
        """The choice of the chunk that closes text ``index``."""
        raise NotImplementedError

    def whole(self, index: int, pieces: Sequence[Piece], finish_reason: str) -> dict[str, Any]:
        """The choice of an answer in one piece."""
        raise NotImplementedError


class ChatShape(Shape):
    """/v1/chat/completions."""

    prefix, kinds = "chatcmpl", ("chat.completion", "chat.completion.chunk")

    def first(self, index: int) -> list[dict[str, Any]]:
        return [_choice(index, delta={"role": "assistant", "content": ""})]

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        return _choice(index, delta={"content": piece.text}, logprobs=self._logprobs([piece]))

    def last(self, index: int, finish_reason: str) -> dict[str, Any]:
        return _choice(index, finish_reason, delta={})

    def whole(self, index: int, pieces: Sequence[Piece], finish_reason: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(piece.text for piece in pieces), "refusal": None}
        return _choice(index, finish_reason, message=message, logprobs=self._logprobs(pieces))

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if any(piece.logprob is None for piece in pieces):
            return None
        entries = [
            self._entry(p.token, p.logprob) | {"top_logprobs": [self._entry(*a) for a in p.alternatives]}
            for p in pieces
        ]
        return {"content": entries, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.token_text(token)
        whole = "\ufffd" not in text  # otherwise the text does not tell its bytes
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8")) if whole else None}


class CompletionShape(Shape):
    """/v1/completions."""

    prefix, kinds = "cmpl", ("text_completion", "text_completion")

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._lengths: dict[int, int] = {}  # of the texts so far

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        return _choice(index, text=piece.text, logprobs=self._logprobs(index, [piece]))

    def last(self, index: int, finish_reason: str) -> dict[str, Any]:
        return _choice(index, finish_reason, text="")

    def whole(self, index: int, pieces: Sequence[Piece], finish_reason: str) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        return _choice(index, finish_reason, text=text, logprobs=self._logprobs(index, pieces))

    def _logprobs(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if any(piece.logprob is None for piece in pieces):
            return None
        offsets = []
        for piece in pieces:
            offsets.append(self._lengths.get(index, 0))
            self._lengths[index] = offsets[-1] + len(piece.text)
        return {
            "tokens": [self.token_text(p.token) for p in pieces],
            "token_logprobs": [p.logprob for p in pieces],
            "top_logprobs": [self._top(p) for p in pieces],
            "text_offset": offsets,
        }

    def _top(self, piece: Piece) -> dict[str, float]:
        """By text, as OpenAI has it: of tokens with the same, the likeliest counts. The chosen one is among them."""
        top: dict[str, float] = {}
        for token, logprob in [*piece.alternatives, (piece.token, piece.logprob)]:
            top.setdefault(self.token_text(token), logprob)
        return top


def _choice(index: int, finish_reason: str | None = None, **rest: Any) -> dict[str, Any]:
    return {"index": index, "logprobs": None, "finish_reason": finish_reason} | rest


def usage(prompts: Sequence[Sequence[int]], generations: Sequence[Generation]) -> dict[str, int]:
    """Token counts of a request; its prompts count once, however many texts continue them."""
    read, written = sum(map(len, prompts)), sum(g.n_tokens for g in generations)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
