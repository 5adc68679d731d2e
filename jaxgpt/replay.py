"""One step of a run once more, to study it: its exact batch, its loss, and the gradient layer by layer."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from data_prep.training_data import batch_index
from jaxgpt.distributed import on_host
from jaxgpt.objective import Sums
from jaxgpt.params import Params
from jaxgpt.sharding import local_rows
from jaxgpt.trainer import Trainer
from scratchgpt import workdir as layout
from scratchgpt.errors import UserError
from scratchgpt.metrics import read_metrics
from scratchgpt.progress import Progress
from scratchgpt.schedule import lr_multiplier

WORST = 5  # sequences that are named


def replay(trainer: Trainer, step: int) -> int:
    """Print what step ``step`` of a run did, as the log counts them; nothing is written. Returns the exit status.

    The parameters are those of the newest checkpoint before it, trained on from there as the run was: bit by bit, on
    the same machine and mesh. Raises UserError for a step the run does not take, and for several processes.
    """
    if jax.process_count() > 1:
        raise UserError("--replay=STEP runs in one process: start it alone")
    index = batch_index(trainer.config, step)
    trainer.check_identity()
    trainer.objective.prepare(trainer.steps, trainer.workdir, trainer.init_from)
    state, begun = _state_at(trainer, index)
    batch = next(trainer.objective.batches(index, local_rows(trainer.mesh, trainer.data.micro_batch_size)))
    loss, others, grads = trainer.steps.gradients(state, trainer.on_devices(batch))
    (loss, others), grads = jax.device_get((loss, others)), on_host(grads)
    norm = np.sqrt(sum(np.square(g, dtype=np.float64).sum() for g in grads.values()))
    figures = trainer.objective.figures(Sums(loss, 1.0, others))
    logged = [r.get("train_loss") for r in read_metrics(trainer.workdir / layout.METRICS) if r["step"] == step]
    told = ", ".join(f"{name.replace('_', ' ')} {value:.6g}" for name, value in figures.items())
    trainer.say(f"step {step}, replayed from {f'the checkpoint of step {begun}' if begun else 'the beginning'}")
    trainer.say(f"{told}, gradient norm {norm:.6g}")
    if any(value is not None and abs(value - figures["loss"]) > 1e-5 * abs(value) for value in logged):
        trainer.say(
            f"THIS IS NOT WHAT WAS LOGGED: a loss of {next(v for v in logged if v is not None):.6g}. The run's settings"
            " have changed since, so that its parameters at that step cannot be had again"
        )
    trainer.say(
        f"batch: {trainer.data.order.place(index)}; `python -m data_prep.inspect --step={step}` shows its texts"
    )
    losses = _losses(trainer, state["params"], batch)
    worst = sorted(range(len(losses)), key=lambda i: -losses[i] if np.isfinite(losses[i]) else -np.inf)[:WORST]
    trainer.say("highest losses: " + ", ".join(f"{losses[i]:.4f} (sequence {i})" for i in worst))
    for line in _table(grads, on_host(state["params"])):
        trainer.say(line)
    return 0


def _state_at(trainer: Trainer, updates: int) -> tuple[Any, int | None]:
    """The training state after so many updates, and the step of the checkpoint that it was made from; None: no one."""
    good = (s for s in sorted(trainer.checkpoints.records(), reverse=True) if s <= updates)
    begun = next((s for s in good if trainer.checkpoints.verify(s) is None), None)
    if begun is None:
        state = trainer.initial_state(None)
    else:
        state = trainer.checkpoints.load(begun, trainer.steps.abstract_state)
    first, config = begun or 0, trainer.config
    batches = trainer.objective.batches(first, local_rows(trainer.mesh, trainer.data.micro_batch_size))
    progress = Progress(updates, first)
    for step in range(first, updates):
        multiplier = np.float64(lr_multiplier(step, config.optim, config.train.steps))
        state, metrics = trainer.steps.update(state, trainer.on_devices(next(batches)), multiplier)
        report = (step + 1) % config.log.every == 0
        progress.step(step + 1, f"loss {float(metrics['loss']):.4f}", report)
    progress.close()
    return state, begun


def _losses(trainer: Trainer, params: Params, batch: dict[str, np.ndarray]) -> list[float]:
    """The loss of every sequence (or pair, or text) of a step, alone and without dropout."""
    copies = trainer.mesh.shape["data"] * trainer.mesh.shape["fsdp"]
    found = []
    for micro in range(len(batch["inputs"])):
        for row in range(len(batch["inputs"][micro])):
            one = {name: np.repeat(array[micro, row : row + 1], copies, axis=0) for name, array in batch.items()}
            sums = jax.device_get(trainer.steps.validate(params, one))
            found.append(float(sums.loss / max(sums.weight, 1e-9)))
    return found


def _table(grads: Params, params: Params) -> Iterator[str]:
    """Lines: of every part of the model that learns, the norms of gradient and parameters, and what is not finite."""
    yield f"{'part':<22}{'gradient norm':>14}{'largest':>12}{'parameter norm':>16}{'not finite':>12}"
    parts: dict[tuple[int, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    for name, g in grads.items():
        root, *rest = name.split(".")
        if root != "blocks":
            parts.setdefault((-1 if "embedding" in root else 2**31, root), []).append((g, params[name]))
            continue
        kind = rest[0].removesuffix("_norm")
        for layer, (g_of_layer, p_of_layer) in enumerate(zip(g, params[name], strict=True)):
            parts.setdefault((layer, f"blocks.{layer}.{kind}"), []).append((g_of_layer, p_of_layer))
    for (_, part), arrays in sorted(parts.items()):
        g, p = (np.concatenate([a.ravel() for a in side], dtype=np.float64) for side in zip(*arrays, strict=True))
        numbers = f"{np.linalg.norm(g):>14.4g}{np.abs(g).max():>12.4g}{np.linalg.norm(p):>16.4g}"
        yield f"{part:<22}{numbers}{g.size - np.isfinite(g).sum():>12,}"
