"""Rows of the source with their other columns, in pieces that tasks read side by side.

A ``.jsonl`` file is cut into byte ranges; any other file is one piece. What is not a local file (a hub data set, a
named one) has no other columns and is first copied to ``.jsonl`` files.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.readers import ROW_EXTENSIONS, read_rows, text_of
from data_prep.sources import documents, local_files
from scratchgpt.errors import UserError
from scratchgpt.files import atomic_path


@dataclasses.dataclass(frozen=True)
class Piece:
    """The lines of a .jsonl file that begin at bytes [start, end), or a whole file of another kind (end -1)."""

    path: str
    name: str
    start: int = 0
    end: int = -1


def pieces(files: list[tuple[str, Path]], piece_bytes: int) -> list[Piece]:
    """The pieces of ``files`` ((name, path), as :func:`data_prep.sources.local_files` gives them), in order."""
    found = []
    for name, path in files:
        if path.name.endswith(".jsonl"):
            size = path.stat().st_size
            cuts = range(0, max(size, 1), piece_bytes)
            found += [Piece(str(path.resolve()), name, start, min(start + piece_bytes, size)) for start in cuts]
        else:
            found.append(Piece(str(path.resolve()), name))
    return found


def copy_source(dataset: str, source: str, text_column: str, folder: Path) -> list[tuple[str, Path]]:
    """The files of :func:`pieces` for a source that is not local, copied to ``folder`` unless they are there already.

    Raises UserError as :func:`data_prep.sources.documents` does.
    """
    if not folder.is_dir():
        for stale in folder.parent.glob(f".{folder.name}.tmp-*"):  # of a process that was killed
            shutil.rmtree(stale, ignore_errors=True)
        texts, _ = documents(dataset, source, text_column)
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            with open(temporary / "source.jsonl", "w", encoding="utf-8", errors="replace") as file:
                file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    return local_files(str(folder))


def read(piece: Piece, text_column: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(id, text, other columns) of each row with a text. Raises UserError that names the file and the line or row."""
    for position, row, where in rows(piece, text_column):
        text = text_of(row, text_column, where)
        if text:
            others = {key: value for key, value in row.items() if key != text_column}
            # a lone surrogate, which JSON can spell, is no text that could be written or hashed
            yield f"{piece.name}:{position}", text.encode("utf-8", "replace").decode("utf-8"), others


def rows(piece: Piece, text_column: str = "text") -> Iterator[tuple[int, Any, str]]:
    """(position, row, where for a message); a .txt file is one row whose ``text_column`` is its text.

    Raises UserError for a file that cannot be read or a line that is no JSON.
    """
    path = Path(piece.path)
    if path.name.endswith(".jsonl"):
        try:
            yield from _jsonl_range(path, piece)
        except OSError as e:
            raise UserError(f"cannot read {path}: {e.strerror or e}") from e
    elif path.name.endswith(ROW_EXTENSIONS):
        for number, (where, row) in enumerate(read_rows(path), 1):
            yield number, row, where
    else:
        for text in documents("text", str(path))[0]:
            yield 1, {text_column: text}, str(path)


def _jsonl_range(path: Path, piece: Piece) -> Iterator[tuple[int, Any, str]]:
    with open(path, "rb") as file:
        if piece.start:
            file.seek(piece.start - 1)
            file.readline()  # the line that began in the piece before; nothing but its end if it ended there
        while (at := file.tell()) < piece.end and (line := file.readline()):
            if line.strip():
                try:
                    yield at, _parsed(line, "", at == 0), f"{path}, the line at byte {at}"
                except UserError as e:
                    raise UserError(f"{path}:{_line_number(path, at)}{e}") from e


def _line_number(path: Path, position: int) -> int:
    with open(path, "rb") as file:
        return 1 + sum(1 for _ in iter(lambda: file.tell() < position and file.readline(), False))


def _parsed(line: bytes, where: str, first: bool) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig" if first else "utf-8"))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where} is not valid JSON: {e}") from e
