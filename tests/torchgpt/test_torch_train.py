"""Whole runs of ``python -m torchgpt.train``, as a user starts them."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scratchgpt.hf_directory import open_hf_directory

ROOT = Path(__file__).resolve().parents[2]
TEXT = "the quick brown fox jumps over the lazy dog. pack my box with five dozen jugs. how vexingly quick foxes jump! "
TINY = [
    f"--config={ROOT / 'configs' / 'small.py'}",
    "--config.data.dataset=foxes",
    "--config.data.source=text.txt",
    "--config.model.n_layer=2",
    "--config.model.n_head=2",
    "--config.model.n_embd=32",
    "--config.model.context_length=16",
    "--config.train.batch_size=4",
    "--config.train.steps=40",
    "--config.log.every=1",
    "--config.eval.every=20",
    "--config.sample.prompt=the ",
    "--config.sample.max_new_tokens=40",
    "--config.sample.during=0",
    "--config.log.report=False",
]


def start(*arguments: str, cwd: Path, module: str = "torchgpt.train", **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def command(*arguments: str, cwd: Path, module: str) -> subprocess.CompletedProcess:
    process = start(*arguments, cwd=cwd, module=module)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def train(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return command(*arguments, cwd=cwd, module="torchgpt.train")


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a text and one finished run in it."""
    path = tmp_path_factory.mktemp("place")
    (path / "text.txt").write_text(TEXT * 60)
    done = train(*TINY, "--workdir=run", cwd=path)
    assert done.returncode == 0, done.stderr
    return path


def test_a_run_leaves_what_jaxgpt_leaves(place):
    run = place / "run"
    for name in ("config.json", "metrics.jsonl", "loss.png", "samples.txt", "export/config.json", "export/README.md"):
        assert (run / name).stat().st_size > 0, name
    assert (run / "samples.txt").read_text().startswith("the ")
    metrics = rows(run)
    assert [r["step"] for r in metrics if "train_loss" in r] == list(range(1, 41))
    assert [r["step"] for r in metrics if "val_loss" in r] == [20, 40]
    assert {"tokens", "lr", "tokens_per_second", "grad_norm"} <= metrics[0].keys()
    assert metrics[-1]["val_loss"] < 0.7 * metrics[0]["train_loss"]
    assert "torchgpt.train" in (run / "export" / "README.md").read_text()


def test_the_export_is_the_best_model_and_loads_in_transformers(place):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export = place / "run" / "export"
    tokenizer, model = AutoTokenizer.from_pretrained(export), AutoModelForCausalLM.from_pretrained(export)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"][:16]])
    loss = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:]).item()
    assert loss < rows(place / "run")[0]["train_loss"]


def test_jaxgpt_writes_and_measures_from_the_workdir(place):
    """By the workdir's name alone, as for a run of its own: its export, its data, its evaluations.jsonl."""
    texts = []
    for checkpoint in ("run", "run/export"):
        flags = (f"--checkpoint={checkpoint}", "--prompt=the quick ", "--temperature=0", "--max_new_tokens=12")
        done = command(*flags, cwd=place, module="jaxgpt.generate")
        assert done.returncode == 0, done.stderr
        texts.append(done.stdout)
    assert texts[0] == texts[1]
    done = command("--checkpoint=run", cwd=place, module="jaxgpt.evaluate")
    assert done.returncode == 0, done.stderr
    losses = [json.loads(line)["metrics"]["loss"] for line in (place / "run" / "evaluations.jsonl").open()]
    assert losses == [pytest.approx(min(r["val_loss"] for r in rows(place / "run") if "val_loss" in r), abs=1e-5)]


def test_jaxgpt_does_not_write_over_the_run(place):
    def files() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in (place / "run").rglob("*") if p.is_file() and p.name != ".lock"}

    before = files()
    done = command(*TINY, "--workdir=run", cwd=place, module="jaxgpt.train")
    assert done.returncode == 1
    assert done.stderr.startswith("error: run holds a model but no checkpoint")
    assert files() == before


def test_a_workdir_without_its_export_is_told_so(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    for module in ("jaxgpt.generate", "torchgpt.generate"):
        done = command("--checkpoint=run", "--prompt=the ", cwd=tmp_path, module=module)
        assert (done.returncode, done.stderr) == (
            1,
            "error: run has no export/, which the end of training writes: finish the run\n",
        )


def test_the_same_command_gives_the_same_model(place):
    assert train(*TINY, "--workdir=again", cwd=place).returncode == 0
    first, second = (dict(open_hf_directory(place / name / "export").parameters()) for name in ("run", "again"))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def test_accumulated_micro_batches_give_the_losses_of_one_batch(place):
    done = train(*TINY, "--config.train.micro_batch_size=1", "--config.train.dtype=float64", "--workdir=acc", cwd=place)
    assert done.returncode == 0, done.stderr
    assert train(*TINY, "--config.train.dtype=float64", "--workdir=whole", cwd=place).returncode == 0
    one, many = ([r["train_loss"] for r in rows(place / name) if "train_loss" in r] for name in ("whole", "acc"))
    np.testing.assert_allclose(many, one, rtol=0, atol=1e-12)


def test_init_from_continues_an_export(place):
    done = train(*TINY, "--init_from=run/export", "--config.optim.muon_learning_rate=1e-4", "--workdir=more", cwd=place)
    assert done.returncode == 0, done.stderr
    assert rows(place / "more")[0]["train_loss"] < 0.5 * rows(place / "run")[0]["train_loss"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_best_model(place, number):
    workdir = f"stopped{int(number)}"
    process = start(*TINY, "--config.train.steps=100000", f"--workdir={workdir}", cwd=place)
    for line in process.stdout:
        if "step 60" in line:
            process.send_signal(number)
            break
    out, err = process.communicate()
    assert process.returncode == 128 + number, err
    assert "holds the best model so far" in out
    assert open_hf_directory(place / workdir / "export").model.n_layer == 2
    assert len({r["step"] for r in rows(place / workdir) if "train_loss" in r}) >= 60


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--workdir=run"], "holds a run already"),
        (["--device=abacus", "--workdir=x1"], "must be one of"),
        (["--config.sample.prompt=Ω", "--workdir=x2"], "sample.prompt"),
        (["--init_from=nowhere", "--workdir=x3"], "does not exist"),
        (["--config.model.n_heads=3"], "nearest valid key"),
        (["--config.optim.muon_learning_rate=1e38", "--workdir=x4"], "not finite"),
    ],
)
def test_bad_input_is_one_sentence(place, arguments, sentence):
    done = train(*TINY, *arguments, cwd=place)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_bfloat16_trains_over_float32_parameters(place):
    done = train(*TINY, "--config.train.dtype=bfloat16", "--workdir=half", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "torch.bfloat16" in done.stdout
    exact, half = (rows(place / name)[-1]["val_loss"] for name in ("run", "half"))
    assert exact != half
    assert abs(exact - half) < 0.2 * exact
