"""The training loop, the same for every objective."""

import math
import re
import signal
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.schema import Config, count_parameters, to_dict
from data_prep.training_data import Batch
from jaxgpt.checkpoint import Checkpoints
from jaxgpt.distributed import StopVote, compiled_together, from_main, is_main, main_first, on_host
from jaxgpt.export import export_model
from jaxgpt.multiple_choice import Exam
from jaxgpt.objective import Sums, make_objective
from jaxgpt.profiling import StepProfile
from jaxgpt.scoring import Scorer
from jaxgpt.sharding import batch_sharding, check_model_fits, local_rows, make_mesh
from jaxgpt.step import Steps
from jaxgpt.throughput import Goodput, Throughput, flops_share
from scratchgpt import workdir as layout
from scratchgpt.errors import UserError
from scratchgpt.files import read_json, write_json, write_text
from scratchgpt.journal import Journal
from scratchgpt.labels import save_labels
from scratchgpt.metrics import read_metrics
from scratchgpt.plots import plot_loss
from scratchgpt.progress import Progress, duration
from scratchgpt.reporting.report import write_report
from scratchgpt.schedule import learning_rate, lr_multiplier
from scratchgpt.signals import StopSignal
from scratchgpt.standing import Standing


class Trainer:
    """One run in one workdir: restores what is there, trains to the last step, exports the best model.

    Args:
      config: the validated run.
      workdir: where everything is written; the caller holds its lock.
      init_from: a Hugging Face directory whose weights the run starts from, or None.
      profile_steps: how many steps to trace into WORKDIR/profile.
    """

    def __init__(self, config: Config, workdir: Path, init_from: str | None = None, profile_steps: int = 0):
        self.config, self.workdir, self.init_from, self.profile_steps = config, workdir, init_from, profile_steps
        self.is_main = is_main()
        self.mesh = make_mesh(config)
        with main_first():  # which prepares the data
            self.objective = make_objective(config, log=self.say)
        self.data, self.model = self.objective.data, self.objective.model
        self.exam = Exam(config.eval, self.data.tokenizer) if config.eval.task else None
        check_model_fits(self.model, self.mesh)
        self.steps = Steps(config, self.model, self.objective.loss_sums, self.mesh, self.objective.is_trained)
        self.checkpoints = Checkpoints(workdir / layout.CHECKPOINTS, config.checkpoint.keep, log=self.say)
        self.progress: Progress | None = None
        self.standing = Standing()
        self.goodput = Goodput()

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

    def check_identity(self) -> None:
        """Refuse to continue a run whose data, batches, model or optimizer the configuration no longer describes."""
        path = self.workdir / layout.IDENTITY
        if not self.checkpoints.records():
            return
        if not path.exists():
            raise UserError(
                f"{self.workdir} holds checkpoints but no {path.name}, which says what they are of: restore it, or"
                " begin anew with --start_over or another --workdir"
            )
        old = read_json(path)
        for key, value in self._identity().items():
            found = old.get(key) if isinstance(old, dict) else None
            if found != value:
                if isinstance(found, dict) and isinstance(value, dict):  # of a model: what differs
                    differs = [name for name in found.keys() | value.keys() if found.get(name) != value.get(name)]
                    found, value = ({name: d.get(name) for name in sorted(differs)} for d in (found, value))
                there, here = (re.sub("([0-9a-f]{8})[0-9a-f]{56}", r"\1", repr(v)) for v in (found, value))  # SHA-256
                raise UserError(
                    f"{self.workdir} holds a run with {key}={there}, this configuration has {here}: give another"
                    " --workdir, or the old configuration"
                )

    def _first_step(self) -> int | None:
        """The step at which the newest good checkpoint stands; None: there is none."""
        step = self.checkpoints.newest_good()
        if step is not None and step > self.config.train.steps:
            raise UserError(f"{self.workdir} stands at step {step}, beyond train.steps={self.config.train.steps}")
        if step is None and (reached := from_main(lambda: layout.saved_progress(self.workdir))):
            raise UserError(
                f"{self.workdir} has reached step {int(reached)}, by its {layout.METRICS}, but holds no checkpoint:"
                " restore one, or begin anew with --start_over or another --workdir"
            )
        if step is None and from_main(lambda: int((self.workdir / layout.EXPORT).exists())):
            raise UserError(
                f"{self.workdir} holds a model but no checkpoint to go on from, as a run of torchgpt.train does: begin"
                f" anew with --start_over or another --workdir (--init_from={self.workdir / layout.EXPORT} would begin"
                " with its weights)"
            )
        return step

    def initial_state(self, step: int | None) -> Any:
        """The checkpoint of ``step``, or the weights of ``init_from``, or random ones."""
        if step is not None:
            self.say(f"resuming {self.workdir} at step {step} of {self.config.train.steps}")
            if self.is_main and (missing := self._missing_metrics(step)):
                self.say(missing)
            return self.checkpoints.load(step, self.steps.abstract_state)
        if self.init_from:
            self.say(f"starting from the weights in {self.init_from}")
            return self.steps.state_from(self.objective.starting_parameters(self.init_from))
        return self.steps.initial_state()

    def _missing_metrics(self, step: int) -> str:
        """What to say of metrics that end before ``step``; empty if they do not."""
        path = self.workdir / layout.METRICS
        last = max((row["step"] for row in read_metrics(path) if row["step"] <= step), default=0)
        gap = last + self.config.log.every < step
        return f"{path} was shortened: its lines from step {last + 1} to {step} are missing" if gap else ""

    def _learning(self) -> str:
        """How many parameters learn, where it is not all of them."""
        params = self.steps.abstract_state["params"]
        learning = [p.size for name, p in params.items() if self.objective.is_trained(name)]
        return "" if len(learning) == len(params) else f" ({sum(learning):,} numbers learn)"

    # --- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Train; returns the exit status: 0 when the last step is done, 128 + n when signal n stopped it."""
        config, train = self.config, self.config.train
        self.check_identity()
        parameters = count_parameters(self.model)
        self.say(
            f"{parameters / 1e6:.2f}M parameters{self._learning()}, {self.data.tokens_per_step():,} tokens a step,"
            f" {self.data.describe()}; {self.steps.dtype} on"
            f" {jax.device_count()} {jax.devices()[0].device_kind} device(s), mesh {dict(self.mesh.shape)}"
        )
        self.objective.prepare(self.steps, self.workdir, self.init_from)
        found = self._first_step()
        step = found or 0
        if found is not None:
            self.standing = self.checkpoints.standing(found)
        batches = _begun(self.objective.batches(step, local_rows(self.mesh, self.data.micro_batch_size)))
        state = self.initial_state(found)
        if self.is_main:  # only now: a refused run must leave the workdir as it was
            write_json(self.workdir / layout.CONFIG, to_dict(config))
            layout.record_command(self.workdir, "jaxgpt.train")
            start = self.init_from or layout.stored_start(self.workdir) if step else self.init_from
            write_json(self.workdir / layout.IDENTITY, self._identity() | {"init_from": start})
            self.data.tokenizer.save(self.workdir / layout.TOKENIZER)
            if self.data.labels:
                save_labels(self.workdir, self.data.labels)
        journal = Journal(config, self.workdir, step, self.is_main, self.say)
        if self.exam and not step:
            answers = self._answers(state["params"])
            journal.record({"step": 0, "tokens": 0} | answers)
            self.say(f"before training: {_told(answers)}")
        self.progress = Progress(train.steps, step, enabled=self.is_main)
        try:
            with StopSignal() as stop:
                state, step = self._loop(state, step, batches, journal, stop)
        finally:
            self.checkpoints.join()
            self.progress.close()
            self.progress = None
            journal.close()
        hardware = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        signal_received = None if self._is_over(step) else stop.received
        journal.ended(step, signal_received, self.goodput.seconds, hardware, jax.process_count())
        if self.is_main:
            plot_loss(read_metrics(self.workdir / layout.METRICS), self.workdir / layout.LOSS_PLOT, self.workdir.name)
        if stop.received is not None and not self._is_over(step):
            journal.abandon()
            self.say(f"stopped by signal {stop.received} after step {step}, which is saved; run again to resume")
            return 128 + stop.received
        self._finish(journal)
        return 0

    def _loop(
        self, state: Any, step: int, batches: Iterator[Batch], journal: Journal, stop: StopSignal
    ) -> tuple[Any, int]:
        config, train = self.config, self.config.train
        stops = StopVote(self.mesh)
        profile = StepProfile(self.workdir / layout.PROFILE, self.profile_steps if self.is_main else 0)
        share = flops_share(config, self.model, self.mesh.devices.flatten().tolist())
        throughput = Throughput(self.data.tokens_per_step(), share)
        pending: tuple[int, Any] | None = None  # metrics are read one step late, so that the device never waits

        def settle() -> None:
            nonlocal pending
            if pending is None:
                return
            (at, device_metrics), pending = pending, None
            figures = self._figures(at, jax.device_get(device_metrics))
            throughput.step()
            report = at % config.log.every == 0 or at == train.steps or self.standing.nonfinite_steps > 0
            speed = throughput.figures()
            mfu = f"  MFU {speed['mfu']:.1%}" if "mfu" in speed else ""
            told = f"loss {figures['train_loss']:.4f}  {speed['tokens_per_second']:,.0f} tokens/s{mfu}"
            self.progress.step(at, told, report)
            if report:
                lr = learning_rate(at - 1, config.optim, train.steps)
                journal.record({"step": at, "tokens": at * self.data.tokens_per_step()} | figures | {"lr": lr} | speed)
                throughput.restart()

        stopped = stops(stop.received is not None)
        spending, kind = self.goodput.spending, "compilation"
        update = compiled_together(self.steps.update)
        while not self._is_over(step) and not stopped:
            with spending("data"):
                batch = self.on_devices(next(batches))
            with spending(kind):
                profile.before(state["step"])
                # float32 unless training in float64
                multiplier = np.float64(lr_multiplier(step, config.optim, train.steps))
                state, device_metrics = update(state, batch, multiplier)
                step, kind = step + 1, "step"
            with spending("step"):
                settle()
                self.checkpoints.check()
                pending = (step, device_metrics)
                last = step == train.steps
                evaluates = last or (config.eval.every and step % config.eval.every == 0)
                saves = last or step % config.checkpoint.every == 0
                stopped = stops(stop.received is not None)
                if evaluates or saves or stopped:
                    settle()
            val_loss = None
            if evaluates:
                with spending("evaluation"):
                    began = time.monotonic()
                    measured = self.validate(state["params"])
                val_loss = measured["loss"]
                row = {f"val_{name}": value for name, value in measured.items()}
                journal.record({"step": step, "tokens": step * self.data.tokens_per_step()} | row)
                self.progress.line(f"step {step}: validation {_told(measured)} ({duration(time.monotonic() - began)})")
                if config.sample.during:
                    with spending("evaluation"):
                        texts = self.objective.samples(self.steps.graphdef, state["params"], config.sample.during)
                        journal.show(step, texts)
                saves = self.standing.evaluated(val_loss) or saves
                if self._is_over(step) and not last:
                    self.progress.line(f"step {step}: no gain in {config.eval.patience} validations, the run ends")
                    saves = True
            if saves:
                with spending("saving"):
                    self._save(step, state, val_loss)
            if evaluates or saves:
                throughput.restart()
        settle()
        profile.close(state["step"])
        if profile.traced:
            self.progress.line(f"a trace of {profile.traced} steps is in {profile.directory}")
        with spending("saving"):
            if stopped and step > 0:
                self._save(step, state, None)
                stop.received = stop.received or signal.SIGTERM  # if another process was told
            self.checkpoints.wait()
        return state, step

    def _is_over(self, step: int) -> bool:
        """Whether the run ends with ``step``: it is the last, or validation has stalled."""
        return step >= self.config.train.steps or self.standing.has_stalled(self.config.eval.patience)

    def _save(self, step: int, state: Any, val_loss: float | None) -> None:
        """Begin to save. Raises UserError for parameters that are not finite: no checkpoint may be of that kind."""
        if not self.steps.are_finite(state["params"]):
            raise UserError(
                f"the parameters are not finite after step {step}: it is not saved, earlier checkpoints are intact;"
                " lower the learning rate"
            )
        known = val_loss if val_loss is not None and math.isfinite(val_loss) else None
        self.checkpoints.save(step, state, known, self.standing)

    def on_devices(self, batch: Batch) -> Batch:
        """This process's part of a step's batch as part of arrays over all devices."""
        sharding = batch_sharding(self.mesh)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)

    def _figures(self, step: int, values: dict[str, Any]) -> dict[str, float]:
        """What is logged of a step's metrics. Raises UserError if too many in a row came to nothing finite."""
        is_finite, limit = bool(values["finite"] or values["overflow"]), self.config.train.max_nonfinite_steps
        self.standing.stepped(is_finite)
        if not is_finite:
            found = (
                f"step {step} is not applied: its loss is {values['loss']} and its gradient's norm"
                f" {values['grad_norm']} ({self.data.order.place(step - 1)}; --replay={step} studies it)"
            )
            if self.standing.nonfinite_steps >= limit:
                raise UserError(
                    f"{found}; after {limit} such steps in a row (train.max_nonfinite_steps) the run ends; earlier"
                    " checkpoints, if any, are intact: lower the learning rate or look at the data"
                )
            self.progress.line(found)
        if values["overflow"]:
            scale = float(values["others"]["loss_scale"])
            self.progress.line(f"step {step} is not applied: float16 overflows; the loss scale of {scale:g} is halved")
        figures = self.objective.figures(Sums(values["loss"], 1.0, values["others"]))
        return {f"train_{name}": value for name, value in figures.items()} | {"grad_norm": float(values["grad_norm"])}

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

    def _test(self, params: Any, step: int, journal: Journal) -> dict[str, float]:
        """The figures of the finished model, that of ``step``, on what nothing was chosen by; recorded once."""
        measured = self._measure(params, self.objective.test_batches(self.steps.evaluation_batch_size))
        measured = {f"test_{name}": value for name, value in measured.items()} | self._answers(params)
        if measured:
            journal.record_final({"step": step, "tokens": step * self.data.tokens_per_step()} | measured)
        return measured

    def _answers(self, params: Any) -> dict[str, float]:
        """How well a model with ``params`` does in the questions of ``eval.task``, if there are any."""
        return self.exam.figures(Scorer(self.steps.graphdef, params, self.model, self.mesh)) if self.exam else {}

    # --- the end -----------------------------------------------------------------------------------------------------

    def _finish(self, journal: Journal) -> None:
        """Export the best model, write its samples and close the run."""
        best = self.checkpoints.best_good()
        if best is None:
            raise UserError(f"{self.workdir} has no validated checkpoint to export: raise train.steps and run again")
        params = self.checkpoints.load(best, self.steps.abstract_state)["params"]
        val_loss = self.checkpoints.records()[best]["val_loss"]
        samples = self.objective.samples(self.steps.graphdef, params, self.config.sample.max_new_tokens)
        tested = self._test(params, best, journal)
        params = on_host(params)
        if not self.is_main:
            return
        text = "\n\n---\n\n".join(samples)
        write_text(self.workdir / layout.SAMPLES, text + "\n")
        export = self.workdir / layout.EXPORT
        exported = self.objective.exported_parameters(params)
        export_model(self.model, exported, self.data.tokenizer, export, self.workdir, best)
        journal.finish({"best_val_loss": val_loss} | tested, samples, export, self.checkpoints.path(best))
        self.say(f"\n{text[:1000]}\n")
        if self.config.log.report:
            try:
                self.say(f"report {write_report([self.workdir], self.workdir / layout.REPORT)}")
            except UserError as e:  # the run itself is in order
                self.say(f"no report: {e}")
        if told := self.goodput.told():
            self.say(f"time: {told}")
        if tested:
            self.say(_told(tested))
        self.say(f"best validation loss {val_loss:.4f} at step {best}; curve {self.workdir / layout.LOSS_PLOT}")
        self.say(f"samples {self.workdir / layout.SAMPLES}; model {export} (a Hugging Face directory)")


def _begun(batches: Iterator[Batch]) -> Iterator[Batch]:
    """``batches``, the first of which is read while the caller does something else."""
    pool = ThreadPoolExecutor(1)
    first = pool.submit(next, batches, None)
    pool.shutdown(wait=False)

    def all_of_them() -> Iterator[Batch]:
        yield first.result()
        yield from batches

    return all_of_them()


def _told(figures: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in figures.items())
