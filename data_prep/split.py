"""Which text trains and which validates.

Fewer than 100 documents are split by position: the first ``1 - val_fraction`` of all their characters train, the rest
validates, and one document may lie across the boundary. (One document gives nanoGPT's split of tiny Shakespeare.)
From 100 documents on, each goes whole to one side, by a hash of its index: the same side in every run. Each part of a
mixture is split by itself.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from data_prep.order import hash64
from data_prep.sources import Block

FEW = 100


class Rule(NamedTuple):
    """How the documents of one source are split."""

    boundary: int  # characters that train; -1: there are many documents, which go by their hash
    separate: bool  # an end-of-text token follows each document: not if one is all there is


class Part(NamedTuple):
    """A stretch of a document, all of which falls to one split."""

    index: int  # of the document in its source
    file: int
    row: int
    split: str  # "train" or "val"
    text: str
    closes: bool  # the document ends here
    ends: bool  # an end-of-text token follows


def rule_for(blocks: Iterable[Block], val_fraction: float) -> Rule:
    """The rule for a source with these ``blocks``; reads no more of them than it takes to see that there are many."""
    documents = characters = 0
    for block in blocks:
        documents += block.closes
        characters += len(block.text)
        if documents == FEW:
            return Rule(-1, True)
    return Rule(int(characters * (1 - val_fraction)), documents > 1)


def parts(blocks: Iterable[Block], rule: Rule, val_fraction: float, index: int = 0) -> Iterator[Part]:
    """Yield the stretches of every document in order; ``index`` is that of the first, 0 where there is a boundary."""
    left = rule.boundary
    for block in blocks:
        place = (index, block.file, block.row)
        if left < 0:
            split = "val" if hash64(index) < val_fraction * 2**64 else "train"
            yield Part(*place, split, block.text, block.closes, block.closes)
        else:
            cut = min(left, len(block.text))
            left -= cut
            ends = rule.separate and block.closes
            if cut:
                whole = cut == len(block.text)
                yield Part(*place, "train", block.text[:cut], block.closes and whole, ends and whole)
            if cut < len(block.text):
                yield Part(*place, "val", block.text[cut:], block.closes, ends)
        index += block.closes


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
