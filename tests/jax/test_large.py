"""The billion-parameter run builds here: its parameters are counted and one step is taken on a tiny batch."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.schema import count_parameters, resolve_model, validate
from jaxgpt.loss import cross_entropy_sums
from jaxgpt.objective import Sums
from jaxgpt.sharding import make_mesh
from jaxgpt.step import Steps

ROOT = Path(__file__).resolve().parents[2]


def large():
    spec = importlib.util.spec_from_file_location("large", ROOT / "configs" / "large.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def loss_sums(model, batch, key):
    return Sums(*cross_entropy_sums(model(batch["inputs"], dropout_key=key)[0], batch["targets"]), {})


def test_it_builds_at_full_size_without_allocating():
    config = validate(large())
    model = resolve_model(config.model, 50257)
    config.train.micro_batch_size = 1
    steps = Steps(config, model, loss_sums, make_mesh(config))
    total = sum(leaf.size for leaf in steps.abstract_state["params"].values())
    assert total == count_parameters(model) == 1_060_578_816


def free_gib() -> float:
    text = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").exists() else ""
    return next((int(line.split()[1]) / 2**20 for line in text.splitlines() if line.startswith("MemAvailable")), 0.0)


@pytest.mark.slow
@pytest.mark.skipif(free_gib() < 21.5, reason="a step of 1.06B parameters in float32 with AdamW needs 21 GiB of memory")
def test_it_takes_a_step_at_full_size():
    config = validate(large())
    config.train.batch_size = config.train.micro_batch_size = 1
    config.train.sequence_length = 16
    steps = Steps(config, resolve_model(config.model, 50257), loss_sums, make_mesh(config))
    state = steps.initial_state()
    tokens = np.random.default_rng(0).integers(0, 50257, (1, 1, 17), dtype=np.int32)
    batch = {"inputs": tokens[..., :-1], "targets": tokens[..., 1:]}
    losses = []
    for _ in range(2):
        state, metrics = steps.update(state, batch, np.float32(0.1))
        losses.append(float(jax.device_get(metrics["loss"])))
    assert abs(losses[0] - np.log(50257)) < 1.0
    assert losses[1] < losses[0]
