"""Compare tokenizers on a text: how far each compresses it, and how much of its vocabulary that takes.

The text is --source (a file, folder or glob of .txt, .jsonl, .jsonl.gz or .parquet files, or a Hugging Face data set
id) or --dataset alone; its first --max_bytes are held in memory. --tokenizers is a list of gpt2, char (the characters
of this very text) and directories with a tokenizer.json.

The columns: entries of the vocabulary, tokens of the text, bytes of UTF-8 per token, tokens per word between white
space, the share of the vocabulary that occurs in the text, and megabytes encoded per second by one thread.

Example: python -m data_prep.compare_tokenizers --dataset=shakespeare --tokenizers=gpt2,char,tokenizers/shakespeare
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from data_prep.sources import NAMED, documents
from data_prep.tokenizers import JSON_NAME, Tokenizer, char_tokenizer, gpt2_tokenizer, load_tokenizer
from data_prep.train_tokenizer import limited
from scratchgpt import cli
from scratchgpt.errors import UserError

_PIECE_CHARACTERS = 1 << 18
_HEADINGS = ("tokenizer", "vocabulary", "tokens", "bytes/token", "tokens/word", "used", "MB/s")


class Comparison(NamedTuple):
    """What one tokenizer makes of a text."""

    size: int
    tokens: int
    bytes_per_token: float
    tokens_per_word: float
    share_used: float
    mb_per_second: float
    lossless: bool  # decoding gives the text back, but for white space at its ends


def compare(tokenizer: Tokenizer, texts: Sequence[str]) -> Comparison:
    """Encode ``texts`` on one thread and count. Raises UserError if there is nothing in them, or no encoding."""
    uses = np.zeros(tokenizer.size, np.int64)
    seconds, lossless = 0.0, True
    for text in texts:
        for piece in tokenizer.cuts(text, _PIECE_CHARACTERS):
            began = time.perf_counter()
            ids = tokenizer.encode(piece)
            seconds += time.perf_counter() - began
            uses += np.bincount(np.asarray(ids, np.int64), minlength=len(uses))
            if tokenizer.kind == "other":  # the others are lossless by their nature
                lossless = lossless and tokenizer.decode(ids).strip() == piece.strip()
    tokens = int(uses.sum())
    if not tokens:
        raise UserError("no token for any of this text")
    n_bytes = sum(len(text.encode("utf-8")) for text in texts)
    return Comparison(
        size=tokenizer.size,
        tokens=tokens,
        bytes_per_token=n_bytes / tokens,
        tokens_per_word=tokens / max(1, sum(len(text.split()) for text in texts)),
        share_used=np.count_nonzero(uses) / tokenizer.size,
        mb_per_second=n_bytes / seconds / 1e6,
        lossless=lossless,
    )


def _open(name: str, texts: Sequence[str]) -> Tokenizer:
    if name == "char":
        return char_tokenizer(texts)
    if name == "gpt2":
        return gpt2_tokenizer()
    if not Path(name).expanduser().is_dir():
        raise UserError(f"--tokenizers names {name!r}, which is neither gpt2, char nor a directory with {JSON_NAME}")
    return load_tokenizer(Path(name).expanduser())


def _cells(row: Comparison) -> list[str]:
    figures = [f"{row.bytes_per_token:.3f}", f"{row.tokens_per_word:.3f}", f"{row.share_used:.1%}"]
    return [f"{row.size:,}", f"{row.tokens:,}{'' if row.lossless else '*'}", *figures, f"{row.mb_per_second:.1f}"]


def table(names: Sequence[str], texts: Sequence[str]) -> list[str]:
    """The lines of the comparison; a tokenizer that cannot encode the text has its reason in place of figures.

    Raises UserError if one of ``names`` is no tokenizer.
    """
    rows: list[tuple[str, list[str] | str]] = []
    for name, tokenizer in [(name, _open(name, texts)) for name in names]:
        try:
            rows.append((name, _cells(compare(tokenizer, texts))))
        except UserError as e:
            rows.append((name, f"cannot encode this text: {str(e).split(': ')[0]}"))  # the advice is not for here
        except Exception as e:  # Hugging Face's `tokenizers` raises plain Exception
            rows.append((name, f"cannot encode this text: {str(e).splitlines()[0] if str(e) else e!r}"))
    full = [[name, *cells] for name, cells in rows if not isinstance(cells, str)]
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *full, strict=True)]
    widths[0] = max(len(n) for n in [_HEADINGS[0], *names])

    def line(cells: Sequence[str]) -> str:
        return "  ".join([cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))])

    def shown(name: str, cells: list[str] | str) -> str:
        return f"{name.ljust(widths[0])}  {cells}" if isinstance(cells, str) else line([name, *cells])

    notes = ["* does not keep the whole text: decoding gives another"] if any("*" in row[2] for row in full) else []
    return [line(_HEADINGS), *(shown(name, cells) for name, cells in rows), *notes]


def main(
    source: str,
    dataset: str,
    text_column: str,
    tokenizers: Sequence[str],
    max_bytes: int,
    log: Callable[[str], None] = print,
) -> None:
    """The command. Raises UserError."""
    if not source and not dataset:
        raise UserError("there is no text to compare on: name it with --source=FILE, or --dataset=shakespeare")
    names = [name.strip() for name in tokenizers if name.strip()]
    if not names:
        raise UserError("--tokenizers is empty: name some, as in --tokenizers=gpt2,char")
    stream, _ = documents(dataset, source, text_column)
    texts = [text for text in limited(stream, max_bytes) if text]
    if not texts:
        raise UserError("there is no text to compare on: the source is empty")
    lines = table(names, texts)
    log(f"{sum(len(t.encode('utf-8')) for t in texts):,} bytes in {len(texts):,} documents")
    log("\n".join(lines))


def _define_flags() -> dict[str, flags.FlagHolder]:
    return {
        "source": flags.DEFINE_string("source", "", "file, folder, glob or Hugging Face data set id"),
        "dataset": flags.DEFINE_string("dataset", "", f"{', '.join(NAMED)}; not needed with --source"),
        "text_column": flags.DEFINE_string("text_column", "text", "column that holds the text"),
        "tokenizers": flags.DEFINE_list("tokenizers", ["gpt2", "char"], "gpt2, char, directories; with commas between"),
        "max_bytes": flags.DEFINE_integer("max_bytes", 10_000_000, "compare on this many bytes; 0: all", lower_bound=0),
    }


if __name__ == "__main__":
    _FLAGS = _define_flags()
    cli.run(lambda: main(**{name: flag.value for name, flag in _FLAGS.items()}), summary=__doc__)
