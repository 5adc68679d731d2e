"""Learn a byte-level BPE vocabulary from text and save it as a Hugging Face tokenizer directory.

The text is --source: a file, folder or glob of .txt, .jsonl, .jsonl.gz or .parquet files, or a Hugging Face data set id
(ID or ID:CONFIGURATION, streamed); or --dataset alone: shakespeare, tinyshakespeare, fineweb_edu, openwebtext or
tinystories. --vocab_size counts everything: the 256 bytes, the merges, and <|endoftext|>, the last id.

The text is streamed: what has to fit into memory is its distinct words, about 1 kB each. --max_bytes bounds both.

Example: python -m data_prep.train_tokenizer --dataset=shakespeare --vocab_size=4096 --out=tokenizers/shakespeare
"""

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from absl import flags

from data_prep.sources import NAMED, documents
from data_prep.tokenizers import (
    CONFIG_NAME,
    END_OF_TEXT,
    JSON_NAME,
    BPETokenizer,
    _byte_characters,
    _dump,
    bpe_json,
    bpe_tokenizer,
)
from scratchgpt import cli
from scratchgpt.errors import UserError
from scratchgpt.files import atomic_path, disk_errors

SMALLEST = 257  # the bytes and <|endoftext|>
_PIECE_CHARACTERS = 1 << 18  # counted at a time, so that a file of gigabytes never lies in memory as a list of words
_REPORT_EVERY_S = 10.0


class _Progress:
    """A bar on a terminal, else a line every ten seconds."""

    def __init__(self, what: str, unit: str, total: int, log: Callable[[str], None]) -> None:
        self._what, self._unit, self._total, self._log = what, unit, total, log
        self._done, self._next, self._bar = 0, time.monotonic() + _REPORT_EVERY_S, None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total or None, unit=unit, unit_scale=True, desc=what, leave=False)

    def add(self, amount: int) -> None:
        self._done += amount
        if self._bar is not None:
            self._bar.update(amount)
        elif time.monotonic() >= self._next:
            of = f" of {self._total:,}" if self._total else ""
            self._log(f"{self._what}: {self._done:,}{of} {self._unit}")
            self._next = time.monotonic() + _REPORT_EVERY_S

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def limited(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    """``texts`` until they have ``max_bytes`` of UTF-8 in all (0: no limit), the last one cut off there.

    Half of a UTF-16 pair, which UTF-8 cannot hold, becomes U+FFFD, as it does when tiktoken encodes it.
    """
    left = max_bytes or sys.maxsize
    for text in texts:
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            data = text.encode("utf-8")
        if len(data) >= left:
            yield data[:left].decode("utf-8", "ignore")
            return
        left -= len(data)
        yield text


def tokenizer_of(merges: Iterable[tuple[bytes, bytes]]) -> BPETokenizer:
    """The tokenizer of ``merges`` (see :mod:`data_prep.bpe`): bytes, merges' results, ``<|endoftext|>``."""
    characters = _byte_characters()
    character_of = {byte: character for character, byte in characters.items()}
    names = [tuple("".join(character_of[b] for b in token) for token in merge) for merge in merges]
    tokens = [*characters, *(left + right for left, right in names), END_OF_TEXT]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return bpe_tokenizer(_dump(bpe_json(vocabulary, names, vocabulary[END_OF_TEXT])))


def train(
    texts: Iterable[str], vocab_size: int, max_bytes: int = 0, log: Callable[[str], None] = print
) -> BPETokenizer:
    """The tokenizer of ``vocab_size`` entries learned from ``texts``; logs what it achieves there.

    The vocabulary is smaller, and a line says so, where every word of the text becomes one token before.

    Raises UserError if vocab_size is below 257 or there is no text.
    """
    from data_prep.bpe import count_words, learn_merges

    _check_size(vocab_size)
    began = time.monotonic()
    n_bytes = 0
    cuts = tokenizer_of([]).cuts

    def pieces() -> Iterator[str]:
        nonlocal n_bytes
        for text in limited(texts, max_bytes):
            for piece in cuts(text, _PIECE_CHARACTERS):
                yield piece
                size = len(piece.encode("utf-8"))
                n_bytes += size
                progress.add(size)

    with _Progress("counting words", "bytes", max_bytes, log) as progress:
        counts = count_words(pieces())
    if not n_bytes:
        raise UserError("there is no text to learn a vocabulary from: the source is empty")
    counted = time.monotonic()
    merges = []
    with _Progress("merging", "merges", vocab_size - SMALLEST, log) as progress:
        for merge in itertools.islice(learn_merges(counts), vocab_size - SMALLEST):
            merges.append(merge)
            progress.add(1)
    tokenizer = tokenizer_of(merges)
    ended = time.monotonic()
    n_tokens = sum(count * len(tokenizer.encode(word)) for word, count in counts.items())
    log(
        f"{tokenizer.size:,} tokens: 256 bytes, {len(merges):,} merges and {END_OF_TEXT},"
        f" from {n_bytes:,} bytes of text with {len(counts):,} distinct words"
    )
    if tokenizer.size < vocab_size:
        log(
            f"the vocabulary has {tokenizer.size:,} entries, not the {vocab_size:,} asked for: the text is too small,"
            " each of its words is one token already"
        )
    log(f"{n_bytes / n_tokens:.3f} bytes per token on this text")
    log(f"{ended - began:.1f} s: {counted - began:.1f} s to read and count, {ended - counted:.1f} s to merge")
    return tokenizer


def train_to(
    out: Path, texts: Iterable[str], vocab_size: int, max_bytes: int = 0, log: Callable[[str], None] = print
) -> None:
    """:func:`train`, then write tokenizer.json and tokenizer_config.json to the directory ``out``, both or neither.

    Raises UserError also if ``out`` holds anything but an earlier tokenizer.
    """
    _check_out(out)
    tokenizer = train(texts, vocab_size, max_bytes, log)
    _check_out(out)  # training takes a while: another process may have used the name
    with atomic_path(out) as temporary:
        tokenizer.save(temporary)
    log(f"saved in {out}")


def _check_size(vocab_size: int) -> None:
    if vocab_size < SMALLEST:
        raise UserError(
            f"--vocab_size={vocab_size} is too small: the 256 bytes and {END_OF_TEXT} alone are {SMALLEST} entries"
        )


def _check_out(out: Path) -> None:
    """Raise UserError, before the work rather than after it, if no tokenizer may be written to ``out``."""
    if os.path.isfile(out):
        raise UserError(f"{out} is a file: choose a directory with --out=DIR")
    if os.path.isdir(out) and os.path.samefile(out, os.curdir):  # a shell in it would be left in a removed directory
        raise UserError(f"--out={out} is the current directory, which is not replaced: name one below it")
    with disk_errors(out):
        others = sorted({p.name for p in out.iterdir()} - {JSON_NAME, CONFIG_NAME}) if os.path.isdir(out) else []
    if others:
        raise UserError(
            f"{out} holds {others[0]!r}, which is no file of a tokenizer: choose another directory with --out=DIR"
        )
    nearest = next(p for p in Path(os.path.abspath(out)).parents if os.path.exists(p))
    if not os.path.isdir(nearest) or not os.access(nearest, os.W_OK):
        raise UserError(f"cannot write {out}: {nearest} is no directory to write in; choose another with --out=DIR")


def _define_flags() -> dict[str, flags.FlagHolder]:
    return {
        "source": flags.DEFINE_string("source", "", "file, folder, glob or Hugging Face data set id"),
        "dataset": flags.DEFINE_string("dataset", "", f"{', '.join(NAMED)}; not needed with --source"),
        "text_column": flags.DEFINE_string("text_column", "text", "column that holds the text"),
        "vocab_size": flags.DEFINE_integer("vocab_size", 4096, f"entries in all, at least {SMALLEST}"),
        "out": flags.DEFINE_string("out", "", "directory to write; an earlier tokenizer there is replaced"),
        "max_bytes": flags.DEFINE_integer("max_bytes", 0, "stop after this many bytes of text; 0: all", lower_bound=0),
    }


def main(source: str, dataset: str, text_column: str, vocab_size: int, out: str, max_bytes: int) -> None:
    """The command. Raises UserError."""
    if not source and not dataset:
        raise UserError("there is no text to learn from: name it with --source=FILE, or --dataset=shakespeare")
    if not out:
        raise UserError("--out is empty: name the directory to write, as in --out=tokenizers/mine")
    _check_size(vocab_size)
    _check_out(Path(out).expanduser())
    texts, _ = documents(dataset, source, text_column)
    train_to(Path(out).expanduser(), texts, vocab_size, max_bytes)


if __name__ == "__main__":
    _FLAGS = _define_flags()
    cli.run(lambda: main(**{name: flag.value for name, flag in _FLAGS.items()}), summary=__doc__)
