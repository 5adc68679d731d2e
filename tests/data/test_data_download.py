"""Downloads: the right bytes or one reason, from the configured package index, kept whole in the cache."""

import functools
import http.server
import threading

import pytest

from data_prep import download, pypi
from data_prep.download import DownloadError, fetch, fetch_or_explain, without_password
from data_prep.pypi import fetch_pypi, index_urls
from scratchgpt.errors import UserError
from scratchgpt.files import sha256_bytes

DATA = b"the bytes"
SHA = sha256_bytes(DATA)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCHGPT_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def site(tmp_path):
    """A package index with one project, on this machine."""
    root = tmp_path / "site"
    (root / "simple" / "some-project").mkdir(parents=True)
    (root / "files").mkdir()
    (root / "files" / "some_project-1.0.tar.gz").write_bytes(DATA)
    (root / "simple" / "some-project" / "index.html").write_text(
        "<html><body><a href='../../files/other.whl#sha256=0'>other.whl</a>"
        "<a href='../../files/some_project-1.0.tar.gz#sha256=abc' data-requires-python='&gt;=3'>x</a></body></html>"
    )

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield root, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_fetch_keeps_a_checked_copy(site, cache):
    root, url = site
    path = fetch("kept", [f"{url}/nothing", f"{url}/files/some_project-1.0.tar.gz"], SHA)
    assert path == cache / "kept"
    assert path.read_bytes() == DATA
    (root / "files" / "some_project-1.0.tar.gz").unlink()
    assert fetch("kept", [], SHA) == path
    path.write_bytes(b"damaged")
    with pytest.raises(DownloadError):
        fetch("kept", [], SHA)


def test_failures_are_one_sentence_and_leave_nothing(site, cache):
    _, url = site
    for address, words in {
        f"{url}/nothing": "404",
        f"{url}/files/some_project-1.0.tar.gz": "SHA-256",
        "http://127.0.0.1:9/x": "cannot reach",
        "ftp://example.org/x": "not an http",
        "http://[broken": "not an address",
    }.items():
        wrong = "0" * 64
        with pytest.raises(UserError, match=words) as caught:
            fetch_or_explain("thing", [address], wrong)
        assert "--source=FILE" in str(caught.value)
    assert not list(cache.glob("*"))


def test_a_silent_server_does_not_hang(monkeypatch):
    import socket
    import time

    monkeypatch.setattr(download, "TIMEOUT_S", 0.3)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        start = time.monotonic()
        with pytest.raises(DownloadError, match="cannot reach"):
            download.read_url(f"http://127.0.0.1:{listener.getsockname()[1]}/x")
        assert time.monotonic() - start < 5


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_a_file_of_the_configured_index(site, cache, monkeypatch, scheme):
    root, url = site
    index = f"{url}/simple/" if scheme == "http" else (root / "simple").as_uri()
    monkeypatch.setenv("PIP_INDEX_URL", index)
    path = fetch_pypi("Some_Project", "some_project-1.0.tar.gz", SHA)
    assert path == cache / "some_project-1.0.tar.gz"
    assert path.read_bytes() == DATA
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(DownloadError, match=r"does not list missing\.whl.*127\.0\.0\.1:9"):
        fetch_pypi("some-project", "missing.whl", SHA)


def test_which_index(tmp_path, monkeypatch):
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pypi, "_pip_option", lambda name: "")
    assert index_urls() == ["https://pypi.org/simple"]
    monkeypatch.undo()
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://mirror.example/simple/\nextra-index-url = https://a/s https://b/s\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert index_urls() == ["https://mirror.example/simple", "https://a/s", "https://b/s"]
    monkeypatch.setenv("UV_DEFAULT_INDEX", "corp=https://uv.example/simple")
    assert index_urls()[0] == "https://uv.example/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "https://env.example/simple?x=1")
    assert index_urls()[0] == "https://env.example/simple?x=1"


def test_passwords_are_not_shown():
    assert without_password("https://me:secret@host/simple") == "https://host/simple"
    with pytest.raises(DownloadError) as caught:
        download.read_url("http://me:secret@127.0.0.1:9/x")
    assert "secret" not in str(caught.value)
