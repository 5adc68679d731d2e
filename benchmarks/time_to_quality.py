"""Wall time and loss at nanoGPT's CPU shape on tiny Shakespeare: our recipe, and beside it nanoGPT's own.

    python -m benchmarks.time_to_quality --source=input.txt [--nanogpt=CHECKOUT] [--seeds=1337,1,2] [--steps=160,1000]

Both models have 4 layers, 4 heads, width 128, context 64, and are judged by one function: the mean loss over the whole
validation split (111,540 characters) in consecutive windows of 64. Times begin with the process and hold imports, the
preparation of the text and compilation (nothing is compiled before). "To the loss" ends when the run has said that
loss, or, with nanoGPT, which does not, when its training has ended; "whole" ends with the process, which in ours has
then written samples, exported the model and drawn a report. Ours is configs/shakespeare_char_cpu.py, once for each of
--steps, within which its learning rate falls; nanoGPT runs its documented CPU recipe (2,000 steps of 12 sequences) and
needs torch.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

from benchmarks.turns import (
    ROOT,
    Figures,
    check_files,
    machine,
    mean_and_error,
    median,
    median_ratio,
    whole_numbers,
)
from scratchgpt import cli as command
from scratchgpt.errors import UserError

# nanoGPT's README, "I only have a macbook": the CPU recipe.
NANOGPT_RECIPE = [
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=100",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
]

# Behind train.py's last line, in its process: when it ended, and its model's mean loss over the validation split.
NANOGPT_EVALUATION = """
ended = time.time()
validation = torch.from_numpy(np.fromfile("data/shakespeare_char/val.bin", np.uint16).astype(np.int64))
raw_model.eval()
total = 0.0
with torch.no_grad():
    for start in range(0, len(validation) - 1, 64):
        x, y = validation[start : start + 64][: len(validation) - 1 - start], validation[start + 1 : start + 65]
        total += raw_model(x[None], y[None])[1].item() * len(y)
print("ended", ended, "loss", total / (len(validation) - 1))
"""


def run_ours(steps: int, seed: int, source: str, directory: Path) -> Figures:
    """Seconds to the full-validation loss of configs/shakespeare_char_cpu.py in so many steps, and of the whole run."""
    arguments = [f"--config.data.source={source}", f"--config.data.dir={directory / 'data'}"]
    command = [sys.executable, "-m", "jaxgpt.train", f"--config={ROOT / 'configs/shakespeare_char_cpu.py'}", *arguments]
    command += [f"--workdir={directory / f'ours-{steps}'}", f"--config.train.seed={seed}"]
    environment = os.environ | {"SCRATCHGPT_CACHE": str(directory / f"cache-{steps}")}
    began = time.monotonic()
    process = subprocess.Popen(
        [*command, f"--config.train.steps={steps}"], stdout=subprocess.PIPE, env=environment, text=True
    )
    for line in process.stdout:
        if found := re.search(r"^step \d+: validation loss ([\d.]+)", line):
            seconds, loss = time.monotonic() - began, float(found[1])
    if process.wait():
        raise UserError(f"the run of {steps} steps with seed {seed} failed")
    return {"seconds": seconds, "whole": time.monotonic() - began, "loss": loss}


def _finished(what: str, command: list[str], place: Path) -> str:
    """What ``command`` prints. Raises UserError if it fails."""
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{what} failed: {done.stderr.strip()[-600:]}")
    return done.stdout


def run_nanogpt(checkout: str, seed: int, source: str, directory: Path) -> Figures:
    """Seconds of nanoGPT's CPU recipe, which says no loss of the whole split by itself, and that loss."""
    root = Path(checkout).resolve()
    if not (root / "data" / "shakespeare_char" / "val.bin").exists():
        if source:
            (root / "data" / "shakespeare_char" / "input.txt").write_bytes(Path(source).read_bytes())
        _finished("nanoGPT's preparation", [sys.executable, "data/shakespeare_char/prepare.py"], root)
    # train.py fixes its seed; a copy of the text with another one is run
    code = (root / "train.py").read_text().replace("torch.manual_seed(1337 +", f"torch.manual_seed({seed} +")
    command = [sys.executable, "-c", code + NANOGPT_EVALUATION, "config/train_shakespeare_char.py", *NANOGPT_RECIPE]
    began = time.time()
    told = _finished("nanoGPT's training", [*command, f"--out_dir={directory / 'nanogpt'}"], root)
    _, ended, _, loss = told.splitlines()[-1].split()
    seconds = float(ended) - began
    return {"seconds": seconds, "whole": seconds, "loss": float(loss)}


if __name__ == "__main__":
    _SOURCE = flags.DEFINE_string("source", "", "tiny Shakespeare as a local file; empty: download it")
    _NANOGPT = flags.DEFINE_string(
        "nanogpt", "", "a checkout of github.com/karpathy/nanoGPT, where its data is prepared"
    )
    _SEEDS = flags.DEFINE_list("seeds", ["1337", "1", "2"], "one run of each contender for each")
    _STEPS = flags.DEFINE_list("steps", ["160", "1000"], "of our recipe, one contender each")

    def main() -> None:
        """Run the contenders in turns, seed by seed, and print the table."""
        check_files(_SOURCE.value, _NANOGPT.value)
        seeds, lengths = whole_numbers("seeds", _SEEDS.value), whole_numbers("steps", _STEPS.value, least=1)
        print(machine("jax", "torch"))
        results: dict[str, list[Figures]] = {}

        def record(contender: str, figures: Figures) -> None:
            results.setdefault(contender, []).append(figures)
            seconds, loss, whole = figures["seconds"], figures["loss"], figures["whole"]
            told = f"{contender}: {seconds:.1f} s to the loss of {loss:.4f}, {whole:.1f} s whole"
            print(told, file=sys.stderr, flush=True)

        source = str(Path(_SOURCE.value).absolute()) if _SOURCE.value else ""
        for seed in seeds:
            with tempfile.TemporaryDirectory() as scratch:
                for steps in lengths:
                    record(f"ours, {steps} steps", run_ours(steps, seed, source, Path(scratch)))
                if _NANOGPT.value:
                    record("nanoGPT's CPU recipe", run_nanogpt(_NANOGPT.value, seed, source, Path(scratch)))
        named = ", ".join(map(str, seeds))
        print(f"\n| contender, seeds {named} | validation loss | seconds to the loss | of nanoGPT's | whole |")
        print("|---|---|---|---|---|")
        theirs = results.get("nanoGPT's CPU recipe")
        for contender, rows in results.items():
            loss = mean_and_error([row["loss"] for row in rows])
            share = f"{median_ratio(rows, theirs, 'seconds'):.2f}" if theirs else "-"
            seconds, whole = median(rows, "seconds"), median(rows, "whole")
            print(f"| {contender} | {loss} | {seconds:.1f} | {share} | {whole:.1f} |")

    command.run(main, __doc__)
