"""Train a GPT in JAX.

    python -m jaxgpt.train --config=configs/small.py [--workdir=DIR] [--init_from=HF_DIR] [--config.section.key=value]
    python -m jaxgpt.train --workdir=DIR --replay=STEP [--init_from=HF_DIR]

Prepares the data if it is not there yet, resumes if the workdir holds a checkpoint, and leaves in the workdir:
config.json, metrics.jsonl, checkpoints/, loss.png, samples.txt and export/ (a Hugging Face model directory). The second
form writes nothing: it shows what one step of that run did, its batch, loss and gradients, as its config.json says.
"""

import contextlib
from pathlib import Path

from absl import flags

from scratchgpt import cli as command
from scratchgpt.errors import UserError
from scratchgpt.workdir import locked, move_aside, stored_config, stored_start

_CONFIG = command.define_config_flag()
_WORKDIR = flags.DEFINE_string("workdir", "", "directory of the run; empty: runs/<name of the run file>")
_INIT_FROM = flags.DEFINE_string(
    "init_from", "", "Hugging Face model directory whose weights and tokenizer to start from"
)
_START_OVER = flags.DEFINE_bool(
    "start_over", False, "begin at step 0, whatever the workdir holds; that is moved to WORKDIR/before-N"
)
_REPLAY = flags.DEFINE_integer("replay", 0, "step of the run in --workdir to show, from 1; 0: train", lower_bound=0)
_PROFILE = flags.DEFINE_integer("profile", 0, "steps to trace into WORKDIR/profile", lower_bound=0)
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    ["auto", "always", "never"],
    "auto: join the run's other processes if Slurm, Open MPI or a TPU slice has started several; always: look for them",
)
_COORDINATOR = flags.DEFINE_string("coordinator_address", "", "HOST:PORT of the first process, if nothing tells it")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "processes of the run, with --coordinator_address")
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "which of them this is, from 0, with --coordinator_address")


def main() -> int:
    """Run the training that the flags describe; returns the exit status."""
    config = command.config_from_flag(_CONFIG)
    workdir = Path(_WORKDIR.value or Path("runs") / command.run_file().stem)
    init_from = _INIT_FROM.value
    if _REPLAY.value:
        config = stored_config(workdir)
        init_from = init_from or stored_start(workdir)
    elif init_from:
        from data_prep.starting_point import adopt_model

        adopt_model(config, init_from)
    if not init_from and (config.lora.rank or config.train.objective == "dpo"):
        what = f"lora.rank={config.lora.rank}" if config.lora.rank else "train.objective=dpo"
        raise UserError(f"{what} needs --init_from=HF_DIR: there is no trained model to tune")

    # JAX is imported only here: --help and configuration errors stay quick
    from jaxgpt.runtime import memory_errors, start_jax

    start_jax(config)
    from jaxgpt.distributed import is_main, join, main_first

    join(_DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    from jaxgpt.trainer import Trainer

    if _REPLAY.value:
        from jaxgpt.replay import replay

        return replay(Trainer(config, workdir, init_from or None), _REPLAY.value)
    if _START_OVER.value and init_from and Path(init_from).resolve().is_relative_to(workdir.resolve()):
        raise UserError(f"--init_from={init_from} lies in the workdir that --start_over would move: copy it elsewhere")
    with locked(workdir) if is_main() else contextlib.nullcontext(), memory_errors():
        trainer = Trainer(config, workdir, init_from or None, _PROFILE.value)  # before anything is moved: it may refuse
        with main_first():
            if _START_OVER.value and is_main() and (before := move_aside(workdir)):
                print(f"starting over: what {workdir} held is in {before}", flush=True)
        return trainer.run()


def cli() -> None:
    """Entry point of the console script ``train``."""
    command.run(main, __doc__, large_pages=True)


if __name__ == "__main__":
    cli()
