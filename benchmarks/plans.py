"""The plans of run files on TPU slices as one table, for docs/plan.md.

    python -m benchmarks.plans [--configs=small,large] [--generations=v5e,v6e]

Each run file is planned for the smallest slice that serves it, by a process of its own; nothing needs to be there but
libtpu (pip install -e ".[plan]"). Takes some ten minutes on two cores. GPUs are estimated, see the last lines.
"""

import subprocess
import sys

from absl import flags

from scratchgpt import cli as command

SLICES = {"large": "4x4", "gpt2_124m": "2x2", "sft_alpaca_dolly": "2x2", "fineweb_edu_16m": "2x2"}  # others: one chip
NAMES = [
    *("small", "shakespeare_char_cpu", "shakespeare_char", "prose_small", "sft_small", "dpo_small", "spam"),
    *("scaling_small", "fineweb_edu_16m", "sft_alpaca_dolly", "gpt2_124m", "large"),
]
COLUMNS = (
    "| run file | for | parameters | tokens a step | peak memory of a device | FLOPs of a step | collectives received |"
    " step at least | bound by | MFU at most | run at least | compiled in |"
)

if __name__ == "__main__":
    _CONFIGS = flags.DEFINE_list("configs", NAMES, "names of run files")
    _GENERATIONS = flags.DEFINE_list("generations", ["v5e", "v6e"], "of TPUs")
    _ONE = flags.DEFINE_string("one", "", "NAME,TOPOLOGY: print the line of one plan")

    def main() -> int:
        """Print the table, line by line."""
        if _ONE.value:
            print(line(*_ONE.value.split(",")))
            return 0
        print(COLUMNS + "\n|" + "---|" * (COLUMNS.count("|") - 1), flush=True)
        topologies = [(n, f"{g}:{SLICES.get(n, '1x1')}") for n in _CONFIGS.value for g in _GENERATIONS.value]
        topologies += [(name, gpus) for name in _CONFIGS.value if name in SLICES for gpus in ("a100-80g:8", "h100:8")]
        for name, topology in topologies:
            flag = f"--one={name},{topology}"
            done = subprocess.run([sys.executable, "-m", "benchmarks.plans", flag], capture_output=True, text=True)
            print(done.stdout.strip() or f"| {name} | {topology} | {done.stderr.strip()[-300:]} |", flush=True)
        return 0

    def line(name: str, topology: str) -> str:
        """The table's line of one plan."""
        from jaxgpt.planning.request import parse, prepare_environment

        request = parse(topology)
        prepare_environment(request)
        import importlib

        from configs.schema import validate
        from jaxgpt.flops import flops_per_token
        from jaxgpt.planning.make import make_plan
        from jaxgpt.planning.report import gigabytes, seconds
        from jaxgpt.planning.topology import open_topology
        from scratchgpt.progress import duration

        config = validate(importlib.import_module(f"configs.{name}").get_config())
        plan = make_plan(name, config, open_topology(request, config), searches=False)
        program, bounds = plan.program, plan.bounds
        numbers = sum(p.size for p in program.steps.abstract_state["params"].values())
        flops = flops_per_token(config, program.model).model * program.tokens_per_step
        if plan.refused:
            return f"| {name} | {topology} | {numbers / 1e6:,.2f}M | {program.tokens_per_step:,} | does not fit |"
        received = sum(c.count * c.wire_bytes for c in plan.compiled.collectives)
        times = {"arithmetic": bounds.compute, "memory": bounds.hbm, "network": bounds.network}
        cells = [
            f"`{name}`",
            topology,
            f"{numbers / 1e6:,.2f}M",
            f"{program.tokens_per_step:,}",
            f"{gigabytes(plan.compiled.memory.peak)} of {gigabytes(plan.topology.usable_bytes)}",
            f"{flops:.2e}",
            gigabytes(received) if received else "none",
            seconds(bounds.step),
            max(times, key=times.get),
            f"{bounds.mfu:.0%}",
            duration(bounds.step * config.train.steps),
            "estimated" if plan.topology.is_estimate else f"{plan.compiled.seconds:.0f} s",
        ]
        return "| " + " | ".join(cells) + " |"

    command.run(main, __doc__)
