"""What the backward pass needs of the forward pass, measured on shapes alone."""

import copy
import math

import jax

from jaxgpt.fast_attention import query_blocks
from jaxgpt.params import merge_model
from jaxgpt.planning.program import Program


def saved_bytes(program: Program, remat: str | None = None) -> int:
    """Bytes that a device keeps of one micro-batch's forward pass, with the run's own ``train.remat`` or another.

    The growth of what ``jax.vjp`` keeps from one batch size to another: whatever does not grow with the batch is
    weights. Of activations that the tensor axis splits a device has its part.
    """
    if remat is not None and remat != program.config.train.remat:
        config = copy.deepcopy(program.config)
        config.train.remat = remat
        program = Program(config, program.devices)
    rows = program.rows
    growth = _residual_bytes(program, 2 * rows) - _residual_bytes(program, rows)  # of `rows` examples
    return math.ceil(growth * program.micro_batch_size / rows**2)


def _residual_bytes(program: Program, examples: int) -> float:
    """Of a micro-batch of so many examples, over all devices but those of the tensor axis."""
    steps, model = program.steps, program.model
    batch = {n: jax.ShapeDtypeStruct((examples, *x.shape[2:]), x.dtype) for n, x in program.batch.items()}
    trained = program.objective.is_trained

    def residuals(params: dict[str, jax.Array], batch: dict[str, jax.Array]) -> object:
        key = jax.random.key(0) if model.dropout else None
        fixed = {name: p for name, p in params.items() if not trained(name)}

        def loss(learned: dict[str, jax.Array]) -> jax.Array:
            return program.objective.loss_sums(merge_model(steps.graphdef, fixed | learned), batch, key)[0]

        return jax.vjp(loss, {name: p for name, p in params.items() if trained(name)})[1]

    params = {n: jax.ShapeDtypeStruct(p.shape, p.dtype) for n, p in steps.abstract_state["params"].items()}
    split = {model.n_head, model.n_kv_head, model.mlp_dim, model.padded_vocab_size}
    split |= {model.n_head * model.head_dim, model.n_kv_head * model.head_dim}
    split -= {model.n_embd}  # where it is as wide as all heads it cannot be told from them, and counts as whole
    tensor = program.mesh.shape["tensor"]
    total = widest = 0.0
    for leaf in jax.tree.leaves(jax.eval_shape(residuals, params, batch)):
        size = leaf.size * leaf.dtype.itemsize / (tensor if split & set(leaf.shape[-2:]) else 1)
        if leaf.shape[-1:] == (model.padded_vocab_size,) and leaf.size > examples * model.padded_vocab_size:
            widest = max(widest, size)  # the logits; what else is so wide XLA computes from them where it is used
        else:
            total += size
    return total + widest


def probabilities_bytes(program: Program) -> int:
    """Bytes of attention's probabilities among :func:`saved_bytes` where they are those of a CPU's blocked attention.

    A GPU's fused kernel keeps none of them, but one float32 of statistics a query and head, which is taken off here.
    """
    model, train = program.model, program.config.train
    if model.dropout or train.remat != "none":
        return 0
    length = train.sequence_length or model.context_length
    seen = sum((stop - start) * stop for start, stop in query_blocks(length))
    sequences = program.micro_batch_size * program.tokens_per_step // (length * program.config.train.batch_size)
    heads = model.n_layer * model.n_head / program.mesh.shape["tensor"]
    return int(sequences / program.rows * heads * (seen * program.steps.dtype.itemsize - 4 * length))
