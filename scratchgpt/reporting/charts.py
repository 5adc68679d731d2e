"""The charts of a report: loss, the quantities beside it, and where the time went."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scratchgpt.progress import duration
from scratchgpt.reporting.figures import (
    INK,
    PALETTE,
    PAPER,
    SMALL,
    WIDE,
    Chart,
    make_chart,
    make_figure,
    short_duration,
    to_png,
)
from scratchgpt.reporting.runs import Run
from scratchgpt.reporting.series import Curve, smoothed, thinned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASHES = ("-", "--", ":", "-.")
_LOG_FROM = 20.0  # a quantity whose largest value is this many times its smallest has a logarithmic axis
_MOST_RAW = 2  # runs in a chart up to which each batch's loss is drawn, not only their mean
_MOST_TWICE = 4  # runs up to which the legend names training and validation of each


def color_of(index: int) -> str:
    """Of the run with this number."""
    return PALETTE[index % len(PALETTE)]


def loss_chart(runs: Sequence[Run], axes: Sequence[str]) -> Chart | None:
    """Training and validation loss; None if none was measured."""
    if not any(run.curve(key) for run in runs for key in ("train_loss", "val_loss")):
        return None
    told = []
    for run in runs:
        best, train = run.best(), run.curve("train_loss")
        words = [f"training loss from {train.values[0]:.4g} to {train.values[-1]:.4g}"] if train else []
        words += [f"lowest validation loss {best.loss:.4f} at step {best.step:,}"] if best else []
        words += [f"{n:,} steps not finite"] if (n := len(run.metrics.nonfinite_steps)) else []
        told.append(f"{run.name}: {', '.join(words) or 'no loss'}")

    def draw(plot: "Axes", axis: str) -> None:
        _draw_loss(plot, runs, axis)

    return make_chart("loss", "Training and validation loss", ". ".join(told), draw, axes, small=True)


def loss_png(run: Run) -> bytes:
    """The loss of one run over its steps, as a PNG."""
    return to_png(make_figure(lambda plot, axis: _draw_loss(plot, [run], axis), "steps", WIDE), run.name)


def line_chart(
    name: str, title: str, label: str, keys: Sequence[str], runs: Sequence[Run], axes: Sequence[str], is_noisy: bool
) -> Chart | None:
    """One quantity of every run; None if none has it.

    Args:
      name: of the PNG.
      title: of the chart.
      label: of the vertical axis.
      keys: in metrics.jsonl; the first that a run has.
      runs: the runs.
      axes: the horizontal axes it is drawn over.
      is_noisy: draw the points faintly and their mean over them.
    """
    found = [(i, run, curve) for i, run in enumerate(runs) if (curve := _first_curve(run, keys))]
    if not found:
        return None
    told = ". ".join(
        f"{run.name}: from {c.values[0]:.3g} to {c.values[-1]:.3g}, largest {c.values.max():.3g}" for _, run, c in found
    )

    def draw(plot: "Axes", axis: str) -> None:
        shown: list[np.ndarray] = []
        for i, run, curve in found:
            style = _style(i)
            if is_noisy and len(found) <= _MOST_RAW and smoothed(curve) is not curve:
                _plot(plot, run, curve, axis, **style, alpha=0.3, linewidth=0.8)
            line = smoothed(curve) if is_noisy else curve
            _plot(plot, run, line, axis, **style, linewidth=1.6, label=_short(run.name))
            shown.append(curve.values)
        _scale(plot, np.concatenate(shown), may_be_log=is_noisy)
        plot.set_ylabel(label)
        if len(found) > 1:
            _legend(plot, *plot.get_legend_handles_labels())

    return make_chart(name, title, told, draw, axes)


def time_chart(runs: Sequence[Run]) -> Chart | None:
    """Where each run's time went, as a share; None if no run knows."""
    found = [(run, seconds) for run in runs if (seconds := run.seconds())]
    if not found:
        return None
    kinds = list(dict.fromkeys(kind for _, seconds in found for kind in seconds))

    def told_of(seconds: dict[str, float]) -> str:
        total = sum(seconds.values())
        return f"{duration(total)}: " + ", ".join(f"{kind} {s / total:.0%}" for kind, s in seconds.items())

    def draw(plot: "Axes", axis: str) -> None:
        if len(found) == 1:
            _draw_kinds(plot, found[0][1])
        else:
            _draw_shares(plot, found, kinds)
        plot.invert_yaxis()
        plot.spines["left"].set_visible(False)
        plot.tick_params(axis="y", length=0)

    told = ". ".join(f"{run.name}: {told_of(seconds)}" for run, seconds in found)
    size = (SMALL[0], min(12.0, max(SMALL[1], 1.5 + 0.45 * len(found))))
    return make_chart("time", "Where the time went", told, draw, [""], size=size)


def _draw_kinds(plot: "Axes", seconds: dict[str, float]) -> None:
    """Of one run: a bar for each kind of work."""
    total, places = sum(seconds.values()), range(len(seconds))
    plot.barh(places, [100 * s / total for s in seconds.values()], color=color_of(0), height=0.6)
    for place, s in zip(places, seconds.values(), strict=True):
        plot.annotate(f"{short_duration(s)} · {s / total:.1%}", (100 * s / total, place), (5, 0), va="center",
                      textcoords="offset points")  # fmt: skip
    plot.set(yticks=places, yticklabels=[_short(kind, 20) for kind in seconds], xlabel="% of the time", xlim=(0, 128))
    plot.set_xticks(range(0, 101, 20))


def _draw_shares(plot: "Axes", found: Sequence[tuple[Run, dict[str, float]]], kinds: Sequence[str]) -> None:
    """Of several runs: a bar for each, divided by kind of work."""
    left = np.zeros(len(found))
    for i, kind in enumerate(kinds):
        shares = np.array([100 * seconds.get(kind, 0) / sum(seconds.values()) for _, seconds in found])
        plot.barh(range(len(found)), shares, left=left, color=color_of(i), height=0.6, label=_short(kind))
        left += shares
    names = [f"{_short(run.name, 20)}\n{duration(sum(seconds.values()))}" for run, seconds in found]
    plot.set(yticks=range(len(found)), yticklabels=names, xlabel="% of the time", xlim=(0, 100))
    _legend(plot, *plot.get_legend_handles_labels())


def _draw_loss(plot: "Axes", runs: Sequence[Run], axis: str) -> None:
    one = len(runs) == 1
    shown: list[np.ndarray] = []
    handles: list[Any] = []
    for i, run in enumerate(runs):
        style = _style(i)
        if train := run.curve("train_loss"):
            mean = smoothed(train)
            if len(runs) <= _MOST_RAW and mean is not train:
                _plot(plot, run, train, axis, **style, alpha=0.3, linewidth=0.8)
                shown.append(np.array([train.values.min(), np.quantile(train.values, 0.99)]))
            of_what = "training (mean of neighbours)" if mean is not train else "training (batch mean)"
            label = of_what if one else f"{_short(run.name)}, training" if len(runs) <= _MOST_TWICE else ""
            lines = _plot(plot, run, mean, axis, **style, alpha=1 if one else 0.6, linewidth=1.4, label=label)
            handles += lines if label else []
            shown.append(mean.values)
        if val := run.curve("val_loss"):
            style = _style(1 if one else i) | {"marker": "o", "markersize": 4 if len(val) < 60 else 0}
            label = "validation" if one else _short(run.name) + (", validation" if len(runs) <= _MOST_TWICE else "")
            handles += _plot(plot, run, val, axis, **style, linewidth=1.8, label=label)
            shown.append(val.values)
        where = run.metrics.places(axis, run.metrics.nonfinite_steps)
        if where is not None and len(where):
            height = np.full(min(len(where), 300), 0.02)  # 300 marks side by side are a line
            marks = where[np.linspace(0, len(where) - 1, len(height)).astype(int)]
            color = INK if one else color_of(i)
            transform = plot.get_xaxis_transform()
            label = f"{'' if one else _short(run.name) + ', '}not finite, not applied"
            handles += plot.plot(marks, height, "x", color=color, transform=transform, label=label, clip_on=False)
    if shown:
        _scale(plot, np.concatenate(shown))
    _label_best(plot, runs, axis)
    plot.set_ylabel("loss (nats)")
    _legend(plot, handles, [handle.get_label() for handle in handles])


def _label_best(plot: "Axes", runs: Sequence[Run], axis: str) -> None:
    """Write the lowest validation loss of all runs beside its point."""
    known = [(best.loss, i) for i, run in enumerate(runs) if (best := run.best())]
    if not known:
        return
    loss, i = min(known)
    where = runs[i].metrics.places(axis, np.array([float(runs[i].best().step)]))
    if where is None:
        return
    plot.plot(where, [loss], "o", markersize=8, fillstyle="none", color=INK, markeredgewidth=1.2)
    low, high = plot.get_xlim()
    is_right = where[0] > low + 0.6 * (high - low)
    plot.annotate(
        f"lowest {loss:.4f}", (where[0], loss), textcoords="offset points", xytext=(5 if is_right else -5, 11),
        ha="right" if is_right else "left", fontweight="bold",
        bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 1.5},  # a curve may run behind it
    )  # fmt: skip


def _first_curve(run: Run, keys: Sequence[str]) -> Curve | None:
    return next((curve for key in keys if (curve := run.curve(key))), None)


def _plot(plot: "Axes", run: Run, curve: Curve, axis: str, **style: Any) -> list[Any]:
    curve = thinned(curve)
    places = run.metrics.places(axis, curve.steps)
    if places is None:
        return []
    return plot.plot(places, curve.values, **({"marker": "o", "markersize": 3} if len(curve) == 1 else {}) | style)


def _style(i: int) -> dict[str, Any]:
    return {"color": color_of(i), "linestyle": _DASHES[i // len(PALETTE) % len(_DASHES)]}


def _short(name: str, most: int = 32) -> str:
    """A name that fits a legend: printable, and cut in its middle."""
    name = "".join(c if c.isprintable() else " " for c in name)
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"


def _scale(plot: "Axes", values: np.ndarray, may_be_log: bool = True) -> None:
    """A logarithmic axis where the values ask for one, and room above what it shows."""
    low, high = float(values.min()), float(values.max())
    if may_be_log and low > 0 and high / low >= _LOG_FROM:
        plot.set_yscale("log")
        plot.set_ylim(low / 1.25, high * 1.25)
    else:
        room = 0.07 * (high - low) or 0.05 * abs(high) or 1.0
        plot.set_ylim(min(low - room, 0.0) if 0 <= low < 0.1 * high else low - room, high + room)


def _legend(plot: "Axes", handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Above the chart, so that it hides nothing."""
    if not handles:
        return
    # a label that begins with _ would be left out; a space of no width does not begin with it
    labels = [f"\u200b{label}" if label.startswith("_") else label for label in labels]
    room = 72 * plot.figure.get_figwidth() - 60

    def width(columns: int) -> float:  # about as many of 72 to the inch
        return sum(36 + 5.6 * max(map(len, part)) for part in np.array_split(labels, columns))

    columns = next((n for n in range(len(labels), 1, -1) if width(n) <= room), 1)
    plot.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0, 1.01), ncols=columns,
        frameon=False, fontsize=9.5, borderaxespad=0, columnspacing=1.2, handlelength=1.6,
    )  # fmt: skip
