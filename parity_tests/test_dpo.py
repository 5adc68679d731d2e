"""Direct preference optimization beside TRL's DPOTrainer: its loss, gradients and metrics by its own code."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from configs.schema import Config, DataConfig, DPOConfig, TrainConfig, gpt2, llama, qwen3, resolve_model
from data_prep.chat import add_chat_tokens
from data_prep.starting_point import adopt_model
from data_prep.tokenizers import char_tokenizer
from jaxgpt.loss import cross_entropy_sums
from jaxgpt.objective import make_objective
from jaxgpt.params import canonical_getter, merge_model
from jaxgpt.preference import DPO, dpo_sums
from jaxgpt.sharding import make_mesh
from jaxgpt.step import Steps
from parity_tests.models import random_weights
from scratchgpt.hf_directory import write_hf_directory
from scratchgpt.hf_layout import from_hf_tensors

trl = pytest.importorskip("trl", reason="needs trl: pip install -c constraints.txt -e '.[test]'")

BETA = 0.25
LENGTH = 47  # of a training sequence; the last token is a target alone, which TRL counts too
METRICS = {
    "reward_margin": "rewards/margins",
    "reward_accuracy": "rewards/accuracies",
    "reward_chosen": "rewards/chosen",
    "reward_rejected": "rewards/rejected",
}
ROWS = [
    {"prompt": [{"role": "user", "content": question}], "chosen": [_a], "rejected": [_b]}
    for question, _a, _b in (
        ("what is rain", {"role": "assistant", "content": "water"}, {"role": "assistant", "content": "i do not know"}),
        ("two and two", {"role": "assistant", "content": "four, of course"}, {"role": "assistant", "content": "5"}),
        ("say no", {"role": "assistant", "content": "no"}, {"role": "assistant", "content": "yes"}),
        ("a long answer", {"role": "assistant", "content": "so " * 30}, {"role": "assistant", "content": "la " * 30}),
        ("a colour", {"role": "assistant", "content": "red"}, {"role": "assistant", "content": "ten"}),
    )
]


def trainer(place: Path, model: PreTrainedModel, reference: PreTrainedModel, tokenizer) -> "trl.DPOTrainer":
    """TRL's trainer on ROWS, in float32 on the CPU."""
    arguments = trl.DPOConfig(
        output_dir=str(place / "trl"),
        beta=BETA,
        max_length=LENGTH + 1,
        per_device_train_batch_size=len(ROWS),
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )
    return trl.DPOTrainer(
        model=model,
        ref_model=reference,
        args=arguments,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
    )


def assert_metrics(theirs, ours) -> None:
    for name, their_name in METRICS.items():
        (value,) = theirs._metrics["train"][their_name]
        assert float(ours.metrics[name] / ours.weight) == pytest.approx(value, abs=1e-5), name


class _Backbone(torch.nn.Module):
    """Whatever the tokens are, the last hidden states are these logits."""

    def __init__(self, logits: np.ndarray):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.from_numpy(logits))

    def forward(self, input_ids, **kwargs):
        return BaseModelOutput(last_hidden_state=self.logits)


class GivenLogits(PreTrainedModel):
    """A model whose logits [2B, T, V] are its only parameters."""

    config_class, base_model_prefix = PretrainedConfig, "backbone"

    def __init__(self, logits: np.ndarray):
        super().__init__(PretrainedConfig())
        self.backbone = _Backbone(logits)
        self.head = torch.nn.Linear(logits.shape[-1], logits.shape[-1], bias=False)
        self.head.weight.data = torch.eye(logits.shape[-1])
        self.generation_config = GenerationConfig()

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, **kwargs):
        return self.head(self.backbone(input_ids).last_hidden_state)


@pytest.fixture(scope="module")
def place_of_models(tmp_path_factory):
    """A model that reads ROWS, and another one of the same shape, in the directories a and b of each family."""
    place = tmp_path_factory.mktemp("dpo")
    tokenizer = add_chat_tokens(char_tokenizer(["abcdefghijklmnopqrstuvwxyz ,5"]))
    for family in (gpt2, llama, qwen3):
        model = resolve_model(family(n_layer=2, n_head=4, n_embd=32, context_length=64, vocab_size=tokenizer.size))
        for seed, name in enumerate("ab"):
            weights = {n: w * 0.5 for n, w in random_weights(model, seed).items()}
            write_hf_directory(place / family.__name__ / name, model, weights.__getitem__, tokenizer)
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return place


def objective_of(place: Path, family: str) -> tuple[DPO, Steps]:
    """DPO on ROWS, all of which train but for those the hash puts aside; see :func:`all_pairs`."""
    config = Config(
        model=gpt2(context_length=64),
        data=DataConfig("rows", str(place / "rows.jsonl"), val_fraction=0.4),
        train=TrainConfig(objective="dpo", batch_size=1, sequence_length=LENGTH, dtype="float32"),
        dpo=DPOConfig(beta=BETA),
    )
    adopt_model(config, str(place / family / "b"))
    objective = make_objective(config, lambda line: None)
    steps = Steps(config, objective.model, objective.loss_sums, make_mesh(config))
    (place / family / "run").mkdir(exist_ok=True)
    objective.prepare(steps, place / family / "run", str(place / family / "b"))
    return objective, steps


def all_pairs(objective: DPO) -> dict[str, np.ndarray]:
    """Every pair of both splits as one batch [pairs, 2, T]."""
    parts = [objective.data.batches_by_length(split, 1) for split in ("train", "val")]
    batches = [batch for part in parts for _, batch in part]
    length = max(b["inputs"].shape[-1] for b in batches)

    def padded(array: np.ndarray) -> np.ndarray:
        return array if array.ndim == 2 else np.pad(array, ((0, 0), (0, 0), (0, length - array.shape[-1])))

    return {name: np.concatenate([padded(b[name]) for b in batches]) for name in batches[0]}


def test_loss_and_gradient_with_respect_to_the_logits(place_of_models, tmp_path):
    rng = np.random.default_rng(0)
    tokenizer = AutoTokenizer.from_pretrained(place_of_models / "gpt2" / "a")
    B, T, V = len(ROWS), 20, 31
    policy, reference = (rng.normal(0, 3, (2 * B, T, V)).astype(np.float32) for _ in range(2))
    ids = rng.integers(0, V, (2 * B, T))
    mask = (np.arange(T) >= rng.integers(3, 8, (2 * B, 1))) & (np.arange(T) < rng.integers(9, T + 1, (2 * B, 1)))
    theirs = trainer(tmp_path, GivenLogits(policy), GivenLogits(reference), tokenizer)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "completion_mask": mask.astype(np.int64)}
    inputs = {name: torch.from_numpy(array) for name, array in inputs.items()}
    loss = theirs._compute_loss(theirs.model.train(), inputs, False)
    loss.backward()
    their_gradient = theirs.model.backbone.logits.grad.numpy()

    weights = mask[:, 1:].astype(np.float32)

    def pairs(logits: jax.Array) -> jax.Array:
        losses, _ = jax.vmap(cross_entropy_sums)(logits[:, :-1], jnp.asarray(ids[:, 1:]), weights)
        return -losses.reshape(2, B).T  # theirs are all the chosen, then all the rejected

    def mean_loss(logits: jax.Array):
        sums = dpo_sums(pairs(logits), pairs(reference), weights.sum(1).reshape(2, B).T, BETA)
        return sums.loss / sums.weight, sums

    (ours, sums), gradient = jax.value_and_grad(mean_loss, has_aux=True)(jnp.asarray(policy))
    assert float(ours) == pytest.approx(loss.item(), abs=1e-6)
    assert np.abs(gradient).max() > 1e-3
    np.testing.assert_allclose(gradient, their_gradient, atol=1e-6, rtol=0)
    assert_metrics(theirs, sums)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_from_rows_to_the_gradient_of_every_parameter(place_of_models, tmp_path, family):
    """TRL reads the rows by our chat template, cuts, pads and runs transformers' models: policy a, reference b."""
    place = place_of_models
    objective, steps = objective_of(place, family)
    batch = all_pairs(objective)

    tokenizer = AutoTokenizer.from_pretrained(place / family / "b")
    theirs = [AutoModelForCausalLM.from_pretrained(place / family / n, dtype=torch.float32) for n in "ab"]
    theirs = trainer(tmp_path, *theirs, tokenizer)
    inputs = theirs.data_collator([theirs.train_dataset[i] for i in range(len(ROWS))])
    loss = theirs._compute_loss(theirs.model.train(), inputs, False)
    loss.backward()

    # the same tokens, in whatever order
    def sequences(ids, answer):
        return sorted((tuple(i[i_answer > 0]), int(i_answer.sum())) for i, i_answer in zip(ids, answer, strict=True))

    flat = {name: batch[name].reshape(-1, batch["inputs"].shape[-1]) for name in ("targets", "weights")}
    assert sequences(flat["targets"], flat["weights"]) == sequences(
        inputs["input_ids"].numpy(), inputs["completion_mask"].numpy()
    )

    def mean_loss(params):
        sums = objective.loss_sums(merge_model(steps.graphdef, params), batch, None)
        return sums.loss / sums.weight, sums

    params = steps.state_from(objective.starting_parameters(str(place / family / "a")))["params"]
    (ours, sums), gradient = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(params)
    assert int(sums.weight) == len(ROWS)
    assert float(ours) == pytest.approx(loss.item(), abs=1e-6 * max(1.0, loss.item()))
    assert_metrics(theirs, sums)
    grads = {n: p.grad for n, p in theirs.model.named_parameters()}
    get = canonical_getter(gradient)
    total = np.sqrt(sum(float((g**2).sum()) for g in grads.values()))
    for name, array in from_hf_tensors(objective.model, grads.__getitem__, set(grads)):
        np.testing.assert_allclose(get(name), array.numpy(), atol=1e-6 * max(1.0, total), rtol=0, err_msg=name)
