"""The typed schema of a run.

A run file (``configs/small.py`` and its neighbours) defines ``get_config()`` and returns a :class:`Config`. Every key
can be overridden on the command line: ``--config.optim.learning_rate=3e-4``. :func:`validate` refuses wrong types and
impossible values before anything is compiled; unknown keys fail when they are set, because the classes have slots.
"""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from typing import Any


class ConfigError(ValueError):
    """A configuration that cannot run. The message names the key, the value and what would be valid."""


def _choice(default: str, *others: str) -> Any:
    return field(default=default, metadata={"choices": (default, *others)})


def _number(default: float, low: float | None = None, high: float | None = None) -> Any:
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(slots=True, unsafe_hash=True)  # hashable, for jax.jit; copied, not changed, once a run has begun
class ModelConfig:
    """Shape and arithmetic of the transformer. Use :func:`gpt2`, :func:`llama`, :func:`qwen3` or :func:`nanochat`."""

    n_layer: int = _number(4, 1)
    n_head: int = _number(4, 1)
    n_kv_head: int = _number(0, 0)  # key/value heads (grouped-query attention); 0: n_head
    n_embd: int = _number(128, 1)  # width of the residual stream
    head_dim: int = _number(0, 0)  # 0: n_embd / n_head
    mlp_dim: int = _number(0, 0)  # hidden width of the MLP; 0: 4 n_embd, or 8/3 n_embd rounded up to 64 for swiglu
    context_length: int = _number(256, 1)  # longest sequence the model has positions for
    vocab_size: int = _number(0, 0)  # tokens the model can predict; 0: as many as the tokenizer has
    padded_vocab_size: int = _number(0, 0)  # rows of the embedding, for alignment; 0: vocab_size
    positions: str = _choice("learned", "rope")
    rope_theta: float = _number(10_000.0, 1.0)
    norm: str = _choice("layernorm", "rmsnorm", "rmsnorm_plain")  # plain: no learned scale
    norm_eps: float = _number(1e-5, 0.0, 1.0)
    mlp: str = _choice("gelu", "swiglu", "relu2")
    qk_norm: str = _choice("none", "before_rope", "after_rope")
    bias: bool = True  # biases in linear layers and LayerNorm
    tie_embeddings: bool = True
    embedding_norm: bool = False  # one more norm right after the embedding
    logit_softcap: float = _number(0.0, 0.0)  # c tanh(logits / c); 0: off
    dropout: float = _number(0.0, 0.0, 0.99)
    num_labels: int = _number(0, 0)  # classes of a classifier, which has a score for each and no head; 0: writes text


@dataclass(slots=True)
class DataConfig:
    """Which text, and which tokens it becomes. See ``python -m data_prep.prepare --help``."""

    dataset: str = "shakespeare"  # a named data set, or a name of your own together with `source`
    source: str = ""  # a local file, folder or glob, or a Hugging Face data set id; empty: the data set's own
    text_column: str = "text"
    tokenizer: str = "char"  # char, gpt2, or a directory that holds tokenizer.json
    dir: str = ""  # where the token shards lie; empty: data/<dataset>-<tokenizer>
    val_fraction: float = _number(0.1, 0.0, 0.9)
    max_tokens: int = _number(0, 0)  # stop preparing after this many tokens; 0: all of the source


@dataclass(slots=True)
class TrainConfig:
    """Length, batch and arithmetic of the training run."""

    # pretrain: every next token of a text; sft: the answers of conversations; dpo: the better of two answers;
    # classify: the label of a text
    objective: str = _choice("pretrain", "sft", "dpo", "classify")
    steps: int = _number(1000, 1)
    batch_size: int = _number(32, 1, 2**24)  # sequences per optimizer step, over all devices
    micro_batch_size: int = _number(0, 0)  # sequences per forward pass, over all devices; 0: batch_size
    sequence_length: int = _number(0, 0)  # tokens per training sequence; 0: model.context_length
    # windows: of the contiguous text; best_fit: whole documents side by side, each of which attends to itself alone
    packing: str = _choice("windows", "best_fit")
    seed: int = _number(1337, 0, 2**31)
    # in a row, with a loss or gradient that is not finite: none of them is applied, and with the last the run ends
    max_nonfinite_steps: int = _number(5, 1)
    # of activations. auto: bfloat16 on GPU and TPU; float16, for GPUs without bfloat16, scales the loss as it goes
    dtype: str = _choice("auto", "float32", "bfloat16", "float16", "float64")
    # what the backward pass recomputes to save memory. block: every block; dots: all but the products with weights
    remat: str = _choice("none", "block", "dots")
    loss_chunk: int = _number(0, 0)  # positions of a device whose logits exist at once, to save memory; 0: all
    unroll_layers: bool = False  # compile each layer on its own: longer compilation, sometimes a faster step


@dataclass(slots=True)
class ClassifyConfig:
    """Classification fine-tuning: rows with a text (``data.text_column``) and a label."""

    label_column: str = "label"
    trained: str = _choice("all", "head")  # head: only the scores' weights, on top of a model that stays as it is
    test_fraction: float = _number(0.2, 0.0, 0.9)  # of the texts, for the figures of the finished model


@dataclass(slots=True)
class DPOConfig:
    """Direct preference optimization, where ``train.objective`` is dpo."""

    beta: float = _number(0.1, 0.0)  # reward of one nat of log-probability over the reference; small: stray further


@dataclass(slots=True)
class LoraConfig:
    """Low-rank adapters beside every linear layer of the blocks; they learn instead of the model (Hu et al. 2021)."""

    rank: int = _number(0, 0)  # 0: no adapters, the model itself learns
    alpha: float = _number(16.0, 0.0)  # a layer computes x W + (x A) B alpha / rank
    new_tokens: int = _number(0, 0)  # last tokens of the vocabulary, whose embeddings learn too; set by --init_from


@dataclass(slots=True)
class OptimConfig:
    """AdamW for everything, or Muon for the matrices inside the blocks and AdamW for the rest."""

    optimizer: str = _choice("adamw", "muon")
    learning_rate: float = _number(1e-3, 0.0)  # AdamW's peak
    embedding_learning_rate: float = _number(0.0, 0.0)  # 0: learning_rate
    head_learning_rate: float = _number(0.0, 0.0)  # 0: learning_rate
    muon_learning_rate: float = _number(0.02, 0.0)
    muon_momentum: float = _number(0.95, 0.0, 1.0)
    schedule: str = _choice("cosine", "linear", "constant")  # linear: constant, then down to min_lr_ratio
    warmup_steps: int = _number(0, 0)
    decay_fraction: float = _number(0.6, 0.0, 1.0)  # share of the run that `linear` decays over
    min_lr_ratio: float = _number(0.1, 0.0, 1.0)  # last learning rate / peak
    weight_decay: float = _number(0.1, 0.0)
    beta1: float = _number(0.9, 0.0, 1.0)
    beta2: float = _number(0.99, 0.0, 1.0)
    eps: float = _number(1e-8, 0.0)
    clip_norm: float = _number(1.0, 0.0)  # global gradient norm; 0: no clipping


@dataclass(slots=True)
class EvalConfig:
    """Validation during training."""

    every: int = _number(250, 0)  # steps; 0: only at the end
    patience: int = _number(0, 0)  # end the run after so many validations in a row without a new best; 0: never
    max_tokens: int = _number(0, 0)  # validate on the first so many tokens of the split; 0: all of it
    batch_size: int = _number(0, 0)  # sequences per forward pass; 0: train's micro batch
    task: str = ""  # questions that the first and the best model answer: hellaswag, another of configs/tasks, or a file
    task_data: str = ""  # where its rows lie; empty: the task's own source on the hub
    task_rows: int = _number(0, 0)  # the first so many; 0: all


@dataclass(slots=True)
class CheckpointConfig:
    """What is kept of the training state. The checkpoint of the best validation loss is always kept as well."""

    every: int = _number(500, 1)  # steps
    keep: int = _number(2, 1)  # latest checkpoints kept


@dataclass(slots=True)
class LogConfig:
    """Terminal lines, metrics.jsonl, Weights & Biases and TensorBoard."""

    every: int = _number(10, 1)  # steps
    wandb: str = _choice("off", "auto", "online", "offline")  # auto: online with a key at hand, else offline
    wandb_project: str = "scratchgpt"
    wandb_artifacts: bool = False  # upload the exported model and the checkpoint it was made from
    tensorboard: bool = False  # write event files into the workdir
    report: bool = True  # write a page about the run, report/report.html, at its end


@dataclass(slots=True)
class SampleConfig:
    """The text written at the end of training, into samples.txt, and at every validation, into samples.jsonl."""

    prompt: str = "\n"
    max_new_tokens: int = _number(500, 0)
    during: int = _number(100, 0)  # max_new_tokens at every validation; 0: nothing is written then
    temperature: float = _number(0.8, 0.0)
    top_k: int = _number(0, 0)  # 0: all
    top_p: float = _number(1.0, 0.0, 1.0)
    num_samples: int = _number(1, 1)


@dataclass(slots=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1: all that are left."""

    data: int = _number(-1, -1)
    fsdp: int = _number(1, -1)
    tensor: int = _number(1, -1)
    cpu_devices: int = _number(1, 1, 256)  # XLA devices to split a CPU into, to try a mesh without accelerators


@dataclass(slots=True)
class Config:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    dpo: DPOConfig = field(default_factory=DPOConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)


# What each family fixes. A field that is missing here is free within the family; dropout is a feature of gpt2 alone.
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": dict(
        positions="learned",
        norm="layernorm",
        mlp="gelu",
        qk_norm="none",
        tie_embeddings=True,
        embedding_norm=False,
        logit_softcap=0.0,
    ),
    "llama": dict(
        positions="rope",
        norm="rmsnorm",
        mlp="swiglu",
        qk_norm="none",
        bias=False,
        embedding_norm=False,
        logit_softcap=0.0,
        dropout=0.0,
    ),
    "qwen3": dict(
        positions="rope",
        norm="rmsnorm",
        mlp="swiglu",
        qk_norm="before_rope",
        bias=False,
        embedding_norm=False,
        logit_softcap=0.0,
        dropout=0.0,
    ),
    "nanochat": dict(
        positions="rope",
        norm="rmsnorm_plain",
        mlp="relu2",
        qk_norm="after_rope",
        bias=False,
        tie_embeddings=False,
        embedding_norm=True,
        dropout=0.0,
    ),
}


def gpt2(**fields: Any) -> ModelConfig:
    """Learned positions, LayerNorm, GELU (tanh), tied head (Radford et al. 2019)."""
    return ModelConfig(**{**FAMILIES["gpt2"], **fields})


def llama(**fields: Any) -> ModelConfig:
    """RoPE, RMSNorm, SwiGLU, grouped-query attention (Touvron et al. 2023)."""
    return ModelConfig(**{**FAMILIES["llama"], "tie_embeddings": False, **fields})


def qwen3(**fields: Any) -> ModelConfig:
    """Llama with a learned RMSNorm on every query and key head (Qwen3, Yang et al. 2025)."""
    return ModelConfig(**{**FAMILIES["qwen3"], "tie_embeddings": False, "norm_eps": 1e-6, **fields})


def nanochat(**fields: Any) -> ModelConfig:
    """RoPE then parameter-free QK-norm, ReLU squared, parameter-free RMSNorm, logits soft-capped (Karpathy 2025)."""
    return ModelConfig(**{**FAMILIES["nanochat"], "logit_softcap": 15.0, "norm_eps": 1e-6, **fields})


def family_of(model: ModelConfig) -> str:
    """Name of the family whose Hugging Face class can hold ``model``.

    Raises ConfigError naming the field that stands in the way, judged against the nearest family.
    """

    def misfits(name: str) -> list[str]:
        return [key for key, value in FAMILIES[name].items() if getattr(model, key) != value]

    name = min(FAMILIES, key=lambda n: len(misfits(n)))
    if wrong := misfits(name):
        key = wrong[0]
        raise ConfigError(
            f"model.{key}={getattr(model, key)!r} fits no model family: with the other fields as they are, the nearest"
            f" is {name}, which needs model.{key}={FAMILIES[name][key]!r}"
        )
    return name


def resolve_model(model: ModelConfig, tokenizer_size: int = 0) -> ModelConfig:
    """A copy of ``model`` with every 0-means-default size filled in.

    Args:
      model: the model section of a run's configuration.
      tokenizer_size: number of tokens of the data's tokenizer; 0: not known yet, vocab_size stays as it is.

    Raises ConfigError where the vocabulary is smaller than the tokenizer's, or larger (it may only be padded).
    """
    resolved = dataclasses.replace(model)
    resolved.n_kv_head = model.n_kv_head or model.n_head
    resolved.head_dim = model.head_dim or model.n_embd // model.n_head
    if not model.mlp_dim:
        wide = -(-model.n_embd * 8 // 3 // 64) * 64
        resolved.mlp_dim = wide if model.mlp == "swiglu" else 4 * model.n_embd
    if tokenizer_size:
        if model.vocab_size not in (0, tokenizer_size):
            raise ConfigError(
                f"model.vocab_size={model.vocab_size} is not the tokenizer's {tokenizer_size}: leave it at 0, and set"
                " model.padded_vocab_size for a larger embedding"
            )
        resolved.vocab_size = tokenizer_size
    resolved.padded_vocab_size = model.padded_vocab_size or resolved.vocab_size
    if resolved.padded_vocab_size < resolved.vocab_size:
        raise ConfigError(
            f"model.padded_vocab_size={resolved.padded_vocab_size} is smaller than the vocabulary of"
            f" {resolved.vocab_size}"
        )
    return resolved


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict of a configuration, as ``config.json`` stores it."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> Config:
    """The configuration stored by :func:`to_dict`. Raises ConfigError on unknown keys, wrong types, bad values."""
    config = Config()
    if not isinstance(values, dict):
        raise ConfigError(f"a configuration must be an object with sections, not {type(values).__name__}")
    for section, entries in values.items():
        if not isinstance(entries, dict):
            raise ConfigError(f"{section} must be a section with keys, not {entries!r}")
        for key, value in entries.items():
            check_key(f"{section}.{key}")
            setattr(getattr(config, section), key, value)
        check_key(section)
    return validate(config)


def all_keys() -> list[str]:
    """Every dotted key, such as ``model.n_layer``."""
    return [f"{s.name}.{f.name}" for s in dataclasses.fields(Config) for f in dataclasses.fields(s.default_factory)]


def check_key(key: str) -> None:
    """Raise ConfigError, naming the nearest valid key, unless ``key`` is a section or a dotted key of the schema."""
    keys = all_keys()
    sections = [s.name for s in dataclasses.fields(Config)]
    if key in keys or key in sections:
        return
    section, _, name = key.rpartition(".")
    names = [k.split(".")[1] for k in keys if k.split(".")[0] == section]
    elsewhere = difflib.get_close_matches(name, [k.split(".")[1] for k in keys], n=1, cutoff=0.8)
    near = [f"{section}.{n}" for n in difflib.get_close_matches(name, names, n=1)]
    near = near or [k for k in keys if k.split(".")[1] in elsewhere]
    if names and not near:
        raise ConfigError(f"unknown configuration key {key!r}; the keys of {section!r} are {', '.join(names)}")
    near = near or difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
    raise ConfigError(f"unknown configuration key {key!r}; the nearest valid key is {near[0]!r}")


def _check_types(section_name: str, section: Any) -> None:
    hints = typing.get_type_hints(type(section))
    for f in dataclasses.fields(section):
        key, value, wanted = f"{section_name}.{f.name}", getattr(section, f.name), hints[f.name]
        if isinstance(wanted, types.UnionType):
            raise TypeError(f"schema: {key} must have one plain type")
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
            setattr(section, f.name, value)
        if type(value) is not wanted:
            raise ConfigError(f"{key}={value!r} must be of type {wanted.__name__}, not {type(value).__name__}")
        choices = f.metadata.get("choices")
        if choices and value not in choices:
            near = difflib.get_close_matches(value, choices, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{key}={value!r} must be one of {', '.join(choices)}; the nearest is {near!r}")
        low, high = f.metadata.get("low"), f.metadata.get("high")
        if wanted is int and abs(value) > 2**40:
            raise ConfigError(f"{key}={value!r} is larger than anything that could run")
        if wanted is float and not abs(value) <= 1e38:
            raise ConfigError(f"{key}={value!r} must be a finite number that float32 can hold")
        if low is not None and value < low:
            raise ConfigError(f"{key}={value!r} must be at least {low}")
        if high is not None and value > high:
            raise ConfigError(f"{key}={value!r} must be at most {high}")


def _divisors_near(n: int, wanted: int) -> str:
    below = max(d for d in range(1, wanted + 1) if n % d == 0)
    above = min((d for d in range(wanted, n + 1) if n % d == 0), default=below)
    return str(below) if below == above else f"{below} or {above}"


def validate(config: Config) -> Config:
    """Check every type, range and cross-field rule that needs neither data nor devices.

    Returns ``config`` itself. Raises ConfigError with one sentence naming the key and its value.
    """
    for section in dataclasses.fields(Config):
        value = getattr(config, section.name)
        if type(value) is not section.default_factory:
            raise ConfigError(
                f"{section.name} must be a {section.default_factory.__name__}, not {type(value).__name__}"
            )
        _check_types(section.name, value)
    check_model(config.model)
    train = config.train
    micro = train.micro_batch_size or train.batch_size
    if train.batch_size % micro:
        raise ConfigError(
            f"train.micro_batch_size={micro} does not divide train.batch_size={train.batch_size}; nearest:"
            f" {_divisors_near(train.batch_size, min(micro, train.batch_size))}"
        )
    if train.sequence_length > config.model.context_length:
        raise ConfigError(
            f"train.sequence_length={train.sequence_length} is longer than model.context_length="
            f"{config.model.context_length}"
        )
    classifies = train.objective == "classify"
    if classifies and family_of(config.model) == "nanochat":
        raise ConfigError(
            "train.objective='classify': transformers has no classifier of the nanochat family, so the model could not"
            " be exported; use one of the families gpt2, llama and qwen3"
        )
    if config.model.num_labels and not classifies:
        raise ConfigError(f"model.num_labels={config.model.num_labels} needs train.objective=classify")
    if classifies and config.classify.test_fraction + config.data.val_fraction >= 1:
        raise ConfigError(
            f"classify.test_fraction={config.classify.test_fraction} and data.val_fraction={config.data.val_fraction}"
            " leave nothing to train on"
        )
    if classifies and config.eval.task:
        raise ConfigError(f"eval.task={config.eval.task!r}: a classifier writes no text and answers no questions")
    for key in ("task_rows", "task_data"):
        if getattr(config.eval, key) and not config.eval.task:
            raise ConfigError(f"eval.{key}={getattr(config.eval, key)} needs eval.task")
    if config.dpo.beta == 0:
        raise ConfigError("dpo.beta=0.0 must be greater than 0")
    if config.lora.rank and config.lora.alpha == 0:
        raise ConfigError("lora.alpha=0.0 must be greater than 0: with it no adapter could have an effect")
    if config.sample.top_p == 0:
        raise ConfigError("sample.top_p=0.0 must be greater than 0")
    if config.optim.warmup_steps > train.steps:
        raise ConfigError(f"optim.warmup_steps={config.optim.warmup_steps} exceeds train.steps={train.steps}")
    axes = {"data": config.mesh.data, "fsdp": config.mesh.fsdp, "tensor": config.mesh.tensor}
    for name, size in axes.items():
        if size == 0:
            raise ConfigError(f"mesh.{name}=0 must be a number of devices, or -1 for all that are left")
    if list(axes.values()).count(-1) > 1:
        raise ConfigError(f"mesh: only one axis may be -1, not {axes}")
    return config


def check_model(model: ModelConfig) -> None:
    """The rules among the fields of a model. Raises ConfigError."""
    family = family_of(model)
    if model.n_embd % model.n_head and (family in ("gpt2", "nanochat") or not model.head_dim):
        raise ConfigError(
            f"model.n_head={model.n_head} does not divide model.n_embd={model.n_embd}; nearest:"
            f" {_divisors_near(model.n_embd, min(model.n_head, model.n_embd))}"
        )
    if model.n_kv_head and model.n_head % model.n_kv_head:
        raise ConfigError(
            f"model.n_kv_head={model.n_kv_head} does not divide model.n_head={model.n_head}; nearest:"
            f" {_divisors_near(model.n_head, min(model.n_kv_head, model.n_head))}"
        )
    resolved = resolve_model(model)
    if family == "gpt2" and resolved.n_kv_head != resolved.n_head:
        raise ConfigError(f"model.n_kv_head={model.n_kv_head}: the gpt2 family has no grouped heads; use 0")
    if family in ("gpt2", "nanochat") and resolved.head_dim * resolved.n_head != resolved.n_embd:
        raise ConfigError(f"model.head_dim={model.head_dim}: the {family} family has n_embd / n_head; use 0")
    if resolved.positions == "rope" and resolved.head_dim % 2:
        raise ConfigError(f"model.head_dim={resolved.head_dim} must be even: rotary positions turn pairs")
    if model.num_labels == 1:
        raise ConfigError("model.num_labels=1: a classifier needs at least two labels; 0 is a language model")
    if model.norm_eps <= 0:
        raise ConfigError(f"model.norm_eps={model.norm_eps} must be greater than 0")


def check_lora(lora: LoraConfig, model: ModelConfig) -> None:
    """Raise ConfigError for adapters of a rank that the narrowest matrix of ``model`` cannot have."""
    m = resolve_model(model)
    sides = {"n_embd": m.n_embd, "n_head * head_dim": m.n_head * m.head_dim, "mlp_dim": m.mlp_dim}
    sides["n_kv_head * head_dim"] = m.n_kv_head * m.head_dim
    name, side = min(sides.items(), key=lambda item: item[1])
    if lora.rank > side:
        raise ConfigError(
            f"lora.rank={lora.rank} is larger than the model's matrices, the narrowest of which has model.{name}={side}"
        )


def count_parameters(model: ModelConfig) -> int:
    """Number of trained numbers of a resolved ``model`` (padded rows of the vocabulary included)."""
    m = resolve_model(model)
    d, q, kv = m.n_embd, m.n_head * m.head_dim, m.n_kv_head * m.head_dim
    norm = {"layernorm": d * (2 if m.bias else 1), "rmsnorm": d, "rmsnorm_plain": 0}[m.norm]
    attention = d * q + 2 * d * kv + q * d + (q + 2 * kv + d if m.bias else 0)
    attention += 2 * m.head_dim if m.qk_norm == "before_rope" else 0
    mlp = (3 if m.mlp == "swiglu" else 2) * d * m.mlp_dim + (m.mlp_dim + d if m.bias else 0)
    embeddings = m.padded_vocab_size * d * (1 if m.tie_embeddings or m.num_labels else 2)
    embeddings += m.num_labels * d
    embeddings += m.context_length * d if m.positions == "learned" else 0
    return embeddings + m.n_layer * (attention + mlp + 2 * norm) + norm
