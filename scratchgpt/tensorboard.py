"""TensorBoard event files of a run, written without TensorFlow."""

from pathlib import Path
from typing import Any

from scratchgpt.errors import UserError

DIRECTORY = "tensorboard"


class TensorBoard:
    """Scalars and samples of a run in WORKDIR/tensorboard; ``tensorboard --logdir`` shows several runs side by side.

    Args:
      workdir: of the run.
      step: the step it stands at; what an interrupted start wrote of later ones is hidden.

    Raises UserError if tensorboardX is not installed.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as e:
            raise UserError('log.tensorboard needs a package: pip install -e ".[tensorboard]"') from e
        self._writer = SummaryWriter(str(workdir / DIRECTORY), purge_step=step + 1 if step else None)

    def write(self, row: dict[str, Any]) -> None:
        """Numbers of a line of metrics at its step."""
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, row["step"])

    def write_samples(self, step: int, texts: list[str]) -> None:
        """What the model wrote at a step."""
        for number, text in enumerate(texts):
            quoted = "\n".join(f"    {line}" for line in text.splitlines())  # as it stands, no Markdown
            self._writer.add_text(f"samples/{number}", quoted, step)

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()
