"""Mixtures of data sets: ``--dataset=fineweb:0.8,law_stack_exchange:0.2``.

The weights are shares of the tokens. Whole documents are taken in turn: the next one always comes from the part that
has given the fewest tokens for its weight so far (of equals, the one named first), so that the shares hold all the way
through, to within a document. No text is repeated: the mixture ends where the part whose turn it is has no more.
"""

import math
from fractions import Fraction
from typing import Any, NamedTuple

from data_prep.sources import Source, open_source
from scratchgpt.errors import UserError


class MixturePart(NamedTuple):
    """One data set of a mixture; a data set by itself is a mixture of one, of weight 1."""

    dataset: str
    source: str
    text_column: str
    weight: Fraction


def parse(dataset: str, source: str, text_column: str) -> list[MixturePart]:
    """The parts that the three settings mean; one without a comma is a single data set.

    In a mixture ``source`` is empty or names one source for each part, in the same order and separated by commas, where
    nothing between two commas means the data set's own; ``text_column`` is one for all, or one for each.

    Raises UserError for a wrong number of sources or columns, a name that comes twice, and weights that are missing
    for some parts or not positive.
    """
    if "," not in dataset:
        return [MixturePart(dataset, source, text_column, Fraction(1))]
    stated = [part.strip().rpartition(":") if ":" in part else (part.strip(), "", "") for part in dataset.split(",")]
    names = [name for name, _, _ in stated]
    sources = [s.strip() for s in source.split(",")] if source else [""] * len(names)
    columns = [c.strip() for c in text_column.split(",")] if "," in text_column else [text_column] * len(names)
    if not all(names):
        raise UserError(f"--dataset={dataset} has a part without a name: a mixture is written NAME:WEIGHT,NAME:WEIGHT")
    if len(set(names)) != len(names):
        raise UserError(f"--dataset={dataset} names a data set twice: give it once, with the sum of the weights")
    for what, values in (("source", sources), ("text_column", columns)):
        if len(values) != len(names):
            raise UserError(
                f"--dataset={dataset} is a mixture of {len(names)}, --{what} names {len(values)}: name one for each,"
                " in the same order, separated by commas"
            )
    given = [colon for _, colon, _ in stated]
    if any(given) and not all(given):
        raise UserError(f"--dataset={dataset} gives some parts a weight and others none: give all of them one, or none")
    weights = [_weight(text, dataset) if colon else Fraction(1) for _, colon, text in stated]
    return [MixturePart(*part) for part in zip(names, sources, columns, weights, strict=True)]


def _weight(text: str, dataset: str) -> Fraction:
    try:
        weight = Fraction(text)
    except (ValueError, ZeroDivisionError):
        weight = Fraction(0)
    if not 0 < weight < 10**9 or weight.denominator > 10**9:
        raise UserError(f"--dataset={dataset}: the weight {text!r} must be a positive number such as 0.8")
    return weight


def open_parts(parts: list[MixturePart]) -> tuple[list[Source], dict[str, Any]]:
    """(source of each part, the record of all for the manifest). Raises UserError."""
    sources = [open_source(p.dataset, p.source, p.text_column) for p in parts]
    if len(parts) == 1:
        return sources, sources[0].record
    whole = sum(p.weight for p in parts)
    return sources, {
        "kind": "mixture",
        "parts": [
            {"dataset": p.dataset, "share_of_tokens": float(p.weight / whole), "source": s.record}
            for p, s in zip(parts, sources, strict=True)
        ],
    }


def file_names(record: dict[str, Any]) -> list[list[str]]:
    """What the documents' file numbers mean: the names of the files of every part of a manifest's ``source``."""
    if record.get("kind") == "mixture":
        return [names for part in record["parts"] for names in file_names(part["source"])]
    if record.get("kind") == "hub":
        configuration = f":{record['configuration']}" if record.get("configuration") else ""
        return [[f"{record['id']}{configuration} at revision {record['revision']}"]]
    return [[f["name"] for f in record.get("files", ())]]


class Turns:
    """Whose turn it is, from the weights and the tokens taken so far: exact, in integers."""

    def __init__(self, weights: list[Fraction]) -> None:
        common = math.lcm(*(w.numerator for w in weights))
        costs = [common // w.numerator * w.denominator for w in weights]  # proportional to 1 / weight
        self._costs = costs
        self.taken = [0] * len(weights)

    def next(self) -> int:
        """The number of the part that the next document comes from."""
        return min(range(len(self.taken)), key=lambda i: self.taken[i] * self._costs[i])

    def take(self, part: int, tokens: int) -> None:
        """``tokens`` of ``part`` were used."""
        self.taken[part] += tokens
