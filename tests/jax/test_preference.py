"""Direct preference optimization: the formula, accumulation, meshes, the reference's file, and whole runs."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs.schema import Config, DataConfig, OptimConfig, TrainConfig, gpt2, resolve_model
from data_prep.tokenizers import char_tokenizer
from jaxgpt.objective import make_objective
from jaxgpt.params import canonical_getter
from jaxgpt.preference import DPO, REFERENCE, dpo_sums
from jaxgpt.sharding import make_mesh
from jaxgpt.step import Steps
from scratchgpt.hf_directory import write_hf_directory
from tests.repo.warm_commands import Done, run_command

ROOT = Path(__file__).resolve().parents[2]
ALPHABET = "abcdefghijklmnopqrstuvwxyz .,!?0123456789"
ONE = np.float32(1.0)


def preferences(n: int = 60) -> list[dict]:
    """Pairs of which the polite answer is preferred; their lengths differ."""
    rng = random.Random(0)
    words = ["red", "blue", "green", "stone", "river", "cloud", "tree", "bird"]
    rows = []
    for i in range(n):
        word = rng.choice(words)
        rows.append(
            {"prompt": f"say {word} {i}", "chosen": f"yes, {word}.", "rejected": f"no {word}! " * rng.randint(1, 2)}
        )
    return rows


def write_start(directory: Path, seed: int = 0) -> None:
    """A Hugging Face directory of a small random model that reads characters."""
    tokenizer = char_tokenizer([ALPHABET])
    config = Config(
        model=resolve_model(gpt2(n_layer=2, n_head=2, n_embd=32, context_length=48, vocab_size=tokenizer.size)),
        train=TrainConfig(seed=seed, dtype="float32"),
    )
    steps = Steps(config, config.model, None, make_mesh(config))
    params = steps.initial_state()["params"]
    write_hf_directory(directory, config.model, canonical_getter(params), tokenizer)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a model, another one, and preferences."""
    path = tmp_path_factory.mktemp("place")
    write_start(path / "start")
    write_start(path / "other", seed=1)
    (path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in preferences()))
    return path


def adopted(place: Path, dropout: float = 0.0, **train) -> Config:
    from data_prep.starting_point import adopt_model

    config = Config(
        model=gpt2(context_length=48, dropout=dropout),
        data=DataConfig("toy", str(place / "pairs.jsonl"), val_fraction=0.3),
        train=TrainConfig(objective="dpo", batch_size=8, dtype="float32", **train),
        optim=OptimConfig(learning_rate=1e-3),
    )
    adopt_model(config, str(place / "start"))
    return config


def prepared(config: Config, place: Path, workdir: Path) -> tuple[DPO, Steps]:
    """Objective and steps, with the reference's log-probabilities computed."""
    objective = make_objective(config, lambda line: None)
    steps = Steps(config, objective.model, objective.loss_sums, make_mesh(config), objective.is_trained)
    workdir.mkdir(exist_ok=True)
    objective.prepare(steps, workdir, str(place / "start"))
    return objective, steps


def other_state(objective: DPO, steps: Steps, place: Path):
    """A state away from the reference, so that no margin is 0."""
    return steps.state_from(objective.starting_parameters(str(place / "other")))


def test_loss_and_gradient_are_those_of_the_formula():
    """In float64, against NumPy: -log sigmoid(beta ((log pi_w - log ref_w) - (log pi_l - log ref_l)))."""
    rng = np.random.default_rng(0)
    policy, reference = rng.normal(-40, 15, (2, 64, 2))
    policy[0], reference[0] = (-3000, -1), (-1, -3000)  # a margin whose exponential overflows
    lengths = np.full((64, 2), 9.0)
    lengths[-4:] = 0
    beta = 0.3
    margin = beta * ((policy - reference) @ [1, -1])
    expected = np.logaddexp(0, -margin)[:-4].sum()
    slope = -beta / (1 + np.exp(np.minimum(margin, 500)))
    slope[-4:] = 0
    with jax.enable_x64(True):
        gradient, sums = jax.grad(
            lambda p: (lambda s: (s.loss, s))(dpo_sums(p, reference, lengths, beta)), has_aux=True
        )(jnp.asarray(policy))
    assert float(sums.loss) == pytest.approx(expected, rel=1e-12)
    assert float(sums.weight) == 60
    np.testing.assert_allclose(gradient, slope[:, None] * [1, -1], atol=1e-12)
    assert float(sums.metrics["reward_margin"]) == pytest.approx(margin[:-4].sum())
    assert float(sums.metrics["reward_accuracy"]) == (margin[:-4] > 0).sum()
    chosen = beta * (policy - reference)[:-4, 0]
    assert float(sums.metrics["reward_chosen"]) == pytest.approx(chosen.sum())
    assert float(sums.metrics["preference_accuracy"]) == (policy[:-4, 0] > policy[:-4, 1]).sum()


def test_lengths_count_where_they_should():
    policy = jnp.array([[-10.0, -8.0], [-1.0, -1.0]])
    sums = dpo_sums(policy, jnp.zeros((2, 2)), jnp.array([[10.0, 4.0], [1.0, 1.0]]), 0.1)
    assert float(sums.metrics["preference_accuracy"]) == 0  # a tie is none
    assert float(sums.metrics["preference_accuracy_per_token"]) == 1


def test_a_model_at_its_reference_has_no_reward(place, tmp_path):
    objective, steps = prepared(adopted(place), place, tmp_path / "run")
    params = steps.state_from(objective.starting_parameters(str(place / "start")))["params"]
    for batch in objective.data.validation_batches(8):
        sums = steps.validate(params, batch)
        assert float(sums.loss / sums.weight) == pytest.approx(np.log(2), abs=1e-5)
        assert abs(float(sums.metrics["reward_margin"])) < 1e-4


def test_the_starting_model_is_measured_like_any_other(place, tmp_path):
    config, lines = adopted(place), []
    _, steps = prepared(config, place, tmp_path / "run")
    objective = make_objective(config, lines.append)
    objective.prepare(steps, tmp_path / "run", str(place / "start"))
    params = steps.state_from(objective.starting_parameters(str(place / "start")))["params"]
    parts = [steps.validate(params, batch) for batch in objective.data.validation_batches(4)]
    weight = sum(float(p.weight) for p in parts)
    plain, per_token = (
        sum(float(p.metrics[name]) for p in parts) / weight
        for name in ("preference_accuracy", "preference_accuracy_per_token")
    )
    told = f"preference accuracy {plain:.4f}, preference accuracy per token {per_token:.4f}"
    assert lines[-1] == f"validation of the starting model: {told}"


def test_the_reference_is_without_dropout_and_training_with_it(place, tmp_path):
    plain, _ = prepared(adopted(place), place, tmp_path / "plain")
    dropped, steps = prepared(adopted(place, dropout=0.5), place, tmp_path / "dropped")
    np.testing.assert_array_equal(plain.data.reference["train"], dropped.data.reference["train"])
    state = steps.state_from(dropped.starting_parameters(str(place / "start")))
    _, metrics = steps.update(state, dropped.data.batch(0), np.float32(0))
    assert abs(float(metrics["others"]["reward_chosen"])) > 0.01


def test_one_by_eight_micro_batches_are_one_big_batch(place, tmp_path):
    results = []
    for micro in (8, 1):
        objective, steps = prepared(adopted(place, micro_batch_size=micro), place, tmp_path / "run")
        batch = objective.data.batch(0)
        assert batch["inputs"].shape[:3] == (8 // micro, micro, 2)
        state, metrics = steps.update(other_state(objective, steps, place), batch, ONE)
        results.append((jax.tree.map(np.asarray, state["params"]), metrics))
    (big, m1), (small, m2) = results
    assert float(m1["loss"]) == pytest.approx(float(m2["loss"]), rel=1e-5)
    assert float(m1["grad_norm"]) == pytest.approx(float(m2["grad_norm"]), rel=1e-5)
    for name, value in m1["others"].items():
        assert float(value) == pytest.approx(float(m2["others"][name]), abs=1e-5), name
    for name in big:
        np.testing.assert_allclose(big[name], small[name], atol=2e-4, err_msg=name)


MESH = """
import sys, jax
devices = int(sys.argv[1])
jax.config.update("jax_num_cpu_devices", devices)
from pathlib import Path
from tests.jax.test_preference import *
from tests.repo.warm_commands import Done, run_command
place, workdir = Path(sys.argv[2]), Path(sys.argv[3])
config = adopted(place)
objective, steps = prepared(config, place, workdir)
assert dict(steps.mesh.shape)["data"] == devices
state, row = other_state(objective, steps, place), []
for step in range(2):
    state, metrics = steps.update(state, objective.data.batch(step), ONE)
    row += [float(metrics["loss"]), float(metrics["grad_norm"])]
print(json.dumps({"row": row, "reference": objective.data.reference["val"].tolist()}))
"""


def test_two_devices_train_like_one(place, tmp_path):
    found = []
    for devices in (1, 2):
        workdir = tmp_path / str(devices)
        done = subprocess.run(
            [sys.executable, "-c", MESH, str(devices), str(place), str(workdir)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | {"NPROC": "4"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "nvoluntary full rematerialization" not in done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    np.testing.assert_allclose(found[0]["row"], found[1]["row"], rtol=1e-4)
    np.testing.assert_allclose(found[0]["reference"], found[1]["reference"], rtol=1e-5)


def damage_a_value(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [damage_a_value, cut_short, empty])
def test_a_damaged_reference_is_named_and_computed_again(place, tmp_path, harm):
    config, lines = adopted(place), []
    objective, steps = prepared(config, place, tmp_path / "run")
    path = tmp_path / "run" / REFERENCE
    expected = objective.data.reference
    harm(path)
    objective = make_objective(config, lines.append)
    objective.prepare(steps, tmp_path / "run", str(place / "start"))
    assert any(f"{path} is damaged and computed again" in line for line in lines)
    for split, values in expected.items():
        np.testing.assert_array_equal(objective.data.reference[split], values)
    for split, values in load_file(path).items():
        np.testing.assert_array_equal(values, expected[split])
    assert not list((tmp_path / "run").glob(".*tmp*"))


def test_the_reference_of_another_model_is_not_taken(place, tmp_path):
    config, lines = adopted(place), []
    objective, steps = prepared(config, place, tmp_path / "run")
    before = load_file(tmp_path / "run" / REFERENCE)
    objective = make_objective(config, lines.append)
    objective.prepare(steps, tmp_path / "run", str(place / "other"))
    assert any("is of other data or another starting model and computed again" in line for line in lines)
    assert np.abs(objective.data.reference["val"] - before["val"]).max() > 0.1


def test_an_intact_reference_is_taken_as_it_is(place, tmp_path):
    config, lines = adopted(place), []
    first, steps = prepared(config, place, tmp_path / "run")
    again = make_objective(config, lines.append)
    again.prepare(steps, tmp_path / "run", str(place / "start"))
    assert not any("computing the reference" in line for line in lines)
    np.testing.assert_array_equal(first.data.reference["train"], again.data.reference["train"])


# --- whole runs ------------------------------------------------------------------------------------------------------

TINY = [
    f"--config={ROOT / 'configs' / 'dpo_small.py'}",
    "--init_from=start",
    "--config.data.dataset=toy",
    "--config.data.source=pairs.jsonl",
    "--config.data.val_fraction=0.3",
    "--config.train.sequence_length=48",
    "--config.train.batch_size=4",
    "--config.train.steps=24",
    "--config.optim.learning_rate=0.003",
    "--config.optim.warmup_steps=0",
    "--config.log.every=1",
    "--config.eval.every=12",
    "--config.checkpoint.every=6",
    "--config.sample.prompt=say tree",
    "--config.sample.max_new_tokens=20",
    "--config.sample.during=0",
    "--config.log.report=False",
]


def command(*arguments: str, cwd: Path, module: str = "jaxgpt.train") -> Done:
    return run_command(module, *arguments, cwd=cwd, limit_s=600)


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir: Path) -> list[tuple]:
    """What must not depend on interruptions: everything but the speed."""
    return [tuple(sorted((k, v) for k, v in row.items() if k != "tokens_per_second")) for row in rows(workdir)]


@pytest.fixture(scope="module")
def whole(place):
    """One finished run."""
    done = command(*TINY, "--workdir=whole", cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "whole"


def test_a_run_learns_the_preference_and_exports_a_model(place, whole):
    metrics = rows(whole)
    validated = [r for r in metrics if "val_loss" in r]
    trained = [r for r in metrics if "train_loss" in r]
    assert [r["step"] for r in validated] == [12, 24]
    assert trained[0]["train_loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert trained[0]["train_reward_margin"] == pytest.approx(0, abs=1e-4)
    assert validated[-1]["val_loss"] < 0.5
    assert validated[-1]["val_reward_margin"] > 0.5
    assert validated[-1]["val_reward_accuracy"] > 0.9
    for row in (trained[-1], validated[-1]):
        kind = "train" if "train_loss" in row else "val"
        assert row[f"{kind}_reward_margin"] == pytest.approx(
            row[f"{kind}_reward_chosen"] - row[f"{kind}_reward_rejected"], abs=1e-5
        )
    assert (whole / "samples.txt").read_text().startswith("say tree")
    assert (whole / "export" / "model.safetensors").stat().st_size > 0
    again = command(
        "--checkpoint=whole", "--prompt=say bird", "--max_new_tokens=5", cwd=place, module="jaxgpt.generate"
    )
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_an_interrupted_run_ends_like_the_undisturbed_one(place, whole):
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxgpt.train", *TINY, "--workdir=killed"],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step 14/"):
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.read()
    process.wait()
    reference = (place / "killed" / REFERENCE).read_bytes()
    again = command(*TINY, "--workdir=killed", cwd=place)
    assert again.returncode == 0, again.stderr
    assert "resuming killed at step " in again.stdout
    assert "computing the reference" not in again.stdout
    assert (place / "killed" / REFERENCE).read_bytes() == reference
    assert losses(place / "killed") == losses(whole)
    model = "export/model.safetensors"
    assert (place / "killed" / model).read_bytes() == (whole / model).read_bytes()


REFUSED = {
    "no model to start from": (["--init_from="], "needs --init_from=HF_DIR"),
    "no model but a tokenizer": (["--init_from=", "--config.data.tokenizer=start"], "needs --init_from=HF_DIR"),
    "beta": (["--config.dpo.beta=0"], "dpo.beta=0.0 must be greater than 0"),
    "another start": (["--workdir=whole", "--init_from=other"], "holds a run with reference="),
    "other pairs": (["--workdir=whole", "--config.data.val_fraction=0.2"], "holds a run with data="),
    "rows without preferences": (["--config.data.source=texts.jsonl"], "there is no column 'chosen'"),
    "no such data": (["--config.data.source=", "--config.data.dataset=mine"], "no fine-tuning data set named 'mine'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_sentence(place, whole, case):
    (place / "texts.jsonl").write_text('{"text": "no pair"}\n')
    arguments, message = REFUSED[case]
    done = command(*TINY, "--workdir=bad", *arguments, cwd=place)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_the_twin_names_the_trainer_that_can(place):
    done = command(*TINY, "--workdir=twin", cwd=place, module="torchgpt.train")
    assert done.returncode == 1
    assert done.stderr.startswith("error: train.objective=dpo ")
    assert "python -m jaxgpt.train" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (place / "twin").exists()
