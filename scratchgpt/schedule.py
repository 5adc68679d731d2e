"""Learning-rate schedules as a pure function of the step, shared by both frameworks."""

import math

from configs.schema import OptimConfig


def lr_multiplier(step: int, optim: OptimConfig, steps: int) -> float:
    """Share of the peak learning rate that the update with index ``step`` (0-based) of a run of ``steps`` uses.

    Linear warm-up over ``optim.warmup_steps``, then ``cosine`` (Loshchilov & Hutter 2017), ``linear`` (constant, then
    linear over the last ``decay_fraction`` of the run; Hägele et al. 2024) or ``constant``. The multiplier falls to
    ``optim.min_lr_ratio`` at ``step == steps``.
    """
    if step < optim.warmup_steps:
        return (step + 1) / (optim.warmup_steps + 1)
    low = optim.min_lr_ratio
    if optim.schedule == "cosine":
        progress = min(1.0, (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps))
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))
    if optim.schedule == "linear":
        decay_steps = max(1, round(optim.decay_fraction * steps))
        return low + (1 - low) * min(1.0, max(0.0, (steps - step) / decay_steps))
    return 1.0


def learning_rate(step: int, optim: OptimConfig, steps: int) -> float:
    """The rate of the update with index ``step`` as metrics show it: the matrices' (Muon's or AdamW's)."""
    peak = optim.muon_learning_rate if optim.optimizer == "muon" else optim.learning_rate
    return peak * lr_multiplier(step, optim, steps)
