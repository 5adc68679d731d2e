"""Dynamic loss scaling, for float16, whose gradients would otherwise vanish below 6e-8 (Micikevicius et al. 2018)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

INITIAL, HIGHEST = 2.0**15, 2.0**24
GROWS_AFTER = 1000  # updates in a row without an overflow


class LossScale(NamedTuple):
    """What the loss is multiplied with before its gradient is taken, and the gradient divided by afterwards.

    Attributes:
      scale: float32, a power of two from 1 on.
      streak: int32, updates without an overflow since it last changed.
    """

    scale: jax.Array
    streak: jax.Array

    @staticmethod
    def initial() -> "LossScale":
        """That of a run's first step."""
        return LossScale(jnp.float32(INITIAL), jnp.int32(0))

    def after(self, finite: jax.Array) -> "LossScale":
        """The next step's: half as large after an overflow, twice as large after many updates without one."""
        grows = self.streak + 1 >= GROWS_AFTER
        risen = jnp.where(grows, jnp.minimum(self.scale * 2, HIGHEST), self.scale)
        scale = jnp.where(finite, risen, jnp.maximum(self.scale / 2, 1.0))
        return LossScale(scale, jnp.where(finite & ~grows, self.streak + 1, 0))
