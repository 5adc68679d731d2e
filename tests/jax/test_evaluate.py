"""``jaxgpt.evaluate``: every token predicted once, whatever the batch and the devices; tasks from small files."""

import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import resolve_model
from data_prep.evaluation_tasks import TASKS, Task, wikihow
from data_prep.tokenizers import char_tokenizer
from jaxgpt.loading import load_weights
from jaxgpt.multiple_choice import encode_pair, measure
from jaxgpt.perplexity import Measured, disjoint_windows, windows
from jaxgpt.runtime import cpu_thread_environment
from jaxgpt.scoring import Request, Scorer
from parity_tests.models import MODELS, random_weights, tokenizer_for
from scratchgpt.errors import UserError
from scratchgpt.hf_directory import write_hf_directory
from tests.jax.test_train import ROOT, SENTENCES, TINY, rows
from tests.repo.warm_commands import run_command

CONTEXT = MODELS["llama"].context_length


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 40))
def test_windows_predict_every_token_once_with_all_the_context_there_is(n, context, stride):
    stride = min(stride, context)
    seen = []
    for number, request in enumerate(windows(range(n), context, stride)):
        assert len(request.tokens) <= context + 1
        first = request.tokens[-request.targets]
        assert first - request.tokens[0] == min(first, context + 1 - request.targets)  # no token before was left out
        assert number == 0 or request.targets <= stride
        seen += request.tokens[-request.targets :]
    assert seen == list(range(1, n)) or n == 1
    assert [t for r in disjoint_windows(range(n), context) for t in r.tokens[1:]] == list(range(1, n))


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model"
    model = resolve_model(MODELS["llama"])
    write_hf_directory(path, model, random_weights(model).__getitem__, tokenizer_for(model), "card")
    return path


@pytest.fixture(scope="module")
def scorers(export):
    """By batch size."""
    return {size: Scorer(*load_weights(export), batch_size=size) for size in (0, 1, 7)}


def requests_of(lengths) -> list[Request]:
    rng = np.random.default_rng(0)
    return [Request(rng.integers(0, 80, n).tolist(), max(1, n // 2)) for n in lengths]


def test_scores_do_not_depend_on_the_batch_or_the_order(scorers):
    requests = requests_of([2, 193, 50, 129, 3, 64, 193, 17, 65, 128, 2])
    told = []
    found = scorers[0].score(requests, told.append)
    assert told[-1] == len(requests)
    for size in (1, 7):
        again = scorers[size].score(requests[::-1])[::-1]
        likelihoods = [[s.log_likelihood for s in scores] for scores in (found, again)]
        np.testing.assert_allclose(*likelihoods, rtol=1e-6)
        assert [s.is_greedy for s in found] == [s.is_greedy for s in again]


def test_scores_are_those_of_the_twin(export, scorers):
    import torch

    from torchgpt.hf import load_model

    model = load_model(export)
    requests = requests_of([2, 193, 50, 129])
    for request, score in zip(requests, scorers[0].score(requests), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([request.tokens[:-1]])).double().log_softmax(-1)[0, -request.targets :]
        targets = torch.tensor(request.tokens[-request.targets :])
        assert score.log_likelihood == pytest.approx(logits.gather(1, targets[:, None]).sum().item(), rel=1e-5)
        assert score.is_greedy == bool((logits.argmax(-1) == targets).all())


def test_a_greedy_continuation_is_known_as_such(scorers, export):
    from jaxgpt.decoding import generate

    graphdef, params, model = load_weights(export)
    (written,) = generate(graphdef, params, model, [5, 6, 7], max_new_tokens=20, temperature=0)
    good, bad = [5, 6, 7, *written], [5, 6, 7, *written[:-1], (written[-1] + 1) % 80]
    assert [s.is_greedy for s in scorers[0].score([Request(good, 20), Request(bad, 20)])] == [True, False]


def test_figures_follow_from_the_sums():
    measured = Measured(np.array([10.0, 30.0]), np.array([5, 10]), 60)
    figures = measured.figures()
    assert figures["loss"] == pytest.approx(40 / 15)
    assert figures["perplexity"] == pytest.approx(math.exp(40 / 15))
    assert figures["bits_per_byte"] == pytest.approx(40 / math.log(2) / 60)
    assert figures["byte_perplexity"] == pytest.approx(math.exp(40 / 60))
    # the spread of the ratio over pieces that are drawn again and again
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 50, 400)
    nats = tokens * rng.normal(3, 0.5, 400)
    drawn = (rng.integers(0, 400, 400) for _ in range(2000))
    spread = np.std([nats[d].sum() / tokens[d].sum() for d in drawn])
    assert Measured(nats, tokens, 1).standard_errors()["loss"] == pytest.approx(spread, rel=0.1)
    assert Measured(np.array([1.0]), np.array([1]), 1).standard_errors() == {}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("place")
    (path / "text.txt").write_text(SENTENCES * 60)
    done = run_command("jaxgpt.train", *TINY, "--workdir=run", cwd=path, limit_s=300)
    assert done.returncode == 0, done.stderr
    return path


def evaluate(place, *arguments, status=0):
    done = run_command("jaxgpt.evaluate", *arguments, "--output=out.json", cwd=place, limit_s=200)
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads((place / "out.json").read_text())["metrics"] if status == 0 else done.stderr


def test_a_run_is_measured_as_it_validated(place):
    (row,) = (r for r in rows(place / "run") if r["step"] == 40 and "val_loss" in r)
    found = evaluate(place, "--checkpoint=run")
    assert found["loss"] == pytest.approx(row["val_loss"], rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(row["val_loss"] / math.log(2), rel=1e-6)  # a byte a token
    assert found["tokens"] == found["bytes"]
    export = evaluate(place, "--checkpoint=run/export", f"--data={next((place / 'data').iterdir())}")
    assert export == pytest.approx(found, rel=1e-6)
    (line,) = (place / "run" / "evaluations.jsonl").read_text().splitlines()
    assert json.loads(line)["metrics"] == found
    strided = evaluate(place, "--checkpoint=run", "--stride=4")
    assert strided["loss"] < found["loss"]  # more context
    assert strided["tokens"] == found["tokens"]


def test_documents_of_a_text_do_not_see_one_another(place):
    (place / "a.jsonl").write_text(
        "".join(json.dumps({"text": t}) + "\n" for t in ("the quick", "", "brown fox jumps"))
    )
    (place / "b.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in ("brown fox jumps", "the quick")))
    a, b = (evaluate(place, "--checkpoint=run", f"--data={name}.jsonl") for name in "ab")
    assert a == pytest.approx(b, rel=1e-6)
    assert a["tokens"] == a["bytes"] == len("the quickbrown fox jumps")
    one = evaluate(place, "--checkpoint=run", "--data=a.jsonl", "--limit=1")
    assert one["tokens"] == len("the quick")


def test_several_devices_measure_what_one_does(place, tmp_path):
    code = (
        "import sys, jax; jax.config.update('jax_num_cpu_devices', 4)\n"
        "from jaxgpt.loading import load_weights\n"
        "from jaxgpt.scoring import Request, Scorer\n"
        "requests = [Request([1, 2, 3, 4, 5], n) for n in (1, 2, 4)]\n"
        "scores = Scorer(*load_weights(sys.argv[1]), batch_size=3).score(requests)\n"
        "print([s.log_likelihood for s in scores])\n"
    )
    export = place / "run" / "export"
    environment = os.environ | cpu_thread_environment(4) | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, str(export)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    here = Scorer(*load_weights(export)).score([Request([1, 2, 3, 4, 5], n) for n in (1, 2, 4)])
    assert json.loads(done.stdout) == pytest.approx([s.log_likelihood for s in here], rel=1e-6)


def test_a_pair_is_cut_as_the_harness_cuts_it():
    tokenizer = char_tokenizer(["abc "])
    assert encode_pair(tokenizer, "ab ", " c", 10) == Request(list(tokenizer.encode("ab  c")), 3)
    assert encode_pair(tokenizer, "", "ab", 10) == Request([tokenizer.end_of_text_id, *tokenizer.encode("ab")], 2)
    assert encode_pair(tokenizer, "abcabc", " c", 4).tokens == list(tokenizer.encode("abc c"))
    with pytest.raises(UserError, match="a continuation of 5 tokens does not fit a context of 4"):
        encode_pair(tokenizer, "a", "bcbcb", 4)


def task(tmp_path, **values):
    path = tmp_path / "task.json"
    path.write_text(json.dumps(values))
    return Task(str(path))


def test_accuracies_of_choices_and_completions(tmp_path, scorers):
    letters = tokenizer_for(resolve_model(MODELS["llama"]))
    choosing = task(tmp_path, name="x", context="{{ q }}", choices="c", answer="a", delimiter="")
    rows = [{"q": "ABC", "c": ["DEF", "G", "HIJKL"], "a": i % 3} for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = list(choosing.questions(str(tmp_path / "rows.jsonl")))
    figures, errors = measure(scorers[0], letters, questions)
    assert figures["questions"] == 9
    assert figures["acc"] == pytest.approx(1 / 3)  # the same choice wins every time
    assert errors["acc"] == pytest.approx(math.sqrt(1 / 3 * 2 / 3 / 8))
    texts = ["DEF", "G", "HIJKL"]
    likely = scorers[0].score([encode_pair(letters, "ABC", t, CONTEXT) for t in texts])
    best = int(np.argmax([s.log_likelihood / len(t) for s, t in zip(likely, texts, strict=True)]))
    only = [q for q in questions if q.answer == best]
    assert measure(scorers[0], letters, only)[0]["acc_norm"] == 1
    completing = task(tmp_path, name="y", context="{{ q }}", target="{{ c[0] }}")
    figures, _ = measure(scorers[0], letters, list(completing.questions(str(tmp_path / "rows.jsonl"), limit=2)))
    assert figures["perplexity"] == pytest.approx(math.exp(-likely[0].log_likelihood), rel=1e-5)
    assert figures["questions"] == 2
    assert measure(scorers[0], letters, questions[:1])[1] == {}  # the spread of one answer is not known


def test_the_tasks_that_come_with_it_read_their_rows(tmp_path):
    rows = {
        "hellaswag": {
            "activity_label": "Roof",
            "ctx_a": "A man [step] sits. [title] Up",
            "ctx_b": "he THEN",
            "endings": ["x [a] y", "z"],
            "label": "1",
        },
        "arc_easy": {"question": "Q?", "choices": {"text": ["m", "n"], "label": ["A", "B"]}, "answerKey": "B"},
        "arc_challenge": {"question": "Q?", "choices": {"text": ["m", "n"], "label": ["1", "2"]}, "answerKey": "2"},
        "piqa": {"goal": "G", "sol1": "m", "sol2": "n", "label": 1},
        "lambada": {"text": "one two three"},
    }
    assert rows.keys() == {path.stem for path in TASKS.glob("*.json")}
    found = {}
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        (found[name],) = Task(name).questions(str(tmp_path / f"{name}.jsonl"))
    assert found["hellaswag"][:2] == ("Roof: A man sits.. Up He then", [" x y", " z"])
    assert found["arc_easy"][:2] == ("Question: Q?\nAnswer:", [" m", " n"])
    assert found["lambada"][:2] == ("one two", [" three"])
    assert {q.answer for name, q in found.items() if name != "lambada"} == {1}
    assert wikihow(" a [title] b [x]  c") == "a. b  c"  # as the original has it


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"context": "x"}, "needs 'context', and either"),
        ({"context": "x", "target": "y", "choices": "z", "answer": "0"}, "needs 'context', and either"),
        ({"context": "x", "target": 3}, "whose values are texts"),
        ({"context": "x", "target": "y", "colour": "z"}, "unknown key 'colour'"),
        ({"context": "{{ x", "target": "y"}, "a template cannot be read"),
        ({"context": "{{ q }}", "target": "y"}, "'target' names no column"),
        ({"context": "x", "target": "{{ nowhere }}"}, "does not fit the task"),
        ({"context": "x", "target": "{{ q.__class__.__mro__ }}"}, "does not fit the task"),
        ({"context": "x", "choices": "q", "answer": "0"}, "must be a list of two or more texts"),
        ({"context": "x", "choices": "c", "answer": "9"}, "answer 9 of 2 choices"),
        ({"context": "x", "choices": "c", "answer": "1.0"}, "must be the number of a choice, not 1.0"),
        ({"context": "x", "target": "y", "delimiter": " "}, "with 'target' write it into the template"),
        ({"context": "x", "choices": "c", "answer": "q"}, "must be the number of a choice, not 'text'"),
        ({"context": "x", "choices": "[q, '']", "answer": "0"}, "none of which may be empty"),
    ],
)
def test_task_files_that_cannot_be(tmp_path, values, sentence):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "text", "c": ["a", "b"]}) + "\n")
    with pytest.raises(UserError, match=sentence):
        list(task(tmp_path, **values).questions(str(tmp_path / "rows.jsonl")))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--task=chess"], "there is no task 'chess': give a task file (.json), or one of arc_challenge"),
        (["--stride=17"], "--stride=17 is longer than the model's context of 16"),
        (["--data=none.txt"], "none.txt"),
        (["--data=pair.jsonl"], "document 1: "),
        (["--data=empty.txt"], "empty"),
        (["--data=other.txt"], "U+00E9"),
        (["--checkpoint=run/export"], "--data is needed"),
        (["--task=hellaswag", "--stride=3"], "are for --task=loss"),
        (["--task=hellaswag", "--data=text.txt"], "text.txt: the name must end with one of"),
        (["--limit=3"], "shards are read whole"),
        (["--output=run"], "run is a directory"),
        (["--split=test"], "--split"),
    ],
)
def test_bad_input_is_one_sentence(place, arguments, sentence):
    (place / "empty.txt").write_text("")
    (place / "other.txt").write_text("caf\u00e9")
    (place / "pair.jsonl").write_text('{"text": "the \\ud800 fox"}\n')
    flags = {"--checkpoint": "run"} | dict(a.split("=") for a in arguments)
    done = run_command("jaxgpt.evaluate", *(f"{k}={v}" for k, v in flags.items()), cwd=place)
    assert done.returncode == 1, done.stdout + done.stderr
    assert sentence in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_shards_of_another_tokenizer_are_refused(place):
    (place / "more.txt").write_text((SENTENCES + "0123") * 60)
    flags = ["--dataset=more", "--source=more.txt", "--out=more"]
    assert run_command("data_prep.prepare", *flags, cwd=place).returncode == 0
    assert "prepared with another tokenizer" in evaluate(place, "--checkpoint=run", "--data=more", status=1)
    shutil.rmtree(place / "more")


def test_a_run_answers_questions_at_its_start_and_its_end(place):
    questions = [{"q": "the quick", "c": ["brown", "z. zq"], "a": 0}, {"q": "the lazy", "c": ["kkkk", "dog."], "a": 1}]
    (place / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    (place / "task.json").write_text(json.dumps({"name": "foxes", "context": "{{ q }}", "choices": "c", "answer": "a"}))
    flags = ["--config.eval.task=task.json", "--config.eval.task_data=questions.jsonl", "--workdir=asked"]
    flags += ["--config.log.tensorboard=True"]
    done = run_command("jaxgpt.train", *TINY, *flags, cwd=place, limit_s=200)
    assert done.returncode == 0, done.stderr
    asked = [row for row in rows(place / "asked") if "foxes_acc" in row]
    assert [row["step"] for row in asked] == [0, 40]
    events = b"".join(path.read_bytes() for path in (place / "asked" / "tensorboard").iterdir())
    assert events.count(b"foxes_acc_norm") == 2
    assert asked[-1]["foxes_acc"] == asked[-1]["foxes_acc_norm"] == 1
    assert "before training: foxes acc" in done.stdout
    again = run_command("jaxgpt.train", *TINY, *flags, cwd=place, limit_s=200)  # a finished run records nothing twice
    assert again.returncode == 0, again.stderr
    assert [row for row in rows(place / "asked") if "foxes_acc" in row] == asked
