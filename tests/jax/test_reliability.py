"""A run that is stopped, damaged, moved to other devices or out of disk loses nothing, and says what happened."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxgpt.checkpoint import Checkpoints
from scratchgpt.errors import UserError
from scratchgpt.standing import Standing
from tests.jax.test_train import ROOT, SENTENCES, TINY, losses, rows
from tests.repo.warm_commands import run_command

ARGUMENTS = [*TINY, "--config.eval.every=10", "--config.train.batch_size=8"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a text and one finished run of 40 steps, validated every 10."""
    path = tmp_path_factory.mktemp("place")
    (path / "text.txt").write_text(SENTENCES * 60)
    train(path, "whole")
    return path


def train(place: Path, workdir: str, *arguments: str, status: int = 0):
    done = run_command("jaxgpt.train", *ARGUMENTS, f"--workdir={workdir}", *arguments, cwd=place, limit_s=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def copy(place: Path, name: str) -> Path:
    shutil.copytree(place / "whole", place / name)
    return place / name


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["1", "1,2,4,8"])
def test_a_run_killed_again_and_again_ends_like_the_undisturbed_one(devices):
    steps = 200 if devices == "1" else 100
    arguments = ["--kills=4", "--in_save=2", f"--devices={devices}", "--seed=3", f"--steps={steps}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "inside a save" in done.stdout.splitlines()[-2]


@pytest.mark.slow
def test_a_checkpoint_goes_on_over_more_and_fewer_devices(place):
    """1 device to step 10, 4 to step 20, 2 to step 30, 1 to the end: the losses of the run on one."""
    for number, (devices, until) in enumerate([(1, 10), (4, 20), (2, 30), (1, 40)]):
        if number == 0:
            run = place / "moved"
            interrupt(place, "moved", after=until)
            continue
        mesh = ["--config.mesh.data=1", "--config.mesh.fsdp=-1", f"--config.mesh.cpu_devices={devices}"]
        if until < 40:
            interrupt(place, "moved", *mesh, after=until)
        else:
            train(place, "moved", *mesh)
    for mine, undisturbed in zip(rows(run), rows(place / "whole"), strict=True):
        assert mine.keys() == undisturbed.keys()
        for key in mine.keys() - {"tokens_per_second"}:
            assert mine[key] == pytest.approx(undisturbed[key], rel=1e-5), (key, mine["step"])


def interrupt(place: Path, workdir: str, *arguments: str, after: int, times: int = 1) -> int:
    """Start a run, send SIGINT once it shows step ``after``, and wait; returns the exit status."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxgpt.train", *ARGUMENTS, f"--workdir={workdir}", *arguments],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if line.startswith(f"step {after}/"):
            for _ in range(times):
                process.send_signal(signal.SIGINT)
            break
    process.communicate()
    return process.returncode


@pytest.mark.slow
def test_a_run_that_no_longer_gains_ends_early_and_a_resumed_one_at_the_same_step(place):
    flat = ["--config.optim.muon_learning_rate=0", "--config.optim.learning_rate=0", "--config.eval.patience=2"]
    flat += ["--config.optim.embedding_learning_rate=0", "--config.train.steps=100"]
    done = train(place, "flat", *flat)
    assert "step 30: no gain in 2 validations, the run ends" in done.stdout
    assert max(row["step"] for row in rows(place / "flat")) == 30
    assert (place / "flat" / "export" / "model.safetensors").exists()
    assert interrupt(place, "stopped", *flat, after=23) == 128 + signal.SIGINT
    train(place, "stopped", *flat)
    assert losses(place / "stopped") == losses(place / "flat")
    again = train(place, "flat", *flat)
    assert "resuming flat at step 30" in again.stdout
    assert losses(place / "stopped") == losses(place / "flat")


def test_the_standing_of_a_run():
    standing = Standing()
    bests = [standing.evaluated(loss) for loss in (3.0, 3.5, float("nan"), 2.5, 2.5)]
    assert bests == [True, False, False, True, False]
    assert standing == Standing(2.5, 1, 0)
    assert [standing.has_stalled(patience) for patience in (0, 1, 2)] == [False, True, False]
    for finite in (False, False):
        standing.stepped(finite)
    assert standing.nonfinite_steps == 2
    standing.stepped(True)
    assert standing.nonfinite_steps == 0


def test_steps_that_are_not_finite_are_not_applied_and_too_many_end_the_run(place):
    run = copy(place, "hot")
    hot = ["--config.optim.learning_rate=1e38", "--config.optim.clip_norm=0", "--config.train.steps=60"]
    hot += ["--config.train.max_nonfinite_steps=3", "--config.optim.weight_decay=1e37"]
    done = train(place, "hot", *hot, status=1)
    assert "is not applied: its loss is nan" in done.stdout
    assert "after 3 such steps in a row (train.max_nonfinite_steps) the run ends" in done.stderr
    assert "of epoch" in done.stderr  # where its batch stands in the data
    assert Checkpoints(run / "checkpoints").newest_good() == 40
    assert any(row.get("train_loss", 0) is None for row in rows(run))


def test_a_replay_shows_the_step_as_it_was(place):
    for step in (33, 40):
        done = run_command("jaxgpt.train", "--workdir=whole", f"--replay={step}", cwd=place, limit_s=200)
        assert done.returncode == 0, done.stderr
        assert f"step {step}, replayed from the checkpoint of step 30" in done.stdout
        (row,) = (r for r in rows(place / "whole") if r["step"] == step and "train_loss" in r)
        assert f"loss {row['train_loss']:.6g}, gradient norm" in done.stdout
        norm = float(done.stdout.split("gradient norm ")[1].split()[0])
        assert norm == pytest.approx(row["grad_norm"], rel=1e-5)
        parts = [line.split() for line in done.stdout.splitlines() if line.startswith(("blocks.", "token", "head"))]
        assert [part[0] for part in parts if part[0].startswith("blocks.1")] == ["blocks.1.attn", "blocks.1.mlp"]
        assert np.sqrt(sum(float(part[1]) ** 2 for part in parts)) == pytest.approx(norm, rel=1e-2)


def test_half_a_checkpoint_is_named_and_passed_over_and_leftovers_go(place):
    run = copy(place, "half")
    checkpoints = run / "checkpoints"
    shutil.rmtree(checkpoints / "00000040")
    (checkpoints / "00000035.orbax-checkpoint-tmp-1").mkdir()
    (checkpoints / "00000036").mkdir()  # arrays of a save that was killed before its record
    (checkpoints / "00000020").mkdir(exist_ok=True)
    (checkpoints / "00000020.json.discarded").write_text("{}")
    done = train(place, "half")
    assert "checkpoint 40 is damaged and passed over" in done.stdout
    assert "resuming half at step 30 of 40" in done.stdout
    assert losses(run) == losses(place / "whole")
    left = {path.name for path in checkpoints.iterdir()}
    assert {name.split(".")[0] for name in left} <= {"00000030", "00000040"} | {
        name.split(".")[0] for name in os.listdir(place / "whole" / "checkpoints")
    }
    assert not any("tmp" in name or "discarded" in name for name in left)


@pytest.mark.parametrize("left", ["00000010", ".00000010.json.tmp-7", "00000010.orbax-checkpoint-tmp"])
def test_a_first_save_that_was_killed_is_no_progress_that_was_lost(tmp_path, left):
    checkpoints = Checkpoints(tmp_path, log=lambda _: None)
    for name in {"00000010", left}:
        (tmp_path / name).write_text("{") if ".json" in name else (tmp_path / name).mkdir()
    assert checkpoints.newest_good() is None
    assert not list(tmp_path.iterdir())
    (tmp_path / "00000010.json").write_text("{")
    with pytest.raises(UserError, match="no checkpoint in"):
        checkpoints.newest_good()


def test_a_run_without_its_checkpoints_starts_over_only_when_told_to(place):
    run = copy(place, "bare")
    shutil.rmtree(run / "checkpoints")
    before = (run / "metrics.jsonl").read_bytes()
    done = train(place, "bare", status=1)
    assert "has reached step 40, by its metrics.jsonl, but holds no checkpoint" in done.stderr
    done = train(place, "bare", "--start_over")
    assert "starting over: what bare held is in bare/before-1" in done.stdout
    assert (run / "before-1" / "metrics.jsonl").read_bytes() == before
    assert losses(run) == losses(place / "whole")
    assert "before-2" in train(place, "bare", "--start_over").stdout


def test_a_second_interrupt_ends_the_run_at_once_and_costs_nothing_that_was_saved(place):
    assert interrupt(place, "impatient", after=23, times=2) == 130
    train(place, "impatient")
    assert losses(place / "impatient") == losses(place / "whole")


def test_the_lock_of_a_dead_process_is_no_obstacle(place):
    run = copy(place, "stale")
    (run / ".lock").write_text("999999")
    train(place, "stale")


@contextlib.contextmanager
def small_disk(path: Path, size: str):
    """A file system of its own at ``path``, where this machine lets us make one."""
    path.mkdir()
    make = ["mount", "-t", "tmpfs", "-o", f"size={size}", "x", str(path)]
    if not shutil.which("mount") or os.getuid() or subprocess.run(make).returncode:
        pytest.skip("making a small file system takes root")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_full_disk_ends_the_run_with_a_sentence_and_leaves_the_last_good_checkpoint(place):
    with small_disk(place / "disk", "8m"):
        train(place, "disk/run", "--config.train.steps=20", "--config.checkpoint.every=10")
        used = sum(f.stat().st_size for f in (place / "disk").rglob("*") if f.is_file())
        (place / "disk" / "filler").write_bytes(b"x" * (8 * 2**20 - used - 200_000))
        done = train(place, "disk/run", "--config.train.steps=40", "--config.checkpoint.every=10", status=1)
        assert "no space left on the disk" in done.stderr.splitlines()[-1]
        checkpoints = Checkpoints(place / "disk" / "run" / "checkpoints")
        assert checkpoints.newest_good() == 20
        (place / "disk" / "filler").unlink()
        done = train(place, "disk/run", "--config.train.steps=40", "--config.checkpoint.every=10")
        assert "resuming disk/run at step 20 of 40" in done.stdout


def test_parameters_that_are_not_finite_are_never_saved(place):
    from jaxgpt.step import _are_finite

    assert _are_finite({"a": np.ones(3), "b": np.zeros((2, 2))})
    assert not _are_finite({"a": np.ones(3), "b": np.array([1, np.inf])})


def test_metrics_have_no_lines_twice_and_none_missing(place):
    steps = [row["step"] for row in rows(place / "whole") if "train_loss" in row]
    assert steps == list(range(1, 41))
    json.dumps(rows(place / "whole"), allow_nan=False)


def test_starting_over_moves_nothing_before_the_run_is_accepted(place):
    run = copy(place, "kept")
    done = train(place, "kept", "--start_over", "--config.data.source=nowhere.txt", "--config.data.dataset=x", status=1)
    assert "nowhere.txt" in done.stderr
    done = train(place, "kept", "--start_over", "--init_from=kept/export", status=1)
    assert "lies in the workdir that --start_over would move" in done.stderr
    assert not list(run.glob("before-*"))
    (run / "before-1-good").mkdir()  # the user's own
    assert "resuming kept at step 40" in train(place, "kept").stdout


def test_what_a_run_is_of_must_be_known_to_resume_it(place):
    run = copy(place, "unknown")
    (run / "identity.json").unlink()
    assert "holds checkpoints but no identity.json" in train(place, "unknown", status=1).stderr


def test_metrics_that_were_shortened_are_told_of(place):
    run = copy(place, "shortened")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:11]))
    assert "was shortened: its lines from step 11 to 40 are missing" in train(place, "shortened").stdout


def test_what_a_killed_export_left_is_cleared_and_what_it_was_about_to_replace_comes_back(tmp_path):
    from scratchgpt.workdir import locked

    for name in (".export.tmp-7", ".export.old-7", ".other.old-7", "other", ".lock.d"):
        (tmp_path / name).mkdir()
    (tmp_path / ".export.old-7" / "config.json").write_text("{}")
    (tmp_path / ".metrics.jsonl.tmp-7").write_text("x")
    with locked(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {"export", "other", ".lock", ".lock.d"}
    assert (tmp_path / "export" / "config.json").exists()


def test_a_replay_knows_where_its_run_began_and_says_so_if_it_cannot_be_had_again(place):
    tuned = ["--init_from=whole/export", "--config.train.steps=12", "--config.optim.muon_learning_rate=0.001"]
    train(place, "tuned", *tuned, "--config.checkpoint.every=12", "--config.eval.every=0")
    (row,) = (r for r in rows(place / "tuned") if r["step"] == 3)
    done = run_command("jaxgpt.train", "--workdir=tuned", "--replay=3", cwd=place, limit_s=200)
    assert f"loss {row['train_loss']:.6g}, gradient norm" in done.stdout, done.stderr
    assert "NOT WHAT WAS LOGGED" not in done.stdout
    train(place, "tuned", *tuned[:1], "--config.train.steps=20", "--config.eval.every=0")
    done = run_command("jaxgpt.train", "--workdir=tuned", "--replay=3", cwd=place, limit_s=200)
    assert "THIS IS NOT WHAT WAS LOGGED" in done.stdout, done.stdout + done.stderr
