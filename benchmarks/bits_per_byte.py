"""One text, one training budget, three tokenizers: which model knows the text best, in bits per byte.

    python -m benchmarks.bits_per_byte [--source=FILE] [--tokenizers=char,bpe-512,bpe-4096] [--steps=300] [--seed=1337]

Models have the blocks of configs/small.py; each trains for as many steps as cost the training FLOPs of --steps steps
with the first tokenizer. The last twentieth of the text is held out and measured by jaxgpt.evaluate. Without --source
the text is the complete works of Shakespeare.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import flags

from benchmarks.turns import check_files
from scratchgpt import cli as command
from scratchgpt.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
HELD_OUT = 0.05


def _run(place: Path, module: str, *arguments: str) -> None:
    print(f"python -m {module} {' '.join(arguments)}", file=sys.stderr, flush=True)
    if subprocess.run([sys.executable, "-m", module, *arguments], cwd=place, stdout=sys.stderr).returncode:
        raise UserError(f"python -m {module} failed: see above")


def measure(place: Path, name: str, flops: float, steps: int, seed: int) -> dict[str, float]:
    """Train with tokenizer ``name`` for ``flops``, or for ``steps`` if that is 0, and measure the held-out text.

    ``name`` is char, gpt2 or bpe-SIZE, which is learned from the training text.
    """
    from configs.schema import resolve_model
    from configs.small import get_config
    from data_prep.tokenizers import load_tokenizer
    from jaxgpt.flops import flops_per_token

    if name.startswith("bpe-"):
        size = f"--vocab_size={name.removeprefix('bpe-')}"
        _run(place, "data_prep.train_tokenizer", "--source=train.txt", size, f"--out={name}")
    data = [f"dataset={name}", "source=train.txt", f"tokenizer={name}", "val_fraction=0.03"]
    _run(place, "data_prep.prepare", *(f"--{item}" for item in data), f"--out={name}-data")
    config, tokenizer = get_config(), load_tokenizer(place / f"{name}-data")
    model = resolve_model(config.model, tokenizer.size)
    tokens_a_step = config.train.batch_size * model.context_length
    flops_a_step = flops_per_token(config, model).model * tokens_a_step
    steps = max(1, round(flops / flops_a_step)) if flops else steps
    overrides = [f"data.{item}" for item in (*data, f"dir={name}-data")]
    overrides += [f"train.steps={steps}", f"train.seed={seed}", "eval.every=0", "log.every=50", "log.report=False"]
    flags = [f"--config.{item}" for item in (*overrides, "sample.max_new_tokens=100")]
    _run(place, "jaxgpt.train", f"--config={ROOT / 'configs' / 'small.py'}", *flags, f"--workdir={name}-run")
    _run(place, "jaxgpt.evaluate", f"--checkpoint={name}-run", "--data=heldout.txt", f"--output={name}.json")
    found = json.loads((place / f"{name}.json").read_text())
    split = json.loads((place / f"{name}-data" / "manifest.json").read_text())["splits"]["train"]
    seen = steps * tokens_a_step * split["bytes"] / split["tokens"]
    more = {"flops": flops_a_step * steps, "steps": steps, "vocabulary": tokenizer.size, "seen": seen}
    return found["metrics"] | more | {"stderr": found["stderr"]["bits_per_byte"]}


if __name__ == "__main__":
    _SOURCE = flags.DEFINE_string("source", "", "file of text; empty: the complete works of Shakespeare")
    _TOKENIZERS = flags.DEFINE_list("tokenizers", ["char", "bpe-512", "bpe-4096"], "char, gpt2, or bpe-SIZE")
    _STEPS = flags.DEFINE_integer("steps", 300, "training steps with the first tokenizer", 1)
    _SEED = flags.DEFINE_integer("seed", 1337, "of the models and batches")

    def main() -> int:
        """Print the table."""
        from data_prep.sources import documents

        check_files(_SOURCE.value)
        for name in _TOKENIZERS.value:
            if not re.fullmatch("char|gpt2|bpe-[0-9]+", name):
                raise UserError(f"--tokenizers: {name!r} is not char, gpt2 or bpe-SIZE")
        texts, _ = documents("" if _SOURCE.value else "shakespeare", _SOURCE.value)
        text = "\n".join(texts)
        at = round(len(text) * (1 - HELD_OUT))
        with tempfile.TemporaryDirectory() as temporary:
            place, flops = Path(temporary), 0.0
            (place / "train.txt").write_text(text[:at], encoding="utf-8")
            kept = set(text[:at])
            (place / "heldout.txt").write_text("".join(c for c in text[at:] if c in kept), encoding="utf-8")
            print("| tokenizer | vocabulary | steps | bytes seen | loss a token | perplexity a token | bits per byte |")
            print("|---|---|---|---|---|---|---|")
            for name in _TOKENIZERS.value:
                found = measure(place, name, flops, _STEPS.value, _SEED.value)
                flops = flops or found["flops"]
                print(
                    f"| {name} | {found['vocabulary']:,} | {found['steps']} | {found['seen'] / 1e6:.2f} M"
                    f" | {found['loss']:.3f} | {found['perplexity']:.1f}"
                    f" | {found['bits_per_byte']:.4f} ± {found['stderr']:.4f} |",
                    flush=True,
                )
        return 0

    command.run(main, __doc__)
