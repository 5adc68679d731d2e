"""A workdir as its report needs it: what was measured, written, spent and configured, as far as it is there."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.schema import Config, ConfigError, ModelConfig, count_parameters, family_of, from_dict, to_dict
from scratchgpt import workdir as layout
from scratchgpt.errors import UserError
from scratchgpt.files import read_json
from scratchgpt.hf_layout import from_hf_config
from scratchgpt.json_lines import iterate_objects
from scratchgpt.metrics import iterate_metrics
from scratchgpt.reporting.series import Curve, Metrics, collect

EVALUATIONS = "evaluations.jsonl"
KINDS = ("step", "compilation", "data", "evaluation", "saving")


@dataclass(slots=True)
class Best:
    """The lowest validation loss (nats) and its step."""

    loss: float
    step: int


@dataclass(slots=True)
class Run:
    """One workdir.

    Attributes:
      name: as the report calls it; no two runs of a report have the same.
      workdir: where it lies.
      metrics: its curves.
      config: the keys of config.json with their values, ``section.key``; empty if there is none.
      changed: those of them that are not the schema's defaults.
      starts: lines of starts.jsonl.
      samples: lines of samples.jsonl, or one without a step, made of samples.txt.
      evaluations: lines of evaluations.jsonl.
      command: that began it, if known.
      model: its shape with the vocabulary filled in, if known.
    """

    name: str
    workdir: Path
    metrics: Metrics
    config: dict[str, Any] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    starts: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    command: str | None = None
    model: ModelConfig | None = None

    def curve(self, key: str) -> Curve | None:
        """The curve of a key of metrics.jsonl, or None."""
        return self.metrics.curves.get(key)

    def best(self) -> Best | None:
        """The lowest validation loss; None if none was measured."""
        curve = self.curve("val_loss")
        if curve is None:
            return None
        lowest = curve.values.argmin()
        return Best(float(curve.values[lowest]), int(curve.steps[lowest]))

    def is_language_model(self) -> bool:
        """Whether its loss is per token, so that it has a perplexity."""
        return self.config.get("train.objective", "pretrain") in ("pretrain", "sft")

    def seconds(self) -> dict[str, float]:
        """Seconds on each kind of work, over all starts that are on record; empty if none is."""
        return sum_of_seconds(self.starts)

    def parameters(self) -> int | None:
        """How many the model has, if known."""
        return count_parameters(self.model) if self.model else None

    def family(self) -> str:
        """Such as ``llama``; empty if unknown."""
        try:
            return family_of(self.model) if self.model else ""
        except ConfigError:
            return ""


def sum_of_seconds(starts: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds on each kind of work in ``starts``, the kinds that took none left out."""
    spent = dict.fromkeys(KINDS, 0.0)
    for start in starts:
        for kind, seconds in start["seconds"].items():
            spent[str(kind)] = spent.get(str(kind), 0.0) + seconds
    return {kind: seconds for kind, seconds in spent.items() if seconds > 0}


def read_runs(workdirs: Sequence[Path]) -> list[Run]:
    """All of ``workdirs``, by names that tell them apart.

    Raises UserError if one does not exist, is named twice, has no metrics, or holds a file that is damaged.
    """
    if not workdirs:
        raise UserError("name at least one workdir: python -m jaxgpt.report WORKDIR [WORKDIR ...]")
    absolute = [Path(os.path.realpath(workdir)) for workdir in workdirs]
    for i, workdir in enumerate(absolute):
        if workdir in absolute[:i]:
            raise UserError(f"{workdirs[i]} is named twice")
    return [read_run(workdir, name) for workdir, name in zip(workdirs, _names(absolute), strict=True)]


def read_run(workdir: Path, name: str) -> Run:
    """The run in ``workdir``. Raises UserError if there is none, or if it holds a file that is damaged."""
    if not workdir.is_dir():
        raise UserError(f"{workdir} {'is not a directory' if workdir.exists() else 'does not exist'}: name a workdir")
    if not (workdir / layout.METRICS).is_file():
        raise UserError(f"{workdir} holds no {layout.METRICS}, which training writes: name the workdir of a run")
    metrics = collect(iterate_metrics(workdir / layout.METRICS))
    if not metrics.curves and not len(metrics.nonfinite_steps):
        raise UserError(f"{workdir / layout.METRICS} holds no number yet: wait for the run's first report")
    config, changed = _config(workdir / layout.CONFIG)
    return Run(
        name,
        workdir,
        metrics,
        config,
        changed,
        list(iterate_objects(workdir / layout.STARTS, _is_start, "a start of a run")),
        _samples(workdir),
        list(iterate_objects(workdir / EVALUATIONS, _is_evaluation, "an evaluation")),
        layout.read_command(workdir),
        _model(workdir),
    )


def _names(workdirs: Sequence[Path]) -> list[str]:
    """The last part of each path, and as many before it as tell it from the others."""
    names = []
    for workdir in workdirs:
        parts = [part for part in workdir.parts if part != workdir.anchor]
        others = [other.parts for other in workdirs if other != workdir]
        length = 1
        while length < len(parts) and any(other[-length:] == tuple(parts[-length:]) for other in others):
            length += 1
        names.append("/".join(parts[-length:]) or str(workdir))
    return names


def _config(path: Path) -> tuple[dict[str, Any], set[str]]:
    if not path.is_file():
        return {}, set()
    nested = read_json(path)
    if not isinstance(nested, dict):
        raise UserError(f"{path} is not a configuration: it is not an object with sections")
    values = {}
    for section, entries in nested.items():
        if isinstance(entries, dict):
            values |= {f"{section}.{key}": value for key, value in entries.items()}
        else:
            values[section] = entries
    defaults = {f"{s}.{key}": value for s, entries in to_dict(Config()).items() for key, value in entries.items()}
    return values, {key for key, value in values.items() if key not in defaults or defaults[key] != value}


def _model(workdir: Path) -> ModelConfig | None:
    """The shape of the model, from the export or what jaxgpt.train compares when it resumes."""
    try:
        if (workdir / layout.EXPORT / "config.json").is_file():
            return from_hf_config(read_json(workdir / layout.EXPORT / "config.json"))
        if (workdir / "identity.json").is_file():
            model = from_dict({"model": read_json(workdir / "identity.json")["model"]}).model
            return model if model.vocab_size else None
    except (UserError, ConfigError, KeyError, TypeError, ValueError):
        pass  # only the number of parameters is missing then, and whoever loads the model is told
    return None


def _samples(workdir: Path) -> list[dict[str, Any]]:
    samples = list(iterate_objects(workdir / layout.SAMPLES_LOG, _is_sample, "a sample with its step"))
    by_step = {sample["step"]: sample for sample in samples}  # a resumed run may have written some twice
    path = workdir / layout.SAMPLES
    if samples or not path.is_file():
        return [by_step[step] for step in sorted(by_step)]
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip("\n")
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}") from e
    return [{"step": None, "prompt": "", "texts": re.split(r"\n\n---\n\n", text)}] if text.strip() else []


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e15


def _is_start(row: dict[str, Any]) -> bool:
    seconds = row.get("seconds")
    return isinstance(seconds, dict) and all(_is_number(s) and s >= 0 for s in seconds.values())


def _is_sample(row: dict[str, Any]) -> bool:
    texts = row.get("texts")
    return type(row.get("step")) is int and isinstance(texts, list) and all(isinstance(text, str) for text in texts)


def _is_evaluation(row: dict[str, Any]) -> bool:
    return isinstance(row.get("metrics"), dict) and isinstance(row.get("stderr") or {}, dict)
