"""The next token of each row, in fewer and larger products than ``GPT.__call__`` with a cache, which it equals.

A token needs every weight once, and a CPU waits for the memory: each block has its own arrays (a scan would first copy
its part of the stack), and matrices that read the same vector are one. Shapes: B rows, L layers, D width, H query
heads, G key/value heads, M = B G, K head width, F MLP width, N outputs, I inputs, C context, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxgpt.model import GPT, KVCache, Linear, activate, wide
from jaxgpt.params import Params, merge_model


class Matrix(NamedTuple):
    """x W + b, with ``weight`` [N, I] for a single row, and [I, N] for several: each as XLA on a CPU reads it fastest.

    A single row's product is a loop over its outputs, in which XLA computes what enters anew for each of them, unless
    it holds a division; ``ones_I`` are there to be divided by.
    """

    weight: jax.Array
    bias_N: jax.Array | None
    ones_I: jax.Array

    def product(self, x_BxI: jax.Array) -> jax.Array:
        """x W, in float32 (or wider)."""
        weight_IxN = self.weight.T if len(x_BxI) == 1 else self.weight
        out = jnp.promote_types(x_BxI.dtype, jnp.float32)
        y_BxN = jnp.matmul(x_BxI / self.ones_I, weight_IxN, preferred_element_type=out)
        return jax.lax.optimization_barrier(y_BxN)  # with a bias in the same loop, W would be transposed for each token

    def __call__(self, x_BxI: jax.Array) -> jax.Array:
        y_BxN = self.product(x_BxI).astype(x_BxI.dtype)
        return y_BxN if self.bias_N is None else y_BxN + self.bias_N


class BlockMatrices(NamedTuple):
    """A block's matrices in the dtype of activations, with adapters merged into them."""

    qkv: Matrix
    o: Matrix
    inner: Matrix  # of the MLP: gate, if there is one, and up
    down: Matrix


class Matrices(NamedTuple):
    """All of a model's."""

    blocks: list[BlockMatrices]
    head: Matrix | None  # None: the model's own as it is


@functools.partial(jax.jit, static_argnames=("graphdef", "single"))
def lay_out(params: Params, *, graphdef: nnx.GraphDef, single: bool) -> Matrices:
    """The matrices of a model for decoding a ``single`` text, or several at once.

    A compiled function of its own: within that of :class:`FastDecoder` XLA would undo the transposition.
    """
    model = merge_model(graphdef, params)
    attn, mlp = model.blocks.attn, model.blocks.mlp

    def join(linears: list[Linear]) -> list[Matrix]:
        weights = [linear.merged_kernel(attn.lora_a).astype(model.dtype) for linear in linears]
        if single:
            weights = [weight_LxIxN.swapaxes(1, 2) for weight_LxIxN in weights]
        biases_LxN = [linear.bias[...].astype(model.dtype) for linear in linears if linear.bias is not None]
        ones_I = jnp.ones((linears[0].kernel.shape[1],), model.dtype)
        return [
            Matrix(
                jnp.concatenate([weight[layer] for weight in weights], axis=0 if single else 1),
                jnp.concatenate([bias_LxN[layer] for bias_LxN in biases_LxN]) if biases_LxN else None,
                ones_I,
            )
            for layer in range(model.config.n_layer)
        ]

    inner = [mlp.up] if mlp.gate is None else [mlp.gate, mlp.up]
    groups = ([attn.q, attn.k, attn.v], [attn.o], inner, [mlp.down])
    blocks = [BlockMatrices(*block) for block in zip(*map(join, groups), strict=True)]
    return Matrices(blocks, None if single else _head(model, model.head_matrix().T))


def _head(model: GPT, weight: jax.Array) -> Matrix:
    return Matrix(weight.astype(model.dtype), None, jnp.ones((model.config.n_embd,), model.dtype))


class AlignedCache(NamedTuple):
    """Keys and values of each layer; row b's tokens lie at ``first_B[b]`` to ``end`` - 1, so that all end together."""

    keys_MxKxC: list[jax.Array]
    values_MxCxK: list[jax.Array]
    first_B: jax.Array
    end: jax.Array

    @staticmethod
    def of(cache: KVCache) -> "AlignedCache":
        """The same of the model's own cache, in which all rows begin together."""
        end = cache.length_B.max()
        first_B = end - cache.length_B
        roll = jax.vmap(lambda x_GxCxK, shift: jnp.roll(x_GxCxK, shift, axis=1))
        keys, values = ([roll(x_BxGxCxK, first_B) for x_BxGxCxK in stacked] for stacked in cache[:2])
        keys_MxKxC = [k.reshape(-1, *k.shape[2:]).swapaxes(1, 2) for k in keys]
        return AlignedCache(keys_MxKxC, [v.reshape(-1, *v.shape[2:]) for v in values], first_B, end)


class FastDecoder:
    """A model that reads one token of each row at a time.

    Args:
      model: whose embedding and norms are used.
      matrices: all else, from :func:`lay_out`.
    """

    def __init__(self, model: GPT, matrices: Matrices):
        graphdef, stacked = nnx.split(model.blocks)
        layers = range(model.config.n_layer)
        blocks = [nnx.merge(graphdef, jax.tree.map(lambda p, layer=layer: p[layer], stacked)) for layer in layers]
        self._model, self._head = model, matrices.head or _head(model, model.head_matrix())
        self._blocks = list(zip(blocks, matrices.blocks, strict=True))

    def __call__(self, token_B: jax.Array, cache: AlignedCache) -> tuple[jax.Array, AlignedCache]:
        """Logits [B, V] in float32 (or wider) behind ``token_B``, and the cache grown by it."""
        model, c = self._model, self._model.config
        B, heads, groups, zero = token_B.shape[0], c.n_head * c.head_dim, c.n_kv_head * c.head_dim, jnp.int32(0)
        position_Bx1 = (cache.end - cache.first_B)[:, None]
        slot_C = jnp.arange(cache.values_MxCxK[0].shape[1])
        visible_BxC = (cache.first_B[:, None] <= slot_C) & (slot_C <= cache.end)
        x_BxD = model.embed(token_B[:, None], position_Bx1)[:, 0]
        keys, values = [], []
        for (block, matrices), keys_MxKxC, values_MxCxK in zip(self._blocks, *cache[:2], strict=True):
            qkv_BxN = matrices.qkv(block.attn_norm(x_BxD))
            parts_BxN = jnp.split(qkv_BxN, (heads, heads + groups), axis=-1)
            q_Bx1xHxK, k_Bx1xGxK, v_Bx1xGxK = (part.reshape(B, 1, -1, c.head_dim) for part in parts_BxN)
            q_Bx1xHxK, k_Bx1xGxK = block.attn.turn(q_Bx1xHxK, k_Bx1xGxK, position_Bx1)
            k_MxKx1, v_Mx1xK = k_Bx1xGxK.reshape(-1, c.head_dim, 1), v_Bx1xGxK.reshape(-1, 1, c.head_dim)
            keys.append(jax.lax.dynamic_update_slice(keys_MxKxC, k_MxKx1, (zero, zero, cache.end)))
            values.append(jax.lax.dynamic_update_slice(values_MxCxK, v_Mx1xK, (zero, cache.end, zero)))
            x_BxD += matrices.o(_attend(q_Bx1xHxK[:, 0], keys[-1], values[-1], visible_BxC).reshape(B, heads))
            h_BxF = matrices.inner(block.mlp_norm(x_BxD))
            gate_BxF, up_BxF = jnp.split(h_BxF, 2, axis=-1) if c.mlp == "swiglu" else (None, h_BxF)
            x_BxD += matrices.down(activate(c.mlp, up_BxF, gate_BxF))
        logits_BxV = model.finish_logits(self._head.product(model.final_norm(x_BxD)))
        return logits_BxV, cache._replace(keys_MxKxC=keys, values_MxCxK=values, end=cache.end + 1)


def _attend(q_BxHxK: jax.Array, keys_MxKxC: jax.Array, values_MxCxK: jax.Array, visible_BxC: jax.Array) -> jax.Array:
    """``jaxgpt.attention.reference_attention`` of one query of each row, [B, H, K]; no operand is transposed."""
    B, _, K = q_BxHxK.shape
    M, _, C = keys_MxKxC.shape
    scores_BxHxC = wide(q_BxHxK.reshape(M, -1, K) @ keys_MxKxC * K**-0.5).reshape(B, -1, C)
    scores_BxHxC = jnp.where(visible_BxC[:, None], scores_BxHxC, jnp.finfo(scores_BxHxC.dtype).min)
    probs_BxHxC = jax.nn.softmax(scores_BxHxC, axis=-1).astype(q_BxHxK.dtype)
    return (probs_BxHxC.reshape(M, -1, C) @ values_MxCxK).reshape(q_BxHxK.shape)
