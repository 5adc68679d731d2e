"""The transformer, in PyTorch: the readable reference for the four families of ``configs.schema``.

Shapes: B sequences, T tokens, S keys, C context, D width, H query heads, G key/value heads (H a multiple of G), K head
width, F MLP width, V (padded) vocabulary. Names of parameters are those of ``scratchgpt.hf_layout``.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import ModelConfig, resolve_model


def wide(x: Tensor) -> Tensor:
    """``x`` in float32, or in its own dtype if that is wider: for statistics, softmax and the loss."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_normalize(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis, without a learned scale (Zhang & Sennrich 2019)."""
    y = wide(x)
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def positions_within(segments_BxT: Tensor) -> Tensor:
    """Distance of each position to the beginning of its run of equal segment numbers, int64 [B, T]."""
    index_T = torch.arange(segments_BxT.shape[1], device=segments_BxT.device)
    begins_BxT = F.pad(segments_BxT.diff(dim=1) != 0, (1, 0), value=True)
    return index_T - torch.where(begins_BxT, index_T, 0).cummax(dim=1).values


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016), RMSNorm, or RMSNorm without a scale, over the last axis."""

    def __init__(self, config: ModelConfig, size: int, kind: str | None = None):
        super().__init__()
        self.kind, self.eps = kind or config.norm, config.norm_eps
        with_bias = self.kind == "layernorm" and config.bias
        self.weight = nn.Parameter(torch.ones(size)) if self.kind != "rmsnorm_plain" else None
        self.bias = nn.Parameter(torch.zeros(size)) if with_bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "layernorm":
            bias = None if self.bias is None else wide(self.bias)
            return F.layer_norm(wide(x), x.shape[-1:], wide(self.weight), bias, self.eps).to(x.dtype)
        y = rms_normalize(x, self.eps)
        return y if self.weight is None else y * self.weight.to(x.dtype)


class RotaryEmbedding:
    """cos and sin of every position (Su et al. 2021), as [C, K / 2] in float32, or float64 for a float64 model."""

    def __init__(self, config: ModelConfig):
        half = config.head_dim // 2
        self._frequencies = config.rope_theta ** -(np.arange(half) / half)  # float64, rounded once where it is used
        # NanoChat's models, which normalise after rotating, turn the other way.
        self._sign = -1.0 if config.qk_norm == "after_rope" else 1.0

    def rotate(self, x_BxHxTxK: Tensor, positions_T: Tensor) -> Tensor:
        """Turn each pair (first half, second half) by its position's angle; positions are [T] or [B, 1, T]."""
        x1, x2 = wide(x_BxHxTxK).chunk(2, dim=-1)
        frequencies = torch.from_numpy(self._frequencies).to(x1.dtype).to(x1.device)
        angles_TxF = positions_T[..., None].to(x1.dtype) * frequencies
        cos, sin = angles_TxF.cos(), angles_TxF.sin() * self._sign
        return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1).to(x_BxHxTxK.dtype)


def reference_attention(q_BxHxTxK: Tensor, k_BxHxSxK: Tensor, v_BxHxSxK: Tensor) -> Tensor:
    """Causal scaled dot-product attention (Vaswani et al. 2017) spelled out. The queries are the last T of S positions.

    What :func:`causal_attention` computes faster; a test holds the two together.
    """
    T, S = q_BxHxTxK.shape[-2], k_BxHxSxK.shape[-2]
    scores_BxHxTxS = q_BxHxTxK @ k_BxHxSxK.transpose(-1, -2) * q_BxHxTxK.shape[-1] ** -0.5
    visible_TxS = (
        torch.arange(S, device=scores_BxHxTxS.device) <= torch.arange(S - T, S, device=scores_BxHxTxS.device)[:, None]
    )
    scores_BxHxTxS = wide(scores_BxHxTxS).masked_fill(~visible_TxS, float("-inf"))
    return scores_BxHxTxS.softmax(-1).to(q_BxHxTxK.dtype) @ v_BxHxSxK


def causal_attention(
    q_BxHxTxK: Tensor,
    k_BxHxSxK: Tensor,
    v_BxHxSxK: Tensor,
    dropout: float = 0.0,
    segments_BxS: Tensor | None = None,
) -> Tensor:
    """:func:`reference_attention` through PyTorch's fused kernels, with dropout on the probabilities.

    With ``segments_BxS`` (int, of the keys) a query sees keys of its own segment only.
    """
    T, S = q_BxHxTxK.shape[-2], k_BxHxSxK.shape[-2]
    if segments_BxS is not None:
        own_BxTxS = segments_BxS[:, S - T :, None] == segments_BxS[:, None, :]
        return F.scaled_dot_product_attention(
            q_BxHxTxK, k_BxHxSxK, v_BxHxSxK, attn_mask=own_BxTxS.tril(diagonal=S - T)[:, None], dropout_p=dropout
        )
    if T == S:
        return F.scaled_dot_product_attention(q_BxHxTxK, k_BxHxSxK, v_BxHxSxK, dropout_p=dropout, is_causal=True)
    mask_TxS = None  # a single query sees every key
    if T > 1:
        mask_TxS = torch.ones(T, S, dtype=torch.bool, device=q_BxHxTxK.device).tril(diagonal=S - T)
    return F.scaled_dot_product_attention(q_BxHxTxK, k_BxHxSxK, v_BxHxSxK, attn_mask=mask_TxS, dropout_p=dropout)


class KVCache:
    """Keys and values [L, B, G, C, K] of the ``length`` tokens seen so far, at most ``capacity``, in L layers."""

    def __init__(self, model: "GPT", batch: int, context: int | None = None):
        c, weight = model.config, model.token_embedding.weight
        self.capacity = min(context or c.context_length, c.context_length)
        shape = (c.n_layer, batch, c.n_kv_head, self.capacity, c.head_dim)
        self._keys, self._values = (torch.empty(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))
        self.length = 0

    def append(self, layer: int, k_BxGxTxK: Tensor, v_BxGxTxK: Tensor) -> tuple[Tensor, Tensor]:
        """Write behind the ``length`` tokens of ``layer``; returns all its keys and values so far [B, G, S, K].

        Raises ValueError for more tokens than there is room for.
        """
        end = self._end_after(k_BxGxTxK.shape[2])
        k_BxGxCxK, v_BxGxCxK = self._keys[layer], self._values[layer]
        k_BxGxCxK[:, :, self.length : end] = k_BxGxTxK
        v_BxGxCxK[:, :, self.length : end] = v_BxGxTxK
        return k_BxGxCxK[:, :, :end], v_BxGxCxK[:, :, :end]

    def views_for_one(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """For every layer, where one more token's keys and values belong [B, G, K], and all with them [B, G, S, K].

        What :meth:`append` would write and return, in few operations for all layers. Raises ValueError if it is full.
        """
        end = self._end_after(1)
        kept = (self._keys, self._values)
        return zip(
            *(x_LxBxGxCxK[..., self.length, :].unbind() for x_LxBxGxCxK in kept),
            *(x_LxBxGxCxK[..., :end, :].unbind() for x_LxBxGxCxK in kept),
            strict=True,
        )

    def _end_after(self, tokens: int) -> int:
        end = self.length + tokens
        if end > self.capacity:
            raise ValueError(f"{end} tokens do not fit a cache of {self.capacity}")
        return end


class Attention(nn.Module):
    """Multi-head attention with grouped key/value heads (Ainslie et al. 2023)."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        heads, groups = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.q = nn.Linear(config.n_embd, heads, bias=config.bias)
        self.k = nn.Linear(config.n_embd, groups, bias=config.bias)
        self.v = nn.Linear(config.n_embd, groups, bias=config.bias)
        self.o = nn.Linear(heads, config.n_embd, bias=config.bias)
        learned = config.qk_norm == "before_rope"
        self.q_norm = Norm(config, config.head_dim, "rmsnorm") if learned else None
        self.k_norm = Norm(config, config.head_dim, "rmsnorm") if learned else None
        self.rope = RotaryEmbedding(config) if config.positions == "rope" else None

    def heads(self, x_BxTxD: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, K], keys and values [B, G, T, K] as attention sees them: normalised and rotated."""
        c = self.config
        B, T, _ = x_BxTxD.shape
        q_BxHxTxK = self.q(x_BxTxD).view(B, T, c.n_head, c.head_dim).transpose(1, 2)
        k_BxGxTxK = self.k(x_BxTxD).view(B, T, c.n_kv_head, c.head_dim).transpose(1, 2)
        v_BxGxTxK = self.v(x_BxTxD).view(B, T, c.n_kv_head, c.head_dim).transpose(1, 2)
        if self.q_norm is not None:
            q_BxHxTxK, k_BxGxTxK = self.q_norm(q_BxHxTxK), self.k_norm(k_BxGxTxK)
        if self.rope is not None:
            q_BxHxTxK, k_BxGxTxK = self.rope.rotate(q_BxHxTxK, positions_T), self.rope.rotate(k_BxGxTxK, positions_T)
        if c.qk_norm == "after_rope":
            q_BxHxTxK, k_BxGxTxK = rms_normalize(q_BxHxTxK, c.norm_eps), rms_normalize(k_BxGxTxK, c.norm_eps)
        return q_BxHxTxK, k_BxGxTxK, v_BxGxTxK

    def forward(
        self, x_BxTxD: Tensor, positions_T: Tensor, cache: KVCache | None, segments_BxS: Tensor | None = None
    ) -> Tensor:
        """What the heads write into the residual stream [B, T, D]; ``cache`` grows by these tokens."""
        c = self.config
        B, T, _ = x_BxTxD.shape
        q_BxHxTxK, k_BxGxTxK, v_BxGxTxK = self.heads(x_BxTxD, positions_T)
        k_BxGxSxK, v_BxGxSxK = (
            (k_BxGxTxK, v_BxGxTxK) if cache is None else cache.append(self.layer, k_BxGxTxK, v_BxGxTxK)
        )
        repeat = c.n_head // c.n_kv_head  # each key/value head serves this many neighbouring query heads
        k_BxHxSxK, v_BxHxSxK = k_BxGxSxK, v_BxGxSxK
        if repeat > 1:
            k_BxHxSxK, v_BxHxSxK = (x.repeat_interleave(repeat, dim=1) for x in (k_BxGxSxK, v_BxGxSxK))
        dropout = c.dropout if self.training else 0.0
        y_BxHxTxK = causal_attention(q_BxHxTxK, k_BxHxSxK, v_BxHxSxK, dropout, segments_BxS)
        return self.o(y_BxHxTxK.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """GELU (tanh form; Hendrycks & Gimpel 2016), SwiGLU (Shazeer 2020) or ReLU squared (So et al. 2021)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.kind = config.mlp
        self.up = nn.Linear(config.n_embd, config.mlp_dim, bias=config.bias)
        self.gate = nn.Linear(config.n_embd, config.mlp_dim, bias=config.bias) if config.mlp == "swiglu" else None
        self.down = nn.Linear(config.mlp_dim, config.n_embd, bias=config.bias)

    def forward(self, x_BxTxD: Tensor) -> Tensor:
        h_BxTxF = self.up(x_BxTxD)
        if self.kind == "swiglu":
            h_BxTxF = F.silu(self.gate(x_BxTxD)) * h_BxTxF
        elif self.kind == "relu2":
            h_BxTxF = F.relu(h_BxTxF).square()
        else:
            h_BxTxF = F.gelu(h_BxTxF, approximate="tanh")
        return self.down(h_BxTxF)


class Block(nn.Module):
    """Pre-norm residual block: attention, then MLP."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.attn_norm = Norm(config, config.n_embd)
        self.attn = Attention(config, layer)
        self.mlp_norm = Norm(config, config.n_embd)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_BxTxD: Tensor, positions_T: Tensor, cache: KVCache | None, segments_BxS: Tensor | None = None
    ) -> Tensor:
        x_BxTxD = x_BxTxD + self.dropout(self.attn(self.attn_norm(x_BxTxD), positions_T, cache, segments_BxS))
        return x_BxTxD + self.dropout(self.mlp(self.mlp_norm(x_BxTxD)))


class GPT(nn.Module):
    """Decoder-only transformer; ``config`` is resolved by ``configs.schema.resolve_model`` and knows its vocabulary."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = c = resolve_model(config)
        self.token_embedding = nn.Embedding(c.padded_vocab_size, c.n_embd)
        self.position_embedding = nn.Embedding(c.context_length, c.n_embd) if c.positions == "learned" else None
        self.dropout = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(Block(c, i) for i in range(c.n_layer))
        self.final_norm = Norm(c, c.n_embd)
        headless = c.tie_embeddings or c.num_labels
        self.head = None if headless else nn.Linear(c.n_embd, c.padded_vocab_size, bias=False)
        self.score = nn.Linear(c.n_embd, c.num_labels, bias=False) if c.num_labels else None

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> "GPT":
        """Random weights from the same distributions as jaxgpt's: GPT-2's, or nanochat's for that family."""
        c = self.config
        plain = c.norm == "rmsnorm_plain"
        for name, p in self.named_parameters():
            if p.ndim < 2:
                continue  # norms start as the identity, biases at zero
            std = 0.02
            if name.startswith("token_embedding") and c.embedding_norm:
                std = 1.0
            elif name.endswith(("attn.o.weight", "mlp.down.weight")):
                std = 0.0 if plain else 0.02 / math.sqrt(2 * c.n_layer)
            elif name.startswith("blocks") and plain:
                std = c.n_embd**-0.5
            elif name.startswith("head") and plain:
                std = 0.0
            p.normal_(0.0, std, generator=generator)
        for name, p in self.named_parameters():
            if name.endswith(".bias"):
                p.zero_()
        return self

    def forward(self, tokens_BxT: Tensor, cache: KVCache | None = None, segments_BxS: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] in float32 (or wider); with a cache, the tokens stand behind those it holds, and it grows.

        With ``segments_BxS`` (int; of the cache's tokens and these), runs of equal numbers are documents on their own:
        positions begin anew in each and none sees another. Raises ValueError for sequences longer than the context.
        """
        return self.logits(self.hidden(tokens_BxT, cache, segments_BxS))

    def hidden(self, tokens_BxT: Tensor, cache: KVCache | None = None, segments_BxS: Tensor | None = None) -> Tensor:
        """The residual stream after the final norm, [B, T, D]; see :meth:`forward`."""
        c = self.config
        start, T = (0 if cache is None else cache.length), tokens_BxT.shape[1]
        if start + T > c.context_length:
            raise ValueError(f"{start + T} tokens do not fit the model's context of {c.context_length}")
        positions_T = torch.arange(start, start + T, device=tokens_BxT.device)
        if segments_BxS is not None:
            positions_T = positions_within(segments_BxS)[:, None, start:]  # [B, 1, T]: the same for all heads
        x_BxTxD = self.token_embedding(tokens_BxT)
        if self.position_embedding is not None:
            x_BxTxD = x_BxTxD + self.position_embedding(positions_T if segments_BxS is None else positions_T[:, 0])
        if c.embedding_norm:
            x_BxTxD = rms_normalize(x_BxTxD, c.norm_eps)
        x_BxTxD = self.dropout(x_BxTxD)
        for block in self.blocks:
            x_BxTxD = block(x_BxTxD, positions_T, cache, segments_BxS)
        if cache is not None:
            cache.length += T
        return self.final_norm(x_BxTxD)

    def logits(self, x_BxTxD: Tensor) -> Tensor:
        """Logits of normalised hidden states; padded rows of the vocabulary have logit -inf."""
        c = self.config
        tied = self.head is None
        logits_BxTxV = wide(F.linear(x_BxTxD, self.token_embedding.weight) if tied else self.head(x_BxTxD))
        if c.logit_softcap:
            logits_BxTxV = c.logit_softcap * torch.tanh(logits_BxTxV / c.logit_softcap)
        if c.padded_vocab_size > c.vocab_size:
            padding_V = torch.arange(c.padded_vocab_size, device=logits_BxTxV.device) >= c.vocab_size
            logits_BxTxV = logits_BxTxV.masked_fill(padding_V, float("-inf"))
        return logits_BxTxV

    def scores(self, x_BxTxD: Tensor) -> Tensor:
        """A classifier's scores of its labels [B, T, num_labels], of normalised hidden states, in float32 (or wider).

        A text's own are those at its last token, which has seen all of it.
        """
        return wide(self.score(x_BxTxD))


def cross_entropy_sums(
    logits_BxTxV: Tensor, targets_BxT: Tensor, weights_BxT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(sum of -log p(target), sum of weights) in nats; the caller takes the mean once, over everything."""
    losses_BxT = F.cross_entropy(logits_BxTxV.flatten(0, 1), targets_BxT.flatten(), reduction="none").view_as(
        targets_BxT
    )
    if weights_BxT is None:
        return losses_BxT.sum(), torch.tensor(losses_BxT.numel(), dtype=losses_BxT.dtype)
    return (losses_BxT * weights_BxT).sum(), weights_BxT.sum()


def rounded_parameters(model: GPT, dtype: torch.dtype) -> dict[str, Tensor]:
    """The parameters as a forward pass in ``dtype`` sees them, for ``torch.func.functional_call``; gradients flow back.

    Norms' scales keep their own precision. For parameters in ``dtype`` already these are the parameters themselves.
    """
    return {name: p if "norm" in name else p.to(dtype) for name, p in model.named_parameters()}
