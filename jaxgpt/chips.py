"""What the makers say of their accelerators: memory, speed of arithmetic, of memory, and of the links between chips.

Figures of one chip, dense bfloat16, from Google's pages "TPU v5e", "TPU v5p" and "TPU v6e" (cloud.google.com/tpu/docs)
and NVIDIA's data sheets of the A100, H100 (SXM) and H200 (SXM). Makers give the links' speed of both directions
together; here it is one direction's, half of that.
"""

import re
from typing import NamedTuple


class Chip(NamedTuple):
    """One accelerator.

    Attributes:
      name: as in ``--topology``.
      platform: "tpu" or "gpu".
      hbm_bytes: of memory.
      peak_flops: dense bfloat16 FLOP/s, a multiplication and an addition counted as two.
      hbm_bandwidth: bytes/s.
      link_bandwidth: bytes/s that a chip can send, and receive at the same time, over all its links.
    """

    name: str
    platform: str
    hbm_bytes: int
    peak_flops: float
    hbm_bandwidth: float
    link_bandwidth: float

    @property
    def usable_bytes(self) -> int:
        """Of ``hbm_bytes``, what a program may fill.

        A TPU's runtime keeps 1/64 for itself (the compiler names its limit: 15.75 of 16 GiB); on a GPU the driver,
        NCCL, cuDNN and fragmentation want about a tenth.
        """
        return int(self.hbm_bytes * (63 / 64 if self.platform == "tpu" else 0.9))


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "tpu", 16 * 2**30, 197e12, 819e9, 200e9),
        Chip("v5p", "tpu", 95 * 2**30, 459e12, 2765e9, 600e9),
        Chip("v6e", "tpu", 32 * 2**30, 918e12, 1640e9, 400e9),
        Chip("a100-40g", "gpu", 40 * 2**30, 312e12, 1555e9, 300e9),
        Chip("a100-80g", "gpu", 80 * 2**30, 312e12, 2039e9, 300e9),
        Chip("h100", "gpu", 80 * 2**30, 989e12, 3350e9, 450e9),
        Chip("h200", "gpu", 141 * 10**9, 989e12, 4800e9, 450e9),
    )
}

# Beginnings of JAX's ``device.device_kind``. The PCIe and NVL forms of the H100 and H200 are slower: not in the table.
_KINDS = (
    (r"TPU v5 lite|TPU v5e", "v5e"),
    (r"TPU v5p?$", "v5p"),
    (r"TPU v6 lite|TPU v6e", "v6e"),
    (r"NVIDIA A100.*40GB", "a100-40g"),
    (r"NVIDIA A100.*80GB", "a100-80g"),
    (r"NVIDIA H100 80GB HBM3", "h100"),
    (r"NVIDIA H200$", "h200"),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX calls ``device_kind``, or None where its figures are not known here."""
    return next((CHIPS[name] for pattern, name in _KINDS if re.match(pattern, device_kind)), None)
