"""Shards give back what was written; every kind of damage is one sentence that names the file."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import DataConfig
from data_prep import shards
from data_prep.document_index import DocumentIndex
from data_prep.prepare import prepare
from data_prep.shards import ShardWriter, Unusable, dtype_for, load_manifest, open_tokens
from data_prep.tokenizers import load_tokenizer
from scratchgpt.errors import UserError

TEXT = "to be or not to be, that is the question\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(directory of shards of 64 tokens, the ids of its training split)."""
    root = tmp_path_factory.mktemp("made")
    for name, text in (("a.txt", TEXT * 2), ("b.txt", TEXT * 3), ("c.txt", TEXT)):
        (root / name).write_text(text)
    data = DataConfig(dataset="d", source=str(root / "*.txt"), dir=str(root / "shards"), val_fraction=1 / 6)
    directory = prepare(data, log=lambda _: None, shard_tokens=64)
    tokenizer = load_tokenizer(directory)
    end = tokenizer.end_of_text_id
    return directory, [*tokenizer.encode(TEXT * 2), end, *tokenizer.encode(TEXT * 3), end]


@given(st.data())
def test_slices_cross_shards(made, data):
    directory, ids = made
    tokens = open_tokens(directory, "train")
    start = data.draw(st.integers(0, len(ids)))
    stop = data.draw(st.integers(start, len(ids)))
    piece = tokens.slice(start, stop)
    assert piece.dtype == np.int32
    assert piece.tolist() == ids[start:stop]


def test_manifest_and_lengths(made):
    directory, ids = made
    tokens = open_tokens(directory, "train")
    assert len(tokens) == len(ids) == 207
    assert [s["tokens"] for s in tokens.manifest["splits"]["train"]["shards"]] == [64, 64, 64, 15]
    assert [s["documents"] for s in tokens.manifest["splits"]["train"]["shards"]] == [1, 1, 0, 0]
    assert len(tokens.manifest_sha256) == 64
    train = tokens.manifest["splits"]["train"]
    assert (train["documents"], train["characters"], train["bytes"]) == (2, 205, 205)
    assert (directory / "train_00000.bin").read_bytes()[:2] == int(ids[0]).to_bytes(2, "little")
    for bad in [(-1, 3), (3, 2), (0, 208)]:
        with pytest.raises(IndexError):
            tokens.slice(*bad)
    with pytest.raises(UserError, match="split 'test'"):
        open_tokens(directory, "test")


def test_large_vocabularies_take_four_bytes(tmp_path):
    assert (dtype_for(65536), dtype_for(65537)) == ("uint16", "uint32")
    writer = ShardWriter(tmp_path, "train", "uint32")
    writer.append(np.array([1, 70_000], np.int32))
    writer.close()
    assert (tmp_path / "train_00000.bin").read_bytes() == b"\x01\0\0\0\x70\x11\x01\0"


@settings(max_examples=12)
@given(st.lists(st.integers(0, 40), max_size=12), st.integers(0, 11), st.integers(1, 30))
def test_a_writer_continues_where_another_stopped(tmp_path_factory, lengths, stop, limit):
    root = tmp_path_factory.mktemp("writers")

    def write(name, documents, saved=None):
        (root / name).mkdir(exist_ok=True)
        writer = ShardWriter(root / name, "train", "uint16", limit, saved)
        for number, length in documents:
            writer.append(np.arange(length) + number, (0, number))
        return writer

    documents = list(enumerate(lengths, 1))
    whole = write("whole", documents)
    whole.close()
    cut = write("cut", documents[:stop])
    saved = json.loads(json.dumps(cut.save()))
    cut.append(np.full(5, 7), (9, 9))  # what a run wrote after it last saved
    cut.abandon()
    continued = write("cut", documents[stop:], saved)
    continued.close()
    assert continued.shards == whole.shards
    assert continued.tokens == whole.tokens == sum(lengths)
    for shard in whole.shards:
        for name in (shard["file"], shard["file"].replace("bin", "docs")):
            assert (root / "cut" / name).read_bytes() == (root / "whole" / name).read_bytes()


def test_a_writer_refuses_what_is_not_there(tmp_path):
    writer = ShardWriter(tmp_path, "train", "uint16", 4)
    writer.append(np.arange(6), (0, 1))
    saved = writer.save()
    writer.abandon()
    for name in ("train_00001.bin", "train_00000.docs"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-1])
        with pytest.raises(Unusable, match=name):
            ShardWriter(tmp_path, "train", "uint16", 4, saved)
        (tmp_path / name).write_bytes(content)
    ShardWriter(tmp_path, "train", "uint16", 4, saved).abandon()


def _edit(change):
    def damage(directory):
        path = directory / "manifest.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    return damage


def _shard(**values):
    return _edit(lambda m: m["splits"]["train"]["shards"][0].update(values))


def _flip(directory):
    data = bytearray((directory / "train_00001.bin").read_bytes())
    data[17] ^= 1
    (directory / "train_00001.bin").write_bytes(data)


DAMAGE = {
    "truncated": (lambda d: (d / "train_00000.bin").write_bytes(b"ab"), "train_00000.bin"),
    "grown": (lambda d: (d / "train_00000.bin").write_bytes(b"ab" * 65), "train_00000.bin"),
    "emptied": (lambda d: (d / "val_00000.bin").write_bytes(b""), "val_00000.bin"),
    "flipped": (_flip, "train_00001.bin"),
    "missing": (lambda d: (d / "train_00002.bin").unlink(), "train_00002.bin"),
    "a directory": (lambda d: ((d / "train_00002.bin").unlink(), (d / "train_00002.bin").mkdir()), "train_00002.bin"),
    "documents cut": (lambda d: (d / "train_00001.docs").write_bytes(b""), "train_00001.docs"),
    "documents missing": (lambda d: (d / "val_00000.docs").unlink(), "val_00000.docs"),
    "no manifest": (lambda d: (d / "manifest.json").unlink(), "manifest.json"),
    "cut manifest": (lambda d: (d / "manifest.json").write_text('{"format'), "manifest.json"),
    "binary manifest": (lambda d: (d / "manifest.json").write_bytes(b"\xff\xfe\0"), "manifest.json"),
    "list manifest": (lambda d: (d / "manifest.json").write_text("[1]"), "manifest.json"),
    "version": (_edit(lambda m: m.update(format_version=99)), "manifest.json"),
    "dtype": (_edit(lambda m: m.update(dtype="float64")), "manifest.json"),
    "no splits": (_edit(lambda m: m.pop("splits")), "manifest.json"),
    "no tokenizer": (_edit(lambda m: m.update(tokenizer=3)), "manifest.json"),
    "vocabulary": (_edit(lambda m: m["tokenizer"].update(size=10**6)), "manifest.json"),
    "negative": (_shard(tokens=-64), "manifest.json"),
    "huge": (_shard(tokens=10**30), "manifest.json"),
    "true": (_shard(tokens=True), "manifest.json"),
    "traversal": (_shard(file="../train_00000.bin"), "manifest.json"),
    "absolute": (_shard(file="/etc/passwd"), "manifest.json"),
    "other file": (_shard(file="manifest.json"), "manifest.json"),
    "no checksum": (_shard(sha256=None), "manifest.json"),
    "old version": (_edit(lambda m: m.update(format_version=1)), "manifest.json"),
    "no documents": (_shard(documents=None), "manifest.json"),
    "more documents than tokens": (_shard(documents=65), "manifest.json"),
    "other sum of documents": (_shard(documents=0), "manifest.json"),
    "total": (_edit(lambda m: m["splits"]["train"].update(tokens=7)), "manifest.json"),
    "consistently huge": (
        _edit(
            lambda m: (
                m["splits"]["val"].update(tokens=10**15),
                m["splits"]["val"]["shards"][0].update(tokens=10**15),
            )
        ),
        "val_00000.bin",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(made, tmp_path, name):
    directory = tmp_path / "copy"
    shutil.copytree(made[0], directory)
    damage, file = DAMAGE[name]
    damage(directory)
    with pytest.raises(UserError) as caught:
        open_tokens(directory, "train")
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_big_data_is_checked_by_samples(made, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_FULL_CHECK_BYTES", 0)
    directory = tmp_path / "copy"
    shutil.copytree(made[0], directory)
    assert len(open_tokens(directory, "train")) == 207
    _flip(directory)
    with pytest.raises(UserError, match=r"train_00001\.bin"):
        open_tokens(directory, "train")
    assert len(open_tokens(directory, "train", verify=False)) == 207


def test_every_token_knows_its_document(made):
    directory, ids = made
    index = DocumentIndex(directory, "train")
    assert [tuple(index[i]) for i in range(len(index))] == [
        (0, 0, 83, "a.txt, row 1"),
        (1, 83, 207, "b.txt, row 1"),
    ]
    assert [index.number_at(t) for t in range(len(ids))] == [0] * 83 + [1] * 124
    assert [d.number for d in index.between(82, 84)] == [0, 1]
    assert [d.number for d in index.between(83, 84)] == [1]
    assert DocumentIndex(directory, "val")[0].origin == "c.txt, row 1"
    for bad in (-1, 207):
        with pytest.raises(IndexError):
            index.number_at(bad)
    with pytest.raises(IndexError):
        index[2]
    with pytest.raises(UserError, match="split 'test'"):
        DocumentIndex(directory, "test")


def test_a_flipped_bit_of_the_documents_is_named(made, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(made[0], directory)
    data = bytearray((directory / "train_00001.docs").read_bytes())
    data[16] ^= 1
    (directory / "train_00001.docs").write_bytes(data)
    open_tokens(directory, "train")
    with pytest.raises(UserError, match=r"train_00001\.docs is damaged"):
        DocumentIndex(directory, "train")


def test_load_manifest_of_nothing(tmp_path):
    with pytest.raises(UserError, match=r"manifest\.json does not exist"):
        load_manifest(tmp_path / "nowhere")
