"""The sampling values that a user may give, checked once for both frameworks."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from configs.schema import ModelConfig
from scratchgpt.errors import UserError

GREEDY_BELOW = 1e-5  # temperatures that float32 can no longer divide by; 0 among them


def check_sampling(
    temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, max_new_tokens: int = 0, num_samples: int = 1
) -> None:
    """Raise UserError naming the flag whose value cannot be."""
    if not 0 <= temperature < float("inf"):
        raise UserError(f"--temperature={temperature} must be a number from 0 (greedy) up")
    if top_k < 0:
        raise UserError(f"--top_k={top_k} must be 0 (all tokens) or more")
    if not 0 < top_p <= 1:
        raise UserError(f"--top_p={top_p} must be greater than 0 and at most 1")
    if max_new_tokens < 0:
        raise UserError(f"--max_new_tokens={max_new_tokens} must be 0 or more")
    if num_samples < 1:
        raise UserError(f"--num_samples={num_samples} must be at least 1")


def read_prompts(path: str) -> dict[str, str]:
    """The prompts of a text file, one a line, by the place where each stands; empty lines are left out.

    Raises UserError if there are none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # a byte order mark is no text
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"--prompts={path} cannot be read as text: {getattr(e, 'strerror', None) or e}") from e
    prompts = {f"{path}, line {number}": line for number, line in enumerate(lines, 1) if line.strip()}
    if not prompts:
        raise UserError(f"--prompts={path} holds no prompt: write one a line")
    return prompts


@contextlib.contextmanager
def errors_of(place: str) -> Iterator[None]:
    """Begin the sentence of a UserError with ``place``, if there is one."""
    try:
        yield
    except UserError as e:
        raise UserError(f"{place}: {e}" if place else str(e)) from e


def rows_at_once(model: ModelConfig) -> int:
    """How many texts to write together: as many as keep keys, values and activations within some 2 GiB."""
    floats_per_token = 2 * model.n_layer * model.n_kv_head * model.head_dim + 16 * model.n_embd
    return max(1, 2**31 // (4 * floats_per_token * model.context_length))


def check_prompt(prompt: Sequence[int], model: ModelConfig) -> None:
    """Raise UserError for a prompt (token ids) that is empty, longer than the context, or of unknown tokens."""
    if not prompt:
        raise UserError("the prompt is empty: give at least one token, such as the end of text")
    if len(prompt) > model.context_length:
        raise UserError(
            f"the prompt has {len(prompt)} tokens, the model's context holds {model.context_length}: shorten it"
        )
    if max(prompt) >= model.vocab_size:
        raise UserError(
            f"the prompt holds token {max(prompt)}, the model has {model.vocab_size}: the tokenizer is another model's"
        )
