"""Exact counts and samples of what each filter drops or edits, kept per task and added up at the end."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data_prep.tokenizers import gpt2_tokenizer, load_tokenizer
from scratchgpt.files import write_text

SHOWN = 600  # characters of a sample's text


class TokenCounter:
    """Counts tokens by a stated rule: "words" (split at white space), "gpt2", or a tokenizer's directory."""

    def __init__(self, rule: str) -> None:
        self.rule = rule
        self._count: Callable[[str], int] | None = None

    def __getstate__(self) -> dict[str, Any]:  # every worker loads the tokenizer for itself
        return {"rule": self.rule, "_count": None}

    def __call__(self, text: str) -> int:
        """Number of tokens of ``text``. Raises UserError if the tokenizer cannot be loaded."""
        if self._count is None:
            if self.rule == "words":
                self._count = lambda text: len(text.split())
            else:
                tokenizer = gpt2_tokenizer() if self.rule == "gpt2" else load_tokenizer(Path(self.rule).expanduser())
                self._count = lambda text: len(tokenizer.encode(text))
        return self._count(text)


def rule_in_words(rule: str) -> str:
    """What the counted tokens are, for the report."""
    named = {"words": "words split at white space", "gpt2": "GPT-2's"}
    return named.get(rule, f"the tokenizer {Path(rule).name}'s")


@dataclasses.dataclass
class Sample:
    """A document that a filter dropped or edited; ``detail`` says more than the reason, ``place`` is (task, index)."""

    id: str
    text: str
    detail: str = ""
    place: tuple[int, int] = (0, 0)
    like: str = ""  # the text that a near duplicate resembles


@dataclasses.dataclass
class Tally:
    """What went into one filter and what came out. Documents in = out + dropped; tokens in = out + dropped + edited."""

    documents_in: int = 0
    tokens_in: int = 0
    documents_out: int = 0
    tokens_out: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)  # reason -> documents
    tokens_dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    edited: int = 0  # documents that passed with another text than they came with
    tokens_edited: int = 0  # tokens that those lost; negative if they gained some
    samples: dict[str, list[Sample]] = dataclasses.field(default_factory=dict)  # reason -> the first ones
    edits: list[Sample] = dataclasses.field(default_factory=list)

    def add(self, other: "Tally", limit: int) -> None:
        """Add the tally of a later task; at most ``limit`` samples of each kind stay."""
        for field in ("documents_in", "tokens_in", "documents_out", "tokens_out", "edited", "tokens_edited"):
            setattr(self, field, getattr(self, field) + getattr(other, field))
        self.dropped = dict(Counter(self.dropped) + Counter(other.dropped))
        self.tokens_dropped = dict(Counter(self.tokens_dropped) + Counter(other.tokens_dropped))
        for reason, samples in other.samples.items():
            self.samples[reason] = (self.samples.get(reason, []) + samples)[:limit]
        self.edits = (self.edits + other.edits)[:limit]

    def check(self, name: str) -> None:
        """Raise AssertionError unless what came in equals what came out and what was dropped."""
        documents, tokens = sum(self.dropped.values()), sum(self.tokens_dropped.values())
        assert self.documents_in == self.documents_out + documents, f"{name}: documents do not add up: {self}"
        assert self.tokens_in == self.tokens_out + tokens + self.tokens_edited, f"{name}: tokens do not add up: {self}"

    def shown(self, limit: int) -> list[tuple[str, Sample]]:
        """At most ``limit`` (reason, sample), each reason once before any comes twice, the frequent ones first."""
        reasons = sorted(self.samples, key=lambda reason: (-self.dropped[reason], reason))
        rounds = (
            (reason, self.samples[reason][i]) for i in range(limit) for reason in reasons if self.samples[reason][i:]
        )
        picked = [pair for _, pair in zip(range(limit), rounds, strict=False)]
        return sorted(picked, key=lambda pair: reasons.index(pair[0]))

    def save(self, path: Path) -> None:
        """Write to ``path``, whole or not at all."""
        write_text(path, json.dumps(dataclasses.asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "Tally":
        """The tally that :meth:`save` wrote."""
        tally = cls(**json.loads(path.read_text(encoding="utf-8")))
        tally.samples = {reason: [Sample(**s) for s in samples] for reason, samples in tally.samples.items()}
        tally.edits = [Sample(**s) for s in tally.edits]
        return tally


def total(folder: Path, limit: int) -> Tally:
    """The sum of the tallies of all tasks in ``folder``."""
    result = Tally()
    for path in sorted(folder.glob("*.json")):
        result.add(Tally.load(path), limit)
    return result


class Counted:
    """A filter as a step of a datatrove pipeline, with a tally of what it did to its task's documents.

    ``make()`` gives, in the process that runs the task, a datatrove block (or anything with ``run`` and an
    ``exclusion_writer``); ``explain(document)`` gives the reason for a drop and more about it.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Any],
        explain: Callable[[Any], tuple[str, str]],
        count: TokenCounter,
        folder: Path,
        limit: int,
    ) -> None:
        self.name, self.make, self.explain, self.count, self.folder, self.limit = (
            name,
            make,
            explain,
            count,
            folder,
            limit,
        )

    def __repr__(self) -> str:
        return f"filter {self.name}"

    def __call__(self, data: Iterable[Any], rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Documents that pass; their metadata hold ``tokens``. The tally is written once all have been seen."""
        tally = Tally()
        block = self.make()
        block.exclusion_writer = _Rejects(self, tally)
        for document in block.run(self._entering(data, tally, rank), rank, world_size):
            self._passed(document, tally)
            yield document
        tally.check(self.name)
        self.folder.mkdir(parents=True, exist_ok=True)
        tally.save(self.folder / f"{rank:05d}.json")

    def _entering(self, data: Iterable[Any], tally: Tally, rank: int) -> Iterator[Any]:
        for index, document in enumerate(data):
            tally.documents_in += 1
            tally.tokens_in += document.metadata["tokens"]
            document.metadata["before"] = document.text
            document.metadata["place"] = (rank, index)
            yield document

    def _passed(self, document: Any, tally: Tally) -> None:
        before, place = document.metadata.pop("before"), document.metadata.pop("place")
        if document.text != before:
            tokens = self.count(document.text)
            tally.edited += 1
            tally.tokens_edited += document.metadata["tokens"] - tokens
            document.metadata["tokens"] = tokens
            if len(tally.edits) < self.limit:
                tally.edits.append(Sample(document.id, _around_change(before, document.text), place=place))
        tally.documents_out += 1
        tally.tokens_out += document.metadata["tokens"]

    def dropped(self, document: Any, tally: Tally) -> None:
        """Note that ``document`` was dropped."""
        reason, detail = self.explain(document)
        tally.dropped[reason] = tally.dropped.get(reason, 0) + 1
        tally.tokens_dropped[reason] = tally.tokens_dropped.get(reason, 0) + document.metadata["tokens"]
        samples = tally.samples.setdefault(reason, [])
        if len(samples) < self.limit:
            text = document.metadata["before"]
            samples.append(Sample(document.id, shortened(text), detail, document.metadata["place"]))


class _Rejects:
    """What datatrove's blocks take for a writer of dropped documents."""

    def __init__(self, step: Counted, tally: Tally) -> None:
        self.step, self.tally = step, tally

    def __enter__(self) -> "_Rejects":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, document: Any, rank: int = 0) -> None:
        self.step.dropped(document, self.tally)


def shortened(text: str) -> str:
    """The beginning of ``text``."""
    return text.strip() if len(text) <= SHOWN else text[:SHOWN].strip() + " …"


def _around_change(before: str, after: str) -> str:
    """``after`` from a little before the first character that differs from ``before``."""
    same = next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )
    start = max(0, same - SHOWN // 4)
    return ("… " if start else "") + shortened(after[start:])
