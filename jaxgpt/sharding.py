"""Devices, the mesh, and the one table that says how every array is laid out over it.

Axes: ``data`` splits the batch, ``fsdp`` splits the batch and every large parameter (Rajbhandari et al. 2020),
``tensor`` splits heads, MLP width and vocabulary (Shoeybi et al. 2019). There is no axis for the sequence: at the
contexts of this project a device holds whole sequences with room to spare.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs.schema import Config, ConfigError, ModelConfig, TrainConfig

BATCH = ("data", "fsdp")

# Parameter name -> mesh axis of each dimension; names as in jaxgpt.params, the leading axis of a block is its layer.
RULES: dict[str, P] = {
    "token_embedding": P("tensor", "fsdp"),
    "head": P("tensor", "fsdp"),
    "score": P(None, "fsdp"),
    "position_embedding": P(None, "fsdp"),
    "blocks.attn.q.kernel": P(None, "fsdp", "tensor"),
    "blocks.attn.k.kernel": P(None, "fsdp", "tensor"),
    "blocks.attn.v.kernel": P(None, "fsdp", "tensor"),
    "blocks.attn.o.kernel": P(None, "tensor", "fsdp"),
    "blocks.mlp.up.kernel": P(None, "fsdp", "tensor"),
    "blocks.mlp.gate.kernel": P(None, "fsdp", "tensor"),
    "blocks.mlp.down.kernel": P(None, "tensor", "fsdp"),
}
# An adapter's halves lie as the sides of the matrix that they stand beside.
for _kernel, _spec in [item for item in RULES.items() if item[0].endswith(".kernel")]:
    RULES[_kernel.replace("kernel", "lora_a")] = P(None, _spec[1], None)
    RULES[_kernel.replace("kernel", "lora_b")] = P(None, None, _spec[2])
RULES["blocks.attn.lora_a"] = RULES["blocks.attn.q.lora_a"]
RULES["token_embedding_new"] = RULES["head_new"] = P(None, "fsdp")


def make_mesh(config: Config, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a run over ``devices``, or all at hand. Raises ConfigError naming the size that does not divide."""
    at_hand = devices is None
    devices = jax.devices() if at_hand else devices
    sizes = {"data": config.mesh.data, "fsdp": config.mesh.fsdp, "tensor": config.mesh.tensor}
    fixed = int(np.prod([n for n in sizes.values() if n != -1]))
    if len(devices) % fixed or (-1 not in sizes.values() and fixed != len(devices)):
        advice = "" if -1 in sizes.values() else "; one of the three may be -1, all that are left"
        if at_hand and devices[0].platform == "cpu":
            advice += "; mesh.cpu_devices=N makes N devices of a CPU"
        raise ConfigError(
            f"mesh: data x fsdp x tensor = {' x '.join(map(str, sizes.values()))} does not come to the"
            f" {len(devices)} devices there are{advice}"
        )
    sizes = {name: len(devices) // fixed if n == -1 else n for name, n in sizes.items()}
    _check_rows(config.train, sizes["data"] * sizes["fsdp"])
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3, devices=devices)


def _check_rows(train: TrainConfig, rows: int) -> None:
    """Raise ConfigError unless a micro batch divides over ``rows`` groups of devices."""
    key, micro = ("micro_batch_size", train.micro_batch_size) if train.micro_batch_size else ("batch_size", 0)
    micro = micro or train.batch_size
    if not micro % rows:
        return
    advice = f"train.batch_size must be a multiple of {rows}"
    if train.batch_size % rows == 0:
        sizes = [n for n in range(rows, train.batch_size + 1, rows) if train.batch_size % n == 0]
        advice = f"nearest: {min(sizes, key=lambda n: abs(n - micro))}"
    raise ConfigError(
        f"train.{key}={micro} sequences do not divide over the mesh's data x fsdp = {rows} devices; {advice}"
    )


def check_model_fits(model: ModelConfig, mesh: Mesh) -> None:
    """Raise ConfigError unless the resolved model's sizes divide by the mesh axes that split them."""
    split = {
        "tensor": {
            "n_head": model.n_head,
            "n_kv_head": model.n_kv_head,
            "mlp_dim": model.mlp_dim,
            "padded_vocab_size": model.padded_vocab_size,
        },
        "fsdp": {"n_embd": model.n_embd},
    }
    for axis, fields in split.items():
        for name, size in fields.items():
            parts = mesh.shape[axis]
            if size % parts:
                padded = f"; set model.{name}={-(-size // parts) * parts}" if name == "padded_vocab_size" else ""
                raise ConfigError(f"model.{name}={size} does not divide by mesh.{axis}={parts}{padded}")


def tree_shardings(tree: object, mesh: Mesh) -> object:
    """A NamedSharding for every leaf of a training state: parameters and their optimizer slots by RULES.

    A leaf belongs to the parameter whose name is the last dict key on its path; everything else is replicated.
    """

    def sharding(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
        spec = RULES.get(keys[-1], P()) if keys and leaf.ndim else P()
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of a batch [micro batches, sequences, tokens]: sequences over data and fsdp."""
    return NamedSharding(mesh, P(None, BATCH, None))


def local_rows(mesh: Mesh, count: int) -> slice:
    """The rows, of ``count`` in a batch, that this process's devices hold.

    Raises ConfigError if they do not lie side by side, which no mesh of :func:`make_mesh` over whole hosts does.
    """
    places = NamedSharding(mesh, P(BATCH)).addressable_devices_indices_map((count,)).values()
    bounds = {place[0].indices(count)[:2] for place in places}
    start, stop = min(b[0] for b in bounds), max(b[1] for b in bounds)
    if sum(b[1] - b[0] for b in bounds) != stop - start:
        raise ConfigError(f"mesh: the rows of process {jax.process_index()} do not lie side by side: {sorted(bounds)}")
    return slice(start, stop)


def platform_of(mesh: Mesh | None) -> str:
    """ "cpu", "gpu" or "tpu": what the devices of ``mesh`` are; None: the default device."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def pin(mesh: Mesh | None, x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """``x`` laid out over ``mesh`` as ``axes`` say, one for each dimension, if it divides it.

    Without a mesh, ``x`` itself. GSPMD guesses the layout of whatever is not pinned, and guesses badly where parameters
    and batch share an axis.
    """
    if mesh is None or mesh.size == 1:
        return x

    def fitting(size: int, axis: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        names = (axis,) if isinstance(axis, str) else axis or ()
        return axis if names and size % int(np.prod([mesh.shape[n] for n in names])) == 0 else None

    spec = P(*[fitting(size, axis) for size, axis in zip(x.shape, axes, strict=True)])
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
