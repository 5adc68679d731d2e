"""Two fast ways to compute what ``jaxgpt.attention.reference_attention`` says, without dropout.

Shapes: B sequences, T tokens, G key/value heads, N = B G, R query heads of each, H = G R, K head width; a block has Q
tokens, M = R Q rows of queries, and sees the first S keys.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxgpt.sharding import BATCH

QUERY_BLOCK = 64  # queries of a block on a CPU, or a multiple of it for
MOST_BLOCKS = 32  # longer sequences: each block copies the keys and values it sees, and is compiled by itself
SPLASH_BLOCK = 128  # a TPU's splash kernel takes whole blocks of so many tokens, and heads so wide


def blocked_attention(
    q_BxTxHxK: jax.Array, k_BxTxGxK: jax.Array, v_BxTxGxK: jax.Array, segments_BxT: jax.Array | None
) -> jax.Array:
    """In blocks of queries, each with only the keys that its last query sees: near half the work of all pairs.

    Its derivative is spelled out, from the probabilities, which XLA would otherwise compute again from their parts.
    Every product has one axis of batches, one of rows and one of columns: operands with more of them XLA copies.
    """
    B, T, H, K = q_BxTxHxK.shape
    G = k_BxTxGxK.shape[2]
    q_BxGxRxTxK = (q_BxTxHxK * K**-0.5).reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
    k_NxTxK, v_NxTxK = (x.transpose(0, 2, 1, 3).reshape(B * G, T, K) for x in (k_BxTxGxK, v_BxTxGxK))
    y_NxRxTxK = _blocked(q_BxGxRxTxK.reshape(B * G, H // G, T, K), k_NxTxK, v_NxTxK, segments_BxT)
    return y_NxRxTxK.reshape(B, G, H // G, T, K).transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)


def query_blocks(T: int) -> list[tuple[int, int]]:
    """Where the blocks of T queries begin and end."""
    size = QUERY_BLOCK * math.ceil(T / (QUERY_BLOCK * MOST_BLOCKS))
    return [(start, min(start + size, T)) for start in range(0, T, size)]


def _rows(x_NxRxTxK: jax.Array, start: int, stop: int) -> jax.Array:
    """A block's tokens of all heads of a key/value head, [N, M, K]."""
    N, R, _, K = x_NxRxTxK.shape
    return x_NxRxTxK[:, :, start:stop].reshape(N, R * (stop - start), K)


def _visible(start: int, stop: int, N: int, R: int, segments_BxT: jax.Array | None) -> jax.Array:
    """Which keys the rows of a block see: bool [1, M, S], or [N, M, S] with segments."""
    visible_1xQxS = (jnp.arange(stop) <= jnp.arange(start, stop)[:, None])[None]
    if segments_BxT is None:
        return jnp.tile(visible_1xQxS, (1, R, 1))
    visible_BxQxS = visible_1xQxS & (segments_BxT[:, start:stop, None] == segments_BxT[:, None, :stop])
    return jnp.repeat(jnp.tile(visible_BxQxS, (1, R, 1)), N // len(segments_BxT), axis=0)


@jax.custom_vjp
def _blocked(q_NxRxTxK, k_NxTxK, v_NxTxK, segments_BxT):
    return _blocked_forward(q_NxRxTxK, k_NxTxK, v_NxTxK, segments_BxT)[0]


def _blocked_forward(q_NxRxTxK, k_NxTxK, v_NxTxK, segments_BxT):
    N, R, T, K = q_NxRxTxK.shape
    outputs, probabilities = [], []
    for start, stop in query_blocks(T):
        scores = jnp.einsum("NMK,NSK->NMS", _rows(q_NxRxTxK, start, stop), k_NxTxK[:, :stop])
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        hidden = jnp.where(_visible(start, stop, N, R, segments_BxT), 0, jnp.finfo(scores.dtype).min)
        scores += hidden  # a sum goes into one fusion with the product and the softmax, a choice does not
        p_NxMxS = jax.nn.softmax(scores, axis=-1).astype(q_NxRxTxK.dtype)
        y_NxMxK = jnp.einsum("NMS,NSK->NMK", p_NxMxS, v_NxTxK[:, :stop])
        outputs.append(y_NxMxK.reshape(N, R, stop - start, K))
        probabilities.append(p_NxMxS)
    return jnp.concatenate(outputs, axis=2), (q_NxRxTxK, k_NxTxK, v_NxTxK, probabilities)


def _blocked_backward(residuals, dy_NxRxTxK):
    q_NxRxTxK, k_NxTxK, v_NxTxK, probabilities = residuals
    N, R, T, K = q_NxRxTxK.shape
    dq, dk, dv = [], jnp.zeros_like(k_NxTxK), jnp.zeros_like(v_NxTxK)
    for (start, stop), p_NxMxS in zip(query_blocks(T), probabilities, strict=True):
        q_NxMxK, dy_NxMxK = _rows(q_NxRxTxK, start, stop), _rows(dy_NxRxTxK, start, stop)
        dp = jnp.einsum("NMK,NSK->NMS", dy_NxMxK, v_NxTxK[:, :stop])
        dp, p = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (dp, p_NxMxS))
        ds_NxMxS = (p * (dp - jnp.sum(dp * p, axis=-1, keepdims=True))).astype(q_NxRxTxK.dtype)
        dq_NxMxK = jnp.einsum("NMS,NSK->NMK", ds_NxMxS, k_NxTxK[:, :stop])
        dq.append(dq_NxMxK.reshape(N, R, stop - start, K))
        dk = dk.at[:, :stop].add(jnp.einsum("NMS,NMK->NSK", ds_NxMxS, q_NxMxK))
        dv = dv.at[:, :stop].add(jnp.einsum("NMS,NMK->NSK", p_NxMxS, dy_NxMxK))
    return jnp.concatenate(dq, axis=2), dk, dv, None


_blocked.defvjp(_blocked_forward, _blocked_backward)


def splash_attention(
    q_BxTxHxK: jax.Array,
    k_BxTxGxK: jax.Array,
    v_BxTxGxK: jax.Array,
    segments_BxT: jax.Array | None,
    mesh: Mesh | None,
    interpret: bool = False,
) -> jax.Array:
    """JAX's own Pallas kernel for TPUs (Dao et al. 2022 in its idea), on each device's sequences and heads.

    ``interpret`` runs it, slowly, on any device. Narrow heads are padded with zeros to the width it takes.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    T, K = q_BxTxHxK.shape[1], q_BxTxHxK.shape[3]

    def on_device(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, segments_BxT):
        padding = [(0, 0)] * 3 + [(0, -K % SPLASH_BLOCK)]
        q, k, v = (jnp.pad(x, padding).transpose(0, 2, 1, 3) for x in (q_BxTxHxK * K**-0.5, k_BxTxGxK, v_BxTxGxK))
        mask = masks.MultiHeadMask([masks.CausalMask((T, T))] * q.shape[1])
        attend = kernels.make_splash_mha(mask, head_shards=1, q_seq_shards=1, interpret=interpret)
        segments = None if segments_BxT is None else kernels.SegmentIds(segments_BxT, segments_BxT)
        return jax.vmap(attend)(q, k, v, segments).transpose(0, 2, 1, 3)[..., :K]

    if mesh is None or mesh.size == 1:
        return on_device(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, segments_BxT)
    if q_BxTxHxK.shape[0] % int(np.prod([mesh.shape[name] for name in BATCH])):
        raise ValueError(f"{q_BxTxHxK.shape[0]} sequences do not divide over the mesh {dict(mesh.shape)}")
    heads = P(BATCH, None, "tensor", None)
    sharded = functools.partial(jax.shard_map, mesh=mesh, out_specs=heads, check_vma=False)
    return sharded(on_device, in_specs=(heads, heads, heads, P(BATCH)))(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK, segments_BxT)
