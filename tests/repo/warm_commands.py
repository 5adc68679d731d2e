"""Run our commands in processes forked off one in which the libraries are imported already: a start takes no time."""

import multiprocessing
import os
import resource
import runpy
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

LIBRARIES = ["jax", "flax.nnx", "optax", "orbax.checkpoint.v1", "grain", "torch", "ml_collections.config_flags"]


class Done(NamedTuple):
    """How a command ended.

    Attributes:
      returncode: exit status; minus the signal that ended it; None if it had to be killed after its time.
      stdout: text.
      stderr: text.
      peak_bytes: most memory resident at a time.
    """

    returncode: int | None
    stdout: str
    stderr: str
    peak_bytes: int


def _child(module: str, arguments: list[str], cwd: str, out: str) -> None:
    os.chdir(cwd)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{out}/{name}", os.O_WRONLY | os.O_CREAT), number)
    sys.stdin = open(os.devnull)  # noqa: SIM115 (for the life of the process)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()
        Path(out, "peak").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def run_command(module: str, *arguments: str, cwd: Path, limit_s: float = 60) -> Done:
    """``python -m module arguments`` in ``cwd``, killed after ``limit_s`` seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    with tempfile.TemporaryDirectory() as out:
        process = context.Process(target=_child, args=(module, list(arguments), str(cwd), out))
        process.start()
        process.join(limit_s)
        if process.is_alive():
            process.kill()
            process.join()
            returncode = None
        else:
            returncode = process.exitcode
        texts = {p.name: p.read_text(errors="replace") for p in Path(out).iterdir()}
    return Done(returncode, texts.get("stdout", ""), texts.get("stderr", ""), int(texts.get("peak", 0)))
