"""The columns of metrics.jsonl as curves: over steps, tokens or time, smoothed, thinned to what a chart shows."""

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

AXES = ("steps", "tokens", "time")
MOST_POINTS = 600  # of a curve in a chart: more than a screen tells apart
_SMOOTHED_SHARE = 40  # the mean is over this part of a curve
_LARGEST = 1e15  # what is beyond cannot be drawn, and was never measured


@dataclass(slots=True)
class Curve:
    """One quantity of a run.

    Attributes:
      steps: float64, increasing.
      values: float64 of the same length, finite.
    """

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(slots=True)
class Metrics:
    """What was measured in a run.

    Attributes:
      curves: by their key in metrics.jsonl.
      nonfinite_steps: steps whose training loss was no number, so that they were not applied.
      rows: how many lines there were.
    """

    curves: dict[str, Curve] = field(default_factory=dict)
    nonfinite_steps: np.ndarray = field(default_factory=lambda: np.zeros(0))
    rows: int = 0

    def last_step(self) -> int:
        """The last step with a number or without one; 0 if there is none."""
        ends = [curve.steps[-1] for curve in self.curves.values()]
        return int(max([*ends, *self.nonfinite_steps[-1:]], default=0))

    def places(self, axis: str, steps: np.ndarray) -> np.ndarray | None:
        """Where ``steps`` lie on an axis: steps, tokens, or seconds of training; None if the run does not tell.

        Seconds are the sum of tokens over tokens a second, so evaluation, saving and compilation are not among them.
        """
        if axis == "steps":
            return steps
        tokens = self.curves.get("tokens")
        if tokens is None:
            return None
        known, places = tokens.steps, tokens.values
        if axis == "time":
            speed = self.curves.get("tokens_per_second")
            moves = np.zeros(0, bool) if speed is None else speed.values > 0
            if not moves.any():
                return None
            known = speed.steps[moves]
            done = np.interp(known, np.r_[0, tokens.steps], np.r_[0, tokens.values])
            places = np.cumsum(np.maximum(0, np.diff(done, prepend=0)) / speed.values[moves])
        return np.interp(steps, np.r_[0, known], np.r_[0, places])


def collect(rows: Iterable[dict[str, Any]]) -> Metrics:
    """Curves of the numbers in ``rows`` of metrics.jsonl; what is no finite number of a drawable size is left out."""
    columns: dict[str, tuple[array, array]] = {}
    nonfinite, count = array("d"), 0
    for row in rows:
        count += 1
        step = row["step"]
        if not 0 <= step <= _LARGEST:
            continue
        for key, value in row.items():
            if type(value) in (int, float) and -_LARGEST < value < _LARGEST:  # not nan, nor a bool
                if key not in columns:
                    columns[key] = array("d"), array("d")
                steps, values = columns[key]
                steps.append(step)
                values.append(value)
            elif key == "train_loss" and (value is None or (type(value) is float and not math.isfinite(value))):
                nonfinite.append(step)
    columns.pop("step", None)
    curves = {key: _curve(np.array(steps), np.array(values)) for key, (steps, values) in columns.items()}
    return Metrics(curves, np.unique(np.array(nonfinite)), count)


def _curve(steps: np.ndarray, values: np.ndarray) -> Curve:
    """Ordered by step, the last line of a step counting."""
    if len(steps) > 1 and not (np.diff(steps) > 0).all():
        order = np.argsort(steps, kind="stable")
        steps, values = steps[order], values[order]
        last = np.append(np.diff(steps) > 0, True)
        steps, values = steps[last], values[last]
    return Curve(steps, values)


def smoothed(curve: Curve) -> Curve:
    """The mean of each point and its neighbours: as many before as after, fewer towards both ends.

    At the end the mean is of the points before it, at the start it follows every point, as a loss falls fast there. A
    short curve stays as it is.
    """
    n, half = len(curve), len(curve) // (2 * _SMOOTHED_SHARE)
    if half == 0:
        return curve
    i = np.arange(n)
    first, after = np.maximum(0, i - half), 1 + np.minimum.reduce([i + half, 2 * i, np.full(n, n - 1)])
    sums = np.concatenate([[0.0], np.cumsum(curve.values)])
    return Curve(curve.steps, (sums[after] - sums[first]) / (after - first))


def thinned(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """At most ``most`` points: the lowest and the highest of equal stretches, so that no spike is lost."""
    n, stretches = len(curve), max(1, most // 2 - 1)
    if n <= most:
        return curve
    bounds = np.linspace(0, n, stretches + 1).astype(int)
    kept = {0, n - 1}
    for first, after in pairwise(bounds):
        part = curve.values[first:after]
        kept |= {int(first + part.argmin()), int(first + part.argmax())}
    index = sorted(kept)
    return Curve(curve.steps[index], curve.values[index])
