"""Texts with a label each, as classification fine-tuning reads them: packed side by side, each on its own.

    rows -> texts and labels -> each text once -> training, validation and test, by text
         -> bins of whole texts (data_prep.packing) -> batches, with the label as the target at each text's last token

Texts that differ in nothing but capitals and white space are one text, kept once. Which split a text falls to goes by a
hash of its letters alone, so that texts made from one template with other numbers fall to one side. A text longer than
a training sequence loses its end. Rows without a text, repeated texts, texts that occur with several labels and, for a
tokenizer that does not know every character, those it cannot encode are left out. All of these are counted.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from configs.schema import Config, ConfigError
from data_prep.example_rows import open_rows
from data_prep.instruction_data import base_tokenizer
from data_prep.order import ShuffledOrder
from data_prep.packing import Bins, pack
from data_prep.training_data import Batch, TrainingData
from scratchgpt.errors import UserError

SPLITS = ("train", "val", "test")


class LabelledText(NamedTuple):
    """One example."""

    text: str
    label: int
    ids: np.ndarray  # int32, at most train.sequence_length


def same_text(text: str) -> str:
    """What two texts share that count as one."""
    return " ".join(text.casefold().split())


def split_of(text: str, val_fraction: float, test_fraction: float) -> str:
    """Which of SPLITS a text falls to: by the hash of its letters, or of all of it where it has none."""
    letters = "".join(c for c in text.casefold() if c.isalpha()) or same_text(text)
    digest = hashlib.sha256(letters.encode("utf-8", "surrogatepass")).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if share < test_fraction else "val" if share < test_fraction + val_fraction else "train"


def padded(texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """A text a row, for inference: (ids int32 [texts, tokens], where each one's last token stands int32 [texts]).

    Zeros stand behind the shorter texts. A causal model's last token does not see them.
    """
    inputs = np.zeros((len(texts), max(map(len, texts))), np.int32)
    for row, ids in zip(inputs, texts, strict=True):
        row[: len(ids)] = ids
    return inputs, np.array([len(ids) - 1 for ids in texts], np.int32)


class LabelData(TrainingData):
    """Texts of ``data.text_column`` with the labels of ``classify.label_column``.

    Sets ``config.model.num_labels``. Raises UserError for data that cannot be trained on.

    Attributes:
      labels: their names, sorted; of two, the second is the positive one.
      texts: the examples of each of SPLITS.
    """

    def __init__(self, config: Config, log: Callable[[str], None]) -> None:
        tokenizer = base_tokenizer(config.data.tokenizer)
        name = config.data.source or config.data.dataset
        labelled = _read(config, log)
        counts = Counter(label for _, label in labelled)
        self.labels = sorted(counts, key=_in_order)
        if len(self.labels) < 2:
            found = f"the one label {self.labels[0]!r}" if self.labels else "no labelled text"
            raise UserError(f"{name} has {found}: a classifier needs texts of at least two labels")
        if alone := [label for label, count in counts.items() if count == 1]:
            raise UserError(
                f"{name} has a single text with the label {alone[0]!r}, from which nothing can be learned and measured:"
                " leave it out (if it is the name of a column, set classify.label_column and data.text_column)"
            )
        if config.model.num_labels not in (0, len(self.labels)):
            raise ConfigError(
                f"model.num_labels={config.model.num_labels} is not the {len(self.labels)} labels of {name}"
                f" ({', '.join(self.labels[:5])}{', ...' if len(self.labels) > 5 else ''})"
            )
        config.model.num_labels = len(self.labels)  # in the configuration, from which a workdir's model is read again
        super().__init__(config, tokenizer)
        self.texts = self._encode(labelled, log)
        for split in SPLITS:
            if not self.texts[split]:
                raise UserError(
                    f"no text of {name} fell to the {split} split: use more texts, or change"
                    f" data.val_fraction={config.data.val_fraction} or"
                    f" classify.test_fraction={config.classify.test_fraction}"
                )
        trained = {example.label for example in self.texts["train"]}
        if missing := [label for number, label in enumerate(self.labels) if number not in trained]:
            raise UserError(
                f"no text with the label {missing[0]!r} is there to train on: use more of them, or leave the label out"
            )
        self.bins = {split: self._packed(examples) for split, examples in self.texts.items()}
        self.order = ShuffledOrder(len(self.bins["train"]), config.train.batch_size, config.train.seed)

    def _encode(self, labelled: list[tuple[str, str]], log: Callable[[str], None]) -> dict[str, list[LabelledText]]:
        number = {label: i for i, label in enumerate(self.labels)}
        texts: dict[str, list[LabelledText]] = {split: [] for split in SPLITS}
        cut = unknown = 0
        for text, label in labelled:
            try:
                ids = np.asarray(self.tokenizer.encode(text), np.int32)
            except UserError:
                unknown += 1
                continue
            cut += len(ids) > self.sequence_length
            split = split_of(text, self.config.data.val_fraction, self.config.classify.test_fraction)
            texts[split].append(LabelledText(text, number[label], ids[: self.sequence_length]))
        for split, examples in texts.items():
            counts = Counter(example.label for example in examples)
            shares = ", ".join(f"{counts[i]:,} {label}" for i, label in enumerate(self.labels))
            log(f"{split}: {len(examples):,} texts ({shares})")
        if cut or unknown:
            log(f"{cut:,} texts cut at train.sequence_length; {unknown:,} with characters outside the vocabulary")
        return texts

    def describe(self) -> str:
        texts, bins = {split: f"{len(examples):,}" for split, examples in self.texts.items()}, len(self.bins["train"])
        return f"{texts['train']} training texts in {bins:,} packed sequences, validation on {texts['val']}"

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256(repr(self.labels).encode())
        for example in self.texts["train"]:
            digest.update(len(example.ids).to_bytes(8) + example.label.to_bytes(8) + example.ids.tobytes())
        trained = {"objective": "classify", "trained": self.config.classify.trained}
        return super().identity() | trained | {"data": digest.hexdigest()}

    def encode_prompt(self) -> list[int]:
        """Nothing: a classifier continues no text."""
        return []

    def _packed(self, examples: list[LabelledText]) -> Bins:
        lengths = np.array([len(example.ids) for example in examples], np.int64)
        return pack(np.arange(len(examples)), lengths, self.sequence_length)

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """``inputs``, ``targets``, ``segments`` and ``weights`` [micro batches, sequences, tokens]."""
        chosen = self.order.numbers(step).reshape(-1, self.micro_batch_size)[:, rows]
        batch = self._sequences("train", chosen.reshape(-1), chosen.size)
        return {name: array.reshape(*chosen.shape, self.sequence_length) for name, array in batch.items()}

    def validation_batches(self, batch_size: int) -> Iterator[Batch]:
        return self.split_batches("val", batch_size)

    def split_batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """Every text of a split once, in batches [batch_size, tokens]; what fills the last one weighs nothing."""
        for i in range(0, len(self.bins[split]), batch_size):
            chosen = np.arange(i, min(i + batch_size, len(self.bins[split])))
            yield self._sequences(split, chosen, batch_size)

    def _sequences(self, split: str, chosen: np.ndarray, batch_size: int) -> Batch:
        names = {"inputs": np.int32, "targets": np.int32, "segments": np.int32, "weights": np.float32}
        batch = {name: np.zeros((batch_size, self.sequence_length), dtype) for name, dtype in names.items()}
        for row, number in enumerate(chosen.tolist()):
            at = 0
            for segment, example in enumerate(self.bins[split].pieces(number)[0], 1):
                _, label, ids = self.texts[split][example]
                here, at = slice(at, at + len(ids)), at + len(ids)
                batch["inputs"][row, here] = ids
                batch["segments"][row, here] = segment
                batch["targets"][row, at - 1], batch["weights"][row, at - 1] = label, 1.0
        return batch


def _in_order(label: str) -> tuple[bool, int, str]:
    """Sorts 2 before 10."""
    number = label.isascii() and label.isdigit()
    return not number, int(label) if number else 0, label


def _read(config: Config, log: Callable[[str], None]) -> list[tuple[str, str]]:
    """(text, label) of every row, each text once."""
    data, columns = config.data, (config.classify.label_column, config.data.text_column)
    found: dict[str, tuple[str, set[str]]] = {}
    read = empty = 0
    for where, row in open_rows(data.dataset, data.source, columns):
        for column, key in zip(columns, ("classify.label_column", "data.text_column"), strict=True):
            if column not in row:
                raise UserError(f"{where} has no column {column!r} but {', '.join(map(repr, row))}: set --config.{key}")
        label, text = (row[column] for column in columns)
        if label is None or not str(label).strip():
            raise UserError(f"{where} has no label: {columns[0]} is empty")
        if type(label) not in (str, int, bool):
            raise UserError(f"{where}: a label is a name or a whole number, not {columns[0]}={label!r:.100}")
        if text is not None and not isinstance(text, str):
            raise UserError(f"{where}: a text is expected, not {columns[1]}={text!r:.100}")
        read += 1
        if not text or not text.strip():
            empty += 1
            continue
        found.setdefault(same_text(text), (text.strip(), set()))[1].add(str(label).strip())
    kept = [(text, labels.pop()) for text, labels in found.values() if len(labels) == 1]
    both = len(found) - len(kept)
    log(
        f"{data.dataset}: {read:,} rows with {len(kept):,} different texts; left out: {read - empty - len(found):,}"
        f" repeated, {both:,} with several labels, {empty:,} without a text"
    )
    return kept
