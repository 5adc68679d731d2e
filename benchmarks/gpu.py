"""Training speed on an accelerator: tokens a second, step time and MFU, beside nanoGPT with torch.compile.

    python -m benchmarks.gpu [--shapes=124M,350M,1.1B] [--nanogpt=CHECKOUT] [--pairs=5]

The GPT-2 architecture without biases, context 1024, bfloat16 over float32 parameters, AdamW, random tokens that stay on
the device, one device. The two take turns, each in a process of its own; the median of the pairs counts. MFU is by the
FLOPs of jaxgpt.flops for both, over the chip's peak in jaxgpt.chips (none where it is not known, as on a CPU, where
`--shapes=tiny` shows that the script works).
"""

import json
import statistics
import subprocess
import sys
import time

from absl import flags

from configs.schema import Config, OptimConfig, TrainConfig, gpt2, resolve_model, validate
from scratchgpt import cli as command
from scratchgpt.errors import UserError

# layers, heads, width, context, sequences of a step
SHAPES = {
    "tiny": (2, 2, 64, 64, 4),
    "124M": (12, 12, 768, 1024, 32),
    "350M": (24, 16, 1024, 1024, 16),
    "1.1B": (36, 12, 1536, 1024, 8),
}
VOCABULARY = 50304
WARM_UP, STEPS = 5, 20


def config_of(shape: str, remat: str, loss_chunk: int) -> Config:
    """The run that is timed."""
    layers, heads, width, context, batch = SHAPES[shape]
    model = gpt2(n_layer=layers, n_head=heads, n_embd=width, context_length=context, vocab_size=VOCABULARY, bias=False)
    train = TrainConfig(batch_size=batch, dtype="bfloat16", remat=remat, loss_chunk=loss_chunk)
    return validate(Config(model=model, train=train, optim=OptimConfig(learning_rate=1e-4, beta2=0.95)))


def time_ours(config: Config) -> dict[str, float | str | None]:
    """Median seconds of a step, and the share of the peak that a token a second takes."""
    import jax
    import numpy as np

    from jaxgpt.objective import Objective
    from jaxgpt.sharding import batch_sharding, make_mesh
    from jaxgpt.step import Steps
    from jaxgpt.throughput import flops_share

    devices = jax.devices()[:1]
    mesh = make_mesh(config, devices)
    objective = Objective(config, resolve_model(config.model))
    steps = Steps(config, objective.model, objective.loss_sums, mesh)
    random = np.random.default_rng(0)
    batch = {
        name: jax.device_put(random.integers(0, VOCABULARY, leaf.shape, dtype=leaf.dtype), batch_sharding(mesh))
        for name, leaf in objective.abstract_batch().items()
    }
    state, seconds = steps.initial_state(), []
    for _ in range(WARM_UP + STEPS):
        began = time.monotonic()
        state, metrics = steps.update(state, batch, np.float32(1))
        metrics["loss"].block_until_ready()
        seconds.append(time.monotonic() - began)
    share = flops_share(config, objective.model, devices)
    return {"seconds": statistics.median(seconds[WARM_UP:]), "share": share, "device": devices[0].device_kind}


NANOGPT = """
import json, statistics, sys, time, torch
layers, heads, width, context, batch, vocabulary, warm_up, steps = map(int, sys.argv[2:])
sys.path.insert(0, sys.argv[1])
from model import GPT, GPTConfig
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
sizes = dict(n_layer=layers, n_head=heads, n_embd=width, block_size=context, vocab_size=vocabulary)
model = GPT(GPTConfig(**sizes, dropout=0.0, bias=False)).to(device)
optimizer = model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), device)
model = torch.compile(model)
x, y = torch.randint(vocabulary, (2, batch, context), device=device)
seconds = []
for step in range(warm_up + steps):
    began = time.monotonic()
    with torch.autocast(device, torch.bfloat16):
        loss = model(x, y)[1]
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss.item()
    seconds.append(time.monotonic() - began)
print(json.dumps({"seconds": statistics.median(seconds[warm_up:])}))
"""


def last_line(arguments: list[str]) -> dict:
    """The JSON that a process prints last."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"a run failed: {done.stderr[-600:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    _SHAPES = flags.DEFINE_list("shapes", ["124M", "350M", "1.1B"], f"of {', '.join(SHAPES)}")
    _NANOGPT = flags.DEFINE_string("nanogpt", "", "a checkout of github.com/karpathy/nanoGPT; empty: only ours")
    _PAIRS = flags.DEFINE_integer("pairs", 5, "runs of each", lower_bound=1)
    _REMAT = flags.DEFINE_string("remat", "dots", "train.remat of ours")
    _CHUNK = flags.DEFINE_integer("loss_chunk", 8192, "train.loss_chunk of ours")
    _ONE = flags.DEFINE_bool("one", False, "time ours once, in this process, and print JSON")

    def main() -> None:
        """Print a row of the table for each shape."""
        for shape in _SHAPES.value:
            if shape not in SHAPES:
                raise UserError(f"--shapes={shape} must be one of {', '.join(SHAPES)}")
        if _ONE.value:
            print(json.dumps(time_ours(config_of(_SHAPES.value[0], _REMAT.value, _CHUNK.value))))
            return
        print("| model | device | tokens/s | step | MFU | nanoGPT's tokens/s | MFU | ours over nanoGPT's |")
        print("|---|---|---|---|---|---|---|---|")
        for shape in _SHAPES.value:
            *_, context, batch = SHAPES[shape]
            own = ["-m", "benchmarks.gpu", "--one", f"--shapes={shape}"]
            own += [f"--remat={_REMAT.value}", f"--loss_chunk={_CHUNK.value}"]
            peer = ["-c", NANOGPT, _NANOGPT.value, *map(str, (*SHAPES[shape], VOCABULARY, WARM_UP, STEPS))]
            pairs = [(last_line(own), last_line(peer) if _NANOGPT.value else None) for _ in range(_PAIRS.value)]
            seconds, share = statistics.median(ours["seconds"] for ours, _ in pairs), pairs[0][0]["share"]
            row = [shape, pairs[0][0]["device"], *figures(batch * context / seconds, share)]
            row.insert(3, f"{1000 * seconds:.1f} ms")
            if _NANOGPT.value:
                theirs = statistics.median(peer["seconds"] for _, peer in pairs)
                ratio = statistics.median(peer["seconds"] / ours["seconds"] for ours, peer in pairs)
                row += [*figures(batch * context / theirs, share), f"{ratio:.2f}"]
            print(f"| {' | '.join(row)} |", flush=True)

    def figures(speed: float, share: float | None) -> list[str]:
        """Tokens a second and MFU."""
        return [f"{speed:,.0f}", f"{speed * share:.1%}" if share else "-"]

    command.run(main, __doc__)
