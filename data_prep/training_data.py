"""What training needs of any data, as both trainers ask for it: batches by step number, and a validation split."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from configs.schema import Config, resolve_model
from data_prep.order import ShuffledOrder, WindowOrder
from data_prep.packing import PackedOrder
from data_prep.tokenizers import Tokenizer
from scratchgpt.errors import UserError

Batch = dict[str, Any]  # of arrays; see the data's own class for their axes


class TrainingData(ABC):
    """The examples of a run.

    Attributes:
      tokenizer: of the text; exported with the model.
      model: the resolved model, with the tokenizer's vocabulary.
      sequence_length: tokens of a training sequence.
      micro_batch_size: sequences (or other examples) of one forward pass, over all devices.
      order: which examples each step trains on.
      labels: names of a classifier's labels; empty for every other model.
      answer_mark: what stands between a prompt and what the model wrote, where both are shown.
      stop_ids: tokens at which a written text ends.
    """

    order: ShuffledOrder | WindowOrder | PackedOrder
    answer_mark = ""
    labels: Sequence[str] = ()

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.model = resolve_model(config.model, tokenizer.size)
        self.sequence_length = config.train.sequence_length or config.model.context_length
        self.micro_batch_size = config.train.micro_batch_size or config.train.batch_size
        self.stop_ids: Collection[int] = [tokenizer.end_of_text_id]

    @abstractmethod
    def describe(self) -> str:
        """One line about the data, with the part of it that validation uses."""

    @abstractmethod
    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """The arrays of the 0-based ``step``, [micro batches, examples, ...]; a pure function of (seed, step).

        ``rows`` picks examples out of every micro batch: a process reads no more than its own share.
        """

    @abstractmethod
    def validation_batches(self, batch_size: int) -> Iterator[Batch]:
        """The validation examples, each once, in batches [batch_size, ...]; what fills the last one weighs nothing."""

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on for its run to be continued."""
        train = self.config.train
        return {"objective": train.objective, "sequence_length": self.sequence_length, "packing": train.packing}

    def tokens_per_step(self) -> int:
        """Positions in one optimizer step; all but the few that packing leaves empty are read."""
        return self.config.train.batch_size * self.sequence_length

    def encode_prompt(self) -> list[int]:
        """Ids of ``sample.prompt``, as the model is given it. Raises UserError for one that the model cannot read."""
        prompt = self.config.sample.prompt
        try:
            ids = self.prompt_ids(prompt)
        except UserError as e:
            raise UserError(f"--config.sample.prompt={prompt!r}: {e}") from e
        if len(ids) > self.model.context_length:
            raise UserError(f"sample.prompt has {len(ids)} tokens, model.context_length is smaller: shorten it")
        return ids or [self.tokenizer.end_of_text_id]

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of a text that the model is to continue."""
        return [int(i) for i in self.tokenizer.encode(prompt)]


def batch_index(config: Config, step: int) -> int:
    """The 0-based batch of a step as the log counts them, from 1. Raises UserError for one the run does not take."""
    if not 1 <= step <= config.train.steps:
        raise UserError(f"there is no step {step}: the run has {config.train.steps:,}, from 1 (train.steps)")
    return step - 1


def open_data(config: Config, log: Callable[[str], None]) -> TrainingData:
    """The data of ``train.objective``. Raises UserError for data that cannot be trained on."""
    if config.train.objective == "pretrain":
        from data_prep.token_data import TokenData

        return TokenData(config, log)
    if config.train.objective == "classify":
        from data_prep.label_data import LabelData

        return LabelData(config, log)
    if config.train.objective == "dpo":
        from data_prep.preference_data import PreferenceData

        return PreferenceData(config, log)
    from data_prep.instruction_data import InstructionData

    return InstructionData(config, log)
