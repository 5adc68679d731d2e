"""Preference pairs: every form of a row, what is left out and counted, and the batches."""

import json
from pathlib import Path

import numpy as np
import pytest

from configs.schema import Config, DataConfig, TrainConfig, gpt2
from data_prep.inspect import inspect
from data_prep.preference_data import PreferenceData
from data_prep.tokenizers import char_tokenizer
from scratchgpt.errors import UserError

ALPHABET = "abcdefghijklmnopqrstuvwxyz .,:?!0123456789\n" + "ABCDEFGHIJKLMNOPQRSTUVWXYZ#"


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def open_data(place: Path, rows: list[dict], lines: list[str] | None = None, **train) -> PreferenceData:
    char_tokenizer([ALPHABET]).save(place / "tokenizer")
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Config(
        model=gpt2(context_length=train.pop("sequence_length", 64)),
        data=DataConfig("p", str(place / "rows.jsonl"), tokenizer=str(place / "tokenizer"), val_fraction=0.5),
        train=TrainConfig(objective="dpo", **({"batch_size": 4} | train)),
    )
    return PreferenceData(config, (lines if lines is not None else []).append)


def numbered(n: int) -> list[dict]:
    return [{"prompt": f"say {i}", "chosen": f"{i}!", "rejected": f"no {i}"} for i in range(n)]


FORMS = {
    "instruction": {"instruction": "say", "input": "hi", "chosen": "hi", "rejected": "no"},
    "alpaca prompt": {
        "prompt": "Below is an instruction that .\n\n### Instruction:\nsay\n\n### Input:\nhi\n\n### Response:\n",
        "chosen": "hi",
        "rejected": "no",
    },
    "texts": {"prompt": "say\n\nhi", "chosen": " hi\n", "rejected": "no"},
    "messages": {"prompt": [user("say\n\nhi")], "chosen": [assistant("hi")], "rejected": [assistant("no")]},
    "a message": {"prompt": "say\n\nhi", "chosen": assistant("hi"), "rejected": assistant("no")},
    "implicit prompt": {
        "chosen": [user("say\n\nhi"), assistant("hi")],
        "rejected": [user("say\n\nhi"), assistant("no")],
    },
    "prompt repeated in the answers": {
        "prompt": "say\n\nhi",
        "chosen": [user("say\n\nhi"), assistant("hi")],
        "rejected": [user("say\n\nhi"), assistant("no")],
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": "say\n\nhi"}],
        "chosen": {"from": "gpt", "value": "hi"},
        "rejected": {"from": "gpt", "value": "no"},
    },
}


def texts(data: PreferenceData) -> list[tuple[str, str]]:
    """(prompt, answer) of every sequence of both splits, as text."""
    found = []
    for pairs in data.pairs.values():
        for number in range(len(pairs.lengths)):
            ids, learned = pairs.tokens(number)
            found.append((data.tokenizer.decode(ids[~learned]), data.tokenizer.decode(ids[learned])))
    return found


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_row_is_the_same_pair(tmp_path, form):
    # numbered rows fill both splits
    found = texts(open_data(tmp_path, [FORMS[form], *numbered(30)]))
    assert ("say\n\nhi|||", "hi<|endoftext|>") in found
    assert ("say\n\nhi|||", "no<|endoftext|>") in found


def test_earlier_turns_and_the_system_message_belong_to_the_prompt(tmp_path):
    turns = [user("one"), assistant("two"), user("three")]
    row = {"system": "be brief", "prompt": turns, "chosen": "four", "rejected": "five"}
    found = texts(open_data(tmp_path, [row, *numbered(30)]))
    assert ("be brief\n\none|||two<|endoftext|>three|||", "four<|endoftext|>") in found


def test_what_is_left_out_is_counted(tmp_path, lines):
    odd = [
        {"prompt": "q", "chosen": "same", "rejected": " same\n"},
        {"prompt": "", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": None},
        {"prompt": [], "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "\u00e9", "rejected": "b"},
        {"prompt": "q" * 64, "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a" * 64, "rejected": "a" * 63 + "b"},
        {"prompt": "cut", "chosen": "a" * 64, "rejected": "b"},
        {"chosen": [user("q"), assistant("a")], "rejected": [user("r"), assistant("b")]},
    ]
    data = open_data(tmp_path, [*odd, *numbered(30)], lines)
    assert sum(data.counts.values()) == 31
    assert lines == [
        "p: 31 pairs, 1 of them cut at train.sequence_length; left out: 1 with the same answer twice; left out: 4"
        " without a prompt or an answer; left out: 1 with characters outside the vocabulary; left out: 1 whose answers"
        " begin beyond train.sequence_length; left out: 1 whose answers are the same up to train.sequence_length; left"
        " out: 1 whose two conversations differ before the answer"
    ]
    cut = next(answer for prompt, answer in texts(data) if prompt == "cut|||" and answer.startswith("a"))
    assert cut == "a" * (64 + 1 - len("cut") - 1)


def test_the_longest_prompt_that_fits_leaves_one_token_of_an_answer(tmp_path):
    # 62 characters, the separator and one token of each answer are 64 targets after the first token
    row = {"prompt": "q" * 63, "chosen": "ax", "rejected": "by"}
    assert ("q" * 63 + "|||", "a") in texts(open_data(tmp_path, [row, *numbered(30)]))


MALFORMED = {
    "no chosen": ({"prompt": "q", "rejected": "b"}, "there is no column 'chosen' among 'prompt', 'rejected'"),
    "no rejected": ({"prompt": "q", "chosen": "b"}, "there is no column 'rejected'"),
    "no prompt": ({"chosen": "a", "rejected": "b"}, "there is no prompt"),
    "a number": ({"prompt": "q", "chosen": 3, "rejected": "b"}, "a text is expected, not 3"),
    "a number as prompt": ({"prompt": 3, "chosen": "a", "rejected": "b"}, "a text is expected, not 3"),
    "an odd role": (
        {"prompt": "q", "chosen": {"role": "critic", "content": "a"}, "rejected": "b"},
        "a message must have a role",
    ),
    "a prompt that is answered": (
        {"prompt": [user("q"), assistant("a")], "chosen": "a", "rejected": "b"},
        "must be messages of user and assistant in turn",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_row_is_named_in_one_sentence(tmp_path, case):
    row, message = MALFORMED[case]
    with pytest.raises(UserError, match=r"^\S*rows\.jsonl.*2") as caught:
        open_data(tmp_path, [*numbered(1), row])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_pairs_for_both_splits_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no pair of .*rows\.jsonl fell to the (train|val) split"):
        open_data(tmp_path, numbered(1))


def test_pairs_of_one_prompt_fall_to_one_split(tmp_path):
    rows = [
        {"prompt": f"Say {i}" if n else f"say  {i}", "chosen": f"{n}", "rejected": "x"}
        for i in range(30)
        for n in (0, 1)
    ]
    data = open_data(tmp_path, rows)
    asked = {split: set() for split in data.pairs}
    for split, pairs in data.pairs.items():
        for number in range(len(pairs.lengths)):
            ids, learned = pairs.tokens(number)
            asked[split].add(" ".join(data.tokenizer.decode(ids[~learned]).lower().split()))
    assert not asked["train"] & asked["val"]
    assert len(asked["train"] | asked["val"]) == 30


def test_a_batch_holds_both_answers_of_each_pair(tmp_path):
    data = open_data(tmp_path, numbered(40), batch_size=4, micro_batch_size=2)
    batch = data.batch(0)
    assert batch["inputs"].shape == (2, 2, 2, 16)  # "say 12|||no 12" fits into a quarter of 64
    for inputs, targets, weights in zip(
        *(batch[k].reshape(-1, 16) for k in ("inputs", "targets", "weights")), strict=True
    ):
        learned = data.tokenizer.decode(targets[weights == 1])
        said = data.tokenizer.decode(inputs).split("|||")[0].removeprefix("say ")
        assert learned in (f"{said}!<|endoftext|>", f"no {said}<|endoftext|>")
        np.testing.assert_array_equal(inputs[1:][weights[1:] == 1], targets[:-1][weights[1:] == 1])
    chosen = batch["targets"][:, :, 0][batch["weights"][:, :, 0] == 1]
    assert "no" not in data.tokenizer.decode(chosen)


def test_a_process_reads_its_rows_of_the_same_padded_batch(tmp_path):
    rows = [{"prompt": f"say {i}", "chosen": "a" * (i % 40 + 1), "rejected": "b"} for i in range(60)]
    data = open_data(tmp_path, rows)
    for step in range(5):
        whole, part = data.batch(step), data.batch(step, slice(1, 2))
        for name in whole:
            np.testing.assert_array_equal(whole[name][:, 1:2], part[name])


def test_both_answers_of_a_pair_can_be_seen(tmp_path):
    data, lines = open_data(tmp_path, numbered(40)), []
    inspect(data.config, document=0, show=lines.append)
    ids = data.pairs["train"].tokens(0)[0]
    said = data.tokenizer.decode(ids).split("|||")[0]
    number = said.removeprefix("say ")
    chosen, rejected = lines[-1].splitlines()
    assert chosen == f"chosen: {said}|||>>>{number}!<|endoftext|><<<"
    assert rejected == f"rejected: {said}|||>>>no {number}<|endoftext|><<<"
    inspect(data.config, step=1, show=lines.append)
    shown = [int(line.removeprefix("-- example ")) for line in lines if line.startswith("-- example")]
    assert shown == data.order.numbers(0).tolist()


def test_reference_values_follow_their_pairs(tmp_path):
    data = open_data(tmp_path, numbered(40))
    before = {split: list(data.batches_by_length(split, 7)) for split in data.pairs}
    data.reference = {s: np.arange(2 * n, dtype=np.float32).reshape(n, 2) for s, n in data.counts.items()}
    for split, batches in before.items():
        seen = []
        for (numbers, plain), (_, batch) in zip(batches, data.batches_by_length(split, 7), strict=True):
            assert "reference" not in plain
            np.testing.assert_array_equal(batch["reference"][: len(numbers), 0], 2 * numbers)
            assert not batch["weights"][len(numbers) :].any()
            seen += numbers.tolist()
        assert sorted(seen) == list(range(data.counts[split]))
    batch, numbers = data.batch(3), data.order.numbers(3)
    np.testing.assert_array_equal(batch["reference"].reshape(-1, 2)[:, 1], 2 * numbers + 1)


def test_real_preferences_are_read(shared, gpt2):
    config = Config(train=TrainConfig(objective="dpo", sequence_length=256), data=DataConfig("p", tokenizer="gpt2"))
    lines = []
    config.data.source = str(shared / "preferences" / "instruction_data_with_preference_1100.json")
    assert sum(PreferenceData(config, lines.append).counts.values()) == 1094
    assert lines[-1].endswith("left out: 6 with the same answer twice")
    config.data.source = str(shared / "preferences" / "dpo_en_demo_299.json")
    assert sum(PreferenceData(config, lines.append).counts.values()) > 100
