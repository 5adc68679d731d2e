"""What a run remembers besides its arrays, so that a resumed one decides as if it had never stopped."""

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Standing:
    """How a run stands after a step; kept in the record of every checkpoint.

    Attributes:
      best_val_loss: the lowest validation loss so far, in nats; None before the first.
      evaluations_since_best: validations since then, for early stopping.
      nonfinite_steps: steps in a row, up to the last one, whose loss or gradient was not finite.
    """

    best_val_loss: float | None = None
    evaluations_since_best: int = 0
    nonfinite_steps: int = 0

    def evaluated(self, val_loss: float) -> bool:
        """Take note of a validation; whether it is the best so far. One that is not finite never is."""
        is_best = math.isfinite(val_loss) and (self.best_val_loss is None or val_loss < self.best_val_loss)
        if is_best:
            self.best_val_loss, self.evaluations_since_best = val_loss, 0
        else:
            self.evaluations_since_best += 1
        return is_best

    def stepped(self, finite: bool) -> None:
        """Take note of a step."""
        self.nonfinite_steps = 0 if finite else self.nonfinite_steps + 1

    def has_stalled(self, patience: int) -> bool:
        """Whether ``patience`` validations in a row were no gain; 0 waits for ever."""
        return 0 < patience <= self.evaluations_since_best
