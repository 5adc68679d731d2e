"""The training loop in PyTorch, for small runs on one device."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.schema import Config, count_parameters, to_dict
from data_prep.training_data import Batch, open_data
from scratchgpt import workdir as layout
from scratchgpt.errors import UserError
from scratchgpt.files import write_json, write_text
from scratchgpt.hf_directory import open_hf_directory
from scratchgpt.metrics import MetricsLog, read_metrics
from scratchgpt.model_card import model_card
from scratchgpt.plots import plot_loss
from scratchgpt.progress import Progress, duration
from scratchgpt.reporting.report import write_report
from scratchgpt.schedule import learning_rate, lr_multiplier
from scratchgpt.signals import StopSignal
from scratchgpt.tracking import Tracker
from scratchgpt.vocabulary import grow_vocabulary
from torchgpt.device import pick_device
from torchgpt.hf import load_model, save_model
from torchgpt.model import GPT, cross_entropy_sums, rounded_parameters
from torchgpt.optimizer import Optimizer
from torchgpt.sampling import generate


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of activations for ``train.dtype``; ``auto`` is bfloat16 where CUDA hardware multiplies it.

    Raises UserError for float64 on MPS, which has none, and for float16, whose scaled loss is jaxgpt's alone.
    """
    if name == "float16":
        raise UserError(
            "train.dtype=float16 needs a scaled loss, which jaxgpt.train has: take float32 or bfloat16 here"
        )
    if name == "auto":
        name = (
            "bfloat16"
            if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            else "float32"
        )
    if name == "float64" and device.type == "mps":
        raise UserError("train.dtype=float64 is not available on mps: use --device=cpu")
    return getattr(torch, name)


class Trainer:
    """One run in one workdir, which must not hold another.

    Args:
      config: the validated run.
      workdir: where everything is written; the caller holds its lock.
      init_from: a Hugging Face directory whose weights the run starts from, or None.
      device: "auto", "cpu", "mps" or "cuda".
    """

    def __init__(self, config: Config, workdir: Path, init_from: str | None = None, device: str = "auto"):
        self.config, self.workdir = config, workdir
        self.device = pick_device(device)
        self.data = open_data(config, log=print)
        self._prompt = self.data.encode_prompt()  # now: an hour later the same mistake would cost the hour
        self.dtype = compute_dtype(config.train.dtype, self.device)  # of activations; parameters: float32 or wider
        torch.manual_seed(config.train.seed)  # for dropout
        self.model = GPT(self.data.model).initialize(torch.Generator().manual_seed(config.train.seed))
        if init_from:
            self._copy_weights(init_from)
        self.model.to(self.device, torch.promote_types(self.dtype, torch.float32))
        self.optimizer = Optimizer(self.model, config.optim)

    def _copy_weights(self, directory: str) -> None:
        """The weights of a Hugging Face directory; rows of padding, which it has not, become zeros."""
        parameters = dict(self.model.named_parameters())
        for name, array in grow_vocabulary(open_hf_directory(directory).parameters(), self.data.model.vocab_size):
            with torch.no_grad():
                parameters[name].zero_()[: len(array)].copy_(torch.from_numpy(array))

    def loss_sums(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum of the losses in nats, number of targets) of one micro batch [sequences, tokens] of NumPy arrays."""
        batch = {k: torch.from_numpy(v).to(self.device) for k, v in batch.items()}
        arguments = batch["inputs"].long(), None, batch.get("segments")
        logits_BxTxV = torch.func.functional_call(self.model, rounded_parameters(self.model, self.dtype), arguments)
        return cross_entropy_sums(logits_BxTxV, batch["targets"].long(), batch.get("weights"))

    def step(self, step: int) -> tuple[float, float]:
        """The update with the 0-based index ``step``; returns (loss, norm of the gradient).

        The gradient is of the mean over all the step's targets, summed over its micro batches.
        """
        self.model.train().zero_grad(set_to_none=False)
        batch, total, targets = self.data.batch(step), 0.0, 0.0
        for i in range(len(batch["inputs"])):
            loss, count = self.loss_sums({k: v[i] for k, v in batch.items()})
            loss.backward()
            total += loss.item()
            targets += count.item()
        for p in self.model.parameters():
            p.grad /= targets
        if not math.isfinite(total):
            return total, math.nan
        norm = self.optimizer.apply_gradients(lr_multiplier(step, self.config.optim, self.config.train.steps))
        return total / targets, norm.item()

    def validation_loss(self) -> float:
        """Mean loss per target (nats) over the validation split, summed in float64."""
        self.model.eval()
        size = self.config.eval.batch_size or self.data.micro_batch_size
        with torch.inference_mode():
            sums = [[s.item() for s in self.loss_sums(batch)] for batch in self.data.validation_batches(size)]
        loss, weight = map(sum, zip(*sums, strict=True))
        return loss / weight

    def run(self) -> int:
        """Train; returns the exit status: 0 when the last step is done, 128 + n when signal n stopped it."""
        config, train = self.config, self.config.train
        parameters, tokens = count_parameters(self.data.model), self.data.tokens_per_step()
        print(
            f"{parameters / 1e6:.2f}M parameters, {tokens:,} tokens a step, {self.data.describe()};"
            f" {self.dtype} on {self.device}",
            flush=True,
        )
        write_json(self.workdir / layout.CONFIG, to_dict(config))
        layout.record_command(self.workdir, "torchgpt.train")
        metrics = MetricsLog(self.workdir / layout.METRICS)
        tracker = Tracker(config, self.workdir, 0, print)
        progress = Progress(train.steps)
        best, done, began, reported = math.inf, 0, time.monotonic(), 0

        def record(row: dict[str, Any]) -> None:
            row = {"step": done, "tokens": done * tokens} | row
            metrics.write(row)
            tracker.write(row)

        with StopSignal() as stop:
            while done < train.steps and stop.received is None:
                loss, norm = self.step(done)
                done += 1
                if not math.isfinite(loss) or not math.isfinite(norm):
                    raise UserError(
                        f"the loss or gradient is not finite at step {done} (loss {loss}, gradient norm {norm}): lower"
                        " the learning rate or look at the data of that step"
                    )
                report = done % config.log.every == 0 or done == train.steps
                speed = (done - reported) * tokens / max(1e-9, time.monotonic() - began)
                progress.step(done, f"loss {loss:.4f}  {speed:,.0f} tokens/s", report)
                if report:
                    lr = learning_rate(done - 1, config.optim, train.steps)
                    record({"train_loss": loss, "grad_norm": norm, "lr": lr, "tokens_per_second": speed})
                last = done == train.steps or stop.received is not None
                if last or (config.eval.every and done % config.eval.every == 0):
                    start = time.monotonic()
                    val_loss = self.validation_loss()
                    record({"val_loss": val_loss})
                    if val_loss < best:
                        best = val_loss
                        self._export(done)
                    progress.line(f"step {done}: validation loss {val_loss:.4f} ({duration(time.monotonic() - start)})")
                    report = True
                if report:
                    began, reported = time.monotonic(), done
        progress.close()
        metrics.close()
        plot_loss(read_metrics(metrics.path), self.workdir / layout.LOSS_PLOT, self.workdir.name)
        samples = self._samples()
        if config.log.report:
            print(f"report {write_report([self.workdir], self.workdir / layout.REPORT)}")
        export = self.workdir / layout.EXPORT
        tracker.finish({"best_val_loss": best}, samples, {"model": export} if config.log.wandb_artifacts else {})
        print(f"best validation loss {best:.4f}; curve {self.workdir / layout.LOSS_PLOT}; model {export}")
        if stop.received is not None and done < train.steps:
            print(f"stopped by signal {stop.received} after step {done}; {export} holds the best model so far")
            return 128 + stop.received
        return 0

    def _export(self, step: int) -> None:
        rows = read_metrics(self.workdir / layout.METRICS)
        command = layout.read_command(self.workdir)
        card = model_card(self.data.model, self.config, rows, step, command=command, framework="torch")
        save_model(self.model, self.data.tokenizer, self.workdir / layout.EXPORT, card)

    def _samples(self) -> list[str]:
        """Continuations of ``sample.prompt`` by the best model, written to samples.txt."""
        sample, data = self.config.sample, self.data
        model = load_model(self.workdir / layout.EXPORT, self.device)
        generator = torch.Generator().manual_seed(self.config.train.seed)
        texts = []
        for _ in range(sample.num_samples):
            ids = generate(
                model,
                self._prompt,
                max_new_tokens=sample.max_new_tokens,
                temperature=sample.temperature,
                top_k=sample.top_k,
                top_p=sample.top_p,
                generator=generator,
                stop_ids=data.stop_ids,
            )
            texts.append(sample.prompt + data.answer_mark + data.tokenizer.decode(list(ids)))
        write_text(self.workdir / layout.SAMPLES, "\n\n---\n\n".join(texts) + "\n")
        return texts
