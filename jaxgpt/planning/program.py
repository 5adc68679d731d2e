"""The train step that is planned: its shapes, its layout over the devices, and what the compiler makes of it."""

import copy
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from configs.schema import Config, ModelConfig, resolve_model
from data_prep.prepare import directory_of
from jaxgpt.objective import objective_class
from jaxgpt.planning.hlo import Collective, collectives
from jaxgpt.sharding import batch_sharding, check_model_fits, make_mesh
from jaxgpt.step import Steps
from scratchgpt.errors import UserError

ASSUMED_VOCABULARY = {"char": 128}  # of a tokenizer that is made from the data; any other: 4096


class Tensor(NamedTuple):
    """One array of the training state.

    Attributes:
      name: of the parameter, with the optimizer's slot in brackets.
      spec: mesh axis of each dimension.
      bytes_per_device: of the largest shard.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    spec: str
    bytes: int
    bytes_per_device: int


@dataclass(frozen=True)
class Memory:
    """Bytes of a device during a step.

    Attributes:
      arguments: training state and batch.
      temporaries: what the step needs beside them, its code included.
      peak: arguments, temporaries, and results that do not take an argument's place.
      parts: of an estimate, what the temporaries are for.
    """

    arguments: int
    temporaries: int
    peak: int
    parts: dict[str, int]


@dataclass(frozen=True)
class Compiled:
    """What is known of a step after compiling it, or after estimating."""

    memory: Memory
    collectives: list[Collective]
    seconds: float  # lowering and compiling


class DoesNotFit(Exception):
    """The compiler's refusal of a step that needs more memory than there is; in bytes, 0 where it does not say.

    Of a step that is far too large it counts the temporaries alone.
    """

    def __init__(self, message: str) -> None:
        found = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?)", message)
        found = found or re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)", message)
        units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
        self.needed = int(float(found[1]) * units[found[2]]) if found else 0
        self.available = int(float(found[3]) * units[found[4]]) if found else 0
        super().__init__(message)


def vocabulary(config: Config) -> tuple[int, str]:
    """Tokens of the run's tokenizer, and a remark where that is a guess (empty: it is none). Raises UserError."""
    tokenizer = config.data.tokenizer
    # characters are counted where the data are prepared
    directory = directory_of(config.data) if tokenizer == "char" else Path(tokenizer).expanduser()
    if config.model.vocab_size:
        return config.model.vocab_size, ""
    if tokenizer == "gpt2":
        return 50257, ""
    if directory.is_dir():
        from data_prep.tokenizers import load_tokenizer

        return load_tokenizer(directory).size, ""
    assumed = ASSUMED_VOCABULARY.get(tokenizer, 4096)
    return assumed, f"a vocabulary of {assumed:,} is assumed: the tokenizer {tokenizer} is not there to count"


class Program:
    """A run's train step over given devices.

    Attributes:
      config: the run.
      model: resolved, its vocabulary known.
      mesh, steps: as in training.
      batch: shapes of a step's batch.
      remarks: sentences on what had to be assumed.
    """

    def __init__(self, config: Config, devices: list[jax.Device]) -> None:
        """Raises ConfigError or UserError for what could not be trained."""
        self.config, self.devices, self.remarks = config, devices, []
        size, remark = vocabulary(config)
        self.remarks += [remark] if remark else []
        self.model: ModelConfig = resolve_model(config.model, size)
        if config.train.objective == "classify" and not self.model.num_labels:
            self.model.num_labels = 2
            self.remarks.append("two labels are assumed")
        self.mesh = make_mesh(config, devices)
        check_model_fits(self.model, self.mesh)
        self.objective = objective_class(config)(config, self.model)
        self.steps = Steps(config, self.model, self.objective.loss_sums, self.mesh, self.objective.is_trained)
        sharding = batch_sharding(self.mesh)
        self.batch = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
            for name, x in self.objective.abstract_batch().items()
        }

    @property
    def micro_batch_size(self) -> int:
        """Examples of a forward pass, over all devices."""
        return self.config.train.micro_batch_size or self.config.train.batch_size

    @property
    def micro_batches(self) -> int:
        """Forward passes in a step."""
        return self.config.train.batch_size // self.micro_batch_size

    @property
    def rows(self) -> int:
        """Parts that a micro-batch is cut into."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    @property
    def tokens_per_step(self) -> int:
        """Positions in a step, those of both answers of a pair among them."""
        return int(np.prod(self.batch["inputs"].shape))

    def with_micro_batch(self, size: int) -> "Program":
        """The same with another micro-batch."""
        config = copy.deepcopy(self.config)
        config.train.micro_batch_size = size
        return Program(config, self.devices)

    def tensors(self) -> list[Tensor]:
        """Every array of the training state, parameters first."""
        leaves = jax.tree_util.tree_flatten_with_path(self.steps.abstract_state)[0]
        found = [_tensor(path, leaf) for path, leaf in leaves]
        return sorted(found, key=lambda t: "(" in t.name)

    def state_bytes(self) -> int:
        """Of the training state on a device."""
        return sum(tensor.bytes_per_device for tensor in self.tensors())

    def compile(self) -> Compiled:
        """Compile the step for its devices, which need not be there. Raises DoesNotFit, or UserError."""
        lr = jax.ShapeDtypeStruct((), np.float32, sharding=NamedSharding(self.mesh, PartitionSpec()))
        began = time.monotonic()
        platform = self.devices[0].platform
        platforms = {"gpu": "cuda"}.get(platform, platform)
        traced = self.steps.update.trace(self.steps.abstract_state, self.batch, lr)
        try:
            compiled = traced.lower(lowering_platforms=(platforms,)).compile()
        except jax.errors.JaxRuntimeError as e:
            if "RESOURCE_EXHAUSTED" not in str(e) and "HbmOom" not in str(e):
                sentence = str(e).strip().splitlines()[0]
                raise UserError(f"the compiler refuses this step: {sentence}") from e
            raise DoesNotFit(str(e)) from None
        seconds = time.monotonic() - began
        m = compiled.memory_analysis()
        temporaries = m.temp_size_in_bytes + m.generated_code_size_in_bytes
        new = m.output_size_in_bytes - m.alias_size_in_bytes
        memory = Memory(m.argument_size_in_bytes, temporaries, m.argument_size_in_bytes + temporaries + new, {})
        return Compiled(memory, collectives(compiled.as_text(), self.mesh.size), seconds)


def _tensor(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Tensor:
    keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
    attributes = [k.name for k in path if isinstance(k, jax.tree_util.GetAttrKey)]
    slot = attributes[-1] if attributes else ""
    name = keys[-1] + (f" ({slot})" if keys[0] != "params" and slot else "")
    size = leaf.dtype.itemsize
    spec = ", ".join("-" if axis is None else str(axis) for axis in leaf.sharding.spec)
    per_device = int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * size
    total = int(np.prod(leaf.shape, dtype=np.int64)) * size
    return Tensor(name, leaf.shape, str(leaf.dtype), spec or "replicated", total, per_device)
