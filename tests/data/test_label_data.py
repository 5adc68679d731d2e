"""Labelled texts: read from any rows, each once, on one side of each split, and packed without a loss."""

import json

import numpy as np
import pyarrow as pa
import pytest

from configs.schema import ClassifyConfig, Config, ConfigError, DataConfig, TrainConfig, gpt2
from data_prep import hub_rows
from data_prep.inspect import inspect
from data_prep.label_data import SPLITS, padded, split_of
from data_prep.readers import read_rows
from data_prep.tokenizers import char_tokenizer
from data_prep.training_data import open_data
from scratchgpt.errors import UserError

WORDS = ["red", "green", "blue", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def texts_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 9))) + f" {chr(97 + i % 26)}{i}" for i in range(count)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def opened(tmp_path):
    """Opens rows as LabelData; returns it with what it logged."""
    tokenizer = char_tokenizer(["".join(chr(c) for c in range(32, 127))])
    tokenizer.save(tmp_path / "tokenizer")

    def open_rows(rows, batch_size=4, micro=0, columns=("label", "text"), **model):
        path = write(tmp_path / "rows.jsonl", rows) if isinstance(rows, list) else rows
        lines = []
        config = Config(
            model=gpt2(context_length=64, **model),
            data=DataConfig("mine", str(path), columns[1], str(tmp_path / "tokenizer"), val_fraction=0.2),
            train=TrainConfig(objective="classify", batch_size=batch_size, micro_batch_size=micro),
            classify=ClassifyConfig(label_column=columns[0], test_fraction=0.2),
        )
        return open_data(config, lines.append), lines

    return open_rows


def rows_of(count=200):
    return [{"text": text, "label": "spam" if i % 4 == 0 else "ham"} for i, text in enumerate(texts_of(count))]


def test_every_text_is_in_one_split_once_with_its_label(opened):
    rows = rows_of()
    data, _ = opened(rows)
    assert data.labels == ["ham", "spam"]
    found = {x.text: data.labels[x.label] for split in SPLITS for x in data.texts[split]}
    assert found == {row["text"]: row["label"] for row in rows}
    assert sum(len(data.texts[split]) for split in SPLITS) == len(rows)
    assert data.model.num_labels == data.config.model.num_labels == 2


def test_validation_holds_every_text_once_whatever_the_batch(opened):
    data, _ = opened(rows_of())
    for size in (1, 3, 50):
        seen = []
        for batch in data.split_batches("val", size):
            assert batch["inputs"].shape == (size, 64)
            for row, column in zip(*np.nonzero(batch["weights"]), strict=True):
                segment = batch["segments"][row]
                ids = batch["inputs"][row][segment == segment[column]]
                assert column == np.flatnonzero(segment == segment[column])[-1]  # the label stands at the last token
                seen.append((data.tokenizer.decode(ids), int(batch["targets"][row, column])))
        assert sorted(seen) == sorted((x.text, x.label) for x in data.texts["val"])


def test_a_batch_is_a_function_of_the_step_alone(opened):
    data, _ = opened(rows_of(), batch_size=4, micro=2)
    again, _ = opened(rows_of(), batch_size=4, micro=2)
    for step in (0, 7):
        for name, array in data.batch(step).items():
            assert array.shape == (2, 2, 64)
            np.testing.assert_array_equal(array, again.batch(step)[name])
            np.testing.assert_array_equal(array[:, 1:], again.batch(step, slice(1, 2))[name])
    assert (data.batch(0)["inputs"] != data.batch(1)["inputs"]).any()
    assert data.identity() == again.identity()
    changed, _ = opened([{**row, "label": "spam"} if i < 9 else row for i, row in enumerate(rows_of())])
    assert data.identity() != changed.identity()


def test_texts_of_every_split_can_be_seen_with_their_labels(opened):
    data, lines = opened(rows_of(), batch_size=4, micro=4)
    for split in SPLITS:
        inspect(data.config, split=split, document=2, show=lines.append)
        text, label, _ = data.texts[split][2]
        assert lines[-1] == f"[{data.labels[label]}] {text}"
    lines.clear()
    inspect(data.config, step=1, sequence=3, show=lines.append)
    assert sum(line.startswith("-- example") for line in lines) == data.batch(0)["segments"][0, 3].max()
    with pytest.raises(UserError, match="no example 9999 in test"):
        inspect(data.config, split="test", document=9999)


def test_repeated_contradicted_and_empty_texts_are_left_out_and_counted(opened):
    rows = rows_of()
    kept = {row["text"] for row in rows}
    rows += [{"text": "  " + rows[0]["text"].upper(), "label": rows[0]["label"]}]
    rows += [{"text": "both", "label": "ham"}, {"text": "Both", "label": "spam"}, {"text": " ", "label": "ham"}]
    rows += [{"text": "caf\u00e9", "label": "ham"}, {"text": "x" * 70, "label": "ham"}]
    data, lines = opened(rows)
    assert {x.text for split in SPLITS for x in data.texts[split]} == kept | {"x" * 70}
    assert (
        "206 rows with 202 different texts; left out: 2 repeated, 1 with several labels, 1 without a text" in lines[0]
    )
    assert "1 texts cut at train.sequence_length; 1 with characters outside the vocabulary" in lines[-1]
    assert max(len(x.ids) for split in SPLITS for x in data.texts[split]) == 64


def test_texts_of_one_template_fall_to_one_side():
    sides = {split_of(f"You won {n} pounds! Call {n * 7}", 0.3, 0.3) for n in range(50)}
    assert len(sides) == 1
    numbers = {split_of(str(n), 0.3, 0.3) for n in range(50)}  # no letters: by the whole text
    assert numbers == set(SPLITS)
    shares = [split_of(text, 0.1, 0.3) for text in texts_of(2000, seed=1)]
    assert abs(shares.count("test") / 2000 - 0.3) < 0.05
    assert abs(shares.count("val") / 2000 - 0.1) < 0.05


def test_labels_may_be_numbers_and_are_sorted_as_such(opened):
    rows = [{"text": text, "label": (2, 10, 1)[i % 3]} for i, text in enumerate(texts_of(120))]
    assert opened(rows)[0].labels == ["1", "2", "10"]


def test_padded_ids_keep_the_last_position():
    inputs, last = padded([np.array([4, 5, 6]), np.array([7])])
    assert inputs.tolist() == [[4, 5, 6], [7, 0, 0]]
    assert last.tolist() == [2, 0]


BAD = {
    "one label": ([{"text": t, "label": "ham"} for t in texts_of(20)], "the one label 'ham'"),
    "no rows": ([], "rows.jsonl has no rows"),
    "no text": ([{"text": "", "label": "ham"}], "no labelled text"),
    "no label": ([*rows_of(), {"text": "x", "label": None}], "rows.jsonl:201 has no label: label is empty"),
    "label of blanks": ([*rows_of(), {"text": "x", "label": " "}], "has no label"),
    "odd label": ([*rows_of(), {"text": "x", "label": 0.5}], "a label is a name or a whole number, not label=0.5"),
    "odd text": ([*rows_of(), {"text": 7, "label": "ham"}], "a text is expected, not text=7"),
    "no column": (
        [{"body": "x", "label": "ham"}],
        "no column 'text' but 'body', 'label': set --config.data.text_column",
    ),
    "no label column": ([{"text": "x", "kind": "ham"}], "set --config.classify.label_column"),
    "a label of one text": ([*rows_of(), {"text": "x", "label": "eggs"}], "a single text with the label 'eggs'"),
    "no split": ([{"text": f"same {i}", "label": i % 2} for i in range(9)], "no text of"),
}


@pytest.mark.parametrize("case", BAD)
def test_rows_that_cannot_be_trained_on_are_one_sentence(opened, case):
    rows, message = BAD[case]
    with pytest.raises(UserError) as caught:
        opened(rows)
    assert message in str(caught.value)


def test_another_number_of_labels_is_refused(opened):
    with pytest.raises(ConfigError, match=r"num_labels=3 is not the 2 labels of .*rows.jsonl \(ham, spam\)"):
        opened(rows_of(), num_labels=3)


def test_a_file_without_column_names_has_the_configured_ones(opened, tmp_path):
    lines = [f'{row["label"]}\t{row["text"]} "quoted' for row in rows_of()]
    (tmp_path / "bare.tsv").write_text("\n".join(lines) + "\n")
    data, _ = opened(tmp_path / "bare.tsv", columns=("kind", "sms"))
    assert sum(len(data.texts[split]) for split in SPLITS) == 200
    assert data.labels == ["ham", "spam"]
    (tmp_path / "named.csv").write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows_of()))
    named, _ = opened(tmp_path / "named.csv")
    assert {x.text for x in named.texts["train"]} <= {row["text"] for row in rows_of()}
    assert dict(read_rows(tmp_path / "bare.tsv"))[f"{tmp_path / 'bare.tsv'}:2"].keys() == set(lines[0].split("\t"))


def test_labels_of_the_hub_come_as_names(tmp_path):
    """A data set with a column of labels, read by ``datasets`` as from the hub."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"sms": datasets.Value("string"), "label": datasets.ClassLabel(names=["ham", "spam"])})
    rows = datasets.Dataset.from_dict({"sms": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "train.parquet")
    assert b"ClassLabel" in pa.parquet.read_schema(tmp_path / "data" / "train.parquet").metadata[b"huggingface"]
    record = {"id": str(tmp_path / "data"), "configuration": "", "revision": None}
    found = [row["label"] for _, _, row in hub_rows.rows(record, 1, lambda _: None)]
    assert found == ["spam", "ham", None]


def test_the_spam_collection_as_it_is_distributed(shared, opened):
    data, lines = opened(shared / "sms_spam" / "sms.tsv", columns=("label", "sms"))
    assert data.labels == ["ham", "spam"]
    assert "5,574 rows with 5,159 different texts; left out: 415 repeated" in lines[0]
