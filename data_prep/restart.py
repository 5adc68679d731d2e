"""The directory in which shards grow, and what a later run needs to continue there.

``.NAME.partial/shards`` becomes the directory NAME when all is done. Beside it, ``state.json`` says how far the work
had come when the files were last known to be on the disk; it is replaced whenever a shard is finished, and at least
every minute. What was written after that is cut off by the run that continues.
"""

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from scratchgpt.errors import UserError
from scratchgpt.files import read_json, write_json

SAVE_EVERY_S = 10.0


class Position(NamedTuple):
    """Where a source is to be read on: the pieces before ``piece`` of the document ``index`` are done."""

    index: int = 0
    file: int = 0
    row: int = 1
    piece: int = 0


class Work:
    """The work directory of ``directory``; ``identity`` is everything that its shards depend on."""

    def __init__(self, directory: Path, identity: dict[str, Any]) -> None:
        self._final = Path(os.path.realpath(directory))  # a link keeps pointing to where the shards lie
        self._root = work_path(directory)
        self.shards = self._root / "shards"
        self._state, self._identity = self._root / "state.json", identity

    def load(self) -> dict[str, Any] | None:
        """What :meth:`save` was given last by a run of the same identity, or None and an empty directory."""
        try:
            state = read_json(self._state)
            if isinstance(state, dict) and state.get("identity") == self._identity:
                return state
        except UserError:  # there is none, or not a whole one
            pass
        self.discard()
        self.shards.mkdir(parents=True)
        return None

    def save(self, state: dict[str, Any]) -> None:
        """Keep ``state``, of JSON's types; the files it tells of must be on the disk."""
        write_json(self._state, {"identity": self._identity, **state})

    def has_tokens(self) -> bool:
        """Whether the saved state tells of any tokens, so that there is something to continue."""
        try:
            return any(w["shards"] or w["tokens"] for w in read_json(self._state)["writers"].values())
        except UserError:
            return False

    def keep_only(self, names: set[str]) -> None:
        """Delete shard files that are not named, and temporary ones: a killed run began them after its last save."""
        for path in self.shards.iterdir():
            if path.name.startswith(".") or (path.suffix in (".bin", ".docs") and path.name not in names):
                path.unlink()

    def written_bytes(self) -> int:
        """Size of the shards so far."""
        return sum(p.stat().st_size for p in self.shards.iterdir())

    def discard(self) -> None:
        """Delete all of it."""
        shutil.rmtree(self._root, ignore_errors=True)

    def publish(self) -> None:
        """Give the finished directory its name, in one step."""
        if self._final.is_dir():
            self._final.rmdir()  # it was found to be empty
        os.replace(self.shards, self._final)
        self.discard()


def work_path(directory: Path) -> Path:
    """Where the shards of ``directory`` grow: beside it, on the same disk."""
    final = Path(os.path.realpath(directory))
    return final.with_name(f".{final.name}.partial")
