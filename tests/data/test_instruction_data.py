"""Instruction data: the answers alone weigh, examples stay whole and apart, equal instructions fall to one side."""

import json

import numpy as np
import pytest

from configs.schema import Config, DataConfig, TrainConfig, llama
from data_prep.inspect import inspect
from data_prep.instruction_data import InstructionData, falls_to_validation
from data_prep.tokenizers import char_tokenizer
from scratchgpt.errors import UserError

LENGTH = 48


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("instructions")
    char_tokenizer(["abcdefghijklmnopqrstuvwxyz ?."]).save(path / "tokenizer")
    rng = np.random.default_rng(0)
    words = lambda n: "".join(rng.choice(list("abcdefgh "), n)).strip() or "a"  # noqa: E731
    rows = [{"instruction": words(rng.integers(1, 12)), "output": words(rng.integers(1, 30))} for _ in range(200)]
    rows += [{"instruction": rows[i]["instruction"].upper().lower(), "output": "again"} for i in range(50)]
    rows += [{"instruction": "what?", "output": ""}, {"instruction": "digits", "output": "123"}]
    rows += [{"instruction": "a" * 100, "output": "b"}, {"instruction": "ask", "output": "long " * 30}]
    rng.shuffle(rows)
    (path / "rows.json").write_text(json.dumps(rows))
    return path


def config_of(place, **train) -> Config:
    return Config(
        model=llama(context_length=LENGTH),
        data=DataConfig("mine", str(place / "rows.json"), tokenizer=str(place / "tokenizer"), val_fraction=0.2),
        train=TrainConfig(objective="sft", batch_size=8, **train),
    )


@pytest.fixture(scope="module")
def opened(place):
    logged = []
    return InstructionData(config_of(place), logged.append), logged


def test_what_is_left_out_is_counted(opened):
    data, logged = opened
    (line,) = logged
    for part in ("1 without an answer", "1 with characters outside", "1 whose answer begins beyond", "1 of them cut"):
        assert part in line
    assert sum(len(e.lengths) for e in data.examples.values()) == 251


def texts_of(data, batch) -> list[tuple[str, str]]:
    """(read, learned) text of each example of a batch."""
    found = []
    for inputs, targets, segments, weights in zip(*(batch[k].reshape(-1, LENGTH) for k in batch), strict=True):
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            found.append((data.tokenizer.decode(inputs[here]), data.tokenizer.decode(targets[here][weights[here] > 0])))
            assert (inputs[here][1:] == targets[here][:-1]).all()
    return found


def test_the_answers_alone_weigh(opened):
    data, _ = opened
    seen = set()
    for step in range(40):
        for read, learned in texts_of(data, data.batch(step)):
            asked, _, answer = read.partition("|||")
            assert learned.removesuffix("<|endoftext|>") == answer
            assert learned.endswith("<|endoftext|>") or len(read) >= LENGTH
            seen.add(asked)
    assert seen == {m[0].content.strip() for m in data.conversations["train"]}


def test_every_validation_example_counts_once(opened):
    data, _ = opened
    for batch_size in (1, 3, 64):
        weights = sum(batch["weights"].sum() for batch in data.validation_batches(batch_size))
        assert weights == data.examples["val"].learned.sum()


def test_equal_instructions_fall_to_one_side(opened):
    data, _ = opened
    asked = {split: {m[0].content.strip() for m in data.conversations[split]} for split in ("train", "val")}
    assert not asked["train"] & asked["val"]
    assert 0.1 < len(data.conversations["val"]) / 251 < 0.3
    assert falls_to_validation("A  b\n", 0.5) == falls_to_validation("a b", 0.5)


def test_a_batch_is_a_function_of_the_step_alone(place, opened):
    data, _ = opened
    again = InstructionData(config_of(place, micro_batch_size=4), lambda _: None)
    for step in (0, 3, 30):
        whole, parts, share = data.batch(step), again.batch(step), again.batch(step, slice(1, 3))
        for name, array in whole.items():
            assert array.shape == (1, 8, LENGTH)
            np.testing.assert_array_equal(array.reshape(2, 4, LENGTH), parts[name])
            np.testing.assert_array_equal(parts[name][:, 1:3], share[name])


def test_an_epoch_shows_every_example_once(opened):
    data, _ = opened
    bins = len(data.bins["train"])
    numbers = np.concatenate([data.order.numbers(step) for step in range(-(-bins // 8))])[:bins]
    assert sorted(numbers) == list(range(bins))


def test_other_data_are_another_identity(place, opened):
    rows = json.loads((place / "rows.json").read_text())
    other = config_of(place)
    other.data.source = str(place / "other.json")
    (place / "other.json").write_text(json.dumps(rows[1:]))
    assert InstructionData(other, lambda _: None).identity() != opened[0].identity()


def test_what_is_learned_can_be_seen(place, opened):
    data, _ = opened
    lines = []
    inspect(config_of(place), document=0, show=lines.append)
    asked, answer = (m.content.strip() for m in data.conversations["train"][0])
    assert lines[-1] == f"{asked}|||>>>{answer}<|endoftext|><<<"
    lines.clear()
    inspect(config_of(place), step=2, sequence=1, show=lines.append)
    assert sum(line.startswith("-- example") for line in lines) == int(data.batch(1)["segments"][0, 1].max())


def test_no_rows_are_refused(place):
    config = config_of(place)
    (place / "none.json").write_text("[]")
    config.data.source = str(place / "none.json")
    with pytest.raises(UserError, match="has no rows"):
        InstructionData(config, lambda _: None)
    config.data.tokenizer = "char"
    with pytest.raises(UserError, match="must be gpt2 or a directory"):
        InstructionData(config, lambda _: None)
