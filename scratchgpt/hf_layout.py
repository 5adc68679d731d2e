"""Our model families in the layout of their Hugging Face classes: ``config.json`` and tensor names.

Parameters have one canonical name and orientation in this project, those of ``torchgpt.model.GPT.state_dict()``
(V tokens, D wide, H heads of K, G key/value heads, F MLP width, C context):

    token_embedding.weight [V, D]        position_embedding.weight [C, D] (learned positions only)
    blocks.{i}.attn_norm.weight [D]      .bias [D]
    blocks.{i}.attn.q.weight [H*K, D]    .k.weight, .v.weight [G*K, D]    .o.weight [D, H*K]    and their .bias
    blocks.{i}.attn.q_norm.weight [K]    .k_norm.weight [K] (qwen3 only)
    blocks.{i}.mlp_norm.weight [D]       .bias [D]
    blocks.{i}.mlp.up.weight [F, D]      .gate.weight [F, D] (swiglu only)    .down.weight [D, F]    and their .bias
    final_norm.weight [D]                .bias [D]
    head.weight [V, D] (untied only)     score.weight [labels, D] (classifiers only, in place of the head)

and, where LoRA adapters (Hu et al. 2021) of rank R stand beside the linear layers, which then keep their weights:

    blocks.{i}.attn.q.lora_a [R, D]      .lora_b [H*K, R]    and so on for every linear layer, [R, in] and [out, R]
    blocks.{i}.attn.lora_a [R, D]        (gpt2 only: q, k and v, one layer in its class, share it)
    token_embedding_new [N, D]           head_new [N, D] (untied only): rows of the last N tokens of the vocabulary

The functions use only ``.T``, ``.reshape`` and slicing, so they serve NumPy arrays and torch tensors alike.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from configs.schema import (
    Config,
    ConfigError,
    ModelConfig,
    TrainConfig,
    family_of,
    llama,
    nanochat,
    qwen3,
    resolve_model,
    validate,
)
from configs.schema import gpt2 as gpt2_model
from scratchgpt.errors import UserError
from scratchgpt.labels import labels_of, to_hf_labels

ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "nanochat": "NanoChatForCausalLM",
}
CLASSIFIERS = {
    "gpt2": "GPT2ForSequenceClassification",
    "llama": "LlamaForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
}


def parameter_role(name: str) -> str:
    """What a parameter is for, by its name: ``embedding``, ``head``, ``vector``, ``adapter`` (of LoRA) or ``matrix``.

    Weight decay and Muon go by this role, never by the number of dimensions. Vectors are norms' scales and all biases.
    """
    if name.startswith(("token_embedding", "position_embedding")):
        return "embedding"
    if name.startswith(("head", "score")):
        return "head"
    if name.endswith((".lora_a", ".lora_b")):
        return "adapter"
    return "vector" if name.endswith(".bias") or "norm" in name else "matrix"


def joins_qkv(model: ModelConfig) -> bool:
    """Whether q, k and v are one layer of the Hugging Face class."""
    return family_of(model) == "gpt2"


def parameter_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name and shape of every parameter of ``model``, in order, with the padded vocabulary."""
    m = resolve_model(model)
    d, q, kv = m.n_embd, m.n_head * m.head_dim, m.n_kv_head * m.head_dim

    def norm(name: str) -> dict[str, tuple[int, ...]]:
        if m.norm == "rmsnorm_plain":
            return {}
        return {f"{name}.weight": (d,)} | ({f"{name}.bias": (d,)} if m.norm == "layernorm" and m.bias else {})

    def linear(name: str, out: int, inn: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out, inn)} | ({f"{name}.bias": (out,)} if m.bias else {})

    shapes: dict[str, tuple[int, ...]] = {"token_embedding.weight": (m.padded_vocab_size, d)}
    if m.positions == "learned":
        shapes["position_embedding.weight"] = (m.context_length, d)
    for i in range(m.n_layer):
        b = f"blocks.{i}"
        shapes |= norm(f"{b}.attn_norm")
        shapes |= linear(f"{b}.attn.q", q, d) | linear(f"{b}.attn.k", kv, d) | linear(f"{b}.attn.v", kv, d)
        shapes |= linear(f"{b}.attn.o", d, q)
        if m.qk_norm == "before_rope":
            shapes |= {f"{b}.attn.q_norm.weight": (m.head_dim,), f"{b}.attn.k_norm.weight": (m.head_dim,)}
        shapes |= norm(f"{b}.mlp_norm") | linear(f"{b}.mlp.up", m.mlp_dim, d)
        shapes |= linear(f"{b}.mlp.gate", m.mlp_dim, d) if m.mlp == "swiglu" else {}
        shapes |= linear(f"{b}.mlp.down", d, m.mlp_dim)
    shapes |= norm("final_norm")
    if m.num_labels:
        shapes["score.weight"] = (m.num_labels, d)
    elif not m.tie_embeddings:
        shapes["head.weight"] = (m.padded_vocab_size, d)
    return shapes


# --- config.json -----------------------------------------------------------------------------------------------------


def architecture_of(model: ModelConfig) -> str:
    """The class of transformers that holds ``model``."""
    return (CLASSIFIERS if model.num_labels else ARCHITECTURES)[family_of(model)]


def to_hf_config(model: ModelConfig, end_of_text_id: int, labels: Sequence[str] = ()) -> dict[str, Any]:
    """``config.json`` of a resolved ``model``; special ids, dropout and epsilons are always written out.

    ``labels`` are the names of a classifier's labels, one for each; ValueError otherwise.
    """
    m = resolve_model(model)
    family = family_of(m)
    common = {
        "architectures": [architecture_of(m)],
        "model_type": family,
        "vocab_size": m.vocab_size,
        "tie_word_embeddings": m.tie_embeddings,
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
        "pad_token_id": end_of_text_id,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": "float32",
    }
    if len(labels) != m.num_labels:
        raise ValueError(f"{len(labels)} names for the {m.num_labels} labels of a classifier")
    if m.num_labels:
        common |= to_hf_labels(labels)
    if family == "gpt2":
        return common | {
            "n_layer": m.n_layer,
            "n_head": m.n_head,
            "n_embd": m.n_embd,
            "n_inner": m.mlp_dim,
            "n_positions": m.context_length,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": m.norm_eps,
            "resid_pdrop": m.dropout,
            "embd_pdrop": m.dropout,
            "attn_pdrop": m.dropout,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "reorder_and_upcast_attn": False,
        }
    config = common | {
        "num_hidden_layers": m.n_layer,
        "num_attention_heads": m.n_head,
        "num_key_value_heads": m.n_kv_head,
        "hidden_size": m.n_embd,
        "intermediate_size": m.mlp_dim,
        "max_position_embeddings": m.context_length,
        "rms_norm_eps": m.norm_eps,
        "rope_theta": m.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": m.rope_theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
    }
    if family == "nanochat":
        return config | {"hidden_act": "relu2", "final_logit_softcapping": m.logit_softcap or None}
    config |= {"head_dim": m.head_dim, "hidden_act": "silu"}
    return config | ({"mlp_bias": False} if family == "llama" else {"use_sliding_window": False})


# Keys of config.json that change the arithmetic in ways our families do not have, with the values (None among them:
# absent) under which they do nothing. The first table holds what transformers reads whatever the class.
_INERT_ANYWHERE: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "compression_config": (None,),
    "is_causal": (None, True),
    "per_layer_config": (None, {}),
    "fusion_config": (None, {}),
    "transformers_weights": (None,),  # names another file of weights than the one read here
    "attention_chunk_size": (None,),
    "kv_sharing_modes": (None,),
}
_INERT_GPT2: dict[str, tuple[Any, ...]] = {
    "scale_attn_by_inverse_layer_idx": (None, False),
    "scale_attn_weights": (None, True),
    "add_cross_attention": (None, False),
    "tie_word_embeddings": (None, True),
    # four names of the same tanh approximation
    "activation_function": (None, "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"),
    "sliding_window": (None,),
}
_INERT_ROPE: dict[str, tuple[Any, ...]] = {
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "use_sliding_window": (None, False),
    "partial_rotary_factor": (None, 1),
}
# What GPT2Config takes for its own keys as well.
_GPT2_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
# config.json's keys of our fields, so that what is wrong is named as it stands in the file
_ROPE_KEYS = {
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
    "head_dim": "head_dim",
    "mlp_dim": "intermediate_size",
    "context_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "tie_embeddings": "tie_word_embeddings",
    "logit_softcap": "final_logit_softcapping",
    "num_labels": "num_labels",
}
_GPT2_KEYS = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "mlp_dim": "n_inner",
    "context_length": "n_positions",
    "vocab_size": "vocab_size",
    "norm_eps": "layer_norm_epsilon",
    "num_labels": "num_labels",
}


def from_hf_config(hf: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """The resolved ModelConfig of a Hugging Face ``config.json``.

    Raises UserError naming the class, key or value that none of our families has.
    """
    family = hf.get("model_type")
    if not isinstance(family, str) or family not in ARCHITECTURES:
        raise UserError(f"{where}: model_type {family!r} is none of {', '.join(ARCHITECTURES)}")
    inert = _INERT_ANYWHERE | (_INERT_GPT2 if family == "gpt2" else _INERT_ROPE)
    if family != "qwen3":  # whose sliding_window counts only together with use_sliding_window
        inert = inert | {"sliding_window": (None,)}
    for key, values in inert.items():
        if hf.get(key) not in values:
            raise UserError(f"{where}: {key}={hf[key]!r} is a feature that ScratchGPT's {family} models do not have")
    types = hf.get("layer_types")
    if types is not None and not (isinstance(types, list) and all(t == "full_attention" for t in types)):
        raise UserError(f"{where}: layer_types={types!r} must be 'full_attention' throughout: there is no other here")
    model = _gpt2_config(hf, where) if family == "gpt2" else _rope_config(family, hf, where)
    model.num_labels = len(labels_of(hf, where))
    train = TrainConfig(objective="classify" if model.num_labels else "pretrain")
    try:
        validate(Config(model=model, train=train))
    except (ConfigError, TypeError, ZeroDivisionError) as e:
        keys = _GPT2_KEYS if family == "gpt2" else _ROPE_KEYS
        sentence = re.sub(r"\bmodel\.(\w+)", lambda m: keys.get(m[1], m[0]), str(e))
        raise UserError(f"{where}: {sentence}") from e
    return resolve_model(model)


def _positive(hf: dict[str, Any], key: str, where: str) -> int:
    value = hf.get(key)
    if type(value) is not int or value <= 0:
        raise UserError(f"{where}: {key}={value!r} must be a positive int")
    return value


def _gpt2_config(hf: dict[str, Any], where: str) -> ModelConfig:
    for alias, key in _GPT2_ALIASES.items():
        if hf.get(alias) is not None:
            if hf.get(key, hf[alias]) != hf[alias]:
                raise UserError(f"{where}: {alias}={hf[alias]!r} contradicts {key}={hf[key]!r}")
            hf = hf | {key: hf[alias]}
    width = _positive(hf, "n_embd", where)
    return gpt2_model(
        n_layer=_positive(hf, "n_layer", where),
        n_head=_positive(hf, "n_head", where),
        n_embd=width,
        mlp_dim=4 * width if hf.get("n_inner") is None else _positive(hf, "n_inner", where),
        context_length=_positive(hf, "n_positions", where),
        norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        vocab_size=_positive(hf, "vocab_size", where),
    )


def _rope_config(family: str, hf: dict[str, Any], where: str) -> ModelConfig:
    acts = ("relu2",) if family == "nanochat" else ("silu", "swish")
    if (act := hf.get("hidden_act", acts[0])) not in acts:
        raise UserError(f"{where}: hidden_act={act!r} is not what {family} models use here, which is {acts[0]!r}")
    tied = hf.get("tie_word_embeddings", False)
    if type(tied) is not bool:
        raise UserError(f"{where}: tie_word_embeddings={tied!r} must be true or false")
    heads, width = _positive(hf, "num_attention_heads", where), _positive(hf, "hidden_size", where)
    shape = dict(
        n_layer=_positive(hf, "num_hidden_layers", where),
        n_head=heads,
        n_kv_head=hf.get("num_key_value_heads") or heads,
        n_embd=width,
        head_dim=hf.get("head_dim") or (128 if family == "qwen3" else width // heads),
        mlp_dim=_positive(hf, "intermediate_size", where),
        context_length=_positive(hf, "max_position_embeddings", where),
        norm_eps=hf.get("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(hf, where),
        vocab_size=_positive(hf, "vocab_size", where),
        tie_embeddings=tied,
    )
    if family != "nanochat":
        return (llama if family == "llama" else qwen3)(**shape)
    cap = hf.get("final_logit_softcapping", 15.0)
    if cap is not None and (type(cap) not in (int, float) or cap <= 0):
        raise UserError(f"{where}: final_logit_softcapping={cap!r} must be a positive number, or null for none")
    return nanochat(**shape, logit_softcap=cap or 0.0)


def _rope_theta(hf: dict[str, Any], where: str) -> Any:
    """The base of the rotary frequencies, found in the order of transformers. Raises UserError for scaled positions."""
    key = "rope_scaling" if hf.get("rope_scaling") else "rope_parameters"
    rope = hf.get(key) or {}
    if not isinstance(rope, dict):
        raise UserError(f"{where}: {key}={rope!r} must be an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"{where}: {key} has rope_type={kind!r}, and only 'default' is supported")
    for name, value in rope.items():
        inert = name in ("rope_type", "type", "rope_theta") or value is None
        if not inert and not (name == "partial_rotary_factor" and value == 1):
            raise UserError(f"{where}: {key} has {name}={value!r}, which plain rotary positions do not have")
    return rope.get("rope_theta", hf.get("rope_theta", 10_000.0))


# --- tensors ---------------------------------------------------------------------------------------------------------

# canonical suffix inside a block -> Hugging Face suffix inside a layer, for the three families with plain Linear layers
_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn.q.weight": "self_attn.q_proj.weight",
    "attn.k.weight": "self_attn.k_proj.weight",
    "attn.v.weight": "self_attn.v_proj.weight",
    "attn.o.weight": "self_attn.o_proj.weight",
    "attn.q_norm.weight": "self_attn.q_norm.weight",
    "attn.k_norm.weight": "self_attn.k_norm.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
}
_MLP = {"mlp.gate.weight": "mlp.gate_proj.weight", "mlp.up.weight": "mlp.up_proj.weight"}
_MLP |= {"mlp.down.weight": "mlp.down_proj.weight"}
_NANOCHAT_MLP = {"mlp.up.weight": "mlp.fc1.weight", "mlp.down.weight": "mlp.fc2.weight"}
_TOP = {
    "token_embedding.weight": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "score.weight": "score.weight",
}
_GPT2_TOP = {
    "token_embedding.weight": "transformer.wte.weight",
    "position_embedding.weight": "transformer.wpe.weight",
    "final_norm.weight": "transformer.ln_f.weight",
    "final_norm.bias": "transformer.ln_f.bias",
    "score.weight": "score.weight",
}
_GPT2_LAYER = {
    "attn_norm": "ln_1",
    "attn.o": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}


def hf_name(family: str, name: str) -> str:
    """Hugging Face name of a canonical parameter; q, k and v of gpt2 share one."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if family == "gpt2":
        if not match:
            return _GPT2_TOP[name]
        part, kind = match[2].rsplit(".", 1)
        return f"transformer.h.{match[1]}.{_GPT2_LAYER.get(part, 'attn.c_attn')}.{kind}"
    if not match:
        return _TOP[name]
    table = _LAYER | (_NANOCHAT_MLP if family == "nanochat" else _MLP)
    return f"model.layers.{match[1]}.{table[match[2]]}"


def to_hf_tensors(model: ModelConfig, get: Callable[[str], np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (Hugging Face name, float32 array) for every tensor of a resolved ``model``.

    ``get`` returns the canonical parameter of a name; rows past the vocabulary are cut. gpt2's linear layers are
    transposed (its Conv1D stores [in, out]), q, k and v joined, and biases that the model lacks written as zeros.
    """
    m = resolve_model(model)
    family = family_of(m)
    for name in parameter_shapes(m):
        part, kind = name.rsplit(".", 1)
        if family == "gpt2" and part.endswith((".attn.k", ".attn.v")):
            continue  # written together with q
        if family == "gpt2" and part.endswith(".attn.q"):
            array = np.concatenate([np.asarray(get(f"{part[:-1]}{p}.{kind}"), np.float32) for p in "qkv"])
        else:
            array = np.asarray(get(name), np.float32)
        if name in ("token_embedding.weight", "head.weight"):
            array = array[: m.vocab_size]
        if family != "gpt2":
            yield hf_name(family, name), np.ascontiguousarray(array)
            continue
        is_linear = parameter_role(name) == "matrix"
        yield hf_name(family, name), np.ascontiguousarray(array.T if is_linear else array)
        if not m.bias and "embedding" not in part and part != "score":
            yield hf_name(family, f"{part}.bias"), np.zeros(array.shape[0], np.float32)


def from_hf_tensors(model: ModelConfig, get: Callable[[str], Any], names: set[str]) -> Iterator[tuple[str, Any]]:
    """Yield (canonical name, array) for every parameter of a resolved ``model``; the reverse of :func:`to_hf_tensors`.

    Args:
      get: returns the tensor (NumPy or torch) of a Hugging Face name.
      names: every tensor name in the directory.

    Raises UserError for missing, left-over or wrongly shaped tensors, and for a tied head that differs from the
    embedding. The vocabulary is the model's, without padding.
    """
    m = resolve_model(model)
    m.padded_vocab_size = m.vocab_size
    family = family_of(m)
    # Base models are saved without their prefix; buffers and a tied head's copy carry no information.
    base = "transformer." if family == "gpt2" else "model."
    bare = not any(n.startswith(base) for n in names)
    used: set[str] = set()
    head = "lm_head.weight"

    def fetch(hf: str) -> Any:
        stored = hf.removeprefix(base) if bare else hf
        if stored not in names and m.tie_embeddings and hf == hf_name(family, "token_embedding.weight"):
            stored = head  # some tools keep this name of the one tensor that both are
        if stored not in names:
            raise UserError(f"the model directory lacks the tensor {stored!r}")
        used.add(stored)
        return get(stored)

    for name, shape in parameter_shapes(m).items():
        array = fetch(hf_name(family, name))
        if family == "gpt2" and parameter_role(name) == "matrix":
            array = array.T
        fused = re.search(r"\.attn\.([qkv])\.", name) if family == "gpt2" else None
        if fused and tuple(array.shape) == (3 * shape[0], *shape[1:]):
            start = "qkv".index(fused[1]) * shape[0]
            array = array[start : start + shape[0]]
        if tuple(array.shape) != shape:
            raise UserError(f"the tensor for {name} has shape {tuple(array.shape)}, config.json implies {shape}")
        if name == "token_embedding.weight" and m.tie_embeddings and head in names - used:
            copy = get(head)  # where it differs, transformers takes it for a head of its own, whatever config.json says
            if tuple(copy.shape) != shape or not (copy == array).all():
                raise UserError(f"config.json says tie_word_embeddings=true, but {head!r} differs from the embedding")
            del copy
        yield name, array
    harmless = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias)")
    tied = {head} if m.tie_embeddings else set()
    if left := sorted(n for n in names - used - tied if not harmless.fullmatch(n)):
        raise UserError(f"the model directory has {len(left)} tensors that {family} does not, such as {left[0]!r}")
