"""The billion-parameter run builds here: its parameters are counted, and steps are taken on a tiny batch."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.schema import count_parameters, resolve_model, validate
from jaxgpt.objective import Objective
from jaxgpt.sharding import make_mesh
from jaxgpt.step import Steps

ROOT = Path(__file__).resolve().parents[2]


def large():
    spec = importlib.util.spec_from_file_location("large", ROOT / "configs" / "large.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def steps_of(config) -> Steps:
    objective = Objective(config, resolve_model(config.model, 50257))
    return Steps(config, objective.model, objective.loss_sums, make_mesh(config))


def test_it_builds_at_full_size_without_allocating():
    config = validate(large())
    model = resolve_model(config.model, 50257)
    config.train.micro_batch_size = 1
    total = sum(leaf.size for leaf in steps_of(config).abstract_state["params"].values())
    assert total == count_parameters(model) == 1_060_578_816


@pytest.mark.slow
def test_it_takes_steps_at_full_width():
    """With 4 of its 24 layers, which are all alike: 0.3B parameters, 6 GB."""
    config = validate(large())
    config.model.n_layer = 4
    config.train.batch_size = config.train.micro_batch_size = 1
    config.train.sequence_length = 16
    steps = steps_of(config)
    state = steps.initial_state()
    tokens = np.random.default_rng(0).integers(0, 50257, (1, 1, 17), dtype=np.int32)
    batch = {"inputs": tokens[..., :-1], "targets": tokens[..., 1:]}
    losses = []
    for _ in range(2):
        state, metrics = steps.update(state, batch, np.float32(0.1))
        losses.append(float(jax.device_get(metrics["loss"])))
    assert abs(losses[0] - np.log(50257)) < 1.0
    assert losses[1] < losses[0]
