"""LoRA against PEFT: one adapter in both, its logits, loss and gradients, and what it is once merged."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from configs.schema import Config, LoraConfig, resolve_model
from jaxgpt.lora import is_adapter, merged_parameters
from jaxgpt.loss import cross_entropy_sums
from jaxgpt.model import GPT
from jaxgpt.params import abstract_model, canonical_getter, from_canonical, merge_model, split_model
from parity_tests.directories import largest_difference, transformers_logits
from parity_tests.models import MODELS, random_tokens, random_weights, tokenizer_for
from scratchgpt.hf_directory import write_hf_directory
from scratchgpt.peft_directory import to_peft_tensors, write_peft_directory
from scratchgpt.vocabulary import grow_vocabulary

NEW = 3  # tokens that tuning adds to the base model's vocabulary
NAMES = ["gpt2", "gpt2-no-bias", "llama", "llama-tied", "qwen3", "nanochat"]


@dataclasses.dataclass
class Adapted:
    """A base model with an adapter that has learned something, in jaxgpt's parameters and as directories."""

    config: Config
    graphdef: object
    params: dict
    base: str
    adapter: str

    @property
    def model(self):
        return self.config.model

    def logits(self, tokens_BxT):
        forward = jax.jit(lambda params, tokens: merge_model(self.graphdef, params)(tokens)[0])
        return np.asarray(forward(self.params, tokens_BxT))[..., : self.model.vocab_size]

    def in_peft(self):
        """PEFT's model, by the instructions of the adapter's README."""
        base = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        base.resize_token_embeddings(self.model.vocab_size)
        return PeftModel.from_pretrained(base, self.adapter, is_trainable=True).eval()


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A function from a name of MODELS to its Adapted; every half of every adapter and every new row is random."""

    @functools.cache
    def make(name):
        place = tmp_path_factory.mktemp(name)
        model = resolve_model(MODELS[name])
        small = dataclasses.replace(model, vocab_size=model.vocab_size - NEW)
        weights = random_weights(model)
        cut = {n: a[: small.vocab_size] if len(a) == model.padded_vocab_size else a for n, a in weights.items()}
        write_hf_directory(place / "base", small, cut.__getitem__, tokenizer_for(small))
        config = Config(model=model, lora=LoraConfig(rank=5, alpha=7.5, new_tokens=NEW))
        config.data.tokenizer = str(place / "base")
        graphdef, abstract = abstract_model(model, lora=config.lora)
        params = from_canonical(model, grow_vocabulary(cut.items(), model.vocab_size))
        rng = np.random.default_rng(1)
        for n in filter(is_adapter, abstract):
            params[n] = (0.2 * rng.standard_normal(abstract[n].shape)).astype(np.float32)
        params = {n: jnp.asarray(p) for n, p in params.items()}
        get = canonical_getter(params)
        write_peft_directory(place / "adapter", config, model, get, tokenizer_for(model), "card")
        return Adapted(config, graphdef, params, str(place / "base"), str(place / "adapter"))

    return make


@pytest.mark.parametrize("name", NAMES)
def test_peft_gives_the_same_logits(adapted, name):
    ours = adapted(name)
    tokens = random_tokens(ours.model, 2, 24)
    assert (tokens >= ours.model.vocab_size - NEW).any()
    with torch.no_grad():
        theirs = ours.in_peft()(torch.from_numpy(tokens).long()).logits.numpy()
    largest = np.abs(theirs).max()
    assert largest_difference(ours.logits(tokens), theirs) <= 1e-5 * largest
    base = merge_model(abstract_model(ours.model)[0], {n: p for n, p in ours.params.items() if not is_adapter(n)})
    without = np.asarray(base(tokens)[0])[..., : ours.model.vocab_size]
    assert largest_difference(without, theirs) > 0.1 * largest  # the adapter matters


@pytest.mark.parametrize("name", NAMES)
def test_the_merged_export_is_what_peft_merges(adapted, name, tmp_path):
    ours = adapted(name)
    merged = merged_parameters(ours.params, ours.model, ours.config.lora)
    write_hf_directory(tmp_path / "export", ours.model, canonical_getter(merged), tokenizer_for(ours.model))
    theirs = ours.in_peft().merge_and_unload().state_dict()
    stored = load_file(tmp_path / "export" / "model.safetensors")
    assert stored.keys() <= theirs.keys()
    for key, array in stored.items():
        assert largest_difference(array, theirs[key].numpy()) <= 1e-6 * max(1, np.abs(array).max()), key
    tokens = random_tokens(ours.model, 2, 24)
    logits = transformers_logits(tmp_path / "export", tokens)
    assert largest_difference(ours.logits(tokens), logits) <= 1e-5 * np.abs(logits).max()


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_are_those_of_peft(adapted, name):
    ours = adapted(name)
    text = random_tokens(ours.model, 2, 25)
    inputs, targets = text[:, :-1], text[:, 1:]

    @jax.jit
    @jax.value_and_grad
    def loss_of(adapter, fixed):
        total, count = cross_entropy_sums(merge_model(ours.graphdef, fixed | adapter)(inputs)[0], targets)
        return total / count

    adapter = {n: p for n, p in ours.params.items() if is_adapter(n)}
    fixed = {n: p for n, p in ours.params.items() if n not in adapter}
    loss, grads = loss_of(adapter, fixed)
    grads = dict(to_peft_tensors(ours.model, NEW, canonical_getter(grads)))

    model = ours.in_peft()
    logits = model(torch.from_numpy(inputs).long()).logits.flatten(0, 1)
    their_loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets).long().flatten())
    their_loss.backward()
    theirs = {n.replace(".default", ""): p.grad.numpy() for n, p in model.named_parameters() if p.requires_grad}
    assert float(loss) == pytest.approx(their_loss.item(), rel=1e-5)
    assert grads.keys() == theirs.keys()
    floor = 1e-6 * np.sqrt(sum(np.square(g).sum() for g in theirs.values()))
    for key, grad in grads.items():
        assert np.abs(theirs[key]).max() > 0, key
        assert largest_difference(grad, theirs[key]) <= 1e-5 * np.abs(theirs[key]).max() + floor, key


def test_the_configuration_is_complete_and_private(adapted):
    ours = adapted("gpt2")
    config = json.loads(Path(ours.adapter, "adapter_config.json").read_text())
    assert config["target_modules"] == ["c_attn", "c_fc", "c_proj"]
    assert config["fan_in_fan_out"] is True
    assert (config["r"], config["lora_alpha"]) == (5, 7.5)
    assert config["base_model_name_or_path"] == "base"  # of an absolute path the last part
    assert config["trainable_token_indices"] == {"wte": [88, 89, 90]}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_adapter_begins_as_nothing(name):
    """B is zero, A uniform as PEFT draws it: kaiming with a = sqrt(5)."""
    model = resolve_model(MODELS[name])
    lora = LoraConfig(rank=16)
    params = jax.jit(lambda: split_model(GPT(model, nnx.Rngs(params=jax.random.key(0)), lora=lora))[1])()
    for n, p in params.items():
        if n.endswith("lora_b"):
            assert not p.any(), n
        if n.endswith("lora_a"):
            theirs = torch.empty(16 * p.shape[0], p.shape[1])
            torch.nn.init.kaiming_uniform_(theirs, a=5**0.5, generator=torch.Generator().manual_seed(0))
            assert float(jnp.abs(p).max()) == pytest.approx(theirs.abs().max().item(), rel=0.05), n
            assert float(p.std()) == pytest.approx(theirs.std().item(), rel=0.1), n
    tokens = random_tokens(model, 1, 8)
    plain = {n: p for n, p in params.items() if not is_adapter(n)}

    def logits(params, lora):
        graphdef, _ = abstract_model(model, lora=lora)
        return jax.jit(lambda params: merge_model(graphdef, params)(tokens)[0])(params)

    np.testing.assert_array_equal(logits(params, lora), logits(plain, None))
