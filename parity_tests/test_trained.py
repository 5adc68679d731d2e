"""Weights that training made, in every family: the three frameworks still agree, and write the same text."""

import numpy as np
import pytest

from configs.schema import Config, OptimConfig, TrainConfig, resolve_model
from data_prep.tokenizers import char_tokenizer
from jaxgpt.loss import cross_entropy_sums
from jaxgpt.objective import Sums
from jaxgpt.params import canonical_getter
from jaxgpt.sharding import make_mesh
from jaxgpt.step import Steps
from parity_tests.directories import jax_logits, largest_difference, torch_logits, transformers_logits
from parity_tests.models import FAMILIES
from parity_tests.test_decoding import greedy_jax, greedy_torch
from scratchgpt.hf_directory import write_hf_directory

TEXT = "the quick brown fox jumps over the lazy dog. pack my box with five dozen jugs. how vexingly quick foxes jump! "
LENGTH = 32


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request, tmp_path_factory):
    """(first loss, last loss, directory) of 60 steps on three sentences."""
    tokenizer = char_tokenizer([TEXT])
    family = FAMILIES[request.param]
    model = resolve_model(family(n_layer=2, n_head=2, n_embd=32, context_length=192), tokenizer.size)
    config = Config(
        model=model, train=TrainConfig(batch_size=8, dtype="float32"), optim=OptimConfig(learning_rate=1e-2)
    )

    def loss_sums(model, batch, _):
        return Sums(*cross_entropy_sums(model(batch["inputs"])[0], batch["targets"]), {})

    steps = Steps(config, model, loss_sums, make_mesh(config))
    state, losses = steps.initial_state(), []
    ids = np.asarray(list(tokenizer.encode(TEXT * 4)), np.int32)
    rng = np.random.default_rng(0)
    for _ in range(60):
        windows = ids[rng.integers(0, len(ids) - LENGTH - 1, 8)[:, None] + np.arange(LENGTH + 1)][None]
        state, metrics = steps.update(
            state, {"inputs": windows[..., :-1], "targets": windows[..., 1:]}, np.float32(1.0)
        )
        losses.append(float(metrics["loss"]))
    directory = tmp_path_factory.mktemp("trained") / request.param
    write_hf_directory(directory, model, canonical_getter(state["params"]), tokenizer, "card")
    return losses, directory, list(tokenizer.encode("the "))


def test_training_learned_the_text(trained):
    losses, _, _ = trained
    assert losses[-1] < 0.4 * losses[0]


def test_logits_agree(trained):
    _, directory, prompt = trained
    tokens = np.asarray([greedy_jax(directory, prompt, 100)], np.int32)
    ours = jax_logits(directory, tokens)
    assert largest_difference(ours, torch_logits(directory, tokens)) <= 1e-4
    assert largest_difference(ours, transformers_logits(directory, tokens)) <= 1e-4


def test_greedy_text_agrees_beyond_the_context(trained):
    _, directory, prompt = trained
    assert greedy_jax(directory, prompt, 300) == greedy_torch(directory, prompt, 300)


def test_transformers_writes_the_same_text(trained):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, directory, prompt = trained
    tokenizer = AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer("the ", return_tensors="pt")
    ids = AutoModelForCausalLM.from_pretrained(directory).generate(**inputs, max_new_tokens=128, do_sample=False)
    assert ids[0, len(prompt) :].tolist() == greedy_jax(directory, prompt, 128)
