"""Several processes as one run: how they find one another, and how they agree.

Every process runs the same program on its own devices; arrays are spread over the devices of all (JAX's
multi-controller runtime). The first one writes the files.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgpt.params import Params
from scratchgpt.errors import UserError

COMPILATION_S = 1800  # that a process waits for the slowest to have compiled


def launcher(environment: Mapping[str, str]) -> str | None:
    """Who started this process as one of several, by its environment: slurm, ompi or tpu; else None.

    The allocation of a Slurm job alone is not enough: only ``srun`` starts a process for each task.
    """
    for name, count in (("slurm", "SLURM_STEP_NUM_TASKS"), ("ompi", "OMPI_COMM_WORLD_SIZE")):
        if environment.get(count, "1") not in ("", "0", "1"):
            return name
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment:
        return "tpu"
    return None


def join(mode: str, coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Join the run's other processes; before JAX's first use. Raises UserError if they cannot be found.

    Args:
      mode: ``auto`` joins if :func:`launcher` names one, or an address is given; ``always`` looks for others by
        whatever means JAX knows (a Cloud TPU slice tells its hosts by its metadata server); ``never``.
      coordinator: host:port of the first process; with it the other two count. Empty: as the launcher's environment
        says.
      num_processes: of the run.
      process_id: of this one, from 0.
    """
    if coordinator and (num_processes < 1 or not 0 <= process_id < num_processes):
        raise UserError(
            f"--coordinator_address={coordinator} needs --num_processes and --process_id from 0 below it, not"
            f" {num_processes} and {process_id}"
        )
    port = re.fullmatch(r".+:(\d{1,5})", coordinator)
    if coordinator and not (port and 0 < int(port[1]) < 2**16):
        raise UserError(f"--coordinator_address={coordinator} must be HOST:PORT, with a port from 1 to 65535")
    if not coordinator and (num_processes or process_id >= 0):
        raise UserError("--num_processes and --process_id need --coordinator_address=HOST:PORT of the first process")
    if mode == "never" or (mode == "auto" and not coordinator and launcher(os.environ) is None):
        return
    if process_id != 0 or num_processes > 1:  # an abort of JAX's, if nobody comes, tells less
        where = f" at {coordinator}" if coordinator else ""
        print(f"waiting up to 5 minutes for the run's other processes{where}", file=sys.stderr, flush=True)
    try:
        if coordinator:
            jax.distributed.initialize(coordinator, num_processes, process_id)
        else:
            jax.distributed.initialize()
    except Exception as e:  # of many types, as launchers differ
        how = f"at {coordinator}" if coordinator else f"as {launcher(os.environ) or 'this machine'} tells of them"
        raise UserError(
            f"the run's other processes cannot be joined {how} ({str(e)[:300]}): give --coordinator_address=HOST:PORT,"
            " --num_processes and --process_id, or --distributed=never"
        ) from e


def is_main() -> bool:
    """Whether this process writes the run's files."""
    return jax.process_index() == 0


@contextmanager
def main_first():
    """The first process runs the body before the others do, which then find what it has left."""
    from jax.experimental.multihost_utils import sync_global_devices

    if jax.process_count() > 1 and not is_main():
        sync_global_devices("main first")
    yield
    if jax.process_count() > 1 and is_main():
        sync_global_devices("main first")


def from_main(compute: Callable[[], float | None]) -> float | None:
    """What ``compute`` returns in the first process, for all: none of them may act on a file that another has changed.

    Raises in every process if it raises UserError in the first.
    """
    if jax.process_count() == 1:
        return compute()
    from jax.experimental.multihost_utils import broadcast_one_to_all

    failure, value = None, np.nan
    if is_main():
        try:
            found = compute()
            value = np.nan if found is None else found
        except UserError as e:
            failure = e
    told = np.array([failure is not None, value], np.float64).view(np.uint32)  # JAX would round 64 bits to 32
    failed, value = np.asarray(broadcast_one_to_all(told)).view(np.float64).tolist()
    if failed:
        raise failure or UserError("the first process has given up; its own output says why")
    return None if np.isnan(value) else value


def compiled_together(function: Any) -> Callable[..., Any]:
    """A jitted function that every process has compiled before any of them runs it.

    A first collective waits 30 s for the others (Gloo's limit), which may be minutes behind with a large program.
    """
    if jax.process_count() == 1:
        return function
    from orbax.checkpoint import multihost

    programs: dict[Any, Callable[..., Any]] = {}

    def call(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        key = structure, tuple((np.shape(leaf), np.dtype(leaf.dtype)) for leaf in leaves)
        if key not in programs:
            programs[key] = function.lower(*arguments).compile()
            everybody = set(range(jax.process_count()))
            multihost.sync_global_processes(f"compiled {len(programs)}", timeout=COMPILATION_S, processes=everybody)
        return programs[key](*arguments)

    return call


class StopVote:
    """Whether any process was told to stop; all learn it at the same step, so that all save the same one."""

    def __init__(self, mesh: Mesh) -> None:
        self._sharding = NamedSharding(mesh, P(mesh.axis_names))
        self._any = jax.jit(lambda votes: votes.any(), out_shardings=NamedSharding(mesh, P()))
        self._pending: jax.Array | None = None

    def __call__(self, stop: bool) -> bool:
        """Cast this process's vote; returns the outcome of the votes of the step before, which nobody waits for."""
        if jax.process_count() == 1:
            return stop
        votes = np.full(jax.local_device_count(), stop)
        before = self._pending
        self._pending = self._any(jax.make_array_from_process_local_data(self._sharding, votes))
        return before is not None and bool(before)


def on_host(params: Params) -> dict[str, np.ndarray]:
    """Whole arrays in the memory of every process, moved one at a time."""

    def whole(p: jax.Array) -> np.ndarray:
        if not p.is_fully_addressable:
            p = jax.jit(lambda x: x, out_shardings=NamedSharding(p.sharding.mesh, P()))(p)
        return np.asarray(p)

    return {name: whole(p) for name, p in params.items()}
