"""Download a file once, check it against a pinned SHA-256, keep it in the user's cache."""

import base64
import contextlib
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path

from scratchgpt.errors import UserError
from scratchgpt.files import atomic_path, sha256_bytes, sha256_file

TIMEOUT_S = 15.0  # for one network operation: a host that does not answer must not look like a hang
_DEADLINE_S = 900.0  # for one whole file: nor may a server that trickles
LOCAL_COPY_HINT = "pass a local copy instead with --source=FILE (in training: --config.data.source=FILE)"


class DownloadError(Exception):
    """A file could not be had from one place; the message says why. Callers try the next place or raise UserError."""


def cache_dir() -> Path:
    """Where downloads are kept: $SCRATCHGPT_CACHE, else ~/.cache/scratchgpt."""
    named = os.environ.get("SCRATCHGPT_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "scratchgpt"


def without_password(url: str) -> str:
    """``url`` without ``user:password@``, fit to be shown."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:  # brackets that hold no IPv6 address
        return url.rpartition("@")[2]
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()  # honours SSL_CERT_FILE
    candidates = [os.environ.get(name) for name in ("PIP_CERT", "REQUESTS_CA_BUNDLE")]
    with contextlib.suppress(ImportError):  # Python from python.org on a Mac has no certificates of its own
        import certifi

        candidates.append(certifi.where())
    for file in candidates:
        if file and Path(file).is_file():
            with contextlib.suppress(ssl.SSLError, OSError):
                context.load_verify_locations(cafile=file)
    return context


def read_url(url: str) -> bytes:
    """The bytes at an http(s) or file URL. Raises DownloadError, after one attempt of bounded length."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as e:
        raise DownloadError(f"{without_password(url)} is not an address ({e})") from e
    if parts.scheme not in ("https", "http", "file"):
        raise DownloadError(f"{without_password(url)} is not an http, https or file address")
    request = urllib.request.Request(without_password(url), headers={"User-Agent": "scratchgpt"})
    if parts.username:
        login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        # unredirected: a password of this host must not follow a redirection to another
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    end, blocks = time.monotonic() + _DEADLINE_S, []
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=_tls_context()) as response:
            while block := response.read(1 << 20):
                blocks.append(block)
                if time.monotonic() > end:
                    raise DownloadError(f"{without_password(url)} took longer than {_DEADLINE_S:.0f} s")
    except urllib.error.HTTPError as e:
        raise DownloadError(f"{without_password(url)} answered {e.code} {e.reason}") from e
    except (OSError, HTTPException, ValueError) as e:
        reason = getattr(e, "reason", None) or e
        raise DownloadError(f"cannot reach {without_password(url)} ({reason})") from e
    return b"".join(blocks)


def checked(data: bytes, sha256: str, where: str) -> bytes:
    """``data`` itself. Raises DownloadError unless its SHA-256 is ``sha256``."""
    if sha256_bytes(data) != sha256:
        raise DownloadError(f"{without_password(where)} gave {len(data):,} bytes with a SHA-256 other than {sha256}")
    return data


def cached(name: str, sha256: str) -> Path | None:
    """The file ``name`` of the cache if it is there and whole."""
    path = cache_dir() / name
    try:
        return path if path.is_file() and sha256_file(path) == sha256 else None
    except OSError:
        return None


def keep(name: str, data: bytes) -> Path:
    """Write ``data`` into the cache under ``name``, whole or not at all."""
    path = cache_dir() / name
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return path


def fetch(name: str, urls: Iterable[str], sha256: str) -> Path:
    """Path of the cached file ``name``, downloaded from the first of ``urls`` that gives the right bytes.

    Raises DownloadError that says what went wrong at each address.
    """
    if path := cached(name, sha256):
        return path
    failures = []
    for url in urls:
        try:
            return keep(name, checked(read_url(url), sha256, url))
        except DownloadError as e:
            failures.append(str(e))
    raise DownloadError("; ".join(failures) or "no address to download from")


def fetch_or_explain(name: str, urls: Iterable[str], sha256: str) -> Path:
    """:func:`fetch` for a data set: raises UserError that tells how to pass a local copy."""
    try:
        return fetch(name, urls, sha256)
    except DownloadError as e:
        raise UserError(f"cannot download {name}: {e}; {LOCAL_COPY_HINT}") from e
