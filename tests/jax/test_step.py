"""The train step: accumulation, dropout, float16, and steps that must not be applied."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.schema import Config, OptimConfig, TrainConfig, gpt2, llama, resolve_model
from jaxgpt.attention import causal_attention
from jaxgpt.loss import cross_entropy_sums
from jaxgpt.loss_scale import GROWS_AFTER, HIGHEST, LossScale
from jaxgpt.model import drop
from jaxgpt.objective import Sums
from jaxgpt.sharding import make_mesh
from jaxgpt.step import Steps


def loss_sums(model, batch, key):
    logits = model(batch["inputs"], dropout_key=key)[0]
    return Sums(*cross_entropy_sums(logits, batch["targets"], batch.get("weights")), {})


@functools.cache
def make_steps(family=llama, dropout: float = 0.0, **train) -> Steps:
    config = Config(
        model=family(n_layer=2, n_head=2, n_embd=16, context_length=8, vocab_size=13, dropout=dropout),
        train=TrainConfig(**{"batch_size": 8, "dtype": "float32"} | train),
        optim=OptimConfig(learning_rate=0.01),
    )
    return Steps(config, resolve_model(config.model), loss_sums, make_mesh(config))


def batch(micro: int, seed: int = 0) -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(seed).integers(0, 13, (8, 9), dtype=np.int32)
    shape = (8 // micro, micro, 8)
    return {"inputs": tokens[:, :-1].reshape(shape), "targets": tokens[:, 1:].reshape(shape)}


def assert_same(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance)


ONE = np.float32(1.0)


@pytest.mark.parametrize("micro", [1, 4])
def test_accumulated_micro_batches_are_one_big_batch(micro):
    big, small = make_steps(), make_steps(micro_batch_size=micro)
    whole, m1 = big.update(big.initial_state(), batch(8), ONE)
    parts, m2 = small.update(small.initial_state(), batch(micro), ONE)
    assert float(m1["loss"]) == pytest.approx(float(m2["loss"]), rel=1e-6)
    assert float(m1["grad_norm"]) == pytest.approx(float(m2["grad_norm"]), rel=1e-5)
    # Adam's first step divides by the gradient's own size, so near-zero gradients magnify rounding
    assert_same(whole["params"], parts["params"], 2e-4)


def test_mean_is_over_the_weights_of_the_whole_batch():
    steps = make_steps(micro_batch_size=4)
    data = batch(4)
    data["weights"] = np.zeros((2, 4, 8), np.float32)
    data["weights"][0, 0, :3] = 1
    data["weights"][1, 2, 5] = 1
    _, metrics = steps.update(steps.initial_state(), data, ONE)
    state = steps.initial_state()
    flat = {k: v.reshape(8, 8) for k, v in data.items()}
    total, weight, _ = steps.validate(state["params"], flat)
    assert float(weight) == 4
    assert float(metrics["loss"]) == pytest.approx(float(total / weight), rel=1e-6)


def test_remat_and_unrolling_change_nothing():
    plain = make_steps()
    expected, _ = plain.update(plain.initial_state(), batch(8), ONE)
    for options in (dict(remat="block"), dict(remat="dots"), dict(unroll_layers=True)):
        steps = make_steps(**options)
        got, _ = steps.update(steps.initial_state(), batch(8), ONE)
        assert_same(got["params"], expected["params"], 2e-4)


def test_dropout_keeps_the_mean_and_zeroes_the_rate():
    dropped = np.asarray(drop(jnp.ones(100_000), 0.25, jax.random.key(0)))
    assert set(dropped.tolist()) == {0.0, float(np.float32(1 / 0.75))}
    assert (dropped == 0).mean() == pytest.approx(0.25, abs=0.01)


def test_attention_drops_probabilities_and_keeps_their_mean():
    """With equal keys every visible position weighs the same: dropout keeps 1 / (1 - rate) of it, or nothing."""
    rate, length = 0.5, 64
    zeros, ones = jnp.zeros((16, length, 2, 4)), jnp.ones((16, length, 2, 4))
    y = np.asarray(causal_attention(zeros, zeros, ones, dropout=rate, dropout_key=jax.random.key(0)))
    kept = y[:, -1, :, 0] * length * (1 - rate)  # how many of the last query's keys were kept
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-3)
    assert kept.mean() == pytest.approx(length * (1 - rate), rel=0.05)


def test_dropout_depends_on_seed_and_step_alone():
    steps = make_steps(family=gpt2, dropout=0.5)
    loss = lambda state: float(steps.update(state, batch(8), np.float32(0.0))[1]["loss"])  # noqa: E731
    later = steps.initial_state() | {"step": jnp.int32(7)}
    assert loss(steps.initial_state()) == loss(steps.initial_state())
    assert loss(steps.initial_state()) != loss(later)
    total, weight, _ = steps.validate(steps.initial_state()["params"], {k: v[0] for k, v in batch(8).items()})
    assert float(total / weight) != loss(steps.initial_state())


def test_a_step_that_is_not_finite_is_not_applied():
    steps = make_steps()
    data = batch(8)
    data["weights"] = np.ones((1, 8, 8), np.float32)
    data["weights"][0, 0, 0] = np.inf
    before = jax.tree.map(np.asarray, steps.initial_state())
    after, metrics = steps.update(steps.initial_state(), data, ONE)
    assert not metrics["finite"]
    assert_same(after["params"], before["params"], 0)
    assert_same(after["opt"], before["opt"], 0)
    assert int(after["step"]) == 1


def test_the_loss_scale_halves_at_an_overflow_and_doubles_after_many_steps_without():
    scale = LossScale(jnp.float32(8.0), jnp.int32(GROWS_AFTER - 2))
    for finite, expected in [(True, 8.0), (True, 16.0), (False, 8.0), (False, 4.0), (True, 4.0)]:
        scale = scale.after(jnp.bool_(finite))
        assert float(scale.scale) == expected
    assert int(scale.streak) == 1
    assert float(LossScale(jnp.float32(1.0), jnp.int32(0)).after(jnp.bool_(False)).scale) == 1.0
    assert float(LossScale(jnp.float32(HIGHEST), jnp.int32(GROWS_AFTER)).after(jnp.bool_(True)).scale) == HIGHEST


def test_float16_finds_its_loss_scale_and_then_trains_as_float32_does():
    half, single = make_steps(dtype="float16"), make_steps()
    _, metrics = half.update(half.initial_state(), batch(8), ONE)
    assert metrics["finite"]  # an ordinary loss overflows nowhere
    large = {**batch(8), "weights": np.full((1, 8, 8), 5000.0, np.float32)}
    state, skipped = half.initial_state(), 0
    before = jax.tree.map(np.asarray, state)
    for _ in range(20):
        last = float(state["loss_scale"].scale)
        state, metrics = half.update(state, large, ONE)
        if metrics["finite"]:
            break
        assert metrics["overflow"]
        assert float(state["loss_scale"].scale) == last / 2
        assert_same(state["params"], before["params"], 0)
        skipped += 1
    assert 0 < skipped < 20
    after, wanted = single.update(single.initial_state(), large, ONE)
    assert float(metrics["loss"]) == pytest.approx(float(wanted["loss"]), rel=1e-3)
    assert float(metrics["grad_norm"]) == pytest.approx(float(wanted["grad_norm"]), rel=1e-2)
    assert state["params"]["head"].dtype == jnp.float32
    assert "loss_scale" not in after


def test_float16_that_no_scale_can_help_is_no_overflow():
    steps = make_steps(dtype="float16")
    bad = {**batch(8), "weights": np.full((1, 8, 8), np.inf, np.float32)}
    state, metrics = steps.initial_state(), {"overflow": True}
    for _ in range(17):
        if not metrics["overflow"]:
            break
        state, metrics = steps.update(state, bad, ONE)
    assert not metrics["overflow"]
    assert not metrics["finite"]
