"""Generation with a KV cache.

When the cache is full, the last ``context_length // 2`` tokens (at least 1) are encoded again and generation goes on.
``torchgpt`` follows the same rule, so both write the same greedy text beyond the context as well.
"""

import functools
import itertools
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs.schema import ModelConfig
from jaxgpt.model import KVCache
from jaxgpt.params import Params, merge_model
from jaxgpt.sampling import bucket, sample
from scratchgpt.sampling_flags import check_prompt, check_sampling


@functools.partial(jax.jit, static_argnames=("graphdef", "config", "context"))
def _prefill(params, tokens_BxT, length, *, graphdef, config, context):
    """Cache of the first ``length`` tokens (the rest is padding) and the logits that follow them."""
    model = merge_model(graphdef, params)
    cache = KVCache.empty(config, tokens_BxT.shape[0], context, model.dtype)
    hidden_BxTxD, cache = model.hidden(tokens_BxT, cache=cache)
    last_Bx1xD = jax.lax.dynamic_slice_in_dim(hidden_BxTxD, length - 1, 1, axis=1)
    # The padding's keys lie behind `length` and are overwritten before any query can see them.
    cache = cache._replace(length_B=jnp.full_like(cache.length_B, length))
    return model.logits(last_Bx1xD)[:, 0], cache


@functools.partial(
    jax.jit,
    static_argnames=("graphdef", "temperature", "top_k", "top_p", "context"),
    donate_argnames=("cache", "logits_BxV"),
)
def _decode(
    params, logits_BxV, cache, done_B, key, first, count, *, graphdef, temperature, top_k, top_p, stop, context
):
    """Sample up to ``count`` tokens, feeding each back; stops early once every row has produced one of ``stop``.

    ``first`` numbers the first token within the whole text: token i depends on (key, i) and the text before it.
    """
    model = merge_model(graphdef, params)
    tokens_BxC = jnp.zeros((logits_BxV.shape[0], context), jnp.int32)

    def unfinished(carry):
        i, *_, done_B = carry
        return (i < count) & ~done_B.all()

    def step(carry):
        i, tokens_BxC, logits_BxV, cache, done_B = carry
        token_B = sample(logits_BxV, jax.random.fold_in(key, first + i), temperature, top_k, top_p)
        tokens_BxC = jax.lax.dynamic_update_slice(tokens_BxC, token_B[:, None], (jnp.int32(0), i))
        # Once the cache is full this write is clamped and its logits are never used: the next prefill takes over.
        logits_Bx1xV, cache = model(token_B[:, None], cache=cache)
        return i + 1, tokens_BxC, logits_Bx1xV[:, 0], cache, done_B | jnp.isin(token_B, stop)

    i, tokens_BxC, logits_BxV, cache, done_B = jax.lax.while_loop(
        unfinished, step, (jnp.int32(0), tokens_BxC, logits_BxV, cache, done_B)
    )
    return i, tokens_BxC, logits_BxV, cache, done_B


def generate(
    graphdef: nnx.GraphDef,
    params: Params,
    config: ModelConfig,
    prompt: list[int],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    num_samples: int = 1,
    seed: int = 0,
) -> list[list[int]]:
    """``num_samples`` continuations of ``prompt`` (token ids), without the prompt, each up to its first stop token.

    Raises UserError for a prompt that :func:`check_prompt` refuses, and for impossible sampling values.
    """
    check_sampling(temperature, top_k, top_p, max_new_tokens, num_samples)
    limit = config.context_length
    check_prompt(prompt, config)
    text_BxN = np.tile(np.asarray(prompt, np.int32), (num_samples, 1))
    written, done_B = 0, jnp.zeros((num_samples,), bool)
    key = jax.random.key(seed)
    while written < max_new_tokens and not bool(done_B.all()):
        window = text_BxN.shape[1] if text_BxN.shape[1] <= limit else max(1, limit // 2)
        context = bucket(window + max_new_tokens - written, limit)
        padded = bucket(window, context)
        tokens_BxT = np.zeros((num_samples, padded), np.int32)
        tokens_BxT[:, :window] = text_BxN[:, -window:]
        logits_BxV, cache = _prefill(params, tokens_BxT, window, graphdef=graphdef, config=config, context=context)
        count = min(max_new_tokens - written, context - window + 1)
        n, tokens_BxC, logits_BxV, cache, done_B = _decode(
            params,
            logits_BxV,
            cache,
            done_B,
            key,
            written,
            count,
            graphdef=graphdef,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop=np.array(sorted(stop_ids), np.int32),
            context=limit + 1,
        )
        text_BxN = np.concatenate([text_BxN, np.asarray(tokens_BxC[:, : int(n)])], axis=1)
        written += int(n)
    rows = text_BxN[:, len(prompt) :].tolist()
    return [list(itertools.takewhile(lambda token: token not in stop_ids, row)) for row in rows]
