"""The transformer, in Flax NNX: one class for the four families of ``configs.schema``.

Shapes: B sequences, T tokens, C context, D width, H query heads, G key/value heads, K head width, F MLP width,
V (padded) vocabulary, N new tokens in it, L layers, R rank of adapters. Matrices are kept in ``param_dtype`` as
[in, out] and cast to ``dtype`` where used; the blocks' parameters are stacked along a leading layer axis and run by
``jax.lax.scan``.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from configs.schema import LoraConfig, ModelConfig, resolve_model
from jaxgpt.attention import causal_attention, reference_attention
from jaxgpt.sharding import BATCH, pin, platform_of
from scratchgpt.hf_layout import joins_qkv


class KVCache(NamedTuple):
    """Keys and values [L, B, G, C, K] of the tokens seen so far; ``length_B`` counts them in each sequence."""

    keys: jax.Array
    values: jax.Array
    length_B: jax.Array

    @staticmethod
    def empty(config: ModelConfig, batch: int, context: int, dtype: jnp.dtype) -> "KVCache":
        """A cache for ``batch`` sequences of at most ``context`` tokens."""
        zeros = jnp.zeros((config.n_layer, batch, config.n_kv_head, context, config.head_dim), dtype)
        return KVCache(zeros, zeros, jnp.zeros((batch,), jnp.int32))


def wide(x: jax.Array) -> jax.Array:
    """``x`` in float32, or in its own dtype if that is wider: for statistics, softmax and the loss."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def rotate(x_BxTxHxK: jax.Array, positions_BxT: jax.Array, theta: float, inverse: bool) -> jax.Array:
    """Rotary position embedding (Su et al. 2021) on pairs of halves; ``inverse`` turns the other way, as NanoChat does.

    Angles are computed in float32 (float64 for float64 input).
    """
    half = x_BxTxHxK.shape[-1] // 2
    x1, x2 = wide(x_BxTxHxK[..., :half]), wide(x_BxTxHxK[..., half:])
    frequencies = (theta ** -(np.arange(half) / half)).astype(x1.dtype)
    angles_BxTx1xF = positions_BxT[..., None, None].astype(x1.dtype) * frequencies
    cos, sin = jnp.cos(angles_BxTx1xF), jnp.sin(angles_BxTx1xF) * (-1 if inverse else 1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x_BxTxHxK.dtype)


def positions_within(segments_BxT: jax.Array) -> jax.Array:
    """Distance of each position to the beginning of its run of equal segment numbers, int32 [B, T]."""
    index_T = jnp.arange(segments_BxT.shape[1], dtype=jnp.int32)
    begins_BxT = jnp.diff(segments_BxT, axis=1, prepend=segments_BxT[:, :1] - 1) != 0
    return index_T - jax.lax.cummax(jnp.where(begins_BxT, index_T, 0), axis=1)


def rms_normalize(x: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) over the last axis, without a learned scale (Zhang & Sennrich 2019)."""
    y = wide(x)
    return (y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)).astype(x.dtype)


def drop(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Dropout (Srivastava et al. 2014); the identity when ``key`` is None or ``rate`` is 0."""
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)


def initial_lora_a(size_in: int, rank: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Param:
    """The first half [in, R] of an adapter, uniform in +-1 / sqrt(in) as in PEFT; the second half begins at zero."""
    bound = size_in**-0.5
    return nnx.Param(jax.random.uniform(rngs.params(), (size_in, rank), dtype, -bound, bound))


@jax.custom_vjp
def tall_product(x_NxD: jax.Array, w_DxF: jax.Array) -> jax.Array:
    """x W, whose gradient by W is computed as [F, D] and transposed: XLA's way on a CPU is slow where D > F."""
    return x_NxD @ w_DxF


def _tall_product_backward(residuals: tuple[jax.Array, jax.Array], dy_NxF: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_NxD, w_DxF = residuals
    dw_FxD = jax.lax.optimization_barrier(dy_NxF.T @ x_NxD)  # or XLA would exchange the operands again
    return dy_NxF @ w_DxF.T, dw_FxD.T


tall_product.defvjp(lambda x_NxD, w_DxF: (x_NxD @ w_DxF, (x_NxD, w_DxF)), _tall_product_backward)


class Linear(nnx.Module):
    """x W + b with W [in, out]; computes in x's dtype.

    With ``lora.rank``, also + (x A) B alpha / R with A [in, R] and B [R, out] (Hu et al. 2021): W's own gradient, which
    is as large as W, is then never needed. With ``shares_a`` the caller gives A, which other layers use too.
    """

    def __init__(
        self,
        size_in: int,
        size_out: int,
        std: float,
        bias: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        lora: LoraConfig,
        mesh: Mesh | None,
        shares_a: bool = False,
    ):
        # With adapters W has no gradient.
        self.is_tall = size_in > size_out and not lora.rank and platform_of(mesh) == "cpu"
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (size_in, size_out), dtype))
        self.bias = nnx.Param(jnp.zeros((size_out,), dtype)) if bias else None
        self.lora_a = initial_lora_a(size_in, lora.rank, dtype, rngs) if lora.rank and not shares_a else None
        self.lora_b = nnx.Param(jnp.zeros((lora.rank, size_out), dtype)) if lora.rank else None
        self.lora_scale = lora.alpha / lora.rank if lora.rank else 0.0

    def __call__(self, x: jax.Array, shared_a: nnx.Param | None = None) -> jax.Array:
        # Rows flattened: on a CPU, XLA's gradient of a three-dimensional product is a third slower.
        rows = x.reshape(-1, x.shape[-1])
        y = (tall_product if self.is_tall else jnp.matmul)(rows, self.kernel[...].astype(x.dtype))
        if self.lora_b is not None:
            lora_a = self.lora_a if shared_a is None else shared_a
            y += (rows @ lora_a[...].astype(x.dtype) * self.lora_scale) @ self.lora_b[...].astype(x.dtype)
        y = y.reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)

    def merged_kernel(self, shared_a: nnx.Param | None = None) -> jax.Array:
        """The matrix that does what kernel and adapter do together, also of a whole stack of layers."""
        if self.lora_b is None:
            return self.kernel[...]
        lora_a = shared_a if self.lora_a is None else self.lora_a
        return self.kernel[...] + lora_a[...] @ self.lora_b[...] * self.lora_scale


class Norm(nnx.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm over the last axis; statistics in float32 or wider."""

    def __init__(self, config: ModelConfig, size: int, dtype: jnp.dtype, kind: str | None = None):
        self.kind, self.eps = kind or config.norm, config.norm_eps
        self.weight = nnx.Param(jnp.ones((size,), dtype)) if self.kind != "rmsnorm_plain" else None
        with_bias = self.kind == "layernorm" and config.bias
        self.bias = nnx.Param(jnp.zeros((size,), dtype)) if with_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.kind == "rmsnorm_plain":
            return rms_normalize(x, self.eps)
        if self.kind == "rmsnorm":
            return rms_normalize(x, self.eps) * self.weight[...].astype(x.dtype)
        y = wide(x)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        y = y * self.weight[...]
        return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head attention with grouped key/value heads (Ainslie et al. 2023)."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, rngs: nnx.Rngs, lora: LoraConfig, mesh: Mesh | None):
        self.config, self.mesh = config, mesh
        c = config
        std, out_std = initial_std(c)
        heads, groups = c.n_head * c.head_dim, c.n_kv_head * c.head_dim
        # Adapters stand beside the layers of the exported model: where those are one layer, its A is one.
        one = bool(lora.rank) and joins_qkv(c)
        self.lora_a = initial_lora_a(c.n_embd, lora.rank, dtype, rngs) if one else None
        self.q = Linear(c.n_embd, heads, std, c.bias, dtype, rngs, lora, mesh, shares_a=one)
        self.k = Linear(c.n_embd, groups, std, c.bias, dtype, rngs, lora, mesh, shares_a=one)
        self.v = Linear(c.n_embd, groups, std, c.bias, dtype, rngs, lora, mesh, shares_a=one)
        self.o = Linear(heads, c.n_embd, out_std, c.bias, dtype, rngs, lora, mesh)
        learned = c.qk_norm == "before_rope"
        self.q_norm = Norm(c, c.head_dim, dtype, "rmsnorm") if learned else None
        self.k_norm = Norm(c, c.head_dim, dtype, "rmsnorm") if learned else None

    def heads(self, x_BxTxD: jax.Array, positions_BxT: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, T, H, K], keys and values [B, T, G, K] as attention sees them: normalised and rotated."""
        c = self.config
        B, T = x_BxTxD.shape[:2]

        def heads_of(linear: Linear, count: int) -> jax.Array:
            x_BxTxHxK = linear(x_BxTxD, self.lora_a).reshape(B, T, count, c.head_dim)
            return pin(self.mesh, x_BxTxHxK, BATCH, None, "tensor", None)

        q_BxTxHxK = heads_of(self.q, c.n_head)
        k_BxTxGxK, v_BxTxGxK = heads_of(self.k, c.n_kv_head), heads_of(self.v, c.n_kv_head)
        return *self.turn(q_BxTxHxK, k_BxTxGxK, positions_BxT), v_BxTxGxK

    def turn(self, q_BxTxHxK: jax.Array, k_BxTxGxK: jax.Array, positions_BxT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Queries and keys normalised and rotated, as the family does it."""
        c = self.config
        if c.qk_norm == "before_rope":
            q_BxTxHxK, k_BxTxGxK = self.q_norm(q_BxTxHxK), self.k_norm(k_BxTxGxK)
        if c.positions == "rope":
            inverse = c.qk_norm == "after_rope"
            q_BxTxHxK = rotate(q_BxTxHxK, positions_BxT, c.rope_theta, inverse)
            k_BxTxGxK = rotate(k_BxTxGxK, positions_BxT, c.rope_theta, inverse)
        if c.qk_norm == "after_rope":
            q_BxTxHxK, k_BxTxGxK = rms_normalize(q_BxTxHxK, c.norm_eps), rms_normalize(k_BxTxGxK, c.norm_eps)
        return q_BxTxHxK, k_BxTxGxK

    def __call__(
        self,
        x_BxTxD: jax.Array,
        positions_BxT: jax.Array,
        cache: tuple[jax.Array, jax.Array] | None,
        key: jax.Array | None,
        segments_BxT: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Returns the output [B, T, D] and the cache with this call's keys and values written at ``positions_BxT``."""
        c = self.config
        B, T = x_BxTxD.shape[:2]
        q_BxTxHxK, k_BxTxGxK, v_BxTxGxK = self.heads(x_BxTxD, positions_BxT)
        if cache is None:
            y_BxTxHxK = causal_attention(
                q_BxTxHxK,
                k_BxTxGxK,
                v_BxTxGxK,
                segments_BxT=segments_BxT,
                dropout=c.dropout,
                dropout_key=key,
                mesh=self.mesh,
            )
        else:
            start_B, zero = positions_BxT[:, 0], jnp.int32(0)
            write = jax.vmap(lambda old, new, i: jax.lax.dynamic_update_slice(old, new, (zero, i, zero)))
            new = (k_BxTxGxK.swapaxes(1, 2), v_BxTxGxK.swapaxes(1, 2))
            cache = tuple(
                write(old_BxGxCxK, new_BxGxTxK, start_B) for old_BxGxCxK, new_BxGxTxK in zip(cache, new, strict=True)
            )
            k_BxCxGxK, v_BxCxGxK = (x.swapaxes(1, 2) for x in cache)
            y_BxTxHxK = reference_attention(q_BxTxHxK, k_BxCxGxK, v_BxCxGxK, positions_BxT)
        return self.o(y_BxTxHxK.reshape(B, T, -1)), cache


def activate(kind: str, up_BxTxF: jax.Array, gate_BxTxF: jax.Array | None) -> jax.Array:
    """GELU (tanh form; Hendrycks & Gimpel 2016), SwiGLU (Shazeer 2020) or ReLU squared (So et al. 2021)."""
    if kind == "swiglu":
        return jax.nn.silu(gate_BxTxF) * up_BxTxF
    if kind == "relu2":
        return jnp.square(jax.nn.relu(up_BxTxF))
    # Its parts are computed again in the backward pass: to keep them takes memory, and on a CPU more time as well.
    return jax.checkpoint(partial(jax.nn.gelu, approximate=True))(up_BxTxF)


class MLP(nnx.Module):
    """Wider, through :func:`activate`, and back."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, rngs: nnx.Rngs, lora: LoraConfig, mesh: Mesh | None):
        c, (std, out_std) = config, initial_std(config)
        self.kind, self.mesh = c.mlp, mesh
        self.up = Linear(c.n_embd, c.mlp_dim, std, c.bias, dtype, rngs, lora, mesh)
        self.gate = Linear(c.n_embd, c.mlp_dim, std, c.bias, dtype, rngs, lora, mesh) if c.mlp == "swiglu" else None
        self.down = Linear(c.mlp_dim, c.n_embd, out_std, c.bias, dtype, rngs, lora, mesh)

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        up_BxTxF = pin(self.mesh, self.up(x_BxTxD), BATCH, None, "tensor")
        gate_BxTxF = None if self.gate is None else pin(self.mesh, self.gate(x_BxTxD), BATCH, None, "tensor")
        return self.down(activate(self.kind, up_BxTxF, gate_BxTxF))


class Block(nnx.Module):
    """Pre-norm residual block: attention, then MLP."""

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, rngs: nnx.Rngs, lora: LoraConfig, mesh: Mesh | None):
        self.dropout, self.mesh = config.dropout, mesh
        self.attn_norm = Norm(config, config.n_embd, dtype)
        self.attn = Attention(config, dtype, rngs, lora, mesh)
        self.mlp_norm = Norm(config, config.n_embd, dtype)
        self.mlp = MLP(config, dtype, rngs, lora, mesh)

    def __call__(self, x_BxTxD, positions_BxT, cache, key, segments_BxT=None):
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        y_BxTxD, cache = self.attn(self.attn_norm(x_BxTxD), positions_BxT, cache, keys[0], segments_BxT)
        x_BxTxD = pin(self.mesh, x_BxTxD + drop(y_BxTxD, self.dropout, keys[1]), BATCH, None, None)
        x_BxTxD = x_BxTxD + drop(self.mlp(self.mlp_norm(x_BxTxD)), self.dropout, keys[2])
        return pin(self.mesh, x_BxTxD, BATCH, None, None), cache


def initial_std(config: ModelConfig) -> tuple[float, float]:
    """Standard deviations of matrices that read and that write the residual stream.

    GPT-2's 0.02 and 0.02 / sqrt(2 L); the nanochat family takes 1 / sqrt(D) and zero, so every block starts as the
    identity.
    """
    if config.norm == "rmsnorm_plain":
        return config.n_embd**-0.5, 0.0
    return 0.02, 0.02 / (2 * config.n_layer) ** 0.5


class GPT(nnx.Module):
    """Decoder-only transformer.

    Args:
      config: sizes and family; resolved by ``configs.schema.resolve_model``, vocab_size must be known.
      rngs: ``nnx.Rngs(params=key)`` for the initial weights.
      dtype: of activations. param_dtype: of parameters.
      remat: "block" recomputes each block in the backward pass (Chen et al. 2016); "dots" keeps the products with
        weights and recomputes the rest.
      unroll: compile every layer by itself instead of one scanned body.
      lora: adapters beside the blocks' linear layers, and rows of their own for the last tokens of the vocabulary;
        None, or rank 0: neither.
      mesh: that parameters and batches are laid over, to which activations are pinned; None: one device.
    """

    def __init__(
        self,
        config: ModelConfig,
        rngs: nnx.Rngs,
        *,
        dtype: jnp.dtype = jnp.float32,
        param_dtype: jnp.dtype = jnp.float32,
        remat: str = "none",
        unroll: bool = False,
        lora: LoraConfig | None = None,
        mesh: Mesh | None = None,
    ):
        self.config = c = resolve_model(config)
        self.dtype, self.remat, self.unroll, self.mesh = jnp.dtype(dtype), remat, unroll, mesh
        lora = lora or LoraConfig()
        self.new_tokens = lora.new_tokens if lora.rank else 0
        embedding_std = 1.0 if c.embedding_norm else 0.02
        shape = (c.padded_vocab_size, c.n_embd)
        self.token_embedding = nnx.Param(embedding_std * jax.random.normal(rngs.params(), shape, param_dtype))
        positions = 0.02 * jax.random.normal(rngs.params(), (c.context_length, c.n_embd), param_dtype)
        self.position_embedding = nnx.Param(positions) if c.positions == "learned" else None

        @nnx.split_rngs(splits=c.n_layer)
        @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: None})
        def make_blocks(rngs: nnx.Rngs) -> Block:
            return Block(c, param_dtype, rngs, lora, mesh)

        self.blocks = make_blocks(rngs)
        self.final_norm = Norm(c, c.n_embd, param_dtype)
        head_std = 0.0 if c.norm == "rmsnorm_plain" else 0.02
        head = head_std * jax.random.normal(rngs.params(), shape, param_dtype)
        self.head = None if c.tie_embeddings or c.num_labels else nnx.Param(head)
        score = 0.02 * jax.random.normal(rngs.params(), (c.num_labels, c.n_embd), param_dtype)
        self.score = nnx.Param(score) if c.num_labels else None
        rows = jnp.zeros((self.new_tokens, c.n_embd), param_dtype)
        self.token_embedding_new = nnx.Param(rows) if self.new_tokens else None
        self.head_new = nnx.Param(rows) if self.head is not None and self.new_tokens else None

    def __call__(
        self,
        tokens_BxT: jax.Array,
        *,
        cache: KVCache | None = None,
        dropout_key: jax.Array | None = None,
        segments_BxT: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Logits [B, T, V] in float32 (or wider), and the cache grown by these tokens if one was given.

        With a cache, the tokens stand right behind those it holds. With ``segments_BxT`` (int), runs of equal numbers
        are documents on their own: positions begin anew in each and none sees another. Padded rows of the vocabulary
        have logit -inf.
        """
        x_BxTxD, cache = self.hidden(tokens_BxT, cache=cache, dropout_key=dropout_key, segments_BxT=segments_BxT)
        return self.logits(x_BxTxD), cache

    def embed(self, tokens_BxT: jax.Array, positions_BxT: jax.Array | None = None) -> jax.Array:
        """What enters the first block, [B, T, D], before dropout; without positions the tokens stand at 0 to T - 1."""
        c, T = self.config, tokens_BxT.shape[1]
        # the table whole but for the vocabulary, before rows are picked: GSPMD would pick first and move rows twice
        table_VxD = pin(self.mesh, self.token_embedding[...].astype(self.dtype), "tensor", None)
        x_BxTxD = pin(self.mesh, table_VxD[tokens_BxT], BATCH, None, None)
        if self.new_tokens:
            index_BxT = tokens_BxT - (c.vocab_size - self.new_tokens)
            new_BxTxD = self.token_embedding_new[...].astype(self.dtype)[jnp.maximum(index_BxT, 0)]
            x_BxTxD = jnp.where(index_BxT[..., None] >= 0, new_BxTxD, x_BxTxD)
        if self.position_embedding is not None:
            table_CxD = self.position_embedding[...].astype(self.dtype)
            x_BxTxD += table_CxD[:T] if positions_BxT is None else table_CxD[positions_BxT]
        return rms_normalize(x_BxTxD, c.norm_eps) if c.embedding_norm else x_BxTxD

    def hidden(
        self,
        tokens_BxT: jax.Array,
        *,
        cache: KVCache | None = None,
        dropout_key: jax.Array | None = None,
        segments_BxT: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """The residual stream after the final norm, [B, T, D], and the grown cache; see :meth:`__call__`."""
        c = self.config
        B, T = tokens_BxT.shape
        start_B = jnp.zeros((B,), jnp.int32) if cache is None else cache.length_B
        positions_BxT = start_B[:, None] + jnp.arange(T, dtype=jnp.int32)
        if segments_BxT is not None:
            positions_BxT = positions_within(segments_BxT)
        x_BxTxD = self.embed(tokens_BxT, None if cache is None and segments_BxT is None else positions_BxT)
        layer_keys = None
        if dropout_key is not None and c.dropout:
            embedding_key, *layer_keys = jax.random.split(dropout_key, 1 + c.n_layer)
            x_BxTxD = drop(x_BxTxD, c.dropout, embedding_key)
            layer_keys = jnp.stack(layer_keys)

        graphdef, stacked = nnx.split(self.blocks)

        def run_block(x_BxTxD, layer):
            parameters, layer_cache, key = layer
            return nnx.merge(graphdef, parameters)(x_BxTxD, positions_BxT, layer_cache, key, segments_BxT)

        if self.remat != "none":
            policies = {"block": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
            run_block = jax.checkpoint(run_block, prevent_cse=False, policy=policies[self.remat])
        layer_caches = None if cache is None else (cache.keys, cache.values)
        unroll = c.n_layer if self.unroll else 1
        x_BxTxD, layer_caches = jax.lax.scan(run_block, x_BxTxD, (stacked, layer_caches, layer_keys), unroll=unroll)
        if cache is not None:
            cache = KVCache(*layer_caches, start_B + T)
        return self.final_norm(x_BxTxD), cache

    def head_matrix(self) -> jax.Array:
        """What hidden states are multiplied with for logits, [V, D] in the dtype of parameters."""
        c, head = self.config, self.token_embedding if self.head is None else self.head
        if not self.new_tokens:
            return head[...]
        new = self.token_embedding_new if self.head is None else self.head_new
        return head[...].at[c.vocab_size - self.new_tokens : c.vocab_size].set(new[...])

    def logits(self, x_BxTxD: jax.Array) -> jax.Array:
        """Logits of normalised hidden states, in float32 (or wider)."""
        c = self.config
        head_VxD = (self.token_embedding if self.head is None else self.head)[...].astype(self.dtype)
        head_VxD = pin(self.mesh, head_VxD, "tensor", None)
        out = jnp.promote_types(self.dtype, jnp.float32)
        logits_BxTxV = jnp.einsum("BTD,VD->BTV", x_BxTxD, head_VxD, preferred_element_type=out)
        logits_BxTxV = pin(self.mesh, logits_BxTxV, BATCH, None, "tensor")
        if self.new_tokens:  # a product of their own, so that the other rows need no gradient
            head_NxD = (self.token_embedding_new if self.head is None else self.head_new)[...].astype(self.dtype)
            logits_BxTxN = jnp.einsum("BTD,ND->BTN", x_BxTxD, head_NxD, preferred_element_type=out)
            logits_BxTxV = logits_BxTxV.at[..., c.vocab_size - self.new_tokens : c.vocab_size].set(logits_BxTxN)
        return self.finish_logits(logits_BxTxV)

    def finish_logits(self, products: jax.Array) -> jax.Array:
        """Logits [..., V] of hidden states' products with the head: capped, and -inf for padding."""
        c = self.config
        if c.logit_softcap:
            products = c.logit_softcap * jnp.tanh(products / c.logit_softcap)
        if c.padded_vocab_size > c.vocab_size:
            products = jnp.where(jnp.arange(c.padded_vocab_size) < c.vocab_size, products, -jnp.inf)
        return products

    def scores(self, x_BxTxD: jax.Array) -> jax.Array:
        """A classifier's scores of its labels [B, T, num_labels], of normalised hidden states, in float32 (or wider).

        A text's own are those at its last token, which has seen all of it.
        """
        out = jnp.promote_types(self.dtype, jnp.float32)
        return jnp.einsum("BTD,ND->BTN", x_BxTxD, self.score[...].astype(self.dtype), preferred_element_type=out)
