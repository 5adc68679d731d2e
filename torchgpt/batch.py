"""Many prompts of unequal lengths continued at once.

Shapes: B rows, S tokens in the cache, of which a shorter row's first ones are padding; V vocabulary.
"""

from collections.abc import Collection, Sequence

import torch

from scratchgpt.sampling_flags import check_prompt, check_sampling
from torchgpt.model import GPT, KVCache
from torchgpt.sampling import choose

PADDING, TEXT = 0, 1  # segments, which do not see each other


@torch.inference_mode()
def generate_batch(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    stop_ids: Collection[int] = (),
) -> list[list[int]]:
    """The continuation of each of the prompts (token ids, of any lengths), without it, up to its first stop token.

    Greedily each is what :func:`torchgpt.sampling.generate` writes for its prompt alone, also beyond the context.
    Raises UserError for a prompt that :func:`check_prompt` refuses, and for impossible sampling values.
    """
    check_sampling(temperature, top_k, top_p, max_new_tokens)
    limit, device = model.config.context_length, model.token_embedding.weight.device
    for prompt in prompts:
        check_prompt(prompt, model.config)
    if not prompts:
        return []
    texts, begins = [list(prompt) for prompt in prompts], [0] * len(prompts)  # begins: first token that the cache holds
    done, cache, segments_BxS = [False] * len(prompts), None, None
    for _ in range(max_new_tokens):
        if cache is None or cache.length == limit:
            begins = [
                begin if len(text) - begin <= limit else len(text) - max(1, limit // 2)
                for text, begin in zip(texts, begins, strict=True)
            ]
            windows = [text[begin:] for text, begin in zip(texts, begins, strict=True)]
            longest = max(map(len, windows))
            cache = KVCache(model, len(windows), min(limit, longest + max_new_tokens))
            segments_BxS = torch.tensor([[PADDING] * (longest - len(w)) + [TEXT] * len(w) for w in windows])
            segments_BxS = segments_BxS.to(device)
            unread = [[0] * (longest - len(window)) + window for window in windows]
        else:
            segments_BxS = torch.nn.functional.pad(segments_BxS, (0, 1), value=TEXT)
            unread = [text[-1:] for text in texts]
        hidden_BxTxD = model.hidden(torch.tensor(unread, device=device), cache, segments_BxS)
        tokens = choose(model.logits(hidden_BxTxD[:, -1]).cpu(), temperature, top_k, top_p, generator).tolist()
        for row, token in enumerate(tokens):
            done[row] = done[row] or token in stop_ids
            texts[row].append(token)
        if all(done):
            break
    continuations = [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
    ends = [next((i for i, token in enumerate(row) if token in stop_ids), len(row)) for row in continuations]
    return [row[:end] for row, end in zip(continuations, ends, strict=True)]
