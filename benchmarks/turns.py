"""What the benchmarks of speed share: contenders that take turns, each in a process of its own, and their medians."""

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from scratchgpt.errors import UserError
from scratchgpt.provenance import versions

Figures = dict[str, float | str | None]
ROOT = Path(__file__).resolve().parents[1]


def whole_numbers(flag: str, values: list[str], least: int = 0) -> list[int]:
    """The values of a flag. Raises UserError unless they are some different whole numbers from ``least`` up."""
    if not values or not all(v.isdecimal() and int(v) >= least for v in values) or len(set(values)) < len(values):
        given, first = ",".join(values), "" if least == 0 else f" from {least} up"
        raise UserError(f"--{flag}={given} must be different whole numbers{first}, one or more")
    return [int(v) for v in values]


def check_names(flag: str, values: list[str], known: Iterable[str]) -> None:
    """Raise UserError unless ``values`` are some of the ``known``, each once."""
    if not values or not set(values) <= set(known) or len(set(values)) < len(values):
        raise UserError(f"--{flag}={','.join(values)} must be some of, each once: {'; '.join(known)}")


def check_files(source: str = "", nanogpt: str = "") -> None:
    """Raise UserError, before anything is run, for a --source or a --nanogpt that is not there."""
    if source and not Path(source).is_file():
        raise UserError(f"--source={source} is not a file")
    if source and not Path(source).stat().st_size:
        raise UserError(f"--source={source} is empty")
    if nanogpt and not all((Path(nanogpt) / name).is_file() for name in ("model.py", "train.py")):
        raise UserError(f"--nanogpt={nanogpt} is no checkout of nanoGPT: it has no model.py and train.py")


def machine(*packages: str) -> str:
    """The machine, the versions that count, and the date, in a line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        told = dict(re.findall(r"^(model name|flags)\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE))
        model = told.get("model name", model)
        widest = [name for name in ("avx512f", "avx2") if name in told.get("flags", "").split()]
        model += f" ({widest[0]})" if widest else ""
    what = [f"{os.cpu_count()} cores of {model}", *versions(*packages), datetime.date.today().isoformat()]
    return ", ".join(what)


def figures_of(command: list[str]) -> Figures:
    """The JSON object that ``python`` with these arguments prints last. Raises UserError if the process fails."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"a run failed: {' '.join(command)[:200]}: {done.stderr.strip()[-600:]}")
    return json.loads(done.stdout.splitlines()[-1])


def take_turns(contenders: dict[str, Callable[[], Figures]], rounds: int) -> dict[str, list[Figures]]:
    """``rounds`` results of each contender: one after the other in every round, every other round in reverse order.

    What slows the machine for a while then slows neighbours alike, and no contender always comes first.
    """
    results: dict[str, list[Figures]] = {name: [] for name in contenders}
    for i in range(rounds):
        for name in list(contenders)[:: -1 if i % 2 else 1]:
            results[name].append(contenders[name]())
            print(f"round {i + 1} of {rounds}, {name}: {json.dumps(results[name][-1])}", file=sys.stderr, flush=True)
    return results


def median(results: list[Figures], key: str) -> float:
    """Of a figure over the rounds."""
    return statistics.median(row[key] for row in results)


def median_ratio(results: list[Figures], others: list[Figures], key: str) -> float:
    """Median over the rounds of a figure divided by another contender's figure in the same round."""
    return statistics.median(row[key] / other[key] for row, other in zip(results, others, strict=True))


def mean_and_error(values: list[float]) -> str:
    """Mean ± standard error; the mean alone of one value."""
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.4f}"


# For code that measures itself: the most memory that its process has held, in bytes.
PEAK_MEMORY = "__import__('resource').getrusage(__import__('resource').RUSAGE_SELF).ru_maxrss * 1024"
