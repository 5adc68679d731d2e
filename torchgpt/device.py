"""Where the model runs, and a check that this place computes correctly."""

from collections.abc import Callable

import torch
from torch import Tensor

from configs.schema import ModelConfig, gpt2, llama, nanochat, qwen3
from scratchgpt.errors import UserError
from torchgpt.model import GPT, KVCache, cross_entropy_sums


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


def self_check(device: torch.device) -> None:
    """Compare a tiny model of every family on ``device`` with the CPU; some accelerators fail silently (MPS has).

    Raises UserError if ``device`` cannot run them, or computes something else.
    """
    for family in (gpt2, llama, qwen3, nanochat):
        expected = tiny_outputs(family, torch.device("cpu"))
        try:
            found = tiny_outputs(family, device)
        except (RuntimeError, NotImplementedError) as e:
            raise UserError(f"the device {device} cannot run the model ({e}): use --device=cpu") from e
        if wrong := first_difference(expected, found):
            raise UserError(
                f"the device {device} computes wrong results here ({wrong} of a tiny {family.__name__} model differs"
                " from the CPU's): use --device=cpu"
            )


def tiny_outputs(family: Callable[..., ModelConfig], device: torch.device) -> dict[str, Tensor]:
    """Logits, also through a KV cache, and gradients of a model with fixed weights, computed on ``device``."""
    model = GPT(family(n_layer=2, n_head=2, n_embd=32, context_length=16, vocab_size=32))
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator) * (0.2 if p.ndim > 1 else 1.0)
    tokens = (torch.arange(32).view(2, 16) * 7 % 32).to(device)
    model.to(device)
    logits = model(tokens)
    cross_entropy_sums(logits, tokens.roll(-1, 1))[0].backward()
    cache = KVCache(model, 2)
    with torch.no_grad():
        cached = torch.cat([model(part, cache) for part in tokens.split([9, 1, 6], dim=1)], dim=1)
    outputs = {"the logits": logits, "the logits through the cache": cached}
    outputs |= {f"the gradient of {name}": p.grad for name, p in model.named_parameters()}
    return {name: tensor.detach().cpu() for name, tensor in outputs.items()}


def first_difference(expected: dict[str, Tensor], found: dict[str, Tensor], tolerance: float = 1e-2) -> str | None:
    """Name of the first tensor off by more than ``tolerance`` of its largest value, or not finite; None: all agree."""
    for name, tensor in expected.items():
        if not (found[name] - tensor).abs().max() <= tolerance * tensor.abs().max().clamp(min=1e-3):
            return name
    return None
