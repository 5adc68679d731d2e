"""Compile a run's train step for devices that need not be there, and say what it will take.

    python -m jaxgpt.plan --config=FILE --topology=v5e:4x4 [--html=FILE] [--config.section.key=value]

Topologies: TPU slices (v5e:4x4, v6e:2x2, v5p:2x2x2; their compiler comes with `pip install -e ".[plan]"`), the devices
at hand (local), and GPUs (a100-40g:8, a100-80g:8, h100:8, h200:8), which are ESTIMATED by formulas, not compiled. Needs
no data. Exits with 1 if the compiler refuses the step. docs/plan.md says what each line means.
"""

import sys
from pathlib import Path

from absl import flags

from jaxgpt.planning.request import parse, prepare_environment
from scratchgpt import cli as command

if __name__ == "__main__":
    _CONFIG = command.define_config_flag()
    _TOPOLOGY = flags.DEFINE_string(
        "topology", "local", "local, or such as v5e:4x4, v6e:2x2, v5p:2x2x2, a100-80g:8, h100:8"
    )
    _HTML = flags.DEFINE_string("html", "", "write a page with every tensor's layout here as well")
    _SEARCH = flags.DEFINE_bool("search", True, "find the largest micro-batch that fits: a few more compilations")
    _INIT_FROM = flags.DEFINE_string("init_from", "", "Hugging Face model directory that the run would start from")

    def main() -> int:
        """Make the plan that the flags describe and print it; returns the exit status."""
        config = command.config_from_flag(_CONFIG)
        request = parse(_TOPOLOGY.value)
        prepare_environment(request)
        starts_from_nothing = not _INIT_FROM.value
        if _INIT_FROM.value:
            from data_prep.starting_point import adopt_model

            adopt_model(config, _INIT_FROM.value)
        if _HTML.value:
            from scratchgpt.files import check_writable

            check_writable(Path(_HTML.value))
        from jaxgpt.planning.make import make_plan  # JAX is imported only here
        from jaxgpt.planning.report import text
        from jaxgpt.planning.topology import open_topology

        topology = open_topology(request, config)

        name = str(command.run_file())
        plan = make_plan(name, config, topology, _SEARCH.value, lambda line: print(line, file=sys.stderr, flush=True))
        if starts_from_nothing and (config.train.objective != "pretrain" or config.lora.rank):
            plan.program.remarks.append("the model is that of the run file; --init_from=HF_DIR plans for another")
        print(text(plan))
        if _HTML.value:
            from jaxgpt.planning.page import page
            from scratchgpt.files import write_text

            write_text(Path(_HTML.value), page(plan))
            print(f"every tensor: {_HTML.value}")
        return 1 if plan.refused else 0

    command.run(main, __doc__)
