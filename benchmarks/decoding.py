"""Tokens a second at batch 1, ours beside transformers' ``generate``, and both beside what the memory can deliver.

    python -m benchmarks.decoding [--models=llama-135M,gpt2-124M] [--rounds=5] [--only=torchgpt,...]

Random float32 weights, a prompt of 128 tokens, 128 new ones, greedy, all cores, each contender in a process of its own,
in turns. "with the prompt" is 128 tokens over the time of the whole call; "decoding" leaves out the prompt and the
first token. A new token needs every weight once: "of the bandwidth" is the bytes of the weights times tokens a second,
over the bandwidth of a copy between two large arrays (bytes read and written), measured in the same process just
before and after, because a shared machine's memory changes its speed within seconds. "matvec chain" is nothing but the
model's matrices times a vector, one behind the other, in the blocks of ``torchgpt.blocked``.
"""

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from absl import flags

from benchmarks.turns import PEAK_MEMORY, Figures, check_names, figures_of, machine, median, median_ratio, take_turns
from configs.schema import ModelConfig, gpt2, llama
from scratchgpt import cli as command
from scratchgpt.errors import UserError

PROMPT, NEW = 128, 128
MODELS = {
    "llama-135M": lambda: llama(
        n_layer=30,
        n_head=9,
        n_kv_head=3,
        n_embd=576,
        mlp_dim=1536,
        context_length=2048,
        vocab_size=49152,
        tie_embeddings=True,
    ),
    "gpt2-124M": lambda: gpt2(n_layer=12, n_head=12, n_embd=768, context_length=1024, vocab_size=50257),
    "tiny": lambda: llama(n_layer=2, n_head=2, n_embd=64, context_length=256, vocab_size=512),
}


def write_weights(model: ModelConfig, directory: Path) -> None:
    """A Hugging Face directory of random weights."""
    import torch

    from data_prep.tokenizers import CharTokenizer
    from torchgpt.hf import save_model
    from torchgpt.model import GPT

    characters = CharTokenizer([chr(33 + i) for i in range(model.vocab_size - 1)])
    save_model(GPT(model).initialize(torch.Generator().manual_seed(0)), characters, directory)


def prompt_of(model: ModelConfig) -> list[int]:
    """Tokens that have nothing to do with each other."""
    import numpy as np

    return np.random.default_rng(0).integers(0, model.vocab_size, PROMPT).tolist()


def torchgpt(model: ModelConfig, directory: Path, int8: bool = False) -> tuple[Callable[[int], object], int]:
    """(a function that writes so many tokens, bytes of the weights that a token needs) of the PyTorch twin."""
    from torchgpt.fast_decoding import FastDecoder
    from torchgpt.hf import load_model
    from torchgpt.int8 import quantize
    from torchgpt.sampling import generate

    loaded = quantize(load_model(directory)) if int8 else load_model(directory)
    size = sum(p.numel() * p.element_size() for p in loaded.state_dict().values())
    if int8 or not model.tie_embeddings:  # rows are looked up
        size -= sum(p.numel() * p.element_size() for p in loaded.token_embedding.parameters())
    decoder = FastDecoder(loaded)
    return lambda n: list(generate(loaded, prompt_of(model), max_new_tokens=n, temperature=0, decoder=decoder)), size


def jaxgpt(model: ModelConfig, directory: Path) -> tuple[Callable[[int], object], int]:
    """The same of jaxgpt."""
    import jax

    from jaxgpt.decoding import generate
    from jaxgpt.loading import load_weights
    from jaxgpt.runtime import start_jax

    start_jax()
    graphdef, params, resolved = load_weights(directory)
    size = sum(p.nbytes for p in jax.tree.leaves(params))
    return lambda n: generate(graphdef, params, resolved, prompt_of(model), max_new_tokens=n, temperature=0)[0], size


def transformers(model: ModelConfig, directory: Path) -> tuple[Callable[[int], object], int]:
    """The same of transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = torch.tensor([prompt_of(model)])

    def write(n: int) -> list[int]:
        out = loaded.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=n,
            min_new_tokens=n,
            pad_token_id=0,
        )
        return out[0, PROMPT:].tolist()

    return write, sum(p.numel() * p.element_size() for p in loaded.parameters())


def matvec_chain(model: ModelConfig, directory: Path) -> tuple[Callable[[int], object], int]:
    """The products alone, in torchgpt's blocks."""
    import torch

    from torchgpt.blocked import BlockedLinear
    from torchgpt.hf import load_model

    matrices = [p for name, p in load_model(directory).named_parameters() if p.ndim == 2 and "position" not in name]
    if not model.tie_embeddings:
        matrices = matrices[1:]  # rows are looked up
    pairs = [(BlockedLinear.of(matrix.detach()), torch.ones(1, matrix.shape[1])) for matrix in matrices]

    @torch.inference_mode()
    def write(n: int) -> None:
        for _ in range(n):
            for layer, vector in pairs:
                layer(vector)

    return write, sum(m.numel() * m.element_size() for m in matrices)


CONTENDERS = {
    "transformers": transformers,
    "torchgpt": torchgpt,
    "jaxgpt": jaxgpt,
    "matvec chain": matvec_chain,
    "torchgpt int8": partial(torchgpt, int8=True),
}


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a copy of 512 MiB by PyTorch on all cores; the best of five."""
    import torch

    source, target = torch.ones(2**27), torch.zeros(2**27)
    seconds = []
    for _ in range(5):
        began = time.monotonic()
        target.copy_(source)
        seconds.append(time.monotonic() - began)
    return 2 * source.numel() * source.element_size() / min(seconds)


def measure(contender: str, name: str, directory: Path) -> Figures:
    """Tokens a second of one contender in this process: medians of three texts, each between two copies."""
    write, size = CONTENDERS[contender](MODELS[name](), directory)

    def seconds(n: int) -> float:
        began = time.monotonic()
        write(n)
        return time.monotonic() - began

    seconds(1)  # compiles, and brings the weights into memory
    seconds(NEW)
    peak = eval(PEAK_MEMORY)  # before the arrays of the copy
    rows, before = [], copy_bandwidth()
    for _ in range(3):
        first, whole = seconds(1), seconds(NEW)
        if whole <= first:
            raise UserError(f"{NEW} tokens took no longer than one: {name} is too small to be timed here")
        decoding, after = (NEW - 1) / (whole - first), copy_bandwidth()
        bandwidth = (before + after) / 2
        figures = {"decoding": decoding, "whole": NEW / whole, "first": first, "bandwidth": bandwidth}
        rows.append(figures | {"share": size * decoding / bandwidth})
        before = after
    return {name: median(rows, name) for name in rows[0]} | {"peak": peak, "size": size}


if __name__ == "__main__":
    _MODELS = flags.DEFINE_list("models", ["llama-135M", "gpt2-124M"], f"of {', '.join(MODELS)}")
    _ROUNDS = flags.DEFINE_integer("rounds", 5, "runs of each", lower_bound=1)
    _ONLY = flags.DEFINE_list("only", list(CONTENDERS), "contenders")
    _ONE = flags.DEFINE_string("one", "", "DIRECTORY: measure the one contender and model here, and print JSON")

    def main() -> None:
        """Print a row for each contender and model."""
        check_names("models", _MODELS.value, MODELS)
        check_names("only", _ONLY.value, CONTENDERS)
        if _ONE.value:
            if not Path(_ONE.value).is_dir():
                raise UserError(f"--one={_ONE.value} is not a directory")
            print(json.dumps(measure(_ONLY.value[0], _MODELS.value[0], Path(_ONE.value))))
            return
        print(machine("jax", "torch", "transformers"))
        print(
            "\n| model | contender | decoding, tokens/s | over transformers' | with the prompt | first token |"
            " of the bandwidth | peak memory |\n|---|---|---|---|---|---|---|---|"
        )
        for name in _MODELS.value:
            with tempfile.TemporaryDirectory() as directory:
                write_weights(MODELS[name](), Path(directory) / "model")
                one = ["-m", "benchmarks.decoding", f"--one={directory}/model", f"--models={name}"]
                contenders = {c: lambda c=c, one=one: figures_of([*one, f"--only={c}"]) for c in _ONLY.value}
                results = take_turns(contenders, _ROUNDS.value)
            for contender, rows in results.items():
                peer = results.get("transformers")
                row = [name, contender, f"{median(rows, 'decoding'):.1f}"]
                row.append(f"{median_ratio(rows, peer, 'decoding'):.2f}" if peer else "-")
                row += [f"{median(rows, 'whole'):.1f}", f"{1000 * median(rows, 'first'):,.0f} ms"]
                row += [f"{median(rows, 'share'):.0%}", f"{median(rows, 'peak') / 1e6:,.0f} MB"]
                print(f"| {' | '.join(row)} |", flush=True)

    command.run(main, __doc__)
