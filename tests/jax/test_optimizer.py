"""AdamW and Muon against their definitions, and who is decayed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.schema import OptimConfig, gpt2, llama, nanochat, qwen3, resolve_model
from jaxgpt.optimizer import clip_factor, make_optimizer, orthogonalize
from jaxgpt.params import abstract_model, canonical_getter, canonical_names, from_canonical
from scratchgpt.hf_layout import parameter_role


def random_params(model, seed=0):
    _, abstract = abstract_model(model)
    keys = jax.random.split(jax.random.key(seed), len(abstract))
    return {n: jax.random.normal(k, a.shape) for k, (n, a) in zip(keys, sorted(abstract.items()), strict=True)}


@pytest.mark.parametrize("family", [gpt2, llama, qwen3, nanochat])
def test_canonical_names_reach_every_parameter(family):
    model = resolve_model(family(n_layer=2, n_head=2, n_embd=16, context_length=8, vocab_size=11))
    params = random_params(model)
    back = from_canonical(model, [(n, canonical_getter(params)(n)) for n in canonical_names(model)])
    assert back.keys() == params.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(back[name], value)


@pytest.mark.parametrize("family", [gpt2, llama, qwen3, nanochat])
def test_roles_are_the_same_by_our_names_and_by_canonical_ones(family):
    model = resolve_model(family(n_layer=1, n_head=2, n_embd=16, context_length=8, vocab_size=11))
    _, ours = abstract_model(model)
    count = {role: sum(parameter_role(n) == role for n in ours) for role in ("matrix", "vector", "embedding", "head")}
    names = canonical_names(model)
    assert count == {role: sum(parameter_role(n) == role for n in names) for role in count}


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 64), (2, 64, 16)])
def test_orthogonalize_brings_singular_values_near_one(shape):
    x = np.asarray(orthogonalize(jax.random.normal(jax.random.key(0), shape)))
    values = np.linalg.svd(x, compute_uv=False)
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_orthogonalize_keeps_the_singular_vectors():
    u, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((12, 12)))
    v, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((12, 12)))
    g = u @ np.diag(np.linspace(0.5, 1.0, 12)) @ v.T
    x = np.asarray(orthogonalize(jnp.asarray(g[None], jnp.float32)))[0]
    off_diagonal = u.T @ x @ v - np.diag(np.diag(u.T @ x @ v))
    assert np.abs(off_diagonal).max() < 1e-4


def test_one_adamw_step_is_the_definition():
    optim = OptimConfig(learning_rate=0.01, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
    params = {"blocks.mlp.up.kernel": jnp.full((1, 2, 2), 2.0), "final_norm.weight": jnp.full((2,), 2.0)}
    grads = {"blocks.mlp.up.kernel": jnp.full((1, 2, 2), 0.5), "final_norm.weight": jnp.full((2,), -0.5)}
    optimizer = make_optimizer(optim)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["blocks.mlp.up.kernel"], -0.01 * (1.0 + 0.1 * 2.0), rtol=1e-5)
    np.testing.assert_allclose(updates["final_norm.weight"], 0.01, rtol=1e-5)


def test_embeddings_and_vectors_are_not_decayed_and_the_head_is():
    model = resolve_model(nanochat(n_layer=1, n_head=2, n_embd=16, context_length=8, vocab_size=11))
    params = random_params(model)
    for optimizer_name in ("adamw", "muon"):
        optimizer = make_optimizer(OptimConfig(optimizer=optimizer_name, weight_decay=0.5))
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        moved = {name for name, u in updates.items() if np.abs(u).max() > 1e-4}
        assert moved == {n for n in params if parameter_role(n) in ("matrix", "head")}


def test_muon_treats_every_layer_by_itself_and_scales_wide_matrices():
    optimizer = make_optimizer(OptimConfig(optimizer="muon", muon_learning_rate=1.0, weight_decay=0.0))
    g = jax.random.normal(jax.random.key(0), (3, 8, 32))
    updates, _ = optimizer.update(
        {"blocks.mlp.up.kernel": g}, optimizer.init({"blocks.mlp.up.kernel": g}), {"blocks.mlp.up.kernel": g}
    )
    for i in range(3):
        expected = -2.0 * np.asarray(orthogonalize(g[i : i + 1]))[0]
        np.testing.assert_allclose(updates["blocks.mlp.up.kernel"][i], expected, atol=2e-3)


def test_clip_factor():
    assert float(clip_factor(jnp.float32(4.0), 1.0)) == pytest.approx(0.25)
    assert float(clip_factor(jnp.float32(0.5), 1.0)) == 1.0
    assert float(clip_factor(jnp.float32(0.0), 1.0)) == 1.0
    assert float(clip_factor(jnp.float32(9.0), 0.0)) == 1.0
