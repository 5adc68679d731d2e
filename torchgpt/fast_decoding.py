"""The next token's hidden state of one text, in fewer and larger operations than ``GPT.hidden``, which it equals.

A token needs every weight once, and a small model's time goes into starting operations: matrices that read the same
vector are joined into one, angles are looked up, and the query heads of a key/value head are the queries of one
attention. Shapes: D width, H query heads, G key/value heads, R = H / G, K head width, C context, S tokens so far.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchgpt.int8 import Int8Linear
from torchgpt.model import GPT, Attention, KVCache, Norm, rms_normalize


class FastDecoder:
    """Continues a text token by token with a model that is only read from now on.

    Args:
      model: in float32, float64 or with :func:`torchgpt.int8.quantize`'s matrices. Its joined parameters become parts
        of the joined ones: no memory is taken twice.
    """

    @torch.no_grad()
    def __init__(self, model: GPT):
        self._model = model
        head = model.token_embedding if model.head is None else model.head
        if not isinstance(head, Int8Linear):  # the largest: while it is copied, nothing else has been
            _join_parameters([head], "weight", by_input=True)
        self._joined = []  # per block: q, k and v as one, and gate and up
        for block in model.blocks:
            mlp = block.mlp
            inner = [mlp.up] if mlp.gate is None else [mlp.gate, mlp.up]
            self._joined.append((_join([block.attn.q, block.attn.k, block.attn.v]), _join(inner)))
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
        x_1xD = model.token_embedding.weight[token : token + 1]
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


def _join(layers: list[nn.Linear] | list[Int8Linear]) -> Callable[[Tensor], Tensor]:
    """One layer that gives the outputs of all ``layers``, side by side; their own parameters become views of its."""
    bias = _join_parameters(layers, "bias")
    if isinstance(layers[0], Int8Linear):
        return Int8Linear(_join_parameters(layers, "weight"), _join_parameters(layers, "scale"), bias)
    return partial(F.linear, weight=_join_parameters(layers, "weight", by_input=True), bias=bias)


def _join_parameters(layers: list[nn.Module], name: str, by_input: bool = False) -> Tensor | None:
    """The parameters one below the other, and ``layers`` changed to hold views of that.

    With ``by_input`` what one input is multiplied with lies together, although the shape stays [out, in]: a product
    with a single vector then reads the memory in order, up to twice as fast on a CPU.
    """
    parts = [getattr(layer, name) for layer in layers]
    if parts[0] is None:
        return None
    joined = torch.cat([part.t() for part in parts], dim=1).t() if by_input else torch.cat(parts)
    for layer, part in zip(layers, joined.split([len(part) for part in parts]), strict=True):
        is_parameter = isinstance(getattr(layer, name), nn.Parameter)
        setattr(layer, name, nn.Parameter(part, requires_grad=False) if is_parameter else part)
    return joined


def _norm(norm: Norm, x: Tensor) -> Tensor:
    if norm.kind == "layernorm":
        return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)
