"""Wall time and loss at nanoGPT's CPU shape on tiny Shakespeare: our recipe, and beside it nanoGPT's own.

    python -m benchmarks.time_to_quality --source=input.txt [--nanogpt=CHECKOUT] [--seeds=1337,1,2]

Both models have 4 layers, 4 heads, width 128, context 64, and are judged by one function: the mean loss over the whole
validation split (111,540 characters) in consecutive windows of 64. Times are of whole processes, with imports and
compilation. nanoGPT runs its documented CPU recipe (2,000 steps of 12 sequences); it needs torch.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

_SOURCE = flags.DEFINE_string("source", "", "tiny Shakespeare as a local file; empty: download it")
_NANOGPT = flags.DEFINE_string("nanogpt", "", "a checkout of github.com/karpathy/nanoGPT; empty: only our recipe")
_SEEDS = flags.DEFINE_list("seeds", ["1337"], "one run each")

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


def run_ours(seed: str, directory: Path) -> tuple[float, float]:
    """(seconds, full-validation loss) of configs/shakespeare_char_cpu.py."""
    arguments = [f"--config.data.source={_SOURCE.value}", f"--config.data.dir={directory / 'data'}"]
    command = [sys.executable, "-m", "jaxgpt.train", "--config=configs/shakespeare_char_cpu.py", *arguments]
    command += [f"--workdir={directory / 'ours'}", f"--config.train.seed={seed}"]
    environment = os.environ | {"SCRATCHGPT_CACHE": str(directory / "cache")}  # nothing compiled beforehand
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    seconds = time.monotonic() - began
    rows = [json.loads(line) for line in (directory / "ours" / "metrics.jsonl").read_text().splitlines()]
    return seconds, [r["val_loss"] for r in rows if "val_loss" in r][-1]


def run_nanogpt(seed: str, directory: Path) -> tuple[float, float]:
    """(seconds, full-validation loss) of nanoGPT's CPU recipe."""
    root = Path(_NANOGPT.value).resolve()
    if not (root / "data" / "shakespeare_char" / "val.bin").exists():
        if _SOURCE.value:
            (root / "data" / "shakespeare_char" / "input.txt").write_bytes(Path(_SOURCE.value).read_bytes())
        subprocess.run([sys.executable, "data/shakespeare_char/prepare.py"], cwd=root, check=True)
    # train.py fixes its seed; a copy of the text with another one is run
    code = (root / "train.py").read_text().replace("torch.manual_seed(1337 +", f"torch.manual_seed({seed} +")
    command = [sys.executable, "-c", code + NANOGPT_EVALUATION, "config/train_shakespeare_char.py", *NANOGPT_RECIPE]
    began = time.time()
    done = subprocess.run(
        [*command, f"--out_dir={directory / 'nanogpt'}"], cwd=root, check=True, capture_output=True, text=True
    )
    _, ended, _, loss = done.stdout.splitlines()[-1].split()
    return float(ended) - began, float(loss)


def main(_: list[str]) -> None:
    """Run the seeds, ours and nanoGPT's in turn, and print a line each."""
    for seed in _SEEDS.value:
        with tempfile.TemporaryDirectory() as scratch:
            seconds, loss = run_ours(seed, Path(scratch))
            print(f"seed {seed}: scratchgpt {seconds:.0f} s, validation loss {loss:.4f}", flush=True)
            if _NANOGPT.value:
                theirs, their_loss = run_nanogpt(seed, Path(scratch))
                print(f"seed {seed}: nanoGPT    {theirs:.0f} s, validation loss {their_loss:.4f}")
                print(f"seed {seed}: share of nanoGPT's time {seconds / theirs:.2f}", flush=True)


if __name__ == "__main__":
    app.run(main)
