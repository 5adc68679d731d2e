"""Weights in 8 bits for reading: a quarter of the bytes to fetch for every token, which is what decoding waits for.

Each row of a matrix is rounded to 255 steps of its largest value / 127 (round to nearest, as in LLM.int8(), Dettmers et
al. 2022, but for weights alone); embeddings, norms and biases stay as they are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchgpt.model import GPT

FEW_ROWS = 4  # up to so many positions at once the kernel for 8 bits is faster than widening the matrix
KERNEL_STEP = 16  # inputs that the kernel reads at once; of any other number it would read past their end


class Int8Linear(nn.Module):
    """x W^T + b with W [out, in] kept as int8 ``weight`` times ``scale`` [out, 1]."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = bias

    @staticmethod
    def rounded(weight: Tensor, bias: Tensor | None = None) -> "Int8Linear":
        """Of a matrix in a floating-point dtype."""
        scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / 127
        # The kernel takes bfloat16 scales: rounded before the division, they cost nothing.
        scale = scale.to(torch.bfloat16)
        whole = (weight / scale.to(weight.dtype)).round().clamp(-127, 127).to(torch.int8)
        return Int8Linear(whole, scale, bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= FEW_ROWS and x.device.type == "cpu" and x.shape[-1] % KERNEL_STEP == 0:
            y = torch._weight_int8pack_mm(rows.to(torch.bfloat16), self.weight, self.scale[:, 0]).to(x.dtype)
        else:
            y = F.linear(rows, self.weight.to(x.dtype)) * self.scale[:, 0].to(x.dtype)
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], -1)


@torch.no_grad()
def quantize(model: GPT) -> GPT:
    """Replace every matrix of ``model`` but embeddings by its rounded self, one at a time; returns ``model``."""
    for parent in model.modules():
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear.rounded(child.weight, child.bias))
    if model.head is None and model.score is None:
        model.head = Int8Linear.rounded(model.token_embedding.weight)
    return model
