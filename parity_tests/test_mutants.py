"""The report names the culprit: deliberate errors in the product's own code, each caught at the first wrong tensor.

A mutant changes the text of one function and swaps the code in place, so that every caller runs it.
"""

import contextlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

import jaxgpt.attention
import jaxgpt.fast_attention
import jaxgpt.loss
import jaxgpt.model
import jaxgpt.optimizer
import jaxgpt.params
import scratchgpt.hf_layout
import torchgpt.model
import torchgpt.optimizer
import torchgpt.sampling
from configs.schema import gpt2, llama, nanochat, qwen3, resolve_model
from parity_tests.ladder import Case
from parity_tests.models import random_tokens, random_weights, tokenizer_for
from parity_tests.report import compare, culprit
from scratchgpt.hf_directory import write_hf_directory

SIZE = dict(n_layer=1, n_head=4, n_embd=32, mlp_dim=40, context_length=24, vocab_size=31)
SMALL = {
    "gpt2": gpt2(**SIZE),
    "llama": llama(**SIZE, n_kv_head=2, head_dim=8),
    "llama-tied": llama(**SIZE, tie_embeddings=True),
    "qwen3": qwen3(**SIZE, n_kv_head=2, head_dim=8),
    "nanochat": nanochat(**SIZE, n_kv_head=2),
}


class Mutant(NamedTuple):
    """``old`` becomes ``new`` in ``function``; ``tensor`` is then the first that differs, in ``model``."""

    function: Callable
    old: str
    new: str
    model: str
    tensor: str


HALVES = "x1, x2 = wide(x_BxHxTxK).chunk(2, dim=-1)"
INTERLEAVED = "x1, x2 = wide(x_BxHxTxK)[..., ::2], wide(x_BxHxTxK)[..., 1::2]"
TURN, TURN_BACK = "[x1 * cos - x2 * sin, x2 * cos + x1 * sin]", "[x1 * cos + x2 * sin, x2 * cos - x1 * sin]"
EMBEDDING = "optim.embedding_learning_rate or optim.learning_rate, decay="
UPDATE = "token_embedding.weight after update"

# Between jaxgpt and torchgpt, in float64.
MUTANTS = {
    "rotary pairs interleaved": Mutant(
        torchgpt.model.RotaryEmbedding.rotate, HALVES, INTERLEAVED, "llama", "blocks.0.attn.q"
    ),
    "rotation the other way": Mutant(jaxgpt.model.rotate, TURN, TURN_BACK, "nanochat", "blocks.0.attn.q"),
    "exact GELU in torchgpt": Mutant(torchgpt.model.MLP.forward, '"tanh"', '"none"', "gpt2", "blocks.0.mlp"),
    "exact GELU in jaxgpt": Mutant(
        jaxgpt.model.activate, "approximate=True", "approximate=False", "gpt2", "blocks.0.mlp"
    ),
    "LayerNorm epsilon": Mutant(
        jaxgpt.model.Norm.__call__, "keepdims=True) + self.eps)", "keepdims=True) + 1e-6)", "gpt2", "blocks.0.attn_norm"
    ),
    "RMSNorm epsilon": Mutant(
        torchgpt.model.rms_normalize, "True) + eps)", "True) + 2 * eps)", "qwen3", "blocks.0.attn_norm"
    ),
    "transposed kernel": Mutant(
        jaxgpt.params.from_canonical,
        "np.asarray(array).T if transposed",
        'np.asarray(array).T if transposed and "attn.q" not in name',
        "gpt2",
        "blocks.0.attn.q.weight",
    ),
    "keys not normalised": Mutant(
        torchgpt.model.Attention.heads,
        "self.q_norm(q_BxHxTxK), self.k_norm(k_BxGxTxK)",
        "self.q_norm(q_BxHxTxK), k_BxGxTxK",
        "qwen3",
        "blocks.0.attn.k",
    ),
    "attention scale": Mutant(
        jaxgpt.fast_attention.blocked_attention,
        "K**-0.5",
        "K**-0.51",
        "llama",
        "blocks.0.attn",
    ),
    "mask sees the future": Mutant(
        jaxgpt.fast_attention._visible,
        "<= jnp.arange(start, stop)[:, None]",
        "<= jnp.arange(start, stop)[:, None] + 1",
        "llama",
        "blocks.0.attn",
    ),
    "cached attention's scale": Mutant(
        jaxgpt.attention.reference_attention, "* K**-0.5", "* (K + 1) ** -0.5", "llama", "logits through the cache"
    ),
    "softmax's gradient halved": Mutant(
        jaxgpt.fast_attention._blocked_backward,
        "p * (dp -",
        "p * (dp - 0.5 *",
        "llama",
        "gradient of token_embedding.weight",
    ),
    "grouped heads in the wrong order": Mutant(
        torchgpt.model.Attention.forward,
        "x.repeat_interleave(repeat, dim=1)",
        "x.repeat(1, repeat, 1, 1)",
        "llama",
        "blocks.0.attn",
    ),
    "gate and up exchanged": Mutant(
        jaxgpt.model.activate,
        "jax.nn.silu(gate_BxTxF) * up_BxTxF",
        "jax.nn.silu(up_BxTxF) * gate_BxTxF",
        "llama",
        "blocks.0.mlp",
    ),
    "soft-cap left out": Mutant(
        torchgpt.model.GPT.logits, "if c.logit_softcap:", "if c.logit_softcap < 0:", "nanochat", "logits"
    ),
    "loss in bits": Mutant(
        jaxgpt.loss.cross_entropy_sums,
        "return losses_BxT.sum(),",
        "return losses_BxT.sum() / 0.6931,",
        "llama",
        "loss",
    ),
    "clipping by norm + 1e-6": Mutant(
        torchgpt.optimizer.clip_factor, "norm.clamp(min=1e-12)", "(norm + 1e-6)", "llama", f"{UPDATE} 2"
    ),
    "embeddings decayed": Mutant(
        jaxgpt.optimizer.make_optimizer, f"{EMBEDDING}False", f"{EMBEDDING}True", "llama", f"{UPDATE} 1"
    ),
    "schedule ignored": Mutant(
        torchgpt.optimizer.Optimizer.apply_gradients,
        'group["peak_lr"] * multiplier',
        'group["peak_lr"]',
        "llama",
        f"{UPDATE} 2",
    ),
    "Muon's factor upside down": Mutant(
        torchgpt.optimizer.Muon.step,
        "fan_out / fan_in",
        "fan_in / fan_out",
        "llama",
        "blocks.0.attn.k.weight after update 1",
    ),
    "Muon's epsilon": Mutant(
        jaxgpt.optimizer.orthogonalize, "+ 1e-7)", "+ 1e-4)", "gpt2", "blocks.0.attn.q.weight after update 1"
    ),
    "cache forgets the position": Mutant(
        torchgpt.model.GPT.hidden,
        "torch.arange(start, start + T,",
        "torch.arange(0, T,",
        "gpt2",
        "logits through the cache",
    ),
    "top-p cuts one too early": Mutant(
        torchgpt.sampling.filtered_probabilities,
        "sorted_BxV.cumsum(-1) - sorted_BxV",
        "sorted_BxV.cumsum(-1)",
        "llama",
        "probabilities (1.3, 0, 0.9)",
    ),
}

# In the Hugging Face layout: both of ours read it, transformers disagrees, in float32.
LAYOUT_MUTANTS = {
    "q, k and v joined in another order": Mutant(
        scratchgpt.hf_layout.to_hf_tensors, 'in "qkv"]', 'in "kqv"]', "gpt2", "blocks.0.attn.q.weight"
    ),
    "head written as untied": Mutant(
        scratchgpt.hf_layout.to_hf_config,
        '"tie_word_embeddings": m.tie_embeddings',
        '"tie_word_embeddings": False',
        "llama-tied",
        "logits",
    ),
    "epsilon not written": Mutant(
        scratchgpt.hf_layout.to_hf_config,
        '"rms_norm_eps": m.norm_eps',
        '"rms_norm_eps": 1e-6',
        "llama",
        "blocks.0.attn_norm",
    ),
    "rotary base not written": Mutant(
        scratchgpt.hf_layout.to_hf_config,
        '{"rope_type": "default", "rope_theta": m.rope_theta}',
        '{"rope_type": "default", "rope_theta": 500.0}',
        "qwen3",
        "blocks.0.attn",
    ),
}


@contextlib.contextmanager
def mutated(mutant: Mutant) -> Iterator[None]:
    """Run the mutant's text in place of the function's."""
    function = inspect.unwrap(mutant.function)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(mutant.old) == 1, f"{mutant.old!r} must stand once in {function.__qualname__}"
    namespace = dict(function.__globals__)
    exec(source.replace(mutant.old, mutant.new), namespace)
    original = function.__code__
    function.__code__ = inspect.unwrap(namespace[function.__name__]).__code__
    try:
        yield
    finally:
        function.__code__ = original


def make_case(name: str, directory=None) -> Case:
    model = resolve_model(SMALL[name])
    weights = random_weights(model)
    if directory:
        write_hf_directory(directory, model, weights.__getitem__, tokenizer_for(model))
    return Case(model, weights, random_tokens(model, 2, 17), directory)


def first_wrong_rows(case: Case, dtype: str) -> list:
    """The rows up to the first rung that differs, and that rung's other rows."""
    rows, wrong = [], None
    for row in compare(case, (dtype,)):
        if wrong and row.rung != wrong:
            return rows
        rows.append(row)
        wrong = wrong or (row.rung if row.first else None)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_killed_and_named(name):
    mutant = MUTANTS[name]
    with mutated(mutant):
        rows = first_wrong_rows(make_case(mutant.model), "float64")
    assert rows[-1].first == mutant.tensor
    assert repr(mutant.tensor) in culprit(rows)


@pytest.mark.parametrize("name", LAYOUT_MUTANTS)
def test_layout_mutant_is_killed_and_named(name, tmp_path):
    mutant = LAYOUT_MUTANTS[name]
    with mutated(mutant):
        rows = first_wrong_rows(make_case(mutant.model, tmp_path / "m"), "float32")
    assert mutant.tensor in {row.first for row in rows}
    assert repr(mutant.tensor) in culprit(rows)
    assert "Hugging Face layout" in culprit(rows)


@pytest.mark.parametrize("side", ["jaxgpt", "torchgpt"])
def test_who_stands_alone_is_said(side, tmp_path):
    mutant = MUTANTS["exact GELU in " + side]
    with mutated(mutant):
        rows = first_wrong_rows(make_case("gpt2", tmp_path / "m"), "float32")
    assert f"{side} stands alone" in culprit(rows)


def test_without_a_mutant_nothing_is_named(tmp_path):
    rows = list(compare(make_case("nanochat", tmp_path / "m")))
    assert culprit(rows) == ""
    assert len(rows) == 11 + (12 + 2 * 7) + 2 * 5
    assert {row.dtype for row in rows} == {"float64", "float32", "bfloat16"}
