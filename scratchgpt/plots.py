"""Loss curves as pictures."""

from pathlib import Path
from typing import Any

from scratchgpt.files import atomic_path


def plot_loss(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw training and validation loss (nats per token, pair or text) over steps into the PNG file ``path``.

    Args:
      rows: lines of metrics.jsonl.
    """
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    train = [(r["step"], r["train_loss"]) for r in rows if r.get("train_loss") is not None]
    val = [(r["step"], r["val_loss"]) for r in rows if r.get("val_loss") is not None]
    if train:
        axes.plot(*zip(*train, strict=True), color="#7aa6d9", linewidth=1, label="training (batch mean)")
    if val:
        best = min(val, key=lambda point: point[1])
        axes.plot(*zip(*val, strict=True), color="#c8442f", marker="o", markersize=3, label="validation")
        axes.annotate(f"{best[1]:.4f}", best, textcoords="offset points", xytext=(0, 7), ha="center", fontsize=9)
    axes.set(xlabel="step", ylabel="loss (nats)", title=title)
    axes.grid(alpha=0.3)
    if train or val:
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
