"""A prepared text as both trainers read it: windows of tokens, batch by batch, and the validation split."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from configs.schema import Config
from data_prep.document_index import DocumentIndex
from data_prep.order import WindowOrder, read_batch, read_validation_batch, validation_windows
from data_prep.packing import PackedOrder, cut_documents, pack, read_packed
from data_prep.prepare import prepare
from data_prep.shards import open_tokens
from data_prep.tokenizers import load_tokenizer
from data_prep.training_data import Batch, TrainingData
from scratchgpt.errors import UserError


class TokenData(TrainingData):
    """Sequences of ``train.sequence_length`` tokens, shuffled without replacement, every token a target.

    By ``train.packing`` they are contiguous windows of the text, or whole documents packed side by side. Prepares the
    data if they are not there yet. Raises UserError for data that cannot be trained on.
    """

    def __init__(self, config: Config, log: Callable[[str], None]):
        self.directory = prepare(config.data, log=log)
        super().__init__(config, load_tokenizer(self.directory))
        self.train_tokens = open_tokens(self.directory, "train")
        self.val_tokens = open_tokens(self.directory, "val")
        if len(self.val_tokens) < 2:
            raise UserError(
                f"the validation split in {self.directory} has {len(self.val_tokens)} tokens, at least 2 are needed:"
                f" prepare the data anew with a larger data.val_fraction than {config.data.val_fraction}"
            )
        batch_size, seed = config.train.batch_size, config.train.seed
        self.packed = config.train.packing == "best_fit"
        if self.packed:
            starts = DocumentIndex(self.directory, "train").starts()
            self.order = PackedOrder(starts, len(self.train_tokens), self.sequence_length, batch_size, seed)
        else:
            self.order = WindowOrder(len(self.train_tokens), self.sequence_length, batch_size, seed)

    def describe(self) -> str:
        """One line about the data, with the part of it that validation uses."""
        used = min(self.config.eval.max_tokens or len(self.val_tokens), len(self.val_tokens))
        part = "all" if used == len(self.val_tokens) else f"the first {used:,} of the"
        packed = f" in {len(self.order.bins):,} packed sequences" if self.packed else ""
        return (
            f"{len(self.train_tokens):,} training tokens{packed}, validation on {part} {len(self.val_tokens):,} tokens"
        )

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"data": self.train_tokens.manifest_sha256}

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Inputs and targets of the 0-based ``step``, int32 [micro batches, sequences, tokens].

        Packed batches have ``segments`` and ``weights`` as well.
        """
        chosen = self.order.starts(step).reshape(-1, self.micro_batch_size)[:, rows]
        shape = (*chosen.shape, self.sequence_length)
        if self.packed:
            batch = read_packed(self.train_tokens, self.order.bins, chosen.reshape(-1), self.sequence_length)
        else:
            inputs, targets = read_batch(self.train_tokens, chosen.reshape(-1), self.sequence_length)
            batch = {"inputs": inputs, "targets": targets}
        return {name: array.reshape(shape) for name, array in batch.items()}

    def validation_batches(self, batch_size: int) -> Iterator[Batch]:
        """The validation split (or its first ``eval.max_tokens`` tokens), every target once, in fixed batches.

        Packed as in training. Weights are 0 where the last window or the last batch is filled up.
        """
        n_tokens = min(self.config.eval.max_tokens or len(self.val_tokens), len(self.val_tokens))
        length = self.sequence_length
        if self.packed:
            documents = DocumentIndex(self.directory, "val").starts()
            bins = pack(*cut_documents(documents, n_tokens, length), length)
            for i in range(0, len(bins), batch_size):
                chosen = np.arange(i, min(i + batch_size, len(bins)))
                yield read_packed(self.val_tokens, bins, chosen, length, batch_size)
            return
        starts, lengths = validation_windows(n_tokens, length)
        for i in range(0, len(starts), batch_size):
            part = slice(i, i + batch_size)
            batch = read_validation_batch(self.val_tokens, starts[part], lengths[part], length, batch_size)
            yield dict(zip(("inputs", "targets", "weights"), batch, strict=True))
