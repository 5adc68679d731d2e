"""What was tried on the speed recipe: each change alone, over seeds, against the recipe as it stands.

    python -m benchmarks.recipes [--source=FILE] [--steps=160] [--seeds=1337,1,2] [--only=recipe,adamw,...]

The recipe is configs/shakespeare_char_cpu.py (nanoGPT's CPU shape) for --steps steps, its learning rates falling within
them; every row is a change of it. Losses are those of the whole validation split, seconds those of whole processes with
a warm compilation cache. Rows come in the order of their loss, the changes that made it worse included.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

from benchmarks.turns import ROOT, check_files, check_names, mean_and_error, whole_numbers
from scratchgpt import cli as command
from scratchgpt.errors import UserError

RECIPE = ROOT / "configs" / "shakespeare_char_cpu.py"
# Name -> overrides of the run file, without --config.
CHANGES: dict[str, list[str]] = {
    "recipe": [],
    "adamw": ["optim.optimizer=adamw", "optim.learning_rate=0.003", "optim.beta1=0.9", "optim.beta2=0.99"],
    "muon rate halved": ["optim.muon_learning_rate=0.02"],
    "muon rate doubled": ["optim.muon_learning_rate=0.08"],
    "momentum 0.95": ["optim.muon_momentum=0.95"],
    "embedding rate 0.02": ["optim.embedding_learning_rate=0.02"],
    "rate of the rest 0.004": ["optim.learning_rate=0.004"],
    "rope theta 10,000": ["model.rope_theta=10000"],
    "cosine": ["optim.schedule=cosine"],
    "decay over the last fifth": ["optim.decay_fraction=0.2"],
    "warm-up of 20 steps": ["optim.warmup_steps=20"],
    "weight decay 0.1": ["optim.weight_decay=0.1"],
    "no soft-cap": ["model.logit_softcap=0"],
    "no clipping": ["optim.clip_norm=0"],
    "batch 12 at 4/3 of the steps": ["train.batch_size=12", "train.steps={more}"],
    "batch 24 at 2/3 of the steps": ["train.batch_size=24", "train.steps={fewer}"],
}


def overrides(change: str, steps: int) -> list[str]:
    """The flags of a change of the recipe."""
    lengths = {"more": round(steps * 4 / 3), "fewer": round(steps * 2 / 3)}
    return [f"--config.{text.format(**lengths)}" for text in [f"train.steps={steps}", *CHANGES[change]]]


def run(place: Path, change: str, steps: int, seed: int, source: list[str]) -> tuple[float, float]:
    """(validation loss after the last step, seconds) of one run."""
    workdir, quiet = place / f"{change}-{seed}", ["eval.every=0", "log.report=False", "sample.max_new_tokens=1"]
    arguments = [f"--config={RECIPE}", f"--workdir={workdir}", *source, *overrides(change, steps)]
    arguments += [f"--config.train.seed={seed}", *(f"--config.{text}" for text in quiet)]
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "jaxgpt.train", *arguments], cwd=place, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"the run of {change!r} failed: {done.stderr.strip().splitlines()[-1]}")
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return next(row["val_loss"] for row in reversed(rows) if "val_loss" in row), time.monotonic() - began


if __name__ == "__main__":
    _SOURCE = flags.DEFINE_string("source", "", "file of tiny Shakespeare; empty: downloaded")
    _STEPS = flags.DEFINE_integer("steps", 160, "training steps", 10)
    _SEEDS = flags.DEFINE_list("seeds", ["1337", "1", "2"], "of the runs")
    _ONLY = flags.DEFINE_list("only", list(CHANGES), "changes to try")

    def main() -> int:
        """Run all, seed by seed, then print the table."""
        check_names("only", _ONLY.value, CHANGES)
        check_files(_SOURCE.value)
        seeds = whole_numbers("seeds", _SEEDS.value)
        source = [f"--config.data.source={Path(_SOURCE.value).absolute()}"] if _SOURCE.value else []
        found: dict[str, list[tuple[float, float]]] = {change: [] for change in _ONLY.value}
        with tempfile.TemporaryDirectory() as temporary:
            for seed in seeds:
                for change in found:
                    found[change].append(run(Path(temporary), change, _STEPS.value, seed, source))
                    loss, seconds = found[change][-1]
                    print(f"seed {seed}, {change}: {loss:.4f} in {seconds:.0f} s", file=sys.stderr, flush=True)
        print(f"| change | validation loss, seeds {', '.join(map(str, seeds))} | seconds, least |\n|---|---|---|")
        for change, runs in sorted(found.items(), key=lambda item: sum(loss for loss, _ in item[1])):
            least = min(seconds for _, seconds in runs)
            print(f"| {change} | {mean_and_error([loss for loss, _ in runs])} | {least:.0f} |")
        return 0

    command.run(main, __doc__)
