"""Our BPE trainer beside Hugging Face's, and our encoding beside plain tiktoken, on the same text.

    python -m benchmarks.bpe [--source=FILE|DIR|GLOB] [--dataset=shakespeare] [--vocab_size=4096] [--repeats=5]

Each pair of timings is taken one directly after the other, in alternating order; medians follow. Training times are of
everything after the text is in memory: splitting into words, counting, merging. Ours uses one core, Hugging Face's all
that it finds. The encodings compared have the same ranks; ours goes through :mod:`data_prep.tokenizers`.
"""

import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiktoken
from absl import flags
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from data_prep.bpe import BYTES, count_words, learn_merges
from data_prep.sources import documents
from data_prep.tokenizers import _GPT2_PATTERN, END_OF_TEXT
from data_prep.train_tokenizer import limited, tokenizer_of
from scratchgpt import cli as command

_SOURCE = flags.DEFINE_string("source", "", "file, folder or glob; empty: the data set's own")
_DATASET = flags.DEFINE_string("dataset", "shakespeare", "data set, see data_prep.prepare")
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 4096, "entries in all", lower_bound=257)
_REPEATS = flags.DEFINE_integer("repeats", 5, "pairs of timings", lower_bound=1)

# GPT-2's pattern as OpenAI published it; data_prep.tokenizers has a faster one that splits alike.
_PUBLISHED_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def train_ours(texts: list[str]) -> list[tuple[bytes, bytes]]:
    """The merges that data_prep.bpe learns."""
    return list(itertools.islice(learn_merges(count_words(texts)), _VOCAB_SIZE.value - 257))


def train_theirs(texts: list[str]) -> Tokenizer:
    """What tokenizers' BpeTrainer learns, given the same alphabet and words."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB_SIZE.value,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def timed(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[list[float], list[float], list[Any]]:
    """Seconds of each over the repeats, in alternating order, and what they returned last."""
    functions, seconds, results = (first, second), ([], []), [None, None]
    for repeat in range(_REPEATS.value):
        for which in (0, 1) if repeat % 2 == 0 else (1, 0):
            results[which] = None
            began = time.perf_counter()
            results[which] = functions[which]()
            seconds[which].append(time.perf_counter() - began)
    return *seconds, results


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _seconds(values: list[float]) -> str:
    return f"median {statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Print the machine, the versions and the figures."""
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("tokenizers", "tiktoken", "regex"))
    print(f"{_cpu()}, {os.cpu_count()} cores, {platform.system()}; Python {platform.python_version()}, {versions}")
    texts = list(limited(documents(_DATASET.value, _SOURCE.value)[0], 0))
    n_bytes = sum(len(text.encode()) for text in texts)
    print(f"{n_bytes:,} bytes in {len(texts):,} documents, {_VOCAB_SIZE.value:,} entries, {_REPEATS.value} pairs")

    ours, theirs, (merges, backend) = timed(lambda: train_ours(texts), lambda: train_theirs(texts))
    tokenizer = tokenizer_of(merges)
    equal = json.loads(tokenizer.json_bytes)["model"]["merges"] == json.loads(backend.to_str())["model"]["merges"]
    print(f"training, ours:       {_seconds(ours)}")
    print(f"training, tokenizers: {_seconds(theirs)}")
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    print(f"ours / tokenizers:    median {ratio:.2f}; {len(merges):,} merges, equal: {'yes' if equal else 'NO'}")

    ranks = {token: i for i, token in enumerate([*BYTES, *(left + right for left, right in merges)])}
    for name, pattern in (("our pattern", _GPT2_PATTERN), ("the published pattern", _PUBLISHED_PATTERN)):
        plain = tiktoken.Encoding("plain", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        ours, theirs, results = timed(
            lambda: [tokenizer.encode(text) for text in texts],
            lambda plain=plain: [plain.encode_ordinary(text) for text in texts],
        )
        speed = n_bytes / statistics.median(ours) / 1e6, n_bytes / statistics.median(theirs) / 1e6
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        print(
            f"encoding, ours {speed[0]:.1f} MB/s, tiktoken with {name} {speed[1]:.1f} MB/s, one thread:"
            f" speed ratio median {ratio:.2f}; equal ids: {'yes' if results[0] == results[1] else 'NO'}"
        )


if __name__ == "__main__":
    command.run(main, __doc__)
