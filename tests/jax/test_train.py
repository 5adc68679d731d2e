"""Whole runs of the commands, as a user starts them."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxgpt.checkpoint import Checkpoints
from tests.repo.warm_commands import Done, run_command

ROOT = Path(__file__).resolve().parents[2]
SENTENCES = (
    "the quick brown fox jumps over the lazy dog. pack my box with five dozen jugs. how vexingly quick foxes jump! "
)

TINY = [
    f"--config={ROOT / 'configs' / 'small.py'}",
    "--config.data.dataset=foxes",
    "--config.data.source=text.txt",
    "--config.model.n_layer=2",
    "--config.model.n_head=2",
    "--config.model.n_embd=32",
    "--config.model.context_length=16",
    "--config.train.batch_size=4",
    "--config.train.steps=40",
    "--config.log.every=1",
    "--config.eval.every=20",
    "--config.checkpoint.every=10",
    "--config.sample.prompt=the ",
    "--config.sample.max_new_tokens=40",
    "--config.sample.during=0",
    "--config.log.report=False",
]


def command(module: str, *arguments: str, cwd: Path) -> Done:
    return run_command(module, *arguments, cwd=cwd, limit_s=600)


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir: Path) -> list[tuple]:
    """What must not depend on interruptions: everything but the speed."""
    return [tuple(sorted((k, v) for k, v in row.items() if k != "tokens_per_second")) for row in rows(workdir)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a text and one finished run in it."""
    path = tmp_path_factory.mktemp("place")
    (path / "text.txt").write_text(SENTENCES * 60)
    done = command("jaxgpt.train", *TINY, "--workdir=whole", "--profile=2", cwd=path)
    assert done.returncode == 0, done.stderr
    return path


def test_a_workdir_holds_what_the_contract_says(place):
    run = place / "whole"
    for name in ("config.json", "metrics.jsonl", "loss.png", "samples.txt", "export/config.json", "export/README.md"):
        assert (run / name).stat().st_size > 0, name
    assert (run / "samples.txt").read_text().startswith("the ")
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    metrics = rows(run)
    assert [r["step"] for r in metrics if "train_loss" in r] == list(range(1, 41))
    assert [r["step"] for r in metrics if "val_loss" in r] == [20, 40]
    assert metrics[-1]["val_loss"] < 0.7 * metrics[0]["train_loss"]
    assert {"tokens", "lr", "tokens_per_second", "grad_norm"} <= metrics[0].keys()
    assert not list(run.glob("**/*tmp*"))


def test_a_profile_shows_the_update(place):
    (trace,) = (place / "whole" / "profile").rglob("perfetto_trace.json.gz")
    names = [event.get("name", "") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]]
    assert "PjitFunction(_update)" in names


def test_only_the_latest_and_the_best_checkpoints_stay(place):
    kept = {p.stem for p in (place / "whole" / "checkpoints").glob("*.json")}
    assert {"00000030", "00000040"} <= kept
    assert len(kept) <= 3


def test_a_finished_run_is_not_trained_again(place):
    before = losses(place / "whole")
    again = command("jaxgpt.train", *TINY, "--workdir=whole", cwd=place)
    assert again.returncode == 0, again.stderr
    assert "resuming whole at step 40 of 40" in again.stdout
    assert losses(place / "whole") == before


def interrupted(place: Path, name: str, *, at: int, number: int) -> Path:
    """Start a run, send it a signal once metrics show step ``at``, and wait for its end."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxgpt.train", *TINY, f"--workdir={name}"],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if line.startswith(f"step {at}/"):
            process.send_signal(number)
            break
    rest = process.stdout.read()
    process.wait()
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number, rest
        assert "run again to resume" in rest
    return place / name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_an_interrupted_run_ends_like_the_undisturbed_one(place, number):
    run = interrupted(place, number.name, at=23, number=number)
    again = command("jaxgpt.train", *TINY, f"--workdir={run.name}", cwd=place)
    assert again.returncode == 0, again.stderr
    assert f"resuming {run.name} at step " in again.stdout
    assert losses(run) == losses(place / "whole")
    for name in ("export/model.safetensors", "samples.txt"):
        assert (run / name).read_bytes() == (place / "whole" / name).read_bytes(), name


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(place):
    run = place / "damaged"
    shutil.copytree(place / "whole", run)
    victim = max((run / "checkpoints" / "00000040").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    done = command("jaxgpt.train", *TINY, "--workdir=damaged", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "checkpoint 40 is damaged and passed over" in done.stdout
    assert "resuming damaged at step 30" in done.stdout
    checkpoints = Checkpoints(run / "checkpoints")
    assert 40 in checkpoints.records()
    assert all(checkpoints.verify(step) is None for step in checkpoints.records())
    assert losses(run) == losses(place / "whole")


def test_the_three_ways_to_write_agree(place):
    """jaxgpt from the workdir and from its export, torchgpt from the export: one greedy text."""
    flags = ["--prompt=how ", "--max_new_tokens=60", "--temperature=0"]
    texts = []
    for module, checkpoint in (
        ("jaxgpt.generate", "whole"),
        ("jaxgpt.generate", "whole/export"),
        ("torchgpt.generate", "whole"),
    ):
        done = command(module, f"--checkpoint={checkpoint}", *flags, cwd=place)
        assert done.returncode == 0, done.stderr
        texts.append(done.stdout)
    assert texts[0] == texts[1] == texts[2]
    assert len(texts[0]) > 40


def test_export_of_a_chosen_step(place):
    done = command("jaxgpt.export", "--workdir=whole", "--out=latest", "--step=latest", cwd=place)
    assert done.returncode == 0, done.stderr
    assert (place / "latest" / "model.safetensors").exists()
    bad = command("jaxgpt.export", "--workdir=whole", "--out=other", "--step=7", cwd=place)
    assert bad.returncode == 1
    assert "has no checkpoint '7'" in bad.stderr
    assert not (place / "other").exists()


def test_a_run_may_start_from_an_exported_model(place):
    steps = ["--config.train.steps=5", "--config.checkpoint.every=5", "--config.eval.every=0"]
    done = command("jaxgpt.train", *TINY, *steps, "--workdir=tuned", "--init_from=whole/export", cwd=place)
    assert done.returncode == 0, done.stderr
    assert rows(place / "tuned")[0]["train_loss"] < rows(place / "whole")[0]["train_loss"] / 2


BAD = {
    "unknown key": (
        ["--config.model.n_layers=2"],
        "unknown configuration key 'model.n_layers'; the nearest valid key is 'model.n_layer'",
    ),
    "key of no name like it": (["--config.eval.interval=2"], "the keys of 'eval' are every, patience"),
    "key of another section": (["--config.train.lerning_rate=2"], "the nearest valid key is 'optim.learning_rate'"),
    "wrong type": (["--config.train.steps=many"], "flag --config.train.steps=many: not a whole number"),
    "no number": (["--config.optim.learning_rate=high"], "flag --config.optim.learning_rate=high: not a number"),
    "heads": (["--config.model.n_head=5"], "model.n_head=5 does not divide model.n_embd=32"),
    "context": (["--config.model.context_length=0"], "model.context_length=0 must be at least 1"),
    "mesh": (["--config.mesh.cpu_devices=3"], "do not divide over the mesh's data x fsdp = 3 devices"),
    "missing run file": (["--config=nowhere.py"], "there is no run file 'nowhere.py'"),
    "missing text": (["--config.data.source=nowhere.txt"], "nowhere.txt"),
    "text too short": (["--config.model.context_length=100000"], "100000"),
    "other batch": (["--workdir=whole", "--config.train.batch_size=8"], "batch_size=4"),
    "no such start": (["--init_from=nowhere"], "nowhere does not exist"),
    "workdir is a file": (["--workdir=text.txt"], "text.txt"),
    "no validation text": (["--config.data.val_fraction=0", "--config.data.dir=elsewhere"], "at least 2 are needed"),
    "top_p": (["--config.sample.top_p=0"], "sample.top_p=0.0 must be greater than 0"),
    "fewer steps than done": (
        ["--workdir=whole", "--config.train.steps=20"],
        "stands at step 40, beyond train.steps=20",
    ),
    "other optimizer": (["--workdir=whole", "--config.optim.optimizer=adamw"], "optimizer='muon'"),
    "other depth": (  # what differs, not two whole models
        ["--workdir=whole", "--config.model.n_layer=1"],
        "model={'n_layer': 2}, this configuration has {'n_layer': 1}",
    ),
    "batch beyond reason": (["--config.train.batch_size=100000000000"], "train.batch_size"),
    "workdir that cannot be": (["--workdir=/proc/none"], "cannot write /proc/none"),
    "stray argument": (["steps=3"], "unexpected argument 'steps=3'"),
    "unknown prompt character": (["--config.sample.prompt=\u00e9", "--config.train.steps=2"], "U+00E9"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(place, case):
    arguments, message = BAD[case]
    done = run_command("jaxgpt.train", *TINY, "--workdir=bad", *arguments, cwd=place)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_dtypes_train_and_write(place, dtype):
    short = [f"--config.train.dtype={dtype}", "--config.train.steps=6", "--config.sample.max_new_tokens=30"]
    done = command("jaxgpt.train", *TINY, *short, f"--workdir={dtype}", cwd=place)
    assert done.returncode == 0, done.stderr
    done = command("jaxgpt.generate", f"--checkpoint={dtype}", "--prompt=the", "--max_new_tokens=5", cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the")


def test_records_that_are_gone_do_not_start_the_run_over(place):
    run = place / "bare"
    shutil.copytree(place / "whole", run)
    for record in (run / "checkpoints").glob("*.json"):
        record.unlink()
    done = command("jaxgpt.train", *TINY, "--workdir=bare", cwd=place)
    assert done.returncode == 1
    assert "no checkpoint in" in done.stderr
    assert losses(run) == losses(place / "whole")


def test_two_runs_cannot_share_a_workdir(place):
    from scratchgpt.workdir import locked

    with locked(place / "held"):
        done = command("jaxgpt.train", *TINY, "--workdir=held", cwd=place)
    assert done.returncode == 1
    assert f"held is in use by process {os.getpid()}" in done.stderr


@pytest.mark.parametrize(
    "module",
    [
        "jaxgpt.train",
        "jaxgpt.generate",
        "jaxgpt.evaluate",
        "jaxgpt.report",
        "jaxgpt.scaling",
        "jaxgpt.export",
        "torchgpt.generate",
        "data_prep.prepare",
    ],
)
def test_help_explains_and_succeeds(module, tmp_path):
    done = command(module, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Flags:" in done.stdout
