"""A trace of a few steps: what the devices and the host did, microsecond by microsecond."""

from pathlib import Path
from typing import Any

import jax

WARM_UP = 3  # steps before the trace begins: compilation and the first reads of the data are another matter


class StepProfile:
    """Traces ``steps`` steps of a run into ``directory``, which TensorBoard and XProf open, and Perfetto its .json.gz.

    Args:
      directory: of the trace.
      steps: how many; 0: none.
    """

    def __init__(self, directory: Path, steps: int) -> None:
        self.directory, self.steps = directory, steps
        self._seen = 0
        self.traced = 0  # steps in the finished trace

    def before(self, previous: Any) -> None:
        """Before a step is dispatched, with an array of the one before it: begins and ends the trace."""
        self._seen += 1
        if self.steps and self._seen == WARM_UP + 1:
            jax.block_until_ready(previous)
            jax.profiler.start_trace(str(self.directory), create_perfetto_trace=True)
        elif self.steps and self._seen == WARM_UP + 1 + self.steps:
            self._end(previous)  # the step that is about to come is not part of it

    def close(self, last: Any) -> None:
        """End the trace of a run that was shorter."""
        if self.steps and WARM_UP < self._seen <= WARM_UP + self.steps:
            self._end(last)

    def _end(self, last: Any) -> None:
        jax.block_until_ready(last)
        jax.profiler.stop_trace()
        self.traced = min(self._seen - WARM_UP, self.steps)
        self._seen = WARM_UP + 1 + self.steps
