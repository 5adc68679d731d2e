"""Documents of local files, read a stretch at a time: .txt, .jsonl (both also .gz and .zst) and .parquet.

A text file is one document (UTF-8, line ends become ``\\n``); a row of the others is one, the value of its text column.
Empty documents are dropped. Whatever the size of a file, only a few megabytes of it are in memory (of .jsonl, a line).
"""

import codecs
import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from scratchgpt.errors import UserError

EXTENSIONS = (".txt", ".txt.gz", ".txt.zst", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
ROW_EXTENSIONS = (".json", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".csv", ".tsv")

_TEXT_BYTES = _BUFFER_BYTES = 1 << 18  # of a text file, decoded at a time; read at a time
_COMPRESSED_BYTES = 1 << 13  # at a time: what is read ahead of a compressed file is much text
_PARQUET_ROWS = 256

Meter = Callable[[float], None]  # is told which share of a file has been read, 0 to 1


class Stretch(NamedTuple):
    """A document of a file, or the next stretch of a long one."""

    row: int  # line of a .jsonl file, row of a table; 1 in a text file
    text: str
    closes: bool  # the document ends here


def _no_meter(_: float) -> None:
    pass


def read_file(path: Path, text_column: str, first_row: int = 1, meter: Meter = _no_meter) -> Iterator[Stretch]:
    """The documents of one file from ``first_row`` on; rows before it are skipped without being parsed.

    Raises UserError naming the file, and the line or row where there is one.
    """
    with _explained(path):
        if path.name.endswith(".parquet"):
            yield from _read_parquet(path, text_column, first_row, meter)
            return
        with _open(path, meter) as file:
            if path.name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
                yield from _read_jsonl(path, file, text_column, first_row)
            elif first_row <= 1:
                yield from _whole(_decoded(path, file))


def read_lines(path: Path, first_row: int = 1, meter: Meter = _no_meter) -> Iterator[Stretch]:
    """The lines of a text file from line ``first_row`` on, each a document of its own with its line end.

    Raises UserError as :func:`read_file` does.
    """
    with _explained(path), _open(path, meter) as file:
        rest, number = "", 0
        for text in _decoded(path, file):
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                number += 1
                if number >= first_row:
                    yield Stretch(number, line + "\n", True)
        if rest and number + 1 >= first_row:
            yield Stretch(number + 1, rest, True)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns what a file can be refused for into one sentence."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, _Damaged) as e:
        raise UserError(f"{path} is damaged: {e}") from e
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}") from e


class _Damaged(Exception):
    pass


# --- bytes -----------------------------------------------------------------------------------------------------------


class _Metered(io.RawIOBase):
    """A file that reports how much of it has been read, and gives at most ``most`` bytes at once."""

    def __init__(self, path: Path, meter: Meter, most: int) -> None:
        self._raw = open(path, "rb", buffering=0)  # noqa: SIM115
        self._meter, self._most, self._size, self._read = meter, most, max(1, path.stat().st_size), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count = self._raw.readinto(memoryview(buffer)[: self._most])
        self._read += count or 0
        self._meter(min(1.0, self._read / self._size))
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Zstd(io.RawIOBase):
    """The decompressed bytes of a .zst file of one or more frames; one that is cut short is an error."""

    def __init__(self, compressed: IO[bytes], path: Path) -> None:
        try:
            import zstandard
        except ImportError as e:
            raise UserError(f"reading {path} needs a package that is not installed: pip install zstandard") from e
        self._compressed, self._zstandard = compressed, zstandard
        self._frame: Any = None
        self._input = self._output = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            self._input = self._input or self._compressed.read(_COMPRESSED_BYTES)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("it ends in the middle of a frame")
                return 0
            self._frame = self._frame or self._zstandard.ZstdDecompressor().decompressobj()
            try:
                self._output = self._frame.decompress(self._input)
            except self._zstandard.ZstdError as e:
                raise _Damaged(str(e)) from e
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def close(self) -> None:
        self._compressed.close()
        super().close()


def _open(path: Path, meter: Meter) -> IO[bytes]:
    """The uncompressed bytes of ``path``."""
    if path.name.endswith((".gz", ".zst")):
        # no buffer between: GzipFile asks for 8 kB in Python 3.11, 128 kB in 3.12, which the meter would count as read
        compressed: Any = _Metered(path, meter, _COMPRESSED_BYTES)
        raw = gzip.GzipFile(fileobj=compressed) if path.name.endswith(".gz") else _Zstd(compressed, path)
    else:
        raw = _Metered(path, meter, _BUFFER_BYTES)
    return io.BufferedReader(raw, _BUFFER_BYTES)


# --- text ------------------------------------------------------------------------------------------------------------


def _decoded(path: Path, file: IO[bytes]) -> Iterator[str]:
    """The text of ``file`` in stretches, line ends as ``\\n``, without a byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    newlines = io.IncrementalNewlineDecoder(decoder, translate=True)
    position = 0
    while True:
        data = file.read(_TEXT_BYTES)
        pending = len(decoder.getstate()[0])
        try:
            text = newlines.decode(data, final=not data)
        except UnicodeDecodeError as e:
            at = position - pending + e.start
            raise UserError(f"{path} is not UTF-8 text (byte {at}): convert it, for example with iconv") from e
        position += len(data)
        if text:
            yield text
        if not data:
            return


def _whole(texts: Iterable[str]) -> Iterator[Stretch]:
    """``texts`` as the stretches of one document; nothing if there are none."""
    held = None
    for text in texts:
        if held is not None:
            yield Stretch(1, held, False)
        held = text
    if held is not None:
        yield Stretch(1, held, True)


# --- rows ------------------------------------------------------------------------------------------------------------


def text_of(row: Any, text_column: str, where: str) -> str:
    """The text of a row: its column ``text_column``, or several joined by line ends where that is A+B.

    None is an empty text. Raises UserError that begins with ``where`` if the row has no such column, or no text in it.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where}: every line must be a JSON object with the key {text_column!r}")
    texts = []
    for column in columns_of(text_column, row):
        if column not in row:
            raise _no_column(column, list(row), where)
        text = row[column]
        if text is not None and not isinstance(text, str):
            raise UserError(f"{where}: {column!r} holds {text!r:.50}, which is no text")
        if text:
            texts.append(text)
    return "\n".join(texts)


def columns_of(text_column: str, known: Iterable[str]) -> list[str]:
    """The columns that ``text_column`` names: itself, or A and B for ``A+B`` if there is none of that name."""
    return [text_column] if text_column in known or "+" not in text_column else text_column.split("+")


def _no_column(column: str, columns: list[str], where: str) -> UserError:
    return UserError(
        f"{where}: there is no column {column!r} but {', '.join(map(repr, columns))}: name one with --text_column"
    )


def _read_jsonl(path: Path, lines: IO[bytes], text_column: str, first_row: int) -> Iterator[Stretch]:
    for number, row in _json_lines(path, lines, first_row):
        if text := text_of(row, text_column, f"{path}:{number}"):
            yield Stretch(number, text, True)


def _json_lines(path: Path, lines: IO[bytes], first_row: int = 1) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, 1):
        if number < first_row or not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path}:{number} is not valid JSON: {e}") from e
        yield number, row


def read_rows(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where for a message, row with all its columns) of a file with one of ROW_EXTENSIONS.

    A .json file is a list of objects, .csv and .tsv begin with a line of column names. One whose first line holds none
    of ``columns`` but is as long has no such line: these are its columns. Raises UserError naming the file and, where
    there is one, the line or row.
    """
    with _explained(path):
        for where, row in _rows(path, columns):
            if not isinstance(row, dict):
                raise UserError(f"{where}: every row must be an object with named values, not {type(row).__name__}")
            yield where, row


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    if path.name.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                rows = (row for batch in file.iter_batches(_PARQUET_ROWS) for row in batch.to_pylist())
                yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))
        except pa.ArrowException as e:
            raise UserError(f"{path} is not a readable parquet file: {e}") from e
        return
    if path.name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
        with _open(path, _no_meter) as lines:
            yield from ((f"{path}:{number}", row) for number, row in _json_lines(path, lines))
        return
    with _open(path, _no_meter) as file:
        text = "".join(_decoded(path, file))
    if path.name.endswith(".json"):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path} is not valid JSON: {e}") from e
        if not isinstance(rows, list):
            raise UserError(f"{path} must hold a list of objects, not one {type(rows).__name__}")
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))
        return
    plain = path.name.endswith(".tsv")  # no quotes: a tab within a text cannot be written, a quotation mark can
    lines = csv.reader(io.StringIO(text), delimiter="\t" if plain else ",", quoting=csv.QUOTE_NONE if plain else 0)
    try:
        names = next(lines, [])
        if len(names) == len(columns) and not set(names) & set(columns):
            first, names = names, columns
            yield f"{path}:{lines.line_num}", dict(zip(names, first, strict=True))
        for row in lines:
            if len(row) != len(names) and row:
                raise UserError(f"{path}:{lines.line_num} has {len(row)} columns, the first line has {len(names)}")
            if row:
                yield f"{path}:{lines.line_num}", dict(zip(names, row, strict=True))
    except csv.Error as e:
        raise UserError(f"{path}:{lines.line_num} cannot be read: {e}") from e


def _read_parquet(path: Path, text_column: str, first_row: int, meter: Meter) -> Iterator[Stretch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # a buffer instead of whole column chunks: a row group may hold gigabytes
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            names = file.schema_arrow.names
            columns = columns_of(text_column, names)
            for column in columns:
                if column not in names:
                    raise _no_column(column, names, str(path))
            row = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if row + rows < first_row:
                    row += rows
                    continue
                for batch in file.iter_batches(_PARQUET_ROWS, row_groups=[group], columns=columns, use_threads=False):
                    for values in batch.to_pylist():
                        row += 1
                        if row >= first_row and (text := text_of(values, text_column, f"{path}, row {row}")):
                            yield Stretch(row, text, True)
                    meter(row / file.metadata.num_rows)
    except pa.ArrowException as e:
        raise UserError(f"{path} is not a readable parquet file: {e}") from e
