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

from configs.schema import Config
from data_prep.training_data import Batch, open_data
from jaxgpt.decoding import generate
from jaxgpt.lora import initial_rows, is_adapter, merged_parameters
from jaxgpt.model import GPT, cross_entropy_sums
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

    def __init__(self, config: Config, log: Callable[[str], None]) -> None:
        self.config, self.log = config, log
        self.data = open_data(config, log)
        self.model = self.data.model
        self._prompt = self.data.encode_prompt()  # now: an hour later the same mistake would cost the hour

    def identity(self, init_from: str | None) -> dict[str, Any]:
        """What a checkpoint must agree on for its run to be continued. Raises UserError."""
        return self.data.identity()

    def prepare(self, steps: Steps, workdir: Path, init_from: str | None) -> None:
        """Called once before the first step, of a resumed run too, when no training state is on the devices yet."""

    def batches(self, first_step: int) -> Iterator[Batch]:
        """The batches of steps ``first_step`` to the last, read ahead by Grain.

        Each process gets its share of every micro batch's sequences.
        """
        import grain

        share = self.data.micro_batch_size // jax.process_count()
        rows = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
        steps = grain.MapDataset.range(first_step, self.config.train.steps)
        batches = steps.map(lambda step: self.data.batch(int(step), rows))
        return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))

    def loss_sums(self, model: GPT, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """The loss of one micro batch [sequences, tokens]."""
        logits_BxTxV, _ = model(batch["inputs"], dropout_key=dropout_key, segments_BxT=batch.get("segments"))
        return Sums(*cross_entropy_sums(logits_BxTxV, batch["targets"], batch.get("weights")), {})

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

    def samples(self, graphdef: nnx.GraphDef, params: Params) -> list[str]:
        """The prompt of the ``sample`` section with its continuations, as text."""
        sample, data = self.config.sample, self.data
        continuations = generate(
            graphdef,
            params,
            self.model,
            self._prompt,
            max_new_tokens=sample.max_new_tokens,
            stop_ids=data.stop_ids,
            temperature=sample.temperature,
            top_k=sample.top_k,
            top_p=sample.top_p,
            num_samples=sample.num_samples,
            seed=self.config.train.seed,
        )
        return [sample.prompt + data.answer_mark + data.tokenizer.decode(ids) for ids in continuations]


def make_objective(config: Config, log: Callable[[str], None]) -> Objective:
    """The objective of ``train.objective``. Raises UserError for data that cannot be trained on."""
    from jaxgpt.classification import Classification  # objectives themselves
    from jaxgpt.preference import DPO

    kinds = {"pretrain": Objective, "sft": Objective, "dpo": DPO, "classify": Classification}
    return kinds[config.train.objective](config, log)
