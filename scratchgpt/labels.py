"""The labels of a classifier: their names in config.json and in a workdir, and who may have none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.schema import ModelConfig
from scratchgpt.errors import UserError
from scratchgpt.files import read_json, write_json
from scratchgpt.workdir import LABELS

_ENDING = "ForSequenceClassification"


def to_hf_labels(labels: Sequence[str]) -> dict[str, Any]:
    """The keys of ``config.json`` that name ``labels``, in the order of the scores."""
    return {
        "num_labels": len(labels),
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }


def labels_of(hf: dict[str, Any], where: str) -> list[str]:
    """The names of a classifier's labels in a ``config.json``, in the order of the scores; [] for a language model.

    As in transformers, labels without names are LABEL_0, LABEL_1, ..., two of them where nothing says how many. Raises
    UserError for names that are not one for each score, and for a head that does more than pick one label.
    """
    names = hf.get("architectures")
    if not (isinstance(names, list) and names and isinstance(names[0], str) and names[0].endswith(_ENDING)):
        return []
    if (problem := hf.get("problem_type")) not in (None, "single_label_classification"):
        raise UserError(f"{where}: problem_type={problem!r}, and only a choice of one label is supported")
    named = hf.get("id2label")
    if named is None:
        count = hf.get("num_labels", 2)
        if type(count) is not int or not 0 < count < 2**20:
            raise UserError(f"{where}: num_labels={count!r} must be a positive int")
        return [f"LABEL_{i}" for i in range(count)]
    labels = [named.get(str(i)) for i in range(len(named))] if isinstance(named, dict) and named else [None]
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise UserError(f"{where}: id2label={named!r:.200} must give each of the numbers from 0 on a name of its own")
    if hf.get("num_labels", len(labels)) != len(labels):
        raise UserError(f"{where}: num_labels={hf['num_labels']!r}, but id2label names {len(labels)} labels")
    return labels


def ranked(labels: Sequence[str], probabilities: Sequence[float], most: int = 5) -> str:
    """Labels with their probabilities, the likeliest first and at most ``most``: "spam 0.9811, ham 0.0189"."""
    order = sorted(range(len(labels)), key=lambda i: -probabilities[i])[:most]
    return ", ".join(f"{labels[i]} {probabilities[i]:.4f}" for i in order)


def save_labels(workdir: Path, labels: Sequence[str]) -> None:
    """Keep the names of a run's labels in its ``workdir``."""
    write_json(workdir / LABELS, list(labels))


def saved_labels(workdir: Path, model: ModelConfig) -> list[str]:
    """What :func:`save_labels` kept for a classifier; empty for a language model. Raises UserError."""
    if not model.num_labels:
        return []
    labels = read_json(workdir / LABELS)
    if not isinstance(labels, list) or len(labels) != model.num_labels:
        raise UserError(f"{workdir / LABELS} must hold a list of {model.num_labels} names")
    return [str(label) for label in labels]


def check_writes_text(model: ModelConfig, where: object) -> None:
    """Raise UserError if ``model``, which was read from ``where``, is a classifier."""
    if model.num_labels:
        raise UserError(
            f"{where} holds a classifier of {model.num_labels} labels, which writes no text: ask it with"
            f" `python -m torchgpt.classify --checkpoint={where}`, or name a language model"
        )


def check_classifies(model: ModelConfig, where: object) -> None:
    """Raise UserError if ``model``, which was read from ``where``, is a language model."""
    if not model.num_labels:
        raise UserError(
            f"{where} holds a language model, which has no labels: train a classifier from it with `python -m"
            f" jaxgpt.train --config=configs/spam.py --init_from={where}`, or let it write with torchgpt.generate"
        )
