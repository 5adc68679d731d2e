"""Settings of every test process, and of the commands that tests run."""

import os

# A test worker a core: PyTorch's threads would wait for each other by spinning, and tests take several times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
