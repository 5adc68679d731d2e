"""Directories that transformers wrote, of every shape its classes know: the same logits here, or refused by name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, AutoTokenizer

from configs.schema import Config
from data_prep.starting_point import adopt_model
from data_prep.tokenizers import char_tokenizer, load_tokenizer
from jaxgpt.loading import load_workdir
from jaxgpt.params import canonical_getter, from_canonical, merge_model
from parity_tests.directories import jax_logits, largest_difference, torch_logits, transformers_logits
from scratchgpt.errors import UserError
from scratchgpt.hf_directory import open_hf_directory, write_hf_directory
from torchgpt.hf import load_model

TOLERANCE = 1e-4  # largest |difference| of float32 logits of size 3 to 30
VOCABULARY, LENGTH = 64, 24
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (2, LENGTH), dtype=np.int32)

_ROPE_BASE = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=32,
)
BASE = {
    "gpt2": dict(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=32),
    "llama": _ROPE_BASE | dict(num_key_value_heads=2),
    "qwen3": _ROPE_BASE | dict(num_key_value_heads=2, head_dim=8),
    "nanochat": _ROPE_BASE | dict(num_key_value_heads=2),
}
ROPE = ["llama", "qwen3", "nanochat"]
CASES = []  # (family, values of config.json, what a refusal must say or None: the same logits, at load or at open)


def same(families, **values):
    CASES.extend((f, values, None) for f in ([families] if isinstance(families, str) else families))


def refused(families, *words, **values):
    CASES.extend((f, values, words or tuple(values)) for f in ([families] if isinstance(families, str) else families))


# --- GPT-2 -----------------------------------------------------------------------------------------------------------
same("gpt2")
same("gpt2", n_inner=40)
same("gpt2", n_layer=3, n_head=2, n_positions=24, vocab_size=65)
same("gpt2", n_embd=24, n_inner=None)
same("gpt2", layer_norm_epsilon=0.1)
for activation in ("gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"):
    same("gpt2", activation_function=activation)
for activation in ("gelu", "relu", "quick_gelu", "silu", "tanh"):
    refused("gpt2", activation_function=activation)
same("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)  # the logits compared are of inference
same("gpt2", reorder_and_upcast_attn=True)
refused("gpt2", scale_attn_by_inverse_layer_idx=True)
refused("gpt2", scale_attn_weights=False)
refused("gpt2", add_cross_attention=True)
refused("gpt2", tie_word_embeddings=False)
refused("gpt2", is_causal=False)
same("gpt2", hidden_size=24)  # another name of n_embd
same("gpt2", rope_theta=3.0)  # nothing reads it

# --- the three with rotary positions ---------------------------------------------------------------------------------
same(ROPE)
same(ROPE, hidden_size=48, intermediate_size=40, num_hidden_layers=3, max_position_embeddings=24, vocab_size=65)
same(ROPE, num_attention_heads=8, num_key_value_heads=1)
same(ROPE, num_key_value_heads=4)
refused(ROPE, num_key_value_heads=3)
same(ROPE, rms_norm_eps=0.1)
same(ROPE, attention_dropout=0.5)
refused(ROPE, attention_bias=True)
refused(ROPE, hidden_act="gelu")
refused("nanochat", hidden_act="silu")
refused(["llama", "qwen3"], hidden_act="relu2")
same(["llama", "qwen3"], hidden_act="swish")
same(["llama", "qwen3"], tie_word_embeddings=True)
refused("nanochat", tie_word_embeddings=True)
same(["llama", "qwen3"], head_dim=16)
same("nanochat", head_dim=8)
refused("nanochat", head_dim=16)
refused("llama", mlp_bias=True)
same("llama", pretraining_tp=4)  # of old: the same sums in slices
same("nanochat", final_logit_softcapping=None)
same("nanochat", final_logit_softcapping=5.0)
refused("nanochat", final_logit_softcapping=-3.0)
refused("nanochat", final_logit_softcapping=0.0)
same(["llama", "qwen3"], final_logit_softcapping=3.0)  # nothing reads it
refused(ROPE, is_causal=False)
refused(ROPE, per_layer_config={"1": {"rms_norm_eps": 0.5}})
refused(BASE, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
refused(BASE, transformers_weights="other.safetensors")
refused(ROPE, "sliding", layer_types=["full_attention", "sliding_attention"], sliding_window=4)
refused(ROPE, "layer_types", layer_types=["sliding_attention"] * 2)
refused(["llama", "nanochat"], sliding_window=4)
refused(ROPE, attention_chunk_size=4)
refused("qwen3", "use_sliding_window", use_sliding_window=True, sliding_window=4, max_window_layers=1)
same("qwen3", use_sliding_window=False, sliding_window=4, max_window_layers=1)
same("qwen3", layer_types=["full_attention"] * 2)

# Rotary positions: every type that transformers has, where new and where old configurations keep them.
SCALED = {
    "linear": dict(factor=2.0),
    "dynamic": dict(factor=2.0),
    "yarn": dict(factor=2.0, original_max_position_embeddings=16),
    "longrope": dict(short_factor=[1.5] * 4, long_factor=[2.5] * 4, factor=2.0, original_max_position_embeddings=16),
    "llama3": dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16),
    "proportional": dict(partial_rotary_factor=0.5),
}
for kind, extra in SCALED.items():
    scaled = {"rope_type": kind, "rope_theta": 300.0, **extra}
    refused(ROPE, "rope_parameters", kind, rope_parameters=scaled)
refused("llama", "rope_parameters", "linear", rope_parameters={"type": "linear", "factor": 2.0})  # the old key
refused(ROPE, "rope_scaling", "linear", rope_scaling={"type": "linear", "factor": 2.0})
refused("llama", "rope_scaling", "llama3", rope_scaling={"rope_type": "llama3", **SCALED["llama3"]}, rope_theta=300.0)
same(ROPE, rope_parameters={"rope_type": "default", "rope_theta": 300.0})
same(ROPE, rope_parameters={"rope_theta": 300})
same(ROPE, rope_theta=300.0)
same(ROPE, rope_parameters={"rope_theta": 300.0}, rope_theta=20.0)
same("llama", rope_scaling={"rope_type": "default", "rope_theta": 300.0}, rope_parameters={"rope_theta": 20.0})
same("llama", rope_scaling={"type": "default"}, rope_theta=300.0)
same("llama", rope_scaling=None, rope_parameters=None)
refused("llama", "partial_rotary_factor", rope_parameters={"rope_theta": 300.0, "partial_rotary_factor": 0.5})
refused("llama", partial_rotary_factor=0.5)
refused("llama", "rope_parameters", rope_parameters={"full_attention": {"rope_type": "linear", "factor": 2.0}})

# Keys of to_dict() under which the logits of one forward pass cannot change.
WITHOUT_EFFECT = {
    *("transformers_version", "architectures", "output_hidden_states", "output_attentions", "return_dict", "dtype"),
    *("chunk_size_feed_forward", "is_encoder_decoder", "id2label", "label2id", "problem_type", "_name_or_path"),
    *("model_type", "use_cache", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
}


@pytest.mark.parametrize("family", BASE)
def test_every_key_of_the_class_is_tried(family):
    tried = {key for f, values, _ in CASES if f == family for key in values} | WITHOUT_EFFECT
    assert set(CONFIG_MAPPING[family]().to_dict()) <= tried


@torch.no_grad()
def enliven(model, seed=0):
    """Give ``model`` weights whose logits reach 3 and more: sharp attention, norms around 1, biases not zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim == 1:
            p.copy_(0.2 * noise + (1.0 if name.endswith("weight") else 0.0))
        else:
            p.copy_(noise * (0.3 if "wpe" in name else 1.6) / model.config.hidden_size**0.5)
    return model


def write_config(directory, config, values):
    """config.json of a transformers ``config``, with ``values`` as they stand: older and hand-made files differ."""
    stored = config.to_dict() | {"architectures": [AutoModelForCausalLM._model_mapping[type(config)].__name__]}
    if {"rope_scaling", "rope_theta"} & values.keys() and "rope_parameters" not in values:
        stored.pop("rope_parameters", None)
    if config.model_type == "gpt2" and "hidden_size" in values:  # another name of the same
        del stored["n_embd"]
    (directory / "config.json").write_text(json.dumps(stored | values))


def make(directory, family, values, *, kind=AutoModelForCausalLM, dtype=torch.float32, **saving):
    """Save a random model of ``family`` as transformers does, with ``values`` in its configuration."""
    config = CONFIG_MAPPING[family](**BASE[family] | values)
    enliven(kind.from_config(config)).to(dtype).save_pretrained(directory, **saving)
    if values:
        write_config(directory, config, values)
    return directory


def check_same(directory, logits=torch_logits):
    """Compare with the class that config.json names, its weights widened to float32."""
    theirs = transformers_logits(directory, TOKENS)
    assert np.abs(theirs).max() >= 3
    assert largest_difference(logits(directory, TOKENS), theirs) <= TOLERANCE


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small only wait for a second thread, the more so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A directory of each family that has nothing unusual."""
    return {family: make(tmp_path_factory.mktemp(family), family, {}) for family in BASE}


def case_id(case):
    family, values, words = case
    return f"{family}-{'refused' if words else 'same'}-" + "-".join(f"{k}={v}" for k, v in values.items())[:60]


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_the_same_logits_or_refused_by_name(plain, tmp_path, case):
    family, values, words = case
    if not words:
        check_same(make(tmp_path, family, values))
        return
    (tmp_path / "model.safetensors").hardlink_to(plain[family] / "model.safetensors")
    fit = {k: v for k, v in values.items() if k not in ("per_layer_config", "quantization_config")}  # else unreadable
    write_config(tmp_path, CONFIG_MAPPING[family](**BASE[family] | fit), values)
    with pytest.raises(UserError) as e:
        open_hf_directory(tmp_path)
    assert all(word in str(e.value) for word in words), e.value
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("family", BASE)
def test_jax_reads_the_same(plain, family):
    check_same(plain[family], jax_logits)


@pytest.mark.parametrize("family", BASE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(tmp_path, family, dtype):
    directory = make(tmp_path, family, {}, dtype=dtype)
    assert json.loads((directory / "config.json").read_text())["dtype"] in ("bfloat16", "float16")
    if dtype == torch.bfloat16:  # the key that older versions wrote
        text = (directory / "config.json").read_text()
        (directory / "config.json").write_text(text.replace('"dtype"', '"torch_dtype"'))
    check_same(directory)


@pytest.mark.parametrize("family", BASE)
def test_shards(tmp_path, family):
    directory = make(tmp_path, family, {}, max_shard_size="10KB")
    assert len(list(directory.glob("model-*.safetensors"))) > 2
    check_same(directory)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_a_base_model_with_a_tied_head(tmp_path, family):
    values = {} if family == "gpt2" else {"tie_word_embeddings": True}
    directory = make(tmp_path, family, values, kind=AutoModel)
    assert not any(n.startswith(("model.", "transformer.")) for n in open_hf_directory(directory).names)
    check_same(directory)


@pytest.mark.parametrize("family", ROPE)
def test_a_base_model_without_its_head_is_refused(tmp_path, family):
    directory = make(tmp_path, family, {}, kind=AutoModel)
    with pytest.raises(UserError, match=r"lacks the tensor 'lm_head\.weight'"):
        load_model(directory)


def edit_tensors(directory, edit):
    """Rewrite model.safetensors by ``edit(tensors)``."""
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_a_tied_head_that_is_stored_as_well(tmp_path, family):
    values = {} if family == "gpt2" else {"tie_word_embeddings": True}
    directory = make(tmp_path, family, values)
    embedding = "transformer.wte.weight" if family == "gpt2" else "model.embed_tokens.weight"
    edit_tensors(directory, lambda t: t.update({"lm_head.weight": t[embedding].clone()}))
    check_same(directory)
    edit_tensors(directory, lambda t: t.pop(embedding))  # either name of the one tensor will do
    check_same(directory)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_a_tied_head_with_other_values_is_refused(tmp_path, family):
    # transformers takes it for a head of its own then, whatever config.json says
    values = {} if family == "gpt2" else {"tie_word_embeddings": True}
    directory = make(tmp_path, family, values)
    embedding = "transformer.wte.weight" if family == "gpt2" else "model.embed_tokens.weight"
    edit_tensors(directory, lambda t: t.update({"lm_head.weight": t[embedding] + 1}))
    with pytest.raises(UserError, match="tie_word_embeddings"):
        load_model(directory)


@pytest.mark.parametrize("head", ["TokenClassification", "QuestionAnswering"])
def test_a_model_with_another_head_is_refused(tmp_path, head):
    directory = make(tmp_path, "llama", {}, kind=getattr(transformers, f"AutoModelFor{head}"))
    with pytest.raises(UserError, match="tensor"):
        load_model(directory)


def test_an_adapter_is_refused(tmp_path):
    directory = make(tmp_path, "llama", {})
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        open_hf_directory(directory)


# --- fine-tuning -----------------------------------------------------------------------------------------------------

TEXT = "".join(chr(33 + i) for i in range(VOCABULARY - 1)) * 20
TEMPLATE = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"


def save_tokenizer(directory):
    """A tokenizer with a chat template and one token for each row of the embedding, as transformers saves it."""
    tokenizer = char_tokenizer([TEXT])
    assert tokenizer.size == VOCABULARY
    tokenizer.chat_template = TEMPLATE
    tokenizer.save(directory)
    AutoTokenizer.from_pretrained(directory).save_pretrained(directory)


def test_fine_tuning_and_export(tmp_path):
    start = make(tmp_path / "start", "llama", {}, dtype=torch.bfloat16, max_shard_size="10KB")
    save_tokenizer(start)
    (tmp_path / "text.txt").write_text(TEXT)
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "jaxgpt.train", f"--config={root / 'configs' / 'small.py'}", "--init_from=start"),
            *("--workdir=run", "--config.data.dataset=signs", "--config.data.source=text.txt"),
            *("--config.train.steps=5", "--config.train.batch_size=4", "--config.train.sequence_length=16"),
            *("--config.eval.every=0", "--config.checkpoint.every=5"),
            *("--config.sample.prompt=A", "--config.sample.max_new_tokens=4", "--config.log.report=False"),
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    export = tmp_path / "run" / "export"
    theirs = transformers_logits(export, TOKENS)
    assert theirs.shape == transformers_logits(start, TOKENS).shape == (2, LENGTH, VOCABULARY)
    assert largest_difference(theirs, transformers_logits(start, TOKENS)) > 0.01  # it has learned something
    trained = load_workdir(tmp_path / "run")  # the checkpoint itself, without the export in between
    ours = merge_model(trained.graphdef, trained.params)(jnp.asarray(TOKENS))[0][..., :VOCABULARY]
    assert largest_difference(np.asarray(ours), theirs) <= TOLERANCE
    chat = [{"role": "user", "content": "ABC"}]
    before, after = AutoTokenizer.from_pretrained(start), AutoTokenizer.from_pretrained(export)
    ids = after.apply_chat_template(chat)["input_ids"]
    assert ids == before.apply_chat_template(chat)["input_ids"] == [32, 33, 34, VOCABULARY - 1]
    model = AutoModelForCausalLM.from_pretrained(export)
    assert (model.config.vocab_size, len(after), model.config.eos_token_id) == (VOCABULARY,) * 2 + (VOCABULARY - 1,)


def test_rows_beyond_the_tokenizer_are_padding(tmp_path):
    """As Qwen3 has them: the logits of real tokens stay, through training's parameters and the export."""
    start = make(tmp_path / "start", "qwen3", {"vocab_size": VOCABULARY + 7})
    save_tokenizer(start)
    config = Config()
    config.train.sequence_length = 0
    adopt_model(config, str(start))
    assert (config.model.vocab_size, config.model.padded_vocab_size) == (VOCABULARY, VOCABULARY + 7)
    assert config.train.sequence_length == 32  # not longer than the adopted context
    params = from_canonical(config.model, open_hf_directory(start).parameters())
    tokenizer = load_tokenizer(start)
    write_hf_directory(tmp_path / "export", config.model, canonical_getter(params), tokenizer)
    theirs = transformers_logits(start, TOKENS)
    assert theirs.shape[-1] == VOCABULARY + 7
    for logits in (transformers_logits, torch_logits, jax_logits):
        assert largest_difference(logits(tmp_path / "export", TOKENS), theirs[..., :VOCABULARY]) <= TOLERANCE


def test_the_length_of_training_sequences_stays_as_configured(tmp_path):
    start = make(tmp_path, "llama", {"max_position_embeddings": 40_960})
    save_tokenizer(start)
    config = Config()
    adopt_model(config, str(start))
    assert config.model.context_length == 40_960
    assert config.train.sequence_length == Config().model.context_length


def test_a_tokenizer_larger_than_its_model_is_refused(tmp_path):
    start = make(tmp_path, "llama", {"vocab_size": VOCABULARY - 1})
    save_tokenizer(start)
    with pytest.raises(UserError, match="its tokenizer has 64 tokens, its model only 63"):
        adopt_model(Config(), str(start))
