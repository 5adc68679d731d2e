"""The pre-training objective: predict every next token of a stream of text.

An objective owns what is particular to a kind of training: the model to begin with, the batches, the loss sums, the
validation set and what is exported. The loop in ``jaxgpt.trainer`` is the same for all.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from configs.schema import Config, resolve_model
from data_prep.order import WindowOrder, read_batch, read_validation_batch, validation_windows
from data_prep.prepare import prepare
from data_prep.shards import open_tokens
from data_prep.tokenizers import load_tokenizer
from jaxgpt.model import GPT, cross_entropy_sums
from scratchgpt.errors import UserError

Batch = dict[str, Any]  # of arrays whose last two axes are sequences and tokens


class Pretraining:
    """Windows of ``train.sequence_length`` tokens, shuffled without replacement, every token a target."""

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
        self.order = WindowOrder(
            len(self.train_tokens), self.sequence_length, config.train.batch_size, config.train.seed
        )

    def describe(self) -> str:
        """One line about the data, with the part of it that validation uses."""
        used = min(self.config.eval.max_tokens or len(self.val_tokens), len(self.val_tokens))
        part = "all" if used == len(self.val_tokens) else f"the first {used:,} of the"
        return f"{len(self.train_tokens):,} training tokens, validation on {part} {len(self.val_tokens):,} tokens"

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on for its run to be continued."""
        return {"data": self.train_tokens.manifest_sha256, "sequence_length": self.sequence_length}

    def tokens_per_step(self) -> int:
        """Targets in one optimizer step."""
        return self.config.train.batch_size * self.sequence_length

    def batches(self, first_step: int) -> Iterator[Batch]:
        """The batches of steps ``first_step`` to the last, [micro batches, sequences, tokens], read ahead by Grain.

        Each process gets its share of every micro batch's sequences.
        """
        import grain

        micro = self.config.train.micro_batch_size or self.config.train.batch_size
        share = micro // jax.process_count()
        rows = slice(jax.process_index() * share, (jax.process_index() + 1) * share)

        def read(step: int) -> Batch:
            starts = self.order.starts(int(step)).reshape(-1, micro)[:, rows]
            inputs, targets = read_batch(self.train_tokens, starts.reshape(-1), self.sequence_length)
            shape = (*starts.shape, self.sequence_length)
            return {"inputs": inputs.reshape(shape), "targets": targets.reshape(shape)}

        steps = grain.MapDataset.range(first_step, self.config.train.steps).map(read)
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))

    def loss_sums(self, model: GPT, batch: Batch, dropout_key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """(sum of the losses in nats, number of targets) of one micro batch [sequences, tokens]."""
        logits_BxTxV, _ = model(batch["inputs"], dropout_key=dropout_key)
        return cross_entropy_sums(logits_BxTxV, batch["targets"], batch.get("weights"))

    def validation_batches(self, batch_size: int) -> Iterator[Batch]:
        """The validation split (or its first ``eval.max_tokens`` tokens), every target once, in fixed batches.

        Weights are 0 where the last window or the last batch is filled up.
        """
        limit = self.config.eval.max_tokens or len(self.val_tokens)
        starts, lengths = validation_windows(min(limit, len(self.val_tokens)), self.sequence_length)
        for i in range(0, len(starts), batch_size):
            batch = read_validation_batch(
                self.val_tokens, starts[i : i + batch_size], lengths[i : i + batch_size], self.sequence_length
            )
            inputs, targets, weights = (np.pad(a, ((0, batch_size - len(a)), (0, 0))) for a in batch)
            yield {"inputs": inputs, "targets": targets, "weights": weights}
