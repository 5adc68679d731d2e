"""Train a small GPT in PyTorch, on a CPU, an Apple GPU or CUDA: the run files, batches and schedule of jaxgpt.train.

    python -m torchgpt.train --config=configs/small.py [--workdir=DIR] [--init_from=HF_DIR] [--device=auto|cpu|mps|cuda]

Leaves in the workdir: config.json, metrics.jsonl, loss.png, samples.txt and export/, the best model as a Hugging Face
directory. For small runs: one device (the mesh section and remat are ignored), and an interrupted run keeps its best
model but cannot be resumed; jaxgpt.train can.
"""

from pathlib import Path

from absl import flags

from scratchgpt import cli as command
from scratchgpt.errors import UserError

if __name__ == "__main__":
    _CONFIG = command.define_config_flag()
    _WORKDIR = flags.DEFINE_string("workdir", "", "directory of the run; empty: runs/<name of the run file>_torch")
    _INIT_FROM = flags.DEFINE_string(
        "init_from", "", "Hugging Face model directory whose weights and tokenizer to start from"
    )
    _DEVICE = flags.DEFINE_string("device", "auto", "auto, cpu, mps or cuda")

    def main() -> int:
        """Run the training that the flags describe; returns the exit status."""
        config = command.config_from_flag(_CONFIG)
        if config.train.objective not in ("pretrain", "sft"):
            raise UserError(
                f"train.objective={config.train.objective} is not among what this trainer can do: use"
                " `python -m jaxgpt.train`"
            )
        if config.lora.rank:
            raise UserError(f"lora.rank={config.lora.rank}: this trainer has no adapters, `python -m jaxgpt.train` has")
        workdir = Path(_WORKDIR.value or Path("runs") / f"{command.run_file().stem}_torch")
        if _INIT_FROM.value:
            from data_prep.starting_point import adopt_model

            adopt_model(config, _INIT_FROM.value)

        from scratchgpt.workdir import METRICS, locked

        with locked(workdir):
            if (workdir / METRICS).exists():
                raise UserError(
                    f"{workdir} holds a run already, which this trainer cannot resume: give another --workdir"
                )
            from torchgpt.trainer import Trainer  # PyTorch is imported only here: --help and wrong flags answer at once

            return Trainer(config, workdir, _INIT_FROM.value or None, _DEVICE.value).run()

    command.run(main, __doc__)
