"""``data_prep.inspect`` names, for every token of a step, the file and row that it was read from."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.schema import Config, DataConfig, TrainConfig, gpt2
from data_prep.inspect import inspect
from data_prep.order import WindowOrder
from data_prep.prepare import prepare
from data_prep.shards import open_tokens
from data_prep.token_data import TokenData
from data_prep.tokenizers import load_tokenizer
from scratchgpt.errors import UserError

ROOT = Path(__file__).parents[2]
RUN = TrainConfig(batch_size=4, micro_batch_size=2, sequence_length=32, seed=3)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(configuration, texts by file name and row)."""
    folder = tmp_path_factory.mktemp("inspect")
    texts = {}
    for name, count in (("a.jsonl", 90), ("b.jsonl", 120)):
        rows = [f"text {i} of {name}: " + "é" * (i % 40) for i in range(1, count + 1)]
        texts |= {(name, i): row for i, row in enumerate(rows, 1)}
        (folder / name).write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    data = DataConfig(dataset="mine", source=str(folder), dir=str(folder / "out"))
    prepare(data, log=lambda _: None, shard_tokens=1000)
    return Config(data=data, train=RUN), texts


def shown(config, **what):
    lines = []
    inspect(config, show=lines.append, **what)
    return lines


def test_every_token_of_a_step_is_traced(prepared):
    config, texts = prepared
    batch = TokenData(config, log=lambda _: None).batch(5)
    tokenizer = load_tokenizer(config.data.dir)
    lines = shown(config, step=6)
    assert lines[0].startswith("step 6 (epoch 0): 4 sequences of 32 tokens")
    heads = [i for i, line in enumerate(lines) if line.startswith("\nsequence")]
    inputs = batch["inputs"].reshape(4, 32)
    for number, (first, last) in enumerate(zip(heads, [*heads[1:], len(lines)], strict=True)):
        seen = []
        for head, text in zip(lines[first + 1 : last : 2], lines[first + 2 : last : 2], strict=True):
            found = re.fullmatch(r"-- document \d+ \((.*), row (\d+)\): its tokens (\d+) to (\d+) of (\d+)", head)
            name, (row, begin, end, size) = found[1], map(int, found.groups()[1:])
            whole = texts[name, row] + "<|endoftext|>"
            assert size == len(texts[name, row]) + 1
            assert text == (whole[begin:] if end == size - 1 else whole[begin : end + 1])
            seen.append(text)
        assert "".join(seen).startswith(tokenizer.decode(inputs[number]))
    assert shown(config, step=6, sequence=2) == [lines[0], *lines[heads[2] : heads[3]]]


def test_a_document_shows_where_windows_begin(prepared):
    config, texts = prepared
    tokens = open_tokens(config.data.dir, "train")
    order = WindowOrder(len(tokens), 32, 4, 3)
    marks = 0
    for epoch in (0, 2):
        for number in (0, 3, 50, 100):
            head, text = shown(config, document=number, epoch=epoch)
            name, row, start = re.fullmatch(
                r"document \d+ of train \((.*), row (\d+)\): .* from ([\d,]+) on", head
            ).groups()
            plain = re.sub(r"\[\[.*?\]\]", "", text)
            assert plain == texts[name, int(row)] + "<|endoftext|>"
            at = 0
            for mark in re.finditer(r"\[\[step (\d+), sequence (\d+)\]\]", text):
                at = int(start.replace(",", "")) + len(re.sub(r"\[\[.*?\]\]", "", text[: mark.start()]))
                at -= 12 * text[: mark.start()].count("<|endoftext|>")
                assert order.starts(int(mark[1]) - 1)[int(mark[2])] == at
                marks += 1
    assert marks > 3


def test_validation_documents_have_no_windows(prepared):
    config, texts = prepared
    head, text = shown(config, split="val", document=0)
    name, row = re.search(r"\((.*), row (\d+)\)", head).groups()
    assert text == texts[name, int(row)] + "<|endoftext|>"
    assert re.search(r": \d+ documents with [\d,]+ tokens in val", shown(config, split="val")[0])
    with pytest.raises(UserError, match="steps see the split train"):
        shown(config, split="val", step=1)


def test_what_is_not_there_is_one_sentence(prepared, tmp_path):
    config, _ = prepared
    for what, words in (
        ({"document": 10**6}, "no document 1000000 in train: it has"),
        ({"step": 1, "sequence": 4}, "a step has 4"),
        ({"step": 1, "document": 1}, "not both"),
        ({"split": "test"}, "only classification has one"),
        ({"split": "all"}, "must be one of train, val, test"),
        ({"data": str(tmp_path)}, "holds no prepared data"),
    ):
        with pytest.raises(UserError, match=words):
            shown(config, **what)


def test_every_window_of_a_large_epoch_is_found():
    from data_prep.inspect import _examples_of

    order = WindowOrder(3_000_000, 2, 8, 5)
    windows = np.arange(1_200_000, 1_200_004)
    examples = _examples_of(order, 1, windows)
    first = order.shift(1)
    for window, example in zip(windows, examples, strict=True):
        step, row = divmod(order.windows_per_epoch + int(example), 8)
        assert order.starts(step)[row] == first + window * 2


def test_the_command(prepared):
    config, _ = prepared

    def command(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "data_prep.inspect", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )

    flags = ("--config=configs/small.py", f"--data={config.data.dir}", "--config.train.sequence_length=16")
    done = command(*flags, "--step=1", "--sequence=0")
    assert done.returncode == 0, done.stderr
    assert "sequence 0: tokens " in done.stdout
    done = command(f"--data={config.data.dir}x")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith("error: ")
    help_text = command("--help").stdout
    assert "--document" in help_text


def test_a_packed_step_shows_the_documents_of_its_batch(tmp_path):
    texts = [f"document {i} says {'na ' * (i % 7)}batman" for i in range(200)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = Config(model=gpt2(context_length=64))
    config.data.dataset, config.data.source = "songs", str(tmp_path / "text.jsonl")
    config.data.dir, config.train.batch_size, config.train.packing = str(tmp_path / "shards"), 2, "best_fit"
    data = TokenData(config, log=lambda _: None)
    shown = []
    inspect(config, step=3, show=shown.append)
    batch = data.batch(2)
    for row in range(2):
        for segment in range(1, batch["segments"][0, row].max() + 1):
            targets = batch["targets"][0, row][batch["segments"][0, row] == segment]
            assert data.tokenizer.decode(targets) in shown
