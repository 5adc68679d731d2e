"""Every mesh against one device: loss, gradients and parameters of two optimizer steps, for every family.

    python -m parity_tests.meshes

Prints a table of the largest differences, each relative to the largest value of its tensor, in float32 on eight CPU
devices. Families take turns with the optimizers, meshes with whole and chunked logits; each step accumulates two micro
batches. XLA's own warnings of arrays that it moves in vain go to stderr.
"""

import os

import jax
import numpy as np

from configs.schema import Config, MeshConfig, OptimConfig, TrainConfig, gpt2, llama, nanochat, qwen3, resolve_model
from jaxgpt.loss import next_token_sums
from jaxgpt.objective import Sums
from jaxgpt.runtime import cpu_thread_environment
from jaxgpt.sharding import check_model_fits, make_mesh
from jaxgpt.step import Steps

DEVICES = 8
MESHES = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (1, 4, 2), (2, 2, 2), (1, 1, 8)]  # data, fsdp, tensor
FAMILIES = {
    "gpt2": (gpt2, "muon"),
    "llama": (llama, "adamw"),
    "qwen3": (qwen3, "adamw"),
    "nanochat": (nanochat, "muon"),
}
STEPS = 2


def train(family: str, mesh: tuple[int, int, int], chunk: int, devices: int = DEVICES) -> dict[str, np.ndarray]:
    """Losses, gradients (as the optimizer's slots hold them) and parameters of a few steps on ``mesh``."""
    build, optimizer = FAMILIES[family]
    config = Config(
        # three layers are no multiple of any number of devices
        model=build(n_layer=3, n_head=8, n_embd=32, context_length=8, vocab_size=30, padded_vocab_size=32),
        mesh=MeshConfig(*mesh),
        train=TrainConfig(batch_size=16, micro_batch_size=8, dtype="float32", loss_chunk=chunk, remat="dots"),
        optim=OptimConfig(optimizer=optimizer, eps=1e-3),  # Adam magnifies the rounding of gradients near zero
    )
    model, over = resolve_model(config.model), make_mesh(config, jax.devices()[:devices])
    check_model_fits(model, over)

    def loss_sums(model, batch, _):
        hidden, _ = model.hidden(batch["inputs"])
        return Sums(*next_token_sums(model, hidden, batch["targets"], batch["weights"], chunk), {})

    steps = Steps(config, model, loss_sums, over)
    random = np.random.default_rng(0)
    # a head of zeros would let no gradient through, and weights of one would hide a wrong mean
    shapes = {name: p.shape for name, p in sorted(steps.abstract_state["params"].items())}
    state = steps.state_from({n: 0.3 * random.standard_normal(shape, np.float32) for n, shape in shapes.items()})
    tokens = random.integers(0, 30, (2, 8, 9), dtype=np.int32)
    batch = {"inputs": tokens[..., :-1], "targets": tokens[..., 1:], "weights": random.random((2, 8, 8), np.float32)}
    found = {}
    for step in range(STEPS):
        state, metrics = steps.update(state, batch, np.float32(1))
        found[f"loss {step}"] = np.asarray(metrics["loss"])
        if step == 0:
            for path, slot in jax.tree_util.tree_leaves_with_path(state["opt"]):
                found[f"gradient {jax.tree_util.keystr(path)}"] = np.asarray(slot)
    return found | {f"parameter {name}": np.asarray(p) for name, p in state["params"].items()}


def differences(found: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest relative difference of each kind: loss, gradient, parameter."""
    worst: dict[str, float] = {}
    for name, value in reference.items():
        # A key's bias has no gradient but the rounding of terms as large as those of the query's bias.
        like = name.replace("attn.k.bias", "attn.q.bias") if name.startswith("gradient") else name
        scale = np.abs(reference[like]).max()
        difference = float(np.abs(found[name].astype(np.float64) - value).max() / scale) if scale else 0.0
        kind = name.split()[0]
        worst[kind] = max(worst.get(kind, 0.0), difference)
    return worst


def main() -> None:
    """Print the table, a row as soon as it is known."""
    os.environ.update(cpu_thread_environment(DEVICES))
    jax.config.update("jax_num_cpu_devices", DEVICES)
    print("| family | data x fsdp x tensor | logits | loss | gradients | parameters |\n|---|---|---|---|---|---|")
    for family in FAMILIES:
        reference = train(family, (1, 1, 1), 0, devices=1)
        for number, mesh in enumerate(MESHES):
            chunk = 3 * (number % 2)
            worst = differences(train(family, mesh, chunk), reference)
            figures = " | ".join(f"{worst[kind]:.1e}" for kind in ("loss", "gradient", "parameter"))
            sizes = " x ".join(map(str, mesh))
            print(f"| {family} | {sizes} | {'in chunks' if chunk else 'whole'} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
