"""The run report: what it tells, what it survives, and how it looks in a real browser."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from configs.schema import Config, to_dict
from scratchgpt import workdir as layout
from scratchgpt.errors import UserError
from scratchgpt.metrics import read_metrics
from scratchgpt.plots import plot_loss
from scratchgpt.reporting.figures import count
from scratchgpt.reporting.page import page
from scratchgpt.reporting.report import write_report
from scratchgpt.reporting.runs import EVALUATIONS, read_runs
from scratchgpt.reporting.series import AXES, Curve, collect, smoothed, thinned

ROOT = Path(__file__).resolve().parents[2]
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&$\\frac{$"
STEPS = 40


def rows(steps=STEPS, best=1.5):
    """Lines of metrics.jsonl of a run that validates every ten steps and is best at step 30."""
    found = []
    for step in range(1, steps + 1):
        row = {"step": step, "tokens": step * 100, "train_loss": 4 - step / 50, "grad_norm": 1.0, "lr": 1e-3}
        found.append(row | {"tokens_per_second": 50.0})
        if step % 10 == 0:
            found.append({"step": step, "tokens": step * 100, "val_loss": best + abs(step - 30) / 100})
    return found


def start(**fields):
    """A line of starts.jsonl."""
    seconds = {"step": 75.0, "compilation": 5.0, "data": 0.0, "evaluation": 15.0, "saving": 5.0}
    known = {"began": "2026-01-02T03:04:05", "first_step": 1, "last_step": STEPS, "seconds": seconds}
    where = {"hardware": "2 x NVIDIA H200", "processes": 1, "versions": "Python 3.11, jax 0.10.2", "commit": "abc123"}
    return known | where | {"ended": "finished"} | fields


def lines(values):
    return "".join(json.dumps(value) + "\n" for value in values)


def make(folder, name="first", best=1.5, learning_rate=1e-3, text="To be"):
    """A workdir with all that a run may leave."""
    workdir = folder / name
    workdir.mkdir(parents=True)
    config = Config()
    config.optim.learning_rate, config.train.steps, config.data.source = learning_rate, STEPS, text
    (workdir / layout.CONFIG).write_text(json.dumps(to_dict(config)))
    (workdir / layout.METRICS).write_text(lines(rows(best=best)))
    (workdir / layout.STARTS).write_text(lines([start()]))
    samples = [{"step": step, "prompt": text, "texts": [f"{text} and {step} more"]} for step in (10, 20, 30, 40)]
    (workdir / layout.SAMPLES_LOG).write_text(lines(samples))
    found = {
        "task": "hellaswag",
        "metrics": {"acc_norm": 0.3125},
        "stderr": {"acc_norm": 0.0046},
        "checkpoint": "30",
    }
    (workdir / EVALUATIONS).write_text(lines([found]))
    (workdir / layout.COMMAND).write_text(f"python -m jaxgpt.train --config.data.source={text}\n")
    return workdir


@pytest.fixture
def make_run(tmp_path):
    """Makes workdirs in this test's folder."""
    return lambda *args, folder=tmp_path, **fields: make(folder, *args, **fields)


LONG_NAME = "a-very-long-name-without-any-space-" * 3


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Paths of the report of a run, and of two runs, one of which has a name and a text that are too long."""
    folder = tmp_path_factory.mktemp("runs")
    long = make(folder, LONG_NAME, best=1.25, learning_rate=0.5, text="x" * 400)
    runs = [make(folder), long]
    return [write_report(workdirs, folder / f"out{i}") for i, workdirs in enumerate((runs[:1], runs))]


class Texts(HTMLParser):
    """What a page says, and of which tags it is made."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.words = [], set(), []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.words += [value for name, value in attrs if name == "aria-label"]

    def handle_data(self, data):
        self.words.append(data)

    def text(self):
        """All of it, on one line."""
        return " ".join(" ".join(self.words).split())


def report(*workdirs):
    """The texts of the report of these workdirs."""
    return Texts(write_report(workdirs, workdirs[0] / layout.REPORT).read_text(encoding="utf-8"))


def undrawn(*workdirs):
    """The texts of the same report without its charts, which take most of the time."""
    return Texts(page(read_runs(workdirs), [], AXES))


def size_of_png(path):
    """Pixels of a PNG: width, height."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def test_the_report_of_a_run(pages):
    text = Texts(pages[0].read_text(encoding="utf-8")).text()
    for told in (
        "best validation loss 1.5000 nats, at step 30",
        f"perplexity {math.exp(1.5):.4g}",
        "lowest 1.5000",
        "time 1m40s 75% of it training steps",
        "Where the time went. first: 1m40s: step 75%, compilation 5%, evaluation 15%, saving 5%",
        "step 30 · validation loss 1.5000",
        "To be and 30 more",
        "acc norm 0.3125 ± 0.0046",
        "optim.learning_rate 0.001",
        "hardware 2 x NVIDIA H200",
        "versions Python 3.11, jax 0.10.2",
        "commit abc123",
        "command python -m jaxgpt.train",
        "val_loss 1.5000 (step 30)",
    ):
        assert told in text, told
    folder = pages[0].parent
    drawn = {"loss", "learning_rate", "gradient_norm", "throughput", "time"}
    assert {path.name for path in folder.iterdir()} == {"report.html", *(f"{name}.png" for name in drawn)}
    for name in drawn:
        width, height = size_of_png(folder / f"{name}.png")
        assert width > 600
        assert height > 300


def test_runs_beside_one_another(pages, make_run, tmp_path):
    html = pages[1].read_text()
    told = Texts(html)
    text = told.text()
    assert f"key that differs first {LONG_NAME} data.source To be {'x' * 200} … {'x' * 80} optim.learning_rate" in text
    assert "train.steps" not in text[text.index("key that differs") : text.index("not the default")]
    assert {"first, training", "first, validation", "lowest 1.2500"} <= set(told.words)
    assert re.findall('class="number best">([^<]*)', html) == ["1.2500"]
    first = make_run("a")
    # the same last part: named by as much of the path as tells them apart
    other = make_run("a", folder=tmp_path / "elsewhere")
    assert [run.name for run in read_runs([first, other])] == [f"{tmp_path.name}/a", "elsewhere/a"]
    many = [make_run(f"run{i}") for i in range(9)]
    assert "9 runs" in undrawn(*many).text()


def test_a_hostile_text_is_text(make_run):
    name = EVIL.replace("/", "")
    workdir = make_run(name, text=EVIL)
    (workdir / layout.STARTS).write_text(lines([start(hardware=EVIL, ended=EVIL, seconds={EVIL: 1.0, "step": 2.0})]))
    found = {"task": EVIL, "metrics": {EVIL: EVIL}, "stderr": {EVIL: EVIL}, "checkpoint": EVIL}
    (workdir / EVALUATIONS).write_text(lines([found]))
    extra = {"step": 40, f"val_{EVIL}": 1.0}
    (workdir / layout.METRICS).write_text(lines([*rows(), extra]))
    for told in (undrawn(workdir), report(workdir, make_run("_second"))):
        assert not {"script", "img", "iframe", "object", "embed", "base"} & set(told.tags)
        assert told.tags.count("link") == 1
        assert not [name for name in told.attributes if name.startswith("on")]
        assert told.text().count("<script>alert(1)</script>") >= 8
        assert name in told.text()


def test_nothing_of_the_page_comes_from_elsewhere(pages):
    html = pages[1].read_text()
    assert not re.findall(r"""(?:src=|href=|url\()["']?(?!["'#]|data:,)[^\s>)]+""", html)
    assert not re.findall(r"@import|<script|https?://", html)
    assert len(ids := re.findall(r'\bid="([^"]*)"', html)) > 10
    for used in set(re.findall(r'(?:href="|url\()#([^")]*)', html)):
        assert ids.count(used) == 1, used  # or one drawing would borrow from another that is not shown


def test_what_is_missing_is_left_out(make_run):
    workdir = make_run()
    for path in workdir.iterdir():
        if path.name != layout.METRICS:
            path.unlink()
    (workdir / layout.SAMPLES).write_text("one <b>\n\n---\n\ntwo\n")
    (workdir / layout.METRICS).write_text(lines([{"step": 1, "val_loss": 2.0}]))
    told = report(workdir)
    assert "best validation loss 2.0000" in told.text()
    assert "at the end one <b> two" in told.text()
    for heading in ("Configuration", "Provenance", "Where the time went", "Throughput", "Charts over", "None", "nan"):
        assert heading not in told.text()


def test_a_last_line_cut_short_is_left_out(make_run):
    workdir = make_run()
    for name in (layout.METRICS, layout.STARTS, layout.SAMPLES_LOG, EVALUATIONS):
        with open(workdir / name, "a") as f:
            f.write('{"step": 41, "val_loss": 0.')
    assert "best validation loss 1.5000" in undrawn(workdir).text()


@pytest.mark.parametrize("name", [layout.METRICS, layout.STARTS, layout.SAMPLES_LOG, EVALUATIONS])
@pytest.mark.parametrize("line", [b"nonsense", b"[1]", b'{"seconds": 1}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_line_is_one_sentence(make_run, name, line):
    workdir = make_run()
    path = workdir / name
    path.write_bytes(line + b"\n" + path.read_bytes())
    with pytest.raises(UserError, match=re.escape(str(path))):
        write_report([workdir], workdir / layout.REPORT)
    assert not (workdir / layout.REPORT).exists()


STRANGE_STARTS = ({"step": -1}, {"step": "1"}, {"step": None}, {"step": 1e300}, {"step": float("nan")}, [1], None)


@pytest.mark.parametrize("seconds", STRANGE_STARTS)
def test_seconds_that_are_none(make_run, seconds):
    workdir = make_run()
    (workdir / layout.STARTS).write_text(lines([start(seconds=seconds), start()]))
    with pytest.raises(UserError, match=r"starts.jsonl:1 is not a start of a run"):
        read_runs([workdir])


def test_strange_values_are_not_drawn(make_run):
    workdir = make_run()
    strange = [None, "1.0", True, 10**400, 1e300, -1e300, float("nan"), float("inf"), [], {}]
    keys = ["tokens", "train_loss", "val_loss", "lr", "grad_norm", "tokens_per_second"]
    found = [{"step": 50 + i, **dict.fromkeys(keys, value)} for i, value in enumerate(strange)]
    found += [{"step": 10**30, "val_loss": 0.1}, {"step": -5, "val_loss": 0.1}]
    (workdir / layout.METRICS).write_text(lines([*rows(), *found]))
    told = report(workdir)
    assert "best validation loss 1.5000" in told.text()
    assert "not finite, not applied" in told.words
    [run] = read_runs([workdir])
    assert run.metrics.nonfinite_steps.tolist() == [50, 56, 57]  # null, nan and infinity
    (workdir / layout.METRICS).write_text(lines(found[:1]))
    assert "not applied 1 logged steps" in undrawn(workdir).text()
    (workdir / layout.METRICS).write_text(lines([{"step": 1, "val_loss": "x"}]))
    with pytest.raises(UserError, match="holds no number yet"):
        read_runs([workdir])


def test_a_run_that_begins_with_nothing_finite_and_one_without_speed(make_run):
    first, second = make_run("a"), make_run("b")
    (first / layout.METRICS).write_text(lines([{"step": 1, "train_loss": None}, {"step": 2, "lr": 0.0}]))
    (second / layout.METRICS).write_text(lines([{k: r[k] for k in r if k != "tokens_per_second"} for r in rows()]))
    assert "a: 1 steps not finite" in report(first, second).text()


def test_time_is_that_of_training_steps():
    metrics = collect(rows())
    assert metrics.places("time", np.array([0.0, 10, 40])) == pytest.approx([0, 20, 80])  # 100 tokens at 50 a second
    assert metrics.places("tokens", np.array([5.0])) == pytest.approx([500])
    slower = collect([{"step": s, "tokens": s * 100, "tokens_per_second": 50 if s <= 5 else 10} for s in (5, 10)])
    assert slower.places("time", np.array([10.0])) == pytest.approx([10 + 50])


def test_curves_smoothed_and_thinned():
    steps = np.arange(100_000.0)
    values = np.sin(steps / 5000) + 10
    values[54321] = 99
    small = thinned(Curve(steps, values))
    assert len(small) <= 600
    assert small.values.max() == 99
    assert small.steps[small.values.argmax()] == 54321
    assert (np.diff(small.steps) > 0).all()
    line = Curve(steps, 3 * steps + 1)
    mean = smoothed(line).values
    assert mean[:90_000] == pytest.approx(line.values[:90_000])  # of a straight line, the mean is on it
    assert mean[-1] == pytest.approx(line.values[-1251:].mean())
    unordered = collect([{"step": s, "lr": v} for s, v in ((3, 1.0), (1, 2.0), (3, 5.0))]).curves["lr"]
    assert unordered.steps.tolist() == [1, 3]
    assert unordered.values.tolist() == [2, 5]


def test_numbers_as_people_write_them():
    told = [count(n) for n in (0, 0.0003, 1.5, 250, 9999, 12_500, 1e6, 2.5e9, 3e12, -2e6)]
    assert told == ["0", "0.0003", "1.5", "250", "9999", "12.5k", "1M", "2.5B", "3T", "-2M"]


def test_a_long_run_stays_small_and_quick(make_run):
    workdir = make_run()
    rng = np.random.default_rng(0)
    noise = rng.normal(size=200_000).cumsum() / 100
    with open(workdir / layout.METRICS, "w") as f:
        for i, x in enumerate(noise.tolist(), 1):
            f.write(
                f'{{"step": {i}, "tokens": {i * 9}, "train_loss": {abs(x) + 1}, "grad_norm": {x * x}, "lr": 0.1,'
                ' "tokens_per_second": 5.5}\n'
            )
    samples = ({"step": i, "prompt": "", "texts": ["word " * 2000] * 8} for i in range(300))
    (workdir / layout.SAMPLES_LOG).write_text(lines(samples))
    began = time.process_time()
    path = write_report([workdir], workdir / layout.REPORT)
    assert time.process_time() - began < 30  # of which it takes 5
    assert path.stat().st_size < 700_000
    assert "12 of 300 evaluations are shown" in path.read_text()


def command(*arguments, cwd):
    """How the command ends: its status, what it says, and its errors."""
    known = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "jaxgpt.report", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=known)
    return done.returncode, done.stdout, done.stderr


def test_the_command(make_run):
    first, second = make_run("a"), make_run("b")
    assert command(first, second, "--out=both", cwd=first) == (0, "wrote both/report.html\n", "")
    assert (first / "both" / "loss.png").is_file()
    for arguments, told in (
        ([], "name at least one workdir"),
        (["x", "--outt=x"], "unknown flag --outt; the nearest is --out"),
    ):
        status, _, errors = command(*arguments, cwd=first)
        assert status == 1
        assert errors.startswith(f"error: {told}")
        assert len(errors.splitlines()) == 1


def test_what_is_no_run_is_refused(make_run):
    first = make_run("a")
    file, empty = first / layout.METRICS, first / "empty"
    empty.mkdir()
    for workdirs, out, told in (
        ([first / "nowhere"], first / "out", "nowhere does not exist: name a workdir"),
        ([file], first / "out", f"{file} is not a directory: name a workdir"),
        ([empty], first / "out", f"{empty} holds no metrics.jsonl"),
        ([first, first], first / "out", f"{first} is named twice"),
        ([first], file, f"{file} is not a directory: name one for the report"),
    ):
        with pytest.raises(UserError, match=re.escape(told)):
            write_report(workdirs, out)
    assert not (first / "out").exists()


def test_the_command_needs_neither_framework():
    code = (
        "import sys, runpy; sys.argv = ['x', '--help']\ntry: runpy.run_module('jaxgpt.report', run_name='__main__')\n"
    )
    code += "except SystemExit: import scratchgpt.reporting.report\n"
    code += "print([m for m in ('jax', 'torch', 'flax', 'pandas', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_loss_png_is_the_same_drawing(make_run, tmp_path):
    workdir = make_run()
    plot_loss(read_metrics(workdir / layout.METRICS), tmp_path / "loss.png", "first")
    assert size_of_png(tmp_path / "loss.png")[0] > 1000
    plot_loss([], tmp_path / "none.png", "_$nothing")
    assert size_of_png(tmp_path / "none.png")[0] > 1000


# --- in a browser ----------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    if not (CHROMIUM and DRIVER):
        pytest.skip("Chromium and its chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for option in [*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"]:
        options.add_argument(option)
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


SHOWN = """return [...document.querySelectorAll('figure svg')].filter(e => e.getBoundingClientRect().width > 0)
  .map(e => [...e.querySelectorAll('text')].map(t => t.textContent).filter(t => /step|tokens$|time/.test(t))[0])"""
COLORS = """const line = [...document.querySelectorAll('figure svg path')].find(e =>
  /--c0/.test(e.getAttribute('style')) && e.getBoundingClientRect().width > 0);
return [document.body, document.querySelector('figure svg text'), line].map(
  (e, i) => getComputedStyle(e)[['backgroundColor', 'fill', 'stroke'][i]])"""


def look_like(driver, scheme, width):
    """Prefer a colour scheme and have a screen of this width."""
    command = driver.execute_cdp_cmd
    command("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    command("Emulation.setDeviceMetricsOverride", size)


def brightness(color):
    return sum(map(float, re.findall(r"[\d.]+", color)[:3])) / 3


@pytest.mark.parametrize("runs", [1, 2])
def test_in_a_browser(driver, pages, runs):
    path = pages[runs - 1]
    driver.get_log("performance"), driver.get_log("browser")
    driver.get(path.as_uri())
    lines_of = {}
    for scheme in ("light", "dark"):
        for width in (1200, 360):
            look_like(driver, scheme, width)
            assert driver.execute_script("return document.documentElement.scrollWidth") <= width
            for opened in driver.find_elements("css selector", "details:not([open])"):
                driver.execute_script("arguments[0].open = true", opened)
            assert driver.execute_script("return document.documentElement.scrollWidth") <= width
            paper, text, lines_of[scheme] = driver.execute_script(COLORS)
            assert (brightness(paper) > 200) == (scheme == "light")
            assert (brightness(text) < 80) == (scheme == "light")  # and so it is to be read on the page
    assert lines_of["light"] != lines_of["dark"]
    for width in (360, 1200):
        look_like(driver, "light", width)
        for axis, label in (
            ("steps", "step"),
            ("tokens", "tokens"),
            ("time", "time spent on training steps (seconds)"),
        ):
            driver.execute_script("arguments[0].click()", driver.find_element("id", f"axis-{axis}"))
            shown = driver.execute_script(SHOWN)
            assert len(shown) == 5
            assert shown[:4].count(label) == 4
    images = driver.find_elements("css selector", "figure[role=img]")
    assert all(len(image.get_attribute("aria-label")) > 30 for image in images)
    assert driver.get_log("browser") == []  # no error, nothing refused
    asked = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"}
    assert {url for url in urls if not url.startswith(("data:", "chrome"))} == {path.as_uri()}
