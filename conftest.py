"""Settings of every test process, and of the commands that tests run."""

import os
import shutil
from pathlib import Path

# A test worker a core: PyTorch's threads would wait for each other by spinning, and tests take several times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Most of a test's time is compiling a small program that then runs for a moment: what was compiled once is kept, where
# the commands keep theirs, and on a CPU LLVM does not optimise it, which halves the time.
cache = Path(os.environ.get("SCRATCHGPT_CACHE") or Path.home() / ".cache" / "scratchgpt")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
if not shutil.which("nvidia-smi"):
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Tests' buffers are small: no command needs to start again for large pages (scratchgpt/large_pages.py).
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
