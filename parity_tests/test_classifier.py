"""A classifier in three frameworks: scores, gradients, the exported directory, and what transformers makes of it."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, pipeline

from configs.schema import Config, TrainConfig, resolve_model
from data_prep.label_data import padded
from data_prep.starting_point import adopt_model
from data_prep.tokenizers import load_tokenizer
from jaxgpt.loading import load_weights
from jaxgpt.loss import cross_entropy_sums
from jaxgpt.params import canonical_getter, from_canonical, merge_model
from parity_tests.frameworks import JaxModel, TorchModel
from parity_tests.models import MODELS, random_tokens, random_weights, tokenizer_for
from scratchgpt.errors import UserError
from scratchgpt.hf_directory import open_hf_directory, write_hf_directory
from torchgpt.classify import label_probabilities
from torchgpt.hf import load_model
from torchgpt.model import cross_entropy_sums as torch_cross_entropy_sums

LABELS = ["ham", "spam", "a, b"]
LENGTHS = [17, 1, 60, 192]
CASES = ["gpt2", "gpt2-no-bias", "llama", "llama-tied", "qwen3"]


def jax_scores(graphdef, params, tokens, last):
    scores_BxTxN = jax.jit(lambda p, t: (m := merge_model(graphdef, p)).scores(m.hidden(t)[0]))(params, tokens)
    return np.asarray(scores_BxTxN)[np.arange(len(last)), last]


@torch.no_grad()
def torch_scores(model, tokens, last):
    scores_BxTxN = model.scores(model.hidden(torch.from_numpy(tokens).long()))
    return scores_BxTxN[torch.arange(len(last)), torch.from_numpy(last).long()].numpy()


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """(model, weights, directory exported from jaxgpt's parameters, texts as ids, padded ids, last positions)."""
    model = resolve_model(replace(MODELS[request.param], num_labels=len(LABELS)))
    weights = random_weights(model)
    directory = tmp_path_factory.mktemp("classifiers") / request.param
    params = from_canonical(model, weights.items())
    write_hf_directory(directory, model, canonical_getter(params), tokenizer_for(model), "card", LABELS)
    tokens = random_tokens(replace(model, vocab_size=model.vocab_size - 1), len(LENGTHS), model.context_length)
    texts = [row[:length] for row, length in zip(tokens, LENGTHS, strict=True)]
    return model, weights, directory, texts, *padded(texts)


def test_all_three_give_the_same_scores(case):
    _, _, directory, _, tokens, last = case
    graphdef, params, _ = load_weights(directory)
    found = {"jaxgpt": jax_scores(graphdef, params, tokens, last)}
    found["torchgpt"] = torch_scores(load_model(directory), tokens, last)
    padding = np.arange(tokens.shape[1]) > last[:, None]
    theirs = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    ids = torch.from_numpy(np.where(padding, theirs.config.pad_token_id, tokens)).long()
    with torch.no_grad():
        expected = theirs(ids, attention_mask=torch.from_numpy(~padding).long()).logits.numpy()
    assert np.abs(expected).max() > 1
    for name, scores in found.items():
        assert np.abs(scores - expected).max() <= 1e-5 * np.abs(expected).max(), name


def test_scores_and_gradients_agree_in_float64(case):
    model, weights, _, _, tokens, last = case
    ours, twin = JaxModel(model, weights, "float64"), TorchModel(model, weights, "float64")
    labels = np.zeros(tokens.shape, np.int64)
    marks = np.zeros(tokens.shape)
    labels[np.arange(len(last)), last], marks[np.arange(len(last)), last] = [0, 2, 1, 2], 1.0

    def loss(params):
        m = merge_model(ours.graphdef, params)
        scores_BxTxN = m.scores(m.hidden(jnp.asarray(tokens))[0])
        return cross_entropy_sums(scores_BxTxN, jnp.asarray(labels), jnp.asarray(marks))[0], scores_BxTxN

    with jax.enable_x64(True):
        grads, scores = jax.jit(jax.grad(loss, has_aux=True))(ours.params)
        get = canonical_getter(grads)
        gradients = {name: np.asarray(get(name)) for name in weights}
    theirs = twin.model.scores(twin.model.hidden(torch.from_numpy(tokens).long()))
    torch_cross_entropy_sums(theirs, torch.from_numpy(labels), torch.from_numpy(marks))[0].backward()
    assert np.abs(np.asarray(scores) - theirs.detach().numpy()).max() <= 1e-10 * np.abs(scores).max()
    assert np.abs(gradients["score.weight"]).max() > 1e-3
    expected = {name: p.grad.numpy() for name, p in twin.model.named_parameters()}
    floor = 1e-6 * sum(np.square(array).sum() for array in expected.values()) ** 0.5
    for name, array in expected.items():
        assert np.abs(gradients[name] - array).max() <= 1e-10 * max(np.abs(array).max(), floor), name


def test_what_stands_behind_a_text_changes_nothing(case):
    model, weights, _, _, tokens, last = case
    changed = np.where(np.arange(tokens.shape[1]) > last[:, None], (tokens + 5) % model.vocab_size, tokens)
    assert (changed != tokens).any()
    ours, twin = JaxModel(model, weights, "float32"), TorchModel(model, weights, "float32")
    for scores in (
        lambda t: jax_scores(ours.graphdef, ours.params, t, last),
        lambda t: torch_scores(twin.model, t, last),
    ):
        np.testing.assert_array_equal(scores(tokens), scores(changed))


def test_every_parameter_survives_the_way_out_and_back(case):
    _, weights, directory, *_ = case
    stored = open_hf_directory(directory)
    assert stored.labels == LABELS
    back = dict(stored.parameters())
    for name, array in weights.items():
        np.testing.assert_array_equal(back[name], array[: len(back[name])], err_msg=name)
    assert not (directory / "generation_config.json").exists()


def test_the_pipeline_of_transformers_gives_the_same_probabilities(case):
    _, _, directory, texts, *_ = case
    tokenizer = load_tokenizer(directory)
    texts = [tokenizer.decode(ids) for ids in texts[:3]] + [tokenizer.decode(texts[3]) * 2]  # longer than the context
    ours = label_probabilities(load_model(directory), [tokenizer.encode(t) for t in texts], batch_size=3)
    classify = pipeline("text-classification", model=str(directory), device="cpu")
    for row, found in zip(ours, classify(texts, top_k=None, truncation=True, batch_size=2), strict=True):
        assert found[0]["label"] == LABELS[row.argmax()]
        theirs = {entry["label"]: entry["score"] for entry in found}
        np.testing.assert_allclose(row, [theirs[label] for label in LABELS], rtol=1e-4, atol=1e-6)


# --- directories that transformers wrote -----------------------------------------------------------------------------

_ROPE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8)
THEIRS = {
    "gpt2": dict(n_embd=32, n_layer=2, n_head=4, n_positions=32),
    "llama": _ROPE | dict(num_key_value_heads=2, max_position_embeddings=32),
    "qwen3": _ROPE | dict(num_key_value_heads=2, max_position_embeddings=32),
}


def made_by_transformers(directory, family, **values):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](vocab_size=64, pad_token_id=63, **THEIRS[family], **values)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    model.save_pretrained(directory)
    return model


@pytest.mark.parametrize("labels", [None, 5, ["no", "yes"]], ids=["default", "number", "names"])
@pytest.mark.parametrize("family", THEIRS)
def test_their_classifiers_are_read(tmp_path, family, labels):
    values = {} if labels is None else {"num_labels": labels} if isinstance(labels, int) else {}
    if isinstance(labels, list):
        values = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    theirs = made_by_transformers(tmp_path, family, **values)
    expected = labels if isinstance(labels, list) else [f"LABEL_{i}" for i in range(labels or 2)]
    assert open_hf_directory(tmp_path).labels == expected
    tokens, last = np.random.default_rng(0).integers(0, 63, (2, 24), dtype=np.int32), np.array([23, 23])
    with torch.no_grad():
        scores = theirs(torch.from_numpy(tokens).long()).logits.numpy()
    graphdef, params, _ = load_weights(tmp_path)
    for found in (jax_scores(graphdef, params, tokens, last), torch_scores(load_model(tmp_path), tokens, last)):
        np.testing.assert_allclose(found, scores, rtol=0, atol=2e-5 * np.abs(scores).max())


BROKEN = {
    "fewer names": (dict(id2label={"0": "a"}), "num_labels=1: a classifier needs at least two labels"),
    "gap": (dict(id2label={"0": "a", "2": "b"}), "must give each of the numbers from 0 on a name of its own"),
    "twice": (dict(id2label={"0": "a", "1": "a"}), "a name of its own"),
    "not names": (dict(id2label=["a", "b"]), "a name of its own"),
    "contradiction": (dict(id2label={"0": "a", "1": "b"}, num_labels=3), "num_labels=3, but id2label names 2"),
    "other shape": (dict(id2label={"0": "a", "1": "b", "2": "c"}), "score.weight has shape (2, 32)"),
    "several at once": (dict(problem_type="multi_label_classification"), "only a choice of one label"),
    "no classifier": (dict(architectures=["LlamaForCausalLM"]), "lm_head.weight"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_labels_that_do_not_fit_are_refused(tmp_path, name):
    values, message = BROKEN[name]
    made_by_transformers(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text()) | values
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        list(open_hf_directory(tmp_path).parameters())
    assert message in str(caught.value)


def test_a_classifier_is_no_start_for_a_language_model(case):
    _, _, directory, *_ = case
    config = Config(train=TrainConfig(objective="pretrain"))
    with pytest.raises(UserError, match="holds a classifier of 3 labels, which writes no text"):
        adopt_model(config, str(directory))
    config.train.objective = "classify"
    adopt_model(config, str(directory))
    assert config.model.num_labels == 3
