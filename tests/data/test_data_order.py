"""The order of training windows: a pure function of seed and step, a bijection per epoch; validation covers all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.order import ShuffledOrder, WindowOrder, permute, read_batch, read_validation_batch, validation_windows
from scratchgpt.errors import UserError


class Counting:
    """Token i is i."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def slice(self, start, stop):
        assert 0 <= start <= stop <= self.n
        return np.arange(start, stop, dtype=np.int32)


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permutation_is_a_bijection(n, key):
    assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


def test_permutation_of_a_huge_range_stays_inside():
    n = 10**12 + 39
    images = permute(np.arange(1000), n, 7)
    assert images.min() >= 0
    assert images.max() < n
    assert len(set(images.tolist())) == 1000
    assert images.max() > n * 0.9


@given(st.integers(1, 20), st.integers(0, 400), st.integers(1, 13), st.integers(0, 2**40))
def test_epochs_visit_every_window_once(sequence_length, extra, batch_size, seed):
    n_tokens = sequence_length + 1 + extra
    order = WindowOrder(n_tokens, sequence_length, batch_size, seed)
    n = order.windows_per_epoch
    steps = -(-3 * n // batch_size)
    starts = np.concatenate([order.starts(s) for s in range(steps)])
    assert starts.dtype == np.int64
    assert starts.min() >= 0
    assert starts.max() + sequence_length + 1 <= n_tokens
    for epoch in range(3):
        mine = np.sort(starts[epoch * n : (epoch + 1) * n])
        shift = order.shift(epoch)
        assert 0 <= shift <= order.max_shift <= sequence_length - 1
        assert np.array_equal(mine, shift + sequence_length * np.arange(n))
    # whatever the batch size, the same examples in the same places
    other = WindowOrder(n_tokens, sequence_length, 1, seed)
    assert np.array_equal(starts[:20], np.concatenate([other.starts(s) for s in range(min(20, len(starts)))]))
    assert np.array_equal(
        order.starts(steps - 1), WindowOrder(n_tokens, sequence_length, batch_size, seed).starts(steps - 1)
    )


GOLDEN_START = [6176, 68176, 14276, 42256]
GOLDEN_LATE = [76306, 23196, 25576, 28756]


def test_seeds_and_epochs_differ_and_the_order_never_changes():
    order = WindowOrder(100_001, 10, 4, 1337)
    assert order.starts(0).tolist() == GOLDEN_START
    assert order.starts(123_456_789).tolist() == GOLDEN_LATE
    assert order.starts(0).tolist() != WindowOrder(100_001, 10, 4, 1338).starts(0).tolist()
    assert len({order.shift(e) for e in range(50)}) > 5
    first = np.concatenate([order.starts(s) for s in range(order.windows_per_epoch // 4)])
    assert abs(np.corrcoef(np.arange(len(first)), first)[0, 1]) < 0.05


def test_too_few_tokens_is_one_sentence():
    with pytest.raises(UserError, match=r"8 tokens.*sequence_length=8.*9"):
        WindowOrder(8, 8, 1, 0)
    assert WindowOrder(9, 8, 3, 0).starts(5).tolist() == [0, 0, 0]


def test_read_batch():
    inputs, targets = read_batch(Counting(50), np.array([0, 7, 44]), 5)
    assert inputs.dtype == targets.dtype == np.int32
    assert inputs[1].tolist() == [7, 8, 9, 10, 11]
    assert np.array_equal(targets, inputs + 1)
    assert inputs.flags["C_CONTIGUOUS"]


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 7))
def test_validation_predicts_every_token_once(n_tokens, sequence_length, rows):
    starts, lengths = validation_windows(n_tokens, sequence_length)
    predicted = []
    for i in range(0, len(starts), rows):
        inputs, targets, weights = read_validation_batch(
            Counting(n_tokens), starts[i : i + rows], lengths[i : i + rows], sequence_length, rows
        )
        assert inputs.shape == targets.shape == weights.shape == (rows, sequence_length)
        assert weights.dtype == np.float32
        real = weights > 0
        assert np.array_equal(targets[real], inputs[real] + 1)
        predicted += targets[real].tolist()
    assert predicted == list(range(1, n_tokens))
    assert (lengths[:-1] == sequence_length).all()


@given(st.integers(1, 50), st.integers(1, 9), st.integers(0, 60))
def test_the_place_of_a_step_names_its_first_and_last_example(n, batch_size, step):
    order = ShuffledOrder(n, batch_size, seed=1)
    first, last = step * batch_size, step * batch_size + batch_size - 1
    place = order.place(step)
    assert place.startswith(f"examples {first % n:,} of epoch {first // n} to {last % n:,}")
    assert (f"of epoch {last // n}" in place.split(" to ")[1]) == (first // n != last // n)
