"""The devices of a topology, and how they are had without being there."""

import os
from typing import NamedTuple

import jax

from configs.schema import Config
from jaxgpt.chips import Chip, chip_of
from jaxgpt.planning.request import Request
from scratchgpt.errors import UserError


class Topology(NamedTuple):
    """Devices to plan for.

    Attributes:
      name: as given.
      devices: what a mesh is made of; of a GPU topology, stand-ins that only carry shardings.
      chip: None where its speed is not known.
      usable_bytes: what a program may fill of a device's memory; 0: not known.
      is_estimate: no compiler is at hand for these devices.
      compiler: name and version of what compiles.
    """

    name: str
    devices: list[jax.Device]
    chip: Chip | None
    usable_bytes: int
    is_estimate: bool
    compiler: str


def open_topology(request: Request, config: Config) -> Topology:
    """The devices of ``request``. Raises UserError where libtpu is missing or knows no such slice.

    Sets up JAX: nothing must have been computed before. For GPUs, ``train.dtype=auto`` becomes bfloat16 in ``config``.
    """
    if request.kind == "local":
        return _local(config)
    jax.config.update("jax_enable_compilation_cache", False)  # what is compiled for other devices cannot be read again
    jax.config.update("jax_enable_x64", config.train.dtype == "float64")
    if request.kind == "gpu":
        jax.config.update("jax_num_cpu_devices", request.sizes[0])
        if config.train.dtype == "auto":
            config.train.dtype = "bfloat16"
        devices = jax.devices("cpu")
        return Topology(request.name, devices, request.chip, request.chip.usable_bytes, True, "no compiler")
    return Topology(
        request.name,
        _tpu_devices(request),
        request.chip,
        request.chip.usable_bytes,
        False,
        f"libtpu {libtpu_version()}",
    )


def libtpu_version() -> str:
    """Of the TPU compiler at hand. Raises UserError if there is none."""
    try:
        from libtpu import __version__
    except ImportError:
        raise UserError(
            'planning for a TPU needs its compiler: pip install -e ".[plan]" (it needs no TPU), or choose a GPU'
            " topology, which is estimated"
        ) from None
    return __version__


def _tpu_devices(request: Request) -> list[jax.Device]:
    from jax.experimental import topologies

    libtpu_version()
    bounds = (min(2, request.sizes[0]), min(2, request.sizes[1]), 1)  # chips of a host, at most
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=request.name, chips_per_host_bounds=bounds
        )
    except Exception as e:  # libtpu's own exceptions are of no type that it exports
        sentence = str(e).strip().splitlines()[0]
        raise UserError(f"--topology={request.name!r}: libtpu describes no such slice ({sentence})") from None
    return list(described.devices)


def _local(config: Config) -> Topology:
    from jaxgpt.runtime import start_jax

    start_jax(config)
    devices = jax.devices()
    kind = devices[0].device_kind
    stats = devices[0].memory_stats() or {}
    usable = int(stats.get("bytes_limit", 0))
    if not usable and devices[0].platform == "cpu":
        usable = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)
    return Topology("local", devices, chip_of(kind), usable, False, f"jaxlib's compiler for {kind}")
