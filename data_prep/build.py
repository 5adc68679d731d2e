"""Turn sources into the files of a shard directory: in bounded memory, and restartable."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.encoding import Encoded, as_characters, encoded, encoder_for, pieces
from data_prep.estimate import Progress
from data_prep.mixture import MixturePart, Turns, file_names
from data_prep.restart import SAVE_EVERY_S, Position, Work
from data_prep.shards import (
    FORMAT_VERSION,
    MANIFEST,
    SHARD_TOKENS,
    SPLITS,
    ShardWriter,
    documents_path,
    dtype_for,
)
from data_prep.sources import Source
from data_prep.split import Budget, Rule, parts
from data_prep.tokenizers import CharTokenizer, Tokenizer, char_tokenizer
from scratchgpt.errors import UserError
from scratchgpt.files import write_json


@dataclass
class Plan:
    """Which tokens are to be written.

    Attributes:
      mixture, sources, rules: the data sets, their documents and how each is split; lists of one length.
      val_fraction, max_tokens: as in DataConfig.
      facts: the manifest's entries that the tokens do not tell: dataset, request, source.
    """

    mixture: list[MixturePart]
    sources: list[Source]
    rules: list[Rule]
    val_fraction: float
    max_tokens: int
    facts: dict[str, Any]

    def budget(self) -> Budget:
        """A new one."""
        return Budget(self.max_tokens, self.val_fraction)

    def pieces_of(self, part: int, cuts: Callable[[str, int], list[str]], position: Position) -> Iterator[Any]:
        """The pieces of one part from ``position`` on."""
        # a boundary is counted in characters from the beginning; many documents are split one by one
        begin = position if self.rules[part].boundary < 0 else Position()
        blocks = self.sources[part].blocks(begin.file, begin.row)
        for piece in pieces(parts(blocks, self.rules[part], self.val_fraction, begin.index), cuts):
            if (piece.index, piece.number) >= (position.index, position.piece):
                yield piece


class _Selection:
    """The pieces of all parts in the order in which they are used, with the number of their tokens that are taken."""

    def __init__(self, streams: list[Iterator[Encoded]], turns: Turns, budget: Budget, inside: int | None) -> None:
        self._streams, self._turns, self._budget = streams, turns, budget
        self.inside = inside  # the part whose document has begun, but not ended
        self.ended: int | None = None  # the part that had no more documents

    def __iter__(self) -> Iterator[tuple[int, Encoded, int]]:
        while not self._budget.spent:
            part = self._turns.next() if self.inside is None else self.inside
            found = next(self._streams[part], None)
            if found is None:
                self.ended = part
                return
            if isinstance(found.ids, UserError):
                raise found.ids
            taken = self._budget.take(found.piece.split, len(found.ids))
            self._turns.take(part, taken)
            self.inside = None if found.piece.closes else part
            yield part, found, taken


def collect_characters(plan: Plan) -> CharTokenizer:
    """The tokenizer of the characters that ``plan`` takes. Raises UserError if there are none."""

    def halves(text: str, size: int) -> list[str]:
        return [text[i : i + size] for i in range(0, len(text), size)]

    weights = [part.weight for part in plan.mixture]
    streams = [as_characters(plan.pieces_of(i, halves, Position())) for i in range(len(plan.sources))]
    selection = _Selection(streams, Turns(weights), plan.budget(), None)
    return char_tokenizer(found.piece.text[:taken] for _, found, taken in selection)


def workers_available() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def build(
    work: Work,
    plan: Plan,
    tokenizer: Tokenizer,
    state: dict[str, Any] | None,
    log: Callable[[str], None],
    workers: int = 0,
    shard_tokens: int = SHARD_TOKENS,
) -> dict[str, Any]:
    """Write shards and manifest into ``work.shards``, where the tokenizer is; returns the manifest.

    ``state`` is what an earlier run saved, or None to begin; ``workers`` 0 are as many threads as there are cores. The
    output depends on neither. Raises UserError if no token falls to the training split, and Unusable if files of the
    earlier run are missing.
    """
    workers = workers or workers_available()
    pool = ThreadPoolExecutor(workers)
    writing = _Writing(work, plan, tokenizer, state, shard_tokens)
    try:
        writing.run(pool, workers, log)
    finally:
        pool.shutdown(cancel_futures=True)
        for writer in writing.writers.values():
            writer.abandon()
    if not writing.writers["train"].tokens:
        raise UserError("the source holds no text to train on: name another one with --source=FILE")
    manifest = {
        "format_version": FORMAT_VERSION,
        **plan.facts,
        "dtype": writing.dtype,
        "tokenizer": {"kind": tokenizer.kind, "size": tokenizer.size, "sha256": tokenizer.sha256},
        "splits": {
            s: {"tokens": w.tokens, **writing.counts[s], "shards": w.shards} for s, w in writing.writers.items()
        },
    }
    if len(plan.mixture) > 1:
        manifest["mixture"] = {
            "tokens": {p.dataset: n for p, n in zip(plan.mixture, writing.turns.taken, strict=True)},
            "ended_with": None if writing.ended is None else plan.mixture[writing.ended].dataset,
        }
    write_json(work.shards / MANIFEST, manifest)
    return manifest


class _Writing:
    """The tokens, from their place in the sources to their place in the shards."""

    def __init__(
        self, work: Work, plan: Plan, tokenizer: Tokenizer, state: dict[str, Any] | None, shard_tokens: int
    ) -> None:
        self._work, self._plan, self._tokenizer = work, plan, tokenizer
        self.dtype = dtype_for(tokenizer.size)
        self.turns = Turns([part.weight for part in plan.mixture])
        self._budget, self.ended = plan.budget(), None
        saved: dict[str, Any] = state["writers"] if state else dict.fromkeys(SPLITS)
        self.writers = {s: ShardWriter(work.shards, s, self.dtype, shard_tokens, saved[s]) for s in SPLITS}
        self.counts = {s: {"documents": 0, "characters": 0, "bytes": 0} for s in SPLITS}
        self._positions, self._inside = [Position() for _ in plan.sources], None
        if state:
            self.counts, self._inside = state["counts"], state["inside"]
            self._positions = [Position(*p) for p in state["positions"]]
            self.turns.taken = state["taken"]
            for split, writer in self.writers.items():
                self._budget.take(split, writer.tokens)
            work.keep_only(self._file_names())
        self._first_file = np.cumsum([0, *(max(1, len(n)) for n in file_names(plan.facts["source"]))]).tolist()
        self._next_save = time.monotonic() + SAVE_EVERY_S

    def _file_names(self) -> set[str]:
        names = set()
        for split, writer in self.writers.items():
            for shard in [*writer.shards, {"file": f"{split}_{len(writer.shards):05d}.bin"}]:
                names |= {shard["file"], documents_path(self._work.shards, shard).name}
        return names

    @property
    def _tokens(self) -> int:
        return sum(writer.tokens for writer in self.writers.values())

    def _share_done(self, tokens: int) -> float:
        shares = [source.share_read for source in self._plan.sources]
        if self._plan.max_tokens:
            shares.append(tokens / self._plan.max_tokens)
        return min(1.0, max(shares))

    def _streams(self, pool: ThreadPoolExecutor, workers: int) -> list[Iterator[Encoded]]:
        made_from_text = (
            isinstance(self._tokenizer, CharTokenizer) and self._plan.facts["request"]["tokenizer"] == "char"
        )
        encode = encoder_for(self._tokenizer, made_from_text)
        cuts, end, dtype = self._tokenizer.cuts, self._tokenizer.end_of_text_id, np.dtype(self.dtype)
        return [
            encoded(self._plan.pieces_of(part, cuts, position), encode, end, dtype, pool, 2 * workers)
            for part, position in enumerate(self._positions)
        ]

    def run(self, pool: ThreadPoolExecutor, workers: int, log: Callable[[str], None]) -> None:
        """Write all shards."""
        streams = self._streams(pool, workers)
        selection = _Selection(streams, self.turns, self._budget, self._inside)
        self._save()
        progress = Progress(self._tokens, self._share_done, log)
        try:
            for part, found, taken in selection:
                piece = found.piece
                self._positions[part] = Position(piece.index, piece.file, piece.row, piece.number + 1)
                self._inside = selection.inside
                if taken:
                    self._count(found, taken)
                    writer, finished = self.writers[piece.split], len(self.writers[piece.split].shards)
                    begins = (self._first_file[part] + piece.file, piece.row) if piece.begins else None
                    writer.append(found.ids[:taken], begins)
                    progress.add(taken)
                    if len(writer.shards) > finished or time.monotonic() > self._next_save:
                        self._save()
            for writer in self.writers.values():
                writer.close()
        finally:
            progress.close()
            for stream in streams:
                stream.close()
        self.ended = selection.ended
        for source in self._plan.sources:
            source.check_unchanged()

    def _count(self, found: Encoded, taken: int) -> None:
        characters, size = len(found.piece.text), found.bytes
        if taken < len(found.ids) - found.piece.ends:
            kept = self._tokenizer.decode(found.ids[:taken])
            characters, size = len(kept), len(kept.encode("utf-8", "surrogatepass"))
        counts = self.counts[found.piece.split]
        counts["documents"] += found.piece.begins
        counts["characters"] += characters
        counts["bytes"] += size

    def _save(self) -> None:
        self._work.save(
            {
                "rules": self._plan.rules,
                "positions": self._positions,
                "inside": self._inside,
                "taken": self.turns.taken,
                "counts": self.counts,
                "writers": {split: writer.save() for split, writer in self.writers.items()},
            }
        )
        self._next_save = time.monotonic() + SAVE_EVERY_S
