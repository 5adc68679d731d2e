"""The decoder that reads one token of each row at a time is the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.schema import LoraConfig, resolve_model
from jaxgpt.fast_decoding import AlignedCache, FastDecoder, lay_out
from jaxgpt.model import KVCache
from jaxgpt.params import abstract_model, merge_model
from parity_tests.models import MODELS, random_tokens

STEPS, CONTEXT = 6, 16


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("lengths", [[4], [4, 1, 7]])
@pytest.mark.parametrize("name", MODELS)
def test_the_fast_decoder_is_the_model(name, lengths, rank):
    with jax.enable_x64(True):
        config, lora = resolve_model(MODELS[name]), LoraConfig(rank=rank, alpha=6.0, new_tokens=2)
        graphdef, shapes = abstract_model(config, dtype=jnp.float64, param_dtype=jnp.float64, lora=lora)
        rng = np.random.default_rng(0)
        params = {n: jnp.asarray(rng.standard_normal(s.shape) * max(s.shape[-1:]) ** -0.5) for n, s in shapes.items()}
        assert any("lora" in n for n in params) == bool(rank)
        tokens_BxT = random_tokens(config, len(lengths), max(lengths) + STEPS)
        model, length_B = merge_model(graphdef, params), jnp.asarray(lengths, jnp.int32)
        expected_BxTxV = model(tokens_BxT)[0]

        cache = KVCache.empty(config, len(lengths), CONTEXT, jnp.float64)
        _, cache = model(tokens_BxT[:, : max(lengths)], cache=cache)
        cache = AlignedCache.of(cache._replace(length_B=length_B))
        matrices = lay_out(params, graphdef=graphdef, single=len(lengths) == 1)
        step = jax.jit(lambda params, matrices, *rest: FastDecoder(merge_model(graphdef, params), matrices)(*rest))
        for i in range(STEPS):
            rows = np.arange(len(lengths)), np.asarray(lengths) + i
            logits_BxV, cache = step(params, matrices, jnp.asarray(tokens_BxT[rows]), cache)
            np.testing.assert_allclose(logits_BxV, expected_BxTxV[rows], rtol=1e-13, atol=1e-13)
