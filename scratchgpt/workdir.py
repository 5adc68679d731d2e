"""The directory of one training run: who may write to it, and where things lie in it."""

import contextlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from configs.schema import Config, ConfigError, from_dict
from scratchgpt.errors import UserError
from scratchgpt.files import disk_errors, read_json, write_text
from scratchgpt.metrics import read_metrics

try:
    import fcntl
except ImportError:  # Windows has no flock; two runs in one directory are then the user's to avoid
    fcntl = None

CONFIG = "config.json"
IDENTITY = "identity.json"  # what a checkpoint must agree on for its run to be continued
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
LOSS_PLOT = "loss.png"
SAMPLES = "samples.txt"
EXPORT = "export"
TOKENIZER = "tokenizer"
COMMAND = "command.txt"
LABELS = "labels.json"
PROFILE = "profile"
STARTS = "starts.jsonl"  # an object for each start that came to its end: when, where, what its time went to
SAMPLES_LOG = "samples.jsonl"  # an object for each evaluation: its step, and what the model wrote then
EVALUATIONS = "evaluations.jsonl"  # an object for each jaxgpt.evaluate of the run's model
REPORT = "report"
LOCK = ".lock"
BEFORE = "before-"  # and a number: what was there when a run was started over


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Hold ``workdir`` for this process; the lock goes with the process, however it ends.

    Raises UserError if another process holds it.
    """
    with disk_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        handle = open(workdir / LOCK, "a+")  # noqa: SIM115 (closed below, by the with statement)
    with handle:
        if fcntl:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as e:
                handle.seek(0)
                holder = handle.read().strip() or "unknown"
                raise UserError(f"{workdir} is in use by process {holder}: give another --workdir, or wait") from e
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        with disk_errors(workdir):
            remove_leftovers(workdir)
        yield


def saved_progress(workdir: Path) -> int:
    """The last step in ``workdir``'s metrics, if a checkpoint must have been finished before it; else 0.

    A save begins once the one before it is finished: beyond the second there is always one.
    """
    steps = [row["step"] for row in read_metrics(workdir / METRICS)]
    if not steps or not (workdir / CONFIG).is_file():
        return 0
    return steps[-1] if steps[-1] > 2 * stored_config(workdir).checkpoint.every else 0


def stored_config(workdir: Path) -> Config:
    """The configuration that the run in ``workdir`` was last started with. Raises UserError naming its file."""
    path = workdir / CONFIG
    try:
        return from_dict(read_json(path))
    except ConfigError as e:
        raise UserError(f"{path}: {e}") from e


def stored_start(workdir: Path) -> str:
    """The directory of the model that the run in ``workdir`` began from; empty if it began at random."""
    path = workdir / IDENTITY
    values = read_json(path) if path.exists() else {}
    return str(values.get("init_from") or "") if isinstance(values, dict) else ""


def remove_leftovers(workdir: Path) -> None:
    """Clear what a killed process was writing; a directory that it was about to replace goes back to its place."""
    for path in workdir.glob(".*"):
        if found := re.fullmatch(r"\.(.+)\.(tmp|old)-\d+", path.name):
            if found[2] == "old" and not (workdir / found[1]).exists():
                path.rename(workdir / found[1])
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def move_aside(workdir: Path) -> Path | None:
    """Move what an earlier run left in ``workdir`` to a directory in it, which is returned; None if it left nothing."""
    earlier = {
        path.name: int(path.name.removeprefix(BEFORE)) for path in workdir.glob(f"{BEFORE}*") if _is_before(path)
    }
    left = [path for path in workdir.iterdir() if path.name != LOCK and path.name not in earlier]
    if not left:
        return None
    number = 1 + max(earlier.values(), default=0)
    with disk_errors(workdir):
        before = workdir / f"{BEFORE}{number}"
        before.mkdir()
        for path in left:
            path.rename(before / path.name)
    return before


def _is_before(path: Path) -> bool:
    return re.fullmatch(f"{BEFORE}[0-9]+", path.name) is not None


def training_command(module: str) -> str:
    """The shell command that runs ``module`` with the arguments of this process."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def record_command(workdir: Path, module: str) -> None:
    """Keep :func:`training_command` in ``workdir``, for the model card."""
    write_text(workdir / COMMAND, training_command(module) + "\n")


def read_command(workdir: Path) -> str | None:
    """What :func:`record_command` kept, or None."""
    try:
        return (workdir / COMMAND).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):  # a run of an older version; the card does without
        return None


def is_workdir(path: Path) -> bool:
    """Whether ``path`` is the workdir of a run, of jaxgpt or torchgpt, rather than a Hugging Face directory."""
    return (path / CONFIG).is_file() and any((path / name).is_dir() for name in (CHECKPOINTS, EXPORT))


def resolve_export(checkpoint: str) -> Path:
    """The Hugging Face directory that ``--checkpoint`` means: itself, or the export/ of a workdir.

    An empty string means the newest ``runs/*/export`` under the current directory. Raises UserError if there is none.
    """
    if not checkpoint:
        exports = sorted(Path("runs").glob(f"*/{EXPORT}/config.json"), key=lambda p: p.stat().st_mtime)
        if not exports:
            raise UserError(
                "there is no trained model under runs/: train one with `python -m jaxgpt.train"
                " --config=configs/small.py`, or name a Hugging Face directory with --checkpoint=DIR"
            )
        return exports[-1].parent
    path = Path(checkpoint)
    if not path.is_dir():
        what = "is not a directory" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}: name a Hugging Face directory or a workdir")
    if (path / EXPORT).is_dir():
        return path / EXPORT
    if (path / CHECKPOINTS).is_dir() or (path / METRICS).is_file():
        command = f", or write one with `python -m jaxgpt.export --workdir={path} --out={path / EXPORT}`"
        raise UserError(
            f"{path} has no {EXPORT}/, which the end of training writes: finish the run"
            f"{command if (path / CHECKPOINTS).is_dir() else ''}"
        )
    return path
