"""Rung by rung: jaxgpt and torchgpt are the same mathematics in float64 and agree with transformers in float32.

A rung's bar and what a relative difference means stand in ``parity_tests.ladder``.
"""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.schema import ModelConfig, llama, resolve_model
from parity_tests.frameworks import JaxModel, TorchModel
from parity_tests.ladder import (
    BFLOAT16_BUDGET,
    BFLOAT16_RATIO,
    BFLOAT16_UNIT,
    Case,
    Rung,
    climb,
    climb_together,
    first_beyond,
    rms_error,
)
from parity_tests.models import FAMILIES, MODELS, all_models, random_tokens, random_weights, tokenizer_for
from scratchgpt.hf_directory import write_hf_directory

LENGTH = 33


def make_case(config: ModelConfig, directory=None, batch: int = 2, length: int = LENGTH) -> Case:
    model = resolve_model(config)
    weights = random_weights(model)
    if directory is not None:
        write_hf_directory(directory, model, weights.__getitem__, tokenizer_for(model))
    return Case(model, weights, random_tokens(model, batch, length), directory)


def assert_alike(rungs: tuple[Rung, ...]) -> None:
    """Every framework within the bar of every other."""
    ours, *others = rungs
    for other in others:
        assert ours.tensors, ours.name
        assert not (beyond := first_beyond(ours, other)), beyond
    if len(others) == 2:
        assert not (beyond := first_beyond(*others)), beyond


# In float64, the proof, every model; in float32 one of each family by default and the others among the slow tests.
CASES = [
    pytest.param(f"{dtype}-{name}", marks=[pytest.mark.slow] if dtype == "float32" and name not in FAMILIES else [])
    for name in all_models()
    for dtype in ("float64", "float32")
]


@pytest.fixture(scope="module", params=CASES)
def rungs(request, tmp_path_factory) -> dict[str, tuple[Rung, ...]]:
    """The rungs of one model in one dtype: in jaxgpt, torchgpt and, in float32, transformers."""
    dtype, name = request.param.split("-", 1)
    case = make_case(all_models()[name], tmp_path_factory.mktemp("model") / "m")
    return {together[0].name: together for together in climb_together(case, dtype)}


def test_parameters_are_the_same_numbers(rungs):
    assert_alike(rungs["parameters"])


def test_embeddings(rungs):
    assert_alike(rungs["embeddings"])


def test_every_blocks_output(rungs):
    ours = rungs["blocks"][0].tensors
    for part in ("attn_norm", "attn.q", "attn.k", "attn.v", "attn", "mlp_norm", "mlp"):
        assert f"blocks.1.{part}" in ours
    assert_alike(rungs["blocks"])


def test_logits(rungs):
    assert all(np.abs(rung.tensors["logits"]).max() >= 5 for rung in rungs["logits"])  # of a realistic size
    assert_alike(rungs["logits"])


def test_loss(rungs):
    assert_alike(rungs["loss"])


def test_every_parameters_gradient(rungs):
    ours = rungs["gradients"][0].tensors
    assert len(ours) == len(rungs["parameters"][0].tensors)
    assert all(np.abs(g).max() > 0 for g in ours.values())
    assert_alike(rungs["gradients"])


def test_adamw_steps(rungs):
    assert_alike(rungs["AdamW steps"])


def test_muon_steps(rungs):
    assert_alike(rungs["Muon steps"])


def test_learning_rates_that_take_effect(rungs):
    assert_alike(rungs["learning rate"])


def test_decoding_with_a_cache(rungs):
    assert_alike(rungs["cached decoding"])
    for cached, full in zip(rungs["cached decoding"], rungs["logits"], strict=False):
        (y,) = cached.tensors.values()
        whole = Rung("full pass", {"logits through the cache": full.tensors["logits"][:, : y.shape[1]]}, full.bar)
        assert not first_beyond(cached, whole)


def test_probabilities_of_sampling(rungs):
    assert_alike(rungs["probabilities"])


def test_greedy_tokens(rungs):
    if "greedy tokens" not in rungs:
        pytest.skip("float64 logits through the cache agree to 1e-10: the same tokens")
    assert len(rungs["greedy tokens"][0].tensors["greedy tokens"]) == 128
    assert_alike(rungs["greedy tokens"])


def test_the_frameworks_on_each_rung(rungs):
    """A framework that silently falls out of the comparison would make the tests above empty."""
    with_transformers = {"parameters", "embeddings", "blocks", "logits", "loss", "gradients", "greedy tokens"}
    in_float32 = "greedy tokens" in rungs
    for name, rung in rungs.items():
        assert len(rung) == (3 if in_float32 and name in with_transformers else 2), name
    assert len(rungs) == (12 if in_float32 else 11)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_errs_alike_in_both(family):
    """Both are judged against float64: errors within a budget, and of the same size."""
    case = make_case(MODELS[family])
    exact = {rung.name: rung for rung in climb(case, JaxModel(case.config, case.weights, "float64"), "bfloat16")}
    for ours, theirs in climb_together(case, "bfloat16"):
        for name in ours.tensors:
            if ours.name == "parameters" or name in ours.scales:  # the scaled ones are nothing but rounding
                continue
            reference = exact[ours.name].tensors[name]
            a, b = (rms_error(rung.tensors[name], reference) for rung in (ours, theirs))
            assert max(a, b) <= BFLOAT16_BUDGET[ours.name] * BFLOAT16_UNIT, (name, a, b)
            if name != "loss":  # a single number may be right by chance
                assert 1 / BFLOAT16_RATIO <= a / b <= BFLOAT16_RATIO, (name, a, b)
                assert min(a, b) >= 1e-4, "this was not computed in bfloat16"


@st.composite
def shapes(draw, family: str) -> tuple[ModelConfig, int, int]:
    """(model, sequences, tokens): odd widths, one head, grouped heads, one layer, context 1, batch 1 among them."""
    heads = draw(st.sampled_from([1, 2, 3]))
    size = dict(n_layer=draw(st.integers(1, 2)), n_head=heads, vocab_size=draw(st.sampled_from([2, 7, 29])))
    context = draw(st.sampled_from([1, 2, 5]))
    if family == "gpt2":
        width = heads * draw(st.sampled_from([3, 5]))  # of a single number, a norm leaves nothing but its sign
        size |= dict(mlp_dim=draw(st.sampled_from([1, 7, 0])), bias=draw(st.booleans()))
    elif family == "nanochat":
        width = heads * draw(st.sampled_from([2, 6]))
        size |= dict(n_kv_head=draw(st.sampled_from([1, heads])))
    else:
        width = draw(st.sampled_from([3, 5, 9]))
        size |= dict(head_dim=draw(st.sampled_from([2, 6])), n_kv_head=draw(st.sampled_from([1, heads])))
        size |= dict(mlp_dim=draw(st.sampled_from([1, 7])), tie_embeddings=draw(st.booleans()))
    model = FAMILIES[family](n_embd=width, context_length=context, **size)
    return model, draw(st.integers(1, 2)), draw(st.integers(1, context))


@pytest.mark.parametrize("family", FAMILIES)
def test_any_shape_in_float64(family):
    @settings(max_examples=3, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(shapes(family))
    def check(drawn):
        config, batch, tokens = drawn
        case = make_case(config, batch=batch, length=tokens + 1)
        sides = [model(case.config, case.weights, "float64") for model in (JaxModel, TorchModel)]
        for ours, theirs in zip(*(climb_up_to_gradients(case, side) for side in sides), strict=True):
            assert not (beyond := first_beyond(ours, theirs)), (config, beyond)

    check()


def climb_up_to_gradients(case: Case, model) -> list[Rung]:
    rungs = []
    for rung in climb(case, model, "float64"):
        rungs.append(rung)
        if rung.name == "gradients":
            return rungs
    raise AssertionError("the ladder has no gradients")


@settings(max_examples=30, derandomize=True, deadline=None)
@given(
    seed=st.integers(0, 1000),
    vocabulary=st.sampled_from([2, 5, 50]),
    temperature=st.sampled_from([0.0, 1e-4, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 50, 60]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 1.0]),
    ties=st.booleans(),
)
def test_filtered_probabilities_are_transformers(seed, vocabulary, temperature, top_k, top_p, ties):
    """The same distribution from the same logits in all three, tied tokens included."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    tiny = llama(n_layer=1, n_head=1, n_embd=2, mlp_dim=2, context_length=2, vocab_size=2)
    weights = random_weights(resolve_model(tiny))
    logits = 3 * np.random.default_rng(seed).standard_normal((3, vocabulary))
    if ties and top_p == 1:  # which of equally likely tokens top-p keeps is nobody's promise but ours
        logits = np.round(logits)
    ours, twin = (
        model(tiny, weights, "float64").probabilities(logits, temperature, top_k, top_p)
        for model in (JaxModel, TorchModel)
    )
    np.testing.assert_allclose(ours, twin, rtol=0, atol=1e-12)
    if temperature == 0:
        assert (ours.argmax(-1) == logits.argmax(-1)).all()
        return
    theirs = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits))
    if top_k:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
    np.testing.assert_allclose(ours, theirs.softmax(-1).numpy(), rtol=0, atol=1e-12)


def test_every_run_files_model_is_on_the_ladder():
    from parity_tests.models import reduced, run_files

    assert len(run_files()) >= 6
    for config in run_files().values():
        assert reduced(config.model) in all_models().values()
