"""Rows of data sets for fine-tuning: instructions, preferences, labelled texts. Local files or the Hugging Face hub."""

from collections.abc import Iterator, Sequence
from typing import Any

from data_prep import hub_rows
from data_prep.mixture import parse
from data_prep.readers import ROW_EXTENSIONS, read_rows
from data_prep.sources import check_hub_id, local_files
from scratchgpt.errors import UserError

# ID or ID:CONFIGURATION on the hub
NAMED = {
    "alpaca": "tatsu-lab/alpaca",
    "dolly": "databricks/databricks-dolly-15k",
    "ultrafeedback": "trl-lib/ultrafeedback_binarized",
    "sms_spam": "ucirvine/sms_spam",
}


def open_rows(
    dataset: str, source: str = "", columns: Sequence[str] = (), split: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of one or more data sets, one after the other.

    Args:
      dataset: names separated by commas: of NAMED, or any together with ``source``.
      source: a file, folder or glob of files with one of ROW_EXTENSIONS, or a hub data set id, one for each name and
        separated by commas; empty: the data set's own.
      columns: names for those of a .csv or .tsv file that does not name them, see ``data_prep.readers.read_rows``.
      split: of a hub data set; empty: the training split.

    Raises UserError, at once or while iterating: no such data set, no access, a damaged file.
    """
    parts = parse(dataset, source, "")
    openers = [
        _not_empty(part.source or part.dataset, _opener(part.dataset, part.source, columns, split)) for part in parts
    ]
    return (item for rows in openers for item in rows)


def _not_empty(name: str, rows: Iterator[Any]) -> Iterator[Any]:
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007 (read after the loop)
        yield row
    if not count:
        raise UserError(f"{name} has no rows")


def _opener(name: str, source: str, columns: Sequence[str], split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not source and name not in NAMED:
        raise UserError(
            f"there is no fine-tuning data set named {name!r}: data.dataset must be one of {', '.join(NAMED)}, or a"
            " name of your own together with --config.data.source=FILE, a folder, a glob or a Hugging Face data set id"
        )
    if source:
        files = local_files(source, ROW_EXTENSIONS)
        for _, file in files:
            if not file.name.endswith(ROW_EXTENSIONS):
                raise UserError(f"{file}: the name must end with one of {', '.join(ROW_EXTENSIONS)} to be read as rows")
        if files:
            return (item for _, file in files for item in read_rows(file, columns))
        check_hub_id(source)
    record = hub_rows.pin(source or NAMED[name])
    return ((where, row) for _, where, row in hub_rows.rows(record, 1, lambda _: None, split))
