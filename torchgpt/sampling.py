"""From logits to text: temperature, top-k, top-p, and generation with a KV cache.

When the cache is full, the last ``context_length // 2`` tokens (at least 1) are encoded again and generation goes on.
``jaxgpt`` follows the same rule, so both write the same greedy text beyond the context as well.
"""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scratchgpt.sampling_flags import GREEDY_BELOW, check_prompt, check_sampling
from torchgpt.fast_decoding import FastDecoder
from torchgpt.model import GPT, KVCache


def filtered_probabilities(logits_BxV: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Probabilities [B, V] after temperature, then top-k, then top-p (Holtzman et al. 2020), in transformers' order.

    Top-k keeps every token as likely as the k-th. Top-p keeps the fewest most likely tokens whose mass reaches
    ``top_p``; equally likely tokens count in order of their id. Temperature 0 puts all mass on the first maximum.
    """
    if temperature < GREEDY_BELOW:
        return torch.nn.functional.one_hot(logits_BxV.argmax(-1), logits_BxV.shape[-1]).to(logits_BxV.dtype)
    # The maximum goes first: a tiny temperature must not make infinities.
    logits_BxV = (logits_BxV - logits_BxV.amax(-1, keepdim=True)) / temperature
    if 0 < top_k < logits_BxV.shape[-1]:
        kth_Bx1 = logits_BxV.topk(top_k).values[:, -1:]
        logits_BxV = logits_BxV.masked_fill(logits_BxV < kth_Bx1, float("-inf"))
    if top_p < 1:
        sorted_BxV, order_BxV = logits_BxV.softmax(-1).sort(dim=-1, descending=True, stable=True)
        before_BxV = sorted_BxV.cumsum(-1) - sorted_BxV
        before_BxV[:, 0] = -1  # the likeliest always stays
        keep_BxV = torch.empty_like(before_BxV, dtype=torch.bool).scatter_(-1, order_BxV, before_BxV < top_p)
        logits_BxV = logits_BxV.masked_fill(~keep_BxV, float("-inf"))
    return logits_BxV.softmax(-1)


def choose(
    logits_BxV: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None
) -> Tensor:
    """The next token of each row, int64 [B]; greedy or drawn from :func:`filtered_probabilities`."""
    if temperature < GREEDY_BELOW:
        return logits_BxV.argmax(-1)
    probabilities_BxV = filtered_probabilities(logits_BxV, temperature, top_k, top_p)
    return torch.multinomial(probabilities_BxV, 1, generator=generator)[:, 0]


class Step(NamedTuple):
    """One token, and what it was chosen from."""

    token: int
    logits_V: Tensor  # float32 on the CPU, before temperature and filters; padded tokens have -inf

    def alternatives(self, count: int) -> list[tuple[int, float]]:
        """(token, log probability) of the ``count`` likeliest tokens, likeliest first; at temperature 1, unfiltered."""
        logprobs, tokens = self.logits_V.log_softmax(-1).topk(min(count, len(self.logits_V)))
        pairs = zip(tokens.tolist(), logprobs.tolist(), strict=True)
        return [(token, logprob) for token, logprob in pairs if logprob > float("-inf")]

    @property
    def logprob(self) -> float:
        """Log probability of the token, in nats; at temperature 1, unfiltered."""
        return float(self.logits_V.log_softmax(-1)[self.token])


@torch.inference_mode()
def generate_steps(
    model: GPT,
    prompt: list[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    stop_ids: Collection[int] = (),
    decoder: FastDecoder | None = None,
) -> Iterator[Step]:
    """Yield the steps that continue ``prompt``, as they are made; ends before a stop token.

    ``generator`` is a CPU generator: the same seed gives the same text on every device that gives the same logits.
    ``decoder``, made once for ``model``, takes a token in fewer operations. Raises UserError for a prompt that
    :func:`check_prompt` refuses, and for impossible sampling values.
    """
    check_sampling(temperature, top_k, top_p, max_new_tokens)
    limit = model.config.context_length
    check_prompt(prompt, model.config)
    device = model.token_embedding.weight.device
    text, unread = list(prompt), list(prompt)
    cache = KVCache(model, 1, min(limit, len(prompt) + max_new_tokens))
    for _ in range(max_new_tokens):
        if cache.length + len(unread) > limit:
            unread = text[-max(1, limit // 2) :]
            cache.length = 0
        if decoder is not None and len(unread) == 1:
            hidden_BxTxD = decoder.hidden(unread[0], cache)
        else:
            hidden_BxTxD = model.hidden(torch.tensor([unread], device=device), cache)
        logits_BxV = model.logits(hidden_BxTxD[:, -1]).cpu()
        token = int(choose(logits_BxV, temperature, top_k, top_p, generator))
        if token in stop_ids:
            return
        yield Step(token, logits_BxV[0])
        text.append(token)
        unread = [token]


def generate(model: GPT, prompt: list[int], **options: Any) -> Iterator[int]:
    """The tokens alone of :func:`generate_steps`, which says what ``options`` there are."""
    for step in generate_steps(model, prompt, **options):
        yield step.token
