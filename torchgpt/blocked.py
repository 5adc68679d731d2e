"""Matrices in blocks of 32 outputs, as a CPU multiplies them with one vector, or a few, at the speed of its memory.

PyTorch gives a product with a single vector to MKL's SGEMM, which takes it on one core. A batch of narrow products is
spread over all cores, and each block lies in memory in the order in which it is read. Few rows are faster so, many are
not (docs/performance.md). Shapes: S blocks, W = 32 outputs each, K inputs, R rows.
"""

import math

import torch
from torch import Tensor, nn

from torchgpt.model import GPT

WIDTH = 32  # two cache lines of float32
NARROWEST = 4  # with blocks of fewer outputs products are no faster than with the plain matrix


def pays(model: GPT) -> bool:
    """Whether products in blocks are what ``model``'s device is fast at: a CPU's with MKL, the only one measured."""
    return model.token_embedding.weight.device.type == "cpu" and torch.backends.mkl.is_available()


class BlockedLinear(nn.Module):
    """x W^T + b with ``weight`` [S, K, W]: row i of W [N, K] is weight[i // W, :, i % W]; zeros fill the last block."""

    def __init__(self, weight_SxKxW: Tensor, bias: Tensor | None, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(weight_SxKxW, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.out_features = out_features

    @staticmethod
    def of(weight_NxK: Tensor, bias: Tensor | None = None, width: int = WIDTH) -> "BlockedLinear":
        """Of a matrix as nn.Linear has it."""
        N, K = weight_NxK.shape
        whole = N - N % width
        blocks_SxKxW = weight_NxK.new_zeros(math.ceil(N / width), K, width)
        blocks_SxKxW[: whole // width] = weight_NxK[:whole].view(-1, width, K).transpose(1, 2)
        if whole < N:
            blocks_SxKxW[-1, :, : N - whole] = weight_NxK[whole:].t()
        return BlockedLinear(blocks_SxKxW, bias, N)

    def forward(self, x: Tensor) -> Tensor:
        S, K, W = self.weight.shape
        y_SxRxW = torch.bmm(x.reshape(1, -1, K).expand(S, -1, -1), self.weight)
        y = y_SxRxW.transpose(0, 1).reshape(*x.shape[:-1], S * W)[..., : self.out_features]
        return y if self.bias is None else y + self.bias


class BlockedEmbedding(nn.Module):
    """The rows of a tied head in blocks, whose ``weight`` it shares."""

    def __init__(self, head: BlockedLinear):
        super().__init__()
        self.weight = head.weight

    def forward(self, tokens: Tensor) -> Tensor:
        W = self.weight.shape[2]
        return self.weight[tokens // W, :, tokens % W]
