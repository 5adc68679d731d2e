"""Weights & Biases without a network, and TensorBoard: the metrics of a run as they stand in metrics.jsonl."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from stand_in_wandb import running

from configs.schema import Config
from scratchgpt.journal import Journal
from scratchgpt.provenance import append_line
from scratchgpt.tracking import ID

ROWS = [{"step": s, "train_loss": 4.0 - s / 10, "lr": 0.1, "broken": None} for s in (1, 2, 3)]


def journal(workdir, step=0, **log) -> Journal:
    config = Config()
    for name, value in log.items():
        setattr(config.log, name, value)
    return Journal(config, workdir, step, True, lambda line: None)


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    (workdir / "export").mkdir()
    (workdir / "export" / "weights").write_text("1")
    for step, rows in ((0, ROWS[:2]), (2, ROWS[2:])):  # interrupted, and taken up again
        book = journal(workdir, step, wandb="offline", wandb_artifacts=True)
        for row in rows:
            book.record(row)
        book.show(rows[-1]["step"], ["once", "upon"])
        book.close()
        if step:
            book.finish({"best_val_loss": 1.5}, ["a time"], workdir / "export", workdir / "export")
        else:
            book.abandon()
    import wandb

    wandb.teardown()  # as at the end of a process: what is written in the background is on the disk then
    return workdir


def test_wandb_sync_uploads_an_offline_run(offline, tmp_path):
    runs = sorted(map(str, offline.glob("wandb/offline-run-*")))
    assert len(runs) == 2
    with running() as service:
        env = {**os.environ, "WANDB_BASE_URL": service.url, "WANDB_API_KEY": "0" * 40}
        command = [Path(sys.executable).with_name("wandb"), "sync", *runs]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not service.unknown
    assert list(service.runs) == [(offline / ID).read_text().strip()]  # taken up again: the same run
    rows = service.lines("wandb-history.jsonl")
    assert {row["_step"]: row["train_loss"] for row in rows if "train_loss" in row} == {
        row["step"]: row["train_loss"] for row in ROWS
    }
    assert any("samples" in row for row in rows)
    (run,) = service.runs.values()
    assert {"model", "optim", "train"} <= json.loads(run["config"]).keys()
    assert service.lines("wandb-summary.json")[-1]["best_val_loss"] == 1.5
    committed = {kind: key for key, (_, kind, commits) in service.artifacts.items() if commits == 1}
    assert {"model", "checkpoint", "run_table"} <= committed.keys()
    for kind in ("model", "checkpoint"):
        assert service.files[f"{committed[kind]}/weights"] == b"1"
    tables = [json.loads(v) for k, v in service.files.items() if k.startswith("run/media/table/")]
    assert [[3, "once"], [3, "upon"]] in [table["data"] for table in tables]


@pytest.mark.parametrize("answers", [False, True])
def test_a_service_that_cannot_be_had_leaves_the_run_offline(tmp_path, monkeypatch, answers):
    """With a key at hand: nobody listens, or somebody does and refuses."""
    said = []
    with running() as service:
        service.refuses = True
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        monkeypatch.setenv("WANDB_BASE_URL", service.url if answers else f"http://127.0.0.1:{port}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        for name in urllib.request.getproxies():  # of the machine that runs the test
            monkeypatch.delenv(f"{name}_proxy", raising=False)
            monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)
        config = Config()
        config.log.wandb = "auto"
        book = Journal(config, tmp_path, 0, True, said.append)
        book.record(ROWS[0])
        book.close()
        book.finish({}, [], tmp_path, tmp_path)
    assert [line.endswith("recording offline") for line in said] == [True]
    assert ("does not answer" in said[0]) != answers
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 1


@pytest.mark.parametrize(
    ("before", "kept"),
    [("", ""), ('{"a": 1}\n', '{"a": 1}\n'), ('{"a": 1}\n{"b', '{"a": 1}\n'), ('{"a": 1}', '{"a": 1}\n'), ('{"é', "")],
)
def test_a_line_is_appended_to_whole_lines(tmp_path, before, kept):
    path = tmp_path / "evaluations.jsonl"
    path.write_text(before, encoding="utf-8")
    append_line(path, {"c": "é"})
    assert path.read_text(encoding="utf-8") == kept + '{"c": "é"}\n'


def test_tensorboard_shows_the_metrics(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.event_file_writer import EventFileWriter  # noqa: F401
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401

    book = journal(tmp_path, tensorboard=True)
    for row in ROWS:
        book.record(row)
    book.show(3, ["once"])
    book.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, found = path.read_bytes(), []
    while data:  # length, its checksum, the record, its checksum
        length = int.from_bytes(data[:8], "little")
        event = Event()
        event.ParseFromString(data[12 : 12 + length])
        found += [(event.step, v.tag, v.simple_value) for v in event.summary.value if not v.HasField("tensor")]
        data = data[16 + length :]
    assert [(s, round(v, 5)) for s, tag, v in found if tag == "train_loss"] == [(1, 3.9), (2, 3.8), (3, 3.7)]
    assert not any(tag in ("broken", "step") for _, tag, _ in found)


def test_a_journal_of_another_process_writes_nothing(tmp_path):
    book = Journal(Config(), tmp_path, 0, False, print)
    book.record(ROWS[0])
    book.show(1, ["x"])
    book.ended(1, None, {}, "1 x cpu", 2)
    book.close()
    book.abandon()
    assert not list(tmp_path.iterdir())


def test_a_record_of_starts(tmp_path):
    book = journal(tmp_path)
    book.close()
    book.ended(7, 15, {"step": 1.0}, "1 x cpu", 1)
    (line,) = (tmp_path / "starts.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert (row["last_step"], row["ended"], row["hardware"]) == (7, "signal 15", "1 x cpu")
    assert row["versions"].startswith("Python 3")
