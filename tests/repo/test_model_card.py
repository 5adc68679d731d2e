"""The model card tells the truth about the weights beside it, and nothing about the machine."""

import ast
import json
import math
import sys

import pytest
from huggingface_hub import ModelCard

from configs.schema import Config, gpt2, llama, nanochat, qwen3, resolve_model
from scratchgpt import workdir as layout
from scratchgpt.model_card import model_card

MODEL = resolve_model(gpt2(n_layer=2, n_head=2, n_embd=32, context_length=16, padded_vocab_size=64), 50)
ROWS = [
    {"step": 10, "tokens": 640, "train_loss": 3.0},
    {"step": 10, "tokens": 640, "val_loss": 2.0},
    {"step": 20, "tokens": 1280, "train_loss": 1.0},
    {"step": 20, "tokens": 1280, "val_loss": 2.5},
    {"step": 30, "tokens": 1920, "train_loss": 0.5},
]


def config(**data: str) -> Config:
    made = Config(model=MODEL)
    made.train.steps, made.train.batch_size, made.sample.prompt = 30, 4, 'say "fox"\n'
    for key, value in data.items():
        setattr(made.data, key, value)
    return made


def table(card: str) -> dict[str, str]:
    cells = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {c[0]: c[1] for c in cells if len(c) == 2}


def block(card: str, language: str) -> str:
    return card.split(f"```{language}\n")[1].split("\n```")[0]


@pytest.mark.parametrize("family", [gpt2, llama, qwen3, nanochat])
def test_the_hub_understands_the_front_matter(family):
    model = resolve_model(family(n_layer=1, n_head=2, n_embd=16, context_length=8), 9)
    data = ModelCard(model_card(model, config(), [], 30)).data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-generation"
    assert data.tags == ["scratchgpt", family.__name__]
    assert data.license is None
    assert data.language is None


def test_sizes_and_tokens_are_those_of_the_export():
    figures = table(model_card(MODEL, config(), ROWS, 20))
    block_size = 12 * 32 * 32 + 13 * 32  # matrices, biases and two LayerNorms
    assert figures["parameters"] == f"{(50 + 16) * 32 + 2 * block_size + 2 * 32:,}"  # without padding
    assert figures["family"] == "gpt2, `GPT2LMHeadModel` in transformers"
    assert figures["vocabulary"] == "50 tokens"
    assert figures["exported step"] == "20 of 30"
    assert figures["tokens seen"] == "1,280 (20 steps of 4 sequences)"


@pytest.mark.parametrize(
    ("step", "validation", "training"),
    [(10, "2.0000", "3.0000"), (20, "2.5000", "1.0000"), (30, "2.5000", "0.5000"), (None, "2.0000", "3.0000")],
)
def test_losses_are_those_of_the_exported_step(step, validation, training):
    figures = table(model_card(MODEL, config(), ROWS, step))
    assert figures["validation loss"].startswith(validation + " nats")
    assert figures["perplexity"].startswith(f"{math.exp(float(validation)):.2f} ")
    assert figures["training loss"].startswith(training + " nats")
    assert ("at step 20" in figures["validation loss"]) == (step == 30)


def test_without_metrics_no_loss_is_claimed():
    card = model_card(MODEL, config(), [], 30).replace("loss_chunk", "")  # a key of the configuration
    assert "loss" not in card


def test_the_configuration_and_the_code_can_be_read_back():
    card = model_card(MODEL, config(), ROWS, 20, repo_id="me/fox")
    assert json.loads(block(card, "json"))["train"]["batch_size"] == 4
    tree = ast.parse(block(card, "python"))
    strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    assert strings.count("me/fox") == 2
    assert 'say "fox"\n' in strings
    assert "hf download me/fox" in card
    assert "DIR" not in block(card, "python")


def test_paths_of_the_machine_stay_there():
    data = {"dataset": "mine", "source": "/home/eve/texts/*.txt", "tokenizer": "/home/eve/words/", "dir": "/home/eve/d"}
    command = "python -m jaxgpt.train --config=/home/eve/run.py --init_from /home/eve/base '--config.sample.prompt=a b'"
    card = model_card(MODEL, config(**data), ROWS, 20, command=command)
    assert "eve" not in card
    assert "mine (`*.txt`)" in card
    assert table(card)["tokenizer"] == "words"
    expected = ["python -m jaxgpt.train", "--config=run.py", "--init_from", "base", "'--config.sample.prompt=a b'"]
    assert block(card, "sh") == " \\\n    ".join(expected)


@pytest.mark.parametrize(
    ("source", "shown"),
    [("HuggingFaceFW/fineweb-edu:sample-10BT",) * 2, ("../texts/a.txt", "a.txt"), ("b/c.txt", "c.txt")],
)
def test_a_hub_source_keeps_its_owner(source, shown):
    assert f"(`{shown}`)" in model_card(MODEL, config(source=source), ROWS, 20)


def test_the_command_of_a_run_comes_back_as_it_was(tmp_path, monkeypatch):
    assert layout.read_command(tmp_path) is None
    monkeypatch.setattr(sys, "argv", ["train.py", "--config=configs/small.py", "--config.sample.prompt=it's a\n```fox"])
    layout.record_command(tmp_path, "jaxgpt.train")
    command = layout.read_command(tmp_path)
    assert command == layout.training_command("jaxgpt.train")
    card = model_card(MODEL, config(), ROWS, 20, command=command)
    assert "````sh\npython -m jaxgpt.train \\\n    --config=configs/small.py" in card


def test_a_command_that_was_mangled_is_left_out():
    assert "The command" not in model_card(MODEL, config(), ROWS, 20, command="python 'oops")
