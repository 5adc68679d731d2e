"""A scaling law as a picture: IsoFLOP curves with the compute-optimal sizes; loss over compute with the frontier."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scratchgpt.files import atomic_path
from scratchgpt.scaling_law import ScalingLaw


@dataclass(frozen=True)
class Point:
    """A run: N parameters, D tokens, C FLOPs, nats per token; ``budget`` is the FLOPs it was asked to take."""

    depth: int
    parameters: float
    tokens: float
    flops: float
    loss: float
    budget: float = 0.0


@dataclass(frozen=True)
class HeldOut:
    """A run that the law has not seen: what it predicts with an interval, and what was measured, if it was."""

    predicted: Point
    interval: tuple[float, float]
    measured: float | None


def optimal_sizes(law: ScalingLaw, flops: np.ndarray, sizes: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, ...]:
    """The N with the least loss at each compute C, and that loss, [len(flops)] each.

    Args:
      law: the law.
      flops: C.
      sizes: N of places on the dial, rising, [M].
      costs: FLOPs a token at each of ``sizes``; in between they follow a power of N.
    """
    grid = np.geomspace(sizes[0], sizes[-1], 2000)
    cost = np.exp(np.interp(np.log(grid), np.log(sizes), np.log(costs)))
    loss = law.loss(grid, np.asarray(flops)[:, None] / cost)
    best = loss.argmin(axis=1)
    return grid[best], loss[np.arange(len(best)), best]


def plot_law(
    law: ScalingLaw,
    points: list[Point],
    dial: list[tuple[int, float, float]],
    held_out: HeldOut | None,
    path: Path,
) -> None:
    """Draw the PNG file ``path``.

    Args:
      law: fitted to ``points``.
      points: the fitted runs.
      dial: (depth, N, FLOPs a token) of places on the dial, rising.
      held_out: drawn beside its prediction.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # no pyplot: no display, no global state
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    sizes, costs = (np.array([place[i] for place in dial]) for i in (1, 2))
    figure = Figure(figsize=(12, 5), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    budgets = sorted({p.budget for p in points})
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(budgets)))
    grid = np.geomspace(sizes[0], sizes[-1], 300)
    cost = np.exp(np.interp(np.log(grid), np.log(sizes), np.log(costs)))
    for budget, color in zip(budgets, colors, strict=True):
        near = [p for p in points if p.budget == budget]
        left.plot(grid, law.loss(grid, budget / cost), color=color, linewidth=1.2)
        left.plot([p.parameters for p in near], [p.loss for p in near], "o", color=color, label=f"{budget:.2g} FLOPs")
    compute = np.geomspace(min(p.flops for p in points), max(p.flops for p in points) * 10, 60)
    best_sizes, best_losses = optimal_sizes(law, compute, sizes, costs)
    inside = (best_sizes > sizes[0] * 1.01) & (best_sizes < sizes[-1] * 0.99)  # elsewhere the dial ends, not the loss
    left.plot(best_sizes[inside], best_losses[inside], "--", color="#c8442f", label="compute-optimal")
    left.set(xscale="log", xlabel="N, parameters", ylabel="validation loss (nats a token)", title="IsoFLOP curves")
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # a narrow ladder lies within one power of ten
    left.xaxis.set_major_formatter(EngFormatter(sep=""))
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_xlim(0.8 * min(p.parameters for p in points), 2 * max(p.parameters for p in points))
    depths = sorted({p.depth for p in points})
    shades = dict(zip(depths, colormaps["plasma"](np.linspace(0, 0.85, len(depths))), strict=True))
    for depth, size, per_token in (place for place in dial if place[0] in depths):
        mine, color = [p for p in points if p.depth == depth], shades[depth]
        right.plot(compute, law.loss(size, compute / per_token), color=color, linewidth=0.8)
        label = f"depth {depth}, N = {size:,.0f}"
        right.plot([p.flops for p in mine], [p.loss for p in mine], "o", color=color, label=label)
    right.plot(compute, best_losses, "--", color="#c8442f", label="frontier")
    if held_out:
        place = held_out.predicted
        low, high = held_out.interval
        error = [[max(0.0, place.loss - low)], [max(0.0, high - place.loss)]]
        label = f"depth {place.depth}, predicted"
        right.errorbar([place.flops], [place.loss], error, fmt="s", color="black", mfc="white", capsize=4, label=label)
        if held_out.measured is not None:
            right.plot([place.flops], [held_out.measured], "*", color="black", markersize=11, label="measured")
    right.set(xscale="log", xlabel="C, training FLOPs", title="Loss over compute")
    shown = [p.loss for p in points] + ([held_out.predicted.loss, *held_out.interval] if held_out else [])
    top, bottom = max(shown), min(shown)
    for axes in (left, right):
        axes.set_ylim(bottom - 0.12 * (top - bottom), top + 0.15 * (top - bottom))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
