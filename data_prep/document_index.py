"""Which document a token comes from, and which file and row that document."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.mixture import file_names
from data_prep.shards import (
    DOCUMENT_DTYPE,
    MANIFEST,
    check_sizes,
    damaged,
    documents_path,
    load_manifest,
)
from scratchgpt.errors import UserError
from scratchgpt.files import sha256_file


class Document(NamedTuple):
    """A document, or the part of it that falls to one split."""

    number: int  # in its split
    start: int  # its first token in the split
    stop: int  # after its last one, the end-of-text token included
    origin: str  # the data set (in a mixture), file and row, in words


class DocumentIndex:
    """The documents of one split, memory-mapped: of any size, it takes no memory."""

    def __init__(self, directory: Path | str, split: str, verify: bool = True) -> None:
        """Open the index of ``split`` ("train" or "val") in a directory of shards.

        With ``verify`` the SHA-256 of its files are checked. Raises UserError naming a file that is missing or changed.
        """
        directory = Path(directory)
        manifest = load_manifest(directory)
        if split not in manifest["splits"]:
            raise UserError(f"{directory} has no split {split!r}, only {' and '.join(manifest['splits'])}")
        check_sizes(directory, manifest)
        self.tokens = manifest["splits"][split]["tokens"]
        try:
            self._files = _described(manifest["source"])
        except (KeyError, TypeError, AttributeError, ValueError) as e:
            raise UserError(
                f"{directory / MANIFEST} does not say what the documents were read from: prepare the data again"
            ) from e
        self._tables: list[np.ndarray] = []  # each uint64 [documents, 3]: first token, file, row
        for shard in manifest["splits"][split]["shards"]:
            path = documents_path(directory, shard)
            if verify and sha256_file(path) != shard["documents_sha256"]:
                raise damaged(path)
            if shard["documents"]:  # an empty file cannot be mapped
                self._tables.append(np.memmap(path, DOCUMENT_DTYPE, "r", shape=(shard["documents"], 3)))
        self._ends = np.cumsum([len(t) for t in self._tables], dtype=np.int64)
        self._firsts = np.array([int(t[0, 0]) for t in self._tables], np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: int) -> Document:
        """The document ``number``, from 0. Raises IndexError."""
        if not 0 <= number < len(self):
            raise IndexError(f"document {number} of {len(self)}")
        start, file, row = self._entry(number)
        stop = self._entry(number + 1)[0] if number + 1 < len(self) else self.tokens
        where = self._files[file] if file < len(self._files) else f"file {file} of the source"
        return Document(number, start, stop, f"{where}, row {row}")

    def _entry(self, number: int) -> tuple[int, int, int]:
        table = int(np.searchsorted(self._ends, number, side="right"))
        start, file, row = self._tables[table][number - int(self._ends[table]) + len(self._tables[table])].tolist()
        return start, file, row

    def starts(self) -> np.ndarray:
        """The first token of every document, int64 [documents]."""
        return np.concatenate([np.zeros(0, np.int64), *(table[:, 0].astype(np.int64) for table in self._tables)])

    def number_at(self, token: int) -> int:
        """The number of the document that ``token`` of the split belongs to. Raises IndexError."""
        if not 0 <= token < self.tokens:
            raise IndexError(f"token {token} of {self.tokens}")
        table = int(np.searchsorted(self._firsts, token, side="right")) - 1
        before = int(self._ends[table]) - len(self._tables[table])
        return before + int(np.searchsorted(self._tables[table][:, 0], np.uint64(token), side="right")) - 1

    def between(self, start: int, stop: int) -> list[Document]:
        """The documents of tokens ``start`` ... ``stop`` - 1, in order."""
        first, last = self.number_at(start), self.number_at(stop - 1)
        return [self[number] for number in range(first, last + 1)]


def _described(record: dict) -> list[str]:
    """The files of a manifest's ``source`` in words, by number."""
    names = file_names(record)
    if record.get("kind") != "mixture":
        return names[0]
    parts = [part["dataset"] for part in record["parts"]]
    return [f"{part}: {name}" for part, files in zip(parts, names, strict=True) for name in files]
