"""The next token's hidden state of one text, in fewer and larger operations than ``GPT.hidden``, which it equals.

A token needs every weight once, and a small model's time goes into starting operations, however little each does.
Matrices that read the same vector are joined into one, rotary positions are one product for all heads, the query heads
of a key/value head are the queries of one attention, and every step reads and writes vectors that stay where they are:
views of them are made once, not for each layer and token. Shapes: D width, F MLP width, H query heads, G key/value
heads, R = H / G, K head width, S tokens so far, and B blocks of W outputs each (:mod:`torchgpt.blocked`).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchgpt.blocked import NARROWEST, WIDTH, BlockedEmbedding, BlockedLinear, pays
from torchgpt.int8 import Int8Linear
from torchgpt.model import GPT, Block, KVCache, Norm, rms_normalize

Step = Callable[[], object]  # from some of the decoder's vectors into another


class _Layer(NamedTuple):
    """The steps of a block."""

    attn_norm: Step  # stream -> normed
    qkv: Step  # normed -> heads
    o: Step  # seen -> update
    mlp_norm: Step  # stream -> normed
    inner: Step  # normed -> inner
    down: Step  # inner -> update
    qk_scale: Tensor | None  # of the learned norms of queries and keys, [H + G, K]


class FastDecoder:
    """Continues texts token by token, in one thread, with a model that is only read from now on.

    Args:
      model: in float32, float64 or with :func:`torchgpt.int8.quantize`'s matrices. Its layers are laid out anew, and
        become parts of the joined ones: no memory is taken twice.
      blocked: whether to keep matrices as :mod:`torchgpt.blocked` does; None: where that pays.
    """

    @torch.no_grad()
    def __init__(self, model: GPT, blocked: bool | None = None):
        self._model, c = model, model.config
        blocked = pays(model) if blocked is None else blocked
        if blocked:
            _block_head(model)  # the largest: while it is copied, nothing else has been
        H, G, K = c.n_head, c.n_kv_head, c.head_dim
        empty = model.token_embedding.weight.new_empty
        self._stream_D, self._normed_D, self._update_D = (empty(c.n_embd) for _ in range(3))
        self._heads = empty(H + 2 * G, K)  # queries, keys, values
        self._qk, self._q_1xGxRxK = self._heads[: H + G], self._heads[:H].view(1, G, H // G, K)
        self._k_1xGxK, self._v_1xGxK = self._heads[None, H : H + G], self._heads[None, H + G :]
        self._seen_1xGxRxK = empty(1, G, H // G, K)  # by the query heads
        self._inner = empty(2 if c.mlp == "swiglu" else 1, c.mlp_dim)
        self._inner_rows = self._inner.unbind()  # the gate comes first
        self._layers = [self._lay_out(block, blocked) for block in model.blocks]
        self._final_norm = _norm(model.final_norm, self._stream_D, self._normed_D)

    @torch.no_grad()
    def hidden(self, token: int, cache: KVCache) -> Tensor:
        """The residual stream after the final norm, [1, 1, D], of ``token`` behind those in ``cache``, which grows.

        Raises ValueError if the cache is full.
        """
        model, c, position, stream_D = self._model, self._model.config, cache.length, self._stream_D
        caches = cache.views_for_one()
        device = stream_D.device
        stream_D.copy_(model.token_embedding(torch.tensor([token], device=device))[0])
        if model.position_embedding is not None:
            stream_D += model.position_embedding.weight[position]
        if c.embedding_norm:
            stream_D.copy_(rms_normalize(stream_D, c.norm_eps))
        turn_KxK = None
        if (rope := model.blocks[0].attn.rope) is not None:
            # x R turns all heads at once; row i of R is the i-th unit vector turned.
            identity_Kx1xK = torch.eye(c.head_dim, dtype=stream_D.dtype, device=device)[:, None]
            turn_KxK = rope.rotate(identity_Kx1xK, torch.tensor([position], device=device))[:, 0]
        for layer, layer_cache in zip(self._layers, caches, strict=True):
            layer.attn_norm()
            layer.qkv()
            self._attend(layer.qk_scale, turn_KxK, *layer_cache)
            layer.o()
            stream_D += self._update_D
            layer.mlp_norm()
            layer.inner()
            self._activate()
            layer.down()
            stream_D += self._update_D
        cache.length += 1
        self._final_norm()
        return self._normed_D.clone()[None, None]

    def _attend(
        self,
        qk_scale: Tensor | None,
        turn_KxK: Tensor | None,
        new_k_1xGxK: Tensor,
        new_v_1xGxK: Tensor,
        k_1xGxSxK: Tensor,
        v_1xGxSxK: Tensor,
    ) -> None:
        """heads -> seen; the token's key and value also go into the cache, where they are the last of the S."""
        c, qk = self._model.config, self._qk
        if qk_scale is not None:
            qk.copy_(F.rms_norm(qk, (c.head_dim,), None, c.norm_eps)).mul_(qk_scale)
        if turn_KxK is not None:
            qk.copy_(qk @ turn_KxK)
        if c.qk_norm == "after_rope":
            qk.copy_(F.rms_norm(qk, (c.head_dim,), None, c.norm_eps))
        new_k_1xGxK.copy_(self._k_1xGxK)
        new_v_1xGxK.copy_(self._v_1xGxK)
        # The last token sees all: no mask.
        self._seen_1xGxRxK.copy_(F.scaled_dot_product_attention(self._q_1xGxRxK, k_1xGxSxK, v_1xGxSxK))

    def _activate(self) -> None:
        """inner, in place: its first row is what the last matrix reads."""
        if self._model.config.mlp == "swiglu":
            gate_F, up_F = self._inner_rows
            F.silu(gate_F, inplace=True).mul_(up_F)
        elif self._model.config.mlp == "relu2":
            self._inner.relu_().square_()
        else:
            self._inner.copy_(F.gelu(self._inner, approximate="tanh"))

    def _lay_out(self, block: Block, blocked: bool) -> _Layer:
        """The steps of ``block``, whose matrices become parts of the joined ones."""
        attn, mlp, c = block.attn, block.mlp, self._model.config
        heads, seen, inner = self._heads.view(-1), self._seen_1xGxRxK.view(-1), self._inner.view(-1)
        qk_scale = None
        if attn.q_norm is not None:
            repeats = [(attn.q_norm.weight, c.n_head), (attn.k_norm.weight, c.n_kv_head)]
            qk_scale = torch.cat([weight.expand(times, -1) for weight, times in repeats])
        gate = [] if mlp.gate is None else ["gate"]
        return _Layer(
            _norm(block.attn_norm, self._stream_D, self._normed_D),
            _product(attn, ["q", "k", "v"], blocked, self._normed_D, heads),
            _product(attn, ["o"], blocked, seen, self._update_D),
            _norm(block.mlp_norm, self._stream_D, self._normed_D),
            _product(mlp, [*gate, "up"], blocked, self._normed_D, inner),
            _product(mlp, ["down"], blocked, self._inner_rows[0], self._update_D),
            qk_scale,
        )


def _block_head(model: GPT) -> None:
    """Lay out the matrix that gives the logits; a tied embedding looks its rows up in it."""
    if isinstance(model.head, nn.Linear):
        model.head = BlockedLinear.of(model.head.weight)
    elif model.head is None and model.score is None:
        model.head = BlockedLinear.of(model.token_embedding.weight)
        model.token_embedding = BlockedEmbedding(model.head)


def _product(parent: nn.Module, names: list[str], blocked: bool, x_K: Tensor, out_N: Tensor) -> Step:
    """``x`` times the matrices called ``names``, their outputs one behind the other; they become parts of one."""
    layers = [getattr(parent, name) for name in names]
    width = math.gcd(WIDTH, *(layer.out_features for layer in layers)) if isinstance(layers[0], nn.Linear) else 0
    if blocked and width >= NARROWEST:
        layers = [BlockedLinear.of(layer.weight, layer.bias, width) for layer in layers]
        for name, layer in zip(names, layers, strict=True):
            setattr(parent, name, layer)
    weight, bias = _join(layers, "weight"), _join(layers, "bias")
    if isinstance(layers[0], Int8Linear):
        joined = Int8Linear(weight, _join(layers, "scale"), bias)
        return lambda: out_N.copy_(joined(x_K))
    if isinstance(layers[0], BlockedLinear):
        B, K, W = weight.shape
        x_Bx1xK, out_Bx1xW = x_K.expand(B, 1, K), out_N.view(B, 1, W)
        if bias is None:
            return partial(torch.bmm, x_Bx1xK, weight, out=out_Bx1xW)
        return partial(torch.baddbmm, bias.view(B, 1, W), x_Bx1xK, weight, out=out_Bx1xW)
    if bias is None:
        return partial(torch.mv, weight, x_K, out=out_N)
    return partial(torch.addmv, bias, weight, x_K, out=out_N)


Layer = TypeVar("Layer", nn.Linear, Int8Linear, BlockedLinear)


def _join(layers: list[Layer], name: str) -> Tensor | None:
    """The parameters one below the other, and ``layers`` changed to hold views of that."""
    parts = [getattr(layer, name) for layer in layers]
    if len(parts) == 1 or parts[0] is None:
        return parts[0]
    joined = torch.cat(parts)
    for layer, part in zip(layers, joined.split([len(part) for part in parts]), strict=True):
        is_parameter = isinstance(getattr(layer, name), nn.Parameter)
        setattr(layer, name, nn.Parameter(part, requires_grad=False) if is_parameter else part)
    return joined


def _norm(norm: Norm, x_D: Tensor, out_D: Tensor) -> Step:
    """``norm`` of one vector, in fewer operations than PyTorch's own RMSNorm."""
    if norm.kind == "layernorm":
        return lambda: out_D.copy_(F.layer_norm(x_D, x_D.shape, norm.weight, norm.bias, norm.eps))
    # x / sqrt(sum / D + eps) * scale = x / sqrt(sum + D eps) * (sqrt(D) scale)
    D = len(x_D)
    eps = x_D.new_tensor(D * norm.eps)
    scale = math.sqrt(D) if norm.weight is None else math.sqrt(D) * norm.weight
    return lambda: torch.mul(x_D, (torch.dot(x_D, x_D) + eps).rsqrt_(), out=out_D).mul_(scale)
