"""Generation with a KV cache.

When the cache is full, the last ``context_length // 2`` tokens (at least 1) are encoded again and generation goes on.
``torchgpt`` follows the same rule, so both write the same greedy text beyond the context as well.
"""

import functools
import itertools
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs.schema import ModelConfig
from jaxgpt.fast_decoding import AlignedCache, FastDecoder, lay_out
from jaxgpt.model import KVCache
from jaxgpt.params import Params, merge_model
from jaxgpt.sampling import bucket, sample
from scratchgpt.sampling_flags import check_prompt, check_sampling


@functools.partial(jax.jit, static_argnames=("graphdef", "config", "context"))
def _prefill(params, tokens_BxT, length_B, *, graphdef, config, context):
    """Cache of each row's first ``length_B`` tokens (the rest is padding) and the logits that follow them."""
    model = merge_model(graphdef, params)
    cache = KVCache.empty(config, tokens_BxT.shape[0], context, model.dtype)
    hidden_BxTxD, cache = model.hidden(tokens_BxT, cache=cache)
    last_Bx1xD = jnp.take_along_axis(hidden_BxTxD, (length_B - 1)[:, None, None], axis=1)
    # The padding's keys lie behind a row's length and are overwritten before any of its queries can see them.
    return model.logits(last_Bx1xD)[:, 0], cache._replace(length_B=length_B)


@functools.partial(
    jax.jit,
    static_argnames=("graphdef", "temperature", "top_k", "top_p"),
)
def _decode(
    params, matrices, logits_BxV, cache, done_B, key, first, count, *, graphdef, temperature, top_k, top_p, stop
):
    """Sample up to ``count`` tokens, feeding each back; stops early once every row has produced one of ``stop``.

    ``first`` numbers the first token within the whole text: token i depends on (key, i) and the text before it.
    """
    decoder = FastDecoder(merge_model(graphdef, params), matrices)
    cache = AlignedCache.of(cache)
    tokens_BxC = jnp.zeros((len(cache.first_B), cache.values_MxCxK[0].shape[1]), jnp.int32)

    def unfinished(carry):
        i, *_, done_B = carry
        return (i < count) & ~done_B.all()

    def step(carry):
        i, tokens_BxC, logits_BxV, cache, done_B = carry
        token_B = sample(logits_BxV, jax.random.fold_in(key, first + i), temperature, top_k, top_p)
        tokens_BxC = jax.lax.dynamic_update_slice(tokens_BxC, token_B[:, None], (jnp.int32(0), i))
        # Once the cache is full this write is clamped and its logits are never used: the next prefill takes over.
        logits_BxV, cache = decoder(token_B, cache)
        return i + 1, tokens_BxC, logits_BxV, cache, done_B | jnp.isin(token_B, stop)

    i, tokens_BxC, *_, done_B = jax.lax.while_loop(
        unfinished, step, (jnp.int32(0), tokens_BxC, logits_BxV, cache, done_B)
    )
    return i, tokens_BxC, done_B


def generate(
    graphdef: nnx.GraphDef,
    params: Params,
    config: ModelConfig,
    prompt: list[int],
    *,
    num_samples: int = 1,
    **options: Any,
) -> list[list[int]]:
    """``num_samples`` continuations of one prompt; :func:`generate_batch` says what ``options`` there are."""
    check_sampling(num_samples=num_samples)
    return generate_batch(graphdef, params, config, [prompt] * num_samples, **options)


def generate_batch(
    graphdef: nnx.GraphDef,
    params: Params,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[list[int]]:
    """The continuation of each of the prompts (token ids, of any lengths), without it, up to its first stop token.

    All are written at once, and greedily each is what it would be alone. Raises UserError for a prompt that
    :func:`check_prompt` refuses, and for impossible sampling values.
    """
    check_sampling(temperature, top_k, top_p, max_new_tokens)
    limit = config.context_length
    for prompt in prompts:
        check_prompt(prompt, config)
    texts, begins = [list(prompt) for prompt in prompts], [0] * len(prompts)  # begins: first token that the cache holds
    written, done_B = 0, jnp.zeros((len(prompts),), bool)
    key, matrices = jax.random.key(seed), lay_out(params, graphdef=graphdef, single=len(prompts) == 1)
    while written < max_new_tokens and not bool(done_B.all()):
        begins = [
            begin if len(text) - begin <= limit else len(text) - max(1, limit // 2)
            for text, begin in zip(texts, begins, strict=True)
        ]
        windows = [text[begin:] for text, begin in zip(texts, begins, strict=True)]
        longest = max(map(len, windows))
        context = bucket(longest + max_new_tokens - written, limit)
        tokens_BxT = np.zeros((len(windows), bucket(longest, context)), np.int32)
        for row, window in zip(tokens_BxT, windows, strict=True):
            row[: len(window)] = window
        length_B = np.array([len(window) for window in windows], np.int32)
        logits_BxV, cache = _prefill(params, tokens_BxT, length_B, graphdef=graphdef, config=config, context=context)
        n, tokens_BxC, done_B = _decode(
            params,
            matrices,
            logits_BxV,
            cache,
            done_B,
            key,
            written,
            min(max_new_tokens - written, context - longest + 1),
            graphdef=graphdef,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop=np.array(sorted(stop_ids), np.int32),
        )
        for text, new in zip(texts, np.asarray(tokens_BxC[:, : int(n)]).tolist(), strict=True):
            text += new
        written += int(n)
    continuations = [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
    return [list(itertools.takewhile(lambda token: token not in stop_ids, row)) for row in continuations]
