"""Parameters as one flat dict, and their way to and from the canonical names of ``scratchgpt.hf_layout``.

Training keeps a model as (graph definition, ``{"blocks.attn.q.kernel": array, ...}``): plain names for sharding rules,
optimizer groups and checkpoints.
"""

import re
from collections.abc import Callable, Iterable

import jax
import numpy as np
from flax import nnx

from configs.schema import ModelConfig
from jaxgpt.model import GPT
from scratchgpt.hf_layout import parameter_shapes

Params = dict[str, jax.Array]


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """The static structure of ``model`` and its parameters under dotted names."""
    graphdef, state = nnx.split(model)
    return graphdef, {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def merge_model(graphdef: nnx.GraphDef, params: Params) -> GPT:
    """The model that :func:`split_model` took apart, with these parameters."""
    flat = {tuple(name.split(".")): nnx.Param(value) for name, value in params.items()}
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def abstract_model(config: ModelConfig, **options) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
    """Structure and parameter shapes of a model without allocating it."""
    model = nnx.eval_shape(lambda: GPT(config, nnx.Rngs(params=jax.random.key(0)), **options))
    return split_model(model)


def _locate(name: str) -> tuple[str, int | None, bool]:
    """Our name of a canonical parameter, its layer, and whether it is stored transposed."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    layer = int(match[1]) if match else None
    ours = f"blocks.{match[2]}" if match else name
    if ours in ("token_embedding.weight", "position_embedding.weight", "head.weight", "score.weight"):
        return ours.removesuffix(".weight"), None, False
    if ours.endswith((".lora_a", ".lora_b")):
        return ours, layer, True
    transposed = ours.endswith(".weight") and "norm" not in ours
    return (ours.removesuffix("weight") + "kernel" if transposed else ours), layer, transposed


def canonical_getter(params: Params) -> Callable[[str], np.ndarray]:
    """A function from a canonical name to its array, one tensor at a time."""

    def get(name: str) -> np.ndarray:
        ours, layer, transposed = _locate(name)
        value = np.asarray(params[ours] if layer is None else params[ours][layer])
        return value.T if transposed else value

    return get


def from_canonical(config: ModelConfig, parameters: Iterable[tuple[str, np.ndarray]], dtype=np.float32) -> Params:
    """Our parameter dict, as NumPy arrays, from (canonical name, array) pairs; missing vocabulary rows become zeros."""
    _, abstract = abstract_model(config)
    params: Params = {}
    for name, array in parameters:
        ours, layer, transposed = _locate(name)
        if ours not in params:  # not before: the reader has compared this tensor's shape with the configuration
            params[ours] = np.zeros(abstract[ours].shape, dtype)
        target = params[ours] if layer is None else params[ours][layer]
        value = np.asarray(array).T if transposed else np.asarray(array)
        target[: value.shape[0]] = value
    return params


def canonical_names(config: ModelConfig) -> list[str]:
    """Every canonical parameter name of ``config``."""
    return list(parameter_shapes(config))
