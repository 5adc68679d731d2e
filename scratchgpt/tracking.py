"""Weights & Biases, never in the way: without a key or a network the run is recorded offline."""

import netrc
import os
import secrets
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.schema import Config, to_dict
from scratchgpt.files import write_text

ID = "wandb_id.txt"
ANSWER_S = 3.0  # that the service may take to accept a connection


def _service() -> urllib.parse.SplitResult:
    return urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(_service().hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _is_reachable() -> bool:
    """Whether the service accepts a connection at once. Behind a proxy nobody but wandb can tell."""
    if urllib.request.getproxies().keys() & {"http", "https", "all"}:
        return True
    url, accepted = _service(), threading.Event()

    def connect() -> None:
        try:
            port = url.port or (80 if url.scheme == "http" else 443)
            socket.create_connection((url.hostname, port), timeout=ANSWER_S).close()
            accepted.set()
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=connect, daemon=True)  # looking a name up has no limit of its own
    thread.start()
    thread.join(ANSWER_S)
    return accepted.is_set()


class Tracker:
    """A W&B run, or nothing at all when ``log.wandb`` is off.

    Mode ``auto`` and ``online`` go online only with a key at hand (WANDB_API_KEY or ~/.netrc) and a service that
    accepts a connection within seconds; otherwise the run is kept offline in the workdir for `wandb sync`.
    """

    def __init__(self, config: Config, workdir: Path, step: int, log: Callable[[str], None]):
        self._run = None
        if config.log.wandb == "off":
            return
        import wandb

        online = config.log.wandb != "offline" and _has_key()
        if config.log.wandb == "online" and not online:
            log(f"W&B: no API key found, recording offline; for later: wandb sync {workdir}/wandb/offline-run-*")
        if online and not _is_reachable():
            log(f"W&B: {_service().hostname} does not answer, recording offline")
            online = False
        options = dict(
            project=config.log.wandb_project,
            name=workdir.name,
            dir=str(workdir),
            config=to_dict(config),
            id=self._id(workdir, step),
            resume="allow",
        )
        quiet = dict(console="off", silent=True, init_timeout=15)
        try:
            mode = "online" if online else "offline"
            self._run = wandb.init(mode=mode, settings=wandb.Settings(**quiet), **options)
        except Exception as e:  # whatever the service answers must not stop a training run
            log(f"W&B: not reachable ({type(e).__name__}), recording offline")
            wandb.teardown()  # the attempt still holds the run's id
            self._run = wandb.init(mode="offline", settings=wandb.Settings(**quiet), **options)

    @staticmethod
    def _id(workdir: Path, step: int) -> str:
        """That of the run in ``workdir``, which a resumed one takes up; another for one that begins anew."""
        path = workdir / ID
        if step and path.is_file():
            return path.read_text(encoding="utf-8").strip()
        name = secrets.token_hex(4)
        write_text(path, name + "\n")
        return name

    def write(self, row: dict[str, Any]) -> None:
        """Log one line of metrics at its step."""
        if self._run:
            self._run.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])

    def write_samples(self, step: int, texts: list[str]) -> None:
        """Log what the model wrote at a step, as a table."""
        if self._run and texts:
            import wandb

            table = wandb.Table(columns=["step", "text"], data=[[step, text] for text in texts])
            self._run.log({"samples": table}, step=step)

    def finish(self, summary: dict[str, Any], samples: list[str], uploads: dict[str, Path]) -> None:
        """Record the final figures, samples, and each directory of ``uploads`` as an artifact; then close the run."""
        if not self._run:
            return
        import wandb

        self._run.summary.update(summary)
        if samples:
            self._run.log({"samples": wandb.Table(columns=["text"], data=[[s] for s in samples])})
        for kind, directory in uploads.items():
            artifact = wandb.Artifact(f"{self._run.name}-{kind}", type=kind)
            artifact.add_dir(str(directory))
            self._run.log_artifact(artifact)
        self._run.finish()

    def abandon(self) -> None:
        """Close the run of an interrupted training."""
        if self._run:
            self._run.finish(exit_code=1)
