"""From logits to the next token: temperature, top-k, top-p."""

import jax
import jax.numpy as jnp
import numpy as np

from scratchgpt.sampling_flags import GREEDY_BELOW


def filtered_probabilities(logits_BxV: jax.Array, temperature: float, top_k: int, top_p: float) -> jax.Array:
    """Probabilities [B, V] after temperature, then top-k, then top-p (Holtzman et al. 2020), in transformers' order.

    Top-k keeps every token as likely as the k-th. Top-p keeps the fewest most likely tokens whose mass reaches
    ``top_p``; equally likely tokens count in order of their id. Temperature 0 puts all mass on the first maximum.
    """
    V = logits_BxV.shape[-1]
    if temperature < GREEDY_BELOW:
        return jax.nn.one_hot(jnp.argmax(logits_BxV, axis=-1), V, dtype=logits_BxV.dtype)
    # The maximum goes first: a tiny temperature must not make infinities.
    logits_BxV = (logits_BxV - logits_BxV.max(axis=-1, keepdims=True)) / temperature
    if 0 < top_k < V:
        kth_Bx1 = jax.lax.top_k(logits_BxV, top_k)[0][:, -1:]
        logits_BxV = jnp.where(logits_BxV < kth_Bx1, -jnp.inf, logits_BxV)
    if top_p < 1:
        probs_BxV = jax.nn.softmax(logits_BxV, axis=-1)
        order_BxV = jnp.argsort(-probs_BxV, axis=-1, stable=True)
        sorted_BxV = jnp.take_along_axis(probs_BxV, order_BxV, axis=-1)
        before_BxV = (jnp.cumsum(sorted_BxV, axis=-1) - sorted_BxV).at[:, 0].set(-1)  # the likeliest always stays
        rank_BxV = jnp.argsort(order_BxV, axis=-1)
        keep_BxV = jnp.take_along_axis(before_BxV < top_p, rank_BxV, axis=-1)
        logits_BxV = jnp.where(keep_BxV, logits_BxV, -jnp.inf)
    return jax.nn.softmax(logits_BxV, axis=-1)


def sample(logits_BxV: jax.Array, key: jax.Array, temperature: float, top_k: int, top_p: float) -> jax.Array:
    """One token [B] (int32) from each row."""
    if temperature < GREEDY_BELOW:
        return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    log_probs = jnp.log(filtered_probabilities(logits_BxV, temperature, top_k, top_p))
    return jax.random.categorical(key, log_probs, axis=-1).astype(jnp.int32)


def bucket(n: int, most: int) -> int:
    """``n`` rounded up to a power of two (at least 16, at most ``most``), so that few lengths are ever compiled."""
    return min(most, max(16, 1 << int(np.ceil(np.log2(max(1, n))))))
