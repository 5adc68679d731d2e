"""``jaxgpt.evaluate`` measures what EleutherAI's lm-evaluation-harness does on the same export and rows."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.schema import gpt2, llama, resolve_model
from data_prep.bpe import count_words, learn_merges
from data_prep.train_tokenizer import tokenizer_of
from parity_tests.models import SHARED_DATA, random_weights
from scratchgpt.hf_directory import write_hf_directory

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = 256
MODELS = {
    "gpt2": gpt2(n_layer=2, n_head=4, n_embd=48, context_length=CONTEXT),
    "llama": llama(n_layer=2, n_head=4, n_kv_head=2, n_embd=48, context_length=CONTEXT),
}
REAL = SHARED_DATA / "hellaswag" / "validation_2000.jsonl"
# As the original names its columns, with the marks of WikiHow, and one context longer than the models'.
QUESTIONS = [
    {
        "activity_label": "Adding up [header]",
        "ctx_a": f"Somebody asks what {a} and {b} make. [title] The answer [step] is easy." * (20 if a * b == 6 else 1),
        "ctx_b": "the Answer",
        "endings": [f"is {a + b}.", f"[substeps] is  {a * b + 7}, they say.", "is none of these ", "is not known."],
        "label": str(a % 4),
    }
    for a in range(5)
    for b in range(4)
]
# Shorter and longer than the context, which the harness then moves along the text. No two windows are alike: those it
# takes for one (0.4.13 gave one of them the other's value when texts repeated themselves).
PAGES = [
    {"text": " ".join(f"The {i * i}th fox says {7 * i * n} to dog {i}." for i in range(n, n + 2 * n))[: 97 * n]}
    for n in range(1, 20)
]

FUNCTIONS = (
    "from lm_eval.tasks.hellaswag.utils import preprocess, process_docs as original\n"
    + """
def as_given(rows):
    def of_row(row):
        choices = [preprocess(e) for e in row["endings"]]
        return {"query": preprocess(row["ctx"]), "choices": choices, "gold": int(row["label"])}
    return rows.map(of_row)
"""
)
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{rows}"}}}}
test_split: test
"""
CHOICE = """
output_type: multiple_choice
process_docs: !function functions.{function}
doc_to_text: "{{{{query}}}}"
doc_to_choice: "choices"
doc_to_target: "gold"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}, {metric: byte_perplexity}]
"""
COMPLETION = """
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list: [{metric: perplexity}, {metric: acc}]
"""


def harness(place: Path) -> dict[str, dict[str, float]]:
    """Results by task."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(place / "home")}
    names = ",".join(path.stem for path in (place / "tasks").glob("*.yaml"))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", "pretrained=export,dtype=float32"),
            *("--tasks", names, "--include_path", "tasks", "--device", "cpu"),
            *("--batch_size", "16", "--output_path", "out"),
        ],
        cwd=place,
        env=os.environ | offline,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (place / "out").rglob("results_*.json")
    found = json.loads(path.read_text())["results"]
    return {task: {key.split(",")[0]: value for key, value in row.items()} for task, row in found.items()}


def ours(place: Path, task: str, data: str) -> dict[str, dict[str, float]]:
    """``metrics`` and ``stderr`` that jaxgpt.evaluate writes."""
    arguments = ["--checkpoint=export", f"--task={task}", f"--data={data}", f"--output={task}.json"]
    done = subprocess.run(
        [sys.executable, "-m", "jaxgpt.evaluate", *arguments],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((place / f"{task}.json").read_text())


@pytest.fixture(scope="module", params=MODELS)
def measured(request, tmp_path_factory):
    """(place, results of one run of the harness) for a model with random weights and a BPE vocabulary."""
    place = tmp_path_factory.mktemp("lm_eval")
    texts = [json.dumps([QUESTIONS, PAGES]), REAL.read_text() if REAL.exists() else ""]
    tokenizer = tokenizer_of(itertools.islice(learn_merges(count_words(texts)), 400))
    config = resolve_model(MODELS[request.param], tokenizer.size)
    write_hf_directory(place / "export", config, random_weights(config).__getitem__, tokenizer, "card")
    rows = {"original": QUESTIONS, "pages": PAGES}
    if REAL.exists():
        rows["real"] = [json.loads(line) for line in REAL.read_text().splitlines()[:500]]
    tasks = place / "tasks"
    tasks.mkdir()
    for name, lines in rows.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))

    def task(name: str, source: str, rest: str) -> None:
        (tasks / f"{name}.yaml").write_text(TASK.format(name=name, rows=place / f"{source}.jsonl") + rest)

    (tasks / "functions.py").write_text(FUNCTIONS)
    task("small_original", "original", CHOICE.format(function="original"))
    task("small_rolling", "pages", ROLLING)
    task("small_completion", "pages", COMPLETION)
    if REAL.exists():
        task("small_real", "real", CHOICE.format(function="as_given"))
    return place, harness(place)


@pytest.mark.parametrize("source", ["original", "real"])
def test_hellaswag_accuracies_are_the_same(measured, source):
    place, theirs = measured
    if f"small_{source}" not in theirs:
        pytest.skip("the rows of HellaSwag are not here")
    found = ours(place, "hellaswag", f"{source}.jsonl")
    assert 0 < found["metrics"]["acc"] < 1
    assert found["metrics"]["questions"] == (500 if source == "real" else len(QUESTIONS))
    for name in ("acc", "acc_norm"):
        assert found["metrics"][name] == theirs[f"small_{source}"][name]
        assert found["stderr"][name] == pytest.approx(theirs[f"small_{source}"][f"{name}_stderr"], rel=1e-9)


def test_a_rolling_loss_is_the_same(measured):
    place, theirs = measured
    found = ours(place, "loss", "pages.jsonl")["metrics"]
    assert found["bits_per_byte"] == pytest.approx(theirs["small_rolling"]["bits_per_byte"], rel=1e-5)
    assert found["byte_perplexity"] == pytest.approx(theirs["small_rolling"]["byte_perplexity"], rel=1e-5)


def test_completions_are_the_same(measured):
    place, theirs = measured
    found = ours(place, "lambada", "pages.jsonl")["metrics"]
    assert found["acc"] == theirs["small_completion"]["acc"]
    assert found["perplexity"] == pytest.approx(theirs["small_completion"]["perplexity"], rel=1e-4)
