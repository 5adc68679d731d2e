"""A prepared text as both trainers read it: windows of tokens, batch by batch, and the validation split."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from configs.schema import Config, resolve_model
from data_prep.document_index import DocumentIndex
from data_prep.order import WindowOrder, read_batch, read_validation_batch, validation_windows
from data_prep.packing import PackedOrder, cut_documents, pack, read_packed
from data_prep.prepare import prepare
from data_prep.shards import open_tokens
from data_prep.tokenizers import load_tokenizer
from scratchgpt.errors import UserError

Batch = dict[str, Any]  # of arrays whose last two axes are sequences and tokens


class TokenData:
    """Sequences of ``train.sequence_length`` tokens, shuffled without replacement, every token a target.

    By ``train.packing`` they are contiguous windows of the text, or whole documents packed side by side. Prepares the
    data if they are not there yet. Raises UserError for data that cannot be trained on.
    """

    def __init__(self, config: Config, log: Callable[[str], None]):
        self.config = config
        self.directory = prepare(config.data, log=log)
        self.tokenizer = load_tokenizer(self.directory)
        self.model = resolve_model(config.model, self.tokenizer.size)
        self.sequence_length = config.train.sequence_length or config.model.context_length
        self.train_tokens = open_tokens(self.directory, "train")
        self.val_tokens = open_tokens(self.directory, "val")
        if len(self.val_tokens) < 2:
            raise UserError(
                f"the validation split in {self.directory} has {len(self.val_tokens)} tokens, at least 2 are needed:"
                f" prepare the data anew with a larger data.val_fraction than {config.data.val_fraction}"
            )
        batch_size, seed = config.train.batch_size, config.train.seed
        self.packed = config.train.packing == "best_fit"
        self.order: WindowOrder | PackedOrder
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

    def tokens_per_step(self) -> int:
        """Positions in one optimizer step; all but the few that packing leaves empty are targets."""
        return self.config.train.batch_size * self.sequence_length

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Inputs and targets of the 0-based ``step``, int32 [micro batches, sequences, tokens].

        Packed batches have ``segments`` and ``weights`` as well. ``rows`` picks sequences out of every micro batch: a
        process reads no more than its own share.
        """
        micro = self.config.train.micro_batch_size or self.config.train.batch_size
        chosen = self.order.starts(step).reshape(-1, micro)[:, rows]
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

    def encode_prompt(self) -> list[int]:
        """Ids of ``sample.prompt``. Raises UserError for one that the model cannot read."""
        prompt = self.config.sample.prompt
        try:
            ids = list(self.tokenizer.encode(prompt))
        except UserError as e:
            raise UserError(f"--config.sample.prompt={prompt!r}: {e}") from e
        if len(ids) > self.model.context_length:
            raise UserError(f"sample.prompt has {len(ids)} tokens, model.context_length is smaller: shorten it")
        return ids or [self.tokenizer.end_of_text_id]
