"""Memory and messages of a step where no compiler for the devices is at hand: an ESTIMATE, by formulas.

Exact: the training state, from its shardings. Measured on shapes: the activations that the backward pass needs. Taken
from how fully sharded data parallelism (Rajbhandari et al. 2020) and tensor parallelism (Shoeybi et al. 2019) work: the
weights that are gathered, and the collectives. A compiler may schedule better or worse.
"""

import time

from jaxgpt.flops import block_matrices, head_matrix
from jaxgpt.planning.activations import probabilities_bytes, saved_bytes
from jaxgpt.planning.hlo import Collective
from jaxgpt.planning.program import Compiled, Memory, Program
from jaxgpt.planning.roofline import gradient_bytes


def estimate(program: Program) -> Compiled:
    """What compiling ``program`` for GPUs with a fused attention kernel would about tell."""
    began = time.monotonic()
    batch = sum(x.size * x.dtype.itemsize for x in program.batch.values()) // program.rows
    arguments = program.state_bytes() + batch
    parts = _temporaries(program)
    temporaries = sum(parts.values())
    memory = Memory(arguments, temporaries, arguments + temporaries, parts)
    return Compiled(memory, _collectives(program), time.monotonic() - began)


def _temporaries(program: Program) -> dict[str, int]:
    """Bytes of a device beside state and batch, by what they are for."""
    model, train, shape = program.model, program.config.train, program.mesh.shape
    size, tensor = program.steps.dtype.itemsize, shape["tensor"]
    fused = _fused_attention(program)
    without = probabilities_bytes(program) if fused else 0
    saved = saved_bytes(program) - without
    gradients = gradient_bytes(program)
    positions = program.tokens_per_step // program.micro_batches // program.rows
    vocabulary = 0 if model.num_labels else model.padded_vocab_size // tensor
    logits = positions * vocabulary * 4  # float32
    chunk = train.loss_chunk if train.objective in ("pretrain", "sft") else 0
    parts = {"gradients": gradients}
    if program.micro_batches > 1:
        parts["gradients, accumulated"] = gradients
    parts["activations kept"] = saved - (0 if chunk else logits)
    # The loss comes first and leaves nothing behind: what it needs and what a block needs are not there together.
    moments = {"logits and their gradient": 2 * (min(chunk, positions) * vocabulary * 4 if chunk else logits)}
    if train.remat != "none":
        whole = saved_bytes(program, "none") - (_probabilities_if_kept(program) if fused else 0)
        moments["one block's activations, computed again"] = max(0, whole - saved) // model.n_layer
    highest = max(moments, key=moments.get)
    parts[highest] = moments[highest]
    if size < 4:
        parts["parameters in the dtype of activations"] = _parameter_bytes(program) * size // 4
    if shape["fsdp"] > 1:
        parts["weights gathered: two blocks"] = 2 * block_matrices(model) * size // tensor
    if not model.num_labels:
        head = head_matrix(model) // tensor
        parts["head gathered, and its gradient"] = head * (size + 4) if shape["fsdp"] > 1 else head * 4
    return parts


def _fused_attention(program: Program) -> bool:
    """Whether a GPU's fused kernel takes what :func:`jaxgpt.attention.causal_attention` would give it."""
    model, packed = program.model, "segments" in program.batch
    half = program.steps.dtype.itemsize == 2
    return half and not packed and not model.dropout and model.head_dim % 8 == 0 and model.head_dim <= 128


def _probabilities_if_kept(program: Program) -> int:
    """:func:`probabilities_bytes` of the same program without recomputation."""
    train = program.config.train
    remat, train.remat = train.remat, "none"
    try:
        return probabilities_bytes(program)
    finally:
        train.remat = remat


def _parameter_bytes(program: Program) -> int:
    return sum(t.bytes_per_device for t in program.tensors() if "(" not in t.name)


def _collectives(program: Program) -> list[Collective]:
    """Per step and device, of the mesh axes that are longer than 1."""
    model, shape, steps = program.model, program.mesh.shape, program.steps
    size, tensor, count = steps.dtype.itemsize, shape["tensor"], program.micro_batches
    found: list[Collective] = []
    matrices = [block_matrices(model)] * model.n_layer + [head_matrix(model)]
    for numbers in matrices:
        whole = numbers * size // tensor
        if shape["fsdp"] > 1:
            found.append(Collective("all-gather", 2 * count, whole, shape["fsdp"]))  # forward and backward
            found.append(Collective("reduce-scatter", count, whole // shape["fsdp"], shape["fsdp"]))
        if shape["data"] > 1:
            found.append(Collective("all-reduce", count, whole // shape["fsdp"], shape["data"]))
    if tensor > 1:
        positions = program.tokens_per_step // count // program.rows
        passes = 3 if program.config.train.remat == "block" else 2
        found.append(
            Collective("all-reduce", 2 * passes * model.n_layer * count, positions * model.n_embd * size, tensor)
        )
    return found
