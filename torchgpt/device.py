"""Where the model runs, and a check that this place computes correctly."""

import torch

from configs.schema import gpt2
from scratchgpt.errors import UserError
from torchgpt.model import GPT, cross_entropy_sums


def pick_device(name: str) -> torch.device:
    """The device of ``--device``: ``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises UserError if the named device is not there, or if a device other than the CPU fails its self-check.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, available in there.items() if available)
    if name not in there:
        raise UserError(f"--device={name} must be one of auto, {', '.join(there)}")
    if not there[name]:
        raise UserError(f"--device={name} is not available on this machine: use --device=auto")
    device = torch.device(name)
    if name != "cpu":
        self_check(device)
    return device


def self_check(device: torch.device, tolerance: float = 1e-2) -> None:
    """Compare a tiny forward and backward pass on ``device`` with the CPU; some accelerators fail silently.

    Raises UserError on a relative difference above ``tolerance``.
    """
    model = GPT(gpt2(n_layer=2, n_head=2, n_embd=32, context_length=16, vocab_size=32))
    model.initialize(torch.Generator().manual_seed(0))
    tokens = torch.arange(16).view(1, 16) * 7 % 32
    results = []
    for place in (torch.device("cpu"), device):
        try:
            model.to(place).zero_grad()
            logits = model(tokens.to(place))
            cross_entropy_sums(logits, tokens.to(place).roll(-1, 1))[0].backward()
            results.append([logits.detach().cpu()] + [p.grad.cpu() for p in model.parameters()])
        except RuntimeError as e:
            raise UserError(f"the device {place} cannot run the model ({e}): use --device=cpu") from e
    for expected, got in zip(*results, strict=True):
        if not (got - expected).abs().max() <= tolerance * expected.abs().max():
            raise UserError(f"the device {device} computes wrong results here: use --device=cpu")
