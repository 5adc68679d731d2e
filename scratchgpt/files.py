"""Files that appear whole or not at all, and their checksums."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scratchgpt.errors import UserError

_REFUSED = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.EBUSY,
    errno.EXDEV,
    errno.ENOENT,
    errno.EINVAL,
    errno.ENAMETOOLONG,
}


@contextlib.contextmanager
def disk_errors(path: Path | str) -> Iterator[None]:
    """Turn a full disk or a refused write at ``path`` into a UserError."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left on the disk while writing {path}: free some and run again") from e
        if e.errno in _REFUSED:
            raise UserError(f"cannot write {path}: {e.strerror}") from e
        raise


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it to ``path`` if the block ends well, remove it otherwise.

    The block may make a file or a directory under the temporary name. A directory replaces a directory and a file a
    file; anything else raises UserError.
    """
    path = Path(os.path.realpath(path))  # a link keeps pointing to the file that is replaced
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} is neither a file nor a directory: name another one")
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if temporary.is_file():
                with open(temporary, "rb") as f:
                    os.fsync(f.fileno())
            if path.is_dir() and temporary.is_dir():
                old = path.with_name(f".{path.name}.old-{os.getpid()}")
                os.rename(path, old)
                os.rename(temporary, path)
                shutil.rmtree(old)
            else:
                os.replace(temporary, path)
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)


def check_writable(path: Path, *read: str) -> None:
    """Raise UserError, before minutes of work, unless ``path`` can become a file, and one that is not ``read``."""
    if path.is_dir():
        raise UserError(f"{path} is a directory: name a file to write")
    if not path.absolute().parent.is_dir():
        raise UserError(f"there is no directory {path.parent} to write {path.name} into")
    if path.exists() and any(Path(other).exists() and path.samefile(other) for other in read):
        raise UserError(f"{path} is to be read, so it cannot be written: name another file")
    try:
        tempfile.TemporaryFile(dir=path.absolute().parent).close()
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror}") from e


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path`` atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """The JSON value in ``path``. Raises UserError if it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise UserError(f"{path} does not exist") from e
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise UserError(f"{path} is not valid JSON: {e}") from e
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from e


def sha256_file(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """Hexadecimal SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()
