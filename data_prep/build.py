"""Turn a stream of documents into the files of a shard directory, in bounded memory."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.shards import FORMAT_VERSION, MANIFEST, SHARD_TOKENS, SPLITS, ShardWriter, dtype_for
from data_prep.split import Budget, Part
from data_prep.tokenizers import Tokenizer
from scratchgpt.errors import UserError
from scratchgpt.files import write_json

_BATCH_CHARACTERS = 1 << 22  # encoded at a time, over all threads
_PIECE_CHARACTERS = 1 << 18
_REPORT_EVERY_S = 10.0


class _Progress:
    """A bar on a terminal, else a line every ten seconds."""

    def __init__(self, total: int, log: Callable[[str], None]) -> None:
        self._log, self._tokens, self._next = log, 0, time.monotonic() + _REPORT_EVERY_S
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total or None, unit="tok", unit_scale=True, desc="tokenizing")

    def add(self, tokens: int) -> None:
        self._tokens += tokens
        if self._bar is not None:
            self._bar.update(tokens)
        elif time.monotonic() >= self._next:
            self._log(f"{self._tokens:,} tokens so far")
            self._next = time.monotonic() + _REPORT_EVERY_S

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class _Piece(NamedTuple):
    split: str
    text: str
    begins: bool  # a part starts here
    ends: bool  # an end-of-text token follows


def _pieces(parts: Iterable[Part], tokenizer: Tokenizer) -> Iterator[_Piece]:
    """Parts, long ones cut where it does not change their ids, so that no batch needs much memory."""
    for part in parts:
        texts = tokenizer.cuts(part.text, _PIECE_CHARACTERS)
        for i, text in enumerate(texts):
            yield _Piece(part.split, text, i == 0, part.ends and i == len(texts) - 1)


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encoded(parts: Iterable[Part], tokenizer: Tokenizer) -> Iterator[tuple[_Piece, np.ndarray]]:
    """Every piece of ``parts`` with its ids, the end-of-text token included, int32 [n]."""
    for batch in _batches(_pieces(parts, tokenizer)):
        for piece, ids in zip(batch, tokenizer.encode_batch([p.text for p in batch]), strict=True):
            ids = np.asarray(ids, np.int32)
            yield piece, np.append(ids, np.int32(tokenizer.end_of_text_id)) if piece.ends else ids


def build(
    directory: Path,
    parts: Iterable[Part],
    tokenizer: Tokenizer,
    budget: Budget,
    facts: dict[str, Any],
    log: Callable[[str], None],
    shard_tokens: int = SHARD_TOKENS,
) -> dict[str, Any]:
    """Write shards, tokenizer and manifest into the new ``directory``; returns the manifest.

    ``facts`` are the manifest's entries that the tokens do not tell: dataset, request, source. Raises UserError if no
    token falls to the training split.
    """
    directory.mkdir()
    dtype = dtype_for(tokenizer.size)
    writers = {s: ShardWriter(directory, s, dtype, shard_tokens) for s in SPLITS}
    text = {s: {"documents": 0, "characters": 0, "bytes": 0} for s in SPLITS}
    progress = _Progress(budget.max_tokens, log)
    try:
        for piece, ids in _encoded(parts, tokenizer):
            taken = budget.take(piece.split, len(ids))
            if not taken:
                continue
            cut_short = taken < len(ids) - piece.ends
            kept = tokenizer.decode(ids[:taken]) if cut_short else piece.text
            counts = text[piece.split]
            counts["documents"] += piece.begins
            counts["characters"] += len(kept)
            counts["bytes"] += len(kept.encode("utf-8", "surrogatepass"))
            writers[piece.split].append(ids[:taken])
            progress.add(taken)
            if budget.spent:
                break
        for writer in writers.values():
            writer.close()
    finally:
        progress.close()
        for writer in writers.values():
            writer.abandon()
    if not writers["train"].tokens:
        raise UserError("the source holds no text to train on: name another one with --source=FILE")
    tokenizer.save(directory)
    manifest = {
        "format_version": FORMAT_VERSION,
        **facts,
        "dtype": dtype,
        "tokenizer": {"kind": tokenizer.kind, "size": tokenizer.size, "sha256": tokenizer.sha256},
        "splits": {s: {"tokens": w.tokens, **text[s], "shards": w.shards} for s, w in writers.items()},
    }
    write_json(directory / MANIFEST, manifest)
    return manifest
