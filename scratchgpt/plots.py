"""The loss curve of a run as a picture; its report (scratchgpt/reporting/) holds the same one."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scratchgpt.files import atomic_path
from scratchgpt.reporting.charts import loss_png
from scratchgpt.reporting.runs import Run
from scratchgpt.reporting.series import collect


def plot_loss(rows: Iterable[dict[str, Any]], path: Path, title: str) -> None:
    """Draw training and validation loss (nats per token, pair or text) over steps into the PNG file ``path``.

    Args:
      rows: lines of metrics.jsonl.
    """
    png = loss_png(Run(title, path.parent, collect(rows)))
    with atomic_path(path) as temporary:
        temporary.write_bytes(png)
