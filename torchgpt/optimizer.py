"""AdamW and Muon in PyTorch, grouped by what each parameter is for; the same arithmetic as ``jaxgpt.optimizer``."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from configs.schema import OptimConfig
from scratchgpt.hf_layout import parameter_role

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def clip_factor(norm: Tensor, clip_norm: float) -> Tensor:
    """Factor that brings a gradient of global norm ``norm`` down to ``clip_norm`` (0: no clipping)."""
    return (clip_norm / norm.clamp(min=1e-12)).clamp(max=1.0) if clip_norm else torch.ones_like(norm)


def orthogonalize(g_MxN: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: five Newton-Schulz steps (K. Jordan et al., "Muon", 2024)."""
    a, b, c = NEWTON_SCHULZ
    tall = g_MxN.shape[0] > g_MxN.shape[1]
    x = g_MxN.T if tall else g_MxN
    x = x / (x.norm() + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        s = x @ x.T
        x = a * x + (b * s + c * (s @ s)) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, times sqrt(max(1, fan_out / fan_in)), with decoupled weight decay.

    Unlike ``torch.optim.Muon`` it orthogonalises in the parameters' own dtype, not in bfloat16.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix [out, in] from its gradient."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                buffer = self.state[p]["momentum"].mul_(momentum).add_(p.grad)
                fan_out, fan_in = p.shape
                direction = orthogonalize(p.grad + momentum * buffer) * max(1.0, fan_out / fan_in) ** 0.5
                p.mul_(1 - lr * group["weight_decay"]).sub_(direction, alpha=lr)


class Optimizer:
    """The optimizers of a run over the parameters of ``model``: AdamW, and Muon for the blocks' matrices if asked for.

    Norm scales, biases and embeddings are not decayed; matrices and an untied head are (Loshchilov & Hutter 2019).
    """

    def __init__(self, model: nn.Module, optim: OptimConfig):
        self._parameters, self._clip_norm = list(model.parameters()), optim.clip_norm
        roles: dict[str, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            roles.setdefault(parameter_role(name), []).append(parameter)
        rates = {
            "matrix": optim.learning_rate,
            "vector": optim.learning_rate,
            "embedding": optim.embedding_learning_rate or optim.learning_rate,
            "head": optim.head_learning_rate or optim.learning_rate,
        }
        self._optimizers: list[torch.optim.Optimizer] = []
        if optim.optimizer == "muon":
            muon = Muon(roles.pop("matrix"), optim.muon_learning_rate, optim.muon_momentum, optim.weight_decay)
            self._optimizers.append(muon)
        decayed = ("matrix", "head")
        groups = [
            dict(params=parameters, lr=rates[role], weight_decay=optim.weight_decay if role in decayed else 0.0)
            for role, parameters in roles.items()
        ]
        self._optimizers.append(torch.optim.AdamW(groups, betas=(optim.beta1, optim.beta2), eps=optim.eps))
        self._groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        for group in self._groups:
            group["peak_lr"] = group["lr"]

    def apply_gradients(self, multiplier: float) -> Tensor:
        """One update from the parameters' ``.grad``: clipped by their global norm, at ``multiplier`` of the peak rates.

        Returns the norm before clipping. A norm that is not finite changes nothing.
        """
        grads = [p.grad for p in self._parameters]
        norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
        if not norm.isfinite():
            return norm
        factor = clip_factor(norm, self._clip_norm)
        for g in grads:
            g.mul_(factor)
        for group in self._groups:
            group["lr"] = group["peak_lr"] * multiplier
        for optimizer in self._optimizers:
            optimizer.step()
        return norm
