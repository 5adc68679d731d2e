"""Wrong configurations are refused, naming the key, the value and what is near."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import schema
from configs.schema import Config, ConfigError, gpt2, llama, nanochat, qwen3, resolve_model, validate
from scratchgpt.hf_layout import from_hf_config, parameter_shapes, to_hf_config

ROOT = Path(__file__).resolve().parents[2]
RUN_FILES = sorted(p for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "schema"))


def load(path: Path) -> Config:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda p: p.stem)
def test_every_run_file_is_valid_and_survives_json(path):
    config = validate(load(path))
    assert schema.from_dict(schema.to_dict(config)) == config


@pytest.mark.parametrize(
    ("name", "vocabulary", "low", "high"),
    [
        ("shakespeare_char", 66, 10.6e6, 10.8e6),
        ("fineweb_edu_16m", 50257, 16.0e6, 16.5e6),
        ("gpt2_124m", 50257, 124.0e6, 125.0e6),
        ("large", 50257, 1.05e9, 1.07e9),
    ],
)
def test_shipped_sizes(name, vocabulary, low, high):
    model = resolve_model(load(ROOT / "configs" / f"{name}.py").model, vocabulary)
    assert low < schema.count_parameters(model) < high


def test_fineweb_edu_16m_sees_32768_tokens_a_step():
    config = load(ROOT / "configs" / "fineweb_edu_16m.py")
    assert config.train.batch_size * config.train.sequence_length == 32_768


BAD = [
    ("model.n_head", 5, "n_head=5 does not divide model.n_embd=128; nearest: 4 or 8"),
    ("model.context_length", 0, "context_length=0 must be at least 1"),
    ("model.n_layer", "two", "must be of type int"),
    ("model.bias", 1, "must be of type bool"),
    ("model.positions", "learnt", "the nearest is 'learned'"),
    ("model.norm", "rmsnorm", "model."),
    ("model.n_kv_head", 2, "gpt2 family has no grouped heads"),
    ("model.head_dim", 16, "head_dim=16"),
    ("model.dropout", 1.5, "must be at most"),
    ("model.norm_eps", 0.0, "greater than 0"),
    ("optim.learning_rate", float("nan"), "finite"),
    ("optim.learning_rate", -1.0, "at least 0.0"),
    ("optim.warmup_steps", 5000, "exceeds train.steps"),
    ("train.batch_size", 0, "at least 1"),
    ("train.micro_batch_size", 5, "does not divide train.batch_size=32; nearest: 4 or 8"),
    ("train.sequence_length", 512, "longer than model.context_length"),
    ("train.dtype", "float31", "the nearest is 'float32'"),
    ("data.val_fraction", 1.0, "at most 0.9"),
    ("mesh.data", 0, "mesh.data=0"),
    ("mesh.fsdp", -1, "only one axis may be -1"),
    ("model.num_labels", 1, "needs at least two labels"),
    ("model.num_labels", 2, "num_labels=2 needs train.objective=classify"),
    ("classify.trained", "last", "must be one of all, head"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD, ids=lambda v: str(v)[:40])
def test_impossible_values_are_refused_by_name(key, value, message):
    config = Config()
    section, name = key.split(".")
    setattr(getattr(config, section), name, value)
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert message in str(caught.value)


def test_unknown_keys_cannot_even_be_set():
    with pytest.raises(AttributeError):
        Config().model.n_heads = 3
    with pytest.raises(ConfigError, match=r"nearest valid key is 'model.n_head'"):
        schema.check_key("model.n_heads")
    with pytest.raises(ConfigError, match=r"nearest valid key is 'optim.learning_rate'"):
        schema.check_key("train.learning_rate")


def test_combinations_that_no_class_can_hold_name_the_field():
    model = dataclasses.replace(nanochat(n_embd=64), tie_embeddings=True)
    with pytest.raises(ConfigError, match="tie_embeddings=True"):
        schema.family_of(model)


def test_classifiers_that_cannot_be_exported_or_trained_are_refused():
    config = Config(model=nanochat())
    config.train.objective = "classify"
    with pytest.raises(ConfigError, match="no classifier of the nanochat family"):
        validate(config)
    config.model = gpt2()
    validate(config)
    config.classify.test_fraction = config.data.val_fraction = 0.5
    with pytest.raises(ConfigError, match="leave nothing to train on"):
        validate(config)


def test_a_vocabulary_other_than_the_tokenizers_is_refused():
    with pytest.raises(ConfigError, match="vocab_size=100 is not the tokenizer's 66"):
        resolve_model(gpt2(vocab_size=100), 66)
    with pytest.raises(ConfigError, match="padded_vocab_size=64 is smaller"):
        resolve_model(gpt2(padded_vocab_size=64), 66)


families = st.sampled_from([gpt2, llama, qwen3, nanochat])


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    families,
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 8),
    st.integers(1, 3),
    st.integers(2, 300),
    st.booleans(),
    st.sampled_from([0, 2, 5]),
)
def test_counted_parameters_are_the_shapes(family, layers, groups, half, repeat, vocabulary, bias, labels):
    heads = groups * repeat
    fields = dict(n_layer=layers, n_head=heads, n_embd=heads * half * 2, vocab_size=vocabulary)
    fields |= dict(num_labels=0 if family is nanochat else labels)
    fields |= dict(bias=bias) if family is gpt2 else dict(n_kv_head=groups)
    model = resolve_model(family(**fields))
    schema.check_model(model)
    total = 0
    for shape in parameter_shapes(model).values():
        size = 1
        for n in shape:
            size *= n
        total += size
    assert schema.count_parameters(model) == total


@settings(derandomize=True, max_examples=40, deadline=None)
@given(families, st.integers(1, 3), st.integers(1, 4), st.integers(1, 8))
def test_hugging_face_config_round_trip(family, layers, heads, half):
    model = resolve_model(family(n_layer=layers, n_head=heads, n_embd=heads * half * 2, vocab_size=50))
    assert from_hf_config(to_hf_config(model, 49)) == model
    if family is not nanochat:
        model.num_labels = 3
        assert from_hf_config(to_hf_config(model, 49, ["a", "b", "c"])) == model
