"""Training state on disk: Orbax arrays, a commit record with checksums beside each, the latest few and the best kept.

``checkpoints/00000500/`` is written by Orbax, ``checkpoints/00000500.json`` afterwards: its step, validation loss, what
else the run remembers, and the SHA-256 of every file (Orbax itself loads flipped bytes without a word). A checkpoint
without its record was never finished and is passed over, like one whose bytes do not match.
"""

import dataclasses
import math
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from jaxgpt.distributed import from_main, is_main
from scratchgpt.errors import UserError
from scratchgpt.files import disk_errors, read_json, sha256_file, write_json
from scratchgpt.standing import Standing

DISCARDED = ".discarded"  # ends the name of the record of a checkpoint that is being removed


class Checkpoints:
    """The checkpoints of one run.

    Args:
      directory: ``WORKDIR/checkpoints``.
      keep: how many of the latest are kept, besides the best by validation loss.
      log: called with one line about a damaged checkpoint.
    """

    def __init__(self, directory: Path, keep: int = 1, log: Callable[[str], None] = print):
        self.directory, self.keep, self.log = directory.absolute(), keep, log
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._last: int | None = None  # the step last loaded or saved

    def path(self, step: int) -> Path:
        """The directory of the arrays of ``step``."""
        return self.directory / f"{step:08d}"

    def records(self) -> dict[int, dict[str, Any]]:
        """The commit records by step, oldest first; unreadable ones are reported and left out."""
        found = {}
        for path in sorted(self.directory.glob("*.json")):
            if re.fullmatch(r"\d{8,}", path.stem):
                if (record := _read_record(path)) is not None:
                    found[int(path.stem)] = record
                else:
                    self.log(f"checkpoint {int(path.stem)} is damaged: its record {path} cannot be read")
        return found

    def best_step(self) -> int | None:
        """Step of the lowest recorded validation loss, or None."""
        losses = {s: r["val_loss"] for s, r in self.records().items() if r["val_loss"] is not None}
        return min(losses, key=lambda s: (losses[s], s)) if losses else None

    def save(self, step: int, state: Any, val_loss: float | None, standing: Standing) -> None:
        """Begin to save; returns once the arrays are copied. Raises what went wrong with the previous save."""
        self.wait()
        if step == self._last:  # a run that resumed at its last step, or that was stopped right behind a save
            return
        self._last = step
        if jax.default_backend() == "cpu":
            state = jax.tree.map(jnp.copy, state)  # a CPU array is not copied by Orbax, and the next step donates it
        path = self.path(step)
        try:
            with disk_errors(path):
                response = ocp.save_async(path, state, overwrite=True)
        except BaseException:
            self._remove_unfinished(step)
            raise
        self._thread = threading.Thread(
            target=self._commit, args=(response, step, val_loss, dataclasses.asdict(standing))
        )
        self._thread.start()

    def _commit(self, response: Any, step: int, val_loss: float | None, standing: dict[str, Any]) -> None:
        try:
            response.result()
            if is_main():
                path = self.path(step)
                files = {str(f.relative_to(path)): sha256_file(f) for f in sorted(path.rglob("*")) if f.is_file()}
                record = {"step": step, "val_loss": val_loss, "standing": standing, "files": files}
                write_json(self.directory / f"{step:08d}.json", record)
                self._discard()
        except BaseException as e:
            self._failure = e
            self._remove_unfinished(step)

    def _remove_unfinished(self, step: int) -> None:
        for unfinished in self.directory.glob(f"{step:08d}.orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished, ignore_errors=True)  # it may be what fills the disk

    def _discard(self) -> None:
        steps = sorted(self.records())
        for step in set(steps[: -self.keep]) - {self.best_step()}:
            record = self.directory / f"{step:08d}.json"
            record.rename(record.with_name(f"{record.name}{DISCARDED}"))  # so that a kill leaves no half one behind
            self._remove(step)

    def _remove(self, step: int) -> None:
        shutil.rmtree(self.path(step), ignore_errors=True)
        (self.directory / f"{step:08d}.json{DISCARDED}").unlink(missing_ok=True)

    def _clear(self, newest: int) -> None:
        """Remove what a killed process was about to discard or had not finished; they fill the disk."""
        for path in self.directory.glob(f"*.json{DISCARDED}"):
            self._remove(int(path.name.split(".")[0]))
        for path in [*self.directory.glob("*.orbax-checkpoint-tmp*"), *self.directory.glob(".*.json.tmp-*")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self.directory.glob("*"):
            step = int(path.name) if path.is_dir() and path.name.isdigit() else 0
            if step > newest and not any(self.directory.glob(f"{path.name}.json*")):
                self.log(f"checkpoint {step} was never finished, as no record of it tells, and is removed")
                shutil.rmtree(path)

    def wait(self) -> None:
        """Wait for the save in progress. Raises UserError if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def join(self) -> None:
        """Wait for the save in progress, whatever becomes of it."""
        if self._thread is not None:
            self._thread.join()

    def check(self) -> None:
        """Raise UserError if a save in the background has failed; does not wait."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            reason = " ".join(str(failure).split())
            if "RESOURCE_EXHAUSTED" in reason or "No space left" in reason:
                reason = "no space left on the disk"
            raise UserError(
                f"saving a checkpoint to {self.directory} failed ({reason[:300]}); earlier checkpoints are intact"
            ) from failure

    def verify(self, step: int) -> str | None:
        """What is wrong with the bytes of checkpoint ``step``, or None."""
        if not self.path(step).is_dir():
            return f"{self.path(step)} is missing"
        for name, digest in self.records()[step]["files"].items():
            path = self.path(step) / name
            if not path.is_file():
                return f"{path} is missing"
            if sha256_file(path) != digest:
                return f"{path} does not match its checksum"
        return None

    def newest_good(self) -> int | None:
        """The newest step, once every damaged checkpoint has been reported and put aside. None if none was ever saved.

        Raises UserError if there are checkpoints and none is good.
        """
        step = from_main(self._newest_good)
        return None if step is None else int(step)

    def _newest_good(self) -> int | None:
        for step in self.records():
            self._put_aside_if_damaged(step)
        for path in self.directory.glob("*.json"):
            if path.stem.isdigit() and _read_record(path) is None:
                path.rename(path.with_name(f"{path.name}.damaged"))  # it has been reported
        if records := self.records():
            self._clear(max(records))
            return max(records)
        # A lone directory without a record is a first save that was cut short; anything more held progress.
        directories = [p for p in self.directory.glob("*") if p.is_dir() and p.name.isdigit()]
        recorded = list(self.directory.glob("[0-9]*.json*"))  # the name of a temporary one begins with a dot
        if len(directories) > 1 or recorded:
            raise UserError(
                f"no checkpoint in {self.directory} is intact: restore one, or begin anew with --start_over or another"
                " --workdir"
            )
        self._clear(-1)
        return None

    def best_good(self) -> int | None:
        """The best step by validation loss whose bytes are intact, or None."""
        step = from_main(self._best_good)
        return None if step is None else int(step)

    def standing(self, step: int) -> Standing:
        """How the run stood at ``step``, a checkpoint."""

        def told(name: str) -> float | None:
            return from_main(lambda: getattr(self.records()[step]["standing"], name))

        return Standing(told("best_val_loss"), int(told("evaluations_since_best")), int(told("nonfinite_steps")))

    def _best_good(self) -> int | None:
        while (step := self.best_step()) is not None and self._put_aside_if_damaged(step):
            pass
        return step

    def _put_aside_if_damaged(self, step: int) -> bool:
        """Report a damaged checkpoint and rename its record, so that it counts no more and may be saved anew."""
        damage = self.verify(step)
        if damage is not None:
            self.log(f"checkpoint {step} is damaged and passed over: {damage}")
            record = self.directory / f"{step:08d}.json"
            record.rename(record.with_name(f"{record.name}.damaged"))
        return damage is not None

    def load_parameters(self, step: int, abstract_params: Any) -> Any:
        """The parameters of ``step``, without the optimizer's slots, which are most of the bytes. Raises UserError."""
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            params = self.load(step, {"params": abstract_params})["params"]
        if missing := [name for name, value in params.items() if not isinstance(value, jax.Array)]:
            raise UserError(f"checkpoint {self.path(step)} does not fit this configuration: it lacks {missing[0]}")
        return params

    def load(self, step: int, abstract_state: Any) -> Any:
        """The state of ``step`` with the shapes and shardings of ``abstract_state``. Raises UserError."""
        try:
            state = ocp.load(self.path(step), abstract_state)
        except Exception as e:  # Orbax has no common error class
            reason = " ".join(str(e).split())[:300]
            raise UserError(f"checkpoint {self.path(step)} does not fit this configuration: {reason}") from e
        self._last = step
        return state


def _read_record(path: Path) -> dict[str, Any] | None:
    """What the commit record in ``path`` says, or None if it cannot be read."""
    try:
        record = read_json(path)
        val_loss, files, standing = record["val_loss"], dict(record["files"]), Standing(**record["standing"])
        numbers = [n for n in (val_loss, *dataclasses.astuple(standing)) if n is not None]
        if not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
            return None
        if not all(type(text) is str for item in files.items() for text in item):
            return None
        return {"val_loss": val_loss, "files": files, "standing": standing}
    except (UserError, KeyError, TypeError, ValueError):
        return None
