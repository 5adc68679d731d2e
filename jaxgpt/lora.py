"""LoRA on a parameter dict: which parameters are the adapters, where they begin, and the model that they amount to.

The forward pass is in ``jaxgpt.model``; names and shapes are in ``scratchgpt.hf_layout``. Beside the adapters, the
embeddings of tokens that fine-tuning added to the vocabulary learn: they begin as equals, and a model that cannot tell
the user's mark from the assistant's learns little from either.
"""

import numpy as np

from configs.schema import LoraConfig, ModelConfig
from jaxgpt.params import Params

_NEW_ROWS = {"token_embedding_new": "token_embedding", "head_new": "head"}


def is_adapter(name: str) -> bool:
    """Whether a parameter (a name of jaxgpt.params) belongs to the adapter rather than to the model under it."""
    return name.endswith((".lora_a", ".lora_b")) or name in _NEW_ROWS


def initial_rows(params: Params, model: ModelConfig, lora: LoraConfig) -> Params:
    """The rows of new tokens as the model's own embedding and head have them; adapters begin at random and zero."""
    if not lora.rank or not lora.new_tokens:
        return {}
    rows = slice(model.vocab_size - lora.new_tokens, model.vocab_size)
    return {new: params[old][rows] for new, old in _NEW_ROWS.items() if old in params}


def merged_parameters(params: Params, model: ModelConfig, lora: LoraConfig) -> Params:
    """The parameters of the model without adapters that computes the same, as NumPy arrays; without LoRA ``params``.

    Each kernel W becomes W + A B alpha / R, computed in float64 and rounded once.
    """
    if not lora.rank:
        return params
    merged = {name: np.asarray(p) for name, p in params.items() if not is_adapter(name)}
    for name in [n for n in params if n.endswith(".lora_b")]:
        stem = name.removesuffix("lora_b")
        a = np.asarray(params.get(f"{stem}lora_a", params.get("blocks.attn.lora_a")), np.float64)
        b = np.asarray(params[name], np.float64)
        kernel = merged[f"{stem}kernel"].copy()
        for layer, matrix in enumerate(kernel):  # one at a time: float64 takes twice the room
            matrix += (lora.alpha / lora.rank) * (a[layer] @ b[layer])
        merged[f"{stem}kernel"] = kernel
    for new, old in _NEW_ROWS.items():
        if new in params:
            merged[old] = merged[old].copy()
            merged[old][model.vocab_size - lora.new_tokens : model.vocab_size] = params[new]
    return merged
