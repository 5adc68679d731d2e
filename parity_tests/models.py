"""Models to hold the frameworks against each other: every family, with weights of a realistic scale."""

import dataclasses
import importlib
from pathlib import Path

import numpy as np

import configs
from configs.schema import Config, ModelConfig, gpt2, llama, nanochat, qwen3, resolve_model
from scratchgpt.hf_layout import parameter_role, parameter_shapes

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

_SIZE = dict(n_layer=2, n_head=4, n_embd=48, context_length=192, vocab_size=91, padded_vocab_size=96)

FAMILIES = {"gpt2": gpt2, "llama": llama, "qwen3": qwen3, "nanochat": nanochat}

# Every family, and the options within it that change the arithmetic.
MODELS: dict[str, ModelConfig] = {
    "gpt2": gpt2(**_SIZE),
    "gpt2-no-bias": gpt2(**_SIZE, bias=False),
    "llama": llama(**_SIZE, n_kv_head=2, head_dim=16),
    "llama-tied": llama(**_SIZE, n_kv_head=1, tie_embeddings=True, rope_theta=500.0),
    "qwen3": qwen3(**_SIZE, n_kv_head=2, head_dim=20),
    "nanochat": nanochat(**_SIZE, n_kv_head=2),
    "nanochat-no-cap": nanochat(**_SIZE, logit_softcap=0.0),
}


def reduced(model: ModelConfig) -> ModelConfig:
    """``model`` at the size of MODELS, without dropout, which the frameworks draw differently."""
    heads = 4 // min(4, model.n_head // (model.n_kv_head or model.n_head))
    small = _SIZE | {"n_kv_head": heads if heads < 4 else 0, "head_dim": 0, "mlp_dim": 0, "dropout": 0.0}
    return dataclasses.replace(model, **small)


def run_files() -> dict[str, Config]:
    """The configuration of every file in configs/, by name."""
    names = sorted(p.stem for p in Path(configs.__file__).parent.glob("*.py") if p.stem not in ("__init__", "schema"))
    return {name: importlib.import_module(f"configs.{name}").get_config() for name in names}


def all_models() -> dict[str, ModelConfig]:
    """MODELS and the reduced models of the run files that are not among them yet."""
    found = dict(MODELS)
    for name, config in run_files().items():
        if (model := reduced(config.model)) not in found.values():
            found[f"{name}.py"] = model
    return found


def random_weights(model: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Canonical float32 parameters whose logits reach 5 to 10: norms around 1, biases not zero, sharp attention."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in parameter_shapes(resolve_model(model)).items():
        noise = rng.standard_normal(shape)
        role = parameter_role(name)
        if role == "vector":
            noise = 0.2 * noise + (1.0 if name.endswith("norm.weight") else 0.0)
        elif role == "matrix":
            noise *= 1.5 / shape[1] ** 0.5
        elif name.startswith("position"):
            noise *= 0.3
        else:
            noise *= 2.5 / shape[1] ** 0.5
        weights[name] = noise.astype(np.float32)
    return weights


def random_tokens(model: ModelConfig, batch: int, length: int, seed: int = 0) -> np.ndarray:
    """int32 [batch, length] within the vocabulary."""
    return np.random.default_rng(seed).integers(0, model.vocab_size, (batch, length), dtype=np.int32)


def tokenizer_for(model: ModelConfig):
    """A character tokenizer with exactly ``model.vocab_size`` tokens, end of text included."""
    from data_prep.tokenizers import char_tokenizer

    return char_tokenizer(["".join(chr(33 + i) for i in range(model.vocab_size - 1))])
