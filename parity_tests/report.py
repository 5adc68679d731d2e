"""Hold a model in jaxgpt, torchgpt and transformers, rung by rung, and name the first tensor that differs.

    python -m parity_tests.report [--checkpoint=HF_DIR] [--config=FILE] [--output=FILE.md]

Without --checkpoint: every family, with random weights. --config names the run file whose optimizer, schedule and
length the optimizer rungs take. The exit status is 0 only if every rung holds.
"""

import platform
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from absl import flags

from scratchgpt import cli as command
from scratchgpt.errors import UserError

_HEADING = """# Parity, rung by rung

Written by `python -m parity_tests.report --output=FILE`. In a cell: largest absolute / largest relative difference over
a tensor; under bfloat16 the second number is the root mean square error against float64, relative to the tensor's own.
What the rungs are and their bars: `parity_tests/ladder.py`."""
_MOST_PARAMETERS = 400_000_000  # float64 parameters, gradients and optimizer slots in two frameworks: 20 GB


class Row(NamedTuple):
    """One rung between two frameworks in one dtype.

    ``tensor`` is the one that differs most relative to its size, ``first`` the first beyond the bar, or "".
    """

    dtype: str
    rung: str
    pair: str
    largest: float
    relative: float
    bar: float
    tensor: str
    first: str


def compare(case, dtypes: tuple[str, ...] = ("float64", "float32", "bfloat16")) -> Iterator[Row]:
    """The table of a ``parity_tests.ladder.Case``, row by row."""
    from parity_tests import ladder
    from parity_tests.frameworks import JaxModel

    for dtype in dtypes:
        if dtype == "bfloat16":
            exact = {r.name: r for r in ladder.climb(case, JaxModel(case.config, case.weights, "float64"), dtype)}
            for rungs in ladder.climb_together(case, dtype):
                if rungs[0].name in ladder.BFLOAT16_BUDGET:
                    for rung, name in zip(rungs, ("jaxgpt", "torchgpt"), strict=True):
                        yield _bfloat16_row(rung, exact[rung.name], name)
            continue
        names = ("jaxgpt", "torchgpt", "transformers")
        for rungs in ladder.climb_together(case, dtype):
            for i, j in ((0, 1), (0, 2), (1, 2)):
                if j < len(rungs):
                    a, b = rungs[i], rungs[j]
                    worst = max(ladder.differences(a, b), key=lambda d: d.relative)
                    beyond = ladder.first_beyond(a, b)
                    first = beyond.tensor if beyond else ""
                    pair = f"{names[i]}, {names[j]}"
                    yield Row(dtype, b.name, pair, worst.largest, worst.relative, b.bar, worst.tensor, first)


def _bfloat16_row(rung, exact, framework: str) -> Row:
    """Root mean square errors of one framework against float64; ``largest`` stays the largest absolute difference."""
    import numpy as np

    from parity_tests.ladder import BFLOAT16_BUDGET, BFLOAT16_UNIT, rms_error

    bar = BFLOAT16_BUDGET[rung.name] * BFLOAT16_UNIT
    names = [name for name in rung.tensors if name not in rung.scales]
    errors = {name: rms_error(rung.tensors[name], exact.tensors[name]) for name in names}
    worst = max(errors, key=errors.get)
    largest = max(float(np.abs(rung.tensors[name] - exact.tensors[name]).max()) for name in names)
    first = next((name for name in names if not errors[name] <= bar), "")
    return Row("bfloat16", rung.name, f"{framework}, float64", largest, errors[worst], bar, worst, first)


def culprit(rows: list[Row]) -> str:
    """One sentence about the first difference beyond its bar, and about who stands alone; "" if all agree."""
    wrong = [row for row in rows if row.first]
    if not wrong:
        return ""
    first = wrong[0]
    sentence = (
        f"the first tensor to diverge is {first.first!r} on the rung {first.rung!r} in {first.dtype} ({first.pair})"
    )
    # Three frameworks, in float32: two pairs that differ have one member in common.
    pairs = {row.pair for row in wrong if row.dtype == "float32" and row.rung == first.rung}
    for name, others in (
        ("jaxgpt", {"jaxgpt, torchgpt", "jaxgpt, transformers"}),
        ("torchgpt", {"jaxgpt, torchgpt", "torchgpt, transformers"}),
    ):
        if pairs == others:
            return f"{sentence}; {name} stands alone against the other two"
    if pairs == {"jaxgpt, transformers", "torchgpt, transformers"}:
        return f"{sentence}; jaxgpt and torchgpt agree, so look at the Hugging Face layout that both read"
    return sentence


def as_text(row: Row) -> str:
    """A line for the terminal."""
    verdict = "DIFFERS" if row.first else "same"
    return (
        f"{row.dtype:9} {row.rung:16} {row.pair:24} {row.largest:8.1e} {row.relative:8.1e} <= {row.bar:7.1e}"
        f"  {verdict:7}  {row.first or row.tensor}"
    )


def as_markdown(title: str, rows: list[Row]) -> str:
    """A section with one line a rung and one column a pair: max absolute / max relative difference."""
    columns = list(dict.fromkeys((row.dtype, row.pair) for row in rows))
    cells = {(row.rung, row.dtype, row.pair): row for row in rows}
    lines = [f"## {title}", "", "| rung | " + " | ".join(f"{d}: {pair}" for d, pair in columns) + " |"]
    lines.append("|---" * (1 + len(columns)) + "|")
    for rung in dict.fromkeys(row.rung for row in rows):
        found = [cells.get((rung, *column)) for column in columns]
        texts = [
            f"{r.largest:.1e} / {r.relative:.1e}" + (f" **{r.first}**" if r.first else "") if r else "" for r in found
        ]
        lines.append(f"| {rung} | " + " | ".join(texts) + " |")
    return "\n".join([*lines, ""])


def case_of(directory: Path, optim, steps: int):
    """A Case from a Hugging Face directory: two sequences of up to 64 random tokens. Raises UserError."""
    import numpy as np

    from configs.schema import count_parameters
    from parity_tests.ladder import Case
    from scratchgpt.hf_directory import open_hf_directory
    from scratchgpt.labels import check_writes_text

    stored = open_hf_directory(directory)
    check_writes_text(stored.model, directory)
    if count_parameters(stored.model) > _MOST_PARAMETERS:
        raise UserError(
            f"{directory} has {count_parameters(stored.model) / 1e6:,.0f} million parameters: the ladder holds up to"
            f" {_MOST_PARAMETERS / 1e6:.0f} million in float64"
        )
    weights = {name: np.array(array) for name, array in stored.parameters()}
    length = min(stored.model.context_length, 64)
    tokens = np.random.default_rng(0).integers(0, stored.model.vocab_size, (2, length + 1), dtype=np.int32)
    adamw, muon = (replace(optim, optimizer=kind) for kind in ("adamw", "muon"))
    return Case(stored.model, weights, tokens, directory, adamw, muon, steps)


def main(checkpoint: str, config, output: str) -> int:
    """Print the tables, write them to ``output`` if it is given; returns the exit status."""
    cases = {}
    with tempfile.TemporaryDirectory() as scratch:
        if checkpoint:
            cases[Path(checkpoint).name or checkpoint] = Path(checkpoint)
        else:
            from configs.schema import resolve_model
            from parity_tests.models import all_models, random_weights, tokenizer_for
            from scratchgpt.hf_directory import write_hf_directory

            for name, model in all_models().items():
                model, cases[name] = resolve_model(model), Path(scratch) / name
                write_hf_directory(cases[name], model, random_weights(model).__getitem__, tokenizer_for(model))
        import jax
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        versions = (
            f"{platform.machine()} {jax.devices()[0].device_kind}, Python {platform.python_version()}, jax"
            f" {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
        )
        print(versions, flush=True)
        sections, sentences = [], []
        for name, directory in cases.items():
            print(f"\n{name}: max absolute and relative difference", flush=True)
            rows = []
            for row in compare(case_of(directory, config.optim, config.train.steps)):
                rows.append(row)
                print(as_text(row), flush=True)
            sections.append(as_markdown(name, rows))
            if sentence := culprit(rows):
                sentences.append(f"{name}: {sentence}")
    verdict = "Every rung holds." if not sentences else "; ".join(sentences)
    if output:
        from scratchgpt.files import write_text

        write_text(output, "\n\n".join([_HEADING, f"{versions}. {verdict}", *sections]))
        print(f"wrote {output}")
    if sentences:
        raise UserError("the frameworks differ: " + verdict)
    print(verdict)
    return 0


if __name__ == "__main__":
    _CONFIG = command.define_config_flag()
    _CHECKPOINT = flags.DEFINE_string("checkpoint", "", "Hugging Face directory; empty: every family, random weights")
    _OUTPUT = flags.DEFINE_string("output", "", "Markdown file for the tables")

    command.run(lambda: main(_CHECKPOINT.value, command.config_from_flag(_CONFIG), _OUTPUT.value), __doc__)
