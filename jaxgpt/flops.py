"""How many floating-point operations a token of training takes.

A product with a matrix of M numbers takes 2 M FLOPs a token forward (a multiplication and an addition each) and twice
that backward (the gradients of its input and of the matrix), 6 M in all (Kaplan et al. 2020, Chowdhery et al. 2022).
A causal query sees (T + 1) / 2 keys on average in a sequence of T tokens, so that its products with keys and values
take 2 * 2 * H K (T + 1) / 2 = 2 H K (T + 1) forward in each of L layers. Together, for H heads of width K:

    model FLOPs per token = 6 (L * matrices of a block + head) + 6 L H K (T + 1)

The upper triangle of attention is not counted; nor are lookups in embeddings, norms, activation functions, the softmax
and the optimizer. The head is a product over all V x D numbers of the padded vocabulary, tied or not; a classifier's is
num_labels x D. Documents packed side by side count as one sequence.

A matrix that does not learn (beside LoRA's adapters, or below a classifier's head that learns alone) has no gradient of
its own: 4 M; with nothing that learns before it no backward pass at all: 2 M.
"""

from typing import NamedTuple

from configs.schema import Config, ModelConfig, resolve_model


class Flops(NamedTuple):
    """FLOPs per token.

    Attributes:
      model: what the loss and its gradient need; MFU counts these (Chowdhery et al. 2022).
      hardware: with what ``train.remat`` computes a second time. block: the blocks' forward pass; dots: of it, the
        products of attention only. (Fused attention computes scores again in any case: not counted.)
    """

    model: float
    hardware: float


def block_matrices(model: ModelConfig) -> int:
    """Numbers in the matrices of one block of a resolved model."""
    queries, keys = model.n_head * model.head_dim, model.n_kv_head * model.head_dim
    mlp = (3 if model.mlp == "swiglu" else 2) * model.n_embd * model.mlp_dim
    return model.n_embd * (2 * queries + 2 * keys) + mlp


def head_matrix(model: ModelConfig) -> int:
    """Numbers in the last matrix of a resolved model."""
    return model.n_embd * (model.num_labels or model.padded_vocab_size)


def flops_per_token(config: Config, model: ModelConfig) -> Flops:
    """Of a run of the resolved ``model``, whose vocabulary must be known, on sequences of the run's length."""
    model, train = resolve_model(model), config.train
    length = train.sequence_length or model.context_length
    blocks, head = model.n_layer * block_matrices(model), head_matrix(model)
    attention = 2 * model.n_layer * model.n_head * model.head_dim * (length + 1)  # forward
    if train.objective == "classify" and config.classify.trained == "head":
        total = 2 * blocks + attention + 4 * head  # the head's matrix needs a gradient, its input none
        return Flops(total, total)
    rank = config.lora.rank
    adapters = model.n_layer * _adapter_numbers(model, rank) if rank else 0
    total = (4 * blocks + 6 * adapters + 4 * head) if rank else 6 * (blocks + head)
    total += 3 * attention
    again = {"none": 0, "dots": attention, "block": 2 * (blocks + adapters) + attention}[train.remat]
    return Flops(total, total + again)


def _adapter_numbers(model: ModelConfig, rank: int) -> int:
    """Numbers that LoRA's adapters of one block multiply a token with (one A that q, k and v share counts thrice)."""
    d, queries, keys = model.n_embd, model.n_head * model.head_dim, model.n_kv_head * model.head_dim
    sides = [(d, queries), (d, keys), (d, keys), (queries, d), (d, model.mlp_dim), (model.mlp_dim, d)]
    sides += [(d, model.mlp_dim)] if model.mlp == "swiglu" else []
    return rank * sum(size_in + size_out for size_in, size_out in sides)
