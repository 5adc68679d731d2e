"""metrics.jsonl: one JSON object a line, the record of a run."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scratchgpt.files import disk_errors, write_text
from scratchgpt.json_lines import iterate_objects


def iterate_metrics(path: Path | str) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file as dicts, one at a time; a last line cut short by a crash is left out.

    Raises UserError if another line is not JSON. A missing file has no lines.
    """
    return iterate_objects(path, lambda row: type(row.get("step")) is int, "a JSON object with a step")


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """All of :func:`iterate_metrics`."""
    return list(iterate_metrics(path))


class MetricsLog:
    """Appends to a metrics file. On resuming at ``step``, lines of later steps are dropped first: no duplicates."""

    def __init__(self, path: Path, step: int = 0):
        self.path = path
        kept = [row for row in read_metrics(path) if row["step"] <= step] if step else []
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (lives as long as the log)

    def write(self, row: dict[str, Any]) -> None:
        """Append one line; non-finite numbers become null, which JSON has no word for."""
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        with disk_errors(self.path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with disk_errors(self.path):  # what could not be written is tried once more
            self._file.close()
