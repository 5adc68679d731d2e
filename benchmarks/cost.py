"""What a step of training costs as the context and the model grow, beside what the arithmetic says.

    python -m benchmarks.cost [--rounds=3]

float32, the GPT-2 architecture, a vocabulary of 256, random tokens, one device. Along the first table the tokens of a
step stay 4,096 while the context grows, so that everything but attention stays the same; along the second the model
grows. Every figure is the median of --rounds processes, in turns. "per FLOP" is the time of a step over its FLOPs (by
jaxgpt.flops, which counts causal attention once), relative to the first row: 1.0 throughout is a cost that grows as the
arithmetic does. Memory is the peak of the process less that of one that trains next to nothing.
"""

import json

from absl import flags

from benchmarks.training_speed import Shape, config_of, time_steps
from benchmarks.turns import figures_of, machine, median, take_turns
from configs.schema import resolve_model
from jaxgpt.flops import flops_per_token
from scratchgpt import cli as command
from scratchgpt.large_pages import start_again_with_large_pages

TOKENS = 4096
# layers, heads, width, context, vocabulary, sequences of a step
NOTHING: Shape = (1, 1, 16, 16, 256, 1)
CONTEXTS: list[Shape] = [(4, 4, 256, context, 256, TOKENS // context) for context in (128, 256, 512, 1024, 2048, 4096)]
SIZES: list[Shape] = [(depth, depth, 64 * depth, 256, 256, 8) for depth in (1, 2, 4, 6, 8)]
SHAPES = [NOTHING, *CONTEXTS, *SIZES]

if __name__ == "__main__":
    _ROUNDS = flags.DEFINE_integer("rounds", 3, "runs of each", lower_bound=1)
    _ONE = flags.DEFINE_integer("one", -1, "measure the shape of this number here, and print JSON", -1, len(SHAPES) - 1)

    def main() -> None:
        """Print both tables."""
        if _ONE.value >= 0:
            start_again_with_large_pages(__spec__.name)
            print(json.dumps(time_steps(config(SHAPES[_ONE.value]), 2, 5)))
            return
        print(machine("jax"))
        one = ["-m", "benchmarks.cost"]
        contenders = {str(s): lambda i=i: figures_of([*one, f"--one={i}"]) for i, s in enumerate(SHAPES)}
        results = take_turns(contenders, _ROUNDS.value)
        floor = median(results[str(NOTHING)], "peak")
        for title, family in (("context", CONTEXTS), ("layers x width", SIZES)):
            print(f"\n| {title} | GFLOPs of a step | attention's share | step | per FLOP | memory |")
            print("|---|---|---|---|---|---|")
            first = None
            for shape in family:
                layers, _, width, context, _, batch = shape
                flops = flops_per_token(config(shape), resolve_model(config(shape).model)).model * context * batch
                attention = 6 * layers * width * (context + 1) * context * batch / flops
                seconds, peak = (median(results[str(shape)], key) for key in ("seconds", "peak"))
                first = first or seconds / flops
                row = [str(context) if family is CONTEXTS else f"{layers} x {width}", f"{flops / 1e9:,.1f}"]
                row += [f"{attention:.0%}", f"{1000 * seconds:,.0f} ms", f"{seconds / flops / first:.2f}"]
                print(f"| {' | '.join(row)} | {(peak - floor) / 1e6:,.0f} MB |", flush=True)

    def config(shape: Shape):
        """The run of a shape."""
        return config_of(shape, "float32", "none", loss_chunk=0, unroll=True)

    command.run(main, __doc__)
