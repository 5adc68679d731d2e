"""Best-fit packing: whole documents side by side in a training sequence, none of them cut without need.

    document starts -> pieces (targets of one document, at most a sequence long) -> bins (one sequence each)
                       -> bins in an order shuffled anew every epoch -> batches, a pure function of (seed, step)

H. Ding et al., "Fewer Truncations Improve Language Modeling" (2024). Models attend within a document only: a batch says
which document each position belongs to.
"""

from typing import NamedTuple

import numpy as np

from data_prep.order import ShuffledOrder, TokenSource
from scratchgpt.errors import UserError


class Bins(NamedTuple):
    """Pieces in the order of their bins.

    Attributes:
      starts: int64 [pieces], the first target of each piece.
      lengths: int64 [pieces], its targets.
      first: int64 [bins + 1], the first piece of each bin.
    """

    starts: np.ndarray
    lengths: np.ndarray
    first: np.ndarray

    def __len__(self) -> int:
        return len(self.first) - 1

    def pieces(self, number: int) -> tuple[list[int], list[int]]:
        """(starts, lengths) of the pieces of a bin."""
        here = slice(self.first[number], self.first[number + 1])
        return self.starts[here].tolist(), self.lengths[here].tolist()


def cut_documents(document_starts: np.ndarray, n_tokens: int, sequence_length: int) -> tuple[np.ndarray, np.ndarray]:
    """(starts, lengths), int64: every token but the stream's first as a target once, no piece longer than a sequence.

    A document's first token is predicted from the end of text before it. Longer documents are cut every
    ``sequence_length`` targets.
    """
    edges = np.unique(np.concatenate([np.asarray(document_starts, np.int64), [1, n_tokens]]))
    edges = edges[(edges >= 1) & (edges <= n_tokens)]
    counts = -(-np.diff(edges) // sequence_length)
    rank = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(edges[:-1], counts) + rank * sequence_length
    return starts, np.minimum(sequence_length, np.repeat(edges[1:], counts) - starts)


def pack(starts: np.ndarray, lengths: np.ndarray, sequence_length: int) -> Bins:
    """Best-fit decreasing: each piece, the longest first, goes to the fullest bin that still has room for it.

    Bins are found by their remaining room: one stack a size, and the sizes that have any as the bits of an integer.
    """
    order = np.argsort(-lengths, kind="stable")
    stacks: list[list[int]] = [[] for _ in range(sequence_length + 1)]
    sizes, bins = 0, 0
    bin_of = np.empty(len(lengths), np.int64)
    for piece, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        if fitting := sizes >> length:
            room = length + (fitting & -fitting).bit_length() - 1
            target = stacks[room].pop()
            if not stacks[room]:
                sizes &= ~(1 << room)
        else:
            room, target = sequence_length, bins
            bins += 1
        bin_of[piece] = target
        if left := room - length:
            stacks[left].append(target)
            sizes |= 1 << left
    by_bin = np.argsort(bin_of, kind="stable")
    first = np.searchsorted(bin_of[by_bin], np.arange(bins + 1))
    return Bins(starts[by_bin], lengths[by_bin], first.astype(np.int64))


class PackedOrder:
    """Which bins a step trains on: each once an epoch, in an order of the epoch's own.

    Raises UserError for a split without anything to predict.
    """

    def __init__(self, document_starts: np.ndarray, n_tokens: int, sequence_length: int, batch_size: int, seed: int):
        if n_tokens < 2:
            raise UserError(f"the split has {n_tokens} tokens, at least 2 are needed: use more text")
        self.bins = pack(*cut_documents(document_starts, n_tokens, sequence_length), sequence_length)
        self._order = ShuffledOrder(len(self.bins), batch_size, seed)
        self.batch_size = batch_size

    def starts(self, step: int) -> np.ndarray:
        """Numbers of the bins of the 0-based global ``step``, int64 [batch_size]."""
        return self._order.numbers(step)

    def place(self, step: int) -> str:
        """As :meth:`data_prep.order.ShuffledOrder.place`, of bins."""
        return self._order.place(step)


def read_packed(
    tokens: TokenSource,
    bins: Bins,
    chosen: np.ndarray,
    sequence_length: int,
    batch_size: int = 0,
    is_learned: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The bins ``chosen`` as a batch of [batch_size or len(chosen), sequence_length].

    ``inputs``, ``targets`` int32; ``segments`` int32, which document of the bin a position belongs to, from 1, 0 where
    nothing is; ``weights`` float32, 1 at real predictions: with ``is_learned`` (bool, one for each token), at those
    whose target is marked in it.
    """
    shape = (max(batch_size, len(chosen)), sequence_length)
    names = {"inputs": np.int32, "targets": np.int32, "segments": np.int32, "weights": np.float32}
    batch = {name: np.zeros(shape, dtype) for name, dtype in names.items()}
    for row, number in enumerate(chosen.tolist()):
        at = 0
        for segment, (start, length) in enumerate(zip(*bins.pieces(number), strict=True), 1):
            window, here = tokens.slice(start - 1, start + length), slice(at, at + length)
            batch["inputs"][row, here], batch["targets"][row, here] = window[:-1], window[1:]
            batch["segments"][row, here] = segment
            batch["weights"][row, here] = 1.0 if is_learned is None else is_learned[start : start + length]
            at += length
    return batch
