"""How long a person waits: for help, for the first token, for the first step of training; and what generation holds.

    python -m benchmarks.startup [--source=FILE] [--rounds=5]

Whole processes, from start to the output in question, with everything in the disk's cache: --help of every command;
torchgpt.generate --prompt up to its first token, beside `python -c "import torch"`; jaxgpt.train up to the loss of its
first step, the first time (nothing compiled before) and again; and the peak memory of torchgpt.generate with a GPT-2 of
124M parameters beside the size of its weights.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from absl import flags

from benchmarks.decoding import MODELS, write_weights
from benchmarks.turns import ROOT, Figures, check_files, machine, median, median_ratio, take_turns
from scratchgpt import cli as command
from scratchgpt.errors import UserError

COMMANDS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("jaxgpt", "torchgpt", "data_prep")
    for path in sorted((ROOT / package).glob("*.py"))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
]


def until(arguments: list[str], seen: Callable[[bytes], bool], environment: dict[str, str]) -> float:
    """Seconds until ``seen`` is true of what ``python`` with these arguments has written so far; it is then killed."""
    began, written = time.monotonic(), b""
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while not seen(written):
        if not (more := os.read(process.stdout.fileno(), 65536)):
            raise UserError(f"{' '.join(arguments)} ended too early: {written.decode()[-600:]}")
        written += more
    seconds = time.monotonic() - began
    process.kill()
    process.wait()
    return seconds


def whole(arguments: list[str]) -> Figures:
    """Seconds of a process."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    _, error = process.communicate()
    if process.returncode:
        raise UserError(f"{' '.join(arguments)} failed: {error.strip()[-600:]}")
    return {"seconds": time.monotonic() - began}


if __name__ == "__main__":
    _SOURCE = flags.DEFINE_string("source", "", "a text to train on; empty: the one of configs/small.py")
    _ROUNDS = flags.DEFINE_integer("rounds", 5, "runs of each", lower_bound=1)
    _PEAK = flags.DEFINE_list("peak", [], "run this command, and print its peak memory in bytes")

    def main() -> None:
        """Print the tables."""
        if _PEAK.value:
            subprocess.run([sys.executable, *_PEAK.value], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024}))
            return
        check_files(_SOURCE.value)
        print(machine("jax", "torch"))
        print("\n| `--help` of | seconds |\n|---|---|", flush=True)
        helps = take_turns({name: lambda n=name: whole(["-m", n, "--help"]) for name in COMMANDS}, _ROUNDS.value)
        for name, rows in helps.items():
            print(f"| {name} | {median(rows, 'seconds'):.2f} |", flush=True)
        with tempfile.TemporaryDirectory() as place:
            starts(Path(place))

    def starts(place: Path) -> None:
        """The other tables."""
        warm = os.environ | {"SCRATCHGPT_CACHE": str(place / "cache")}
        text = [f"--config.data.source={Path(_SOURCE.value).absolute()}"] if _SOURCE.value else []
        small = ["-m", "jaxgpt.train", "--config=configs/small.py", f"--config.data.dir={place / 'data'}", *text]
        done = subprocess.run(
            [
                sys.executable,
                *small,
                f"--workdir={place / 'run'}",
                "--config.train.steps=5",
                "--config.log.report=False",
            ],
            cwd=ROOT,
            env=warm,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise UserError(f"training failed: {done.stderr.strip()[-600:]}")
        runs = iter(range(10**6))

        def train(environment: dict[str, str]) -> Figures:
            arguments = [*small, f"--workdir={place / f'run-{next(runs)}'}", "--config.log.every=1"]
            return {"seconds": until(arguments, lambda written: b"tokens/s" in written, environment)}

        def first_token(model: Path, prompt: str) -> Figures:
            arguments = ["-m", "torchgpt.generate", f"--checkpoint={model}", f"--prompt={prompt}"]
            shown = prompt.encode()
            return {"seconds": until(arguments, lambda w: len(w) > len(shown) and w.startswith(shown), os.environ)}

        write_weights(MODELS["gpt2-124M"](), place / "gpt2")
        contenders = {
            "`import torch`": lambda: whole(["-c", "import torch"]),
            "torchgpt.generate, first token, small.py's model": lambda: first_token(place / "run" / "export", "KING"),
            "torchgpt.generate, first token, 124M": lambda: first_token(place / "gpt2", "ab"),
            "`import jax`": lambda: whole(["-c", "import jax"]),
            "jaxgpt.train, first step, nothing compiled before": lambda: train(
                os.environ | {"SCRATCHGPT_CACHE": str(place / f"cache-{next(runs)}")}
            ),
            "jaxgpt.train, first step, second start": lambda: train(warm),
        }
        results = take_turns(contenders, _ROUNDS.value)
        print("\n| until | seconds | of the import's |\n|---|---|---|")
        for name, rows in results.items():
            imports = results["`import torch`" if "torch" in name else "`import jax`"]
            print(f"| {name} | {median(rows, 'seconds'):.2f} | {median_ratio(rows, imports, 'seconds'):.1f} |")
        memory(place / "gpt2")

    def memory(model: Path) -> None:
        """Of generation, in a process of its own, so that no other child's is counted."""
        generation = ["-m", "torchgpt.generate", f"--checkpoint={model}", "--prompt=ab", "--max_new_tokens=128"]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.startup", f"--peak={','.join(generation)}"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        peak, size = json.loads(done.stdout)["peak"], (model / "model.safetensors").stat().st_size
        print("\n| generation with 124M parameters | MB |\n|---|---|")
        print(f"| weights | {size / 1e6:,.0f} |\n| peak memory | {peak / 1e6:,.0f} |")
        print(f"| 1.3 times the weights + 300 MB | {1.3 * size / 1e6 + 300:,.0f} |")

    command.run(main, __doc__)
