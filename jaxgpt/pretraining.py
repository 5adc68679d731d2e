"""The pre-training objective: predict every next token of a stream of text.

An objective owns what is particular to a kind of training: the model to begin with, the batches, the loss sums, the
validation set and what is exported. The loop in ``jaxgpt.trainer`` is the same for all.
"""

from collections.abc import Iterator
from typing import Any

import jax

from data_prep.token_data import Batch, TokenData
from jaxgpt.model import GPT, cross_entropy_sums


class Pretraining(TokenData):
    """Every token of the windows is a target."""

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on for its run to be continued."""
        return {
            "data": self.train_tokens.manifest_sha256,
            "sequence_length": self.sequence_length,
            "packing": self.config.train.packing,
        }

    def batches(self, first_step: int) -> Iterator[Batch]:
        """The batches of steps ``first_step`` to the last, read ahead by Grain.

        Each process gets its share of every micro batch's sequences.
        """
        import grain

        micro = self.config.train.micro_batch_size or self.config.train.batch_size
        share = micro // jax.process_count()
        rows = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
        steps = grain.MapDataset.range(first_step, self.config.train.steps).map(lambda s: self.batch(int(s), rows))
        return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))

    def loss_sums(self, model: GPT, batch: Batch, dropout_key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """(sum of the losses in nats, number of targets) of one micro batch [sequences, tokens]."""
        logits_BxTxV, _ = model(batch["inputs"], dropout_key=dropout_key, segments_BxT=batch.get("segments"))
        return cross_entropy_sums(logits_BxTxV, batch["targets"], batch.get("weights"))
