"""Instruction tuning: the mean over all answers' tokens, grown vocabularies, a model that answers and stops."""

import json

import jax
import numpy as np
import pytest

from configs.schema import Config, DataConfig, EvalConfig, OptimConfig, SampleConfig, TrainConfig, qwen3
from data_prep.chat import ChatFormat, Message
from data_prep.starting_point import adopt_model
from data_prep.tokenizers import char_tokenizer, load_tokenizer
from jaxgpt.decoding import generate as generate_jax
from jaxgpt.loading import load_model
from jaxgpt.trainer import Trainer
from scratchgpt.hf_directory import open_hf_directory
from scratchgpt.vocabulary import grow_vocabulary
from torchgpt.hf import load_model as load_torch
from torchgpt.hf import save_model
from torchgpt.model import GPT
from torchgpt.sampling import generate as generate_torch
from torchgpt.trainer import Trainer as TorchTrainer

import torch  # isort: skip

PAIRS = {"name a fruit": "a ripe pear", "name a beast": "the old cat", "what falls": "rain and snow", "say no": "no"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base model of characters that knows nothing, and instructions for it."""
    path = tmp_path_factory.mktemp("sft")
    tokenizer = char_tokenizer(["abcdefghijklmnopqrstuvwxyz "])
    model = qwen3(n_layer=2, n_head=2, n_embd=32, context_length=32, vocab_size=tokenizer.size, tie_embeddings=True)
    save_model(GPT(model).initialize(torch.Generator().manual_seed(0)), tokenizer, path / "base")
    rows = [{"instruction": k, "output": v} for k, v in PAIRS.items()]
    (path / "rows.json").write_text(json.dumps([{"instruction": f"{c} is", "output": c} for c in "uvwxyz"] + rows * 4))
    return path


def tuning(place, **train) -> Config:
    config = Config(
        data=DataConfig("pairs", str(place / "rows.json"), val_fraction=0.2),
        train=TrainConfig(**{"objective": "sft", "steps": 150, "batch_size": 8} | train),
        optim=OptimConfig(learning_rate=0.01, weight_decay=0.0),
        eval=EvalConfig(every=50),
        sample=SampleConfig(prompt="name a fruit", max_new_tokens=20, temperature=0.0),
    )
    adopt_model(config, str(place / "base"))
    return config


@pytest.fixture(scope="module")
def tuned(place):
    assert Trainer(tuning(place), place / "run", str(place / "base")).run() == 0
    return place / "run"


def test_the_model_answers_and_stops(place, tuned):
    loaded = load_model(str(tuned))
    chat = ChatFormat(loaded.tokenizer)
    twin = load_torch(tuned / "export")
    learned = 0
    for asked, answer in PAIRS.items():
        prompt = chat.prompt([Message("user", asked)])
        options = dict(max_new_tokens=20, temperature=0.0, stop_ids=chat.stop_ids)
        (ids,) = generate_jax(loaded.graphdef, loaded.params, loaded.model, prompt, **options)
        assert list(generate_torch(twin, prompt, **options)) == ids
        learned += loaded.tokenizer.decode(ids) == answer
    assert learned >= 3  # one of the four may be what validates
    assert "name a fruit\n\na ripe pear" in (tuned / "samples.txt").read_text()


def test_the_vocabulary_grew_by_the_separator(place, tuned):
    before, after = (open_hf_directory(d).model.vocab_size for d in (place / "base", tuned / "export"))
    assert after == before + 1
    assert load_tokenizer(tuned / "export").special_tokens["|||"] == before


def test_new_rows_begin_as_the_mean_of_the_old(place):
    trainer = Trainer(tuning(place), place / "fresh", None)
    params = trainer.objective.starting_parameters(str(place / "base"))
    old = dict(open_hf_directory(place / "base").parameters())["token_embedding.weight"]
    np.testing.assert_array_equal(params["token_embedding"][: len(old)], old)
    np.testing.assert_allclose(params["token_embedding"][len(old) :], old.mean(axis=0)[None], atol=1e-8)


def test_no_room_is_made_where_there_is_some():
    arrays = {"token_embedding.weight": np.ones((5, 2), np.float32), "final_norm.weight": np.ones(2, np.float32)}
    for name, array in grow_vocabulary(arrays.items(), 5):
        assert array is arrays[name]


def test_micro_batches_of_any_size_are_one_batch(place):
    """The mean is over all answers' tokens of the step, however unequally the micro batches hold them."""
    results = []
    for micro in (8, 1):
        trainer = Trainer(tuning(place, micro_batch_size=micro, dtype="float32"), place / f"micro{micro}", None)
        state = trainer.steps.state_from(trainer.objective.starting_parameters(str(place / "base")))
        batch = trainer.data.batch(0)
        weights = batch["weights"].reshape(8, -1).sum(axis=1)
        assert len(set(weights)) > 1
        state, metrics = trainer.steps.update(state, batch, np.float32(1))
        results.append((float(metrics["loss"]), float(metrics["grad_norm"]), jax.device_get(state["params"])))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-5)


def test_the_twin_tunes_alike(place, tuned):
    config = tuning(place, steps=5)
    config.log.every = 1
    TorchTrainer(config, place / "twin", str(place / "base"), "cpu").run()
    Trainer(config, place / "five", str(place / "base")).run()
    curves = [
        [r["train_loss"] for r in map(json.loads, (place / w / "metrics.jsonl").open()) if "train_loss" in r]
        for w in ("five", "twin")
    ]
    np.testing.assert_allclose(*curves, rtol=1e-5)


def test_another_objective_does_not_continue_the_run(place, tuned):
    from scratchgpt.errors import UserError

    config = tuning(place)
    config.data.source = str(place / "fewer.json")
    rows = json.loads((place / "rows.json").read_text())
    (place / "fewer.json").write_text(json.dumps(rows[:-4]))
    with pytest.raises(UserError, match="holds a run with data="):
        Trainer(config, tuned, str(place / "base")).run()
