"""Generation past what the ladder tries: caches fed in chunks, texts beyond the context, a trained model's words."""

import json

import numpy as np
import pytest
import torch

from configs.schema import resolve_model
from jaxgpt.decoding import generate as generate_jax
from jaxgpt.decoding import generate_batch as generate_batch_jax
from jaxgpt.loading import load_weights
from parity_tests.directories import export_from_jax, jax_logits, largest_difference, transformers_logits
from parity_tests.models import MODELS, SHARED_DATA, random_tokens, random_weights
from torchgpt.batch import generate_batch as generate_batch_torch
from torchgpt.fast_decoding import FastDecoder
from torchgpt.hf import load_model as load_torch
from torchgpt.sampling import generate as generate_torch


def greedy_jax(directory, prompt, count):
    graphdef, params, model = load_weights(directory)
    return generate_jax(graphdef, params, model, prompt, max_new_tokens=count, temperature=0.0)[0]


def greedy_torch(directory, prompt, count):
    model = load_torch(directory, "cpu", torch.float32)
    decoder = FastDecoder(model)  # as the command does it
    return list(generate_torch(model, prompt, max_new_tokens=count, temperature=0.0, decoder=decoder))


@pytest.fixture(scope="module", params=["gpt2", "llama"])  # learned and rotary positions
def exported(request, tmp_path_factory):
    model = resolve_model(MODELS[request.param])
    path = tmp_path_factory.mktemp("models") / request.param
    return model, export_from_jax(model, random_weights(model, seed=1), path)


def test_a_cache_fed_in_chunks_gives_the_full_pass_in_jax(exported):
    model, directory = exported
    tokens = random_tokens(model, 3, 12)
    assert largest_difference(jax_logits(directory, tokens, [5, 1, 1, 5]), jax_logits(directory, tokens)) <= 2e-5


def test_greedy_text_beyond_the_context_is_the_same(exported):
    model, directory = exported
    prompt = random_tokens(model, 1, 7, seed=3)[0].tolist()
    count = model.context_length * 2 + 5
    assert greedy_jax(directory, prompt, count) == greedy_torch(directory, prompt, count)


def test_a_prompt_that_fills_the_context_is_continued_alike(exported):
    model, directory = exported
    prompt = random_tokens(model, 1, model.context_length, seed=4)[0].tolist()
    assert greedy_jax(directory, prompt, 9) == greedy_torch(directory, prompt, 9)


@pytest.mark.skipif(not (SHARED_DATA / "stories260K").is_dir(), reason="the trained stories260K model is not at hand")
def test_a_trained_llama_gives_its_reference_text():
    directory = SHARED_DATA / "stories260K"
    golden = json.loads((directory / "golden.json").read_text())
    prompt, text = golden["prompt_ids"], golden["greedy_ids"]
    expected = text[len(prompt) :]
    assert text[: len(prompt)] == prompt
    assert greedy_jax(directory, prompt, len(expected)) == expected
    assert greedy_torch(directory, prompt, len(expected)) == expected


@pytest.mark.skipif(not (SHARED_DATA / "stories260K").is_dir(), reason="the trained stories260K model is not at hand")
def test_a_trained_llama_has_the_logits_of_transformers():
    directory = SHARED_DATA / "stories260K"
    tokens = np.random.default_rng(0).integers(0, 512, (2, 256), dtype=np.int32)
    assert largest_difference(jax_logits(directory, tokens), transformers_logits(directory, tokens)) <= 1e-4


def test_prompts_of_unequal_lengths_are_continued_as_each_alone(exported):
    model, directory = exported
    limit = model.context_length
    prompts = [random_tokens(model, 1, n, seed=n)[0].tolist() for n in (limit, 3, limit - 2, 1, limit // 2 + 1)]
    graphdef, params, config = load_weights(directory)
    twin = load_torch(directory, "cpu", torch.float32)
    count = 2 * limit + 3
    alone = [greedy_jax(directory, prompt, count) for prompt in prompts]
    assert len(set(map(tuple, alone))) == len(prompts)
    options = dict(max_new_tokens=count, temperature=0.0)
    assert generate_batch_jax(graphdef, params, config, prompts, **options) == alone
    assert generate_batch_torch(twin, prompts, **options) == alone
    # a row that has stopped holds up no other
    stop = {alone[1][5], alone[2][0]}
    cut = [text[: next((i for i, token in enumerate(text) if token in stop), None)] for text in alone]
    assert {len(text) for text in cut} > {0}
    assert generate_batch_jax(graphdef, params, config, prompts, stop_ids=stop, **options) == cut
    assert generate_batch_torch(twin, prompts, stop_ids=stop, **options) == cut
