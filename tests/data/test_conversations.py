"""Rows of instruction data sets become conversations, whatever form they have; rows of no form are named."""

import json

import pytest

from data_prep.chat import Message
from data_prep.conversations import conversation_of
from data_prep.example_rows import open_rows
from scratchgpt.errors import UserError

ASKED, ANSWERED = Message("user", "What is rain?"), Message("assistant", "Water.")
ALPACA_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nWhat is rain?\n\n### Response:"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a"
    " response that appropriately completes the request.\n\n### Instruction:\nName it.\n\n### Input:\nH2O\n\n"
    "### Response:\n"
)


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "What is rain?", "input": "", "output": "Water."},
        {"instruction": " What is rain?\n", "input": None, "output": "Water.", "text": "ignored"},
        {"instruction": "What is rain?", "context": "", "response": "Water.", "category": "open_qa"},
        {"prompt": "What is rain?", "completion": "Water."},
        {"prompt": ALPACA_PROMPT, "answer": "Water.###eos_token###"},
        {
            "prompt": [{"role": "user", "content": "What is rain?"}],
            "completion": [{"role": "assistant", "content": "Water."}],
        },
        {"messages": [{"role": "user", "content": "What is rain?"}, {"role": "assistant", "content": "Water."}]},
        {"conversations": [{"from": "human", "value": "What is rain?"}, {"from": "gpt", "value": "Water."}]},
    ],
)
def test_every_form_is_the_same_conversation(row):
    assert conversation_of(row, "here") == [ASKED, ANSWERED]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Name it.", "input": "H2O", "output": "Water."},
        {"instruction": "Name it.", "context": "H2O", "response": "Water."},
        {"prompt": ALPACA_INPUT, "answer": "Water."},
    ],
)
def test_an_input_follows_its_instruction(row):
    assert conversation_of(row, "here") == [Message("user", "Name it.\n\nH2O"), ANSWERED]


def test_several_turns_and_a_system_message_are_kept():
    turns = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    assert conversation_of(row, "here") == [Message(*turn) for turn in turns]
    assert conversation_of({"system": "Be brief.", "instruction": "a", "output": "b"}, "here")[0] == Message(*turns[0])


@pytest.mark.parametrize("row", [{"instruction": "a", "output": " "}, {"instruction": "", "output": "b"}])
def test_what_has_nothing_to_learn_from_is_empty(row):
    assert conversation_of(row, "here") == []


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"text": "a"}, "none of the known forms"),
        ({"instruction": "a"}, "no answer"),
        ({"instruction": 3, "output": "b"}, "a text is expected"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "must have a role"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "must have a role"),
        ({"messages": ["a"]}, "must have a role"),
        ({"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}, "in turn"),
    ],
)
def test_a_row_of_no_form_is_named(row, sentence):
    with pytest.raises(UserError, match=f"^line 7: .*{sentence}"):
        conversation_of(row, "line 7")


def test_rows_come_from_files_of_any_kind(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"instruction": f'ask {i}\t"q"', "output": "é, yes"} for i in range(3)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("instruction,output\n" + "".join(f'"ask {i}\t""q""","é, yes"\n' for i in range(3)))
    for name in ("a.json", "a.jsonl", "a.parquet", "a.csv"):
        assert [row for _, row in open_rows("mine", str(tmp_path / name))] == rows
    assert len(list(open_rows("mine,too", f"{tmp_path / 'a.json'},{tmp_path / 'a.csv'}"))) == 6
    assert len(list(open_rows("mine", str(tmp_path)))) == 12
    assert [where for where, _ in open_rows("mine", str(tmp_path / "a.jsonl"))][2] == f"{tmp_path / 'a.jsonl'}:3"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", '{"instruction": "a"}', "must hold a list"),
        ("a.json", "[1]", "an object with named values"),
        ("a.json", "[{", "not valid JSON"),
        ("a.jsonl", "{}\nx\n", "a.jsonl:2 is not valid JSON"),
        ("a.tsv", "a\tb\n1\n", "a.tsv:2 has 1 columns"),
        ("a.txt", "text", "must end with one of .json"),
        ("a.parquet", "PAR", "not a readable parquet file"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=sentence):
        list(open_rows("mine", str(tmp_path / name)))


def test_an_unknown_data_set_is_refused():
    with pytest.raises(UserError, match="no fine-tuning data set named 'alpacas'"):
        open_rows("alpacas")
    with pytest.raises(UserError, match="there is no file"):
        open_rows("alpaca", "nowhere/alpaca.json")
