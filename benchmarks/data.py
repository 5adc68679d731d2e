"""Preparing data beside tiktoken's own batch encoding and beside `datasets.map`; reading batches; memory.

    python -m benchmarks.data [--source=FILE] [--megabytes=40] [--pairs=5] [--only=encoding,map,loader] [--large=3]

The text is that of --source, a .jsonl file, repeated until it has --megabytes. One run times, one directly after the
other and in turning order, for each of --pairs:

  prepare    data_prep.prepare with GPT-2's BPE: from the .jsonl file to shards with checksums, all of it
  tiktoken   encode_ordinary_batch on as many threads, of texts that are in memory; it writes nothing
  map        what nanoGPT's data/openwebtext/prepare.py does: Dataset.map(num_proc=cores) of a function that encodes one
             text and appends the end-of-text token, then all ids into one memmap, in 1024 pieces; without the loading

Each is also given in CPU seconds, of which a machine that others use shows more than of wall time. `loader` counts the
tokens of TokenData.batch through Grain as jaxgpt.objective reads them, at the shape of configs/small.py.
`--large=N` writes a .jsonl file of N GB, prepares it in a process of its own and gives the peak of its memory.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tiktoken
from absl import flags

from configs.schema import Config, DataConfig
from data_prep.build import workers_available
from data_prep.prepare import prepare
from data_prep.shards import load_manifest, open_tokens
from data_prep.sources import documents
from scratchgpt import cli as command

_SOURCE = flags.DEFINE_string("source", "../shared/data/openwebtext/docs_800.jsonl", "a file of documents")
_MEGABYTES = flags.DEFINE_integer("megabytes", 40, "size of the text that is timed", lower_bound=1)
_PAIRS = flags.DEFINE_integer("pairs", 5, "timings of each", lower_bound=1)
_ONLY = flags.DEFINE_list("only", ["encoding", "map", "loader"], "what to measure")
_LARGE = flags.DEFINE_float("large", 0.0, "also prepare a file of this many GB and give the peak of memory")
_TOKENIZER = flags.DEFINE_string("large_tokenizer", "gpt2", "its tokenizer: gpt2 or char")
_FORMAT = flags.DEFINE_enum("large_format", "jsonl", ["jsonl", "txt"], "its format")

_CHILD = """
import sys
from configs.schema import DataConfig
from data_prep.prepare import prepare
prepare(DataConfig(dataset="large", source=sys.argv[1], dir=sys.argv[2], tokenizer=sys.argv[3]))
with open("/proc/self/status") as status:
    print("peak", next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


def _machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor()
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("tiktoken", "datasets", "numpy", "grain"))
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    return (
        f"{cpu}, {workers_available()} cores, {platform.system()}; Python {platform.python_version()}, {versions};"
        f" load {load}"
    )


def _repeated(path: Path, size: int) -> list[str]:
    """Write the documents of --source to ``path`` again and again until it has ``size`` bytes; returns them once."""
    texts = list(documents("text", _SOURCE.value)[0])
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in texts]
    with open(path, "wb") as file:
        while file.tell() < size:
            file.writelines(lines)
    return texts


def _cpu_seconds() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _timed(functions: dict[str, Callable[[], int]]) -> dict[str, list[tuple[float, float]]]:
    """(tokens a second of wall time, of CPU time) of each, --pairs times."""
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for pair in range(_PAIRS.value):
        names = list(functions)
        for name in names[pair % len(names) :] + names[: pair % len(names)]:
            wall, cpu = time.perf_counter(), _cpu_seconds()
            tokens = functions[name]()
            wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
            speeds[name].append((tokens / wall, tokens / cpu))
    return speeds


def _by_prepare(source: Path, folder: Path) -> int:
    shutil.rmtree(folder, ignore_errors=True)
    data = DataConfig(dataset="bench", source=str(source), dir=str(folder), tokenizer="gpt2", val_fraction=0.01)
    prepare(data, log=lambda _: None)
    return sum(split["tokens"] for split in load_manifest(folder)["splits"].values())


_GPT2: tiktoken.Encoding | None = None


def _gpt2() -> tiktoken.Encoding:
    global _GPT2
    _GPT2 = _GPT2 or tiktoken.get_encoding("gpt2")
    return _GPT2


def _process(example: dict[str, str]) -> dict[str, object]:
    ids = _gpt2().encode_ordinary(example["text"])
    ids.append(_gpt2().eot_token)
    return {"ids": ids, "len": len(ids)}


def _by_map(rows: object, folder: Path) -> int:
    """The tokenization and the writing of nanoGPT's script; ``rows`` is a datasets.Dataset."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    cores = workers_available()
    names = {"cache_file_name": str(folder / "cache.arrow"), "load_from_cache_file": False}
    tokenized = rows.map(_process, remove_columns=["text"], num_proc=cores, **names)
    total = int(np.sum(tokenized["len"], dtype=np.uint64))
    out = np.memmap(folder / "train.bin", np.uint16, "w+", shape=(total,))
    at, pieces = 0, min(1024, len(tokenized))
    for index in range(pieces):
        batch = tokenized.shard(num_shards=pieces, index=index, contiguous=True).with_format("numpy")
        ids = np.concatenate(batch["ids"])
        out[at : at + len(ids)] = ids
        at += len(ids)
    out.flush()
    return total


def _speed(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.0f} tokens/s ({min(values):,.0f} to {max(values):,.0f})"


def encoding(root: Path) -> None:
    """Print the speeds of the three ways, and our speed divided by that of the others."""
    source = root / "text.jsonl"
    once = _repeated(source, _MEGABYTES.value * 10**6)
    texts = [json.loads(line)["text"] for line in open(source, "rb")]  # noqa: SIM115
    cores = workers_available()
    functions = {"prepare": lambda: _by_prepare(source, root / "ours")}
    if "encoding" in _ONLY.value:
        functions["tiktoken"] = lambda: sum(map(len, _gpt2().encode_ordinary_batch(texts, num_threads=cores)))
    if "map" in _ONLY.value:
        import datasets

        datasets.disable_progress_bars()
        rows = datasets.load_dataset("json", data_files=str(source), cache_dir=str(root / "cache"))["train"]
        functions["map"] = lambda: _by_map(rows, root / "map")
    _by_prepare(source, root / "ours")  # what is read from the disk is in the page cache from here on
    print(f"{source.stat().st_size / 1e6:.0f} MB of .jsonl, {len(texts):,} documents ({len(once):,} distinct)")
    speeds = _timed(functions)
    for name, values in speeds.items():
        print(
            f"{name:9}{_speed([wall for wall, _ in values])}; for each CPU second {_speed([cpu for _, cpu in values])}"
        )
    for other in list(speeds)[1:]:
        pairs = list(zip(speeds["prepare"], speeds[other], strict=True))
        wall, cpu = (statistics.median(ours[i] / theirs[i] for ours, theirs in pairs) for i in (0, 1))
        print(f"prepare / {other}: median of {len(pairs)} pairs {wall:.2f} by the clock, {cpu:.2f} by CPU seconds")


def loader(root: Path) -> None:
    """Print how many tokens a second the batches of training hold, as jaxgpt reads them: through Grain."""
    import grain

    from configs.small import get_config
    from data_prep.token_data import TokenData

    source = root / "text.jsonl"
    if not source.exists():
        _repeated(source, _MEGABYTES.value * 10**6)
        _by_prepare(source, root / "ours")
    # two threads that read ahead 8 batches are what jaxgpt.objective has
    for name, sequences, length in (("configs/small.py", 0, 0), ("GPT-2's context", 12, 1024)):
        config: Config = get_config()
        config.data = DataConfig(
            dataset="bench", source=str(source), dir=str(root / "ours"), tokenizer="gpt2", val_fraction=0.01
        )
        config.train = dataclasses.replace(
            config.train,
            batch_size=sequences or config.train.batch_size,
            sequence_length=length or config.model.context_length,
        )
        data = TokenData(config, log=lambda _: None)
        speeds = []
        for repeat in range(_PAIRS.value):
            count = max(20, 10_000_000 // data.tokens_per_step())
            steps = grain.MapDataset.range(repeat * count, (repeat + 1) * count).map(lambda s, d=data: d.batch(int(s)))
            began = time.perf_counter()
            for _ in steps.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)):
                pass
            speeds.append(count * data.tokens_per_step() / (time.perf_counter() - began))
        shape = f"{config.train.batch_size} x {config.train.sequence_length}"
        print(f"loader, {name} ({shape}): median of {len(speeds)} {_speed(speeds)}")


def large(root: Path) -> None:
    """Print the peak of memory of a process that prepares a large file."""
    source = root / "large.jsonl"
    _repeated(source, int(_LARGE.value * 1e9))
    if _FORMAT.value == "txt":
        text = root / "large.txt"
        with open(source, "rb") as lines, open(text, "wb") as file:
            file.writelines(json.loads(line)["text"].encode() + b"\n" for line in lines)
        source.unlink()
        source = text
    print(f"preparing {source.stat().st_size / 1e9:.2f} GB of {_FORMAT.value} with {_TOKENIZER.value}", flush=True)
    began = time.perf_counter()
    command = [sys.executable, "-c", _CHILD, str(source), str(root / "large"), _TOKENIZER.value]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - began
    for line in done.stdout.splitlines()[:3] + done.stdout.splitlines()[-3:-1]:
        print(f"  {line}")
    tokens = sum(len(open_tokens(root / "large", split, verify=False)) for split in ("train", "val"))
    peak = int(done.stdout.split()[-1]) * 1024
    print(f"peak of resident memory {peak / 2**20:,.0f} MiB; {tokens:,} tokens in {seconds:,.0f} s")


def main() -> None:
    """Print the machine, the versions and the figures."""
    print(_machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if {"encoding", "map"} & set(_ONLY.value):
            encoding(root)
        if "loader" in _ONLY.value:
            loader(root)
        if _LARGE.value:
            large(root)


if __name__ == "__main__":
    command.run(main, __doc__)
