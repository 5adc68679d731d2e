"""Best-fit packing: nothing lost, nothing twice, nothing too long, and well filled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.packing import PackedOrder, cut_documents, pack, read_packed
from scratchgpt.errors import UserError


class Tokens:
    """Token i is i."""

    def __init__(self, n: int):
        self._n = n

    def __len__(self) -> int:
        return self._n

    def slice(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start <= stop <= self._n
        return np.arange(start, stop, dtype=np.int32)


@st.composite
def corpora(draw):
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=60))
    n_tokens = sum(lengths)
    return np.cumsum([0, *lengths[:-1]]).astype(np.uint64), n_tokens, draw(st.sampled_from([1, 2, 7, 16]))


@settings(max_examples=100, derandomize=True, deadline=None)
@given(corpora())
def test_every_target_is_predicted_once_from_its_own_document(corpus):
    starts, n_tokens, length = corpus
    bins = pack(*cut_documents(starts, n_tokens, length), length)
    if not len(bins):
        assert n_tokens == 1
        return
    batch = read_packed(Tokens(n_tokens), bins, np.arange(len(bins)), length, batch_size=len(bins) + 2)
    real = batch["weights"] == 1
    assert sorted(batch["targets"][real].tolist()) == list(range(1, n_tokens))
    assert (batch["targets"][real] == batch["inputs"][real] + 1).all()
    assert ((batch["segments"] > 0) == real).all()
    assert not real[len(bins) :].any()
    document = np.searchsorted(starts.astype(np.int64), np.arange(n_tokens), side="right")
    for row in range(len(bins)):
        for segment in range(1, batch["segments"][row].max() + 1):
            targets = batch["targets"][row, batch["segments"][row] == segment]
            assert len(set(document[targets])) == 1  # of one document
            assert (np.diff(targets) == 1).all()  # without a gap


@settings(max_examples=50, derandomize=True, deadline=None)
@given(corpora())
def test_no_two_half_empty_bins_could_be_one(corpus):
    starts, n_tokens, length = corpus
    bins = pack(*cut_documents(starts, n_tokens, length), length)
    filled = np.add.reduceat(bins.lengths, bins.first[:-1]) if len(bins) else np.zeros(0)
    assert (filled <= length).all()
    half = np.sort(filled)[:2]
    assert len(half) < 2 or half.sum() > length


def test_documents_of_usual_lengths_fill_the_sequences():
    lengths = np.random.default_rng(0).lognormal(5.5, 1.0, 3000).astype(int) + 1
    starts = np.cumsum([0, *lengths[:-1]])
    pieces = cut_documents(starts, int(lengths.sum()), 512)
    bins = pack(*pieces, 512)
    assert pieces[1].sum() / (len(bins) * 512) > 0.99


def test_an_epoch_visits_every_bin_once_and_the_next_in_another_order():
    starts = np.arange(0, 1000, 10)
    order = PackedOrder(starts, 1000, 16, batch_size=4, seed=3)
    count = len(order.bins)
    chosen = np.concatenate([order.starts(step) for step in range(2 * -(-count // 4))])
    first, second = chosen[:count], chosen[count : 2 * count]
    assert sorted(first) == sorted(second) == list(range(count))
    assert (first != second).any()
    again = PackedOrder(starts, 1000, 16, batch_size=4, seed=3)
    np.testing.assert_array_equal(again.starts(7), order.starts(7))  # resumable by the step alone
    assert (PackedOrder(starts, 1000, 16, batch_size=4, seed=4).starts(7) != order.starts(7)).any()


def test_a_split_without_targets_is_refused():
    with pytest.raises(UserError, match="at least 2"):
        PackedOrder(np.zeros(1), 1, 16, 4, 0)
