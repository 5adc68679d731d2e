"""AdamW and Muon on a flat parameter dict, grouped by what each parameter is for.

The transforms use the peak learning rates; the train step multiplies the finished update by
``scratchgpt.schedule.lr_multiplier``, which decoupled weight decay allows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from configs.schema import OptimConfig
from jaxgpt.sharding import RULES, pin
from scratchgpt.hf_layout import parameter_role

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def clip_factor(norm: jax.Array, clip_norm: float) -> jax.Array:
    """Factor that brings a gradient of global norm ``norm`` down to ``clip_norm`` (0: no clipping)."""
    return jnp.minimum(1.0, clip_norm / jnp.maximum(norm, 1e-12)) if clip_norm else jnp.ones_like(norm)


def orthogonalize(g_LxMxN: jax.Array) -> jax.Array:
    """The nearest semi-orthogonal matrix to each [M, N] matrix, roughly: five quintic Newton-Schulz steps.

    K. Jordan et al., "Muon" (2024). Singular values end up in about [0.7, 1.2].
    """
    a, b, c = NEWTON_SCHULZ
    tall = g_LxMxN.shape[-2] > g_LxMxN.shape[-1]
    x = jnp.swapaxes(g_LxMxN, -1, -2) if tall else g_LxMxN
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        s = x @ jnp.swapaxes(x, -1, -2)
        x = a * x + (b * s + c * (s @ s)) @ x
    return jnp.swapaxes(x, -1, -2) if tall else x


def by_whole_layers(
    function: Callable[[jax.Array], jax.Array], x_LxMxN: jax.Array, mesh: Mesh | None, spec: PartitionSpec
) -> jax.Array:
    """``function`` of matrices, the layers shared out among all devices of ``mesh``, padded to a multiple of them.

    ``spec`` is how the matrices lie over the mesh, before and after.
    """
    if mesh is None or mesh.size == 1:
        return function(x_LxMxN)
    layers = len(x_LxMxN)
    x_LxMxN = jnp.pad(x_LxMxN, [(0, -layers % mesh.size), (0, 0), (0, 0)])
    # From pieces of matrices to whole ones, an axis at a time: each is one exchange, and the partitioner knows no way
    # for all at once but to gather everything everywhere. Back the same way. Padded where they lie, else the one of jax
    # 0.12 shares out the layers before it pads, for which it gathers them as well.
    without_fsdp = ["tensor" if axis == "tensor" else None for axis in spec[1:]]
    layouts: list[tuple[Any, Any, Any]] = [
        (None, *spec[1:]),
        ("fsdp", *without_fsdp),
        (("fsdp", "tensor"), None, None),
        (("fsdp", "tensor", "data"), None, None),
    ]
    for axes in layouts:
        x_LxMxN = pin(mesh, x_LxMxN, *axes)
    x_LxMxN = function(x_LxMxN)
    for axes in layouts[-2::-1]:
        x_LxMxN = pin(mesh, x_LxMxN, *axes)
    return x_LxMxN[:layers]


class MuonState(NamedTuple):
    """Running sum of gradients, one array a parameter."""

    momentum: optax.Updates


def scale_by_muon(momentum: float, mesh: Mesh | None = None) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised, times sqrt(max(1, fan_out / fan_in)); matrices are [L, in, out].

    Over a mesh, each device orthogonalises whole matrices: pieces would have to be exchanged in every product.
    """

    def init(params: optax.Params) -> MuonState:
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(grads: optax.Updates, state: MuonState, params: optax.Params | None = None):
        buffers = jax.tree.map(lambda g, m: momentum * m + g, grads, state.momentum)

        def direction(path: tuple[Any, ...], g: jax.Array, m: jax.Array) -> jax.Array:
            fan_in, fan_out = g.shape[-2:]
            whole = by_whole_layers(orthogonalize, g + momentum * m, mesh, RULES[path[-1].key])
            return whole * max(1.0, fan_out / fan_in) ** 0.5

        return jax.tree_util.tree_map_with_path(direction, grads, buffers), MuonState(buffers)

    return optax.GradientTransformation(init, update)


def make_optimizer(optim: OptimConfig, mesh: Mesh | None = None) -> optax.GradientTransformation:
    """The optimizer of a run, over a flat dict of parameters that are laid over ``mesh``.

    Norm scales, biases and embeddings are not decayed; matrices and an untied head are (Loshchilov & Hutter 2019).
    LoRA's adapters learn by AdamW in a Muon run too, since orthogonal steps of two factors make no orthogonal step of
    their product; their decay draws the model back to the one it began as.
    """

    def adamw(learning_rate: float, decay: bool) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(optim.beta1, optim.beta2, optim.eps),
            optax.add_decayed_weights(optim.weight_decay if decay else 0.0),
            optax.scale(-learning_rate),
        )

    matrix = adamw(optim.learning_rate, decay=True)
    if optim.optimizer == "muon":
        matrix = optax.chain(
            scale_by_muon(optim.muon_momentum, mesh),
            optax.add_decayed_weights(optim.weight_decay),
            optax.scale(-optim.muon_learning_rate),
        )
    groups = {
        "matrix": matrix,
        "vector": adamw(optim.learning_rate, decay=False),
        "embedding": adamw(optim.embedding_learning_rate or optim.learning_rate, decay=False),
        "adapter": adamw(optim.learning_rate, decay=True),
        "head": adamw(optim.head_learning_rate or optim.learning_rate, decay=True),
    }
    return optax.partition(groups, lambda params: {name: parameter_role(name) for name in params})


def apply_gradients(
    optimizer: optax.GradientTransformation,
    optim: OptimConfig,
    params: dict[str, jax.Array],
    slots: optax.OptState,
    grads: dict[str, jax.Array],
    multiplier: jax.Array,
) -> tuple[dict[str, jax.Array], optax.OptState, jax.Array]:
    """One update: clip ``grads`` by their global norm, step, scale by the schedule's ``multiplier``.

    Returns (new params, new slots, the norm before clipping).
    """
    norm = optax.global_norm(grads)
    factor = clip_factor(norm, optim.clip_norm)
    updates, slots = optimizer.update(jax.tree.map(lambda g: g * factor, grads), slots, params)
    return jax.tree.map(lambda p, u: p + u * multiplier.astype(u.dtype), params, updates), slots, norm
