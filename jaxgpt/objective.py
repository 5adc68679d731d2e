"""What a run trains for. The loop in ``jaxgpt.trainer`` is the same for every objective.

An objective owns what is particular to a kind of training: its data, the loss sums, which parameters learn, and the
parameters that are exported.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from configs.schema import Config, ModelConfig
from data_prep.training_data import Batch, TrainingData, open_data
from jaxgpt.decoding import generate
from jaxgpt.lora import initial_rows, is_adapter, merged_parameters
from jaxgpt.loss import next_token_sums
from jaxgpt.model import GPT
from jaxgpt.params import Params, from_canonical
from jaxgpt.step import Steps
from scratchgpt.hf_directory import open_hf_directory
from scratchgpt.vocabulary import grow_vocabulary


class Sums(NamedTuple):
    """Of one micro batch; means are taken once, over all micro batches of a step or of a validation.

    Attributes:
      loss: sum of the losses, in nats.
      weight: number of targets (or examples) that it is over.
      metrics: sums of whatever else is logged, over the same weight.
    """

    loss: jax.Array | np.ndarray | float
    weight: jax.Array | np.ndarray | float
    metrics: dict[str, Any]


class Objective:
    """Predict the next token: of every position in pre-training, of the answers in instruction tuning."""

    def __init__(
        self, config: Config, model: ModelConfig, data: TrainingData | None = None, log: Callable[[str], None] = print
    ) -> None:
        """Of a resolved model. Without data, only what shapes tell can be asked of it, such as a plan needs."""
        self.config, self.model, self.data, self.log = config, model, data, log
        if data is not None:
            self._prompt = data.encode_prompt()  # now: an hour later the same mistake would cost the hour

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a step's batch, [micro batches, sequences, tokens]."""
        names = {"inputs": np.int32, "targets": np.int32}
        train = self.config.train
        if train.objective != "pretrain" or train.packing == "best_fit":
            names |= {"segments": np.int32, "weights": np.float32}
        return {name: jax.ShapeDtypeStruct(self._batch_axes(), dtype) for name, dtype in names.items()}

    def _batch_axes(self) -> tuple[int, int, int]:
        train = self.config.train
        micro = train.micro_batch_size or train.batch_size
        return train.batch_size // micro, micro, train.sequence_length or self.model.context_length

    def identity(self, init_from: str | None) -> dict[str, Any]:
        """What a checkpoint must agree on for its run to be continued. Raises UserError."""
        return self.data.identity()

    def prepare(self, steps: Steps, workdir: Path, init_from: str | None) -> None:
        """Called once before the first step, of a resumed run too, when no training state is on the devices yet."""

    def batches(self, first_step: int, rows: slice) -> Iterator[Batch]:
        """The batches of steps ``first_step`` to the last, read ahead by Grain: ``rows`` of every micro batch."""
        import grain

        steps = grain.MapDataset.range(first_step, self.config.train.steps)
        batches = steps.map(lambda step: self.data.batch(int(step), rows))
        return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))

    def loss_sums(self, model: GPT, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """The loss of one micro batch [sequences, tokens]."""
        x_BxTxD, _ = model.hidden(batch["inputs"], dropout_key=dropout_key, segments_BxT=batch.get("segments"))
        chunk = self.config.train.loss_chunk
        return Sums(*next_token_sums(model, x_BxTxD, batch["targets"], batch.get("weights"), chunk), {})

    def figures(self, sums: Sums) -> dict[str, float]:
        """What is logged of the sums of a step or of a whole validation, any factor apart: ``loss`` and others."""
        totals = {"loss": sums.loss, **sums.metrics}
        return {name: float(total / sums.weight) for name, total in totals.items()}

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        """Batches that nothing was chosen by: the finished model is measured on them. None by default."""
        return iter(())

    def is_trained(self, name: str) -> bool:
        """Whether a parameter (a name of jaxgpt.params) learns; the others stay as they are and have no slots."""
        return is_adapter(name) or not self.config.lora.rank

    def starting_parameters(self, directory: str) -> dict[str, np.ndarray]:
        """The parameters of a Hugging Face directory, in our names; those it lacks begin at random. Raises UserError.

        New tokens begin as the mean of the others.
        """
        stored = grow_vocabulary(open_hf_directory(directory).parameters(), self.model.vocab_size)
        params = from_canonical(self.model, stored)
        return params | initial_rows(params, self.model, self.config.lora)

    def exported_parameters(self, params: Params) -> Params:
        """What is exported of ``params``: a model without adapters."""
        return merged_parameters(params, self.model, self.config.lora)

    def samples(self, graphdef: nnx.GraphDef, params: Params, max_new_tokens: int) -> list[str]:
        """The prompt of the ``sample`` section with its continuations, as text."""
        sample, data = self.config.sample, self.data
        continuations = generate(
            graphdef,
            params,
            self.model,
            self._prompt,
            max_new_tokens=max_new_tokens,
            stop_ids=data.stop_ids,
            temperature=sample.temperature,
            top_k=sample.top_k,
            top_p=sample.top_p,
            num_samples=sample.num_samples,
            seed=self.config.train.seed,
        )
        return [sample.prompt + data.answer_mark + data.tokenizer.decode(ids) for ids in continuations]


def objective_class(config: Config) -> type[Objective]:
    """That of ``train.objective``."""
    from jaxgpt.classification import Classification  # objectives themselves
    from jaxgpt.preference import DPO

    return {"pretrain": Objective, "sft": Objective, "dpo": DPO, "classify": Classification}[config.train.objective]


def make_objective(config: Config, log: Callable[[str], None]) -> Objective:
    """The objective of a run, with its data. Raises UserError for data that cannot be trained on."""
    data = open_data(config, log)
    return objective_class(config)(config, data.model, data, log)
