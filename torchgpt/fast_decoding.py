"""The next token's hidden state of one text, in fewer and larger operations than ``GPT.hidden``, which it equals.

A token needs every weight once, and a small model's time goes into starting operations: matrices that read the same
vector are joined into one, angles are looked up, and the query heads of a key/value head are the queries of one
attention. Shapes: D width, H query heads, G key/value heads, R = H / G, K head width, C context, S tokens so far.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchgpt.blocked import WIDTH, BlockedEmbedding, BlockedLinear, pays
from torchgpt.int8 import Int8Linear
from torchgpt.model import GPT, Attention, KVCache, Norm, rms_normalize


class FastDecoder:
    """Continues a text token by token with a model that is only read from now on.

    Args:
      model: in float32, float64 or with :func:`torchgpt.int8.quantize`'s matrices. Its layers are laid out anew, and
        become parts of the joined ones: no memory is taken twice.
      blocked: whether to keep matrices as :mod:`torchgpt.blocked` does; None: where that pays.
    """

    @torch.no_grad()
    def __init__(self, model: GPT, blocked: bool | None = None):
        self._model = model
        blocked = pays(model) if blocked is None else blocked
        if blocked:
            _block_head(model)  # the largest: while it is copied, nothing else has been
        self._joined = []  # per block: q, k and v as one, and gate and up
        for block in model.blocks:
            groups = [
                (block.attn, ["q", "k", "v"]),
                (block.attn, ["o"]),
                (block.mlp, ["up"] if block.mlp.gate is None else ["gate", "up"]),
                (block.mlp, ["down"]),
            ]
            if blocked:
                for parent, names in groups:
                    _block(parent, names)
            qkv, _, inner, _ = ([getattr(parent, name) for name in names] for parent, names in groups)
            self._joined.append((_join(qkv), _join(inner)))
        self._cos_CxK = self._sin_CxK = None
        if (rope := model.blocks[0].attn.rope) is not None:
            c, weight = model.config, model.token_embedding.weight
            one_CxK = torch.ones(c.context_length, c.head_dim, dtype=weight.dtype, device=weight.device)
            one_CxK[:, c.head_dim // 2 :] = 0  # pairs (1, 0), which turn into (cos, sin)
            turned_CxK = rope.rotate(one_CxK, torch.arange(c.context_length, device=weight.device))
            cos_CxF, sin_CxF = turned_CxK.chunk(2, dim=-1)
            self._cos_CxK, self._sin_CxK = cos_CxF.repeat(1, 2), torch.cat([-sin_CxF, sin_CxF], dim=-1)

    def hidden(self, token: int, cache: KVCache) -> Tensor:
        """The residual stream after the final norm, [1, 1, D], of ``token`` behind those in ``cache``, which grows."""
        model, c, position = self._model, self._model.config, cache.length
        x_1xD = model.token_embedding(torch.tensor([token], device=model.token_embedding.weight.device))
        if model.position_embedding is not None:
            x_1xD = x_1xD + model.position_embedding.weight[position]
        if c.embedding_norm:
            x_1xD = rms_normalize(x_1xD, c.norm_eps)
        for block, (qkv, inner) in zip(model.blocks, self._joined, strict=True):
            x_1xD = x_1xD + self._attention(block.attn, qkv(_norm(block.attn_norm, x_1xD)), cache)
            h_1xF = inner(_norm(block.mlp_norm, x_1xD))
            if c.mlp == "swiglu":
                gate_1xF, up_1xF = h_1xF.chunk(2, dim=-1)
                h_1xF = F.silu(gate_1xF) * up_1xF
            elif c.mlp == "relu2":
                h_1xF = F.relu(h_1xF).square()
            else:
                h_1xF = F.gelu(h_1xF, approximate="tanh")
            x_1xD = x_1xD + block.mlp.down(h_1xF)
        cache.length += 1
        return _norm(model.final_norm, x_1xD)[None]

    def _attention(self, attn: Attention, qkv_1xN: Tensor, cache: KVCache) -> Tensor:
        c = attn.config
        H, G, K = c.n_head, c.n_kv_head, c.head_dim
        heads = qkv_1xN.view(H + 2 * G, K)
        qk, v_GxK = heads[: H + G], heads[H + G :]
        if attn.q_norm is not None:
            qk = torch.cat([_norm(attn.q_norm, qk[:H]), _norm(attn.k_norm, qk[H:])])
        if self._cos_CxK is not None:
            swapped = qk.roll(K // 2, dims=-1)
            qk = qk * self._cos_CxK[cache.length] + swapped * self._sin_CxK[cache.length]
        if c.qk_norm == "after_rope":
            qk = rms_normalize(qk, c.norm_eps)
        k_1xGxSxK, v_1xGxSxK = cache.append(attn.layer, qk[None, H:, None], v_GxK[None, :, None])
        q_1xGxRxK = qk[:H].view(1, G, H // G, K)
        y_1xGxRxK = F.scaled_dot_product_attention(q_1xGxRxK, k_1xGxSxK, v_1xGxSxK)  # the last token sees all
        return attn.o(y_1xGxRxK.reshape(1, H * K))


def _block_head(model: GPT) -> None:
    """Lay out the matrix that gives the logits; a tied embedding looks its rows up in it."""
    if isinstance(model.head, nn.Linear):
        _block(model, ["head"])
    elif model.head is None and model.score is None:
        model.head = BlockedLinear.of(model.token_embedding.weight)
        model.token_embedding = BlockedEmbedding(model.head)


def _block(parent: nn.Module, names: list[str]) -> None:
    """Lay out layers of ``parent`` that are to be joined: all but the last must end with a block."""
    layers = [getattr(parent, name) for name in names]
    if isinstance(layers[0], nn.Linear):
        width = math.gcd(WIDTH, *(layer.out_features for layer in layers[:-1]))
        for name, layer in zip(names, layers, strict=True):
            setattr(parent, name, BlockedLinear.of(layer.weight, layer.bias, width))


Layer = TypeVar("Layer", nn.Linear, Int8Linear, BlockedLinear)


def _join(layers: list[Layer]) -> Callable[[Tensor], Tensor]:
    """One layer that gives the outputs of all ``layers``, side by side; their own parameters become views of its."""
    weight, bias = _join_parameters(layers, "weight"), _join_parameters(layers, "bias")
    if isinstance(layers[0], Int8Linear):
        return Int8Linear(weight, _join_parameters(layers, "scale"), bias)
    if isinstance(layers[0], BlockedLinear):
        return BlockedLinear(weight, bias, sum(layer.out_features for layer in layers))
    return partial(F.linear, weight=weight, bias=bias)


def _join_parameters(layers: list[Layer], name: str) -> Tensor | None:
    """The parameters one below the other, and ``layers`` changed to hold views of that."""
    parts = [getattr(layer, name) for layer in layers]
    if len(parts) == 1 or parts[0] is None:
        return parts[0]
    joined = torch.cat(parts)
    for layer, part in zip(layers, joined.split([len(part) for part in parts]), strict=True):
        is_parameter = isinstance(getattr(layer, name), nn.Parameter)
        setattr(layer, name, nn.Parameter(part, requires_grad=False) if is_parameter else part)
    return joined


def _norm(norm: Norm, x: Tensor) -> Tensor:
    if norm.kind == "layernorm":
        return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)
