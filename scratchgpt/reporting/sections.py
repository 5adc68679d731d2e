"""The sections of a report beside its charts, each as HTML; one that a run has nothing for is empty."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from scratchgpt.progress import duration
from scratchgpt.reporting.figures import count, short_duration
from scratchgpt.reporting.html import details, escape, number_cell, shown, table
from scratchgpt.reporting.runs import Run, sum_of_seconds

_MOST_SAMPLES, _MOST_TEXTS, _MOST_CHARACTERS = 12, 4, 1500
_MOST_STARTS = 20


def summary(runs: Sequence[Run]) -> str:
    """What came out: tiles for one run, a table for several."""
    return _tiles(runs[0]) if len(runs) == 1 else _comparison(runs)


def _perplexity(run: Run) -> float | None:
    best = run.best()
    return math.exp(best.loss) if best and run.is_language_model() and best.loss < 30 else None


def _trained_tokens(run: Run) -> float | None:
    tokens = run.curve("tokens")
    return float(tokens.values[-1]) if tokens else None


def _time(run: Run) -> tuple[str, str]:
    """Its time, and what that is."""
    if seconds := run.seconds():
        total = sum(seconds.values())
        starts = f" in {len(run.starts)} starts" if len(run.starts) > 1 else ""
        return duration(total), f"{seconds.get('step', 0) / total:.0%} of it training steps{starts}"
    spent = run.metrics.places("time", np.array([float(run.metrics.last_step())]))
    return (duration(float(spent[0])), "of training steps, by their speed") if spent is not None else ("", "")


def _speed(run: Run) -> float | None:
    speed = run.curve("tokens_per_second")
    return float(np.median(speed.values)) if speed else None


def _steps(run: Run) -> str:
    done, wanted = run.metrics.last_step(), run.config.get("train.steps")
    return f"{done:,} of {wanted:,} steps" if type(wanted) is int and wanted != done else f"{done:,} steps"


def _shape(run: Run) -> str:
    m = run.model
    return f"{m.n_layer} layers, {m.n_embd} wide, context {m.context_length:,}" if m else ""


def _tiles(run: Run) -> str:
    tiles: list[tuple[str, str, str]] = []
    if best := run.best():
        tiles.append(("best validation loss", f"{best.loss:.4f}", f"nats, at step {best.step:,}"))
    if perplexity := _perplexity(run):
        tiles.append(("perplexity", f"{perplexity:,.4g}", "per token, exp(loss)"))
    if tokens := _trained_tokens(run):
        tiles.append(("tokens", count(tokens), _steps(run)))
    time, what = _time(run)
    if time:
        tiles.append(("time", time, what))
    if speed := _speed(run):
        mfu = run.curve("mfu")
        remark = f"median; MFU {np.median(mfu.values):.1%}" if mfu else "tokens a second, median"
        tiles.append(("throughput", f"{speed:,.0f}" if speed < 1e5 else count(speed), remark))
    if parameters := run.parameters():
        family = run.family()
        tiles.append(("parameters", count(parameters), ", ".join(filter(None, (family, _shape(run))))))
    if nonfinite := len(run.metrics.nonfinite_steps):
        tiles.append(("not applied", f"{nonfinite:,}", "logged steps that were not finite"))
    cells = "".join(
        f'<div{" class=first" if i == 0 else ""}><dt>{escape(name)}</dt><dd class="figure">{escape(value)}</dd>'
        f'<dd class="remark">{escape(remark)}</dd></div>'
        for i, (name, value, remark) in enumerate(tiles)
    )
    return f'<dl class="tiles">{cells}</dl>'


def _comparison(runs: Sequence[Run]) -> str:
    losses = [best.loss if (best := run.best()) else math.inf for run in runs]
    rows = []
    for run, loss in zip(runs, losses, strict=True):
        best, perplexity, tokens = run.best(), _perplexity(run), _trained_tokens(run)
        speed, parameters = _speed(run), run.parameters()
        rows.append(
            [
                run.name,
                number_cell(f"{loss:.4f}" if best else "–", best is not None and loss == min(losses)),
                number_cell(f"{best.step:,}" if best else "–"),
                number_cell(f"{perplexity:,.4g}" if perplexity else "–"),
                number_cell(count(tokens) if tokens else "–"),
                number_cell(_steps(run).removesuffix(" steps")),
                number_cell(_time(run)[0] or "–"),
                number_cell(f"{speed:,.0f}" if speed else "–"),
                number_cell(f"{count(parameters)} {run.family()}" if parameters else "–"),
            ]
        )
    head = ["run", "best validation loss (nats)", "at step", "perplexity", "tokens", "steps"]
    return table("The runs", [*head, "time", "tokens a second", "parameters"], rows, mark_rows=True)


def time_spent(runs: Sequence[Run]) -> str:
    """Seconds by kind of work for each start that came to its end."""
    rows, kinds = [], list(dict.fromkeys(kind for run in runs for kind in run.seconds()))
    for run in runs:
        left_out = len(run.starts) - _MOST_STARTS
        for start in run.starts[-_MOST_STARTS:]:
            spent = sum_of_seconds([start])
            steps = f"steps {start.get('first_step', '?')} to {start.get('last_step', '?')}"
            label = steps if len(runs) == 1 else f"{run.name}, {steps}"
            began = str(start.get("began", ""))[:16].replace("T", " ")
            figures = [number_cell(short_duration(spent.get(kind, 0.0))) for kind in kinds]
            ended = str(start.get("ended", ""))
            rows.append([label, number_cell(began), *figures, number_cell(short_duration(sum(spent.values()))), ended])
        if left_out > 0:
            rows.append([f"{run.name}, {left_out:,} earlier starts", *[""] * (len(kinds) + 3)])
    return table("Time by kind of work", ["start", "began", *kinds, "sum", "ended"], rows)


def _is_evaluation(key: str) -> bool:
    return key.startswith(("val_", "test_")) or (
        not key.startswith("train_") and ("_acc" in key or "accuracy" in key or "bits_per_byte" in key)
    )


def evaluations(runs: Sequence[Run]) -> str:
    """What was measured during training, at each run's best step, and what was measured of its checkpoints since."""
    keys = list(dict.fromkeys(key for run in runs for key in run.metrics.curves if _is_evaluation(key)))
    rows = []
    for key in sorted(keys, key=lambda k: (not k.startswith("val_"), not k.startswith("test_"), k)):
        rows.append([key, *(number_cell(_at_best(run, key)) for run in runs)])
    names = [run.name for run in runs] if len(runs) > 1 else ["at the lowest validation loss"]
    head = ["measured during training", *names]
    html = table("Measured during training", head, rows)
    since = [
        [*about, "; ".join(_measured(found)), *([run.name] if len(runs) > 1 else [])]
        for run in runs
        for about, found in {_about(found): found for found in run.evaluations}.items()  # the newest of repeats
    ]
    head = ["task", "of", "checkpoint", "figures ± standard error", *(["run"] if len(runs) > 1 else [])]
    return html + table("Measured of checkpoints", head, since)


def _about(evaluation: dict[str, Any]) -> tuple[str, str, str]:
    """What was measured: the task, the data with the options, the checkpoint."""
    options = evaluation.get("options")
    chosen = [f"{key} {value}" for key, value in options.items()] if isinstance(options, dict) else []
    data = ", ".join([str(evaluation.get("data", "")), *chosen])
    return str(evaluation.get("task", "")), data, str(evaluation.get("checkpoint", ""))


def _measured(evaluation: dict[str, Any]) -> Iterator[str]:
    errors = evaluation.get("stderr") or {}
    for name, value in evaluation["metrics"].items():
        error = f" ± {_figure(errors[name])}" if errors.get(name) is not None else ""
        yield f"{str(name).replace('_', ' ')} {_figure(value)}{error}"


def _at_best(run: Run, key: str) -> str:
    curve, best = run.curve(key), run.best()
    if curve is None:
        return "–"
    found = np.flatnonzero(curve.steps == best.step) if best else []
    at = int(found[0]) if len(found) else len(curve) - 1
    return f"{_figure(float(curve.values[at]))} (step {int(curve.steps[at]):,})"


def _figure(value: Any) -> str:
    if type(value) not in (int, float):
        return shown(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


def samples(runs: Sequence[Run]) -> str:
    """What the model wrote as it learned; of many evaluations some, the first and the last among them."""
    parts = []
    for run in runs:
        if not run.samples:
            continue
        if len(runs) > 1:
            parts.append(f"<h3>{escape(run.name)}</h3>")
        index = np.unique(np.linspace(0, len(run.samples) - 1, _MOST_SAMPLES).astype(int))
        for i in index:
            is_last = i == len(run.samples) - 1
            parts.append(_sample(run, run.samples[i], is_open=is_last or (i == 0 and len(runs) == 1)))
        if len(index) < len(run.samples):
            remark = f"{len(index)} of {len(run.samples):,} evaluations are shown; samples.jsonl has all."
            parts.append(f'<p class="remark">{remark}</p>')
    return "".join(parts)


def _sample(run: Run, sample: dict[str, Any], is_open: bool) -> str:
    step, prompt = sample["step"], sample.get("prompt")
    heading = "at the end" if step is None else f"step {step:,}"
    loss = run.curve("val_loss")
    if step is not None and loss and len(at := np.flatnonzero(loss.steps == step)):
        heading += f" · validation loss {loss.values[at[0]]:.4f}"
    texts = []
    for text in sample["texts"][:_MOST_TEXTS]:
        cut = f"{text[:_MOST_CHARACTERS]} …" if len(text) > _MOST_CHARACTERS else text
        if isinstance(prompt, str) and prompt.strip() and cut.startswith(prompt):
            texts.append(f"<pre><b>{escape(prompt)}</b>{escape(cut.removeprefix(prompt))}</pre>")
        else:
            texts.append(f"<pre>{escape(cut.strip(chr(10)))}</pre>")
    return details(heading, "".join(texts), is_open)


def configuration(runs: Sequence[Run]) -> str:
    """What the runs differ in, and all keys of each, those that are not the default bold."""
    parts = []
    if len(runs) > 1 and any(run.config for run in runs):
        keys = sorted({key for run in runs for key in run.config})
        texts = {key: [shown(run.config[key]) if key in run.config else "–" for run in runs] for key in keys}
        rows = [[key, *values] for key, values in texts.items() if len(set(values)) > 1]
        parts.append(
            table("Keys that differ", ["key that differs", *(run.name for run in runs)], rows)
            or "<p>The runs have the same configuration.</p>"
        )
    for run in runs:
        rows = [[key, (shown(value), "changed" if key in run.changed else "")] for key, value in run.config.items()]
        if rows:
            name = "All keys" if len(runs) == 1 else run.name
            title = f"{name} ({len(run.changed)} of {len(rows)} are not the default: bold)"
            parts.append(details(title, table(f"Configuration of {run.name}", ["key", "value"], rows)))
    return "".join(parts)


def provenance(runs: Sequence[Run]) -> str:
    """Machine, versions and commit of each run's last start, and the command."""
    rows: list[list[str]] = []
    for label, value_of in (
        ("hardware", lambda run: _last(run, "hardware")),
        ("processes", lambda run: _last(run, "processes")),
        ("versions", lambda run: _last(run, "versions")),
        ("commit", lambda run: _last(run, "commit")),
        ("command", lambda run: run.command or ""),
    ):
        values = [value_of(run) for run in runs]
        if any(values):
            rows.append([label, *(value or "–" for value in values)])
    return table("Provenance", ["", *(run.name for run in runs)] if len(runs) > 1 else ["", "of this run"], rows)


def _last(run: Run, key: str) -> str:
    value = run.starts[-1].get(key) if run.starts else None
    return "" if value is None else shown(value)
