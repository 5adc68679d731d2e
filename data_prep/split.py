"""Which text trains and which validates.

Fewer than 100 documents are split by position: the first ``1 - val_fraction`` of all their characters train, the rest
validates, and one document may lie across the boundary. (One document gives nanoGPT's split of tiny Shakespeare.)
From 100 documents on, each goes whole to one side, by a hash of its index: the same side in every run.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from data_prep.order import hash64

FEW = 100


class Part(NamedTuple):
    """A document, or the piece of one that falls to one split."""

    split: str  # "train" or "val"
    text: str
    ends: bool  # an end-of-text token follows


def parts(documents: Iterable[str], val_fraction: float) -> Iterator[Part]:
    """Yield every document's part or parts in order; documents are non-empty.

    An end-of-text token follows each document, except a document that is all there is: nothing is to be separated.
    """
    documents = iter(documents)
    first = list(itertools.islice(documents, FEW))
    if len(first) == FEW:
        for index, text in enumerate(itertools.chain(first, documents)):
            yield Part("val" if hash64(index) < val_fraction * 2**64 else "train", text, True)
        return
    boundary = int(sum(map(len, first)) * (1 - val_fraction))
    separate = len(first) > 1
    for text in first:
        cut = min(max(boundary, 0), len(text))
        boundary -= len(text)
        if cut:
            yield Part("train", text[:cut], separate and cut == len(text))
        if cut < len(text):
            yield Part("val", text[cut:], separate)


class Budget:
    """How many tokens each split may still take: ``max_tokens`` in all, ``val_fraction`` of them to validate.

    ``max_tokens`` 0 is no limit.
    """

    def __init__(self, max_tokens: int, val_fraction: float) -> None:
        self.max_tokens = max_tokens
        val = round(max_tokens * val_fraction)
        self._left = {"train": max_tokens - val, "val": val} if max_tokens else None

    def take(self, split: str, wanted: int) -> int:
        """The part of ``wanted`` tokens that still fits into ``split``; it is then used up."""
        if self._left is None:
            return wanted
        taken = min(wanted, self._left[split])
        self._left[split] -= taken
        return taken

    @property
    def spent(self) -> bool:
        """Whether no split can take any more."""
        return self._left is not None and not any(self._left.values())


def limited(stream: Iterable[Part], budget: Budget) -> Iterator[Part]:
    """The parts, or beginnings of parts, that fit into ``budget`` at a token per character."""
    for part in stream:
        taken = budget.take(part.split, len(part.text) + part.ends)
        if taken:
            yield Part(part.split, part.text[:taken], part.ends and taken > len(part.text))
        if budget.spent:
            return
