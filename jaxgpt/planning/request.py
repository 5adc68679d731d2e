"""``--topology``: what it may name. Imports no JAX, so that the environment can be set before that is."""

import os
import re
from typing import NamedTuple

from jaxgpt.chips import CHIPS, Chip
from scratchgpt.errors import UserError

_TPU_AXES = {"v5e": 2, "v6e": 2, "v5p": 3}
_TPU_LONGEST = {"v5e": 16, "v6e": 16, "v5p": 28}  # chips along an axis of a pod; libtpu aborts beyond


class Request(NamedTuple):
    """A topology by its name.

    Attributes:
      name: as given.
      kind: "tpu" is compiled for ahead of time, "gpu" estimated, "local" compiled for the devices at hand.
      chip: None for local.
      sizes: chips along each axis; empty for local.
    """

    name: str
    kind: str
    chip: Chip | None
    sizes: tuple[int, ...]


def parse(name: str) -> Request:
    """What ``--topology`` asks for. Raises UserError with the list of what there is."""
    if name == "local":
        return Request(name, "local", None, ())
    chip_name, _, size = name.partition(":")
    chip = CHIPS.get(chip_name)
    tpus = ", ".join(f"{n}:{'x'.join(['4'] * axes)}" for n, axes in _TPU_AXES.items())
    gpus = ", ".join(f"{n}:8" for n, c in CHIPS.items() if c.platform == "gpu")
    known = f"local; TPUs by the chips along each axis, such as {tpus}; GPUs by their number, such as {gpus}"
    if chip is None or not re.fullmatch(r"\d{1,4}(x\d{1,4})*", size):
        raise UserError(f"--topology={name!r} is none of: {known}")
    sizes = tuple(map(int, size.split("x")))
    axes = _TPU_AXES.get(chip_name, 1)
    if len(sizes) != axes or 0 in sizes:
        raise UserError(f"--topology={name!r} must give {axes} size(s) of at least 1: {known}")
    if chip.platform == "tpu" and max(sizes) > _TPU_LONGEST[chip_name]:
        raise UserError(f"--topology={name!r}: a pod has at most {_TPU_LONGEST[chip_name]} chips along an axis")
    if chip.platform == "gpu" and sizes[0] > 256:
        raise UserError(f"--topology={name!r}: plans go up to 256 GPUs")
    return Request(name, chip.platform, chip, sizes)


def prepare_environment(request: Request) -> None:
    """What must be set before JAX is imported: no search for a TPU's metadata server, and the CPU as JAX's device."""
    if request.kind == "local":
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    if request.kind == "tpu":
        os.environ |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # plans side by side: none of them opens a TPU
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_ACCELERATOR_TYPE": "v5litepod-1",  # only so that libtpu does not ask; the description says what is so
        }
