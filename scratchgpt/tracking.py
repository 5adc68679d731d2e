"""Weights & Biases, never in the way: without a key or a network the run is recorded offline."""

import netrc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.schema import Config, to_dict


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Tracker:
    """A W&B run, or nothing at all when ``log.wandb`` is off.

    Mode ``auto`` and ``online`` go online only with a key at hand (WANDB_API_KEY or ~/.netrc), decided without asking
    the network; otherwise the run is kept offline in the workdir for `wandb sync`.
    """

    def __init__(self, config: Config, workdir: Path, step: int, log: Callable[[str], None]):
        self._run = None
        if config.log.wandb == "off":
            return
        import wandb

        online = config.log.wandb != "offline" and _has_key()
        if config.log.wandb == "online" and not online:
            log("W&B: no API key found, recording offline; `wandb login` and `wandb sync` upload it later")
        options = dict(
            project=config.log.wandb_project,
            name=workdir.name,
            dir=str(workdir),
            config=to_dict(config),
        )
        quiet = dict(console="off", silent=True, init_timeout=15)
        try:
            mode = "online" if online else "offline"
            self._run = wandb.init(mode=mode, settings=wandb.Settings(**quiet), **options)
        except Exception as e:  # whatever the service answers must not stop a training run
            log(f"W&B: not reachable ({type(e).__name__}), recording offline")
            self._run = wandb.init(mode="offline", settings=wandb.Settings(**quiet), **options)

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

    def finish(self, summary: dict[str, Any], samples: list[str], export: Path | None) -> None:
        """Record the final figures and samples, and upload the exported model when asked to; then close the run."""
        if not self._run:
            return
        import wandb

        self._run.summary.update(summary)
        if samples:
            self._run.log({"samples": wandb.Table(columns=["text"], data=[[s] for s in samples])})
        if export:
            artifact = wandb.Artifact(f"{self._run.name}-model", type="model")
            artifact.add_dir(str(export))
            self._run.log_artifact(artifact)
        self._run.finish()

    def abandon(self) -> None:
        """Close the run of an interrupted training."""
        if self._run:
            self._run.finish(exit_code=1)
