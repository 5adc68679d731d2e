"""The next token's hidden state of one text, in fewer and larger operations than ``GPT.hidden``, which it equals.

A token needs every weight once, and a small model's time goes into starting operations: matrices that read the same
vector are joined into one, rotary positions are one product for all heads, and the query heads of a key/value head are
the queries of one attention. Shapes: D width, F MLP width, H query heads, G key/value heads, R = H / G, K head width,
S tokens so far.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import ModelConfig
from torchgpt.blocked import WIDTH, BlockedEmbedding, BlockedLinear, pays, times_vector
from torchgpt.int8 import Int8Linear
from torchgpt.model import GPT, Block, KVCache, Norm, rms_normalize


class _Layer(NamedTuple):
    """A block as functions of one vector."""

    attn_norm: Callable[[Tensor], Tensor]
    qkv: Callable[[Tensor], Tensor]  # q, k and v, one behind the other
    o: Callable[[Tensor], Tensor]
    mlp_norm: Callable[[Tensor], Tensor]
    inner: Callable[[Tensor], Tensor]  # gate and up
    down: Callable[[Tensor], Tensor]
    qk_scale: Tensor | None  # of the learned norms of queries and keys, [H + G, K]


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
        like_D = model.token_embedding.weight.new_empty(model.config.n_embd)
        self._layers = [_lay_out(block, blocked, like_D) for block in model.blocks]
        self._final_norm = _norm_of_vector(model.final_norm, like_D)

    @torch.no_grad()
    def hidden(self, token: int, cache: KVCache) -> Tensor:
        """The residual stream after the final norm, [1, 1, D], of ``token`` behind those in ``cache``, which grows.

        Raises ValueError if the cache is full.
        """
        model, c, position = self._model, self._model.config, cache.length
        if position == cache.capacity:
            raise ValueError(f"{position + 1} tokens do not fit a cache of {cache.capacity}")
        device = model.token_embedding.weight.device
        x_D = model.token_embedding(torch.tensor([token], device=device))[0]
        if model.position_embedding is not None:
            x_D = x_D + model.position_embedding.weight[position]
        if c.embedding_norm:
            x_D = rms_normalize(x_D, c.norm_eps)
        turn_KxK = None
        if (rope := model.blocks[0].attn.rope) is not None:
            # x R turns all heads at once; row i of R is the i-th unit vector turned.
            identity_Kx1xK = torch.eye(c.head_dim, dtype=x_D.dtype, device=device)[:, None]
            turn_KxK = rope.rotate(identity_Kx1xK, torch.tensor([position], device=device))[:, 0]
        for i, layer in enumerate(self._layers):
            heads = layer.qkv(layer.attn_norm(x_D)).view(-1, c.head_dim)  # H queries, G keys, G values
            x_D = x_D + layer.o(_attention(c, i, heads, layer.qk_scale, turn_KxK, cache))
            h_F = layer.inner(layer.mlp_norm(x_D))
            if c.mlp == "swiglu":
                gate_F, up_F = h_F.chunk(2)
                h_F = F.silu(gate_F).mul_(up_F)
            elif c.mlp == "relu2":
                h_F = F.relu(h_F).square_()
            else:
                h_F = F.gelu(h_F, approximate="tanh")
            x_D = x_D + layer.down(h_F)
        cache.length += 1
        return self._final_norm(x_D)[None, None]


def _attention(
    c: ModelConfig, layer: int, heads: Tensor, qk_scale: Tensor | None, turn_KxK: Tensor | None, cache: KVCache
) -> Tensor:
    """What the heads of ``layer`` saw [H * K], of its new queries, keys and values."""
    H, G, K = c.n_head, c.n_kv_head, c.head_dim
    qk, v_GxK = heads[: H + G], heads[H + G :]
    if qk_scale is not None:
        qk = F.rms_norm(qk, (K,), None, c.norm_eps) * qk_scale
    if turn_KxK is not None:
        qk = qk @ turn_KxK
    if c.qk_norm == "after_rope":
        qk = F.rms_norm(qk, (K,), None, c.norm_eps)
    k_1xGxSxK, v_1xGxSxK = cache.append(layer, qk[None, H:, None], v_GxK[None, :, None])
    q_1xGxRxK = qk[:H].view(1, G, H // G, K)
    return F.scaled_dot_product_attention(q_1xGxRxK, k_1xGxSxK, v_1xGxSxK).reshape(-1)  # the last token sees all


def _lay_out(block: Block, blocked: bool, like_D: Tensor) -> _Layer:
    """``block`` for one vector; its matrices become parts of the joined ones."""
    attn, mlp, c = block.attn, block.mlp, block.attn.config
    groups = [
        (attn, ["q", "k", "v"]),
        (attn, ["o"]),
        (mlp, ["up"] if mlp.gate is None else ["gate", "up"]),
        (mlp, ["down"]),
    ]
    if blocked:
        for parent, names in groups:
            _block(parent, names)
    qkv, o, inner, down = (_join([getattr(parent, name) for name in names]) for parent, names in groups)
    qk_scale = None
    if attn.q_norm is not None:
        repeats = [(attn.q_norm.weight, c.n_head), (attn.k_norm.weight, c.n_kv_head)]
        qk_scale = torch.cat([weight.expand(times, -1) for weight, times in repeats])
    attn_norm, mlp_norm = (_norm_of_vector(norm, like_D) for norm in (block.attn_norm, block.mlp_norm))
    return _Layer(attn_norm, qkv, o, mlp_norm, inner, down, qk_scale)


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
    """Of a vector, the outputs of all ``layers`` side by side; their own parameters become views of joined ones."""
    weight, bias = _join_parameters(layers, "weight"), _join_parameters(layers, "bias")
    if isinstance(layers[0], Int8Linear):
        return Int8Linear(weight, _join_parameters(layers, "scale"), bias)
    if isinstance(layers[0], BlockedLinear):
        return partial(times_vector, weight, bias, sum(layer.out_features for layer in layers))
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


def _norm_of_vector(norm: Norm, like_D: Tensor) -> Callable[[Tensor], Tensor]:
    """``norm`` of one vector like ``like_D``, in fewer operations than PyTorch's own RMSNorm."""
    if norm.kind == "layernorm":
        return partial(F.layer_norm, normalized_shape=like_D.shape, weight=norm.weight, bias=norm.bias, eps=norm.eps)
    # x / sqrt(sum / D + eps) * scale = x / sqrt(sum + D eps) * (sqrt(D) scale)
    D = len(like_D)
    eps = like_D.new_tensor(D * norm.eps)
    scale = math.sqrt(D) if norm.weight is None else math.sqrt(D) * norm.weight
    return lambda x_D: x_D * (torch.dot(x_D, x_D) + eps).rsqrt_() * scale
