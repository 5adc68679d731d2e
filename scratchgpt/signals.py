"""Stopping a long run from outside without losing its work."""

import os
import signal


class StopSignal:
    """SIGINT or SIGTERM asks a loop to stop after its step; a second SIGINT ends the process at once.

    Attributes:
      received: number of the signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "StopSignal":
        self._old = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        if self.received is not None and number == signal.SIGINT:
            os._exit(130)
        self.received = number
