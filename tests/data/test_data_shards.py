"""Shards give back what was written; every kind of damage is one sentence that names the file."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import shards
from data_prep.build import build
from data_prep.shards import ShardWriter, dtype_for, load_manifest, open_tokens
from data_prep.split import Budget, Part
from data_prep.tokenizers import char_tokenizer
from scratchgpt.errors import UserError

TEXT = "to be or not to be, that is the question\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("made") / "shards"
    tokenizer = char_tokenizer([TEXT])
    stream = [Part("train", TEXT * 5, True), Part("val", TEXT, False)]
    facts = {"dataset": "d", "request": {}, "source": {}}
    build(directory, stream, tokenizer, Budget(0, 0.1), facts, print, shard_tokens=64)
    return directory, [*tokenizer.encode(TEXT * 5), tokenizer.end_of_text_id]


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
    assert len(tokens) == len(ids) == 206
    assert [s["tokens"] for s in tokens.manifest["splits"]["train"]["shards"]] == [64, 64, 64, 14]
    assert len(tokens.manifest_sha256) == 64
    train = tokens.manifest["splits"]["train"]
    assert (train["documents"], train["characters"], train["bytes"]) == (1, 205, 205)
    assert (directory / "train_00000.bin").read_bytes()[:2] == int(ids[0]).to_bytes(2, "little")
    for bad in [(-1, 3), (3, 2), (0, 207)]:
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
    assert len(open_tokens(directory, "train")) == 206
    _flip(directory)
    with pytest.raises(UserError, match=r"train_00001\.bin"):
        open_tokens(directory, "train")
    assert len(open_tokens(directory, "train", verify=False)) == 206


def test_load_manifest_of_nothing(tmp_path):
    with pytest.raises(UserError, match=r"manifest\.json does not exist"):
        load_manifest(tmp_path / "nowhere")
