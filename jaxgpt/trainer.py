"""The training loop, the same for every objective."""

import math
import re
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.schema import Config, count_parameters, to_dict
from data_prep.training_data import Batch
from jaxgpt.checkpoint import Checkpoints
from jaxgpt.distributed import StopVote, is_main, main_first, on_host
from jaxgpt.export import export_model
from jaxgpt.objective import Sums, make_objective
from jaxgpt.sharding import batch_sharding, check_model_fits, local_rows, make_mesh
from jaxgpt.step import Steps
from scratchgpt import workdir as layout
from scratchgpt.errors import UserError
from scratchgpt.files import read_json, write_json, write_text
from scratchgpt.labels import save_labels
from scratchgpt.metrics import MetricsLog, read_metrics
from scratchgpt.plots import plot_loss
from scratchgpt.progress import Progress, duration
from scratchgpt.schedule import learning_rate, lr_multiplier
from scratchgpt.signals import StopSignal
from scratchgpt.tracking import Tracker

IDENTITY = "identity.json"


class Trainer:
    """One run in one workdir: restores what is there, trains to the last step, exports the best model.

    Args:
      config: the validated run.
      workdir: where everything is written; the caller holds its lock.
      init_from: a Hugging Face directory whose weights the run starts from, or None.
    """

    def __init__(self, config: Config, workdir: Path, init_from: str | None = None):
        self.config, self.workdir, self.init_from = config, workdir, init_from
        self.is_main = is_main()
        self.mesh = make_mesh(config)
        with main_first():  # which prepares the data
            self.objective = make_objective(config, log=self.say)
        self.data, self.model = self.objective.data, self.objective.model
        check_model_fits(self.model, self.mesh)
        self.steps = Steps(config, self.model, self.objective.loss_sums, self.mesh, self.objective.is_trained)
        self.checkpoints = Checkpoints(workdir / layout.CHECKPOINTS, config.checkpoint.keep, log=self.say)
        self.progress: Progress | None = None
        self.seconds = {"step": 0.0, "data": 0.0, "evaluation": 0.0, "saving": 0.0}

    def say(self, text: str) -> None:
        """Print one line from the first process."""
        if self.is_main:
            line = self.progress.line if getattr(self, "progress", None) else lambda t: print(t, flush=True)
            line(text)

    # --- where to begin ----------------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        model = to_dict(self.model)
        model.pop("dropout")
        train = self.config.train
        run = {"seed": train.seed, "batch_size": train.batch_size, "optimizer": self.config.optim.optimizer}
        lora = self.config.lora
        run |= {"lora.rank": lora.rank or None, "lora.alpha": lora.alpha if lora.rank else None}
        return self.objective.identity(self.init_from) | run | {"model": model}

    def _check_identity(self) -> None:
        """Refuse to continue a run whose data, batches, model or optimizer the configuration no longer describes."""
        path = self.workdir / IDENTITY
        if not path.exists() or not self.checkpoints.records():
            return
        old = read_json(path)
        for key, value in self._identity().items():
            found = old.get(key) if isinstance(old, dict) else None
            if found != value:
                there, here = (re.sub("([0-9a-f]{8})[0-9a-f]{56}", r"\1", repr(v)) for v in (found, value))  # SHA-256
                raise UserError(
                    f"{self.workdir} holds a run with {key}={there}, this configuration has {here}: give another"
                    " --workdir, or the old configuration"
                )

    def _initial_state(self) -> tuple[Any, int]:
        """The newest good checkpoint, or the weights of ``init_from``, or random ones; and the step they stand at."""
        step = self.checkpoints.newest_good()
        if step is not None:
            if step > self.config.train.steps:
                raise UserError(f"{self.workdir} stands at step {step}, beyond train.steps={self.config.train.steps}")
            self.say(f"resuming {self.workdir} at step {step} of {self.config.train.steps}")
            return self.checkpoints.load(step, self.steps.abstract_state), step
        if self.init_from:
            self.say(f"starting from the weights in {self.init_from}")
            return self.steps.state_from(self.objective.starting_parameters(self.init_from)), 0
        return self.steps.initial_state(), 0

    def _learning(self) -> str:
        """How many parameters learn, where it is not all of them."""
        params = self.steps.abstract_state["params"]
        learning = [p.size for name, p in params.items() if self.objective.is_trained(name)]
        return "" if len(learning) == len(params) else f" ({sum(learning):,} numbers learn)"

    # --- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Train; returns the exit status: 0 when the last step is done, 128 + n when signal n stopped it."""
        config, train = self.config, self.config.train
        self._check_identity()
        parameters = count_parameters(self.model)
        self.say(
            f"{parameters / 1e6:.2f}M parameters{self._learning()}, {self.data.tokens_per_step():,} tokens a step,"
            f" {self.data.describe()}; {self.steps.dtype} on"
            f" {jax.device_count()} {jax.devices()[0].device_kind} device(s), mesh {dict(self.mesh.shape)}"
        )
        self.objective.prepare(self.steps, self.workdir, self.init_from)
        state, step = self._initial_state()
        if self.is_main:  # only now: a refused run must leave the workdir as it was
            write_json(self.workdir / layout.CONFIG, to_dict(config))
            layout.record_command(self.workdir, "jaxgpt.train")
            write_json(self.workdir / IDENTITY, self._identity())
            self.data.tokenizer.save(self.workdir / layout.TOKENIZER)
            if self.data.labels:
                save_labels(self.workdir, self.data.labels)
        metrics = MetricsLog(self.workdir / layout.METRICS, step) if self.is_main else None
        tracker = Tracker(config, self.workdir, step, self.say) if self.is_main else None
        self.progress = Progress(train.steps, step, enabled=self.is_main)

        def record(row: dict[str, Any]) -> None:
            if metrics:
                metrics.write(row)
                tracker.write(row)

        try:
            with StopSignal() as stop:
                state, step = self._loop(state, step, record, stop)
        finally:
            self.checkpoints.join()
            self.progress.close()
            self.progress = None
            if metrics:
                metrics.close()
        if self.is_main:
            plot_loss(read_metrics(self.workdir / layout.METRICS), self.workdir / layout.LOSS_PLOT, self.workdir.name)
        if stop.received is not None and step < train.steps:
            tracker and tracker.abandon()
            self.say(f"stopped by signal {stop.received} after step {step}, which is saved; run again to resume")
            return 128 + stop.received
        self._finish(tracker)
        return 0

    def _loop(self, state: Any, step: int, record: Any, stop: StopSignal) -> tuple[Any, int]:
        config, train = self.config, self.config.train
        sharding = batch_sharding(self.mesh)
        batches = self.objective.batches(step, local_rows(self.mesh, self.data.micro_batch_size))
        best = self.checkpoints.lowest_loss()
        best = math.inf if best is None else best
        stops = StopVote(self.mesh)
        pending: tuple[int, Any] | None = None  # metrics are read one step late, so that the device never waits
        window_began, window_tokens = time.monotonic(), 0

        def settle() -> None:
            nonlocal pending, window_began, window_tokens
            if pending is None:
                return
            (at, device_metrics), pending = pending, None
            values = jax.device_get(device_metrics)
            if not values["finite"] and not values["overflow"]:
                raise UserError(
                    f"the loss or gradient is not finite at step {at} (loss {values['loss']}, gradient norm"
                    f" {values['grad_norm']}); that step was not applied and earlier checkpoints are intact:"
                    " lower the learning rate or look at the data of that step"
                )
            figures = self.objective.figures(Sums(values["loss"], 1.0, values["others"]))
            window_tokens += self.data.tokens_per_step()
            report = at % config.log.every == 0 or at == train.steps
            speed = window_tokens / max(1e-9, time.monotonic() - window_began)
            self.progress.step(at, f"loss {figures['loss']:.4f}  {speed:,.0f} tokens/s", report)
            if report:
                record(
                    {
                        "step": at,
                        "tokens": at * self.data.tokens_per_step(),
                        **{f"train_{name}": value for name, value in figures.items()},
                        "grad_norm": float(values["grad_norm"]),
                        "lr": learning_rate(at - 1, config.optim, train.steps),
                        "tokens_per_second": speed,
                    }
                )
                window_began, window_tokens = time.monotonic(), 0

        stopped = stops(stop.received is not None)
        while step < train.steps and not stopped:
            began = time.monotonic()
            local = next(batches)
            batch = jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), local)
            self.seconds["data"] += time.monotonic() - began
            began = time.monotonic()
            multiplier = np.float64(
                lr_multiplier(step, config.optim, train.steps)
            )  # float32 unless training in float64
            state, device_metrics = self.steps.update(state, batch, multiplier)
            step += 1
            settle()
            self.checkpoints.check()
            pending = (step, device_metrics)
            last = step == train.steps
            evaluates = last or (config.eval.every and step % config.eval.every == 0)
            saves = last or step % config.checkpoint.every == 0
            stopped = stops(stop.received is not None)
            if evaluates or saves or stopped:
                settle()
            self.seconds["step"] += time.monotonic() - began
            val_loss = None
            if evaluates:
                began = time.monotonic()
                measured = self.validate(state["params"])
                val_loss = measured["loss"]
                took = time.monotonic() - began
                self.seconds["evaluation"] += took
                row = {f"val_{name}": value for name, value in measured.items()}
                record({"step": step, "tokens": step * self.data.tokens_per_step()} | row)
                self.progress.line(f"step {step}: validation {_told(measured)} ({duration(took)})")
                saves = saves or val_loss < best
                best = min(best, val_loss)
            if saves:
                began = time.monotonic()
                self.checkpoints.save(step, state, val_loss)
                self.seconds["saving"] += time.monotonic() - began
            if evaluates or saves:
                window_began, window_tokens = time.monotonic(), 0
        settle()
        if stopped and step > 0:
            self.checkpoints.save(step, state, None)
            stop.received = stop.received or signal.SIGTERM  # if another process was told
        self.checkpoints.wait()
        return state, step

    def validate(self, params: Any) -> dict[str, float]:
        """The mean ``loss`` (nats per target) and other figures over the validation split, summed in float64."""
        return self._measure(params, self.data.validation_batches(self.steps.evaluation_batch_size))

    def _measure(self, params: Any, batches: Iterable[Batch]) -> dict[str, float]:
        """The figures over all of ``batches``; none of no batches."""
        sums = [self.steps.validate(params, batch) for batch in batches]
        if not sums:
            return {}
        totals = jax.tree.map(lambda *s: np.sum(s, axis=0, dtype=np.float64), *jax.device_get(sums))
        return self.objective.figures(totals)

    def _test(self, params: Any, step: int) -> dict[str, float]:
        """The figures of the finished model, that of ``step``, on what nothing was chosen by; recorded once."""
        measured = self._measure(params, self.objective.test_batches(self.steps.evaluation_batch_size))
        path = self.workdir / layout.METRICS
        if not measured or not self.is_main or any(r["step"] == step and "test_loss" in r for r in read_metrics(path)):
            return measured
        metrics = MetricsLog(path, self.config.train.steps)
        row = {f"test_{name}": value for name, value in measured.items()}
        metrics.write({"step": step, "tokens": step * self.data.tokens_per_step()} | row)
        metrics.close()
        return measured

    # --- the end -----------------------------------------------------------------------------------------------------

    def _finish(self, tracker: Tracker | None) -> None:
        """Export the best model, write its samples and close the run."""
        best = self.checkpoints.best_good()
        if best is None:
            raise UserError(f"{self.workdir} has no validated checkpoint to export: raise train.steps and run again")
        params = self.checkpoints.load(best, self.steps.abstract_state)["params"]
        val_loss = self.checkpoints.records()[best]["val_loss"]
        samples = self.objective.samples(self.steps.graphdef, params)
        tested = self._test(params, best)
        params = on_host(params)
        if not self.is_main:
            return
        text = "\n\n---\n\n".join(samples)
        write_text(self.workdir / layout.SAMPLES, text + "\n")
        export = self.workdir / layout.EXPORT
        exported = self.objective.exported_parameters(params)
        export_model(self.model, exported, self.data.tokenizer, export, self.workdir, best)
        summary = {"best_val_loss": val_loss} | {f"test_{name}": value for name, value in tested.items()}
        tracker.finish(summary, samples, export if self.config.log.wandb_artifacts else None)
        self.say(f"\n{text[:1000]}\n")
        total = sum(self.seconds.values())
        if total:
            shares = ", ".join(f"{name} {share / total:.0%}" for name, share in self.seconds.items())
            self.say(f"time: {duration(total)} ({shares})")
        if tested:
            self.say(f"test {_told(tested)}")
        self.say(f"best validation loss {val_loss:.4f} at step {best}; curve {self.workdir / layout.LOSS_PLOT}")
        self.say(f"samples {self.workdir / layout.SAMPLES}; model {export} (a Hugging Face directory)")


def _told(figures: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in figures.items())
