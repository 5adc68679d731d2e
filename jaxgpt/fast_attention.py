"""Two fast ways to compute what ``jaxgpt.attention.reference_attention`` says, without dropout.

Shapes: B sequences, T tokens, G key/value heads, R query heads of each, H = G R, K head width; a block of queries has
Q tokens and sees the first S keys.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxgpt.sharding import BATCH

QUERY_BLOCK = 64  # queries of a block on a CPU
SPLASH_BLOCK = 128  # a TPU's splash kernel takes whole blocks of so many tokens, and heads so wide


def blocked_attention(
    q_BxTxHxK: jax.Array, k_BxTxGxK: jax.Array, v_BxTxGxK: jax.Array, segments_BxT: jax.Array | None
) -> jax.Array:
    """In blocks of queries, each with only the keys that its last query sees: near half the work of all pairs.

    Its derivative is spelled out, from the probabilities, which XLA would otherwise compute again from their parts.
    """
    B, T, H, K = q_BxTxHxK.shape
    G = k_BxTxGxK.shape[2]
    q_BxGxRxTxK = q_BxTxHxK.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
    k_BxGxTxK, v_BxGxTxK = k_BxTxGxK.transpose(0, 2, 1, 3), v_BxTxGxK.transpose(0, 2, 1, 3)
    y_BxGxRxTxK = _blocked(q_BxGxRxTxK, k_BxGxTxK, v_BxGxTxK, segments_BxT)
    return y_BxGxRxTxK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)


def _blocks(T: int) -> list[tuple[int, int]]:
    return [(start, min(start + QUERY_BLOCK, T)) for start in range(0, T, QUERY_BLOCK)]


@jax.custom_vjp
def _blocked(q_BxGxRxTxK, k_BxGxTxK, v_BxGxTxK, segments_BxT):
    return _blocked_forward(q_BxGxRxTxK, k_BxGxTxK, v_BxGxTxK, segments_BxT)[0]


def _blocked_forward(q_BxGxRxTxK, k_BxGxTxK, v_BxGxTxK, segments_BxT):
    outputs, probabilities = [], []
    for start, stop in _blocks(q_BxGxRxTxK.shape[3]):
        q_BxGxRxQxK = q_BxGxRxTxK[..., start:stop, :]
        scores = jnp.einsum("BGRQK,BGSK->BGRQS", q_BxGxRxQxK, k_BxGxTxK[:, :, :stop])
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) * q_BxGxRxTxK.shape[-1] ** -0.5
        visible_QxS = jnp.arange(stop) <= jnp.arange(start, stop)[:, None]
        if segments_BxT is not None:
            same_BxQxS = segments_BxT[:, start:stop, None] == segments_BxT[:, None, :stop]
            visible_QxS = (visible_QxS & same_BxQxS)[:, None, None]
        scores = jnp.where(visible_QxS, scores, jnp.finfo(scores.dtype).min)
        p_BxGxRxQxS = jax.nn.softmax(scores, axis=-1).astype(q_BxGxRxTxK.dtype)
        outputs.append(jnp.einsum("BGRQS,BGSK->BGRQK", p_BxGxRxQxS, v_BxGxTxK[:, :, :stop]))
        probabilities.append(p_BxGxRxQxS)
    return jnp.concatenate(outputs, axis=3), (q_BxGxRxTxK, k_BxGxTxK, v_BxGxTxK, probabilities)


def _blocked_backward(residuals, dy_BxGxRxTxK):
    q_BxGxRxTxK, k_BxGxTxK, v_BxGxTxK, probabilities = residuals
    T, K = q_BxGxRxTxK.shape[-2:]
    dq, dk, dv = [], jnp.zeros_like(k_BxGxTxK), jnp.zeros_like(v_BxGxTxK)
    for (start, stop), p_BxGxRxQxS in zip(_blocks(T), probabilities, strict=True):
        q_BxGxRxQxK, dy_BxGxRxQxK = q_BxGxRxTxK[..., start:stop, :], dy_BxGxRxTxK[..., start:stop, :]
        dp = jnp.einsum("BGRQK,BGSK->BGRQS", dy_BxGxRxQxK, v_BxGxTxK[:, :, :stop])
        dp, p = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (dp, p_BxGxRxQxS))
        ds = p * (dp - jnp.sum(dp * p, axis=-1, keepdims=True)) * K**-0.5
        ds_BxGxRxQxS = ds.astype(q_BxGxRxTxK.dtype)
        dq.append(jnp.einsum("BGRQS,BGSK->BGRQK", ds_BxGxRxQxS, k_BxGxTxK[:, :, :stop]))
        dk = dk.at[:, :, :stop].add(jnp.einsum("BGRQS,BGRQK->BGSK", ds_BxGxRxQxS, q_BxGxRxQxK))
        dv = dv.at[:, :, :stop].add(jnp.einsum("BGRQS,BGRQK->BGSK", p_BxGxRxQxS, dy_BxGxRxQxK))
    return jnp.concatenate(dq, axis=3), dk, dv, None


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
