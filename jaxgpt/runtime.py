"""JAX's own settings, made once before the first array."""

import os
from pathlib import Path

import jax

from configs.schema import Config


def cpu_thread_environment(devices: int) -> dict[str, str]:
    """The environment with NPROC, the size of XLA's CPU thread pool, large enough for ``devices``.

    Each device blocks a thread while it waits in a collective; in a pool of one thread a core the others may never run.
    """
    cores = os.cpu_count() or 1
    return os.environ | ({"NPROC": str(2 * max(cores, devices))} if devices > 1 else {})


def start_jax(config: Config | None = None) -> None:
    """Set up devices, precision and the persistent compilation cache (SCRATCHGPT_CACHE or ~/.cache/scratchgpt)."""
    root = os.environ.get("SCRATCHGPT_CACHE") or Path.home() / ".cache" / "scratchgpt"
    jax.config.update("jax_compilation_cache_dir", str(Path(root) / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if config is not None:
        os.environ.update(cpu_thread_environment(config.mesh.cpu_devices))
        jax.config.update("jax_num_cpu_devices", config.mesh.cpu_devices)
        jax.config.update("jax_enable_x64", config.train.dtype == "float64")
