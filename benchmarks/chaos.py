"""Kill a training run again and again, and compare what it comes to with the run that nothing disturbed.

    python -m benchmarks.chaos [--kills=25] [--in_save=10] [--devices=1] [--seed=0] [--out=DIR]

Every start of the run dies of SIGKILL at a random moment, or as soon as a save is under way, until there were so many
kills and so many of them inside a save (what they leave behind tells); then the run is left to end. On one device the
final parameters, optimizer state, metrics, samples and exported model must be the same bit by bit. With several counts
in --devices, such as 1,2,4, each start has another one, and figures are compared within rounding, whose effect grows as
a run goes on: give it --steps=100. The run file is this file: dropout, Muon, a validation every other checkpoint.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from configs.schema import Config, OptimConfig, gpt2

STEPS = 800
WORDS = "the king queen rose fell and then saw a winter crown before night came to his hall".split()  # noqa: SIM905


def get_config() -> Config:
    """A small model whose checkpoints are large beside its steps: 0.8M parameters, 256 tokens a step."""
    config = Config(model=gpt2(n_layer=4, n_head=4, n_embd=128, context_length=32, dropout=0.1))
    config.data.dataset, config.data.source, config.data.dir = "chaos", "text.txt", "data"
    config.train.steps, config.train.batch_size = STEPS, 8
    config.optim = OptimConfig(optimizer="muon", learning_rate=0.002, warmup_steps=10)
    config.eval.every, config.eval.max_tokens, config.checkpoint.every, config.log.every = 20, 2000, 10, 1
    config.sample.prompt, config.sample.max_new_tokens = "the king ", 50
    config.log.report = False
    return config


def _leftovers(checkpoints: Path) -> set[str]:
    """Names that only a save under way has: temporary ones, arrays without their record, and what is discarded."""
    names = {path.name for path in checkpoints.glob("*")} | {path.name for path in checkpoints.glob(".*")}
    return {
        n for n in names if not (n.isdigit() and f"{n}.json" in names) and not (n.endswith(".json") and n[0] != ".")
    }


class Chaos:
    """A directory with a text and two runs in it.

    Args:
      out: the directory.
      devices: CPU devices of the starts, in turn.
      seed: of the moments.
      steps: of the run.
    """

    def __init__(self, out: Path, devices: list[int], seed: int, steps: int) -> None:
        self.out, self.devices, self.random, self.steps = out, devices, random.Random(seed), steps
        self.starts = self.kills = self.in_save = 0
        words = random.Random(0)
        (out / "text.txt").write_text(" ".join(words.choice(WORDS) for _ in range(60_000)))

    def _start(self, workdir: str, devices: int) -> subprocess.Popen:
        over = ["--config.mesh.data=1", "--config.mesh.fsdp=-1", f"--config.mesh.cpu_devices={devices}"]
        over += [f"--config.train.steps={self.steps}"]
        command = [sys.executable, "-m", "jaxgpt.train", f"--config={__file__}", f"--workdir={workdir}", *over]
        environment = os.environ | {
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
            "SCRATCHGPT_CACHE": str(self.out / "cache"),
        }
        with open(self.out / f"{workdir}.log", "a") as log:
            return subprocess.Popen(command, cwd=self.out, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def quiet(self, workdir: str) -> tuple[float, float]:
        """Run to the end; returns the seconds to the first line of metrics, and in all. Raises RuntimeError."""
        began, metrics = time.monotonic(), self.out / workdir / "metrics.jsonl"
        process = self._start(workdir, self.devices[self.starts % len(self.devices)])
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.01)
        first = time.monotonic() - began
        if process.wait():
            raise RuntimeError((self.out / f"{workdir}.log").read_text()[-2000:])
        return first, time.monotonic() - began

    def kill_once(self, longest: float) -> None:
        """One start that dies, at a moment within ``longest`` seconds or at a save."""
        checkpoints = self.out / "killed" / "checkpoints"
        before = _leftovers(checkpoints)
        process = self._start("killed", self.devices[self.starts % len(self.devices)])
        self.starts += 1
        if self.random.random() < 0.5:  # any moment: imports, reading the data, restoring, compiling, training
            deadline, look = time.monotonic() + self.random.uniform(0, longest), False
        else:  # the n-th save from now, somewhere within it
            saves, deadline, look = self.random.randint(1, 3), time.monotonic() + 20 * longest, True
        seen = before
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
            if look and (now := _leftovers(checkpoints)) - seen:
                saves -= 1
                if not saves:
                    time.sleep(self.random.uniform(0, 0.05))
                    break
            if look:
                seen = now
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            self.kills += 1
            self.in_save += bool(_leftovers(checkpoints) - before)
        elif process.returncode:
            raise RuntimeError((self.out / "killed.log").read_text()[-2000:])

    def state(self, workdir: str) -> dict[str, Any]:
        """Arrays of the last checkpoint by their names."""
        import jax
        import numpy as np
        from orbax.checkpoint import v1 as ocp

        arrays = ocp.load(self.out / workdir / "checkpoints" / f"{self.steps:08d}")
        return {
            jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
        }

    def metrics(self, workdir: str) -> list[dict[str, Any]]:
        """Lines of the metrics without the speed."""
        lines = (self.out / workdir / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"} for line in lines]


def compare(chaos: Chaos) -> tuple[bool, list[str]]:
    """Whether the killed run came to what the quiet one did, and lines that say how near."""
    import jax
    import numpy as np

    jax.config.update("jax_num_cpu_devices", max(chaos.devices))  # Orbax reads arrays back as they were laid out
    states, rows = [[read(run) for run in ("quiet", "killed")] for read in (chaos.state, chaos.metrics)]
    same_lines = [row.keys() for row in rows[0]] == [row.keys() for row in rows[1]]
    steps = [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    if not (same_lines and steps and states[0].keys() == states[1].keys()):
        return False, ["the runs have different lines or arrays"]
    numbers = sum(np.size(a) for a in states[0].values())
    if chaos.devices == [1]:
        unequal = [n for n, a in states[0].items() if a.tobytes() != states[1][n].tobytes()]
        files = ["samples.txt", "export/model.safetensors"]
        unequal += [f for f in files if len({(chaos.out / r / f).read_bytes() for r in ("quiet", "killed")}) > 1]
        unequal += ["metrics.jsonl"] if rows[0] != rows[1] else []
        told = f"{numbers:,} numbers of the final state, {len(rows[0]):,} lines of metrics, samples and export: "
        return not unequal, [told + (f"different: {', '.join(unequal)}" if unequal else "the same bit by bit")]
    losses = [np.array([r.get("train_loss", r.get("val_loss")) for r in run]) for run in rows]
    off = float(np.abs(losses[1] / losses[0] - 1).max())
    # A bias of all keys changes no attention: its gradient is rounding alone, which AdamW makes as large as any step.
    names = [n for n in states[0] if n.startswith("['params']") and "attn.k.bias" not in n]
    apart = max(float(np.abs(states[1][n] - states[0][n]).max() / np.abs(states[0][n]).max()) for n in names)
    lines = [
        f"losses differ by at most {off:.1e} of their size, parameters by {apart:.1e} of the largest of their kind"
    ]
    return off < 1e-5 and apart < 1e-4, lines


if __name__ == "__main__":
    from absl import flags

    from scratchgpt import cli as command
    from scratchgpt.errors import UserError

    _KILLS = flags.DEFINE_integer("kills", 25, "kills, at least", 1)
    _IN_SAVE = flags.DEFINE_integer("in_save", 10, "of them inside a save, at least", 0)
    _DEVICES = flags.DEFINE_list("devices", ["1"], "CPU devices of the starts, in turn")
    _STEPS = flags.DEFINE_integer("steps", STEPS, "of the run", 20)
    _SEED = flags.DEFINE_integer("seed", 0, "of the moments of the kills")
    _OUT = flags.DEFINE_string("out", "", "directory of the runs, kept; empty: a temporary one")

    def main() -> int:
        """Run, kill and compare; the exit status tells whether the runs agree."""
        with tempfile.TemporaryDirectory() as temporary:
            out = Path(_OUT.value or temporary).absolute()
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            chaos = Chaos(out, [int(d) for d in _DEVICES.value], _SEED.value, _STEPS.value)
            first, whole = chaos.quiet("quiet")
            print(f"undisturbed: {whole:.0f} s, {first:.0f} of them before step 1; seed {_SEED.value}", flush=True)
            while chaos.kills < _KILLS.value or chaos.in_save < _IN_SAVE.value:
                chaos.kill_once(first + 0.02 * (whole - first))
                if (out / "killed" / "samples.txt").exists():
                    raise UserError(f"the run of {_STEPS.value} steps ended after {chaos.kills} kills: raise --steps")
                if chaos.kills % 5 == 0:
                    print(f"{chaos.kills} kills, {chaos.in_save} of them inside a save", flush=True)
            chaos.quiet("killed")
            agrees, lines = compare(chaos)
            print(f"{chaos.kills} kills, {chaos.in_save} of them inside a save, {chaos.starts} starts")
            print("\n".join(lines))
            return 0 if agrees else 1

    command.run(main, __doc__)
