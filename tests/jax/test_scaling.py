"""Scaling laws: the fit on losses whose law is known, the ladder's rules, and a tiny ladder climbed for real."""

import functools
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxgpt.scaling
from configs.schema import from_dict, to_dict
from configs.small import get_config
from data_prep.training_data import open_data
from jaxgpt.ladder import LADDER, Ladder, check_base
from jaxgpt.scaling import climb, numbers, parse_prediction
from scratchgpt.errors import UserError
from scratchgpt.scaling_law import Fit, ScalingLaw, fit_law
from scratchgpt.scaling_plots import optimal_sizes

ROOT = Path(__file__).resolve().parents[2]
SENTENCES = (
    "the quick brown fox jumps over the lazy dog. pack my box with five dozen jugs. how vexingly quick foxes jump! "
)
LAW = ScalingLaw(E=0.9, A=30.0, B=300.0, alpha=0.35, beta=0.45)
SIZES, LENGTHS = (np.ravel(v) for v in np.meshgrid([15e3, 1e5, 3.4e5, 8e5], [1e5, 2.5e5, 6e5, 1.5e6], indexing="ij"))

# --- the fit ---------------------------------------------------------------------------------------------------------


def noisy(law: ScalingLaw, seed: int, scatter: float = 0.003) -> np.ndarray:
    return law.loss(SIZES, LENGTHS) * np.exp(np.random.default_rng(seed).normal(0, scatter, len(SIZES)))


@settings(max_examples=5, deadline=None, derandomize=True)
@given(st.floats(0.5, 2.0), st.floats(0.2, 0.6), st.floats(0.2, 0.6), st.floats(0.3, 2.0), st.floats(0.3, 2.0))
def test_the_fit_recovers_the_law_of_exact_losses(E, alpha, beta, by_size, by_length):
    """``by_size`` and ``by_length`` are what the smallest size and the shortest run lose, in nats."""
    law = ScalingLaw(E, by_size * SIZES.min() ** alpha, by_length * LENGTHS.min() ** beta, alpha, beta)
    found = fit_law(SIZES, LENGTHS, law.loss(SIZES, LENGTHS), resamples=0).law
    for name, value in law.coefficients().items():
        assert found.coefficients()[name] == pytest.approx(value, rel=0.03), name


def test_the_fit_recovers_the_law_of_noisy_losses():
    found = fit_law(SIZES, LENGTHS, noisy(LAW, 0), resamples=0).law
    assert abs(found.alpha - LAW.alpha) < 0.06
    assert abs(found.beta - LAW.beta) < 0.06
    assert abs(found.E - LAW.E) < 0.15
    assert found.compute_exponent == pytest.approx(LAW.compute_exponent, abs=0.07)


def test_one_bad_run_does_not_move_the_law():
    losses = noisy(LAW, 1, scatter=0.0005)
    losses[5] *= 1.2
    found = fit_law(SIZES, LENGTHS, losses, resamples=0).law
    assert found.loss(2e6, 4e6) == pytest.approx(LAW.loss(2e6, 4e6), rel=0.01)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    covered = []
    for seed in range(5):
        fit = fit_law(SIZES, LENGTHS, noisy(LAW, seed), resamples=40)
        for name in ("E", "alpha", "beta", "compute_exponent"):
            low, high = fit.interval(name)
            covered.append(low <= LAW.coefficients()[name] <= high)
            assert high - low < 1.0, "an interval must tell something"
        low, high = fit.prediction_interval(1.6e6, 3e6)
        covered.append(low <= LAW.loss(1.6e6, 3e6) <= high)
    assert np.mean(covered) >= 0.8


def test_a_run_of_far_more_compute_is_predicted():
    fit = fit_law(SIZES, LENGTHS, noisy(LAW, 2), resamples=0)
    size, length = 1.6e6, 3e6
    assert size * length >= 4 * max(SIZES * LENGTHS)
    assert fit.law.loss(size, length) == pytest.approx(LAW.loss(size, length), rel=0.02)


def test_the_same_runs_give_the_same_fit_in_any_order():
    losses, turned = noisy(LAW, 3), slice(None, None, -1)
    fit, again = fit_law(SIZES, LENGTHS, losses, 5), fit_law(SIZES, LENGTHS, losses, 5)
    assert fit.resampled == again.resampled
    other = fit_law(SIZES[turned], LENGTHS[turned], losses[turned], 0)
    assert other.law.loss(1e6, 1e6) == pytest.approx(fit.law.loss(1e6, 1e6), rel=1e-3)


def test_the_optimal_size_is_that_of_the_closed_form():
    """Hoffmann et al. 2022, equation 4, where a token takes 6 N FLOPs."""
    sizes, flops = np.geomspace(1e3, 1e9, 40), np.array([1e12, 1e14])
    best, losses = optimal_sizes(LAW, flops, sizes, 6 * sizes)
    G = (LAW.alpha * LAW.A / (LAW.beta * LAW.B)) ** (1 / (LAW.alpha + LAW.beta))
    np.testing.assert_allclose(best, G * (flops / 6) ** LAW.compute_exponent, rtol=0.01)
    np.testing.assert_allclose(losses, LAW.loss(best, flops / (6 * best)), rtol=1e-12)


@pytest.mark.parametrize("keep", [slice(0, 5), slice(0, 8), slice(0, 16, 4)], ids=["five", "two sizes", "one length"])
def test_too_few_runs_are_refused(keep):
    with pytest.raises(UserError, match="too few to fit the 5 coefficients"):
        fit_law(SIZES[keep], LENGTHS[keep], noisy(LAW, 0)[keep])


def test_losses_that_are_no_numbers_are_refused():
    with pytest.raises(UserError, match="positive and finite"):
        fit_law(SIZES, LENGTHS, np.where(SIZES > 5e5, math.nan, 1.0))


# --- the ladder ------------------------------------------------------------------------------------------------------

BUDGETS = [2.5e7, 3.5e7, 7e7, 1.2e8]
CHANGES = {
    "data.dataset": "foxes",
    "data.source": "text.txt",
    "data.val_fraction": 0.1,
    "model.n_layer": 2,
    "model.n_head": 2,
    "model.n_embd": 16,
    "model.context_length": 8,
    "train.batch_size": 1,
    "train.unroll_layers": False,
    "eval.every": 0,
    "eval.batch_size": 64,
    "checkpoint.every": 50,
    "log.every": 20,
    "sample.prompt": "the ",
    "sample.max_new_tokens": 8,
}


def tiny(**changes):
    config = get_config()
    for key, value in (CHANGES | changes).items():
        section, name = key.split(".")
        setattr(getattr(config, section), name, value)
    return config


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with a text, and everything relative to it."""
    (tmp_path / "text.txt").write_text(SENTENCES * 60)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ladder(place):
    data = open_data(tiny(), lambda _: None)
    return Ladder(tiny(), data, len(data.train_tokens))


def pretend(ladder: Ladder, rungs: list, workdir: Path) -> None:
    """What finished runs leave, with losses of a law."""
    for rung in rungs:
        where = workdir / rung.name
        (where / "export").mkdir(parents=True)
        (where / "config.json").write_text(json.dumps(to_dict(rung.config)))
        (where / "identity.json").write_text('{"data": "text"}')
        row = {"step": rung.config.train.steps, "tokens": rung.tokens}
        loss = float(1 + 300 / rung.parameters + 20 / rung.tokens**0.5)
        rows = [row | {"train_loss": 2.0, "tokens_per_second": 1000.0}, row | {"val_loss": loss}]
        (where / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_sizes_follow_from_depth_and_lengths_from_budgets(ladder):
    rungs, left_out = ladder.rungs([1, 2, 3], BUDGETS)
    assert [r.flops for r in rungs] == sorted(r.flops for r in rungs)
    assert len(rungs) + len(left_out) == 12
    for rung in rungs:
        model = rung.config.model
        assert (model.n_embd, model.n_head) == (8 * rung.depth, rung.depth)
        assert rung.parameters == 12 * rung.depth**3 * 64 + 8 * rung.depth * 30  # blocks; head over 30 characters
        assert rung.tokens == 8 * rung.config.train.steps
        assert rung.flops == pytest.approx(6 * rung.tokens * (rung.parameters + rung.depth**2 * 8 * 9))
        assert rung.flops == pytest.approx(rung.budget, rel=0.01)
        assert rung.config.optim == ladder.base.optim


def test_a_finished_ladder_is_fitted_without_training(place, ladder, capsys, monkeypatch):
    monkeypatch.setattr(jaxgpt.scaling, "fit_law", functools.partial(fit_law, resamples=10))
    rungs, _ = ladder.rungs([1, 2, 3], BUDGETS)
    target = ladder.held_out(4, 1700, rungs)
    pretend(ladder, [*rungs, target], place / "l")
    assert climb(tiny(), place / "l", [1, 2, 3], BUDGETS, (4, 1700), []) == 0
    assert f"{len(rungs) + 1} of them finished before" in capsys.readouterr().out
    fit = json.loads((place / "l/fit.json").read_text())
    assert [run["name"] for run in fit["runs"]] == [r.name for r in rungs]
    held = fit["held_out"]
    assert held["flops"] >= 4 * max(run["flops"] for run in fit["runs"])
    assert held["error"] == pytest.approx(held["predicted"] / held["measured"] - 1)
    assert abs(held["error"]) < 0.02
    assert held["interval_95"][0] <= held["predicted"] <= held["interval_95"][1]
    assert (place / "l/scaling.png").read_bytes().startswith(b"\x89PNG")
    assert (place / "l/table.md").read_text().count("\n| ") >= len(rungs)

    # the held-out run has no part in the fit
    metrics = place / "l" / target.name / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"val_loss": 1', '"val_loss": 7'))
    assert climb(tiny(), place / "l", [1, 2, 3], BUDGETS, (4, 1700), []) == 0
    assert json.loads((place / "l/fit.json").read_text())["coefficients"] == fit["coefficients"]

    # a prediction is not written over by a ladder without it, or with another
    before = (place / "l/fit.json").read_bytes()
    for other in (None, (4, 2000)):
        with pytest.raises(UserError, match=f"holds the prediction of {target.name}, which this would replace"):
            climb(tiny(), place / "l", [1, 2, 3], BUDGETS, other, [])
    assert (place / "l/fit.json").read_bytes() == before


def spoil(name: str, old: str, new: str):
    def change(workdir: Path) -> None:
        path = next(iter(sorted(workdir.glob(f"d2-*/{name}")))) if name != LADDER else workdir / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (spoil(LADDER, '"batch_size": 1', '"batch_size": 2'), "another ladder, with train.batch_size=2 instead of 1"),
        (spoil("config.json", '"seed": 1337', '"seed": 1'), "holds a run with train.seed=1 instead of 1337"),
        (spoil("config.json", "{", "?"), "is not valid JSON"),
        (spoil("metrics.jsonl", "{", "?"), "metrics.jsonl:1 is not a JSON object"),
        (spoil("metrics.jsonl", '"val_loss": 1', '"val_loss": null, "x": 1'), "no finite validation loss"),
        (spoil("metrics.jsonl", "1000.0", "0"), "no finite validation loss, or lines that are not"),
        (spoil("identity.json", "text", "other"), "was trained on other tokens than"),
    ],
)
def test_a_workdir_that_is_not_this_ladder_is_refused(place, ladder, change, sentence):
    rungs, _ = ladder.rungs([1, 2, 3], BUDGETS)
    pretend(ladder, rungs, place / "l")
    description = {k: v for k, v in to_dict(tiny()).items() if k in ("model", "data", "train", "optim")}
    (place / "l" / LADDER).write_text(json.dumps(description | {"eval": {"max_tokens": 0}}))
    change(place / "l")
    with pytest.raises(UserError, match=sentence):
        climb(tiny(), place / "l", [1, 2, 3], BUDGETS, None, [])


def test_a_training_run_is_not_taken_for_a_ladder(place):
    (place / "l").mkdir()
    (place / "l/metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="holds a training run"):
        climb(tiny(), place / "l", [1, 2, 3], BUDGETS, None, [])


def test_what_cannot_be_a_ladder_is_refused_before_anything_is_trained(place, ladder):
    rungs, _ = ladder.rungs([1, 2, 3], BUDGETS)
    with pytest.raises(UserError, match=r"less than 4 times the .* give it 1,"):
        ladder.held_out(4, 800, rungs)
    with pytest.raises(UserError, match="does not reach beyond 10000 times"):
        ladder.held_out(9999, 800, rungs)
    with pytest.raises(UserError, match="epochs, and the law is one of fresh tokens"):
        ladder.held_out(4, 10_000, rungs)
    with pytest.raises(UserError, match="a law needs 3 sizes or more, and --depths has 2"):
        climb(tiny(), place / "l", [1, 2], BUDGETS, None, [])
    with pytest.raises(UserError, match=r"too few to fit .* left out were depth 1 at 1 .*; depth 3 at 2 "):
        climb(tiny(), place / "l", [1, 2, 3], [1, 2], None, [])
    assert not (place / "l").exists()
    odd = Ladder(tiny(**{"model.n_layer": 4}), open_data(tiny(), lambda _: None), 5000)  # heads of 8, 4 wide a layer
    with pytest.raises(UserError, match="no model of 3 layers is on the dial"):
        odd.rung(3, budget=1e8)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.objective", "sft"),
        ("lora.rank", 4),
        ("eval.patience", 2),
        ("optim.schedule", "constant"),
        ("model.mlp_dim", 64),
        ("model.n_kv_head", 1),
    ],
)
def test_a_run_file_that_no_law_holds_for_is_refused(key, value):
    with pytest.raises(UserError, match=f"a scaling ladder needs {key}="):
        check_base(tiny(**{key: value}))


@pytest.mark.parametrize(
    ("flag", "values", "kind"),
    [("depths", ["0"], int), ("depths", ["1.5"], int), ("depths", ["two"], int), ("depths", [], int)]
    + [("budgets", [text], float) for text in ("0", "-1e9", "nan", "inf", "")],
)
def test_bad_lists_are_refused(flag, values, kind):
    with pytest.raises(UserError, match=f"--{flag}"):
        numbers(flag, values, kind)


@pytest.mark.parametrize("text", ["5", "5:", ":5", "5:0", "0:5", "x:1e6", "5:nan"])
def test_a_bad_prediction_is_refused(text):
    with pytest.raises(UserError, match="--predict"):
        parse_prediction(text)


def test_a_prediction_is_read():
    assert parse_prediction("5:1e6") == (5, 1e6)
    assert parse_prediction("") is None


def test_a_fit_needs_no_resamples_to_predict():
    fit = Fit(LAW, [LAW, LAW], np.zeros(6), np.zeros(6))
    assert fit.prediction_interval(1e5, 1e6) == pytest.approx((LAW.loss(1e5, 1e6),) * 2)


# --- climbed for real ------------------------------------------------------------------------------------------------


def started(module: str, *arguments: str, cwd: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


FLAGS = [f"--config={ROOT / 'configs' / 'small.py'}", *(f"--config.{key}={value}" for key, value in CHANGES.items())]
CLIMB = [*FLAGS, "--depths=1,2,3", f"--budgets={','.join(map(str, BUDGETS))}", "--predict=4:1700", "--workdir=l"]


@pytest.mark.slow
def test_an_interrupted_ladder_goes_on_where_it_stood(place):
    for rung, number in (("rung 2/", signal.SIGTERM), ("rung 4/", signal.SIGKILL)):
        process = started("jaxgpt.scaling", *CLIMB, cwd=place)
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            # by then the checkpoint of step 50 is whole: the save of step 100 began after it
            if line.startswith("step 160/") and any(earlier.startswith(rung) for earlier in lines):
                process.send_signal(number)
                break
        rest = process.stdout.read()
        assert process.wait() == (128 + number if number == signal.SIGTERM else -number), rest
        assert ("run again to go on" in rest) == (number == signal.SIGTERM)
        assert ("resuming l/d" in "".join(lines)) == (number == signal.SIGKILL)  # where SIGTERM stopped
    process = started("jaxgpt.scaling", *CLIMB, cwd=place)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert "resuming l/d" in out
    assert "finished before" in out

    fit = json.loads((place / "l/fit.json").read_text())
    assert fit["held_out"]["measured"] > 0
    again = started("jaxgpt.scaling", *CLIMB, cwd=place)
    out, _ = again.communicate()
    assert again.returncode == 0, out
    assert "rung" not in out
    assert json.loads((place / "l/fit.json").read_text()) == fit

    # the interrupted rungs are what their own commands train undisturbed
    for run in (fit["runs"][1], fit["runs"][3]):
        where = place / "l" / run["name"]
        command = shlex.split((where / "command.txt").read_text())
        assert command[:3] == ["python", "-m", "jaxgpt.train"]
        config = from_dict(json.loads((where / "config.json").read_text()))
        shutil.rmtree(where)
        alone = started("jaxgpt.train", *command[3:], cwd=place)
        out, _ = alone.communicate()
        assert alone.returncode == 0, out
        assert from_dict(json.loads((where / "config.json").read_text())) == config
        rows = [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["val_loss"] == run["val_loss"]


def test_mistakes_end_with_one_sentence(place):
    process = started("jaxgpt.scaling", *FLAGS, "--depths=1,2", "--budgets=0", cwd=place)
    out, _ = process.communicate()
    assert process.returncode == 1
    assert out == "error: --budgets: '0' is not a number of FLOPs greater than 0, such as 2e11\n"
