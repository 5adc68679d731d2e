"""200 steps of jaxgpt.train and of torchgpt.train from the same weights on the same batches: one training curve."""

import contextlib
import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from configs.schema import Config, OptimConfig, TrainConfig, from_dict, qwen3, to_dict
from data_prep.prepare import prepare
from data_prep.starting_point import adopt_model
from data_prep.tokenizers import load_tokenizer
from jaxgpt.trainer import Trainer as JaxTrainer
from parity_tests.models import reduced, run_files
from scratchgpt.hf_directory import open_hf_directory
from scratchgpt.metrics import read_metrics
from scratchgpt.schedule import learning_rate
from scratchgpt.workdir import EXPORT, METRICS
from torchgpt.hf import save_model
from torchgpt.model import GPT
from torchgpt.trainer import Trainer as TorchTrainer

STEPS = 200
# Muon at these rates learns the small text by heart within 40 steps and is chaotic from there on: rounding grows
# tenfold every 25 steps, in float32 from 2e-7 at step 30 to 8e-2 at step 200, in float64 to 1e-9.
FEWER_STEPS = {"prose_small": 40, "scaling_small": 40}
# What is the arithmetic of another run, trained to the end.
FEWER_STEPS |= {"shakespeare_char_cpu": 40}
# Largest difference between two steps' training losses (nats; they fall from 3 to below 1).
BARS = {"float32": 1e-4, "float64": 1e-9}
WORDS = ["the quick brown fox", "a lazy dog", "five dozen jugs", "jumps over", "how vexingly", "packs my box with"]

PACKED = TrainConfig(remat="block", packing="best_fit", batch_size=32, micro_batch_size=8)
RUNS = {name: config for name, config in run_files().items() if config.train.objective == "pretrain"}
RUNS |= {  # no run file ships this family, or packs documents
    "qwen3": Config(model=qwen3(n_head=4, n_kv_head=2), train=PACKED, optim=OptimConfig())
}


def small_run(config: Config, place: Path, dtype: str, steps: int) -> Config:
    """``config`` with its own optimizer, schedule, accumulation, padding and remat, at a size of seconds."""
    config = from_dict(to_dict(config))
    config.model = reduced(config.model)
    config.model.vocab_size, config.model.padded_vocab_size, config.model.context_length = 0, 48, 32
    config.data.dataset, config.data.source, config.data.tokenizer = "words", str(place / "text.jsonl"), "char"
    config.data.dir, config.data.val_fraction, config.data.max_tokens = str(place / "data"), 0.1, 0
    config.optim.warmup_steps = round(config.optim.warmup_steps * steps / config.train.steps)
    accumulates = 0 < config.train.micro_batch_size < config.train.batch_size
    config.train.batch_size, config.train.micro_batch_size = 8, 2 if accumulates else 0
    config.train.steps, config.train.sequence_length, config.train.dtype = steps, 0, dtype
    config.log.every, config.eval.every, config.eval.max_tokens, config.checkpoint.every = 1, 100, 0, steps
    config.sample.prompt, config.sample.max_new_tokens = "the ", 0
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = -1, 1, 1
    return config


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("curves")
    words = np.random.default_rng(0).choice(WORDS, 3000)
    documents = np.array_split(words, 300)
    (path / "text.jsonl").write_text("".join(json.dumps({"text": " ".join(d)}) + "\n" for d in documents))
    return path


# Among the slow tests: arithmetic that another run has, too.
SLOW = {(name, dtype) for name in ("shakespeare_char_cpu", "gpt2_124m", "scaling_small") for dtype in BARS}
SLOW |= {(name, "float32") for name in ("shakespeare_char", "large", "qwen3", "fineweb_edu_16m")}
SLOW |= {(name, "float64") for name in ("shakespeare_char", "large", "small", "qwen3", "fineweb_edu_16m")}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((name, dtype), id=f"{name}-{dtype}", marks=[pytest.mark.slow] if (name, dtype) in SLOW else [])
        for name in RUNS
        for dtype in BARS
    ],
)
def runs(request, place, tmp_path_factory) -> tuple[Config, Path, Path]:
    """(configuration, workdir of jaxgpt.train, workdir of torchgpt.train), both started from one directory."""
    name, dtype = request.param
    config = small_run(RUNS[name], place, dtype, FEWER_STEPS.get(name, STEPS))
    root = tmp_path_factory.mktemp(name)
    with contextlib.redirect_stdout(io.StringIO()):
        tokenizer = load_tokenizer(prepare(config.data, log=print))
        config.model.vocab_size = tokenizer.size
        start = str(root / "start")
        save_model(GPT(config.model).initialize(torch.Generator().manual_seed(1)), tokenizer, start)
        adopt_model(config, start)
        config.data.tokenizer = "char"  # the same one: the prepared data serve all runs
        for side in ("jax", "torch"):
            (root / side).mkdir()
        with jax.enable_x64(dtype == "float64"):
            assert JaxTrainer(config, root / "jax", start).run() == 0
        assert TorchTrainer(config, root / "torch", start, "cpu").run() == 0
    return config, root / "jax", root / "torch"


def curve(workdir: Path, key: str) -> np.ndarray:
    return np.asarray([row[key] for row in read_metrics(workdir / METRICS) if key in row])


def test_the_curves_are_one(runs, record_property):
    config, ours, twin = runs
    bar = BARS[config.train.dtype]
    losses, twins = curve(ours, "train_loss"), curve(twin, "train_loss")
    assert len(losses) == len(twins) == config.train.steps
    assert losses[-1] < 0.75 * losses[0]  # something was learned
    difference = float(np.abs(losses - twins).max())
    record_property("difference", difference)
    print(f"{ours.parent.name} {config.train.dtype}: {difference:.1e}")
    assert difference <= bar
    assert np.abs(curve(ours, "val_loss") - curve(twin, "val_loss")).max() <= bar
    norms, twin_norms = curve(ours, "grad_norm"), curve(twin, "grad_norm")
    assert (np.abs(norms - twin_norms) <= 100 * bar * norms.max()).all()


def test_the_learning_rate_is_the_schedules_at_every_step(runs):
    config, ours, twin = runs
    steps = config.train.steps
    expected = [learning_rate(step, config.optim, steps) for step in range(steps)]
    np.testing.assert_array_equal(curve(ours, "lr"), expected)
    np.testing.assert_array_equal(curve(twin, "lr"), expected)


def test_the_exported_models_are_one(runs):
    config, ours, twin = runs
    exports = [dict(open_hf_directory(workdir / EXPORT).parameters()) for workdir in (ours, twin)]
    assert exports[0].keys() == exports[1].keys()
    for name, array in exports[0].items():
        if name.endswith("attn.k.bias") and config.train.dtype == "float32":
            continue  # its gradient is mathematically zero: Adam walks along the signs of rounding errors
        largest = np.abs(array).max()
        tolerance = 1e-6 if config.train.dtype == "float64" else 2e-3  # float64 runs are exported in float32
        assert np.abs(array - exports[1][name]).max() <= tolerance * max(largest, 1e-2), name
