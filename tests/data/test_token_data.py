"""What both trainers read: batches that are a function of the step, and a validation split that misses nothing."""

import json

import numpy as np
import pytest

from configs.schema import Config, DataConfig, EvalConfig, TrainConfig, gpt2
from data_prep.token_data import TokenData


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    rng = np.random.default_rng(0)
    documents = ["".join(rng.choice(list("abcdef "), rng.integers(1, 90))) for _ in range(300)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


def open_data(source, packing, max_tokens=0):
    config = Config(
        model=gpt2(context_length=32),
        data=DataConfig(dataset="letters", source=str(source), dir=str(source.parent / "shards"), val_fraction=0.2),
        train=TrainConfig(batch_size=8, micro_batch_size=4, packing=packing),
        eval=EvalConfig(max_tokens=max_tokens),
    )
    return TokenData(config, log=lambda _: None)


@pytest.mark.parametrize("packing", ["windows", "best_fit"])
def test_a_batch_is_a_function_of_the_step_alone(source, packing):
    first, again = open_data(source, packing), open_data(source, packing)
    for step in (0, 5, 40):
        batch, same, part = first.batch(step), again.batch(step), again.batch(step, slice(1, 3))
        assert batch.keys() >= {"inputs", "targets"}
        for name, array in batch.items():
            assert array.shape == (2, 4, 32)
            np.testing.assert_array_equal(array, same[name])
            np.testing.assert_array_equal(array[:, 1:3], part[name])
    assert (first.batch(0)["inputs"] != first.batch(1)["inputs"]).any()


@pytest.mark.parametrize("max_tokens", [0, 700])
@pytest.mark.parametrize("packing", ["windows", "best_fit"])
def test_validation_predicts_every_token_once(source, packing, max_tokens):
    data = open_data(source, packing, max_tokens)
    used = min(max_tokens or len(data.val_tokens), len(data.val_tokens))
    batches = list(data.validation_batches(5))
    assert sum(batch["weights"].sum() for batch in batches) == used - 1
    targets = np.concatenate([batch["targets"][batch["weights"] == 1] for batch in batches])
    np.testing.assert_array_equal(np.sort(targets), np.sort(data.val_tokens.slice(1, used)))


def test_packed_documents_end_with_the_end_of_text(source):
    data = open_data(source, "best_fit")
    batch = data.batch(0)
    end = data.tokenizer.end_of_text_id
    for row in range(4):
        segments, inputs = batch["segments"][0, row], batch["inputs"][0, row]
        for segment in range(2, segments.max() + 1):  # the first may be a piece of a long document
            assert end not in inputs[segments == segment][1:]  # a document begins from one, and holds no other
