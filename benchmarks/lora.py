"""LoRA beside full fine-tuning: what learns, what it weighs, how long a step takes, the loss that each ends with.

    python -m benchmarks.lora --config=FILE --init_from=HF_DIR --lora_learning_rate=X [--config.section.key=value]

Both start from the same weights and take the same batches, one step each in turn, since a busy machine changes its
speed from minute to minute. The configuration is that of the adapters; full fine-tuning takes it with lora.rank=0. Each
has a rate of its own: optim.learning_rate is that of full fine-tuning.
"""

import copy
import time

import jax
import numpy as np
from absl import flags

from scratchgpt import cli as command
from scratchgpt.errors import UserError

if __name__ == "__main__":
    _CONFIG = command.define_config_flag()
    _INIT_FROM = flags.DEFINE_string("init_from", None, "Hugging Face directory to start from", required=True)
    _RATE = flags.DEFINE_float("lora_learning_rate", None, "of the adapters", required=True)

    def main() -> None:
        """Train both and print one table."""
        from data_prep.starting_point import adopt_model
        from jaxgpt.runtime import start_jax

        lora = command.config_from_flag(_CONFIG)
        if not lora.lora.rank:
            raise UserError("--config.lora.rank=N says which adapters to measure")
        full = copy.deepcopy(lora)
        lora.optim.learning_rate, full.lora.rank = _RATE.value, 0
        adopt_model(lora, _INIT_FROM.value)
        adopt_model(full, _INIT_FROM.value)
        start_jax(lora)
        runs = {"full": Run(full, _INIT_FROM.value), f"LoRA, rank {lora.lora.rank}": Run(lora, _INIT_FROM.value)}
        print(f"validation loss before: {next(iter(runs.values())).validate():.4f}", flush=True)
        for step in range(full.train.steps):
            for run in runs.values():
                run.update(step)
        print("| | numbers that learn | optimizer state | median step | validation loss |\n|---|---|---|---|---|")
        for name, run in runs.items():
            median = 1e3 * float(np.median(run.seconds[2:]))  # the first ones compile
            print(
                f"| {name} | {run.learning:,} | {run.slots / 1e6:.2f} MB | {median:.0f} ms | {run.validate():.4f} |",
                flush=True,
            )
        first, second = (np.array(run.seconds[2:]) for run in runs.values())
        print(f"step of the second / step of the first, median over pairs: {np.median(second / first):.2f}")

    class Run:
        """One of the two, stepped by hand."""

        def __init__(self, config, init_from):
            from jaxgpt.objective import make_objective
            from jaxgpt.sharding import make_mesh
            from jaxgpt.step import Steps

            self.config, self.objective = config, make_objective(config, lambda _: None)
            is_trained = self.objective.is_trained
            self.steps = Steps(config, self.objective.model, self.objective.loss_sums, make_mesh(config), is_trained)
            self.state = self.steps.state_from(self.objective.starting_parameters(init_from))
            self.seconds = []
            self.learning = sum(p.size for name, p in self.state["params"].items() if is_trained(name))
            self.slots = sum(x.nbytes for x in jax.tree.leaves(self.state["opt"]))

        def update(self, step):
            """One optimizer step, timed to its end."""
            from scratchgpt.schedule import lr_multiplier

            batch = self.objective.data.batch(step)
            rate = np.float64(lr_multiplier(step, self.config.optim, self.config.train.steps))
            began = time.monotonic()
            self.state, _ = jax.block_until_ready(self.steps.update(self.state, batch, rate))
            self.seconds.append(time.monotonic() - began)

        def validate(self):
            """Mean loss (nats per target) over the validation split."""
            batches = self.objective.data.validation_batches(self.config.train.batch_size)
            sums = [jax.device_get(self.steps.validate(self.state["params"], b)) for b in batches]
            return sum(float(s.loss) for s in sums) / sum(float(s.weight) for s in sums)

    command.run(main, __doc__)
