"""What the model computes in another way than it reads: the same values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import LoraConfig, gpt2, resolve_model
from jaxgpt.model import GPT, MLP, tall_product


@settings(derandomize=True, deadline=None, max_examples=10)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_a_tall_product_is_the_product(rows, size_in, size_out):
    random = np.random.default_rng(rows)
    with jax.enable_x64(True):
        x, w, weights = (
            jnp.asarray(random.standard_normal(s)) for s in ((rows, size_in), (size_in, size_out), (rows, size_out))
        )
        found, expected = (
            jax.value_and_grad(lambda x, w, product=product: (product(x, w) * weights).sum(), (0, 1))(x, w)
            for product in (tall_product, jnp.matmul)
        )
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)  # measured 7e-15


def test_the_products_of_a_model_that_are_tall_are_known():
    blocks = GPT(gpt2(n_layer=1, n_head=2, n_embd=8, context_length=4, vocab_size=5), nnx.Rngs(0)).blocks
    layers = {name: getattr(blocks.attn, name) for name in "qkvo"} | {"up": blocks.mlp.up, "down": blocks.mlp.down}
    assert [name for name, layer in layers.items() if layer.is_tall] == ["down"]


def test_of_gelu_nothing_is_kept_but_what_it_read():
    config = resolve_model(gpt2(n_layer=1, n_head=1, n_embd=8, context_length=4, vocab_size=5))
    mlp = MLP(config, jnp.float32, nnx.Rngs(0), LoraConfig(), None)
    _, backward = jax.vjp(mlp, jnp.ones((1, 3, 8)))
    kept = [leaf.shape for leaf in jax.tree.leaves(backward) if leaf.shape[:2] == (1, 3)]
    assert kept == [(1, 3, config.mlp_dim)]
