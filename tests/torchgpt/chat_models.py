"""Tiny models to talk to: one that has learned its answers by heart, and one that never comes to an end."""

import json
from pathlib import Path

import torch

from configs.schema import llama, qwen3
from data_prep.chat import ChatFormat, Message, add_chat_tokens
from data_prep.tokenizers import Tokenizer, bpe_json, bpe_tokenizer, char_tokenizer
from scratchgpt.hf_layout import parameter_role
from torchgpt.hf import save_model
from torchgpt.model import GPT, cross_entropy_sums

ANSWERS = {
    "hello": "Hi there! How are you?",
    "count": "1, 2, 3, 4, 5, 6, 7, 8, 9.",
    "tag": "<b>bold</b><script>document.title = 'broken'</script>",
}
CONTEXT = 160


def characters() -> Tokenizer:
    """Printable ASCII, a few characters of more than one byte, and the chat's separator."""
    return add_chat_tokens(char_tokenizer(["".join(map(chr, range(32, 127))) + "\né漢😀"]))


def byte_pairs() -> Tokenizer:
    """Single bytes, three merges, and the marks of a chat."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # GPT-2's names of the bytes
    tokens = [*map(chr, printable), *(chr(256 + i) for i in range(256 - len(printable))), "he", "ll", "hell"]
    vocabulary = {token: i for i, token in enumerate(tokens)} | {"<|endoftext|>": len(tokens)}
    merges = [("h", "e"), ("l", "l"), ("he", "ll")]
    return add_chat_tokens(bpe_tokenizer(json.dumps(bpe_json(vocabulary, merges, len(tokens))).encode()))


def save_trained(directory: Path) -> Path:
    """A model that gives ANSWERS, each on its own or as the second of a conversation, and stops."""
    tokenizer = characters()
    chat_format = ChatFormat(tokenizer)
    turns = [[Message("user", q), Message("assistant", a)] for q, a in ANSWERS.items()]
    conversations = [chat_format.encode(one + other) for one in turns for other in turns]
    model = GPT(llama(n_layer=2, n_head=4, n_embd=64, context_length=CONTEXT, vocab_size=tokenizer.size))
    model.initialize(torch.Generator().manual_seed(0))
    ids_BxT = torch.full((len(conversations), max(len(ids) for ids, _ in conversations)), tokenizer.end_of_text_id)
    weights_BxT = torch.zeros(ids_BxT.shape)
    for row, (ids, is_response) in enumerate(conversations):
        ids_BxT[row, : len(ids)] = torch.from_numpy(ids)
        weights_BxT[row, : len(ids)] = torch.from_numpy(is_response)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.95), weight_decay=0.0)
    loss = float("inf")
    while loss > 0.02:
        total, weight = cross_entropy_sums(model(ids_BxT[:, :-1]), ids_BxT[:, 1:], weights_BxT[:, 1:])
        optimizer.zero_grad()
        (total / weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss = (total / weight).item()
    save_model(model, tokenizer, directory)
    return directory


def save_endless(directory: Path, context: int = 20_000) -> Path:
    """A random model that never stops at temperature 0: the logits of its special tokens are 0, never the largest."""
    tokenizer = byte_pairs()
    model = GPT(qwen3(n_layer=1, n_head=2, n_embd=32, context_length=context, vocab_size=tokenizer.size))
    random = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        p.data = torch.randn(p.shape, generator=random) * (0.3 if parameter_role(name) != "vector" else 1.0)
    model.head.weight.data[[*ChatFormat(tokenizer).stop_ids]] = 0.0
    save_model(model, tokenizer, directory)
    return directory
