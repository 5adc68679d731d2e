"""The lm-evaluation-harness runs on an export as it stands, and its numbers are ours."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from configs.schema import nanochat, resolve_model
from data_prep.tokenizers import char_tokenizer, load_tokenizer
from parity_tests.models import random_weights
from scratchgpt.hf_directory import write_hf_directory
from torchgpt.hf import load_model

pytest.importorskip("lm_eval")

CONTEXT = 48
QUESTIONS = [
    {
        "question": f"What is {a} and {b}? It is",
        "choices": [str(a + b), str(a * b + 7), "none of these"],
        "answer": a % 3,
    }
    for a in range(5)
    for b in range(3)
]
# Shorter and longer than the context, which the harness then moves along the text.
PAGES = [{"page": ("The quick brown fox jumps over the lazy dog. " * 4)[:n]} for n in (7, CONTEXT, CONTEXT + 1, 150)]

CHOICE = """
task: small_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{questions}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
PERPLEXITY = """
task: small_pages
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{pages}"}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{page}}}}"
metric_list: [{{metric: bits_per_byte}}, {{metric: byte_perplexity}}]
"""


@torch.no_grad()
def log_likelihood(model, ids, count):
    """Sum of the log probabilities of the last ``count`` of ``ids``, each given at most a context of those before."""
    tokens = torch.tensor([ids])
    log_probabilities = model(tokens[:, :-1]).log_softmax(-1)[0, -count:]
    return log_probabilities.gather(1, tokens[0, -count:, None]).sum().item()


def rolling(model, ids, end):
    """Log likelihood of a whole text after the end-of-text token, by windows that predict every token once."""
    ids, total = [end, *ids], 0.0
    for start in range(1, len(ids), CONTEXT):
        stop = min(start + CONTEXT, len(ids))
        total += log_likelihood(model, ids[max(0, stop - CONTEXT - 1) : stop], stop - start)
    return total


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(model, tokenizer, results, samples of each task) of one run of the harness's command line."""
    place = tmp_path_factory.mktemp("lm_eval")
    tokenizer = char_tokenizer([json.dumps([QUESTIONS, PAGES])])
    config = resolve_model(nanochat(n_layer=2, n_head=4, n_embd=32, context_length=CONTEXT), tokenizer.size)
    write_hf_directory(place / "export", config, random_weights(config).__getitem__, tokenizer, "card")
    for name, rows in (("questions", QUESTIONS), ("pages", PAGES)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = place / "tasks"
    tasks.mkdir()
    (tasks / "choice.yaml").write_text(CHOICE.format(questions=place / "questions.jsonl"))
    (tasks / "perplexity.yaml").write_text(PERPLEXITY.format(pages=place / "pages.jsonl"))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(place / "home")}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", "pretrained=export,dtype=float32"),
            *("--tasks", "small_choice,small_pages", "--include_path", "tasks", "--device", "cpu"),
            *("--batch_size", "4", "--output_path", "out", "--log_samples"),
        ],
        cwd=place,
        env=os.environ | offline,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (place / "out").rglob("results_*.json")
    results = json.loads(path.read_text())["results"]
    samples = {}
    for task in results:
        (path,) = (place / "out").rglob(f"samples_{task}_*.jsonl")
        rows = sorted(map(json.loads, path.read_text().splitlines()), key=lambda row: row["doc_id"])
        samples[task] = [np.ravel(row["filtered_resps"]).tolist() for row in rows]
    return load_model(place / "export"), load_tokenizer(place / "export"), results, samples


@pytest.mark.slow
def test_multiple_choice(measured):
    model, tokenizer, results, samples = measured
    right = []
    for question, theirs in zip(QUESTIONS, samples["small_choice"], strict=True):
        scores = []
        for choice in question["choices"]:
            ids = tokenizer.encode(f"{question['question']} {choice}").tolist()
            scores.append(log_likelihood(model, ids, len(choice) + 1))
        np.testing.assert_allclose([float(x) for x in theirs[::2]], scores, atol=1e-4, rtol=0)
        right.append(int(np.argmax(scores)) == question["answer"])
    assert 0 < sum(right) < len(right)
    assert results["small_choice"]["acc,none"] == pytest.approx(np.mean(right), abs=1e-9)


@pytest.mark.slow
def test_perplexity(measured):
    model, tokenizer, results, samples = measured
    ours = [rolling(model, tokenizer.encode(p["page"]).tolist(), tokenizer.end_of_text_id) for p in PAGES]
    np.testing.assert_allclose([float(x[0]) for x in samples["small_pages"]], ours, atol=1e-4, rtol=0)
    nats = -sum(ours) / sum(len(p["page"].encode()) for p in PAGES)
    assert results["small_pages"]["bits_per_byte,none"] == pytest.approx(nats / math.log(2), abs=1e-4)
    assert results["small_pages"]["byte_perplexity,none"] == pytest.approx(math.exp(nats), abs=1e-3)
