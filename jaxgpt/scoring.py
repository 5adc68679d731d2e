"""Log-probabilities of given continuations under a model, batched, over all devices."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs.schema import Config, ModelConfig, TrainConfig
from jaxgpt.params import Params, merge_model
from jaxgpt.sampling import bucket
from jaxgpt.sharding import BATCH, make_mesh

_CHUNK = 128  # positions whose logits exist at once
_LOGIT_BYTES = 1 << 28  # of a chunk's float32 logits, by which the batch is chosen


class Request(NamedTuple):
    """Tokens of which the last ``targets`` are scored, each given those before it; at most context + 1 of them."""

    tokens: Sequence[int]
    targets: int


class Score(NamedTuple):
    """Of one request.

    Attributes:
      log_likelihood: sum over its targets, in nats, natural logarithm.
      is_greedy: whether each target is the likeliest token.
    """

    log_likelihood: float
    is_greedy: bool


def _score(params: Params, inputs_BxT: jax.Array, targets_BxT: jax.Array, is_target_BxT: jax.Array, *, graphdef):
    """(log-likelihoods float32 [B], whether all targets are the likeliest bool [B])."""
    model = merge_model(graphdef, params)
    x_BxTxD, _ = model.hidden(inputs_BxT)
    B, T = inputs_BxT.shape
    chunk = min(T, _CHUNK)

    def chunks(a: jax.Array) -> jax.Array:
        a = jnp.pad(a, [(0, 0), (0, -T % chunk), *[(0, 0)] * (a.ndim - 2)])
        return jnp.moveaxis(a.reshape(B, -1, chunk, *a.shape[2:]), 1, 0)

    def of_chunk(_: None, piece: tuple[jax.Array, ...]) -> tuple[None, tuple[jax.Array, jax.Array]]:
        x_BxCxD, targets_BxC, is_target_BxC = piece
        logits_BxCxV = model.logits(x_BxCxD).astype(jnp.promote_types(x_BxCxD.dtype, jnp.float32))
        target_BxC = jnp.take_along_axis(logits_BxCxV, targets_BxC[..., None], axis=-1)[..., 0]
        logp_BxC = target_BxC - jax.nn.logsumexp(logits_BxCxV, axis=-1)
        is_greedy_BxC = jnp.argmax(logits_BxCxV, axis=-1) == targets_BxC
        return None, (jnp.where(is_target_BxC, logp_BxC, 0.0), is_greedy_BxC | ~is_target_BxC)

    pieces = chunks(x_BxTxD), chunks(targets_BxT), chunks(is_target_BxT)
    _, (logp_NxBxC, is_greedy_NxBxC) = jax.lax.scan(of_chunk, None, pieces)
    return logp_NxBxC.sum(axis=(0, 2)), is_greedy_NxBxC.all(axis=(0, 2))


class Scorer:
    """Scores requests with one model.

    Args:
      graphdef: its structure.
      params: its parameters, laid over ``mesh`` if there is one.
      model: its configuration.
      mesh: over which batches are laid; None: all devices, each of which gets all parameters.
      batch_size: requests scored at a time; 0: as many as 256 MiB of logits allow. The scores do not depend on it.
    """

    def __init__(
        self, graphdef: nnx.GraphDef, params: Params, model: ModelConfig, mesh: Mesh | None = None, batch_size: int = 0
    ) -> None:
        if mesh is None:
            mesh = make_mesh(Config(train=TrainConfig(batch_size=jax.device_count())))
            params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        self._params, self.model, self._mesh = params, model, mesh
        everywhere = NamedSharding(mesh, PartitionSpec())  # every process reads the scores
        self._run = jax.jit(functools.partial(_score, graphdef=graphdef), out_shardings=everywhere)
        self._rows = mesh.shape["data"] * mesh.shape["fsdp"]
        self._batch_size = batch_size

    def score(self, requests: Sequence[Request], done: Callable[[int], None] = lambda _: None) -> list[Score]:
        """The scores of ``requests``, in their order; ``done`` is told how many are."""
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].tokens))
        scores: list[Score | None] = [None] * len(requests)
        at = 0
        while at < len(order):
            # the longest of a batch gives its shape: shapes are few, so programs are, too
            length = bucket(len(requests[order[at]].tokens) - 1, self.model.context_length)
            batch = order[at : at + self._size(length)]
            for i, score in zip(batch, self._score([requests[i] for i in batch], length), strict=True):
                scores[i] = score
            at += len(batch)
            done(at)
        return scores  # type: ignore[return-value]

    def _size(self, length: int) -> int:
        """Requests of a batch, a multiple of the rows of the mesh."""
        most = _LOGIT_BYTES // (4 * min(length, _CHUNK) * self.model.padded_vocab_size)
        most = min(most, (1 << 15) // length)
        return -(-max(1, self._batch_size or min(most, 256)) // self._rows) * self._rows

    def _score(self, requests: Sequence[Request], length: int) -> list[Score]:
        shape = self._size(length), length
        inputs, targets, is_target = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, bool)
        for row, (tokens, count) in enumerate(requests):
            n = len(tokens) - 1
            inputs[row, :n], targets[row, :n] = tokens[:-1], tokens[1:]
            is_target[row, n - count : n] = True
        sharding = NamedSharding(self._mesh, PartitionSpec(BATCH))
        arrays = (jax.device_put(a, sharding) for a in (inputs, targets, is_target))
        sums, greedy = jax.device_get(self._run(self._params, *arrays))
        return [Score(float(s), bool(g)) for s, g in zip(sums, greedy, strict=True)][: len(requests)]
