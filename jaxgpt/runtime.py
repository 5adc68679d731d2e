"""JAX's own settings, made once before the first array."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from configs.schema import Config
from scratchgpt.errors import UserError

# jax 0.10 gives products on CPUs to YNNPACK, which is slower at them than Eigen; its sums over rows are worth having on
# one device, while several get into each other's way.
# Other versions end the process at a flag that they do not know.
_YNN = "--xla_cpu_experimental_ynn_fusion_type"

FITTING = (
    "lower train.micro_batch_size, set train.remat or train.loss_chunk, or spread the model with mesh.fsdp;"
    " `python -m jaxgpt.plan` tells what fits"
)


def cpu_thread_environment(devices: int) -> dict[str, str]:
    """The environment with NPROC, the size of XLA's CPU thread pool, large enough for ``devices``.

    Each device blocks a thread while it waits in a collective; in a pool of one thread a core the others may never run.
    """
    cores = os.cpu_count() or 1
    return os.environ | ({"NPROC": str(2 * max(cores, devices))} if devices > 1 else {})


@contextlib.contextmanager
def memory_errors(advice: str = FITTING) -> Iterator[None]:
    """Turn a failure for want of memory, on a device or the host, into a UserError that ends with ``advice``."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as e:
        found = str(e)
        if not isinstance(e, MemoryError) and "RESOURCE_EXHAUSTED" not in found and "Out of memory" not in found:
            raise
        raise UserError(f"the memory is not enough ({' '.join(found.split())[:200]}): {advice}") from e


def start_jax(config: Config | None = None) -> None:
    """Set up devices, precision and the persistent compilation cache (SCRATCHGPT_CACHE or ~/.cache/scratchgpt)."""
    given = os.environ.get("XLA_FLAGS", "")
    if jax.__version_info__[:2] == (0, 10) and _YNN not in given:
        kinds = "" if config is not None and config.mesh.cpu_devices > 1 else "LIBRARY_FUSION_TYPE_REDUCE"
        os.environ["XLA_FLAGS"] = f"{given} {_YNN}={kinds}".strip()
    root = os.environ.get("SCRATCHGPT_CACHE") or Path.home() / ".cache" / "scratchgpt"
    jax.config.update("jax_compilation_cache_dir", str(Path(root) / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if config is not None:
        os.environ.update(cpu_thread_environment(config.mesh.cpu_devices))
        jax.config.update("jax_num_cpu_devices", config.mesh.cpu_devices)
        jax.config.update("jax_enable_x64", config.train.dtype == "float64")
