"""Mixtures: what the command line means, shares of tokens that hold all the way, and where the mixture ends."""

import json
from fractions import Fraction

import numpy as np
import pytest

from configs.schema import DataConfig
from data_prep.document_index import DocumentIndex
from data_prep.mixture import MixturePart, Turns, parse
from data_prep.prepare import prepare
from data_prep.shards import load_manifest, open_tokens
from data_prep.tokenizers import load_tokenizer
from scratchgpt.errors import UserError


def test_the_command_line_is_read():
    assert parse("a:b", "x,y.txt", "text") == [MixturePart("a:b", "x,y.txt", "text", Fraction(1))]
    assert parse("fineweb:0.8,law:0.2", "", "text") == [
        MixturePart("fineweb", "", "text", Fraction(4, 5)),
        MixturePart("law", "", "text", Fraction(1, 5)),
    ]
    assert parse("a, b", ",owner/b:part", "text,title+body") == [
        MixturePart("a", "", "text", Fraction(1)),
        MixturePart("b", "owner/b:part", "title+body", Fraction(1)),
    ]


@pytest.mark.parametrize(
    ("dataset", "source", "column", "words"),
    [
        ("a:1,b", "", "text", "others none"),
        ("a:1,b:0", "", "text", "'0' must be a positive number"),
        ("a:1,b:-2", "", "text", "positive"),
        ("a:1,b:nan", "", "text", "positive"),
        ("a:1,b:1/0", "", "text", "positive"),
        ("a:1,b:1e99", "", "text", "positive"),
        ("a:1,b:x", "", "text", "positive"),
        ("a:1,", "", "text", "without a name"),
        ("a:1,:2", "", "text", "without a name"),
        ("a:1,a:2", "", "text", "twice"),
        ("a:1,b:2", "x", "text", "--source names 1"),
        ("a:1,b:2", "x,y,z", "text", "--source names 3"),
        ("a:1,b:2", "", "t,u,v", "--text_column names 3"),
    ],
)
def test_what_is_wrong_is_one_sentence(dataset, source, column, words):
    with pytest.raises(UserError, match=words):
        parse(dataset, source, column)


def test_turns_are_exact():
    turns = Turns([Fraction(4, 5), Fraction(1, 5)])
    order = []
    for _ in range(10):
        order.append(turns.next())
        turns.take(order[-1], 7)
    assert order == [0, 1, 0, 0, 0, 0, 1, 0, 0, 0]


def rows(path, name, count, words):
    texts = [f"{name} {i} " + "word " * (words + i % 7) for i in range(count)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture
def data(tmp_path):
    rows(tmp_path / "web.jsonl", "web", 900, 3)
    rows(tmp_path / "law.jsonl", "law", 150, 9)
    (tmp_path / "poem.txt").write_text("poem " * 2000)
    return DataConfig(
        dataset="web:0.8,law:0.2",
        source=f"{tmp_path}/web.jsonl,{tmp_path}/law.jsonl",
        dir=str(tmp_path / "out"),
    )


def test_shares_hold_all_the_way(data, lines):
    directory = prepare(data, log=lines.append)
    tokens, index = open_tokens(directory, "train"), DocumentIndex(directory, "train")
    text = load_tokenizer(directory).decode(tokens.slice(0, len(tokens)))
    documents = [index[i] for i in range(len(index))]
    law = np.cumsum([(d.stop - d.start) * d.origin.startswith("law: law.jsonl") for d in documents])
    ends = np.array([d.stop for d in documents])
    share = law / ends
    assert len(index) > 400
    assert np.abs(share[len(share) // 4 :] - 0.2).max() < 0.05  # the split takes some of either at random
    manifest = load_manifest(directory)
    mixed = manifest["mixture"]
    assert sum(mixed["tokens"].values()) == sum(s["tokens"] for s in manifest["splits"].values())
    assert abs(mixed["tokens"]["law"] / sum(mixed["tokens"].values()) - 0.2) < 0.005
    assert mixed["ended_with"] in ("law", "web")
    assert f"ended where {mixed['ended_with']} had no more" in lines[-1]
    assert [p["share_of_tokens"] for p in manifest["source"]["parts"]] == [0.8, 0.2]
    # each part in its own order, nothing twice
    for name in ("web", "law"):
        numbers = [int(t.split()[1]) for t in text.split("<|endoftext|>") if t.startswith(name + " ")]
        assert numbers == sorted(set(numbers))
    for document in documents[::50]:
        name, row = document.origin.split(":")[0], int(document.origin.rpartition(" ")[2])
        ids = tokens.slice(document.start, document.stop)
        assert load_tokenizer(directory).decode(ids).startswith(f"{name} {row - 1} ")


def test_a_mixture_ends_with_the_part_that_has_no_more(data, tmp_path, lines):
    data.dataset = "web:0.5,law:0.5"
    rows(tmp_path / "law.jsonl", "law", 110, 1)
    manifest = load_manifest(prepare(data, log=lines.append))
    assert manifest["mixture"]["ended_with"] == "law"
    taken = manifest["mixture"]["tokens"]
    whole = sum(len(json.loads(line)["text"]) + 1 for line in (tmp_path / "law.jsonl").read_text().splitlines())
    assert taken["law"] == whole  # all of it
    assert abs(taken["web"] - whole) < 60  # to within a document


def test_a_limit_ends_it_earlier_and_a_long_document_is_not_torn(data, tmp_path, lines):
    data.dataset, data.source, data.max_tokens = "web,poem", f"{tmp_path}/web.jsonl,{tmp_path}/poem.txt", 12_000
    directory = prepare(data, log=lines.append)
    manifest = load_manifest(directory)
    assert (manifest["splits"]["train"]["tokens"], manifest["splits"]["val"]["tokens"]) == (10_800, 1_200)
    assert manifest["mixture"]["ended_with"] is None
    tokens = open_tokens(directory, "train")
    text = load_tokenizer(directory).decode(tokens.slice(0, len(tokens)))
    assert "poem " * 1800 in text


def test_a_mixture_is_not_prepared_twice_and_changes_are_seen(data, tmp_path, lines):
    directory = prepare(data, log=lines.append)
    lines.clear()
    assert prepare(data, log=lines.append) == directory
    assert lines == []
    with pytest.raises(UserError, match="was prepared with dataset="):
        prepare(DataConfig(dataset="web:0.7,law:0.3", source=data.source, dir=data.dir), log=lines.append)
    rows(tmp_path / "law.jsonl", "law", 151, 9)
    with pytest.raises(UserError, match=r"law\.jsonl has changed since"):
        prepare(data, log=lines.append)
