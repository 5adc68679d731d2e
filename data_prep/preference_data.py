"""Pairs of answers to one prompt, of which people prefer the first: what preference tuning learns from.

    rows -> pairs -> tokens with a mark on the answers -> training and validation, by instruction -> batches of pairs

Known forms of a row, each with the columns ``chosen`` and ``rejected`` (a text, a message or a list of messages, of
which the last is the answer):

    instruction and perhaps input
    prompt: a text, or a list of messages
    messages: [{role, content}, ...], or conversations: [{from, value}, ...] as ShareGPT writes them
    nothing else: chosen and rejected are whole conversations, alike up to their last message (TRL's implicit prompt)

An optional ``system`` column is the system message. Both answers stand behind the same prompt tokens. An answer that
passes the end of a training sequence loses its end, as in instruction tuning. A pair is left out if its prompt alone
fills a sequence, if its answers are the same (also if only cutting makes them so), if it has no prompt or an empty
answer, and, for a tokenizer that does not know every character, if it cannot be encoded. All of these are counted.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from configs.schema import Config
from data_prep.chat import Message
from data_prep.conversations import answer_of, conversation_of, instruction_of, prompt_of
from data_prep.example_rows import open_rows
from data_prep.instruction_data import ChatData, Examples, falls_to_validation
from data_prep.order import ShuffledOrder
from data_prep.training_data import Batch
from scratchgpt.errors import UserError

ANSWERS = ("chosen", "rejected")  # in the order of every axis of 2


class UnusablePair(Exception):
    """Why a row that is well formed has nothing to teach, as it is counted."""


def pair_of(row: dict[str, Any], where: str) -> tuple[list[Message], list[Message]]:
    """The conversations (with the chosen answer, with the rejected one) of a row, alike up to their last message.

    Raises UserError that begins with ``where`` for a row of none of the known forms, UnusablePair for an empty one.
    """
    for answer in ANSWERS:
        if answer not in row:
            raise UserError(
                f"{where}: there is no column {answer!r} among {', '.join(map(repr, row))}: a preference is a prompt"
                " with the columns 'chosen' and 'rejected'"
            )
    before = _prompt(row, where)
    pair = []
    for answer in ANSWERS:
        messages = [*before, Message("assistant", answer_of(row[answer], where))]
        chat = {"messages": [m._asdict() for m in messages], "system": row.get("system")}
        pair.append(conversation_of(chat, where))
    if not all(pair):
        raise UnusablePair("without a prompt or an answer")
    return pair[0], pair[1]


def _prompt(row: dict[str, Any], where: str) -> list[Message]:
    if "instruction" in row:
        return [Message("user", instruction_of(row, where))]
    for column in ("prompt", "messages", "conversations"):
        if row.get(column) is not None:
            return prompt_of(row[column], where)
    chosen, rejected = (row[answer] if isinstance(row[answer], list) else [] for answer in ANSWERS)
    if len(chosen) < 2 or len(rejected) < 2:
        raise UserError(
            f"{where}: there is no prompt: none of the columns instruction, prompt, messages and conversations, and"
            " 'chosen' and 'rejected' are not lists of messages that begin with it"
        )
    before = prompt_of(chosen[:-1], where)
    if before != prompt_of(rejected[:-1], where):
        raise UnusablePair("whose two conversations differ before the answer")
    return before


class PreferenceData(ChatData):
    """Pairs of ``data.dataset``; an example is a pair, and ``train.batch_size`` counts pairs.

    Attributes:
      pairs: the sequences of a split: chosen, rejected, chosen, rejected, ...; what is learned are the answers.
      counts: pairs of a split.
      reference: log-probabilities of the answers [pairs, 2] of a split by the model that training stays close to; set
        by the objective before training begins, and a part of every batch from then on.
    """

    def __init__(self, config: Config, log: Callable[[str], None]) -> None:
        super().__init__(config)
        self.pairs = self._read(log)
        self.counts = {split: len(pairs.lengths) // 2 for split, pairs in self.pairs.items()}
        self.reference: dict[str, np.ndarray] = {}
        for split, count in self.counts.items():
            if not count:
                raise UserError(
                    f"no pair of {config.data.source or config.data.dataset} fell to the {split} split: use more rows,"
                    f" or change data.val_fraction={config.data.val_fraction}"
                )
        self.order = ShuffledOrder(self.counts["train"], config.train.batch_size, config.train.seed)

    def _read(self, log: Callable[[str], None]) -> dict[str, Examples]:
        data, counts, cut = self.config.data, Counter(), 0
        parts: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {"train": ([], []), "val": ([], [])}
        for where, row in open_rows(data.dataset, data.source):
            try:
                pair = pair_of(row, where)
                encoded = self._encode(pair)
            except UnusablePair as e:
                counts[str(e)] += 1
                continue
            cut += any(len(ids) > self.sequence_length + 1 for ids, _ in encoded)
            asked = next(m.content for m in pair[0] if m.role == "user")
            split = "val" if falls_to_validation(asked, data.val_fraction) else "train"
            for ids, learned in encoded:
                parts[split][0].append(ids[: self.sequence_length + 1])
                parts[split][1].append(learned[: self.sequence_length + 1])
        kept = sum(len(ids) // 2 for ids, _ in parts.values())
        left_out = "".join(f"; left out: {n:,} {why}" for why, n in counts.items())
        log(f"{data.dataset}: {kept:,} pairs, {cut:,} of them cut at train.sequence_length{left_out}")
        return {split: Examples(*part) for split, part in parts.items()}

    def _encode(self, pair: tuple[list[Message], list[Message]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids, is answer) of both, not cut yet. Raises UnusablePair."""
        if pair[0] == pair[1]:
            raise UnusablePair("with the same answer twice")
        try:
            begin = len(self.chat.prompt(pair[0][:-1]))
            sequences = [self.chat.encode(messages)[0] for messages in pair]
        except UserError as e:
            raise UnusablePair("with characters outside the vocabulary") from e
        limit = self.sequence_length + 1  # the first token is no target
        if begin >= limit:
            raise UnusablePair("whose answers begin beyond train.sequence_length")
        if np.array_equal(sequences[0][:limit], sequences[1][:limit]):
            raise UnusablePair("whose answers are the same up to train.sequence_length")
        # answers of earlier turns belong to the prompt
        return [(ids, np.arange(len(ids)) >= begin) for ids in sequences]

    def describe(self) -> str:
        mean = self.pairs["train"].lengths.mean()
        return (
            f"{self.counts['train']:,} training pairs, {mean:,.0f} tokens in the mean sequence; validation on"
            f" {self.counts['val']:,} pairs"
        )

    def identity(self) -> dict[str, Any]:
        both = hashlib.sha256("".join(self.pairs[split].sha256() for split in ("train", "val")).encode())
        return super().identity() | {"objective": "dpo", "data": both.hexdigest()}

    def tokens_per_step(self) -> int:
        """Tokens in an average optimizer step, in both sequences of its pairs."""
        lengths = self.pairs["train"].lengths
        return round(self.config.train.batch_size * 2 * float((lengths - 1).mean()))

    def answer_lengths(self, split: str) -> np.ndarray:
        """Tokens of the answers of a split, the end of text included, int64 [pairs, 2]."""
        pairs = self.pairs[split]
        return np.add.reduceat(pairs.learned, pairs.starts, dtype=np.int64).reshape(-1, 2)

    def _padded_length(self, split: str, numbers: np.ndarray) -> int:
        """What the longest needs, rounded up to quarters of the sequence length: four shapes to compile, no more."""
        longest = int(self.pairs[split].lengths.reshape(-1, 2)[numbers].max()) - 1
        quarter = -(-self.sequence_length // 4)
        return min(self.sequence_length, -(-longest // quarter) * quarter)

    def _read_pairs(self, split: str, numbers: np.ndarray, length: int, batch_size: int = 0) -> Batch:
        pairs = self.pairs[split]
        shape = (max(batch_size, len(numbers)), 2, length)
        names = {"inputs": np.int32, "targets": np.int32, "weights": np.float32}
        batch: Batch = {name: np.zeros(shape, dtype) for name, dtype in names.items()}
        for row, number in enumerate(numbers.tolist()):
            for answer in range(2):
                ids, learned = pairs.tokens(2 * number + answer)
                here = (row, answer, slice(len(ids) - 1))
                batch["inputs"][here], batch["targets"][here], batch["weights"][here] = ids[:-1], ids[1:], learned[1:]
        if split in self.reference:
            known = self.reference[split]
            batch["reference"] = np.zeros((shape[0], 2), known.dtype)
            batch["reference"][: len(numbers)] = known[numbers]
        return batch

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """``inputs``, ``targets`` (int32), ``weights`` (float32) [micro batches, pairs, 2, tokens], and ``reference``.

        The weights are 1 where the target is of an answer. Sequences are padded at their end to one length of four,
        the same for the whole step; ``reference`` is [micro batches, pairs, 2].
        """
        numbers = self.order.numbers(step)
        chosen = numbers.reshape(-1, self.micro_batch_size)[:, rows]
        batch = self._read_pairs("train", chosen.reshape(-1), self._padded_length("train", numbers))
        return {name: array.reshape(*chosen.shape, *array.shape[1:]) for name, array in batch.items()}

    def batches_by_length(self, split: str, batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """(numbers, batch [batch_size, 2, ...]) of all pairs of a split, the short ones first, each once.

        What fills the last batch has no weights.
        """
        longest = self.pairs[split].lengths.reshape(-1, 2).max(axis=1)
        order = np.argsort(longest, kind="stable")
        for i in range(0, len(order), batch_size):
            numbers = order[i : i + batch_size]
            yield numbers, self._read_pairs(split, numbers, self._padded_length(split, numbers), batch_size)

    def validation_batches(self, batch_size: int) -> Iterator[Batch]:
        """Batches as of :meth:`batch`, without the axis of micro batches."""
        return (batch for _, batch in self.batches_by_length("val", batch_size))
