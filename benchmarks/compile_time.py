"""Compile time of the train step by depth: scanned layers should compile once, however many there are.

    python -m benchmarks.compile_time [--topology=local|v5e:2x2] [--depths=4,24] [--repeats=3]

The step is that of a llama of width 256 on eight sequences of 256 tokens; depths are taken in turn, since a busy
machine changes its speed, and the least of a depth's times counts. `unrolled` compiles every layer by itself.
"""

from absl import flags

from scratchgpt import cli as command

if __name__ == "__main__":
    _TOPOLOGY = flags.DEFINE_string("topology", "local", "as for python -m jaxgpt.plan")
    _DEPTHS = flags.DEFINE_list("depths", ["4", "24"], "numbers of layers")
    _REPEATS = flags.DEFINE_integer("repeats", 3, "compilations of each")
    _UNROLLED = flags.DEFINE_bool("unrolled", False, "measure unrolled layers as well")

    def main() -> int:
        """Print seconds by depth, and the last depth's over the first's."""
        from jaxgpt.planning.request import parse, prepare_environment

        request = parse(_TOPOLOGY.value)
        prepare_environment(request)
        import jax

        from configs.schema import Config, TrainConfig, llama, validate
        from jaxgpt.planning.program import Program
        from jaxgpt.planning.topology import open_topology

        def config(depth: int, unrolled: bool) -> Config:
            model = llama(n_layer=depth, n_head=4, n_embd=256, context_length=256, vocab_size=4096)
            return validate(Config(model=model, train=TrainConfig(batch_size=8, remat="block", unroll_layers=unrolled)))

        topology = open_topology(request, config(1, False))
        jax.config.update("jax_enable_compilation_cache", False)
        depths = [int(depth) for depth in _DEPTHS.value]
        print(f"compiled for {topology.name} by {topology.compiler}, jax {jax.__version__}\n")
        print("| layers | depth | seconds, least of " + str(_REPEATS.value) + " |\n|---|---|---|")
        for unrolled in (False, True) if _UNROLLED.value else (False,):
            times: dict[int, list[float]] = {depth: [] for depth in depths}
            for _ in range(_REPEATS.value):
                for depth in depths:
                    jax.clear_caches()
                    program = Program(config(depth, unrolled), topology.devices)
                    times[depth].append(program.compile().seconds)
            how = "unrolled" if unrolled else "scanned"
            for depth in depths:
                print(f"| {how} | {depth} | {min(times[depth]):.2f} |", flush=True)
            ratio = min(times[depths[-1]]) / min(times[depths[0]])
            print(f"| {how} | {depths[-1]} over {depths[0]} | {ratio:.2f} |", flush=True)
        return 0

    command.run(main, __doc__)
