"""From a run and a topology to its plan."""

from collections.abc import Callable

from configs.schema import Config
from jaxgpt.planning.estimate import estimate
from jaxgpt.planning.program import Compiled, DoesNotFit, Program
from jaxgpt.planning.report import Plan
from jaxgpt.planning.roofline import bounds
from jaxgpt.planning.search import Tried, candidates, search
from jaxgpt.planning.topology import Topology


def make_plan(
    run_file: str, config: Config, topology: Topology, searches: bool, log: Callable[[str], None] = lambda _: None
) -> Plan:
    """Compile or estimate a run's step; with ``searches``, find the largest micro-batch that fits as well.

    ``log`` is told of each compilation before it begins. Raises ConfigError or UserError for what cannot be trained.
    """
    program = Program(config, topology.devices)

    def work_out(program: Program) -> tuple[Tried, Compiled | None, DoesNotFit | None]:
        size = program.micro_batch_size
        if topology.is_estimate:
            found = estimate(program)
        else:
            log(f"compiling for {topology.name}, {size} sequences at a time")
            try:
                found = program.compile()
            except DoesNotFit as e:
                return Tried(size, e.needed, False), None, e
        peak = found.memory.peak
        return Tried(size, peak, not topology.usable_bytes or peak <= topology.usable_bytes), found, None

    first, compiled, refused = work_out(program)
    found_bounds = bounds(program, topology.chip, compiled.collectives) if compiled and topology.chip else None
    tried, sizes = [first], candidates(config, program.rows) if searches and topology.usable_bytes else []
    if sizes:
        tried = search(sizes, first, lambda n: work_out(program.with_micro_batch(n))[0], topology.usable_bytes)
    return Plan(run_file, topology, program, compiled, refused, found_bounds, tried, sizes)
