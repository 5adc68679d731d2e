"""Documents packed side by side: in both frameworks each is computed as if it stood alone, and none sees another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from configs.schema import resolve_model
from jaxgpt.loss import cross_entropy_sums
from jaxgpt.model import positions_within
from jaxgpt.params import merge_model
from parity_tests.frameworks import JaxModel, TorchModel
from parity_tests.models import FAMILIES, MODELS, random_tokens, random_weights
from torchgpt.model import positions_within as torch_positions_within

SEGMENTS = np.asarray([[1] * 7 + [2] * 1 + [3] * 5 + [0] * 3, [1] * 16], np.int32)


@pytest.fixture(scope="module", params=FAMILIES)
def both(request):
    """(jaxgpt's logits of (tokens, segments), torchgpt's, tokens, the models), in float64."""
    config = resolve_model(MODELS[request.param])
    weights = random_weights(config)
    ours, twin = JaxModel(config, weights, "float64"), TorchModel(config, weights, "float64")
    forward = jax.jit(lambda p, t, s: merge_model(ours.graphdef, p)(t, segments_BxT=s)[0])

    def jax_logits(tokens, segments):
        with jax.enable_x64(True):
            return np.asarray(forward(ours.params, jnp.asarray(tokens), jnp.asarray(segments)))[
                ..., : config.vocab_size
            ]

    @torch.no_grad()
    def torch_logits(tokens, segments):
        segments = None if segments is None else torch.from_numpy(segments)
        return twin.model(torch.from_numpy(tokens).long(), None, segments)[..., : config.vocab_size].numpy()

    return jax_logits, torch_logits, random_tokens(config, 2, 16), ours


def test_positions_begin_anew_in_each_document():
    expected = [[*range(7), 0, *range(5), *range(3)], list(range(16))]
    assert positions_within(jnp.asarray(SEGMENTS)).tolist() == expected
    assert torch_positions_within(torch.from_numpy(SEGMENTS)).tolist() == expected


def test_the_frameworks_agree(both):
    ours, twin, tokens, _ = both
    np.testing.assert_allclose(ours(tokens, SEGMENTS), twin(tokens, SEGMENTS), rtol=0, atol=1e-11)


def test_a_document_has_the_logits_it_has_alone(both):
    ours, twin, tokens, _ = both
    packed = ours(tokens, SEGMENTS)
    for first, last in ((0, 7), (7, 8), (8, 13)):
        alone = twin(tokens[:1, first:last], None)
        np.testing.assert_allclose(packed[:1, first:last], alone, rtol=0, atol=1e-11)
    np.testing.assert_allclose(packed[1:], twin(tokens[1:], None), rtol=0, atol=1e-11)


def test_a_neighbours_tokens_change_nothing_at_all(both):
    ours, twin, tokens, _ = both
    for logits in (ours, twin):
        before = logits(tokens, SEGMENTS)
        changed = tokens.copy()
        changed[0, 8:13] = (changed[0, 8:13] + 1) % 91
        after = logits(changed, SEGMENTS)
        np.testing.assert_array_equal(before[0, :8], after[0, :8])
        np.testing.assert_array_equal(before[0, 13:], after[0, 13:])
        np.testing.assert_array_equal(before[1], after[1])
        assert (before[0, 8:13] != after[0, 8:13]).any(axis=-1).all()


def test_a_documents_loss_has_no_gradient_in_another(both):
    *_, tokens, model = both
    with jax.enable_x64(True):
        shape = (2, 16, model.config.n_embd)
        weights = jnp.asarray(SEGMENTS == 3, jnp.float64)

        def loss(nudge):
            gpt = merge_model(model.graphdef, model.params)
            embed = gpt.embed
            object.__setattr__(gpt, "embed", lambda *args: embed(*args) + nudge)
            return cross_entropy_sums(
                gpt(jnp.asarray(tokens), segments_BxT=jnp.asarray(SEGMENTS))[0], jnp.asarray(tokens), weights
            )[0]

        gradient = np.asarray(jax.grad(loss)(jnp.zeros(shape)))
    here = SEGMENTS == 3
    assert (np.abs(gradient[here]).max(axis=-1) > 0).all()
    assert not gradient[~here].any()
