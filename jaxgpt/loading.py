"""A trained model for inference, from a workdir or from a Hugging Face directory."""

import re
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from configs.schema import ModelConfig, resolve_model
from data_prep.tokenizers import Tokenizer, load_tokenizer
from jaxgpt.checkpoint import Checkpoints
from jaxgpt.lora import merged_parameters
from jaxgpt.params import Params, abstract_model, from_canonical
from jaxgpt.sharding import make_mesh
from jaxgpt.step import Steps, compute_dtype, model_options
from scratchgpt import workdir as layout
from scratchgpt.errors import UserError
from scratchgpt.hf_directory import open_hf_directory


class LoadedModel(NamedTuple):
    """Everything needed to run a model."""

    graphdef: nnx.GraphDef
    params: Params
    model: ModelConfig
    tokenizer: Tokenizer
    step: int | None  # of the checkpoint; None for a Hugging Face directory


def load_workdir(workdir: Path, step: str = "best", merge: bool = True) -> LoadedModel:
    """The model of a checkpoint: ``best`` by validation loss (else the latest), ``latest``, or a step number.

    LoRA's adapters are merged into the model as they are for an export, unless ``merge`` is False.

    Raises UserError if the workdir or the step does not exist or the checkpoint is damaged.
    """
    config = layout.stored_config(workdir)
    jax.config.update("jax_enable_x64", config.train.dtype == "float64")
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = -1, 1, 1
    tokenizer = load_tokenizer(workdir / layout.TOKENIZER)
    model = resolve_model(config.model, tokenizer.size)
    checkpoints = Checkpoints(workdir / layout.CHECKPOINTS)
    records = checkpoints.records()
    if not records:
        raise UserError(f"{workdir} holds no finished checkpoint")
    if step in ("best", "latest"):
        best = checkpoints.best_step() if step == "best" else None
        number = max(records) if best is None else best  # a run that has not validated yet has no best
    elif re.fullmatch("[0-9]+", step) and int(step) in records:
        number = int(step)
    else:
        raise UserError(f"{workdir} has no checkpoint {step!r}; it has {', '.join(map(str, records))}")
    if damage := checkpoints.verify(number):
        raise UserError(f"checkpoint {number} is damaged: {damage}; {workdir / layout.EXPORT} may hold its model")
    config.train.batch_size = config.train.micro_batch_size = jax.device_count()
    mesh = make_mesh(config)
    steps = Steps(config, model, lambda *_: None, mesh)
    graphdef, params = steps.graphdef, checkpoints.load_parameters(number, steps.abstract_state["params"])
    if merge and config.lora.rank:
        merged = merged_parameters(params, model, config.lora)
        graphdef, _ = abstract_model(model, **model_options(config, mesh) | {"lora": None})
        params = {name: jnp.asarray(p) for name, p in merged.items()}
    return LoadedModel(graphdef, params, model, tokenizer, number)


def load_model(path: str) -> LoadedModel:
    """A workdir's best checkpoint, or a Hugging Face directory; empty: the newest export under runs/.

    A workdir without checkpoints of JAX, such as one of `torchgpt.train`, gives its export.
    """
    if path and (Path(path) / layout.CHECKPOINTS).is_dir():
        return load_workdir(Path(path))
    directory = layout.resolve_export(path)
    graphdef, params, model = load_weights(directory)
    return LoadedModel(graphdef, params, model, load_tokenizer(directory), None)


def load_weights(directory: Path | str) -> tuple[nnx.GraphDef, Params, ModelConfig]:
    """Structure, parameters and configuration of a Hugging Face directory, which needs no tokenizer."""
    stored = open_hf_directory(directory)
    graphdef, _ = abstract_model(stored.model, dtype=compute_dtype("auto", jax.devices()[0]))
    params = {name: jnp.asarray(a) for name, a in from_canonical(stored.model, stored.parameters()).items()}
    return graphdef, params, stored.model
