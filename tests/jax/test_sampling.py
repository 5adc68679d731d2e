"""Temperature, top-k and top-p against a slow reading of their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.sampling import bucket, filtered_probabilities, sample
from scratchgpt.errors import UserError
from scratchgpt.sampling_flags import check_sampling


def by_definition(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    z = logits.astype(np.float64) / temperature
    keep = np.ones(len(z), bool)
    if top_k and top_k < len(z):
        keep &= z >= np.sort(z)[-top_k]
    p = np.where(keep, np.exp(z - z.max()), 0)
    p /= p.sum()
    if top_p < 1:
        mass, chosen = 0.0, np.zeros(len(z), bool)
        for i in sorted(range(len(z)), key=lambda i: (-p[i], i)):
            if mass >= top_p:
                break
            chosen[i], mass = True, mass + p[i]
        p = np.where(chosen, p, 0)
    return p / p.sum()


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(0, 1000),
    st.sampled_from([0.3, 0.8, 1.0, 2.0]),
    st.integers(0, 13),
    st.sampled_from([0.111, 0.501, 0.903, 1.0]),
)
def test_filter_is_the_definition(size, seed, temperature, top_k, top_p):
    logits = (3 * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)
    ours = np.asarray(filtered_probabilities(jnp.asarray(logits)[None], temperature, top_k, top_p))[0]
    np.testing.assert_allclose(ours, by_definition(logits, temperature, top_k, top_p), atol=2e-6)


def test_temperature_zero_is_the_first_maximum():
    probabilities = filtered_probabilities(jnp.array([[1.0, 3.0, 3.0]]), 0.0, 0, 1.0)
    np.testing.assert_array_equal(probabilities, [[0, 1, 0]])


def test_samples_follow_the_probabilities():
    logits = jnp.log(jnp.array([[0.6, 0.3, 0.1]]))
    rows = jnp.repeat(logits, 20_000, axis=0)
    drawn = np.bincount(sample(rows, jax.random.key(0), 1.0, 0, 1.0), minlength=3) / 20_000
    np.testing.assert_allclose(drawn, [0.6, 0.3, 0.1], atol=0.015)
    only = np.asarray(sample(rows, jax.random.key(0), 1.0, 1, 1.0))
    assert (only == 0).all()


@pytest.mark.parametrize(
    ("bad", "flag"),
    [
        (dict(temperature=-1.0), "--temperature"),
        (dict(temperature=float("nan")), "--temperature"),
        (dict(top_k=-1), "--top_k"),
        (dict(top_p=0.0), "--top_p"),
        (dict(top_p=1.5), "--top_p"),
        (dict(max_new_tokens=-1), "--max_new_tokens"),
        (dict(num_samples=0), "--num_samples"),
    ],
)
def test_impossible_values_name_the_flag(bad, flag):
    with pytest.raises(UserError, match=flag):
        check_sampling(**(dict(temperature=1.0, top_k=0, top_p=1.0) | bad))


def test_bucket():
    assert [bucket(n, 100) for n in (1, 16, 17, 64, 65, 100)] == [16, 16, 32, 64, 100, 100]
