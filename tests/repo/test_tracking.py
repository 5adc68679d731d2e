"""Weights & Biases without a network, and TensorBoard: the metrics of a run as they stand in metrics.jsonl."""

import json

import pytest

from configs.schema import Config
from scratchgpt.journal import Journal
from scratchgpt.tracking import ID

ROWS = [{"step": s, "train_loss": 4.0 - s / 10, "lr": 0.1, "broken": None} for s in (1, 2, 3)]


def journal(workdir, step=0, **log) -> Journal:
    config = Config()
    for name, value in log.items():
        setattr(config.log, name, value)
    return Journal(config, workdir, step, True, lambda line: None)


def records_of(path) -> list[bytes]:
    """The records of a .wandb file: LevelDB's log format after 7 bytes of its own, in blocks of 32 KiB."""
    data, at, found, part = path.read_bytes(), 7, [], b""
    assert data.startswith(b":W&B")
    while at + 7 <= len(data):
        if -at % 32768 < 7:  # no header fits into what is left of the block
            at += -at % 32768
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            found.append(part)
            part = b""
    return found


def wandb_records(workdir) -> list:
    """Every record of the offline runs, as `wandb sync` uploads them."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted(workdir.glob("wandb/offline-run-*/run-*.wandb")):
        for data in records_of(path):
            found.append(wandb_internal_pb2.Record())
            found[-1].ParseFromString(data)
    return found


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


def test_an_offline_run_holds_the_metrics_and_the_configuration(offline):
    records = wandb_records(offline)
    history = [{i.nested_key[0] if i.nested_key else i.key: i.value_json for i in r.history.item} for r in records]
    losses = [float(row["train_loss"]) for row in history if "train_loss" in row]
    assert losses == [row["train_loss"] for row in ROWS]
    runs = [r.run for r in records if r.HasField("run")]
    assert {run.run_id for run in runs} == {(offline / ID).read_text().strip()}  # resumed: the same run
    keys = {item.key for run in runs for item in run.config.update}
    assert {"model", "optim", "train"} <= keys
    assert any("best_val_loss" in {i.key for i in r.summary.update} for r in records)
    assert {r.request.log_artifact.artifact.type for r in records if r.request.HasField("log_artifact")} | {
        r.artifact.type for r in records if r.HasField("artifact")
    } >= {"model", "checkpoint"}
    assert any("samples" in row for row in history)


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
