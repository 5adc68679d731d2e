"""LoRA adapters in the format of PEFT: adapter_config.json, adapter_model.safetensors, the tokenizer and a card.

Only what was trained is in it; PEFT puts it on the base model, which it needs besides.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema import Config, ModelConfig, family_of, resolve_model
from scratchgpt.errors import UserError
from scratchgpt.files import atomic_path, write_json, write_text
from scratchgpt.hf_directory import SavableTokenizer, write_safetensors
from scratchgpt.hf_layout import hf_name, joins_qkv, parameter_role, parameter_shapes
from scratchgpt.model_card import fenced, losses, training_command

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_WRAPPER = "base_model.model."  # PEFT's two classes around the model


def _adapted_layers(model: ModelConfig) -> Iterator[tuple[str, list[str]]]:
    """(Hugging Face module, canonical names of the linear layers that it holds) for each adapted layer."""
    joined = joins_qkv(model)
    for name in parameter_shapes(model):
        if parameter_role(name) != "matrix" or (joined and name.endswith((".k.weight", ".v.weight"))):
            continue
        layer = name.removesuffix(".weight")
        parts = [f"{layer[:-1]}{p}" for p in "qkv"] if joined and layer.endswith(".q") else [layer]
        yield hf_name(family_of(model), name).removesuffix(".weight"), parts


def _new_rows(model: ModelConfig) -> dict[str, str]:
    """Hugging Face module of every embedding that has rows of its own for new tokens -> canonical name of the rows."""
    names = ["token_embedding"] if model.tie_embeddings else ["token_embedding", "head"]
    return {hf_name(family_of(model), f"{n}.weight").removesuffix(".weight"): f"{n}_new" for n in names}


def to_peft_tensors(
    model: ModelConfig, new_tokens: int, get: Callable[[str], np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (PEFT's name, float32 array) for every tensor of an adapter: lora_A [R, in] and lora_B [out, R].

    Args:
      model: resolved, of the adapted model.
      new_tokens: how many of the last tokens have rows of their own.
      get: returns the canonical parameter of a name, see ``scratchgpt.hf_layout``.
    """
    for module, parts in _adapted_layers(model):
        shared = len(parts) > 1  # q, k and v under one A: their B side by side
        a = get(f"{parts[0].rpartition('.')[0] if shared else parts[0]}.lora_a")
        b = np.concatenate([np.asarray(get(f"{part}.lora_b"), np.float32) for part in parts])
        yield f"{_WRAPPER}{module}.lora_A.weight", np.ascontiguousarray(a, np.float32)
        yield f"{_WRAPPER}{module}.lora_B.weight", b
    if new_tokens:
        for module, rows in _new_rows(model).items():
            name = f"{_WRAPPER}{module}.token_adapter.trainable_tokens_delta"  # "delta", yet the rows themselves
            yield name, np.ascontiguousarray(get(rows), np.float32)


def to_peft_config(config: Config, model: ModelConfig) -> dict[str, Any]:
    """``adapter_config.json`` of a run whose resolved model is ``model``."""
    lora = config.lora
    new_ids = list(range(model.vocab_size - lora.new_tokens, model.vocab_size))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model(config),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": family_of(model) == "gpt2",  # its Conv1D keeps [in, out]
        "target_modules": sorted({module.rpartition(".")[2] for module, _ in _adapted_layers(model)}),
        "trainable_token_indices": {
            module.rpartition(".")[2]: new_ids for module in _new_rows(model) if lora.new_tokens
        }
        or None,
        "modules_to_save": None,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
    }


def base_model(config: Config) -> str:
    """What ``--init_from`` named, as the run keeps it; of an absolute path the last part, for the rest is private."""
    name = config.data.tokenizer
    return Path(name).name if Path(name).is_absolute() else name


def write_peft_directory(
    directory: Path | str,
    config: Config,
    model: ModelConfig,
    get: Callable[[str], np.ndarray],
    tokenizer: SavableTokenizer,
    card: str,
) -> None:
    """Write the adapter of a run so that ``peft.PeftModel.from_pretrained`` loads it; whole or not at all.

    Args:
      directory: made, or replaced if it holds an adapter already.
      config: the run, with its ``lora`` section.
      model: resolved, of the adapted model.
      get: returns the parameter (NumPy array) of a canonical name, see ``scratchgpt.hf_layout``.
      tokenizer: written beside it, since fine-tuning may have added tokens and a chat template to the base model's.
      card: text of README.md.

    Raises UserError for weights that are not finite, a directory that holds anything else, and a full disk.
    """
    directory = Path(directory)
    check_replaceable(directory)
    with atomic_path(directory) as temporary:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process that had our number
        temporary.mkdir()
        write_json(temporary / CONFIG, to_peft_config(config, model))
        tokenizer.save(temporary, model.context_length)
        write_text(temporary / "README.md", card)
        write_safetensors(temporary / WEIGHTS, lambda: to_peft_tensors(model, config.lora.new_tokens, get))


def check_replaceable(directory: Path) -> None:
    """Raise UserError unless ``directory`` is missing, empty, or an adapter without a model in it."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    if not (directory / CONFIG).is_file() or (directory / "config.json").exists():
        raise UserError(f"{directory} exists and is not the directory of an adapter: name another --out")


def adapter_card(
    config: Config,
    model: ModelConfig,
    rows: list[dict[str, Any]],
    step: int,
    *,
    command: str | None = None,
    repo_id: str | None = None,
) -> str:
    """README.md of an adapter: what it stands on, how it was trained, how to load it. Arguments as for model_card."""
    m = resolve_model(model)
    base, lora, train = base_model(config), config.lora, config.train
    where = json.dumps(repo_id or "DIR")
    learned = f"Adapters of rank {lora.rank} (alpha {lora.alpha:g}) stand beside every linear layer of its blocks"
    loading = "`AutoPeftModelForCausalLM` puts the two together:"
    if lora.new_tokens:
        learned += f", and the embeddings of the tokens that are new in its vocabulary ({lora.new_tokens}) are its own"
        loading = (
            f"The tokenizer beside this file has {m.vocab_size:,} tokens, the base model's"
            f" {m.vocab_size - lora.new_tokens:,}: the model must have as many rows before the adapter is put on, by"
            " `base.resize_token_embeddings(len(tokenizer))`. `AutoPeftModelForCausalLM` does that too:"
        )
    told = "".join(f" The {name} is {value}." for name, value in losses(rows, step).items())
    parts = [
        f"---\nlibrary_name: peft\nbase_model: {json.dumps(base)}\npipeline_tag: text-generation\ntags:\n- scratchgpt\n"
        f"- lora\n- {family_of(m)}\n---",
        f"# {repo_id.split('/')[-1] if repo_id else f'A LoRA adapter for {base}'}",
        f"A low-rank adapter for the {family_of(m)} model `{base}`, trained with ScratchGPT on {config.data.dataset}."
        f" {learned}.",
        f"It is of step {step:,} of {train.steps:,}, {train.batch_size:,} sequences each.{told}",
        *training_command(command),
        "## Usage",
        f"The base model is needed beside it: if `{base}` is not where you are, write its directory or hub id into"
        f" `{CONFIG}` as base_model_name_or_path. {loading}",
        fenced(
            "python",
            "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n"
            f"model = AutoPeftModelForCausalLM.from_pretrained({where})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({where})",
        ),
        "`model.merge_and_unload()` gives the model without adapters, the same that `python -m jaxgpt.export` writes"
        " without --adapter.",
    ]
    return "\n\n".join(parts) + "\n"
