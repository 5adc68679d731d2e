"""Where a run's time goes: tokens a second, model FLOPs utilisation, and the share of each kind of work."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

from configs.schema import Config, ModelConfig
from jaxgpt.chips import chip_of
from jaxgpt.flops import flops_per_token
from scratchgpt.progress import duration


class Throughput:
    """Speed over a window of steps.

    Args:
      tokens_per_step: of all devices.
      flops_share: of all devices' peak that one token a second needs (see :func:`flops_share`); None if unknown.
      clock: seconds.
    """

    def __init__(
        self, tokens_per_step: int, flops_share: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tokens_per_step, self._flops_share, self._clock = tokens_per_step, flops_share, clock
        self.restart()

    def restart(self) -> None:
        """Begin a new window: after a report, or after work that was no training."""
        self._began, self._steps = self._clock(), 0

    def step(self) -> None:
        """One more step is done."""
        self._steps += 1

    def figures(self) -> dict[str, float]:
        """``tokens_per_second`` and, where the devices' peak is known, ``mfu`` (a share of 1) of this window."""
        speed = self._steps * self._tokens_per_step / max(1e-9, self._clock() - self._began)
        return {"tokens_per_second": speed} | ({"mfu": speed * self._flops_share} if self._flops_share else {})


def flops_share(config: Config, model: ModelConfig, devices: list[jax.Device]) -> float | None:
    """The share of the devices' bfloat16 peak that one token a second needs, or None where the peak is not known."""
    chip = chip_of(devices[0].device_kind)
    return flops_per_token(config, model).model / (chip.peak_flops * len(devices)) if chip else None


class Goodput:
    """Seconds spent on each kind of work; what is not training a step is what a run pays for nothing."""

    KINDS = ("step", "compilation", "data", "evaluation", "saving")

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(self.KINDS, 0.0)

    @contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Count the body's time."""
        began = time.monotonic()
        yield
        self.seconds[kind] += time.monotonic() - began

    def told(self) -> str:
        """Such as ``4m12s (step 93%, compilation 4%, ...)``; empty if nothing was done."""
        total = sum(self.seconds.values())
        shares = ", ".join(f"{kind} {share / total:.0%}" for kind, share in self.seconds.items() if total)
        return f"{duration(total)} ({shares})" if total else ""
