"""Causal attention: a plain reference, and the function that the model calls, which picks the fastest way at hand.

Shapes: B sequences, T queries, S keys, H query heads, G key/value heads (H a multiple of G), K head width.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxgpt.fast_attention import SPLASH_BLOCK, blocked_attention, splash_attention
from jaxgpt.sharding import platform_of


def reference_attention(
    q_BxTxHxK: jax.Array,
    k_BxSxGxK: jax.Array,
    v_BxSxGxK: jax.Array,
    positions_BxT: jax.Array,
    *,
    segments_BxT: jax.Array | None = None,
    dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Scaled dot-product attention (Vaswani et al. 2017) spelled out; softmax in float32 or wider.

    A query at position p sees the keys 0..p. ``positions_BxT`` (int) says where each query stands, so that the same
    function serves training (0..T-1) and decoding against a cache. With ``segments_BxT`` (int; T queries, T keys) a
    query sees keys of its own segment only. Returns [B, T, H, K] in q's dtype.
    """
    B, T, H, K = q_BxTxHxK.shape
    S, G = k_BxSxGxK.shape[1:3]
    q_BxTxGxRxK = q_BxTxHxK.reshape(B, T, G, H // G, K)
    scores = jnp.einsum("BTGRK,BSGK->BGRTS", q_BxTxGxRxK, k_BxSxGxK) * K**-0.5
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    visible_BxTxS = jnp.arange(S)[None, None, :] <= positions_BxT[:, :, None]
    if segments_BxT is not None:
        visible_BxTxS &= segments_BxT[:, :, None] == segments_BxT[:, None, :]
    scores = jnp.where(visible_BxTxS[:, None, None], scores, jnp.finfo(scores.dtype).min)
    probs_BxGxRxTxS = jax.nn.softmax(scores, axis=-1).astype(q_BxTxHxK.dtype)
    if dropout_key is not None and dropout > 0:
        keep = jax.random.bernoulli(dropout_key, 1 - dropout, probs_BxGxRxTxS.shape)
        probs_BxGxRxTxS = jnp.where(keep, probs_BxGxRxTxS / (1 - dropout), 0).astype(q_BxTxHxK.dtype)
    return jnp.einsum("BGRTS,BSGK->BTGRK", probs_BxGxRxTxS, v_BxSxGxK).reshape(B, T, H, K)


def causal_attention(
    q_BxTxHxK: jax.Array,
    k_BxTxGxK: jax.Array,
    v_BxTxGxK: jax.Array,
    *,
    segments_BxT: jax.Array | None = None,
    dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Attention of a sequence to itself, or of each of its segments to itself: what :func:`reference_attention` says.

    By the fastest way that the devices of ``mesh`` (None: the default device) have for the shape: cuDNN's fused kernel
    on a GPU in half precision, where there are no segments; the splash kernel on a TPU; on a CPU, and with dropout
    nowhere, without the upper triangle.
    """
    B, T, _, K = q_BxTxHxK.shape
    platform = platform_of(mesh)
    if dropout_key is None or dropout == 0:
        half = q_BxTxHxK.dtype in (jnp.bfloat16, jnp.float16)
        if platform == "gpu" and half and segments_BxT is None and K % 8 == 0 and K <= 128:  # what cuDNN's kernel takes
            return jax.nn.dot_product_attention(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, is_causal=True, implementation="cudnn")
        if platform == "tpu" and q_BxTxHxK.dtype == jnp.bfloat16 and T % SPLASH_BLOCK == 0:
            return splash_attention(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, segments_BxT, mesh)
        if platform == "cpu":
            return blocked_attention(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, segments_BxT)
    return reference_attention(
        q_BxTxHxK,
        k_BxTxGxK,
        v_BxTxGxK,
        jnp.broadcast_to(jnp.arange(T), (B, T)),
        segments_BxT=segments_BxT,
        dropout=dropout,
        dropout_key=dropout_key,
    )
