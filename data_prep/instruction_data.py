"""Instructions and answers as both trainers read them: conversations packed side by side, the answers alone learned.

    rows -> conversations -> tokens with a mark on the answers -> training and validation, by instruction
         -> bins of whole conversations (data_prep.packing) -> batches

A conversation longer than a training sequence loses its end; one whose first answer begins beyond the sequence is left
out, as is a row without an answer and, for a tokenizer that does not know every character, one it cannot encode. All of
these are counted.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema import Config
from data_prep.chat import ChatFormat, Message, add_chat_tokens
from data_prep.conversations import conversation_of
from data_prep.example_rows import open_rows
from data_prep.order import ShuffledOrder
from data_prep.packing import pack, read_packed
from data_prep.tokenizers import Tokenizer, gpt2_tokenizer, load_tokenizer
from data_prep.training_data import Batch, TrainingData
from scratchgpt.errors import UserError


def base_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of ``data.tokenizer`` for fine-tuning: gpt2, or that of a directory. Raises UserError."""
    if name == "gpt2":
        return gpt2_tokenizer()
    if not Path(name).expanduser().is_dir():
        raise UserError(
            f"data.tokenizer={name} must be gpt2 or a directory that holds a tokenizer for this objective: start from a"
            " trained model with --init_from=HF_DIR, which brings its own"
        )
    return load_tokenizer(Path(name).expanduser())


def falls_to_validation(instruction: str, fraction: float) -> bool:
    """Whether the examples of ``instruction`` validate: decided by its hash, so that equal ones fall to one side."""
    digest = hashlib.sha256(" ".join(instruction.lower().split()).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


class Examples:
    """Token sequences of different lengths, one after the other, and which of their tokens are learned."""

    def __init__(self, ids: Sequence[np.ndarray], learned: Sequence[np.ndarray]) -> None:
        self.lengths = np.array([len(i) for i in ids], np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self._ids = np.concatenate([np.zeros(0, np.int32), *ids])
        self.learned = np.concatenate([np.zeros(0, bool), *learned])

    def __len__(self) -> int:
        return len(self._ids)

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Tokens start ... stop - 1 of all, int32 [stop - start]."""
        return self._ids[start:stop]

    def tokens(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, is learned) of one example."""
        here = slice(self.starts[number], self.starts[number] + self.lengths[number])
        return self._ids[here], self.learned[here]

    def sha256(self) -> str:
        """Of tokens, marks and lengths."""
        digest = hashlib.sha256(self.lengths.tobytes())
        digest.update(self._ids.tobytes())
        digest.update(self.learned.tobytes())
        return digest.hexdigest()


class ChatData(TrainingData):
    """Data whose texts are conversations, in the format of data_prep.chat."""

    answer_mark = "\n\n"

    def __init__(self, config: Config) -> None:
        tokenizer = add_chat_tokens(base_tokenizer(config.data.tokenizer))
        super().__init__(config, tokenizer)
        self.chat = ChatFormat(tokenizer)
        self.stop_ids = self.chat.stop_ids

    def prompt_ids(self, prompt: str) -> list[int]:
        return self.chat.prompt([Message("user", prompt)])


class InstructionData(ChatData):
    """Conversations of ``data.dataset``, whole, packed into sequences; the weights are 1 at the answers' tokens."""

    def __init__(self, config: Config, log: Callable[[str], None]) -> None:
        super().__init__(config)
        self.conversations: dict[str, list[list[Message]]] = {"train": [], "val": []}
        self.examples = self._read(log)
        for split, examples in self.examples.items():
            if not len(examples):
                raise UserError(
                    f"no example of {config.data.source or config.data.dataset} fell to the {split} split: use more"
                    f" rows, or change data.val_fraction={config.data.val_fraction}"
                )
        self.bins = {name: self._packed(examples) for name, examples in self.examples.items()}
        self.order = ShuffledOrder(len(self.bins["train"]), config.train.batch_size, config.train.seed)

    def _read(self, log: Callable[[str], None]) -> dict[str, Examples]:
        data, counts = self.config.data, Counter()
        parts: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {"train": ([], []), "val": ([], [])}
        for where, row in open_rows(data.dataset, data.source):
            messages = conversation_of(row, where)
            if not messages:
                counts["without an answer"] += 1
                continue
            try:
                ids, learned = self.chat.encode(messages)
            except UserError:
                counts["with characters outside the vocabulary"] += 1
                continue
            limit = self.sequence_length + 1
            if not learned[:limit].any():
                counts["whose answer begins beyond train.sequence_length"] += 1
                continue
            counts["cut at train.sequence_length"] += len(ids) > limit
            asked = next(m.content for m in messages if m.role == "user")
            split = "val" if falls_to_validation(asked, data.val_fraction) else "train"
            parts[split][0].append(ids[:limit])
            parts[split][1].append(learned[:limit])
            self.conversations[split].append(messages)
        cut = counts.pop("cut at train.sequence_length", 0)
        kept = sum(len(ids) for ids, _ in parts.values())
        left_out = ", ".join(f"{n:,} {why}" for why, n in counts.items()) or "none"
        log(f"{data.dataset}: {kept:,} examples, {cut:,} of them cut at train.sequence_length; left out: {left_out}")
        return {split: Examples(*part) for split, part in parts.items()}

    def _packed(self, examples: Examples) -> Any:
        # an example's first token follows nothing and is no target
        return pack(examples.starts + 1, examples.lengths - 1, self.sequence_length)

    def describe(self) -> str:
        train, val = self.examples["train"], self.examples["val"]
        return (
            f"{len(train.lengths):,} training examples in {len(self.bins['train']):,} packed sequences,"
            f" {int(train.learned.sum()):,} of {len(train):,} tokens are answers; validation on {len(val.lengths):,}"
        )

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"data": [e.sha256() for e in self.examples.values()]}

    def _sequences(self, split: str, chosen: np.ndarray, batch_size: int = 0) -> Batch:
        examples, bins = self.examples[split], self.bins[split]
        return read_packed(examples, bins, chosen, self.sequence_length, batch_size, examples.learned)

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """``inputs``, ``targets``, ``segments`` and ``weights`` [micro batches, sequences, tokens]."""
        chosen = self.order.numbers(step).reshape(-1, self.micro_batch_size)[:, rows]
        batch = self._sequences("train", chosen.reshape(-1))
        return {name: array.reshape(*chosen.shape, self.sequence_length) for name, array in batch.items()}

    def validation_batches(self, batch_size: int) -> Iterator[Batch]:
        for i in range(0, len(self.bins["val"]), batch_size):
            chosen = np.arange(i, min(i + batch_size, len(self.bins["val"])))
            yield self._sequences("val", chosen, batch_size)
