"""A prepared text as both trainers read it: windows of tokens, batch by batch, and the validation split."""

from collections.abc import Callable, Iterator
from typing import Any

from configs.schema import Config, resolve_model
from data_prep.order import WindowOrder, read_batch, read_validation_batch, validation_windows
from data_prep.prepare import prepare
from data_prep.shards import open_tokens
from data_prep.tokenizers import load_tokenizer
from scratchgpt.errors import UserError

Batch = dict[str, Any]  # of arrays whose last two axes are sequences and tokens


class TokenData:
    """Windows of ``train.sequence_length`` tokens, shuffled without replacement, every token a target.

    Prepares the data if they are not there yet. Raises UserError for data that cannot be trained on.
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
        self.order = WindowOrder(
            len(self.train_tokens), self.sequence_length, config.train.batch_size, config.train.seed
        )

    def describe(self) -> str:
        """One line about the data, with the part of it that validation uses."""
        used = min(self.config.eval.max_tokens or len(self.val_tokens), len(self.val_tokens))
        part = "all" if used == len(self.val_tokens) else f"the first {used:,} of the"
        return f"{len(self.train_tokens):,} training tokens, validation on {part} {len(self.val_tokens):,} tokens"

    def tokens_per_step(self) -> int:
        """Targets in one optimizer step."""
        return self.config.train.batch_size * self.sequence_length

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Inputs and targets of the 0-based ``step``, int32 [micro batches, sequences, tokens].

        ``rows`` picks sequences out of every micro batch: a process reads no more than its own share.
        """
        micro = self.config.train.micro_batch_size or self.config.train.batch_size
        starts = self.order.starts(step).reshape(-1, micro)[:, rows]
        inputs, targets = read_batch(self.train_tokens, starts.reshape(-1), self.sequence_length)
        shape = (*starts.shape, self.sequence_length)
        return {"inputs": inputs.reshape(shape), "targets": targets.reshape(shape)}

    def validation_batches(self, batch_size: int) -> Iterator[Batch]:
        """The validation split (or its first ``eval.max_tokens`` tokens), every target once, in fixed batches.

        Weights are 0 where the last window or the last batch is filled up.
        """
        limit = self.config.eval.max_tokens or len(self.val_tokens)
        starts, lengths = validation_windows(min(limit, len(self.val_tokens)), self.sequence_length)
        for i in range(0, len(starts), batch_size):
            inputs, targets, weights = read_validation_batch(
                self.val_tokens,
                starts[i : i + batch_size],
                lengths[i : i + batch_size],
                self.sequence_length,
                batch_size,
            )
            yield {"inputs": inputs, "targets": targets, "weights": weights}

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
