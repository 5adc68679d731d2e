"""The sampling values that a user may give, checked once for both frameworks."""

from scratchgpt.errors import UserError

GREEDY_BELOW = 1e-5  # temperatures that float32 can no longer divide by; 0 among them


def check_sampling(temperature: float, top_k: int, top_p: float, max_new_tokens: int = 0, num_samples: int = 1) -> None:
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
