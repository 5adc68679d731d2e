"""Learning-rate schedules at every step."""

import math

import numpy as np
import optax
import pytest

from configs.schema import OptimConfig
from scratchgpt.schedule import lr_multiplier


def curve(steps: int, **fields) -> np.ndarray:
    return np.array([lr_multiplier(s, OptimConfig(**fields), steps) for s in range(steps + 1)])


def test_cosine_is_optaxs_after_the_warmup():
    values = curve(1000, schedule="cosine", warmup_steps=100, min_lr_ratio=0.1)
    theirs = optax.warmup_cosine_decay_schedule(0.0, 1.0, 100, 1000, 0.1)
    expected = np.array([float(theirs(s)) for s in range(100, 1001)])
    np.testing.assert_allclose(values[100:], expected, atol=1e-6)


def test_warmup_never_wastes_a_step_at_zero():
    values = curve(1000, schedule="cosine", warmup_steps=100)
    assert values[0] == pytest.approx(1 / 101)
    assert (np.diff(values[:101]) > 0).all()
    assert values[100] == 1.0


def test_linear_holds_then_falls_to_the_minimum():
    values = curve(100, schedule="linear", decay_fraction=0.4, min_lr_ratio=0.0)
    assert (values[:61] == 1).all()
    assert values[80] == pytest.approx(0.5)
    assert values[100] == 0


def test_constant():
    assert (curve(50, schedule="constant") == 1).all()


def test_no_warmup_and_one_step_are_finite():
    assert all(math.isfinite(v) for v in curve(1, schedule="cosine"))
