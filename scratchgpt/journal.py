"""What a run writes about itself while it lasts: metrics, samples, a W&B run, and a record of its starts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from configs.schema import Config
from scratchgpt import workdir as layout
from scratchgpt.metrics import MetricsLog, read_metrics
from scratchgpt.provenance import append_line, commit, now, versions
from scratchgpt.tensorboard import TensorBoard
from scratchgpt.tracking import Tracker


class Journal:
    """The files of one start of a run; several processes share one, which only the first writes.

    Args:
      config: the run.
      workdir: of the run.
      step: the step it stands at; what an interrupted start wrote of later ones is dropped.
      enabled: whether this process writes at all.
      log: called with a line about W&B.
    """

    def __init__(self, config: Config, workdir: Path, step: int, enabled: bool, log: Callable[[str], None]) -> None:
        self._config, self._workdir, self._enabled, self._first_step, self._began = (
            config,
            workdir,
            enabled,
            step,
            now(),
        )
        if enabled:
            self._metrics = MetricsLog(workdir / layout.METRICS, step)
            self._samples = MetricsLog(workdir / layout.SAMPLES_LOG, step)
            self._tracker = Tracker(config, workdir, step, log)
            self._board = TensorBoard(workdir, step) if config.log.tensorboard else None

    def record(self, row: dict[str, Any]) -> None:
        """A line of metrics, with its ``step``."""
        if self._enabled:
            self._metrics.write(row)
            self._tracker.write(row)
            if self._board:
                self._board.write(row)

    def show(self, step: int, texts: Sequence[str]) -> None:
        """What the model wrote at ``step``."""
        if self._enabled:
            self._samples.write({"step": step, "prompt": self._config.sample.prompt, "texts": list(texts)})
            self._tracker.write_samples(step, list(texts))
            if self._board:
                self._board.write_samples(step, list(texts))

    def close(self) -> None:
        """Close the files; W&B's run stays open."""
        if self._enabled:
            self._metrics.close()
            self._samples.close()
            if self._board:
                self._board.close()

    def ended(
        self, last_step: int, signal: int | None, seconds: dict[str, float], hardware: str, processes: int
    ) -> None:
        """Add this start to the record of them: where it ran, what its time went to and what ended it."""
        if not self._enabled:
            return
        row = {"began": self._began, "first_step": self._first_step, "last_step": last_step, "seconds": seconds}
        row |= {"hardware": hardware, "processes": processes, "commit": commit()}
        row |= {"versions": ", ".join(versions("scratchgpt", "jax", "flax", "optax"))}
        row |= {"ended": "finished" if signal is None else f"signal {signal}"}
        append_line(self._workdir / layout.STARTS, row)

    def record_final(self, row: dict[str, Any]) -> None:
        """A line about the finished model, behind all others, once; W&B has its figures in the summary."""
        path = self._workdir / layout.METRICS
        if not self._enabled or any(
            row.keys() <= known.keys() for known in read_metrics(path) if known["step"] == row["step"]
        ):
            return
        metrics = MetricsLog(path, self._config.train.steps)
        metrics.write(row)
        metrics.close()
        if self._config.log.tensorboard:
            board = TensorBoard(self._workdir, 0)
            board.write(row)
            board.close()

    def abandon(self) -> None:
        """Close W&B's run as an interrupted one."""
        if self._enabled:
            self._tracker.abandon()

    def finish(self, summary: dict[str, Any], samples: list[str], export: Path, checkpoint: Path) -> None:
        """Give W&B the final figures and samples, and what was asked for of model and checkpoint; close its run."""
        if self._enabled:
            uploads = {"model": export, "checkpoint": checkpoint} if self._config.log.wandb_artifacts else {}
            self._tracker.finish(summary, samples, uploads)
