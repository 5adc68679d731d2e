"""Loss, perplexity and bits per byte of a text: every token of it predicted once."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxgpt.scoring import Request


class Measured(NamedTuple):
    """Sums over texts, from which every figure follows.

    Attributes:
      nats: negative log-likelihood of each piece of text, float64 [pieces].
      tokens: predicted in each, int64 [pieces].
      bytes: of UTF-8 in all of them.
    """

    nats: np.ndarray
    tokens: np.ndarray
    bytes: int

    def figures(self) -> dict[str, float]:
        """``loss`` (nats per token), ``perplexity`` (per token), ``bits_per_byte`` and ``byte_perplexity``."""
        nats, tokens = float(self.nats.sum()), int(self.tokens.sum())
        loss, bits = nats / tokens, nats / math.log(2) / self.bytes
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": bits,
            "byte_perplexity": 2.0 ** min(bits, 1000.0),
            "tokens": tokens,
            "bytes": self.bytes,
        }

    def standard_errors(self) -> dict[str, float]:
        """Of ``loss`` and ``bits_per_byte``, ratios of sums over pieces taken as drawn at random (Cochran 1977)."""
        n, tokens = len(self.nats), self.tokens.sum()
        if n < 2:
            return {}
        loss = self.nats.sum() / tokens
        residual = self.nats - loss * self.tokens
        error = math.sqrt(float(np.square(residual).sum()) * n / (n - 1)) / float(tokens)
        return {"loss": error, "bits_per_byte": error / loss * float(self.nats.sum()) / math.log(2) / self.bytes}


def disjoint_windows(tokens: Sequence[int], context_length: int) -> Iterator[Request]:
    """Requests that predict every token but the first once and read none twice, as training validates."""
    for start in range(0, len(tokens) - 1, context_length):
        part = tokens[start : start + context_length + 1]
        yield Request(part, len(part) - 1)


def windows(tokens: Sequence[int], context_length: int, stride: int) -> Iterator[Request]:
    """Requests that predict every token but the first once, each given up to ``context_length`` before it.

    The first window predicts all its tokens, the others the next ``stride``: with a small stride every token has a long
    context, at the price of more windows (Press et al. 2021, "Shortformer"; the sliding window of Hugging Face's guide
    to perplexity). With ``stride = context_length`` these are the rolling windows of EleutherAI's harness.
    """
    end = min(len(tokens), context_length + 1)
    yield Request(tokens[:end], end - 1)
    while end < len(tokens):
        begin, end = end, min(len(tokens), end + stride)
        yield Request(tokens[max(0, end - context_length - 1) : end], end - begin)
