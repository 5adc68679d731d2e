"""A ladder of runs for a scaling law: sizes from one dial, depth; lengths from budgets of compute.

The run file's model is a place on the dial: width over depth, and the size of a head, are the same everywhere. So are
learning rates: Muon's steps are orthogonal and scaled by sqrt(fan_out / fan_in), which moves a layer's output as far
at any width, and AdamW's rates were found no better scaled (docs/scaling_laws.md). A budget of C FLOPs trains each
size on C / (FLOPs per token) tokens, by a schedule that ends there: a loss on the way of a longer run, whose learning
rate is still high, is worse than that of a run that ends there (Hoffmann et al. 2022, section 3.1).

What is counted: N are the matrices that every token is multiplied with, those of the blocks and the head; embeddings
are looked up, not multiplied, and cost no compute. D are the training targets, steps x batch x length. C are the model
FLOPs of ``jaxgpt.flops``, attention counted, the optimizer not.
"""

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.schema import Config, ConfigError, resolve_model, to_dict, validate
from data_prep.training_data import TrainingData
from jaxgpt.flops import block_matrices, flops_per_token, head_matrix
from scratchgpt import workdir as layout
from scratchgpt.errors import UserError
from scratchgpt.files import read_json, write_json
from scratchgpt.metrics import read_metrics

LADDER = "ladder.json"
FEWEST_STEPS = 64  # fewer say more about the first steps of an optimizer than about data
HELD_OUT_FACTOR = 4.0  # least compute of a held-out run over the largest that is fitted
MOST_HELD_OUT_FACTOR = 1e4  # most: farther than that no law of small runs reaches


@dataclass(frozen=True)
class Rung:
    """One run of the ladder.

    Attributes:
      depth: layers.
      parameters: N, see the module.
      tokens: D, a multiple of a step's.
      flops: C of the whole run.
      overrides: the keys of the run file that this run changes.
      config: the run, whole.
      budget: FLOPs asked for; 0 for a run that was asked for by its tokens.
    """

    depth: int
    parameters: int
    tokens: int
    flops: float
    overrides: dict[str, Any] = field(hash=False)
    config: Config = field(hash=False, repr=False)
    budget: float = 0.0

    @property
    def name(self) -> str:
        """Of its directory in the ladder's."""
        return f"d{self.depth}-{self.tokens}"

    def command(self, workdir: Path, arguments: list[str]) -> list[str]:
        """Arguments of ``jaxgpt.train`` that are this run; ``arguments`` name the run file and the user's changes."""
        changes = [f"--config.{key}={value}" for key, value in self.overrides.items()]
        return [*arguments, *changes, f"--workdir={workdir / self.name}"]


@dataclass(frozen=True)
class Result:
    """What a finished rung measured.

    Attributes:
      loss: validation loss of its last step, nats per token.
      seconds: of training steps, compilation included.
    """

    rung: Rung
    loss: float
    seconds: float


class Ladder:
    """The rungs of a run file on its data. Raises UserError for a run file that a ladder cannot be made of."""

    def __init__(self, base: Config, data: TrainingData, train_tokens: int) -> None:
        self.base, self._data, self.train_tokens = base, data, train_tokens
        check_base(base)

    def config_of(self, depth: int, steps: int) -> tuple[Config, dict[str, Any]]:
        """The run of ``depth`` layers and ``steps`` steps, and the keys that it changes. Raises UserError."""
        model = resolve_model(self.base.model)
        width, remainder = divmod(model.n_embd * depth, model.n_layer)
        if depth < 1 or remainder or width % model.head_dim:
            raise UserError(
                f"no model of {depth} layers is on the dial of the run file, whose {model.n_layer} are"
                f" {model.n_embd} wide in heads of {model.head_dim}: {model.n_embd / model.n_layer:g} a layer must"
                " make whole heads"
            )
        overrides = {
            "model.n_layer": depth,
            "model.n_head": width // model.head_dim,
            "model.n_embd": width,
            "train.steps": steps,
        }
        config = copy.deepcopy(self.base)
        for key, value in overrides.items():
            section, name = key.split(".")
            setattr(getattr(config, section), name, value)
        try:
            return validate(config), overrides
        except ConfigError as e:
            raise UserError(f"depth {depth}, {steps} steps: {e}") from e

    def rung(self, depth: int, *, budget: float = 0.0, tokens: float = 0.0) -> Rung:
        """The run nearest to a budget of FLOPs or to a number of tokens. Raises UserError for an unknown depth."""
        config, _ = self.config_of(depth, max(1, self.base.optim.warmup_steps))
        model = resolve_model(config.model, self._data.tokenizer.size)
        parameters = model.n_layer * block_matrices(model) + head_matrix(model)
        per_token, per_step = flops_per_token(config, model).model, self._data.tokens_per_step()
        steps = max(1, round((budget / per_token if budget else tokens) / per_step))
        config, overrides = self.config_of(depth, max(steps, self.base.optim.warmup_steps))
        steps = config.train.steps
        return Rung(depth, parameters, steps * per_step, steps * per_step * per_token, overrides, config, budget)

    def misfit(self, rung: Rung) -> str:
        """Why a run would not be one the law is about; empty if it is."""
        if rung.config.train.steps < FEWEST_STEPS:
            return f"{rung.config.train.steps} steps, fewer than {FEWEST_STEPS}"
        if rung.tokens > self.train_tokens:
            return f"{rung.tokens / self.train_tokens:.1f} epochs, and the law is one of fresh tokens"
        return ""

    def place(self, depth: int) -> tuple[int, float, float] | None:
        """(depth, N, FLOPs a token) of a size; None where the dial has none."""
        try:
            rung = self.rung(depth, tokens=1)
        except UserError:
            return None
        return depth, rung.parameters, rung.flops / rung.tokens

    def rungs(self, depths: list[int], budgets: list[float]) -> tuple[list[Rung], list[str]]:
        """Every size at every budget, in order of compute; and a phrase for each that is left out."""
        every = [self.rung(depth, budget=budget) for budget in sorted(budgets) for depth in sorted(depths)]
        left_out = [f"depth {r.depth} at {r.budget:.3g} ({why})" for r in every if (why := self.misfit(r))]
        kept = {r.name: r for r in every if not self.misfit(r)}
        return sorted(kept.values(), key=lambda r: r.flops), left_out

    def held_out(self, depth: int, tokens: float, fitted: list[Rung]) -> Rung:
        """The run that is predicted. Raises UserError unless it is far enough beyond the runs that are fitted."""
        rung, largest = self.rung(depth, tokens=tokens), max(r.flops for r in fitted)
        if rung.flops < HELD_OUT_FACTOR * largest:
            need = HELD_OUT_FACTOR * largest / rung.flops * rung.tokens
            raise UserError(
                f"--predict={depth}:{tokens:.0f} takes {rung.flops:.3g} FLOPs, less than {HELD_OUT_FACTOR:g} times the"
                f" {largest:.3g} of the largest fitted run: give it {math.ceil(need):,} tokens, or lower --budgets"
            )
        if rung.flops > MOST_HELD_OUT_FACTOR * largest:
            raise UserError(
                f"--predict={depth}:{tokens:.0f} takes {rung.flops:.3g} FLOPs, {rung.flops / largest:.1g} times those"
                f" of the largest fitted run: a law of small runs does not reach beyond {MOST_HELD_OUT_FACTOR:g} times"
            )
        if why := self.misfit(rung):
            raise UserError(f"--predict={depth}:{tokens:.0f} would be {why}")
        return rung


def check_base(config: Config) -> None:
    """Raise UserError for a run file whose runs a law of fresh tokens and finished schedules does not hold for."""
    wanted = [
        (config.train.objective == "pretrain", f"train.objective={config.train.objective}", "pretrain"),
        (not config.lora.rank, f"lora.rank={config.lora.rank}", "0: the model itself must learn"),
        (not config.eval.patience, f"eval.patience={config.eval.patience}", "0: a run must come to its end"),
        (
            config.optim.schedule != "constant",
            "optim.schedule=constant",
            "linear or cosine: each run decays to its end",
        ),
        (not config.model.mlp_dim, f"model.mlp_dim={config.model.mlp_dim}", "0: it follows from the width"),
        (not config.model.n_kv_head, f"model.n_kv_head={config.model.n_kv_head}", "0: it follows from the width"),
        (not config.model.head_dim, f"model.head_dim={config.model.head_dim}", "0: it follows from width and heads"),
    ]
    for fits, found, needed in wanted:
        if not fits:
            raise UserError(f"a scaling ladder needs {found.split('=')[0]}={needed}; the run file has {found}")


def _description(config: Config) -> dict[str, Any]:
    """What must be the same for two runs' losses to be of the same law, beside data (see ``check_same_text``)."""
    values = to_dict(config)
    return {name: values[name] for name in ("model", "data", "train", "optim")} | {
        "eval": {"max_tokens": config.eval.max_tokens}
    }


def claim(workdir: Path, base: Config) -> None:
    """Write what ladder ``workdir`` holds, or raise UserError if it holds another. More rungs are the same ladder."""
    wanted = _description(base)
    path = workdir / LADDER
    if not path.exists():
        if (workdir / layout.METRICS).exists():
            raise UserError(f"{workdir} holds a training run, not a ladder of them: give another --workdir")
        write_json(path, wanted)
        return
    if difference := _difference(wanted, read_json(path)):
        raise UserError(f"{workdir} holds another ladder, with {difference}: give another --workdir")


def read_result(rung: Rung, workdir: Path) -> Result | None:
    """What a rung measured; None if it is not finished. Raises UserError for another run or a broken record."""
    where = workdir / rung.name
    rows = read_metrics(where / layout.METRICS)
    if not rows or not (where / layout.EXPORT).is_dir():
        return None
    if difference := _difference(_description(rung.config), read_json(where / layout.CONFIG)):
        raise UserError(
            f"{where} holds a run with {difference}, not this ladder's: move it away, or give another --workdir"
        )
    last = [row for row in rows if row["step"] == rung.config.train.steps and "val_loss" in row]
    if not last:
        return None
    try:
        loss = float(last[-1]["val_loss"])
        seconds, before = 0.0, 0
        for row in (r for r in rows if "tokens_per_second" in r):
            seconds += (row["tokens"] - before) / row["tokens_per_second"]
            before = row["tokens"]
    except (TypeError, KeyError, ValueError, ZeroDivisionError) as e:
        raise UserError(
            f"{where / layout.METRICS} has no finite validation loss, or lines that are not a run's: if the run"
            " diverged, lower the learning rate; otherwise move it away and run again"
        ) from e
    return Result(rung, loss, seconds)


def check_same_text(rungs: list[Rung], workdir: Path) -> None:
    """Raise UserError unless all finished runs were trained and validated on the same tokens."""
    found = {r.name: read_json(workdir / r.name / "identity.json") for r in rungs}
    manifests = {name: str(i.get("data") if isinstance(i, dict) else None) for name, i in found.items()}
    if len(set(manifests.values())) > 1:
        first, *others = manifests
        other = next(name for name in others if manifests[name] != manifests[first])
        raise UserError(
            f"{workdir / other} was trained on other tokens than {workdir / first}: losses on different texts make no"
            " law; move one of them away and run again"
        )


def _difference(wanted: dict[str, Any], found: Any) -> str:
    """The first key that ``found`` has otherwise, as KEY=VALUE instead of VALUE; empty if there is none."""
    for section, entries in wanted.items():
        there = found.get(section) if isinstance(found, dict) else None
        for key, value in entries.items():
            other = there.get(key) if isinstance(there, dict) else None
            if other != value:
                return f"{section}.{key}={other!r} instead of {value!r}"
    return ""
