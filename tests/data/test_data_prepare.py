"""``data_prep.prepare`` end to end: the split rules, repeats, refusals, and nothing half-written."""

import errno
import gzip
import json
import multiprocessing
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from configs.schema import ConfigError, DataConfig
from data_prep import prepare as module
from data_prep import shards
from data_prep.estimate import announce, expected
from data_prep.prepare import directory_of, prepare
from data_prep.shards import load_manifest, open_tokens
from data_prep.sources import Block, open_source
from data_prep.split import FEW, parts, rule_for
from data_prep.tokenizers import load_tokenizer
from scratchgpt.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {i} é\n"}) + "\n" for i in range(300)))
    return path


def config(source, out, **values):
    return DataConfig(**{"dataset": "mine", "source": str(source), "dir": str(out), **values})


def text_of(directory, split):
    tokens = open_tokens(directory, split)
    return load_tokenizer(directory).decode(tokens.slice(0, len(tokens)))


def test_tiny_shakespeare_is_split_as_in_nanogpt(shared, tmp_path, lines):
    source = shared / "tinyshakespeare" / "input.txt"
    directory = prepare(config(source, tmp_path / "out"), log=lines.append)
    train, val = open_tokens(directory, "train"), open_tokens(directory, "val")
    assert (len(train), len(val)) == (1_003_854, 111_540)
    assert train.manifest["tokenizer"]["size"] == 66
    assert text_of(directory, "train") + text_of(directory, "val") == source.read_text()
    manifest = load_manifest(directory)
    assert manifest["source"]["files"][0]["sha256"].startswith("86c4e6aa")
    assert manifest["splits"]["val"]["characters"] == 111_540


def test_many_documents_never_straddle(source, tmp_path, lines):
    directory = prepare(config(source, tmp_path / "out"), log=lines.append)
    train = text_of(directory, "train").split("<|endoftext|>")
    val = text_of(directory, "val").split("<|endoftext|>")
    assert train.pop() == val.pop() == ""
    assert sorted(train + val) == sorted(f"document {i} é\n" for i in range(300))
    assert 10 < len(val) < 60
    splits = load_manifest(directory)["splits"]
    assert (splits["train"]["documents"], splits["val"]["documents"]) == (len(train), len(val))
    assert splits["val"]["characters"] == sum(map(len, val))
    assert splits["val"]["bytes"] == splits["val"]["characters"] + len(val)  # one é each


def test_few_documents_are_split_by_position():
    def split(val_fraction, *documents):
        """(split, text, an end-of-text token follows) of documents that come in the stretches of a list."""
        blocks = [
            Block(0, row, text, at == len(texts) - 1)
            for row, texts in enumerate(documents, 1)
            for at, text in enumerate(texts)
        ]
        found = parts(blocks, rule_for(blocks, val_fraction), val_fraction)
        return [(p.split, p.text, p.ends) for p in found]

    expected = [("train", "aaaa", True), ("train", "b", False), ("val", "bbb", True), ("val", "cc", True)]
    assert split(0.5, ["aaaa"], ["bbbb"], ["cc"]) == expected
    in_stretches = [("train", "aaaa", True), ("train", "b", False), ("val", "bb", False), ("val", "b", True)]
    assert split(0.5, ["aaaa"], ["b", "bb", "b"], ["cc"]) == [*in_stretches, ("val", "cc", True)]
    assert split(0.25, ["abcd"]) == [("train", "abc", False), ("val", "d", False)]
    assert split(0.0, ["abcd"]) == [("train", "abcd", False)]
    assert split(0.5) == []
    many = split(0.5, *[["x"]] * FEW)
    assert len(many) == FEW
    assert {split for split, _, _ in many} == {"train", "val"}
    assert all(ends for _, _, ends in many)


def test_repeating_does_nothing_and_other_requests_are_refused(source, tmp_path, lines):
    data = config(source, tmp_path / "out")
    directory = prepare(data, log=lines.append)
    before = {p.name: p.stat().st_mtime_ns for p in directory.iterdir()}
    lines.clear()
    assert prepare(data, log=lines.append) == directory
    assert lines == []
    assert before == {p.name: p.stat().st_mtime_ns for p in directory.iterdir()}
    for change in ({"val_fraction": 0.2}, {"max_tokens": 5}, {"dataset": "other"}, {"tokenizer": "gpt2"}):
        with pytest.raises(UserError, match=f"was prepared with {next(iter(change))}="):
            prepare(config(source, tmp_path / "out", **change), log=lines.append)
    source.write_text(source.read_text() + '{"text": "more"}\n')
    with pytest.raises(UserError, match="has changed since"):
        prepare(data, log=lines.append)
    source.unlink()
    assert prepare(data, log=lines.append) == directory
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is missing or damaged"):
        prepare(data, log=lines.append)


def test_two_runs_give_the_same_bytes(source, tmp_path, lines):
    a = prepare(config(source, tmp_path / "a"), log=lines.append)
    b = prepare(config(source, tmp_path / "b"), log=lines.append)
    assert {p.name: p.read_bytes() for p in a.iterdir()} == {p.name: p.read_bytes() for p in b.iterdir()}


@pytest.mark.parametrize("tokenizer", ["char", "gpt2"])
def test_max_tokens_is_exact(source, tmp_path, lines, request, tokenizer):
    if tokenizer == "gpt2":
        request.getfixturevalue("gpt2")
    directory = prepare(config(source, tmp_path / "o", tokenizer=tokenizer, max_tokens=500), log=lines.append)
    splits = load_manifest(directory)["splits"]
    assert (splits["train"]["tokens"], splits["val"]["tokens"]) == (450, 50)
    text = text_of(directory, "train").replace("<|endoftext|>", "")
    assert splits["train"]["characters"] == len(text)


def test_gpt2_and_a_directory_of_it_agree(source, gpt2, tmp_path, lines):
    first = prepare(config(source, tmp_path / "a", tokenizer="gpt2"), log=lines.append)
    second = prepare(config(source, tmp_path / "b", tokenizer=str(first)), log=lines.append)
    for split in ("train", "val"):
        assert (first / f"{split}_00000.bin").read_bytes() == (second / f"{split}_00000.bin").read_bytes()
    ids = open_tokens(first, "train").slice(0, 20)
    assert ids.dtype == np.int32
    assert gpt2.decode(ids).startswith("document ")


def test_directories_have_a_name_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert directory_of(DataConfig()) == Path("data/shakespeare-char")
    assert directory_of(DataConfig(source="x.txt")).name.startswith("shakespeare-char-")
    assert directory_of(DataConfig(source="x.txt")) != directory_of(DataConfig(source="y.txt"))
    assert directory_of(DataConfig(dataset="../../x y")).parent == Path("data")
    assert directory_of(DataConfig(dir="d")) == Path("d")


def test_what_is_not_ours_is_left_alone(source, tmp_path, lines):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        prepare(config(source, tmp_path / "file"), log=lines.append)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.doc").write_text("x")
    with pytest.raises(UserError, match="not ours to fill"):
        prepare(config(source, tmp_path / "theirs"), log=lines.append)
    assert (tmp_path / "theirs" / "thesis.doc").read_text() == "x"
    with pytest.raises(ConfigError, match="val_fraction"):
        prepare(config(source, tmp_path / "o", val_fraction=2.0), log=lines.append)
    with pytest.raises(UserError, match="char, gpt2 or a directory"):
        prepare(config(source, tmp_path / "o", tokenizer="word"), log=lines.append)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "text.jsonl", "theirs"]


@pytest.mark.parametrize("failure", ["bad line", "empty", "disk full", "interrupt"])
def test_a_failure_leaves_nothing(source, tmp_path, lines, monkeypatch, failure):
    expected: type[BaseException] = UserError
    if failure == "bad line":
        source.write_text(source.read_text() + "{\n")
    elif failure == "empty":
        source.write_text('{"text": ""}\n')
    else:
        expected = UserError if failure == "disk full" else KeyboardInterrupt

        def fail(self):
            raise OSError(errno.ENOSPC, "No space left on device") if failure == "disk full" else KeyboardInterrupt

        monkeypatch.setattr(shards.ShardWriter, "close", fail)
    with pytest.raises(expected, match={"disk full": "no space left", "empty": "empty"}.get(failure)):
        prepare(config(source, tmp_path / "out"), log=lines.append)
    assert [p.name for p in tmp_path.iterdir()] == ["text.jsonl"]


def _prepare_quietly(data):
    prepare(data, log=lambda _: None)


@pytest.mark.parametrize("tokenizer", ["char", "gpt2"])
def test_the_number_of_workers_changes_nothing(source, tmp_path, lines, request, tokenizer):
    if tokenizer == "gpt2":
        request.getfixturevalue("gpt2")
    source.write_text(
        "".join(json.dumps({"text": f"document {i} é\n" * (1 + i * 40 % 2500)}) + "\n" for i in range(120))
    )
    made = [
        prepare(config(source, tmp_path / str(n), tokenizer=tokenizer), log=lines.append, workers=n) for n in (1, 2, 7)
    ]
    contents = [{p.name: p.read_bytes() for p in directory.iterdir()} for directory in made]
    assert contents[0] == contents[1] == contents[2]


def test_the_disk_is_announced_and_checked(source, tmp_path, lines):
    directory = prepare(config(source, tmp_path / "out"), log=lines.append)
    tokens = sum(split["tokens"] for split in load_manifest(directory)["splits"].values())
    documents = sum(split["documents"] for split in load_manifest(directory)["splits"].values())
    assert (
        f"it takes about {(2 * tokens + 24 * documents) / 1000:.1f} kB of disk for about {tokens:,} tokens" in lines[1]
    )
    with pytest.raises(UserError, match=r"needs about .* TB of disk, but only .* are free there: free some"):
        announce((10**18, 10), 2, tmp_path / "not" / "yet", 0, lines.append)


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_the_estimate_is_near_for_every_format(suffix, tmp_path):
    rows = [f"Row {i}: {i**3 % 1009} of {i**5 % 9973}. " * (i % 50) for i in range(45_000)]
    path = tmp_path / f"text.{suffix}"
    data = "".join(json.dumps({"text": r}) + "\n" for r in rows).encode()
    if suffix == "parquet":
        pq = pytest.importorskip("pyarrow.parquet")
        pq.write_table(pytest.importorskip("pyarrow").table({"text": rows}), path)
    else:
        zstd = pytest.importorskip("zstandard").compress if suffix == "jsonl.zst" else None
        pack = {"txt": lambda _: "".join(rows).encode(), "jsonl.gz": lambda d: gzip.compress(d, 1), "jsonl.zst": zstd}
        path.write_bytes(pack.get(suffix, bytes)(data))
    source = open_source("mine", str(path))
    tokens, documents = expected([source], [Fraction(1)], len, 0)
    assert 0 < source.share_read < 0.8  # it was not read to its end
    characters = sum(map(len, rows))
    assert abs(tokens / characters - 1) < 0.1, tokens / characters - 1
    assert abs(documents / (1 if suffix == "txt" else sum(map(bool, rows))) - 1) < 0.2 or documents == 0
    assert expected([source], [Fraction(1)], len, 1000)[0] == 1000


@pytest.mark.parametrize("name", ["char", "gpt2"])
def test_a_long_text_is_the_same_in_pieces(name, tmp_path, lines, request):
    gpt2 = request.getfixturevalue("gpt2")
    text = "".join(f"word{i} and   space\n\n{'é' * (i % 9)} don't\t x" for i in range(40_000))
    text += "longwordwithoutaspace" * 15_000 + " end  " + "\n" * 5 + "\u3042" * 300_000
    path = tmp_path / "long.txt"
    path.write_bytes(text.encode())
    directory = prepare(config(path, tmp_path / "out", tokenizer=name), log=lines.append)
    cut = int(len(text) * 0.9)
    for split, part in (("train", text[:cut]), ("val", text[cut:])):
        tokens = open_tokens(directory, split)
        tokenizer = gpt2 if name == "gpt2" else load_tokenizer(directory)
        assert np.array_equal(tokens.slice(0, len(tokens)), tokenizer.encode(part))


def test_a_character_beyond_the_budget_is_no_error(tmp_path, lines):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": "abc" if i < 200 else "\u00e9"}) + "\n" for i in range(400)))
    directory = prepare(config(path, tmp_path / "out", max_tokens=100), log=lines.append)
    assert load_manifest(directory)["tokenizer"]["size"] == 4


def test_processes_at_once_do_not_disturb_each_other(source, tmp_path):
    context = multiprocessing.get_context("spawn")
    data = config(source, tmp_path / "out")
    processes = [context.Process(target=_prepare_quietly, args=(data,)) for _ in range(3)]
    for p in processes:
        p.start()
    for p in processes:
        p.join(60)
    assert [p.exitcode for p in processes] == [0, 0, 0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "text.jsonl"]
    assert len(open_tokens(tmp_path / "out", "train"))


def test_the_command(source, tmp_path):
    def command(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "data_prep.prepare", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )

    out = str(tmp_path / "out")
    done = command("--dataset=mine", f"--source={source}", "--tokenizer=char", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == out
    done = command("--dataset=mine", f"--source={source}x", f"--out={out}2")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = command("--help")
    assert done.returncode == 0
    assert "--val_fraction" in done.stdout


def test_help_needs_no_heavy_library():
    code = (
        "import sys, data_prep.prepare\n"
        "heavy = 'datasets', 'tiktoken', 'tokenizers', 'pyarrow', 'jax', 'torch', 'transformers'\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "[]"
    assert module.__doc__
