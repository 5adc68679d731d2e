"""Training speed and memory on a CPU beside nanoGPT: the same arithmetic, in turns.

    python -m benchmarks.training_speed --nanogpt=CHECKOUT [--shapes=0.8M,10.65M,16M] [--pairs=5] [--compiled]

The GPT-2 architecture without biases and dropout, float32, AdamW with clipping, random tokens; each contender runs in a
process of its own on all cores. A row gives the medians of the pairs: tokens a second, the ratio of the two in one
pair, and the most memory that a process held. --compiled times nanoGPT with torch.compile too. benchmarks/gpu.py does
the same for accelerators.
"""

import json
import statistics
import time

from absl import flags

from benchmarks.turns import (
    PEAK_MEMORY,
    Figures,
    check_files,
    check_names,
    figures_of,
    machine,
    median,
    median_ratio,
    take_turns,
    whole_numbers,
)
from configs.schema import Config, OptimConfig, TrainConfig, gpt2, resolve_model, validate
from scratchgpt import cli as command
from scratchgpt.errors import UserError
from scratchgpt.large_pages import start_again_with_large_pages

# layers, heads, width, context, vocabulary, sequences of a step
Shape = tuple[int, int, int, int, int, int]
SHAPES: dict[str, Shape] = {
    "0.8M": (4, 4, 128, 64, 65, 12),
    "10.65M": (6, 6, 384, 256, 65, 8),
    "16M": (4, 8, 256, 512, 50304, 4),
}


def config_of(shape: Shape, dtype: str, remat: str, loss_chunk: int, unroll: bool, cpu_devices: int = 1) -> Config:
    """The run that is timed."""
    layers, heads, width, context, vocabulary, batch = shape
    model = gpt2(n_layer=layers, n_head=heads, n_embd=width, context_length=context, vocab_size=vocabulary, bias=False)
    train = TrainConfig(batch_size=batch, dtype=dtype, remat=remat, loss_chunk=loss_chunk, unroll_layers=unroll)
    config = Config(model=model, train=train, optim=OptimConfig(learning_rate=1e-4, beta2=0.95))
    config.mesh.cpu_devices = cpu_devices
    return validate(config)


def time_steps(config: Config, warm_up: int, steps: int) -> Figures:
    """Median seconds of a step of ours, its share of the chip's peak, and the most memory this process has held."""
    import jax
    import numpy as np

    from jaxgpt.objective import Objective
    from jaxgpt.runtime import start_jax
    from jaxgpt.sharding import batch_sharding, make_mesh
    from jaxgpt.step import Steps
    from jaxgpt.throughput import flops_share

    start_jax(config)
    devices = jax.devices()[: config.mesh.cpu_devices]
    mesh = make_mesh(config, devices)
    objective = Objective(config, resolve_model(config.model))
    steps_of_run = Steps(config, objective.model, objective.loss_sums, mesh)
    random = np.random.default_rng(0)
    batch = {
        name: jax.device_put(
            random.integers(0, config.model.vocab_size, leaf.shape, dtype=leaf.dtype), batch_sharding(mesh)
        )
        for name, leaf in objective.abstract_batch().items()
    }
    state, seconds = steps_of_run.initial_state(), []
    for _ in range(warm_up + steps):
        began = time.monotonic()
        state, metrics = steps_of_run.update(state, batch, np.float32(1))
        metrics["loss"].block_until_ready()
        seconds.append(time.monotonic() - began)
    share = flops_share(config, objective.model, devices)
    device, peak = devices[0].device_kind, eval(PEAK_MEMORY)
    return {"seconds": statistics.median(seconds[warm_up:]), "share": share, "device": device, "peak": peak}


# nanoGPT's model and optimizer in the loop of its train.py.
NANOGPT = f"""
import contextlib, json, statistics, sys, time, torch
layers, heads, width, context, vocabulary, batch, warm_up, steps = map(int, sys.argv[2:10])
compiled, half = (word == "True" for word in sys.argv[10:])
sys.path.insert(0, sys.argv[1])
from model import GPT, GPTConfig
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
sizes = dict(n_layer=layers, n_head=heads, n_embd=width, block_size=context, vocab_size=vocabulary)
model = GPT(GPTConfig(**sizes, dropout=0.0, bias=False)).to(device)
optimizer = model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), device)
model = torch.compile(model) if compiled else model
x, y = torch.randint(vocabulary, (2, batch, context), device=device)
seconds = []
for step in range(warm_up + steps):
    began = time.monotonic()
    with torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext():
        loss = model(x, y)[1]
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss.item()
    seconds.append(time.monotonic() - began)
print(json.dumps({{"seconds": statistics.median(seconds[warm_up:]), "peak": {PEAK_MEMORY}}}))
"""


def nanogpt(checkout: str, shape: Shape, warm_up: int, steps: int, compiled: bool, half: bool) -> Figures:
    """Median seconds of a step of nanoGPT, and the most memory its process has held."""
    return figures_of(["-c", NANOGPT, checkout, *map(str, (*shape, warm_up, steps, compiled, half))])


if __name__ == "__main__":
    _SHAPES = flags.DEFINE_list("shapes", list(SHAPES), f"of {', '.join(SHAPES)}")
    _NANOGPT = flags.DEFINE_string("nanogpt", "", "a checkout of github.com/karpathy/nanoGPT; empty: only ours")
    _PAIRS = flags.DEFINE_integer("pairs", 5, "runs of each", lower_bound=1)
    _COMPILED = flags.DEFINE_bool("compiled", False, "time nanoGPT with torch.compile too")
    _CHUNK = flags.DEFINE_integer("loss_chunk", 0, "train.loss_chunk of ours", 0)
    _DEVICES = flags.DEFINE_list("cpu_devices", ["1"], "mesh.cpu_devices of ours, a contender each")
    _STEPS = flags.DEFINE_integer("steps", 0, "timed steps of a run; 0: as many as take some ten seconds", 0)
    _ONE = flags.DEFINE_bool("one", False, "time ours once, in this process, and print JSON")

    def main() -> None:
        """Print a row of the table for each shape."""
        check_names("shapes", _SHAPES.value, SHAPES)
        check_files(nanogpt=_NANOGPT.value)
        if _COMPILED.value and not _NANOGPT.value:
            raise UserError("--compiled times nanoGPT: it needs --nanogpt")
        devices = whole_numbers("cpu_devices", _DEVICES.value, least=1)
        if _ONE.value:
            start_again_with_large_pages(__spec__.name)
            shape = SHAPES[_SHAPES.value[0]]
            config = config_of(shape, "float32", "none", _CHUNK.value, unroll=True, cpu_devices=devices[0])
            print(json.dumps(time_steps(config, *steps_of(shape))))
            return
        print(machine("jax", "torch"))
        print("\n| model | contender | tokens/s | over nanoGPT eager | peak memory |\n|---|---|---|---|---|")
        for name in _SHAPES.value:
            shape = SHAPES[name]
            own = ["-m", "benchmarks.training_speed", "--one", f"--shapes={name}", f"--loss_chunk={_CHUNK.value}"]
            contenders = {
                f"jaxgpt, {n} CPU device{'s'[: n - 1]}": lambda own=own, n=n: figures_of(
                    [*own, f"--steps={_STEPS.value}", f"--cpu_devices={n}"]
                )
                for n in devices
            }
            for compiled in (False, True)[: (1 + _COMPILED.value) * bool(_NANOGPT.value)]:
                contenders[f"nanoGPT, {'torch.compile' if compiled else 'eager'}"] = (
                    lambda shape=shape, compiled=compiled: nanogpt(
                        _NANOGPT.value, shape, *steps_of(shape), compiled, half=False
                    )
                )
            results = take_turns(contenders, _PAIRS.value)
            for contender, rows in results.items():
                speed = shape[3] * shape[5] / median(rows, "seconds")
                peer = results.get("nanoGPT, eager")
                ratio = f"{median_ratio(peer, rows, 'seconds'):.2f}" if peer else "-"
                row = [name, contender, f"{speed:,.0f}", ratio, f"{median(rows, 'peak') / 1e6:,.0f} MB"]
                print(f"| {' | '.join(row)} |", flush=True)

    def steps_of(shape: Shape) -> tuple[int, int]:
        """Steps before the clock runs, and timed steps."""
        layers, _, width, context, vocabulary, batch = shape
        operations = 6 * batch * context * (12 * layers * width**2 + width * vocabulary)
        steps = _STEPS.value or min(200, max(5, round(1e12 / operations)))
        return max(3, steps // 5), steps

    command.run(main, __doc__)
