"""Write a trained model as a Hugging Face directory.

    python -m jaxgpt.export --workdir=DIR --out=HF_DIR [--step=best|latest|N]
    python -m jaxgpt.export --workdir=DIR --push_to_hub=USER/REPO [--private] [--out=HF_DIR] [--step=best|latest|N]
    python -m jaxgpt.export --workdir=DIR --adapter --out=DIR [--step=best|latest|N]

The second form uploads the directory to the Hugging Face Hub with your own login (`hf auth login`, or HF_TOKEN). The
adapters of a run with LoRA are merged into the model; the third form writes them alone, in PEFT's format, and can
upload them as well.
"""

import contextlib
import tempfile
from pathlib import Path

from absl import flags

from configs.schema import ModelConfig
from scratchgpt import cli as command
from scratchgpt import workdir as layout
from scratchgpt.errors import UserError
from scratchgpt.files import disk_errors
from scratchgpt.hf_directory import write_hf_directory
from scratchgpt.labels import saved_labels
from scratchgpt.metrics import read_metrics
from scratchgpt.model_card import model_card
from scratchgpt.peft_directory import adapter_card, check_replaceable, write_peft_directory


def export_model(
    model: ModelConfig,
    params: dict,
    tokenizer: object,
    out: Path,
    workdir: Path,
    step: int | None = None,
    repo_id: str | None = None,
) -> None:
    """Write ``params`` (names of jaxgpt.params) with tokenizer and model card to ``out``, whole or not at all.

    Args:
      workdir: of the run; its configuration, metrics and command go into the card.
      step: the step that ``params`` are of; None: that of the lowest validation loss.
      repo_id: where on the Hub ``out`` will be uploaded to, for the card.
    """
    from jaxgpt.params import canonical_getter

    config, rows = layout.stored_config(workdir), read_metrics(workdir / layout.METRICS)
    labels = saved_labels(workdir, model)
    command_line = layout.read_command(workdir)
    card = model_card(model, config, rows, step, command=command_line, repo_id=repo_id, labels=labels)
    write_hf_directory(out, model, canonical_getter(params), tokenizer, card, labels)


def export_adapter(workdir: Path, step: str, out: Path, repo_id: str | None = None) -> None:
    """Write the LoRA adapters of a run, without the model under them, to ``out`` in PEFT's format.

    ``step`` as in :func:`jaxgpt.loading.load_workdir`. Raises UserError for a run without adapters.
    """
    from jaxgpt.loading import load_workdir
    from jaxgpt.params import canonical_getter

    config = layout.stored_config(workdir)
    if not config.lora.rank:
        raise UserError(f"{workdir} is not a run with LoRA, so it has no adapter: leave out --adapter")
    if config.train.objective == "classify":
        raise UserError(f"{workdir} is a classifier, whose scores an adapter would lack: leave out --adapter")
    check_replaceable(out)
    loaded = load_workdir(workdir, step, merge=False)
    rows, command = read_metrics(workdir / layout.METRICS), layout.read_command(workdir)
    card = adapter_card(config, loaded.model, rows, loaded.step, command=command, repo_id=repo_id)
    write_peft_directory(out, config, loaded.model, canonical_getter(loaded.params), loaded.tokenizer, card)


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", "", "directory of a training run")
    _OUT = flags.DEFINE_string("out", "", "directory to write; replaced if it holds a model")
    _STEP = flags.DEFINE_string("step", "best", "best (by validation loss), latest, or a step number")
    _PUSH = flags.DEFINE_string("push_to_hub", "", "USER/REPO: upload to this repository, made if it does not exist")
    _PRIVATE = flags.DEFINE_bool("private", False, "make a new repository private")
    _ADAPTER = flags.DEFINE_bool("adapter", False, "write LoRA's adapters alone, in PEFT's format")

    def main() -> None:
        """Export what the flags name, and upload it where asked to."""
        if not _WORKDIR.value:
            raise UserError("--workdir=DIR is needed: the directory of a training run")
        if not (_OUT.value or _PUSH.value):
            raise UserError("--out=HF_DIR or --push_to_hub=USER/REPO is needed: where the model goes")
        if _PRIVATE.value and not _PUSH.value:
            raise UserError("--private says how to upload: it needs --push_to_hub=USER/REPO")
        if _PUSH.value:
            from scratchgpt.hub import check_ready

            check_ready(_PUSH.value)  # before minutes of work
        with contextlib.ExitStack() as stack:
            out = Path(_OUT.value)
            if not _OUT.value:
                with disk_errors("a temporary directory"):
                    out = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "export"
            _export(Path(_WORKDIR.value), out)
            if _OUT.value:
                print(f"wrote {out}", flush=True)
            if _PUSH.value:
                from scratchgpt.hub import push

                size = sum(f.stat().st_size for f in out.iterdir())
                print(f"uploading {size / 1e6:,.1f} MB to {_PUSH.value}", flush=True)
                print(f"uploaded to {push(out, _PUSH.value, _PRIVATE.value)}")

    def _export(workdir: Path, out: Path) -> None:
        from jaxgpt.runtime import start_jax

        if _ADAPTER.value:
            start_jax()
            return export_adapter(workdir, _STEP.value, out, _PUSH.value or None)
        if out.exists() and not (out / "config.json").is_file() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} exists and is not a model directory: name another --out")
        from jaxgpt.loading import load_workdir

        start_jax()
        loaded = load_workdir(workdir, _STEP.value)
        export_model(loaded.model, loaded.params, loaded.tokenizer, out, workdir, loaded.step, _PUSH.value or None)

    command.run(main, __doc__)
