"""Measure a trained model: the loss on a text, or the accuracy on questions.

    python -m jaxgpt.evaluate --checkpoint=WORKDIR|HF_DIR --task=loss [--data=DIR|FILE|NAME] [--stride=N]
    python -m jaxgpt.evaluate --checkpoint=WORKDIR|HF_DIR --task=hellaswag|TASK_FILE.json [--data=FILE|HF_ID]

loss: nats per token, perplexity, and bits per byte, which models with different tokenizers share. --data is a directory
of token shards (their validation split, read in one piece, as training does), or a text: a file, folder or glob, or a
named data set, whose documents each begin after the end-of-text token. Empty: the data that the run in --checkpoint was
trained on. Without --stride windows do not overlap; a smaller stride gives each token more context.

Any other task is a task file or the name of one in configs/tasks: questions whose answer should be the likeliest
continuation. acc compares log-likelihoods, acc_norm divides them by the characters of a choice.
"""

import sys
from pathlib import Path

from absl import flags

from scratchgpt import cli as command
from scratchgpt.errors import UserError
from scratchgpt.files import check_writable, read_json, write_json


def _is_evaluation(path: Path) -> bool:
    """Whether a file is what an earlier --output wrote."""
    try:
        found = read_json(path)
    except UserError:
        return False
    return isinstance(found, dict) and {"task", "metrics"} <= found.keys()


if __name__ == "__main__":
    _CHECKPOINT = flags.DEFINE_string(
        "checkpoint", "", "workdir or Hugging Face directory; empty: newest runs/*/export"
    )
    _TASK = flags.DEFINE_string("task", "loss", "loss, a task of configs/tasks (hellaswag, ...), or a task file")
    _DATA = flags.DEFINE_string("data", "", "shards or text to measure the loss on, or the rows of a task")
    _SPLIT = flags.DEFINE_enum("split", "val", ["train", "val"], "of shards")
    _TEXT_COLUMN = flags.DEFINE_string("text_column", "text", "column that holds the text, where there are columns")
    _STRIDE = flags.DEFINE_integer("stride", 0, "tokens predicted by a window; 0: as many as the context", 0)
    _LIMIT = flags.DEFINE_integer("limit", 0, "only the first so many documents or questions; 0: all", 0, sys.maxsize)
    _BATCH_SIZE = flags.DEFINE_integer("batch_size", 0, "windows or answers at a time; 0: as memory allows", 0)
    _OUTPUT = flags.DEFINE_string("output", "", "file to write the figures to as well, as JSON")

    def main() -> None:
        """Print the figures that the flags ask for."""
        from data_prep.evaluation_tasks import Task

        task = None if _TASK.value == "loss" else Task(_TASK.value)
        if task and (_STRIDE.value or _SPLIT.value != "val"):
            raise UserError("--stride and --split are for --task=loss")
        if _OUTPUT.value:
            check_writable(Path(_OUTPUT.value), _DATA.value, _TASK.value)
            if Path(_OUTPUT.value).exists() and not _is_evaluation(Path(_OUTPUT.value)):
                raise UserError(f"--output={_OUTPUT.value} exists and is no evaluation: name another file")
        from jaxgpt.runtime import memory_errors, start_jax

        start_jax()
        from jaxgpt.evaluation import answer_questions, measure_text
        from jaxgpt.loading import load_model
        from scratchgpt.labels import check_writes_text
        from scratchgpt.provenance import append_line
        from scratchgpt.workdir import EVALUATIONS, is_workdir

        chosen = {"split": _SPLIT.value if not task else "", "stride": _STRIDE.value, "limit": _LIMIT.value}
        options = {name: value for name, value in chosen.items() if value and value != "val"}
        with memory_errors("lower --batch_size, or measure a smaller model"):
            loaded = load_model(_CHECKPOINT.value)
            check_writes_text(loaded.model, _CHECKPOINT.value or "the newest export under runs/")
            if task:
                found = answer_questions(loaded, task, _DATA.value, _LIMIT.value, _BATCH_SIZE.value)
            else:
                found = measure_text(
                    loaded,
                    _DATA.value,
                    workdir=Path(_CHECKPOINT.value) if _CHECKPOINT.value else None,
                    split=_SPLIT.value,
                    text_column=_TEXT_COLUMN.value,
                    stride=_STRIDE.value,
                    limit=_LIMIT.value,
                    batch_size=_BATCH_SIZE.value,
                )
        for name, value in found.metrics.items():
            error = f" ± {found.stderr[name]:.5f}" if name in found.stderr else ""
            print(f"{name.replace('_', ' ')}: {f'{value:,}' if isinstance(value, int) else f'{value:.5f}{error}'}")
        row = {
            "task": _TASK.value,
            "data": found.data,
            "options": options,
            "metrics": found.metrics,
            "stderr": found.stderr,
        }
        row |= {"checkpoint": f"step {loaded.step}" if loaded.step is not None else _CHECKPOINT.value}
        if _CHECKPOINT.value and is_workdir(Path(_CHECKPOINT.value)):
            append_line(Path(_CHECKPOINT.value) / EVALUATIONS, row)
        if _OUTPUT.value:
            write_json(_OUTPUT.value, row)

    command.run(main, __doc__, large_pages=True)
