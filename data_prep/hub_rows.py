"""Rows of a data set on the Hugging Face hub, streamed with ``datasets`` at one pinned revision."""

import logging
from collections.abc import Iterator
from typing import Any

from data_prep.download import LOCAL_COPY_HINT
from data_prep.readers import Meter, Stretch, text_of
from scratchgpt.errors import UserError

_TIMEOUT_S = 10.0


def pin(address: str) -> dict[str, Any]:
    """The record of a hub data set: its id, configuration and the revision that the hub has now.

    Args:
      address: ``ID`` or ``ID:CONFIGURATION``.

    Raises UserError, after one bounded request, if the hub has no such data set or is out of reach.
    """
    from huggingface_hub import HfApi

    for library in ("httpx", "httpx2"):  # a line on the terminal for every request otherwise
        logging.getLogger(library).setLevel(logging.WARNING)
    name, _, configuration = address.partition(":")
    try:  # `datasets` alone would retry for minutes where there is no network
        revision = HfApi().dataset_info(name, timeout=_TIMEOUT_S).sha
    except Exception as e:  # several HTTP libraries' errors, depending on the version
        code = getattr(getattr(e, "response", None), "status_code", None)
        what = f"answered {code} for" if code else "is out of reach for"
        what = "has no (public) data set" if code in (401, 404) else what
        raise UserError(
            f"the Hugging Face hub {what} {name!r}, which is no local file either ({_first_line(e)}); {LOCAL_COPY_HINT}"
        ) from e
    return {"kind": "hub", "id": name, "configuration": configuration, "revision": revision}


def stream(record: dict[str, Any], text_column: str, first_row: int, meter: Meter) -> Iterator[Stretch]:
    """The documents of the training split of what :func:`pin` found, from ``first_row`` (1-based) on.

    Rows before it are passed over, though the hub sends them. Raises UserError.
    """
    for number, where, row in rows(record, first_row, meter):
        if text := text_of(row, text_column, where):
            yield Stretch(number, text, True)


def rows(
    record: dict[str, Any], first_row: int, meter: Meter, split: str = ""
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(number, where for a message, row) as :func:`stream` reads them, of ``split`` or else the training split.

    A label is its name, or None, though the hub keeps its number. Raises UserError.
    """
    name = record["id"]
    try:
        splits = _load(name, record["configuration"], record["revision"])
        if split and split not in splits:
            raise UserError(f"{name} has no split {split!r}, only {', '.join(splits)}")
        found = splits[split or ("train" if "train" in splits else next(iter(splits)))]
        total = _rows_in(found)
        if first_row > 1:
            found = found.skip(first_row - 1)
        named = _label_names(found)
        for number, row in enumerate(found, first_row):
            if total:
                meter(min(1.0, number / total))
            for column, names in named.items():
                label = row.get(column)  # -1 where a row has none
                row[column] = names[label] if isinstance(label, int) and 0 <= label < len(names) else None
            yield number, f"{name}, row {number}", row
    except UserError:
        raise
    except Exception as e:  # whatever the hub, the network or a damaged row raises inside `datasets`
        raise UserError(f"cannot read {name!r} from the Hugging Face hub: {_first_line(e)}; {LOCAL_COPY_HINT}") from e


def _load(name: str, configuration: str, revision: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, configuration or None, revision=revision, streaming=True)
    except RuntimeError as e:
        if "scripts" not in str(e):
            raise
        # A data set made by a script, which `datasets` no longer runs: the hub keeps a converted copy.
        return datasets.load_dataset(name, configuration or None, revision="refs/convert/parquet", streaming=True)


def _rows_in(rows: Any) -> int:
    """How many rows the split says it has; 0 if it does not say."""
    splits = getattr(getattr(rows, "info", None), "splits", None) or {}
    return getattr(splits.get(str(getattr(rows, "split", None))), "num_examples", None) or 0


def _label_names(split: Any) -> dict[str, list[str]]:
    """The names of the labels in each column of labels, in the order of their numbers."""
    features = getattr(split, "features", None) or {}
    return {column: list(f.names) for column, f in features.items() if type(f).__name__ == "ClassLabel"}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
