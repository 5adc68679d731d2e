"""The least time that a step can take on a chip: that of its arithmetic, of its memory traffic, of its messages.

S. Williams et al., "Roofline" (2009): whichever of the three takes longest bounds the step, however well the others
hide behind it.
"""

from typing import NamedTuple

import jax

from jaxgpt.chips import Chip
from jaxgpt.flops import block_matrices, flops_per_token, head_matrix
from jaxgpt.planning.activations import saved_bytes
from jaxgpt.planning.hlo import Collective
from jaxgpt.planning.program import Program


class Bounds(NamedTuple):
    """Lower bounds of a step's time, in seconds; ``mfu`` is the share of the peak that they leave to the model."""

    compute: float
    hbm: float
    network: float
    mfu: float

    @property
    def step(self) -> float:
        """The largest of the three."""
        return max(self.compute, self.hbm, self.network)


def bounds(program: Program, chip: Chip, collectives: list[Collective]) -> Bounds:
    """Of a step of ``program`` on ``chip``. A collective's bytes are shared by all links of a chip, at full speed."""
    flops = flops_per_token(program.config, program.model)
    tokens = program.tokens_per_step / program.mesh.size  # of a device
    compute = flops.hardware * tokens / chip.peak_flops
    hbm = hbm_bytes(program) / chip.hbm_bandwidth
    network = sum(c.count * c.wire_bytes for c in collectives) / chip.link_bandwidth
    step = max(compute, hbm, network)
    return Bounds(compute, hbm, network, flops.model * tokens / chip.peak_flops / step)


def hbm_bytes(program: Program) -> int:
    """Bytes that a device must at least move between its memory and its cores in a step.

    In every micro-batch: the matrices, in the dtype of activations, read forward and backward (and once more where
    blocks are recomputed); the results of products with weights, if they are kept for the backward pass, written and
    read; the gradients written and read. Once: parameters and optimizer slots read and written. Everything else might
    stay on the chip.
    """
    config, model, steps = program.config, program.model, program.steps
    matrices = model.n_layer * block_matrices(model) + head_matrix(model)
    passes = 3 if config.train.remat == "block" else 2
    weights = passes * matrices * steps.dtype.itemsize // program.mesh.shape["tensor"]
    activations = 2 * saved_bytes(program, "block" if config.train.remat == "block" else "dots")
    return program.micro_batches * (weights + activations + 2 * gradient_bytes(program)) + 2 * program.state_bytes()


def gradient_bytes(program: Program) -> int:
    """Of the gradients of all parameters that learn, on a device."""
    params = program.steps.abstract_state["params"]
    learn = {name: p for name, p in params.items() if program.objective.is_trained(name)}
    return sum(
        jax.dtypes.canonicalize_dtype(p.dtype).itemsize * _numbers(p.sharding.shard_shape(p.shape))
        for p in learn.values()
    )


def _numbers(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
