"""Conversations as tokens: the same ids as transformers gives them, marks on the answers alone, nothing smuggled in."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data_prep.bpe import count_words, learn_merges
from data_prep.chat import ChatFormat, Message, add_chat_tokens, check_conversation
from data_prep.tokenizers import char_tokenizer, load_tokenizer
from data_prep.train_tokenizer import tokenizer_of
from scratchgpt.errors import UserError

ALPHABET = "abc xyz?!\n|<>"


@pytest.fixture(scope="module", params=["char", "bpe", "other"])
def formats(request, tmp_path_factory):
    """(our format, the same tokenizer in transformers), after a journey through a directory."""
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "char":
        tokenizer = char_tokenizer([ALPHABET])
    else:
        merges = learn_merges(count_words(["the cat and the dog: rain falls on abc xyz"] * 3))
        tokenizer = tokenizer_of(itertools.islice(merges, 40))
    if request.param == "other":
        json = tokenizer.json_bytes.replace(b'"add_prefix_space":false', b'"add_prefix_space":true')
        (directory / "tokenizer.json").write_bytes(json)
        (directory / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
        tokenizer = load_tokenizer(directory)
        assert tokenizer.kind == "other"
    add_chat_tokens(tokenizer).save(directory)
    return ChatFormat(load_tokenizer(directory)), AutoTokenizer.from_pretrained(directory)


def conversation(texts: list[str], system: str | None) -> list[Message]:
    turns = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    return ([] if system is None else [Message("system", system)]) + turns


@given(
    texts=st.lists(st.text("abc xyz?!\n", min_size=1, max_size=20).filter(str.strip), min_size=1, max_size=5),
    system=st.none() | st.just("abc"),
)
def test_transformers_writes_the_same_ids(formats, texts, system):
    ours, theirs = formats
    messages = conversation(texts, system)
    expected = theirs.apply_chat_template([m._asdict() for m in messages], add_generation_prompt=False)["input_ids"]
    assert ours.encode(messages)[0].tolist() == expected
    if messages[-1].role == "user":
        prompt = theirs.apply_chat_template([m._asdict() for m in messages], add_generation_prompt=True)["input_ids"]
        assert ours.prompt(messages) == prompt


def test_the_answers_alone_are_learned_with_their_end(formats):
    ours, _ = formats
    messages = conversation(["abc", "xyz", "bb", "yy"], "ca")
    ids, learned = ours.encode(messages)
    end = ours.tokenizer.end_of_text_id
    runs = np.split(ids, np.flatnonzero(np.diff(learned)) + 1)
    answers = [run.tolist() for run, is_answer in zip(runs, np.arange(len(runs)) % 2, strict=True) if is_answer]
    assert not learned[0]
    assert answers == [[*ours.tokenizer.encode("xyz"), end], [*ours.tokenizer.encode("yy"), end]]


def test_a_prompt_is_the_beginning_of_its_conversation(formats):
    ours, _ = formats
    messages = conversation(["abc", "xyz", "bb", "yy"], "ca")
    ids, learned = ours.encode(messages)
    last_answer = len(learned) - list(learned[::-1]).index(False)  # the number of tokens before it
    assert ours.prompt(messages[:-1]) == ids[:last_answer].tolist()


@pytest.mark.parametrize("text", ["|||", "<|endoftext|>", "<|assistant|>"])
def test_what_people_write_is_never_a_special_token(formats, text):
    ours, _ = formats
    if ours.tokenizer.kind == "char" and text != "|||":
        pytest.skip("not of this alphabet")
    plain, _ = ours.encode([Message("user", "a")])
    ids, _ = ours.encode([Message("user", f"a{text}")])
    special = set(ours.tokenizer.special_tokens.values())
    assert sum(int(i) in special for i in ids) == sum(int(i) in special for i in plain)


def test_the_tokens_are_added_once(formats):
    ours, _ = formats
    again = add_chat_tokens(ours.tokenizer)
    assert again.sha256 == ours.tokenizer.sha256
    assert again.size == ours.tokenizer.size


def test_old_ids_stay(formats):
    ours, _ = formats
    assert max(ours.tokenizer.encode("abc xyz")) < ours.tokenizer.size - (1 if ours.tokenizer.kind == "char" else 3)
    assert ours.tokenizer.decode(ours.tokenizer.encode("abc xyz")).strip() == "abc xyz"


@pytest.mark.parametrize(
    "roles", [[], ["assistant"], ["user", "user"], ["user", "system"], ["system"], ["user", "tool"]]
)
def test_turns_out_of_order_are_refused(roles):
    with pytest.raises(UserError, match="user and assistant in turn"):
        check_conversation([Message(role, "a") for role in roles])


def test_there_must_be_something_to_answer(formats):
    with pytest.raises(UserError, match="nothing to answer"):
        formats[0].prompt(conversation(["abc", "xyz"], None))


def test_a_model_without_instructions_is_refused():
    with pytest.raises(UserError, match="has not been tuned on instructions"):
        ChatFormat(char_tokenizer(["abc"]))
