"""The reference model: against transformers in both directions, its cache, its attention, its loss."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import ModelConfig, count_parameters, resolve_model
from parity_tests.models import MODELS, random_tokens, random_weights, tokenizer_for
from scratchgpt.hf_directory import open_hf_directory
from scratchgpt.hf_layout import parameter_shapes
from torchgpt.blocked import BlockedEmbedding, BlockedLinear
from torchgpt.fast_decoding import FastDecoder
from torchgpt.hf import load_model, save_model
from torchgpt.int8 import FEW_ROWS, Int8Linear, quantize
from torchgpt.model import GPT, KVCache, causal_attention, cross_entropy_sums, reference_attention
from torchgpt.sampling import generate

STORIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "stories260K"
TOLERANCE = 1e-4
pytestmark = pytest.mark.filterwarnings("ignore")


def with_weights(config: ModelConfig, dtype: torch.dtype = torch.float32) -> GPT:
    model = GPT(config)
    model.load_state_dict({n: torch.from_numpy(a) for n, a in random_weights(model.config).items()})
    return model.to(dtype).eval()


def theirs(directory: Path, tokens: torch.Tensor, **options) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, **options)
    assert not any(info.values()), info
    with torch.no_grad():
        return model.eval()(tokens).logits.float()


@pytest.mark.parametrize("name", MODELS)
def test_state_dict_has_the_canonical_names_and_shapes(name):
    model = GPT(MODELS[name])
    assert {n: tuple(p.shape) for n, p in model.state_dict().items()} == parameter_shapes(model.config)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(model.config)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_equal_transformers_and_survive_its_own_saving(directories, tmp_path, name):
    from transformers import AutoModelForCausalLM

    tokens = torch.from_numpy(random_tokens(MODELS[name], 2, 192)).long()
    expected = theirs(directories[name], tokens)
    assert expected.abs().max() >= 5
    ours = load_model(directories[name])(tokens)
    print(f"{name}: max |difference| {(ours - expected).abs().max():.1e} of {expected.abs().max():.1f}")
    torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)

    hf = AutoModelForCausalLM.from_pretrained(directories[name])
    hf.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").is_file()
    assert torch.equal(load_model(tmp_path / "sharded")(tokens), ours)
    hf.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    halved = load_model(tmp_path / "half")(tokens)
    torch.testing.assert_close(halved, theirs(tmp_path / "half", tokens, dtype=torch.float32), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "nanochat"])
def test_saving_and_loading_keeps_every_bit(directories, tmp_path, name):
    model = load_model(directories[name])
    save_model(model, tokenizer_for(model.config), tmp_path / "again", "card")
    for a, b in zip(model.parameters(), load_model(tmp_path / "again").parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_float64_is_carried_through(name):
    tokens = torch.from_numpy(random_tokens(MODELS[name], 1, 64)).long()
    single, double = with_weights(MODELS[name])(tokens), with_weights(MODELS[name], torch.float64)(tokens)
    assert double.dtype == torch.float64
    # a float32 intermediate anywhere would make two float64 models with a rounding apart differ; here: the gap is real
    gap = (single - double)[..., : MODELS[name].vocab_size].abs().max().item()
    assert 0 < gap < TOLERANCE


@pytest.mark.parametrize("name", MODELS)
@settings(derandomize=True, deadline=None, max_examples=5)
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6))
@torch.no_grad()
def test_any_chunking_through_the_cache_equals_the_full_pass(name, sizes):
    model = with_weights(MODELS[name])
    tokens = torch.from_numpy(random_tokens(MODELS[name], 2, sum(sizes))).long()
    cache = KVCache(model, 2)
    parts = [model(chunk, cache) for chunk in tokens.split(sizes, dim=1)]
    assert cache.length == sum(sizes)
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [1, 3])
@torch.no_grad()
def test_a_cache_smaller_than_the_context_refuses_what_does_not_fit(tokens):
    model = with_weights(MODELS["llama"])
    cache = KVCache(model, 1, context=4)
    model(torch.zeros(1, 5 - tokens, dtype=torch.long), cache)
    with pytest.raises(ValueError, match="5 tokens do not fit a cache of 4"):
        model(torch.zeros(1, tokens, dtype=torch.long), cache)
    assert cache.length == 5 - tokens
    assert KVCache(model, 1, context=10**6).capacity == model.config.context_length


def held_bytes(module):
    return sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in module.parameters()}.values())


@pytest.mark.parametrize("blocked", [True, False])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_fast_decoder_is_the_model_and_takes_no_memory_twice(name, blocked):
    gpt = with_weights(MODELS[name], torch.float64)
    model, before = gpt.config, held_bytes(gpt)
    tokens = torch.from_numpy(random_tokens(model, 1, model.context_length)).long()
    expected, logits = gpt.hidden(tokens), gpt(tokens)
    decoder, cache = FastDecoder(gpt, blocked), KVCache(gpt, 1)
    start = 3
    parts = [gpt.hidden(tokens[:, :start], cache)]
    parts += [decoder.hidden(token, cache) for token in tokens[0, start:].tolist()]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-12, rtol=1e-12)
    assert cache.length == model.context_length
    with pytest.raises(ValueError, match="do not fit"):
        decoder.hidden(0, cache)
    torch.testing.assert_close(gpt(tokens), logits, atol=1e-12, rtol=1e-12)
    layers = [module for module in gpt.modules() if isinstance(module, BlockedLinear)]
    assert bool(layers) == blocked
    filled = sum(layer.weight.numel() - layer.out_features * layer.weight.shape[1] for layer in layers)
    assert held_bytes(gpt) == before + filled * expected.element_size()


@torch.no_grad()
def test_a_fast_decoder_continues_two_texts_in_turns():
    gpt = with_weights(MODELS["llama"], torch.float64)
    texts = torch.from_numpy(random_tokens(gpt.config, 2, 9)).long()
    expected, decoder, caches = gpt.hidden(texts), FastDecoder(gpt), [KVCache(gpt, 1) for _ in texts]
    steps = [[decoder.hidden(t, cache) for t, cache in zip(pair, caches, strict=True)] for pair in texts.t().tolist()]
    got = torch.cat([torch.cat(pair) for pair in steps], dim=1)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(1, 100), st.integers(1, 70), st.integers(1, 40), st.integers(0, 5), st.booleans())
def test_products_in_blocks_are_the_products(outputs, inputs, width, rows, with_bias):
    generator = torch.Generator().manual_seed(outputs)
    weight, x = (torch.randn(n, inputs, generator=generator, dtype=torch.float64) for n in (outputs, 2 * rows))
    bias = torch.arange(outputs, dtype=torch.float64) if with_bias else None
    layer, x_2xRxK = BlockedLinear.of(weight, bias, width), x.view(2, rows, inputs)
    torch.testing.assert_close(layer(x_2xRxK), torch.nn.functional.linear(x_2xRxK, weight, bias), atol=1e-12, rtol=0)
    row_ids = torch.arange(outputs).flip(0)[None]
    assert torch.equal(BlockedEmbedding(layer)(row_ids)[0], weight.flip(0))


@pytest.mark.parametrize("name", ["gpt2", "llama"])  # with biases and a tied head, and without
@torch.no_grad()
def test_matrices_of_8_bits_are_near_and_the_fast_decoder_takes_them(name):
    exact, rounded = with_weights(MODELS[name]), quantize(with_weights(MODELS[name]))
    assert not any(isinstance(module, torch.nn.Linear) for module in rounded.modules())
    tokens = torch.from_numpy(random_tokens(exact.config, 1, 12)).long()
    expected = exact(tokens)[..., : exact.config.vocab_size]
    scale = expected.abs().max()
    whole = rounded(tokens)[..., : exact.config.vocab_size]
    assert 1e-4 * scale < (whole - expected).abs().max() < 0.05 * scale
    decoder, cache = FastDecoder(rounded), KVCache(rounded, 1)
    parts = [rounded.hidden(tokens[:, :5], cache)]
    parts += [decoder.hidden(token, cache) for token in tokens[0, 5:].tolist()]
    steps = torch.cat([rounded.logits(part) for part in parts], dim=1)[..., : exact.config.vocab_size]
    assert (steps - expected).abs().max() < 0.05 * scale


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("inputs", [8, 64, 100, 172, 257])  # the kernel takes multiples of 16
def test_a_product_with_8_bits_is_off_by_the_rounding_alone(rows, inputs):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, inputs, generator=generator) * torch.logspace(-3, 3, 48)[:, None]
    weight[7] = 0
    x, layer = torch.randn(2, rows, inputs, generator=generator), Int8Linear.rounded(weight, torch.arange(48.0))
    x = x[0] if rows > 1 else x[:1, :1]
    exact = torch.nn.functional.linear(x, weight, torch.arange(48.0))
    bound = (x.abs().sum(-1, keepdim=True) * weight.abs().amax(1) / 127) + 2**-7 * (x.abs() @ weight.abs().T)
    assert ((layer(x) - exact).abs() <= bound + 1e-6).all()


@pytest.mark.skipif(not STORIES.is_dir(), reason="the trained stories260K model is not at hand")
@torch.no_grad()
def test_a_trained_model_in_8_bits_predicts_as_well():
    ids = torch.tensor([json.loads((STORIES / "golden.json").read_text())["greedy_ids"]])
    exact, rounded = load_model(STORIES), quantize(load_model(STORIES))
    decoder, cache = FastDecoder(rounded), KVCache(rounded, 1)
    steps = torch.cat([rounded.logits(decoder.hidden(token, cache)) for token in ids[0].tolist()], dim=1)
    expected, *found = (
        float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]))
        for logits in (exact(ids), rounded(ids), steps)
    )
    for loss in found:  # all at once, and token by token
        assert loss != expected
        assert abs(loss - expected) < 0.02


@pytest.mark.parametrize(("queries", "keys"), [(9, 9), (1, 9), (4, 9), (1, 1)])
def test_fused_attention_equals_the_reference(queries, keys):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, n, 8, generator=generator, dtype=torch.float64) for n in (queries, keys, keys))
    torch.testing.assert_close(causal_attention(q, k, v), reference_attention(q, k, v), atol=1e-12, rtol=0)


@torch.no_grad()
def test_a_later_token_changes_nothing_before_it_and_padding_is_never_predicted():
    model = with_weights(MODELS["qwen3"])
    tokens = torch.from_numpy(random_tokens(MODELS["qwen3"], 1, 20)).long()
    changed = tokens.clone()
    changed[0, 12] = (changed[0, 12] + 1) % 91
    a, b = model(tokens), model(changed)
    assert torch.equal(a[:, :12], b[:, :12])
    assert not torch.equal(a[:, 12], b[:, 12])
    assert (a[..., 91:] == -math.inf).all()
    assert torch.isfinite(a[..., :91]).all()


def test_more_tokens_than_the_context_are_refused():
    model = GPT(MODELS["llama"])
    with pytest.raises(ValueError, match="193 tokens do not fit the model's context of 192"):
        model(torch.zeros(1, 193, dtype=torch.long))


def test_the_loss_is_a_sum_and_a_weight():
    logits = torch.tensor([[[0.0, 0.0, -math.inf], [2.0, 0.0, -math.inf]]], requires_grad=True)
    targets, weights = torch.tensor([[1, 0]]), torch.tensor([[1.0, 0.5]])
    total, weight = cross_entropy_sums(logits, targets, weights)
    assert total.item() == pytest.approx(math.log(2) + 0.5 * math.log(1 + math.exp(-2)))
    assert weight.item() == 1.5
    total.backward()
    assert torch.isfinite(logits.grad).all()
    assert cross_entropy_sums(logits, targets)[1].item() == 2


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_initialization_is_gpt2s(name):
    model = GPT(resolve_model(MODELS[name])).initialize(torch.Generator().manual_seed(0))
    block = model.blocks[0]
    assert block.attn.q.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert block.mlp.down.weight.std().item() == pytest.approx(0.02 / (2 * model.config.n_layer) ** 0.5, rel=0.1)
    assert model.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.1)
    loss, weight = cross_entropy_sums(model(torch.arange(64)[None]), torch.arange(1, 65)[None])
    assert (loss / weight).item() == pytest.approx(math.log(91), abs=0.1)


def test_dropout_acts_in_training_only():
    config = resolve_model(MODELS["gpt2"])
    config.dropout = 0.5
    model = with_weights(config)
    tokens = torch.zeros(1, 8, dtype=torch.long)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


@pytest.mark.skipif(not STORIES.is_dir(), reason="the trained stories260K model is not at hand")
@torch.no_grad()
def test_a_trained_llama_gives_its_reference_ids_and_normalizers():
    golden = json.loads((STORIES / "golden.json").read_text())
    model = load_model(STORIES)
    ids, prompt = golden["greedy_ids"], golden["prompt_ids"]
    count = len(ids) - len(prompt)
    assert list(generate(model, prompt, max_new_tokens=count, temperature=0.0)) == ids[len(prompt) :]
    sums = model(torch.tensor([ids[:128]])).logsumexp(-1)[0].numpy()
    np.testing.assert_allclose(sums, golden["logsumexp_first_128"], atol=1e-3)
    assert open_hf_directory(STORIES).model.n_kv_head == 4
