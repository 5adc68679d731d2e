"""What tokenizers do by themselves; that transformers' AutoTokenizer agrees is in test_tokenizers_travel.py."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.tokenizers import (
    BPETokenizer,
    CharTokenizer,
    ForeignTokenizer,
    bpe_json,
    char_tokenizer,
    load_tokenizer,
)
from scratchgpt.errors import UserError

END = "<|endoftext|>"
ALPHABET = "abc ABC\n\r\t\0\x1f'<|endoftext|>.0é\u0301ß漢😀👩\u200d🚀\u2028\ufeff\u00a0#Ġ"
# Letters that one Unicode version knows and another does not are classed differently by the two regex engines.
texts = st.text(
    st.one_of(st.sampled_from(ALPHABET), st.characters(exclude_categories=["Cs", "Cn", "Co"], max_codepoint=0x2FFFF)),
    max_size=60,
)


def auto(directory):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(directory)


@given(texts)
def test_gpt2_is_tiktokens(gpt2, tiktokens_gpt2, text):
    assert list(gpt2.encode(text)) == tiktokens_gpt2.encode_ordinary(text)


def test_gpt2_numbers_and_cuts(gpt2, shared):
    assert (gpt2.kind, gpt2.size, gpt2.end_of_text_id) == ("bpe", 50257, 50256)
    assert gpt2.decode([50256]) == END
    text = (shared / "fineweb_edu" / "sample_1M_chars.txt").read_text(encoding="utf-8")[:200_000]
    whole = list(gpt2.encode(text))
    pieces = gpt2.cuts(text, 1000)
    assert len(pieces) > 50
    assert "".join(pieces) == text
    assert [i for ids in gpt2.encode_batch(pieces) for i in ids] == whole


def test_saving_keeps_the_hash(gpt2, tmp_path):
    for ours in (char_tokenizer([ALPHABET]), gpt2):
        ours.save(tmp_path / ours.kind, model_max_length=64)
        again = load_tokenizer(tmp_path / ours.kind)
        assert type(again) is type(ours)
        assert (again.sha256, again.size, again.end_of_text_id) == (ours.sha256, ours.size, ours.end_of_text_id)
        again.save(tmp_path / "again")
        assert load_tokenizer(tmp_path / "again").sha256 == ours.sha256
        assert json.loads((tmp_path / ours.kind / "tokenizer_config.json").read_text())["model_max_length"] == 64


def test_char_vocabulary_is_sorted_and_errors_name_the_character():
    ours = char_tokenizer(["banana", " \n"])
    assert [ours.decode([i]) for i in range(ours.size)] == ["\n", " ", "a", "b", "n", END]
    with pytest.raises(UserError, match=r"'é' \(U\+00E9\) at position 2"):
        ours.encode("baé")
    with pytest.raises(UserError, match="U\\+1F600"):
        ours.encode("😀")
    assert ours.decode(ours.encode("baé😀", replace="n")) == "bann"
    with pytest.raises(UserError, match="outside"):
        ours.decode([6])
    with pytest.raises(UserError, match="empty"):
        char_tokenizer([""])
    with pytest.raises(UserError, match="UTF-16"):
        char_tokenizer(["a\ud800"])
    with pytest.raises(UserError, match="position 0"):
        ours.encode("\ud800")


def _trained(kind: str):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    corpus = ["the cat sat on the mat, the rat sat too. aaaaaaa aaaa abab ababab"] * 4
    if kind == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        )
    else:
        backend = Tokenizer(models.BPE(unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=80, special_tokens=["<unk>", "</s>"], show_progress=False)
    backend.train_from_iterator(corpus, trainer)
    return backend


@given(st.text("the cat\n ab!</s>é", max_size=30))
def test_trained_byte_level_bpe_runs_on_tiktoken(tmp_path_factory, text):
    directory = tmp_path_factory.mktemp("trained")
    backend = _trained("bytes")
    backend.save(str(directory / "tokenizer.json"))
    ours = load_tokenizer(directory)
    assert type(ours) is BPETokenizer
    assert ours.end_of_text_id == 0
    assert ours.size == backend.get_vocab_size()
    assert list(ours.encode(text)) == backend.encode(text).ids
    assert ours.decode(ours.encode(text)) == text


def test_foreign_tokenizer(tmp_path):
    backend = _trained("metaspace")
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"eos_token_id": [1, 0]}')
    ours = load_tokenizer(tmp_path)
    assert type(ours) is ForeignTokenizer
    assert ours.end_of_text_id == 1
    ids = list(ours.encode("the cat</s>"))
    assert 1 not in ids
    assert [list(i) for i in ours.encode_batch(["the cat</s>"])] == [ids]
    ours.save(tmp_path / "copy")
    again = load_tokenizer(tmp_path / "copy")
    assert (again.sha256, again.end_of_text_id) == (ours.sha256, 1)
    assert auto(tmp_path / "copy")("the cat</s>")["input_ids"] == ids


def test_merges_out_of_order_do_not_run_on_tiktoken(gpt2, tmp_path):
    parsed = json.loads(gpt2.json_bytes)
    merges = parsed["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]
    parsed = bpe_json(parsed["model"]["vocab"], merges, 50256)
    (tmp_path / "tokenizer.json").write_text(json.dumps(parsed))
    assert type(load_tokenizer(tmp_path)) is ForeignTokenizer


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "{",
        "[]",
        "{}",
        '{"model": {}}',
        '{"model": {"type": "WordLevel"}}',
        '{"model": {"type": "WordLevel", "vocab": {"a": "x", "b": 1}}}',
        '{"model": {"type": "BPE", "vocab": 3}}',
        '{"model": {"type": "Nonsense"}}',
    ],
)
def test_damaged_files_name_the_file(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_char_speed_is_not_a_python_loop():
    ours = CharTokenizer(sorted("abcdefgh \n"))
    text = "abc defgh\n" * 500_000
    import time

    start = time.perf_counter()
    ours.encode(text)
    assert time.perf_counter() - start < 1.0  # 5 MB; a Python loop needs longer, the table some 50 ms
