"""Training speed on an accelerator: tokens a second, step time and MFU, beside nanoGPT with torch.compile.

    python -m benchmarks.gpu [--shapes=124M,350M,1.1B] [--nanogpt=CHECKOUT] [--pairs=5]

The GPT-2 architecture without biases, context 1024, bfloat16 over float32 parameters, AdamW, random tokens that stay on
the device, one device. The two take turns, each in a process of its own; the median of the pairs counts. MFU is by the
FLOPs of jaxgpt.flops for both, over the chip's peak in jaxgpt.chips (none where it is not known, as on a CPU, where
`--shapes=tiny` shows that the script works).
"""

import json

from absl import flags

from benchmarks.training_speed import Shape, config_of, nanogpt, time_steps
from benchmarks.turns import check_files, check_names, figures_of, machine, median, median_ratio, take_turns
from scratchgpt import cli as command
from scratchgpt.large_pages import start_again_with_large_pages

# layers, heads, width, context, vocabulary, sequences of a step
SHAPES: dict[str, Shape] = {
    "tiny": (2, 2, 64, 64, 50304, 4),
    "124M": (12, 12, 768, 1024, 50304, 32),
    "350M": (24, 16, 1024, 1024, 50304, 16),
    "1.1B": (36, 12, 1536, 1024, 50304, 8),
}
WARM_UP, STEPS = 5, 20

if __name__ == "__main__":
    _SHAPES = flags.DEFINE_list("shapes", ["124M", "350M", "1.1B"], f"of {', '.join(SHAPES)}")
    _NANOGPT = flags.DEFINE_string("nanogpt", "", "a checkout of github.com/karpathy/nanoGPT; empty: only ours")
    _PAIRS = flags.DEFINE_integer("pairs", 5, "runs of each", lower_bound=1)
    _REMAT = flags.DEFINE_string("remat", "dots", "train.remat of ours")
    _CHUNK = flags.DEFINE_integer("loss_chunk", 8192, "train.loss_chunk of ours")
    _ONE = flags.DEFINE_bool("one", False, "time ours once, in this process, and print JSON")

    def main() -> None:
        """Print a row of the table for each shape."""
        check_names("shapes", _SHAPES.value, SHAPES)
        check_files(nanogpt=_NANOGPT.value)
        if _ONE.value:
            start_again_with_large_pages(__spec__.name)
            shape = SHAPES[_SHAPES.value[0]]
            config = config_of(shape, "bfloat16", _REMAT.value, _CHUNK.value, unroll=False)
            print(json.dumps(time_steps(config, WARM_UP, STEPS)))
            return
        print(machine("jax", "torch"))
        print("\n| model | device | tokens/s | step | MFU | nanoGPT's tokens/s | MFU | ours over nanoGPT's |")
        print("|---|---|---|---|---|---|---|---|")
        for name in _SHAPES.value:
            shape = SHAPES[name]
            own = ["-m", "benchmarks.gpu", "--one", f"--shapes={name}"]
            own += [f"--remat={_REMAT.value}", f"--loss_chunk={_CHUNK.value}"]
            contenders = {"ours": lambda own=own: figures_of(own)}
            if _NANOGPT.value:
                contenders["theirs"] = lambda shape=shape: nanogpt(
                    _NANOGPT.value, shape, WARM_UP, STEPS, compiled=True, half=True
                )
            results = take_turns(contenders, _PAIRS.value)
            ours, tokens = results["ours"], shape[3] * shape[5]
            seconds, share = median(ours, "seconds"), ours[0]["share"]
            row = [name, ours[0]["device"], *figures(tokens / seconds, share)]
            row.insert(3, f"{1000 * seconds:.1f} ms")
            if _NANOGPT.value:
                row += figures(tokens / median(results["theirs"], "seconds"), share)
                row.append(f"{median_ratio(results['theirs'], ours, 'seconds'):.2f}")
            print(f"| {' | '.join(row)} |", flush=True)

    def figures(speed: float, share: float | None) -> list[str]:
        """Tokens a second and MFU."""
        return [f"{speed:,.0f}", f"{speed * share:.1%}" if share else "-"]

    command.run(main, __doc__)
