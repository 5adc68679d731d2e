"""The largest micro-batch that fits: found with few compilations, because memory grows evenly with it."""

from collections.abc import Callable
from typing import NamedTuple

from configs.schema import Config


class Tried(NamedTuple):
    """One micro-batch and the bytes of a device that its step needs at its peak (0: refused without a number)."""

    size: int
    peak: int
    fits: bool


def candidates(config: Config, rows: int) -> list[int]:
    """Divisors of ``train.batch_size`` that divide over ``rows`` devices, ascending."""
    batch = config.train.batch_size
    return [n for n in range(rows, batch + 1, rows) if batch % n == 0]


def search(sizes: list[int], first: Tried, measure: Callable[[int], Tried], usable: int, most: int = 4) -> list[Tried]:
    """Measure some of ``sizes`` until the largest that fits ``usable`` bytes is known, or ``most`` have been measured.

    Two points tell the line on which the others lie; the largest size that it lets in is then measured, and the next
    larger one is left out where the line says by how much it would be too large. Returns all that were measured, in
    order, ``first`` among them.
    """
    tried = [first]
    while len(tried) <= most:
        good = max((t.size for t in tried if t.fits), default=0)
        bad = min((t.size for t in tried if not t.fits), default=sizes[-1] + 1)
        between = [n for n in sizes if good < n < bad]
        if not between:
            break
        size = _next(tried, between, usable)
        if size is None:
            break
        tried.append(measure(size))
    return tried


def predicted(tried: list[Tried], size: int) -> int:
    """Peak bytes of ``size`` on the line through the two largest that fit, or any two; 0 where there is no line yet."""
    known = sorted(t for t in tried if t.fits)[-2:]
    if len(known) < 2:  # the compiler's figure of one that it refuses is a rough one
        known = sorted(t for t in tried if t.peak)[-2:]
    if len(known) < 2:
        return 0
    (x0, y0, _), (x1, y1, _) = known
    return int(y1 + (y1 - y0) / (x1 - x0) * (size - x1))


def _next(tried: list[Tried], between: list[int], usable: int) -> int | None:
    """What to measure next; None where the line says that nothing larger fits."""
    line = [n for n in between if 0 < predicted(tried, n) <= usable]
    if line:
        return line[-1]
    if predicted(tried, between[0]):
        return None if any(t.fits for t in tried) else between[0]
    best = max((t for t in tried if t.fits), default=None)
    if best is None:
        return between[0]
    # A line that begins above zero passes below proportional growth: this size fits and lies far from the first.
    safe = [n for n in between if best.peak * n // best.size <= usable]
    return safe[-1] if safe else between[0]
