"""Whether filtering a pool by a classifier helps a model of the target domain: equal tokens, two pools, one validation.

    python -m benchmarks.classifier_filter --target=law.jsonl --other=c4.parquet --pool=c4.jsonl,web.jsonl

Distinct target documents are dealt to three sides by a hash: a quarter teaches the classifier (against --other), 15 %
validate, the rest is hidden in the pool among the documents of --pool. A tokenizer is learned from the unfiltered pool.
The same model is then trained for the same number of tokens on (a) the pool and (b) what `data_prep.filter
--filters=classifier` keeps of it, and judged on the validation documents, which neither classifier nor pools have seen.

The model is configs/shakespeare_char_cpu.py's; every step is the product's own command in a process of its own.
"""

import gzip
import importlib.metadata
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from absl import flags

from configs.schema import DataConfig
from configs.shakespeare_char_cpu import get_config
from data_prep.classifier import key_of, side_of
from data_prep.order import read_validation_batch, validation_windows
from data_prep.prepare import prepare
from data_prep.shards import open_tokens
from data_prep.sources import documents
from scratchgpt import cli as command
from scratchgpt.files import read_json

_TARGET = flags.DEFINE_string("target", None, "documents of the target domain: file, folder or glob", required=True)
_OTHER = flags.DEFINE_list("other", None, "the classifier's negative documents: files, folders or globs", required=True)
_POOL = flags.DEFINE_list("pool", None, "other documents of the pool: files, folders or globs", required=True)
_SEEDS = flags.DEFINE_list("seeds", ["1", "2"], "two training runs each")
_STEPS = flags.DEFINE_integer("steps", 300, "training steps of configs/shakespeare_char_cpu.py", lower_bound=1)
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 1024, "entries of the tokenizer", lower_bound=257)
_THRESHOLD = flags.DEFINE_float("threshold", 0.5, "least score that passes the filter")
_SEED = 0  # of the dealing


def write_rows(path: Path, texts: Iterable[str]) -> Path:
    """A .jsonl file of ``texts``."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def read_rows(folder: Path) -> list[str]:
    """Texts of a filtered folder."""
    files = sorted(folder.glob("*.jsonl.gz"))
    return [json.loads(line)["text"] for file in files for line in gzip.decompress(file.read_bytes()).splitlines()]


def distinct(sources: Iterable[str], without: Iterable[bytes] = ()) -> dict[bytes, str]:
    """Texts by the key that tells copies, but for those of the keys ``without``, in the order of a hash."""
    found: dict[bytes, str] = {}
    for text in itertools.chain.from_iterable(documents("text", source)[0] for source in sources):
        found.setdefault(key_of(text), text)
    for key in without:
        found.pop(key, None)
    return dict(sorted(found.items(), key=lambda item: side_of(item[0], _SEED)))


def run(module: str, *arguments: str) -> float:
    """Seconds that ``python -m module`` took; its output is shown only if it fails."""
    began = time.monotonic()
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}")
    return time.monotonic() - began


def train(source: Path, tokenizer: Path, seed: str, workdir: Path) -> Path:
    """The export of a model trained on ``source``."""
    run(
        "jaxgpt.train",
        "--config=configs/shakespeare_char_cpu.py",
        f"--workdir={workdir}",
        "--config.data.dataset=pool",
        f"--config.data.source={source}",
        f"--config.data.tokenizer={tokenizer}",
        f"--config.data.dir={source.parent / ('tokens-' + source.name.split('.')[0])}",
        "--config.data.val_fraction=0.02",  # the run's own validation is of no use here
        "--config.eval.max_tokens=2000",
        f"--config.train.steps={_STEPS.value}",
        f"--config.train.seed={seed}",
        f"--config.checkpoint.every={_STEPS.value}",
        "--config.sample.max_new_tokens=0",
    )
    return workdir / "export"


def loss_on(export: Path, tokens: Path, batch_size: int = 128) -> float:
    """Mean loss in nats per token over all windows of the prepared text in ``tokens``."""
    import torch  # here, so that --help and wrong flags answer at once

    from torchgpt.hf import load_model

    model, source = load_model(export), open_tokens(tokens, "train")
    length = model.config.context_length
    starts, lengths = validation_windows(len(source), length)
    total = 0.0
    for i in range(0, len(starts), batch_size):
        part = slice(i, i + batch_size)
        inputs, targets, weights = map(
            torch.from_numpy, read_validation_batch(source, starts[part], lengths[part], length)
        )
        with torch.inference_mode():
            logits = model(inputs.long()).flatten(0, 1)
        losses = torch.nn.functional.cross_entropy(logits, targets.long().flatten(), reduction="none")
        total += (losses.double() * weights.flatten()).sum().item()
    return total / (len(source) - 1)


def make_texts(folder: Path) -> tuple[dict[bytes, str], dict[bytes, str]]:
    """Write positive, negative, validation and pool .jsonl to ``folder``; returns (target documents, others) hidden."""
    target = distinct([_TARGET.value])
    sides = {key: side_of(key, _SEED) for key in target}
    learn = [text for key, text in target.items() if sides[key] < 0.25]
    validate = [text for key, text in target.items() if 0.25 <= sides[key] < 0.4]
    hidden = {key: text for key, text in target.items() if sides[key] >= 0.4}
    other = distinct(_OTHER.value, without=target)
    web = distinct(_POOL.value, without=[*target, *other])
    pool = dict(sorted({**hidden, **web}.items(), key=lambda item: side_of(item[0], _SEED + 1)))
    texts = {"positive": learn, "negative": list(other.values()), "validation": validate, "pool": list(pool.values())}
    for name, chosen in texts.items():
        write_rows(folder / f"{name}.jsonl", chosen)
        print(f"{name}: {len(chosen):,} documents, {sum(map(len, chosen)):,} characters")
    share = sum(map(len, hidden.values())) / sum(map(len, pool.values()))
    print(f"hidden in the pool: {len(hidden):,} target documents, {share:.1%} of its characters")
    return hidden, web


def main() -> None:
    """Print the machine, the classifier's figures and the validation losses."""
    libraries = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "torch", "scikit-learn", "datatrove"))
    print(f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}, {libraries}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        hidden, web = make_texts(folder)
        model, pool, kept = folder / "classifier", folder / "pool.jsonl", folder / "kept"
        sources = [f"--{side}={folder / side}.jsonl" for side in ("positive", "negative")]
        seconds = run("data_prep.train_classifier", *sources, f"--out={model}")
        at = next(row for row in read_json(model / "classifier.json")["held_out"] if row["threshold"] == 0.5)
        ratios = ", ".join(f"{name} {at[name]:.4f}" for name in ("precision", "recall", "f1"))
        print(f"classifier: {ratios} on its held-out documents; {seconds:.0f} s")
        use = ["--filters=classifier", f"--classifier={model}", f"--classifier_threshold={_THRESHOLD.value}"]
        seconds = run("data_prep.filter", f"--source={pool}", f"--out={kept}", *use)
        keys = {key_of(text) for text in read_rows(kept)}
        found = len(keys & hidden.keys())
        print(
            f"filter: keeps {len(keys):,} documents, of which {found:,} are target documents (precision"
            f" {found / len(keys):.4f}), out of {len(hidden):,} (recall {found / len(hidden):.4f}) in"
            f" {len(hidden) + len(web):,}; {seconds:.0f} s",
            flush=True,
        )
        tokenizer, validation = folder / "tokenizer", folder / "validation.jsonl"
        run("data_prep.train_tokenizer", f"--source={pool}", f"--vocab_size={_VOCAB_SIZE.value}", f"--out={tokenizer}")
        data = DataConfig("validation", str(validation), "text", str(tokenizer), str(folder / "tokens"), 0.0)
        tokens = prepare(data, log=lambda line: None)
        n_bytes = sum(len(json.loads(line)["text"].encode()) for line in validation.open(encoding="utf-8"))
        n_tokens = len(open_tokens(tokens, "train"))
        recipe = get_config()
        trained = _STEPS.value * recipe.train.batch_size * recipe.model.context_length
        print(f"each model trains on {trained:,} tokens; validation: {n_tokens:,} tokens", flush=True)
        losses: dict[str, list[float]] = {"pool": [], "filtered": []}
        for seed in _SEEDS.value:
            for name, source in (("pool", pool), ("filtered", kept)):
                loss = loss_on(train(source, tokenizer, seed, folder / f"{name}-{seed}"), tokens)
                losses[name].append(loss)
                bits = loss * n_tokens / n_bytes / math.log(2)
                print(f"seed {seed}, {name:8}: {loss:.4f} nats per token, {bits:.4f} bits per byte", flush=True)
        gains = [a - b for a, b in zip(losses["pool"], losses["filtered"], strict=True)]
        print(
            f"mean: pool {statistics.mean(losses['pool']):.4f}, filtered {statistics.mean(losses['filtered']):.4f};"
            f" gain {statistics.mean(gains):.4f} nats per token ({min(gains):.4f} to {max(gains):.4f});"
            f" {time.monotonic() - began:.0f} s in all"
        )


if __name__ == "__main__":
    command.run(main, __doc__)
