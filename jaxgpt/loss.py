"""Cross-entropy over the vocabulary: the plain sum, and one that never holds more than a few positions' logits.

Shapes: B sequences, T tokens, D width, V rows of the (padded) vocabulary; N = B T positions, of which C are in a chunk.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxgpt.model import GPT
from jaxgpt.sharding import BATCH


def cross_entropy_sums(
    logits_BxTxV: jax.Array, targets_BxT: jax.Array, weights_BxT: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(sum of -log p(target), sum of weights) in nats; the caller takes the mean once, over everything."""
    losses_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1)
    losses_BxT -= jnp.take_along_axis(logits_BxTxV, targets_BxT[..., None], axis=-1)[..., 0]
    if weights_BxT is None:
        return losses_BxT.sum(), jnp.asarray(losses_BxT.size, losses_BxT.dtype)
    return (losses_BxT * weights_BxT).sum(), weights_BxT.sum().astype(losses_BxT.dtype)


def next_token_sums(
    model: GPT, x_BxTxD: jax.Array, targets_BxT: jax.Array, weights_BxT: jax.Array | None, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """:func:`cross_entropy_sums` of a model's logits for its normalised hidden states ``x_BxTxD``.

    With ``chunk``, the logits of so many positions exist at once on a device, and the gradient is taken on the way
    (as in Liger, Hsu et al. 2024: the logits' gradient is known as soon as they are), so nothing is computed twice.
    Of a vocabulary that is split over the mesh's ``tensor`` axis no device ever gathers more than its own part.
    """
    if not chunk:
        return cross_entropy_sums(model.logits(x_BxTxD), targets_BxT, weights_BxT)
    out = jnp.promote_types(x_BxTxD.dtype, jnp.float32)
    weights_BxT = jnp.ones(targets_BxT.shape, out) if weights_BxT is None else weights_BxT.astype(out)
    how = _How(chunk, model.config.vocab_size, model.config.logit_softcap, model.mesh)
    return _chunked(how, x_BxTxD, model.head_matrix(), targets_BxT, weights_BxT), weights_BxT.sum()


class _How(NamedTuple):
    chunk: int  # positions of a device
    vocab_size: int  # rows of the head beyond it are padding
    softcap: float
    mesh: Mesh | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(
    how: _How, x_BxTxD: jax.Array, head_VxD: jax.Array, targets_BxT: jax.Array, weights_BxT: jax.Array
) -> jax.Array:
    return _over_mesh(how, x_BxTxD, head_VxD, targets_BxT, weights_BxT, with_gradient=False)[0]


def _forward(how: _How, x_BxTxD: jax.Array, head_VxD: jax.Array, targets_BxT: jax.Array, weights_BxT: jax.Array):
    loss, dx_BxTxD, dhead_VxD = _over_mesh(how, x_BxTxD, head_VxD, targets_BxT, weights_BxT, with_gradient=True)
    return loss, (dx_BxTxD, dhead_VxD.astype(head_VxD.dtype))


def _backward(how: _How, gradients: tuple[jax.Array, jax.Array], g: jax.Array):
    dx_BxTxD, dhead_VxD = gradients
    return dx_BxTxD * g.astype(dx_BxTxD.dtype), dhead_VxD * g.astype(dhead_VxD.dtype), None, None


_chunked.defvjp(_forward, _backward)


def _over_mesh(how: _How, x_BxTxD, head_VxD, targets_BxT, weights_BxT, with_gradient: bool):
    """:func:`_on_device` on every device of the mesh: (loss, gradients), or (loss,)."""
    head_VxD = head_VxD.astype(x_BxTxD.dtype)
    if how.mesh is None or how.mesh.size == 1:
        return _on_device(how, x_BxTxD, head_VxD, targets_BxT, weights_BxT, with_gradient, sharded=False)
    on_device = functools.partial(_on_device, how, with_gradient=with_gradient, sharded=True)
    outputs = (P(), P(BATCH), P("tensor", "fsdp")) if with_gradient else (P(),)
    inputs = (P(BATCH), P("tensor"), P(BATCH), P(BATCH))
    sharded = jax.shard_map(on_device, mesh=how.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
    return sharded(x_BxTxD, head_VxD, targets_BxT, weights_BxT)


def _on_device(how: _How, x_BxTxD, head_VxD, targets_BxT, weights_BxT, with_gradient: bool, sharded: bool):
    """Over this device's sequences and rows of the vocabulary, chunk by chunk.

    The head's gradient is summed over devices once, at the end, not in every chunk.
    """
    (B, T, D), V, C = x_BxTxD.shape, len(head_VxD), min(how.chunk, targets_BxT.size)
    out = weights_BxT.dtype
    ids_V = jnp.arange(V) + (jax.lax.axis_index("tensor") * V if sharded else 0)
    total = functools.partial(jax.lax.psum, axis_name="tensor") if sharded else lambda x: x
    chunks = -(-B * T // C)

    def in_chunks(a: jax.Array) -> jax.Array:
        rows = a.reshape(B * T, *a.shape[2:])
        return jnp.pad(rows, [(0, chunks * C - B * T)] + [(0, 0)] * (rows.ndim - 1)).reshape(chunks, C, *rows.shape[1:])

    def add_chunk(sums: tuple[jax.Array, ...], chunk: tuple[jax.Array, ...]):
        x_CxD, targets_C, weights_C = chunk
        logits_CxV = jnp.einsum("CD,VD->CV", x_CxD, head_VxD, preferred_element_type=out)
        if how.softcap:
            logits_CxV = how.softcap * jnp.tanh(logits_CxV / how.softcap)
        slope_CxV = 1 - jnp.square(logits_CxV / how.softcap) if how.softcap else 1
        is_target_CxV = ids_V == targets_C[:, None]
        at_target_C = total(jnp.where(is_target_CxV, logits_CxV, 0).sum(axis=-1))
        logits_CxV = jnp.where(ids_V < how.vocab_size, logits_CxV, -jnp.inf)
        highest_C = logits_CxV.max(axis=-1)
        if sharded:
            highest_C = jax.lax.pmax(highest_C, "tensor")
        p_CxV = jnp.exp(logits_CxV - highest_C[:, None])
        sum_C = total(p_CxV.sum(axis=-1))
        loss = sums[0] + jnp.dot(jnp.log(sum_C) + highest_C - at_target_C, weights_C)
        if not with_gradient:
            return (loss,), None
        g_CxV = (p_CxV / sum_C[:, None] - is_target_CxV) * slope_CxV * weights_C[:, None]
        g_CxV = g_CxV.astype(x_CxD.dtype)
        dhead_VxD = jnp.einsum("CV,CD->VD", g_CxV, x_CxD, preferred_element_type=out)
        return (loss, sums[1] + dhead_VxD), jnp.einsum("CV,VD->CD", g_CxV, head_VxD)

    zeros = (jnp.zeros((), out), jnp.zeros((V, D), out))[: 1 + with_gradient]
    sums, dx = jax.lax.scan(add_chunk, zeros, tuple(map(in_chunks, (x_BxTxD, targets_BxT, weights_BxT))))
    loss = jax.lax.psum(sums[0], BATCH) if sharded else sums[0]
    if not with_gradient:
        return (loss,)
    dx_BxTxD, dhead_VxD = total(dx.reshape(chunks * C, D)[: B * T].reshape(B, T, D)), sums[1]
    if sharded:
        dhead_VxD = jax.lax.psum_scatter(dhead_VxD, "fsdp", scatter_dimension=1, tiled=True)
        dhead_VxD = jax.lax.psum(dhead_VxD, "data")
    return loss, dx_BxTxD, dhead_VxD
