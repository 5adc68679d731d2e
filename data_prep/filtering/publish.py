"""The end of a run: the counts are added up and checked, the report is written, the output gets its final name."""

import dataclasses
import gzip
import json
import os
from pathlib import Path
from typing import Any

from data_prep.filtering.counts import Sample, Tally, rule_in_words, shortened, total
from data_prep.filtering.recipe import NAMES
from data_prep.filtering.report import write_reports
from scratchgpt.errors import UserError
from scratchgpt.files import disk_errors


class NothingLeft(UserError):
    """There is no document to write."""


@dataclasses.dataclass
class Publish:
    """Callable as a datatrove step, so that it can be the last job of a chain; ``facts`` head the report."""

    filters: tuple[str, ...]
    work: Path
    out: Path
    samples: int
    tokens: str
    facts: dict[str, Any]

    def __call__(self, data: None = None, rank: int = 0, world_size: int = 1) -> None:
        """Write report.md, report.html and report.json and rename the output. Raises NothingLeft if no document is."""
        source = total(self.work / "counts" / "source", 0)
        tallies = {name: total(self.work / "counts" / name, self.samples) for name in self.filters}
        check_not_empty(source, tallies)
        documents, tokens = source.documents_out, source.tokens_out
        for name, tally in tallies.items():
            tally.check(name)
            assert (tally.documents_in, tally.tokens_in) == (documents, tokens), f"{name} has not seen all documents"
            documents, tokens = tally.documents_out, tally.tokens_out
        result = self.work / "out"
        shards = sorted(result.glob("*.jsonl.gz"))
        empty = [shard for shard in shards if shard.stat().st_size < 64 and not _first_line(shard)]
        for shard in empty:
            shard.unlink()
        write_reports(result, self._record(source, tallies, len(shards) - len(empty)))
        with disk_errors(self.out):
            os.rename(result, self.out)

    def _record(self, source: Tally, tallies: dict[str, Tally], shards: int) -> dict[str, Any]:
        from datatrove.pipeline.formatters import PIIFormatter

        mask = PIIFormatter().format  # a report is read by more people than the data
        last = [source, *tallies.values()][-1]
        filters = []
        for name, tally in tallies.items():
            shown = tally.shown(self.samples)
            if name == "minhash":
                _add_twins([sample for _, sample in shown], self.work / "minhash" / "remove", self._minhash_input())
            filters.append(
                {
                    "name": name,
                    "what": NAMES[name],
                    "documents": {"in": tally.documents_in, "out": tally.documents_out, "edited": tally.edited},
                    "tokens": {
                        "in": tally.tokens_in,
                        "out": tally.tokens_out,
                        "dropped": sum(tally.tokens_dropped.values()),
                        "edited": tally.tokens_edited,
                    },
                    "reasons": [
                        {"reason": reason, "documents": n, "tokens": tally.tokens_dropped[reason]}
                        for reason, n in sorted(tally.dropped.items(), key=lambda item: (-item[1], item[0]))
                    ],
                    "samples": [_shown(sample, mask, reason) for reason, sample in shown],
                    "edits": [_shown(sample, mask, "") for sample in tally.edits],
                }
            )
        ngrams = [json.loads(path.read_text()) for path in sorted((self.work / "decontaminate").glob("*.json"))]
        return {
            "facts": self.facts,
            "tokens_are": rule_in_words(self.tokens),
            "documents": {"in": source.documents_out, "kept": last.documents_out},
            "tokens": {"in": source.tokens_out, "kept": last.tokens_out},
            "shards": shards,
            "evaluation": ngrams,
            "filters": filters,
        }

    def _minhash_input(self) -> Path:
        passes = [name for name in self.filters[: self.filters.index("minhash")] if name == "exact_dedup"]
        return self.work / f"pass{len(passes)}"


def check_not_empty(source: Tally, tallies: dict[str, Tally]) -> None:
    """Raise NothingLeft if the source held no document, or none of them has passed the filters so far."""
    if not source.documents_out:
        raise NothingLeft("the source holds no text: every document in it is empty; nothing was written")
    if tallies and not list(tallies.values())[-1].documents_out:
        drops = {name: tally.documents_in - tally.documents_out for name, tally in tallies.items()}
        listed = ", ".join(f"{name} {n:,}" for name, n in drops.items() if n)
        raise NothingLeft(
            f"all {source.documents_out:,} documents were dropped ({listed}): leave filters out with --filters or relax"
            " them; nothing was written"
        )


def _first_line(shard: Path) -> str:
    with gzip.open(shard, "rt", encoding="utf-8") as file:
        return file.readline()


def _shown(sample: Sample, mask: Any, reason: str) -> dict[str, str]:
    shown = {"id": sample.id, "reason": reason, "detail": mask(sample.detail), "text": mask(sample.text)}
    return shown | ({"like": mask(sample.like)} if sample.like else {})


def _add_twins(samples: list[Sample], remove: Path, shards: Path) -> None:
    """Give each near duplicate the beginning of the text that was kept instead, and forget its cluster's number."""
    import numpy as np

    wanted: dict[int, list[Sample]] = {}
    for sample in samples:
        wanted.setdefault(int(sample.detail), []).append(sample)
        sample.detail = ""
    for path in sorted(remove.glob("*.clusters")):
        members = np.fromfile(path, "<u4").reshape(-1, 2)
        members = members[np.isin(members[:, 1], list(wanted))]
        if not len(members):
            continue
        dropped = path.with_suffix(".remove")
        dropped_here = set(np.fromfile(dropped, "<u4").tolist()) if dropped.exists() else set()
        kept = {int(index): wanted[int(cluster)] for index, cluster in members if int(index) not in dropped_here}
        if kept:
            for index, text in _texts_at(shards / f"{int(path.stem):05d}.jsonl.gz", set(kept)):
                for sample in kept[index]:
                    sample.like = shortened(text)


def _texts_at(shard: Path, indices: set[int]) -> list[tuple[int, str]]:
    with gzip.open(shard, "rt", encoding="utf-8") as file:
        return [(i, json.loads(line)["text"]) for i, line in enumerate(file) if i in indices]
