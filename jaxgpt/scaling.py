"""Train a ladder of sizes and budgets, fit a scaling law to it, and predict a run that the law has not seen.

    python -m jaxgpt.scaling [--config=FILE] [--workdir=DIR] [--depths=1,2,3,4] [--budgets=FLOPS,...]
                             [--predict=DEPTH:TOKENS] [--config.section.key=value]

Each rung is an ordinary run of jaxgpt.train in WORKDIR/d<depth>-<tokens>: skipped when it is finished, resumed when it
is not. WORKDIR also holds ladder.json, fit.json (law, intervals, prediction), table.md and scaling.png. The
prediction is written before the run that it is about begins. docs/scaling_laws.md explains the rules.
"""

import gc
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from configs.schema import Config
from data_prep.training_data import open_data
from jaxgpt.ladder import Ladder, Result, Rung, check_base, check_same_text, claim, read_result
from scratchgpt import cli as command
from scratchgpt.errors import UserError
from scratchgpt.files import read_json, write_json, write_text
from scratchgpt.progress import duration
from scratchgpt.scaling_law import FEWEST_LEVELS, FEWEST_RUNS, Fit, check_design, fit_law
from scratchgpt.scaling_plots import HeldOut, Point, plot_law
from scratchgpt.workdir import locked

FIT, TABLE, PLOT = "fit.json", "table.md", "scaling.png"


def numbers(flag: str, values: list[str], kind: type) -> list[Any]:
    """The positive numbers of a flag's list. Raises UserError for none, or for another thing among them."""
    found = []
    for text in values:
        try:
            value = float(text)
            if not 0 < value < math.inf or value != kind(value):
                raise ValueError
        except ValueError as e:
            unit = "tokens" if flag == "predict" else "FLOPs"
            what = (
                "a number of layers, 1 or more" if kind is int else f"a number of {unit} greater than 0, such as 2e11"
            )
            raise UserError(f"--{flag}: {text!r} is not {what}") from e
        found.append(kind(value))
    if not found:
        raise UserError(f"--{flag} is empty: list some, with commas between them")
    return sorted(set(found))


def parse_prediction(text: str) -> tuple[int, float] | None:
    """DEPTH and TOKENS of ``--predict``; None of an empty string. Raises UserError."""
    if not text:
        return None
    depth, colon, tokens = text.partition(":")
    if not colon:
        raise UserError(f"--predict={text!r} must be DEPTH:TOKENS, such as 5:1e6")
    return numbers("predict", [depth], int)[0], numbers("predict", [tokens], float)[0]


class Climb:
    """Trains rungs one after another, and says how long the rest will take."""

    def __init__(self, workdir: Path, arguments: list[str], rungs: list[Rung]) -> None:
        self._workdir, self._arguments, self._rungs = workdir, arguments, rungs
        self._took: list[tuple[float, float]] = []  # FLOPs and seconds of the rungs trained here

    def train(self, number: int) -> int:
        """Train rung ``number`` to its end; returns the exit status, which is not 0 if a signal stopped it."""
        from jaxgpt.runtime import memory_errors
        from jaxgpt.trainer import Trainer

        rung = self._rungs[number]
        where = self._workdir / rung.name
        print(f"\nrung {number + 1}/{len(self._rungs)}: {_told(rung)}, in {where}{self._eta(number)}", flush=True)
        began = time.monotonic()
        before, sys.argv = sys.argv, ["jaxgpt.train", *rung.command(self._workdir, self._arguments)]
        try:  # what the run keeps as its command is what trains it alone
            with locked(where), memory_errors():
                status = Trainer(rung.config, where).run()
        finally:
            sys.argv = before
            gc.collect()  # arrays of a finished run lie in cycles
        self._took.append((rung.flops, time.monotonic() - began))
        return status

    def _eta(self, number: int) -> str:
        """From a cost a run and a cost a FLOP, neither below 0, that the rungs so far tell by least squares."""
        if not self._took:
            return ""
        from scipy.optimize import nnls  # only now: --help answers at once

        flops, seconds = np.array(self._took).T
        unit = flops.max()
        (each, by_flops), _ = nnls(np.stack([np.ones_like(flops), flops / unit], axis=1), seconds)
        left = sum(
            each + by_flops * r.flops / unit for r in self._rungs[number:] if read_result(r, self._workdir) is None
        )
        return f", ETA {duration(left)}"


def _told(rung: Rung) -> str:
    return f"depth {rung.depth}, N = {rung.parameters:,}, D = {rung.tokens:,} tokens, C = {rung.flops:.3g} FLOPs"


def _point(rung: Rung, loss: float) -> Point:
    return Point(rung.depth, rung.parameters, rung.tokens, rung.flops, loss, rung.budget)


def _row(result: Result, fitted: float) -> dict[str, Any]:
    rung = result.rung
    figures = {"name": rung.name, "depth": rung.depth, "parameters": rung.parameters, "tokens": rung.tokens}
    figures |= {"flops": rung.flops, "steps": rung.config.train.steps, "seconds": round(result.seconds, 1)}
    return figures | {"val_loss": result.loss, "law": fitted, "error": fitted / result.loss - 1}


def report(fit: Fit, results: list[Result], target: Rung | None, found: Result | None) -> dict[str, Any]:
    """What fit.json holds."""
    law = fit.law
    text: dict[str, Any] = {
        "law": "L(N, D) = E + A / N^alpha + B / D^beta, nats per token",
        "counted": "N: matrices of blocks and head; D: training targets; flops: jaxgpt.flops (model), all tokens",
        "coefficients": law.coefficients(),
        "intervals_95": {name: fit.interval(name) for name in law.coefficients()},
        "resamples": len(fit.resampled),
        "rms_residual": float(np.sqrt(np.mean(fit.residuals**2))),
        "runs": [_row(r, float(law.loss(r.rung.parameters, r.rung.tokens))) for r in results],
    }
    if target:
        predicted = float(law.loss(target.parameters, target.tokens))
        text["held_out"] = {
            "name": target.name,
            "parameters": target.parameters,
            "tokens": target.tokens,
            "flops": target.flops,
            "flops_over_largest_fitted": target.flops / max(r.rung.flops for r in results),
            "predicted": predicted,
            "interval_95": fit.prediction_interval(target.parameters, target.tokens),
            "measured": found.loss if found else None,
            "error": predicted / found.loss - 1 if found else None,
        }
    return text


def table(text: dict[str, Any]) -> str:
    """A report as markdown."""
    lines = ["| depth | N | D | FLOPs | steps | seconds | validation loss | law | error |", "|" + "---:|" * 9]
    for r in text["runs"]:
        lines.append(
            f"| {r['depth']} | {r['parameters']:,} | {r['tokens']:,} | {r['flops']:.2e} | {r['steps']:,}"
            f" | {r['seconds']:.0f} | {r['val_loss']:.4f} | {r['law']:.4f} | {r['error']:+.2%} |"
        )
    lines += ["", "| coefficient | fit | 95 % interval |", "|---|---:|---:|"]
    for name, value in text["coefficients"].items():
        low, high = text["intervals_95"][name]
        lines.append(f"| {name} | {value:.4g} | {low:.4g} to {high:.4g} |")
    low, high = text["intervals_95"]["alpha"]
    if high > 10 * low:
        lines += [
            "",
            "These sizes do not tell how loss falls with N: alpha's interval spans more than a factor of ten.",
        ]
    if held := text.get("held_out"):
        low, high = held["interval_95"]
        lines += [
            "",
            f"Held out: {held['name']}, N = {held['parameters']:,}, D = {held['tokens']:,}, {held['flops']:.2e} FLOPs"
            f" ({held['flops_over_largest_fitted']:.1f} times the largest fitted run).",
            f"Predicted {held['predicted']:.4f} (95 % interval {low:.4f} to {high:.4f})"
            + (f", measured {held['measured']:.4f}: error {held['error']:+.2%}." if held["measured"] else "."),
        ]
    return "\n".join(lines) + "\n"


def climb(
    config: Config,
    workdir: Path,
    depths: list[int],
    budgets: list[float],
    held_out: tuple[int, float] | None,
    args: list[str],
) -> int:
    """Train what is missing of a ladder, fit and report; returns the exit status.

    Args:
      config: the run file's.
      workdir: where everything is written; the caller holds its lock.
      depths: sizes.
      budgets: FLOPs of a run.
      held_out: depth and tokens of the run to predict.
      args: flags of ``jaxgpt.train`` that make ``config``.
    """
    if len(depths) * len(budgets) < FEWEST_RUNS:
        raise UserError(
            f"{len(depths)} depths at {len(budgets)} budgets are at most {len(depths) * len(budgets)} runs: a law needs"
            f" {FEWEST_RUNS} or more, give more --depths or --budgets"
        )
    if len(depths) < FEWEST_LEVELS:
        raise UserError(f"a law needs {FEWEST_LEVELS} sizes or more, and --depths has {len(depths)}")
    data = open_data(config, print)
    ladder = Ladder(config, data, len(data.train_tokens))
    rungs, left_out = ladder.rungs(depths, budgets)
    check_design(np.array([r.parameters for r in rungs]), np.array([r.tokens for r in rungs]), left_out)
    target = ladder.held_out(*held_out, rungs) if held_out else None
    claim(workdir, config)
    check_prediction_stays(workdir, target)
    everything = rungs + ([target] if target else [])
    done = {r.name for r in everything if read_result(r, workdir)}
    for phrase in left_out:
        print(f"left out: {phrase}")
    total = sum(r.flops for r in everything)
    print(f"{len(everything)} runs, {total:.3g} FLOPs in all; {len(done)} of them finished before", flush=True)

    stairs = Climb(workdir, args, everything)
    fit, results = None, []
    for number, rung in enumerate(everything):
        if rung is target:  # the law is fitted, and its prediction written, before the run begins
            fit, results = _fit(rungs, workdir)
            _write(fit, results, ladder, target, None, workdir)
        try:
            status = 0 if rung.name in done else stairs.train(number)
        except KeyboardInterrupt:  # while it compiled, before the run answers signals itself
            status = 130
        if status:
            print(f"the ladder stops with {rung.name}; run again to go on", flush=True)
            return status
        result = read_result(rung, workdir)
        if result is None:
            raise UserError(
                f"{workdir / rung.name} came to its end without a validation loss: move it away and run again"
            )
        print(f"{rung.name}: validation loss {result.loss:.4f}", flush=True)
    fit, results = (fit, results) if fit else _fit(rungs, workdir)
    check_same_text(everything, workdir)
    found = read_result(target, workdir) if target else None
    print("\n" + _write(fit, results, ladder, target, found, workdir))
    print(f"fit {workdir / FIT}; picture {workdir / PLOT}; table {workdir / TABLE}")
    return 0


def check_prediction_stays(workdir: Path, target: Rung | None) -> None:
    """Refuse to write over the prediction of another run than ``target``: it cannot be made before that run again."""
    if not (workdir / FIT).exists():
        return
    written = read_json(workdir / FIT)
    held_out = written.get("held_out") if isinstance(written, dict) else None
    if isinstance(held_out, dict) and (target is None or held_out.get("name") != target.name):
        raise UserError(
            f"{workdir / FIT} holds the prediction of {held_out.get('name')}, which this would replace: give the same"
            " --predict again, or move the file away"
        )


def _fit(rungs: list[Rung], workdir: Path) -> tuple[Fit, list[Result]]:
    check_same_text(rungs, workdir)
    results = [result for rung in rungs if (result := read_result(rung, workdir))]
    columns = ([r.rung.parameters for r in results], [r.rung.tokens for r in results], [r.loss for r in results])
    print("\nfitting the law", flush=True)
    return fit_law(*map(np.array, columns)), results


def _write(
    fit: Fit, results: list[Result], ladder: Ladder, target: Rung | None, found: Result | None, workdir: Path
) -> str:
    """Write fit.json, the picture and the table, which is returned."""
    text = report(fit, results, target, found)
    write_json(workdir / FIT, text)
    deepest = max([r.rung.depth for r in results] + ([target.depth] if target else []))
    places = [ladder.place(depth) for depth in range(1, 2 * deepest + 1)]
    dial = [place for place in places if place]
    held_out = None
    if target:
        predicted = _point(target, text["held_out"]["predicted"])
        held_out = HeldOut(predicted, tuple(text["held_out"]["interval_95"]), found.loss if found else None)
    plot_law(fit.law, [_point(r.rung, r.loss) for r in results], dial, held_out, workdir / PLOT)
    write_text(workdir / TABLE, table(text))
    return table(text)


if __name__ == "__main__":
    _CONFIG = command.define_config_flag("scaling_small.py")
    _WORKDIR = flags.DEFINE_string("workdir", "", "directory of the ladder; empty: runs/<name of the run file>")
    _DEPTHS = flags.DEFINE_list("depths", ["1", "2", "3", "4"], "sizes: numbers of layers, which the width follows")
    _BUDGETS = flags.DEFINE_list(
        "budgets", ["5e10", "1e11", "1.8e11", "3.4e11", "6.4e11"], "training compute of a run, in FLOPs"
    )
    _PREDICT = flags.DEFINE_string("predict", "", "DEPTH:TOKENS of a larger run to predict, then train; empty: none")

    def main() -> int:
        """Climb the ladder that the flags describe; returns the exit status."""
        config = command.config_from_flag(_CONFIG)
        depths, budgets = numbers("depths", _DEPTHS.value, int), numbers("budgets", _BUDGETS.value, float)
        held_out = parse_prediction(_PREDICT.value)
        check_base(config)
        workdir = Path(_WORKDIR.value or Path("runs") / command.run_file().stem)
        from jaxgpt.runtime import start_jax  # JAX is imported only here: --help and mistakes in flags stay quick

        start_jax(config)
        given = [f"--config={command.run_file()}", *(a for a in sys.argv[1:] if a.startswith("--config."))]
        with locked(workdir):
            return climb(config, workdir, depths, budgets, held_out, given)

    command.run(main, __doc__, large_pages=True)
