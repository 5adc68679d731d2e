"""What a plan knows of an objective without its data is what the data then bring."""

import json

import jax
import numpy as np
import pytest

from configs.schema import Config, DataConfig, TrainConfig, qwen3, resolve_model
from data_prep.starting_point import adopt_model
from data_prep.tokenizers import char_tokenizer
from jaxgpt.objective import make_objective, objective_class
from scratchgpt.hf_directory import write_hf_directory
from scratchgpt.hf_layout import parameter_shapes

WORDS = ["aba", "cab", "dad", "bed", "face", "egg", "cage", "deaf", "fed", "gab"]
ROWS = {
    "sft": [{"instruction": a, "output": b} for a in WORDS for b in WORDS],
    "dpo": [{"prompt": a, "chosen": a + b, "rejected": b + "a"} for a in WORDS for b in WORDS],
    "classify": [{"text": a + b, "label": "good" if a < b else "bad"} for a in WORDS for b in WORDS],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "model"
    tokenizer = char_tokenizer(["abcdefg \n"])
    model = resolve_model(qwen3(n_layer=1, n_head=1, n_embd=8, context_length=32), tokenizer.size)
    weights = {name: np.ones(shape) for name, shape in parameter_shapes(model).items()}
    write_hf_directory(path, model, weights.__getitem__, tokenizer, "card")
    return path


@pytest.mark.parametrize(
    "case", ["pretrain windows", "pretrain best_fit", "sft best_fit", "dpo windows", "classify windows"]
)
def test_an_abstract_batch_has_the_shapes_and_dtypes_of_a_real_one(base, tmp_path, case):
    objective, packing = case.split()
    source = tmp_path / ("text.txt" if objective == "pretrain" else "rows.jsonl")
    text = "".join(f"{word}\n\n" for word in WORDS * 30)
    source.write_text(text if objective == "pretrain" else "".join(json.dumps(r) + "\n" for r in ROWS[objective]))
    config = Config(
        model=qwen3(context_length=32),
        data=DataConfig("words", str(source), dir=str(tmp_path / "data"), val_fraction=0.2),
        train=TrainConfig(objective=objective, packing=packing, batch_size=8, micro_batch_size=4, dtype="float32"),
    )
    config.sample.prompt = "aba"
    adopt_model(config, str(base))
    real = make_objective(config, lambda line: None)
    planned = objective_class(config)(config, real.model).abstract_batch()
    batch = real.data.batch(0)
    if objective == "dpo":  # padded to what a step needs, and the reference is computed before the first
        batch = {n: np.pad(a, [(0, 0)] * 3 + [(0, 32 - a.shape[3])]) for n, a in batch.items()}
        batch["reference"] = np.zeros((2, 4, 2), np.float32)
    as_shapes = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in batch.items()}
    assert planned == as_shapes
