"""Which tokens a step sees: a pure function of (seed, global step), shuffled without replacement.

NumPy integer arithmetic only, so that the order is the same on every machine and with every library version, and needs
no memory: a checkpoint remembers its place in the data by the step alone.
"""

from typing import Protocol

import numpy as np

from scratchgpt.errors import UserError

_ROUNDS = 6  # of the Feistel network; four suffice for pseudo-randomness (Luby & Rackoff 1988)
_GOLDEN = 0x9E3779B97F4A7C15


class TokenSource(Protocol):
    """Tokens that can be read by position, such as ``data_prep.shards.Tokens``."""

    def __len__(self) -> int: ...

    def slice(self, start: int, stop: int) -> np.ndarray:
        """int32 [stop - start]."""
        ...


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer (Steele et al. 2014): uint64 [...] -> uint64 [...], a bijection that scatters bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash64(*values: int) -> int:
    """A 64-bit hash of non-negative integers, the same forever: splitmix64 in Python's integers."""
    state = 0
    for value in values:
        state = (state * _GOLDEN + value + _GOLDEN) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state


def permute(ranks: np.ndarray, n: int, key: int) -> np.ndarray:
    """Images of ``ranks`` under a permutation of range(n) that ``key`` picks. int64 [...] -> int64 [...].

    A balanced Feistel network over the next power of four, walked until the value falls below ``n`` again (Black &
    Rogaway 2002): a bijection without a table.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = [np.uint64(hash64(key, r)) for r in range(_ROUNDS)]

    def encrypt(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & mask
        for k in keys:
            left, right = right, left ^ (_mix(right * np.uint64(_GOLDEN) + k) & mask)
        return (left << half) | right

    x = encrypt(np.atleast_1d(ranks).astype(np.uint64))
    while (outside := x >= np.uint64(n)).any():
        x[outside] = encrypt(x[outside])
    return x.astype(np.int64).reshape(np.shape(ranks))


class ShuffledOrder:
    """The order in which training takes ``n`` examples: each once an epoch, in an order of the epoch's own.

    Example ``step * batch_size + row`` belongs to epoch ``example // n``: a batch may straddle epochs.
    """

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed

    def numbers(self, step: int) -> np.ndarray:
        """The examples of the 0-based global ``step``, int64 [batch_size]."""
        return self.numbers_and_epochs(step)[0]

    def numbers_and_epochs(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(examples, the epoch of each) of the 0-based global ``step``, int64 [batch_size] each."""
        first = int(step) * self.batch_size
        epochs, ranks = np.divmod(np.arange(first, first + self.batch_size, dtype=np.int64), self.n)
        chosen = np.empty(self.batch_size, np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            chosen[here] = permute(ranks[here], self.n, hash64(self.seed, epoch, 0))
        return chosen, epochs

    def place(self, step: int) -> str:
        """Where the batch of the 0-based global ``step`` stands: the ranks of its examples in an epoch, from 0."""
        first = int(step) * self.batch_size
        (epoch, rank), (last_epoch, last_rank) = divmod(first, self.n), divmod(first + self.batch_size - 1, self.n)
        end = f"{last_rank:,} of epoch {last_epoch}" if last_epoch > epoch else f"{last_rank:,}"
        return f"examples {rank:,} of epoch {epoch} to {end}, {self.n:,} an epoch"


class WindowOrder:
    """The order in which training reads windows of ``sequence_length + 1`` tokens.

    The predictable positions are cut into N non-overlapping windows. An epoch visits each once, in an order of its own
    and with boundaries shifted by up to ``sequence_length - 1`` tokens, so that no position always comes first in its
    window. Example ``step * batch_size + row`` belongs to epoch ``example // N``: a batch may straddle epochs.
    """

    def __init__(self, n_tokens: int, sequence_length: int, batch_size: int, seed: int) -> None:
        """Raises UserError if there are fewer than ``sequence_length + 1`` tokens."""
        if n_tokens < sequence_length + 1:
            raise UserError(
                f"the split has {n_tokens} tokens, but a window of train.sequence_length={sequence_length} needs"
                f" {sequence_length + 1}: use more text or a shorter sequence"
            )
        self.sequence_length, self.batch_size, self.seed = sequence_length, batch_size, seed
        predictable = n_tokens - 1
        self.windows_per_epoch = max(1, (predictable - (sequence_length - 1)) // sequence_length)
        self._order = ShuffledOrder(self.windows_per_epoch, batch_size, seed)
        self.max_shift = min(sequence_length - 1, predictable - self.windows_per_epoch * sequence_length)

    def shift(self, epoch: int) -> int:
        """Offset of the first window of ``epoch``, in [0, max_shift]."""
        return hash64(self.seed, epoch, 1) % (self.max_shift + 1)

    def place(self, step: int) -> str:
        """As :meth:`ShuffledOrder.place`, of windows."""
        return self._order.place(step)

    def starts(self, step: int) -> np.ndarray:
        """Offset of the first token of every window of the 0-based global ``step``, int64 [batch_size]."""
        windows, epochs = self._order.numbers_and_epochs(step)
        return np.array([self.shift(int(epoch)) for epoch in epochs], np.int64) + windows * self.sequence_length


def read_batch(tokens: TokenSource, starts: np.ndarray, sequence_length: int) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets), each int32 [len(starts), sequence_length]; targets are the inputs' successors."""
    windows = np.stack([tokens.slice(int(s), int(s) + sequence_length + 1) for s in starts])
    return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])


def validation_windows(n_tokens: int, sequence_length: int) -> tuple[np.ndarray, np.ndarray]:
    """(starts, lengths), int64 [ceil((n_tokens - 1) / sequence_length)] each.

    Window i predicts tokens starts[i] + 1 ... starts[i] + lengths[i]; together they predict every token after the
    first exactly once. Only the last may be shorter than ``sequence_length``.
    """
    predictable = max(0, n_tokens - 1)
    starts = np.arange(0, predictable, sequence_length, dtype=np.int64)
    return starts, np.minimum(sequence_length, predictable - starts)


def read_validation_batch(
    tokens: TokenSource, starts: np.ndarray, lengths: np.ndarray, sequence_length: int, batch_size: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(inputs int32, targets int32, weights float32), each [batch_size or len(starts), sequence_length].

    Weights are 1 at real predictions and 0 at padding, which fills short windows and, up to ``batch_size``, rows.
    """
    shape = (max(batch_size, len(starts)), sequence_length)
    inputs, targets, weights = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for row, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        window = tokens.slice(start, start + length + 1)
        inputs[row, :length], targets[row, :length], weights[row, :length] = window[:-1], window[1:], 1.0
    return inputs, targets, weights
