"""Direct preference optimization: make the chosen answer likelier than the rejected one, without straying too far.

R. Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model" (2023). The loss of
a pair is -log sigmoid(margin), the margin the difference of two rewards, an answer's reward

    beta * (log p(answer | prompt) - log p_reference(answer | prompt))

with the log-probabilities summed over the answer's tokens. The reference is the model that the run starts from. It
never changes, so that all it has to say is one number an answer: those are computed before the first step, without
dropout, and kept in the workdir. Training then needs the memory of any other objective: for N float32 parameters 16 N
bytes with AdamW (weights, gradient, two slots), where a reference model beside it would be 4 N more (of 124M
parameters: 2.0 GB, not 2.5) and a forward pass more in every step. The file takes 8 bytes a pair.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from data_prep.training_data import Batch
from jaxgpt.distributed import is_main
from jaxgpt.loss import cross_entropy_sums
from jaxgpt.model import GPT
from jaxgpt.objective import Objective, Sums
from jaxgpt.step import Steps
from scratchgpt.files import atomic_path, disk_errors, sha256_bytes, sha256_file
from scratchgpt.hf_directory import open_hf_directory

REFERENCE = "reference.safetensors"  # in the workdir


def answer_log_probs(model: GPT, batch: Batch, dropout_key: jax.Array | None = None) -> jax.Array:
    """log p(answer | prompt) of pairs, [B, 2] in float32 or wider: chosen, rejected.

    ``batch``: ``inputs``, ``targets`` and ``weights`` [B, 2, T]; a sequence's padding is at its end, where causal
    attention shows it to no token before it.
    """
    B, _, T = batch["inputs"].shape
    inputs, targets, weights = (batch[name].reshape(2 * B, T) for name in ("inputs", "targets", "weights"))
    logits_2BxTxV, _ = model(inputs, dropout_key=dropout_key)
    loss_2B, _ = jax.vmap(cross_entropy_sums)(logits_2BxTxV, targets, weights)
    return -loss_2B.reshape(B, 2)


def dpo_sums(policy_Bx2: jax.Array, reference_Bx2: jax.Array, lengths_Bx2: jax.Array, beta: float) -> Sums:
    """Losses and metrics of pairs, summed; pairs of length 0 are padding and count nothing.

    Args:
      policy_Bx2: log-probability of the chosen and the rejected answer under the model that learns.
      reference_Bx2: the same under the reference.
      lengths_Bx2: tokens of the answers.
      beta: reward of a nat.

    The metrics: ``reward_margin`` and its parts ``reward_chosen`` and ``reward_rejected``; ``reward_accuracy``, the
    pairs with a margin above 0 (a tie is none, as in TRL); ``preference_accuracy``, the pairs whose chosen answer is
    the likelier one under the model alone, and ``preference_accuracy_per_token``, the likelier one by the mean over
    its tokens.
    """
    is_pair_B = lengths_Bx2[:, 0] > 0
    reward_Bx2 = beta * (policy_Bx2 - reference_Bx2)
    margin_B = reward_Bx2[:, 0] - reward_Bx2[:, 1]
    per_token_Bx2 = policy_Bx2 / jnp.maximum(lengths_Bx2, 1)
    values = {
        "reward_margin": margin_B,
        "reward_accuracy": margin_B > 0,
        "reward_chosen": reward_Bx2[:, 0],
        "reward_rejected": reward_Bx2[:, 1],
        "preference_accuracy": policy_Bx2[:, 0] > policy_Bx2[:, 1],
        "preference_accuracy_per_token": per_token_Bx2[:, 0] > per_token_Bx2[:, 1],
    }

    def total(value_B: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(is_pair_B, value_B, 0).astype(policy_Bx2.dtype))

    return Sums(total(-jax.nn.log_sigmoid(margin_B)), total(is_pair_B), jax.tree.map(total, values))


class DPO(Objective):
    """Prefer the chosen answers of data_prep.preference_data; see the module's docstring."""

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of pairs, [micro batches, pairs, 2, tokens]: the longest that there can be."""
        steps, pairs, length = self._batch_axes()
        names = {"inputs": np.int32, "targets": np.int32, "weights": np.float32}
        shapes = {name: jax.ShapeDtypeStruct((steps, pairs, 2, length), dtype) for name, dtype in names.items()}
        return shapes | {"reference": jax.ShapeDtypeStruct((steps, pairs, 2), np.float32)}

    def loss_sums(self, model: GPT, batch: Batch, dropout_key: jax.Array | None) -> Sums:
        """The loss of one micro batch of pairs [B, 2, T], in nats per pair."""
        policy_Bx2 = answer_log_probs(model, batch, dropout_key)
        return dpo_sums(policy_Bx2, batch["reference"], batch["weights"].sum(axis=-1), self.config.dpo.beta)

    def identity(self, init_from: str | None) -> dict[str, Any]:
        """With the weights of the reference, the checksums of their files. Raises UserError."""
        files = sorted({entry.file for entry in open_hf_directory(init_from).entries.values()})
        return super().identity(init_from) | {"reference": sha256_bytes("".join(map(sha256_file, files)).encode())}

    def prepare(self, steps: Steps, workdir: Path, init_from: str | None) -> None:
        """Give the data the reference's log-probabilities: those in ``workdir``, or computed and written there."""
        made_from = sha256_bytes(json.dumps(self.identity(init_from), sort_keys=True).encode())
        path = workdir / REFERENCE
        found = self._read(path, made_from)
        if found is None:
            found = self._compute(steps, init_from)
            if is_main():
                written = {"made_from": made_from, "sha256": _digest(found)}
                with disk_errors(path), atomic_path(path) as temporary:
                    save_file(found, temporary, metadata=written)
        self.data.reference = found
        at_start = dpo_sums(found["val"], found["val"], self.data.answer_lengths("val"), self.config.dpo.beta)
        names = "preference_accuracy", "preference_accuracy_per_token"
        told = ", ".join(f"{n.replace('_', ' ')} {at_start.metrics[n] / at_start.weight:.4f}" for n in names)
        self.log(f"validation of the starting model: {told}")

    def _read(self, path: Path, made_from: str) -> dict[str, np.ndarray] | None:
        """What an earlier start has computed, or None; a file that does not serve is named and passed over."""
        if not path.exists():
            return None
        try:
            with safetensors.safe_open(path, "np") as file:
                about, found = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, OSError) as e:
            self.log(f"{path} is damaged and computed again: {e}")
            return None
        if about.get("sha256") != _digest(found):
            self.log(f"{path} is damaged and computed again: it does not match its checksum")
            return None
        if about.get("made_from") != made_from:
            self.log(f"{path} is of other data or another starting model and computed again")
            return None
        return found

    def _compute(self, steps: Steps, init_from: str) -> dict[str, np.ndarray]:
        """Under the starting weights, which leave the devices again before training begins: split -> [pairs, 2]."""
        params = steps.state_from(self.starting_parameters(init_from))["params"]
        log_probs = steps.over_batches(answer_log_probs)
        found: dict[str, np.ndarray] = {}
        for split, count in self.data.counts.items():
            self.log(f"computing the reference's log-probabilities of {count:,} pairs ({split})")
            for numbers, batch in self.data.batches_by_length(split, steps.evaluation_batch_size):
                part = np.asarray(log_probs(params, batch))[: len(numbers)]
                found.setdefault(split, np.empty((count, 2), part.dtype))[numbers] = part
        return found


def _digest(arrays: dict[str, np.ndarray]) -> str:
    """Of names, types, shapes and values."""
    parts = [f"{name} {a.dtype} {a.shape} {sha256_bytes(a.tobytes())}" for name, a in sorted(arrays.items())]
    return sha256_bytes("\n".join(parts).encode())
