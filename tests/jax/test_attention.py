"""The fast ways to attend say what the plain one says: outputs and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxgpt.attention import causal_attention, reference_attention
from jaxgpt.fast_attention import (
    MOST_BLOCKS,
    QUERY_BLOCK,
    SPLASH_BLOCK,
    blocked_attention,
    query_blocks,
    splash_attention,
)


def random_heads(batch: int, length: int, groups: int, repeats: int, width: int, seed: int = 0):
    random = np.random.default_rng(seed)
    shapes = [(batch, length, h, width) for h in (groups * repeats, groups, groups)]
    return tuple(jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes)


def random_segments(batch: int, length: int, seed: int = 0) -> jax.Array:
    starts = np.random.default_rng(seed).random((batch, length)) < 0.1
    return jnp.asarray(np.cumsum(starts, axis=1), jnp.int32)


def assert_same(attend, heads, segments):
    """``attend`` against the reference: its output, and the gradient of a sum that weighs every output differently."""
    positions = jnp.broadcast_to(jnp.arange(heads[0].shape[1]), heads[0].shape[:2])
    weights = jnp.cos(jnp.arange(heads[0].size, dtype=jnp.float32)).reshape(heads[0].shape)

    def total(way, *heads):
        y = way(*heads)
        return (y * weights).sum(), y

    def plain(q, k, v):
        return reference_attention(q, k, v, positions, segments_BxT=segments)

    found = [
        jax.jit(jax.grad(lambda *h, way=way: total(way, *h), (0, 1, 2), has_aux=True))(*heads)
        for way in (lambda q, k, v: attend(q, k, v, segments), plain)
    ]
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(jnp.abs(b).max())))


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 5 * MOST_BLOCKS * QUERY_BLOCK))
@example(MOST_BLOCKS * QUERY_BLOCK)
@example(MOST_BLOCKS * QUERY_BLOCK + 1)
def test_blocks_of_queries_take_each_once_and_are_few(length):
    blocks = query_blocks(length)
    assert [query for start, stop in blocks for query in range(start, stop)] == list(range(length))
    assert len(blocks) <= min(MOST_BLOCKS, -(-length // QUERY_BLOCK))


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    length=st.integers(1, 2 * QUERY_BLOCK + 3),
    groups=st.integers(1, 2),
    repeats=st.integers(1, 3),
    segmented=st.booleans(),
)
@example(length=QUERY_BLOCK, groups=1, repeats=1, segmented=False)
@example(length=QUERY_BLOCK + 1, groups=2, repeats=2, segmented=True)
@example(length=MOST_BLOCKS * QUERY_BLOCK + 70, groups=1, repeats=1, segmented=True)  # in larger blocks
def test_blocks_of_queries_attend_as_the_reference_does(length, groups, repeats, segmented):
    heads = random_heads(2, length, groups, repeats, width=4)
    assert_same(blocked_attention, heads, random_segments(2, length) if segmented else None)


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("width", [8, SPLASH_BLOCK])
def test_the_tpu_kernel_attends_as_the_reference_does(width, segmented):
    heads = random_heads(1, SPLASH_BLOCK, groups=1, repeats=2, width=width)
    segments = random_segments(1, SPLASH_BLOCK) if segmented else None
    assert_same(lambda q, k, v, s: splash_attention(q, k, v, s, mesh=None, interpret=True), heads, segments)


def test_on_a_cpu_the_upper_triangle_is_skipped_and_dropout_is_not_forgotten():
    q, k, v = heads = random_heads(1, 2 * QUERY_BLOCK, groups=1, repeats=1, width=4)
    text = jax.jit(causal_attention).lower(*heads).as_text()
    assert f"{2 * QUERY_BLOCK}x{2 * QUERY_BLOCK}x" not in text
    assert f"x{QUERY_BLOCK}x{QUERY_BLOCK}x" in text  # the first block sees its own keys alone
    dropped = causal_attention(q, k, v, dropout=0.5, dropout_key=jax.random.key(0))
    assert float(jnp.abs(dropped - causal_attention(q, k, v)).max()) > 0.1
