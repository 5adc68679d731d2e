"""Classification from the first command to the last: train on a model made here, measure once, export, classify."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from configs.schema import qwen3, resolve_model
from data_prep.label_data import split_of
from data_prep.tokenizers import char_tokenizer
from jaxgpt.classification import f1_scores
from scratchgpt.hf_directory import open_hf_directory, write_hf_directory
from scratchgpt.hf_layout import parameter_shapes

ROOT = Path(__file__).resolve().parents[2]
RUN = [
    f"--config={ROOT / 'configs' / 'spam.py'}",
    "--init_from=base",
    "--config.data.source=rows.jsonl",
    "--config.data.text_column=text",
    "--config.train.steps=40",
    "--config.train.sequence_length=32",
    "--config.train.batch_size=8",
    "--config.eval.every=20",
    "--config.checkpoint.every=20",
    "--config.log.every=10",
    "--config.sample.num_samples=3",
]


def command(module: str, *arguments: str, cwd: Path, **options) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, **options
    )


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_one_sentence(done: subprocess.CompletedProcess, message: str) -> None:
    assert done.returncode == 1, done.stdout
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a base model of random weights, labelled texts and one finished run in ``all``."""
    path = tmp_path_factory.mktemp("place")
    tokenizer = char_tokenizer(["abcdefghijklmnopqrstuvwxyz "])
    model = resolve_model(
        qwen3(n_layer=2, n_head=2, n_embd=32, context_length=48, tie_embeddings=False), tokenizer.size
    )
    rng = np.random.default_rng(0)
    weights = {n: (1 if "norm" in n else 0) + 0.1 * rng.standard_normal(s) for n, s in parameter_shapes(model).items()}
    write_hf_directory(path / "base", model, weights.__getitem__, tokenizer, "card")
    words = ["".join(rng.choice(list("abcdefgh"), 4)) for _ in range(600)]
    examples = [
        {"text": f"{w} free" if i % 3 == 0 else f"{w} home", "label": "spam" if i % 3 == 0 else "ham"}
        for i, w in enumerate(words)
    ]
    (path / "rows.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    done = command("jaxgpt.train", *RUN, "--workdir=all", cwd=path)
    assert done.returncode == 0, done.stderr
    assert "test loss" in done.stdout
    return path


def test_the_task_is_learned_and_measured_on_the_test_split(place):
    metrics = rows(place / "all")
    tested = [row for row in metrics if "test_loss" in row]
    assert len(tested) == 1
    assert tested[0]["test_accuracy"] > 0.97
    assert tested[0]["test_f1"] > 0.95
    assert tested[0].keys() >= {"step", "test_loss", "test_macro_f1"}
    assert all({"val_loss", "val_accuracy", "val_f1", "val_macro_f1"} <= r.keys() for r in metrics if "val_loss" in r)
    assert all({"train_loss", "train_accuracy", "lr"} <= row.keys() for row in metrics if "train_loss" in row)
    card = (place / "all" / "export" / "README.md").read_text()
    assert f"| test accuracy | {tested[0]['test_accuracy']:.4f} |" in card
    assert "pipeline_tag: text-classification" in card
    assert "`Qwen3ForSequenceClassification`" in card
    assert "| labels | ham, spam |" in card


def test_the_samples_are_test_texts_with_their_labels(place):
    samples = (place / "all" / "samples.txt").read_text().split("\n\n---\n\n")
    assert len(samples) == 3
    for sample in samples:
        told, text = sample.strip().split("\n")
        true = "spam" if text.endswith("free") else "ham"
        assert told.startswith(f"[{true}] predicted: {true} 0.")
        assert split_of(text, 0.1, 0.2) == "test"


def test_a_finished_run_is_not_measured_again(place):
    before = (place / "all" / "metrics.jsonl").read_text()
    again = command("jaxgpt.train", *RUN, "--workdir=all", cwd=place)
    assert again.returncode == 0, again.stderr
    assert (place / "all" / "metrics.jsonl").read_text() == before


def test_the_validation_figures_are_those_of_scikit_learn(place):
    """Recomputed from the exported model, over texts that the twin classifies."""
    texts = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    tested = {r["text"]: r["label"] for r in texts if split_of(r["text"], 0.1, 0.2) == "test"}
    (place / "test.txt").write_text("\n".join(tested) + "\n")
    done = command("torchgpt.classify", "--checkpoint=all", "--input=test.txt", "--output=out.jsonl", cwd=place)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()]
    assert [r["text"] for r in found] == list(tested)
    true, predicted = list(tested.values()), [r["label"] for r in found]
    figures = next(row for row in rows(place / "all") if "test_loss" in row)
    loss = -np.mean([np.log(r["probabilities"][label]) for r, label in zip(found, true, strict=True)])
    assert figures["test_loss"] == pytest.approx(loss, rel=1e-4)
    assert figures["test_accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(true, predicted, strict=True)]))
    assert figures["test_f1"] == pytest.approx(f1_score(true, predicted, pos_label="spam"))
    assert figures["test_macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro"))


def test_f1_is_scikit_learns_for_any_counts():
    rng = np.random.default_rng(0)
    for n in (2, 3, 5):
        true, predicted = rng.integers(0, n, 60), rng.integers(0, n, 60)
        confusion = np.zeros((n, n))
        np.add.at(confusion, (true, predicted), 1)
        np.testing.assert_allclose(f1_scores(confusion), f1_score(true, predicted, average=None))
        np.testing.assert_allclose(f1_scores(confusion / 7), f1_scores(confusion))
    assert np.isnan(f1_scores(np.diag([3.0, 0.0]))).tolist() == [False, True]


def test_training_the_head_alone_changes_nothing_else(place):
    frozen = ["--config.classify.trained=head", "--config.optim.weight_decay=0.1"]
    done = command("jaxgpt.train", *RUN, *frozen, "--workdir=head", cwd=place)
    assert done.returncode == 0, done.stderr
    before = dict(open_hf_directory(place / "base").parameters())
    after = dict(open_hf_directory(place / "head" / "export").parameters())
    assert set(after) - set(before) == {"score.weight"}
    assert set(before) - set(after) == {"head.weight"}
    for name in after.keys() - {"score.weight"}:
        assert after[name].tobytes() == before[name].tobytes(), name
    moved = dict(open_hf_directory(place / "all" / "export").parameters())
    assert all((moved[name] != before[name]).any() for name in before if name in moved)
    losses = [row["train_loss"] for row in rows(place / "head") if "train_loss" in row]
    assert losses[-1] < losses[0]
    resumed = command("jaxgpt.train", *RUN, "--workdir=head", cwd=place)  # with everything trained: another run
    assert_one_sentence(resumed, "trained='head'")


def test_a_step_from_the_checkpoints_is_exported_with_its_labels(place):
    done = command("jaxgpt.export", "--workdir=all", "--out=latest", "--step=latest", cwd=place)
    assert done.returncode == 0, done.stderr
    assert open_hf_directory(place / "latest").labels == ["ham", "spam"]


def test_one_text_and_typed_texts(place):
    done = command("torchgpt.classify", "--checkpoint=all/export", "--text=abcd free", cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("spam 0.9")
    assert done.stdout.endswith("\tabcd free\n")
    typed = "bcda home\n\nB!\nabcd free\nexit\nnever\n"
    done = command("torchgpt.classify", "--checkpoint=all", "--output=typed.jsonl", cwd=place, input=typed)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ham", "spam"]
    assert done.stderr.startswith("error: ")  # a character that the model does not know
    assert len((place / "typed.jsonl").read_text().splitlines()) == 2
    long = command("torchgpt.classify", "--checkpoint=all", "--text=" + "abcd " * 30, cwd=place)
    assert "1 texts cut to 48 tokens" in long.stderr


def test_a_classifier_may_be_trained_on(place):
    more = ["--config.train.steps=2", "--config.optim.warmup_steps=0", "--workdir=more"]
    done = command("jaxgpt.train", *RUN, *more, "--init_from=all/export", "--config.log.every=1", cwd=place)
    assert done.returncode == 0, done.stderr
    assert rows(place / "more")[0]["train_loss"] < 0.5 * rows(place / "all")[0]["train_loss"]


BAD = {
    "other labels": (
        "jaxgpt.train",
        [*RUN, "--init_from=all/export", "--config.data.source=other.jsonl", "--workdir=bad"],
        "all/export tells apart ham, spam, the data eggs, ham",
    ),
    "more labels": (
        "jaxgpt.train",
        [*RUN, "--init_from=all/export", "--config.data.source=three.jsonl", "--workdir=bad"],
        "model.num_labels=2 is not the 3 labels of three.jsonl",
    ),
    "a language model of it": (
        "jaxgpt.train",
        [*RUN, "--init_from=all/export", "--config.train.objective=pretrain", "--workdir=bad"],
        "holds a classifier of 2 labels, which writes no text",
    ),
    "the twin's trainer": ("torchgpt.train", [*RUN, "--workdir=bad"], "use `python -m jaxgpt.train`"),
    "jax writes": ("jaxgpt.generate", ["--checkpoint=all", "--prompt=a"], "holds a classifier of 2 labels"),
    "torch writes": ("torchgpt.generate", ["--checkpoint=all", "--prompt=a"], "holds a classifier of 2 labels"),
    "a language model classifies": ("torchgpt.classify", ["--checkpoint=base", "--text=a"], "holds a language model"),
    "empty text": ("torchgpt.classify", ["--checkpoint=all", "--text= "], "the text is empty"),
    "text and file": ("torchgpt.classify", ["--checkpoint=all", "--text=a", "--input=b"], "not both"),
    "no file": ("torchgpt.classify", ["--checkpoint=all", "--input=none.txt"], "there is no file none.txt"),
    "no column": (
        "torchgpt.classify",
        ["--checkpoint=all", "--input=rows.jsonl", "--text_column=body"],
        "rows.jsonl:1 has no column 'body' but 'text', 'label'",
    ),
    "other file": ("torchgpt.classify", ["--checkpoint=all", "--input=all/loss.png"], "must end with .txt"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_one_sentence(place, case):
    texts = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    other = [{**row, "label": row["label"].replace("spam", "eggs")} for row in texts]
    (place / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    (place / "three.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts[:300] + other[300:]))
    module, arguments, message = BAD[case]
    assert_one_sentence(command(module, *arguments, cwd=place), message)
    shutil.rmtree(place / "bad", ignore_errors=True)
