"""Logits of Hugging Face directories, as each framework's own loader reads them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from configs.schema import ModelConfig, resolve_model
from jaxgpt.loading import load_weights
from jaxgpt.model import KVCache
from jaxgpt.params import canonical_getter, from_canonical, merge_model
from parity_tests.models import tokenizer_for
from scratchgpt.hf_directory import write_hf_directory
from torchgpt.hf import load_model as load_torch


def export_from_jax(model: ModelConfig, weights: dict[str, np.ndarray], directory: Path) -> Path:
    """Put canonical ``weights`` into a jaxgpt parameter dict and export that."""
    resolved = resolve_model(model)
    params = from_canonical(resolved, weights.items())
    write_hf_directory(directory, resolved, canonical_getter(params), tokenizer_for(resolved), "card")
    return directory


def jax_logits(directory: Path, tokens_BxT: np.ndarray, chunks: list[int] | None = None) -> np.ndarray:
    """float32 [B, T, V]: in one pass, or through the KV cache in ``chunks`` of tokens."""
    graphdef, params, config = load_weights(directory)
    forward = jax.jit(lambda params, tokens, cache: merge_model(graphdef, params)(tokens, cache=cache))
    if chunks is None:
        return np.asarray(forward(params, tokens_BxT, None)[0])
    cache = KVCache.empty(config, len(tokens_BxT), config.context_length, jnp.float32)
    parts, start = [], 0
    for size in chunks:
        logits, cache = forward(params, tokens_BxT[:, start : start + size], cache)
        parts.append(np.asarray(logits))
        start += size
    return np.concatenate(parts, axis=1)


@torch.no_grad()
def torch_logits(directory: Path, tokens_BxT: np.ndarray) -> np.ndarray:
    """float32 [B, T, V] of torchgpt."""
    model = load_torch(directory, "cpu", torch.float32)
    return model(torch.from_numpy(tokens_BxT).long()).numpy()


@torch.no_grad()
def transformers_logits(directory: Path, tokens_BxT: np.ndarray) -> np.ndarray:
    """float32 [B, T, V] of the transformers class that config.json names."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return model(torch.from_numpy(tokens_BxT).long()).logits.numpy()


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    """max |a - b|; raises AssertionError unless both are finite and of one shape."""
    assert a.shape == b.shape, (a.shape, b.shape)
    assert np.isfinite(a).all()
    assert np.isfinite(b).all()
    return float(np.abs(a - b).max())
