"""Several processes on loopback: the same training as one, files of the first alone, and one step at which all stop."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxgpt.distributed import join, launcher
from jaxgpt.runtime import cpu_thread_environment
from scratchgpt.errors import UserError
from tests.jax.test_train import TINY

ROOT = Path(__file__).resolve().parents[2]
DEVICES = 4
ARGUMENTS = [
    *TINY,
    "--config.mesh.data=1",
    "--config.mesh.fsdp=2",
    "--config.mesh.tensor=2",
    "--config.train.batch_size=8",
    "--config.train.micro_batch_size=4",
    "--config.train.steps=12",
    "--config.train.loss_chunk=16",
    "--config.eval.every=6",
    "--config.checkpoint.every=4",
    "--config.sample.max_new_tokens=20",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("place")
    (path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. how vexingly quick foxes jump! " * 90)
    run(path, "one", 1)
    return path


def launch(place: Path, workdir: str, count: int, *arguments: str) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = cpu_thread_environment(DEVICES) | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "jaxgpt.train", *ARGUMENTS, f"--workdir={workdir}", *arguments]
    command += [f"--config.mesh.cpu_devices={DEVICES // count}"]
    if count > 1:
        command += [f"--coordinator_address={address}", f"--num_processes={count}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen(command + [f"--process_id={i}"] * (count > 1), cwd=place, env=environment, **pipes)
        for i in range(count)
    ]


def run(place: Path, workdir: str, count: int, *arguments: str) -> list[str]:
    """What each process printed; all must succeed."""
    processes = launch(place, workdir, count, *arguments)
    outputs = [process.communicate() for process in processes]
    for process, (stdout, stderr) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, stdout + stderr
    return [stdout for stdout, _ in outputs]


def assert_same_training(place: Path, one: str, other: str) -> None:
    found = []
    for name in (one, other):
        lines = (place / name / "metrics.jsonl").read_text().splitlines()
        found.append([{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"} for line in lines])
    assert [row.keys() for row in found[0]] == [row.keys() for row in found[1]]
    for a, b in zip(*found, strict=True):
        assert list(a.values()) == pytest.approx(list(b.values()), rel=2e-5), (a, b)
    weights = [load_file(place / name / "export" / "model.safetensors") for name in (one, other)]
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, atol=1e-4 * np.abs(value).max(), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_train_what_one_trains(place, count):
    first, *others = run(place, f"of {count}", count)
    assert "step 12/12" in first
    for word in (
        "step",
        "loss",
        "samples",
    ):  # only the first speaks; Gloo's own lines come from several threads at once
        assert word in first
        assert word not in "".join(others)
    assert_same_training(place, "one", f"of {count}")
    assert (place / "one" / "samples.txt").read_text() == (place / f"of {count}" / "samples.txt").read_text()


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step_and_another_number_of_them_resumes(place):
    first, second = processes = launch(place, "stopped", 2)
    for line in first.stdout:
        if line.startswith("step 3/"):
            second.send_signal(signal.SIGTERM)
            break
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2, outputs
    assert "run again to resume" in outputs[0][0]
    (resumed,) = run(place, "stopped", 1)
    assert "resuming stopped at step" in resumed
    assert_same_training(place, "one", "stopped")


@pytest.mark.slow
def test_a_failure_of_the_first_process_ends_all(place):
    (place / "broken" / "checkpoints" / "00000004").mkdir(parents=True)
    (place / "broken" / "checkpoints" / "00000004.json").write_text("{}")
    outputs = [(*p.communicate(), p.returncode) for p in launch(place, "broken", 2)]
    assert all(code != 0 for _, _, code in outputs)
    assert "no checkpoint in" in outputs[0][1]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, None),  # the batch script itself, not a task of srun
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "8"}, "slurm"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "ompi"),
        ({"SLURM_STEP_NUM_TASKS": ""}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "tpu"),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "a:1"}, "tpu"),
    ],
)
def test_the_environment_tells_who_started_several_processes(environment, expected):
    assert launcher(environment) == expected


@pytest.mark.parametrize(
    ("address", "count", "number", "sentence"),
    [
        ("localhost:1", 0, 0, "needs --num_processes and --process_id"),
        ("localhost:1", 2, 2, "not 2 and 2"),
        ("localhost:1", 2, -1, "not 2 and -1"),
        ("localhost", 1, 0, "must be HOST:PORT"),
        ("localhost:99999", 1, 0, "with a port from 1 to 65535"),
        ("", 2, -1, "need --coordinator_address"),
        ("", 0, 0, "need --coordinator_address"),
    ],
)
def test_half_an_address_is_refused(address, count, number, sentence):
    with pytest.raises(UserError, match=sentence):
        join("auto", address, count, number)


def test_one_process_joins_nobody(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "MEGASCALE_")):
            monkeypatch.delenv(name)
    join("auto")
