"""Write a trained model as a Hugging Face directory.

python -m jaxgpt.export --workdir=DIR --out=HF_DIR [--step=best|latest|N]
"""

from pathlib import Path

from absl import flags

from configs.schema import ModelConfig, from_dict
from scratchgpt import cli as command
from scratchgpt import workdir as layout
from scratchgpt.errors import UserError
from scratchgpt.files import read_json
from scratchgpt.hf_directory import write_hf_directory
from scratchgpt.metrics import read_metrics
from scratchgpt.model_card import model_card


def export_model(model: ModelConfig, params: dict, tokenizer: object, out: Path, workdir: Path) -> None:
    """Write ``params`` (names of jaxgpt.params) with tokenizer and model card to ``out``, whole or not at all."""
    from jaxgpt.params import canonical_getter

    config = from_dict(read_json(workdir / layout.CONFIG))
    card = model_card(model, config, read_metrics(workdir / layout.METRICS))
    write_hf_directory(out, model, canonical_getter(params), tokenizer, card)


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", "", "directory of a training run")
    _OUT = flags.DEFINE_string("out", "", "directory to write; replaced if it holds a model")
    _STEP = flags.DEFINE_string("step", "best", "best (by validation loss), latest, or a step number")

    def main() -> None:
        """Export what the flags name."""
        if not _WORKDIR.value or not _OUT.value:
            raise UserError("--workdir=DIR and --out=HF_DIR are needed")
        out = Path(_OUT.value)
        if out.exists() and not (out / "config.json").is_file() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} exists and is not a model directory: name another --out")
        from jaxgpt.loading import load_workdir
        from jaxgpt.runtime import start_jax

        start_jax()
        loaded = load_workdir(Path(_WORKDIR.value), _STEP.value)
        export_model(loaded.model, loaded.params, loaded.tokenizer, out, Path(_WORKDIR.value))
        print(f"wrote {out}")

    command.run(main, __doc__)
