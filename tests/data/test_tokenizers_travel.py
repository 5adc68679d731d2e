"""A saved tokenizer is the same in transformers: ids of any text, text of any ids, special tokens, chat template."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_prep.tokenizers import BPETokenizer, ForeignTokenizer, bpe_json, bpe_tokenizer, char_tokenizer, load_tokenizer
from scratchgpt.errors import UserError

transformers = pytest.importorskip("transformers")

END = "<|endoftext|>"
# What trips tokenizers: sequences joined by ZWJ, skin tones, flags, keycaps, combining marks in either order, every
# control character, all line and paragraph ends, white space of all widths, byte order marks, special-token text.
SNIPPETS = [
    *(
        "👩\u200d🚀",
        "👨\u200d👩\u200d👧\u200d👦",
        "👍🏽",
        "🇺🇳",
        "1\ufe0f\u20e3",
        "🏳\ufe0f\u200d🌈",
        "é",
        "e\u0301",
        "a\u0323\u0307",
    ),
    *(
        "a\u0307\u0323",
        "ﬁ",
        "Å",
        "\u212b",
        "ß",
        "İ",
        "漢字",
        "นี้",
        "हिन्दी",
        "שָׁלוֹם",
        "\u202eabc\u202c",
        "\r\n",
        "\n\n",
        "\r",
    ),
    *(
        "\v",
        "\f",
        "\x85",
        "\u2028",
        "\u2029",
        "\u00a0",
        "\u2003",
        "\u3000",
        "\u200b",
        "\ufeff",
        "\ufffd",
        "\t ",
        "  ",
        "   ",
    ),
    *(END, "<|im_start|>", "</s>", "<unk>", "<|endoftext|", "Ġ", "Ċ", "Ā", "##a", "▁"),
    *("it's", "I'LL", "we've", "don't 'd", "abc123", "1,234.5", "!?...", " a", "a ", "x" * 20),
    *map(chr, range(0x20)),
    "\x7f",
]
# Letters that one Unicode version knows and another does not are classed differently by the two regex engines.
CHARACTERS = st.characters(exclude_categories=["Cs", "Cn", "Co"], max_codepoint=0x2FFFF)
TEXTS = st.lists(st.one_of(st.sampled_from(SNIPPETS), st.text(CHARACTERS, max_size=8)), max_size=12).map("".join)
KNOWN = "".join(sorted({c for s in [*SNIPPETS, "the cat"] for c in s}))  # the vocabulary of the character tokenizer
EVERYTHING = "".join(SNIPPETS)


def auto(directory):
    return transformers.AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def char():
    return char_tokenizer([KNOWN])


@pytest.fixture(scope="module")
def bpe():
    """A byte-level BPE of 300 merges, learned from text in which characters of several bytes are frequent."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=556, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([EVERYTHING, " ".join(SNIPPETS), "the cat sat on the mat, the rat too"] * 3, trainer)
    model = json.loads(backend.to_str())["model"]
    assert len(model["merges"]) == 300
    end = len(model["vocab"])
    parsed = bpe_json(model["vocab"] | {END: end}, model["merges"], end)
    return bpe_tokenizer(json.dumps(parsed).encode())


@pytest.fixture(scope="module", params=["char", "bpe", "gpt2"])
def pair(request, tmp_path_factory):
    """(ours, transformers', the directory that both come from)."""
    ours = request.getfixturevalue(request.param)
    directory = tmp_path_factory.mktemp(request.param)
    ours.save(directory, model_max_length=64)
    return ours, auto(directory), directory


def check(ours, theirs, text):
    ids = list(ours.encode(text))
    assert theirs(text)["input_ids"] == ids
    assert ours.decode(ids) == text == theirs.decode(ids)
    assert ours.end_of_text_id not in ids
    return ids


@given(st.one_of(st.text(st.sampled_from(KNOWN), max_size=40), st.lists(st.sampled_from(SNIPPETS), max_size=12)))
@example(EVERYTHING)
@example("")
def test_the_same_ids_of_known_characters(pair, text):
    ours, theirs, _ = pair
    check(ours, theirs, "".join(text))


@given(TEXTS)
@example(f"a{END}{END}b\r\n\x00\x1c\x1d\x1e\x1f\x85\u2028")
def test_the_same_ids_of_any_text(pair, text):
    ours, theirs, _ = pair
    if ours.kind != "char" or set(text) <= set(KNOWN):
        ids = check(ours, theirs, text)
        assert [list(i) for i in ours.encode_batch([text, text])] == [ids, ids]
        return
    with pytest.raises(UserError, match="is not among the"):
        ours.encode(text)
    with pytest.raises(Exception, match="UNK"):  # the library raises plain Exception: no silent replacement there too
        theirs(text)


@given(st.lists(st.integers(0, 126), max_size=20))
def test_the_same_text_of_any_ids(pair, ids):  # bytes that are no character, and the end of a text, among them
    ours, theirs, _ = pair
    assert ours.decode(ids) == theirs.decode(ids)
    assert ours.decode([*ids, ours.end_of_text_id]).endswith(END)


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen3", "nanochat"])
def test_the_model_type_beside_it_changes_nothing(pair, tmp_path, model_type):
    ours, _, directory = pair
    shutil.copytree(directory, tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = auto(tmp_path / "m")
    check(ours, theirs, EVERYTHING)
    assert theirs.bos_token_id == theirs.eos_token_id == theirs.pad_token_id == ours.end_of_text_id
    assert len(theirs) == ours.size


def test_what_transformers_saves_again_is_the_same(pair, tmp_path):
    ours, theirs, _ = pair
    theirs.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert type(again) is type(ours)
    assert (again.size, again.end_of_text_id) == (ours.size, ours.end_of_text_id)
    np.testing.assert_array_equal(again.encode(EVERYTHING), ours.encode(EVERYTHING))


# --- chat templates --------------------------------------------------------------------------------------------------

# Every character of it is in KNOWN, for the character tokenizer.
TEMPLATE = "{% for m in messages %}{{ 'abc ' + m['role'][:2] + '\n' + m['content'] + eos_token }}{% endfor %}"
PLAIN = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
CHAT = [{"role": "te", "content": "a cat"}, {"role": "st", "content": "the rat 👍🏽"}]


def chat_ids(directory, **options):
    return auto(directory).apply_chat_template(CHAT, **options)["input_ids"]


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_chat_template_of_our_own(request, tmp_path, kind):
    ours = request.getfixturevalue(kind)
    ours.save(tmp_path / "without")
    ours = load_tokenizer(tmp_path / "without")
    assert ours.chat_template is None
    ours.chat_template = TEMPLATE
    ours.save(tmp_path / "with")
    # The template writes the end-of-text token, which is then read as one token, not as its letters.
    expected = []
    for m in CHAT:
        expected += [*ours.encode(f"abc {m['role']}\n{m['content']}"), ours.end_of_text_id]
    assert chat_ids(tmp_path / "with") == expected
    again = load_tokenizer(tmp_path / "with")
    assert again.chat_template == TEMPLATE
    again.save(tmp_path / "again")
    assert chat_ids(tmp_path / "again") == expected
    ours.chat_template = PLAIN  # without special tokens: their text stays text
    ours.save(tmp_path / "plain")
    check(ours, auto(tmp_path / "plain"), EVERYTHING)
    assert chat_ids(tmp_path / "plain") == list(ours.encode("".join(m["content"] + "\n" for m in CHAT)))
    ours.chat_template = None
    ours.save(tmp_path / "with")
    assert not (tmp_path / "with" / "chat_template.jinja").exists()
    assert load_tokenizer(tmp_path / "with").chat_template is None


def foreign(directory, bpe, cls):
    """A tokenizer with many special tokens and a chat template, written by ``cls`` of transformers."""
    model = json.loads(bpe.json_bytes)["model"]
    vocabulary = {t: i for t, i in model["vocab"].items() if t != END}
    merges = [tuple(m) for m in model["merges"]]
    names = dict(bos_token="<s>", eos_token="<|im_end|>", unk_token=END, pad_token="<pad>")
    theirs = getattr(transformers, cls)(vocab=vocabulary, merges=merges, **names)
    theirs.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|tool|>"]})
    theirs.chat_template = "{{ bos_token }}" + TEMPLATE.replace("abc ", "<|im_start|>")
    theirs.save_pretrained(directory)
    return theirs


@pytest.mark.parametrize("form", ["file", "key", "named"])
@pytest.mark.parametrize("cls", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_a_foreign_tokenizer_keeps_its_specials_and_its_template(bpe, tmp_path, cls, form):
    source, saved = tmp_path / "source", tmp_path / "saved"
    theirs = foreign(source, bpe, cls)
    template = theirs.chat_template
    if form != "file":  # as transformers 4 wrote it
        path = source / "tokenizer_config.json"
        several = [{"name": "default", "template": template}, {"name": "rag", "template": PLAIN}]
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"chat_template": template if form == "key" else several})
        )
        (source / "chat_template.jinja").unlink()
    ours = load_tokenizer(source)
    assert type(ours) is (BPETokenizer if cls == "GPT2Tokenizer" else ForeignTokenizer)
    assert ours.chat_template == template
    ours.save(tmp_path / "between")
    ours = load_tokenizer(tmp_path / "between")  # as through a data directory
    ours.save(saved)
    before, after = auto(source), auto(saved)
    assert after.special_tokens_map == before.special_tokens_map
    assert after.all_special_tokens == before.all_special_tokens
    assert after.added_tokens_encoder == before.added_tokens_encoder
    assert ours.end_of_text_id == before.eos_token_id == before.convert_tokens_to_ids("<|im_end|>")
    assert after.chat_template == before.chat_template
    ids = chat_ids(saved)
    assert ids == chat_ids(source)
    assert ids.count(before.eos_token_id) == len(CHAT)
    assert ours.decode(ids) == before.decode(ids)  # special tokens included
    if form == "named":
        assert chat_ids(saved, chat_template="rag") == chat_ids(source, chat_template="rag")
    text = EVERYTHING.replace(END, "").replace("<|im_start|>", "")  # which transformers reads as tokens, as it did
    text = text.replace("<s>", "").replace("<unk>", "")
    assert list(ours.encode(text)) == after(text, add_special_tokens=False)["input_ids"]


def test_an_end_token_that_only_the_models_configuration_names_travels(tmp_path):
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "stop": 2}, unk_token="a"))
    (tmp_path / "source").mkdir()
    backend.save(str(tmp_path / "source" / "tokenizer.json"))
    (tmp_path / "source" / "tokenizer_config.json").write_text('{"eos_token": null, "bos_token": "b"}')
    (tmp_path / "source" / "config.json").write_text('{"eos_token_id": 2}')
    load_tokenizer(tmp_path / "source").save(tmp_path / "data")
    again = load_tokenizer(tmp_path / "data")
    assert again.end_of_text_id == 2
    theirs = auto(tmp_path / "data")
    assert (theirs.bos_token, theirs.eos_token_id) == ("b", 2)


def test_a_tokenizer_with_code_of_its_own_travels_without_it(bpe, tmp_path):
    bpe.save(tmp_path / "source")
    path = tmp_path / "source" / "tokenizer_config.json"
    code = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | code))
    load_tokenizer(tmp_path / "source").save(tmp_path / "saved")
    check(bpe, auto(tmp_path / "saved"), EVERYTHING)


@pytest.mark.parametrize("template", [3, [1], [{"name": "x"}], [{"name": "../x", "template": ""}]])
def test_a_damaged_template_is_named(bpe, tmp_path, template):
    bpe.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    with pytest.raises(UserError, match="chat") as e:
        load_tokenizer(tmp_path)
    assert "\n" not in str(e.value)


def test_damaged_companions_are_named(bpe, tmp_path):
    bpe.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"chat_template\.jinja"):
        load_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"tokenizer_config\.json must hold"):
        load_tokenizer(tmp_path)
