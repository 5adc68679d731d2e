"""Large pages for a process's large buffers, where Linux gives them only to who asks.

XLA returns the memory of a training step to the C library at its end and takes it again at the next. The kernel clears
and hands it out anew every time, and in pages of 4 KiB that takes a tenth to a fifth of a step on a CPU
(docs/performance.md); in pages of 2 MiB, a fraction of it. glibc 2.35 and later asks for those if GLIBC_TUNABLES says
so when a process starts.
"""

import os
import sys
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb"
POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def start_again_with_large_pages(module: str) -> None:
    """Replace a process that began as ``python -m module ...`` by one with large pages, of the same id and streams.

    Returns where that would change nothing (another system, a kernel that gives large pages to all or to none, a user
    who has chosen) and where the module was started in another way, such as from a notebook or by a debugger.
    """
    given, began = os.environ.get("GLIBC_TUNABLES", ""), sys.orig_argv[1:]
    is_module = "-m" in began and began[began.index("-m") + 1] == module
    if not (is_module and sys.executable) or TUNABLE in given:
        return
    try:
        if "[madvise]" not in POLICY.read_text():
            return
    except OSError:  # no Linux, or one without large pages
        return
    environment = os.environ | {"GLIBC_TUNABLES": f"{given}:{TUNABLE}=1".lstrip(":")}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *began], environment)
