"""Every mesh trains what one device trains; parts of it that one process can see by itself."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import Config, ConfigError, MeshConfig, TrainConfig, llama, nanochat, resolve_model
from jaxgpt.loss import next_token_sums
from jaxgpt.params import abstract_model, merge_model
from jaxgpt.runtime import cpu_thread_environment
from jaxgpt.sharding import _check_rows, check_model_fits, local_rows, make_mesh
from parity_tests.meshes import DEVICES, FAMILIES, MESHES

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_mesh_gives_the_same_training():
    command = [sys.executable, "-m", "parity_tests.meshes"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=cpu_thread_environment(DEVICES))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "nvoluntary full rematerialization" not in done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    assert len(rows) == len(FAMILIES) * len(MESHES)
    for family, mesh, logits, loss, gradients, parameters in rows:
        assert float(loss) <= 1e-6, (family, mesh, logits)
        assert float(gradients) <= 1e-5, (family, mesh, logits)
        assert float(parameters) <= 1e-5, (family, mesh, logits)


def test_muon_exchanges_a_matrix_once_for_each_axis_that_splits_it():
    """Pieces to whole matrices and back; with ``data`` above 1, its devices also gather what each has made."""
    done = subprocess.run(
        [sys.executable, "-c", MUON_PROGRAM], capture_output=True, text=True, cwd=ROOT, env=cpu_thread_environment(8)
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "nvoluntary full rematerialization" not in done.stderr
    matrices = 2
    assert json.loads(done.stdout) == {
        "1 x 8 x 1": {"all-to-all": 2 * matrices},
        "2 x 4 x 1": {"all-to-all": 2 * matrices, "all-gather": matrices},
        "1 x 4 x 2": {"all-to-all": 4 * matrices},
    }


# Six layers do not divide over the devices; an update by Muon alone, of a matrix that goes in and one that comes out.
MUON_PROGRAM = """
import collections, json, jax, jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", 8)
from configs.schema import Config, MeshConfig, TrainConfig
from jaxgpt.optimizer import scale_by_muon
from jaxgpt.planning.hlo import collectives
from jaxgpt.sharding import make_mesh, tree_shardings
grads = {"blocks.mlp.up.kernel": jax.ShapeDtypeStruct((6, 32, 64), jnp.float32)}
grads["blocks.mlp.down.kernel"] = jax.ShapeDtypeStruct((6, 64, 32), jnp.float32)
found = {}
for sizes in [(1, 8, 1), (2, 4, 1), (1, 4, 2)]:
    mesh = make_mesh(Config(mesh=MeshConfig(*sizes), train=TrainConfig(batch_size=8)))
    muon = scale_by_muon(0.9, mesh)
    trees = grads, jax.eval_shape(muon.init, grads)
    lie = tuple(tree_shardings(tree, mesh) for tree in trees)
    text = jax.jit(muon.update, in_shardings=lie, out_shardings=lie).lower(*trees).compile().as_text()
    kinds = collections.Counter()
    for one in collectives(text, 8):
        kinds[one.kind] += one.count
    found[" x ".join(map(str, sizes))] = kinds
print(json.dumps(found))
"""


def test_a_process_holds_the_rows_of_its_devices():
    mesh = make_mesh(Config(train=TrainConfig(batch_size=8)))
    assert local_rows(mesh, 8) == slice(0, 8)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ((3, 1, 1), "3 x 1 x 1 does not come to the 1 devices there are; one of the three may be -1"),
        ((-1, 2, 1), "-1 x 2 x 1 does not come to the 1 devices there are; mesh.cpu_devices=N makes N"),
    ],
)
def test_a_mesh_that_does_not_divide_is_refused(sizes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make_mesh(Config(mesh=MeshConfig(*sizes)))


@pytest.mark.parametrize(
    ("batch", "micro", "sentence"),
    [
        (12, 0, "train.batch_size=12 sequences do not divide .* 8 devices; train.batch_size must be a multiple of 8"),
        (32, 4, "train.micro_batch_size=4 sequences do not divide .*; nearest: 8"),
        (48, 12, "train.micro_batch_size=12 .*; nearest: 8"),
    ],
)
def test_batches_that_do_not_divide_are_refused_with_what_would(batch, micro, sentence):
    with pytest.raises(ConfigError, match=sentence):
        _check_rows(TrainConfig(batch_size=batch, micro_batch_size=micro), 8)


def test_a_vocabulary_that_does_not_divide_is_refused_with_what_would():
    model = resolve_model(llama(n_layer=1, n_head=2, n_embd=8, vocab_size=23))
    mesh = jax.sharding.AbstractMesh((1, 1, 2), ("data", "fsdp", "tensor"))
    with pytest.raises(ConfigError, match=r"padded_vocab_size=23 does not divide by mesh.tensor=2; set .*=24"):
        check_model_fits(model, mesh)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    family=st.sampled_from([llama, nanochat]),
    batch=st.integers(1, 3),
    length=st.integers(1, 7),
    vocab=st.integers(2, 9),
    padding=st.integers(0, 3),
    chunk=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_chunked_logits_give_the_loss_and_gradients_of_whole_ones(family, batch, length, vocab, padding, chunk, seed):
    config = family(
        n_layer=1, n_head=1, n_embd=4, context_length=8, vocab_size=vocab, padded_vocab_size=vocab + padding
    )
    graphdef, abstract = abstract_model(resolve_model(config))
    random = np.random.default_rng(seed)
    params = {n: jnp.asarray(random.standard_normal(p.shape), jnp.float32) for n, p in abstract.items()}
    x_BxTxD = jnp.asarray(random.standard_normal((batch, length, 4)) * 3, jnp.float32)
    targets_BxT = jnp.asarray(random.integers(0, vocab, (batch, length)))
    weights_BxT = jnp.asarray(random.random((batch, length)) * (random.random((batch, length)) < 0.7), jnp.float32)

    def total(params, x_BxTxD, chunk):
        loss, weight = next_token_sums(merge_model(graphdef, params), x_BxTxD, targets_BxT, weights_BxT, chunk)
        return 3 * loss, weight  # the gradient must heed what becomes of the loss

    (whole, weight), wanted = jax.value_and_grad(total, (0, 1), has_aux=True)(params, x_BxTxD, 0)
    (parts, same), found = jax.value_and_grad(total, (0, 1), has_aux=True)(params, x_BxTxD, chunk)
    assert float(parts) == pytest.approx(float(whole), rel=1e-5, abs=1e-6)
    assert float(same) == pytest.approx(float(weight))
    assert float(total(params, x_BxTxD, chunk)[0]) == pytest.approx(float(whole), rel=1e-5, abs=1e-6)
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(b, a, atol=2e-5 * max(1.0, float(jnp.abs(a).max())))


def test_no_logits_of_all_positions_exist_at_once():
    """The compiled gradient of 512 positions in chunks of 8 has no array of 512 times the vocabulary."""
    config = llama(n_layer=1, n_head=1, n_embd=8, context_length=512, vocab_size=1031)
    graphdef, abstract = abstract_model(resolve_model(config))
    params = {n: jnp.zeros(p.shape) for n, p in abstract.items()}
    tokens = jnp.zeros((1, 512), jnp.int32)

    def loss(params, chunk):
        model = merge_model(graphdef, params)
        return next_token_sums(model, model.hidden(tokens)[0], tokens, None, chunk)[0]

    def compiled(chunk):
        return jax.jit(jax.grad(loss), static_argnums=1).lower(params, chunk).compile().as_text()

    assert "512,1031" in compiled(0)
    assert "512,1031" not in compiled(8)
