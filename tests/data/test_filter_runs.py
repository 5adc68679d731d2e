"""Runs of the filter command: what they write, that counts add up, kills, workers, and mistakes of the user."""

import collections
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import zstandard
from filter_texts import GOOD, HELLASWAG, ROOT, varied

pytest.importorskip("datatrove")
pytest.importorskip("spacy")

from data_prep import filter as command
from data_prep.filter import Request, filter_text
from data_prep.filtering.pipeline import Slurm
from data_prep.filtering.recipe import Recipe
from data_prep.filtering.rules import LawRules
from data_prep.sources import documents
from scratchgpt.errors import UserError

# --- whole runs ------------------------------------------------------------------------------------------------------

FILTERS = "gopher_quality,exact_dedup,minhash,decontaminate,pii"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A source in three formats with everything that a run should find in it, and an evaluation set."""
    folder = tmp_path_factory.mktemp("corpus") / "source"
    folder.mkdir()
    near = varied(1).replace("number 1 ", "number 1 also ", 1)
    leak = varied(2) + "\n" + HELLASWAG["ctx"] + " " + HELLASWAG["endings"][0]
    mail = varied(3) + "\nAsk <script>alert(1)</script> & write to jane.doe@corp.com today."
    texts = [varied(1), varied(0), near, varied(0), "<b>short</b> & mail jane.doe@corp.com", leak, mail, ""]
    texts += [varied(i) for i in range(4, 30)] + ["broken \ud800 surrogate. " + varied(30), varied(29)]
    with open(folder / "a.jsonl", "w") as file:
        file.writelines(json.dumps({"n": i, "text": text, "score": i}) + "\n" for i, text in enumerate(texts))
    with gzip.open(folder / "b.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": varied(i)}) + "\n" for i in (40, 41, 5))
    (folder / "c.txt.zst").write_bytes(zstandard.compress(varied(50).encode()))
    evaluation = folder.parent / "evaluation.jsonl"
    evaluation.write_text(json.dumps(HELLASWAG) + "\n")
    return folder, evaluation, len(texts) - 1 + 3 + 1


def request_for(corpus, out, **options):
    source, evaluation, _ = corpus
    recipe = Recipe(tuple(FILTERS.split(",")), decontaminate_against=(str(evaluation),))
    return Request(**{"source": str(source), "out": out, "recipe": recipe, "shard_mb": 0.003, **options})


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="session")
def result(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("result") / "out"
    filter_text(request_for(corpus, out), log=lambda line: None)
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    return out


def test_a_run_drops_what_it_should_and_prepare_can_read_the_rest(corpus, result):
    record = json.loads((result / "report.json").read_text())
    drops = {f["name"]: {r["reason"]: r["documents"] for r in f["reasons"]} for f in record["filters"]}
    assert drops == {
        "gopher_quality": {"gopher short doc": 1},
        "exact_dedup": {"duplicate": 3},
        "minhash": {"near duplicate": 1},
        "decontaminate": {"contains evaluation.jsonl (0)": 1},
        "pii": {},
    }
    texts = list(documents("out", str(result))[0])
    assert len(texts) == record["documents"]["kept"] == corpus[2] - 6
    assert collections.Counter(texts).most_common(1)[0][1] == 1
    assert "jane.doe" not in "".join(texts)
    rows = [json.loads(line) for p in result.glob("*.gz") for line in gzip.decompress(p.read_bytes()).splitlines()]
    assert next(row for row in rows if "broken ? surrogate" in row["text"])["n"] == 34
    assert {row["id"].split(":")[0] for row in rows} == {"a.jsonl", "b.jsonl.gz", "c.txt.zst"}


def test_counts_add_up(corpus, result):
    record = json.loads((result / "report.json").read_text())
    documents_left, tokens_left = record["documents"]["in"], record["tokens"]["in"]
    assert documents_left == corpus[2]
    for f in record["filters"]:
        assert (f["documents"]["in"], f["tokens"]["in"]) == (documents_left, tokens_left)
        documents_left -= sum(r["documents"] for r in f["reasons"])
        tokens_left -= sum(r["tokens"] for r in f["reasons"]) + f["tokens"]["edited"]
        assert (f["documents"]["out"], f["tokens"]["out"]) == (documents_left, tokens_left)
    assert (record["documents"]["kept"], record["tokens"]["kept"]) == (documents_left, tokens_left)
    assert tokens_left == sum(len(text.split()) for text in documents("out", str(result))[0])


def test_the_report_shows_samples_without_markup_or_addresses(result):
    page, markdown = (result / "report.html").read_text(), (result / "report.md").read_text()
    assert "<script" not in page
    assert "&lt;b&gt;short&lt;/b&gt; &amp; mail" in page
    assert "kept instead" in page
    assert "jane.doe" not in page + markdown
    assert "http" not in page  # no outside resource

    class Balanced(HTMLParser):
        def __init__(self):
            super().__init__()
            self.stack = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "!doctype"):
                self.stack.append(tag)

        def handle_endtag(self, tag):
            assert self.stack.pop() == tag

    parser = Balanced()
    parser.feed(page)
    assert parser.stack == []


def test_two_workers_and_a_glob_give_the_same_bytes(corpus, result, tmp_path):
    request = request_for(corpus, tmp_path / "out", source=str(corpus[0]))
    filter_text(request, workers=2, log=lambda line: None)
    assert contents(tmp_path / "out") == contents(result)


def start(corpus, out, *more):
    source, evaluation, _ = corpus
    arguments = [f"--source={source}", f"--out={out}", f"--filters={FILTERS}", "--shard_mb=0.003"]
    arguments += [f"--decontaminate_against={evaluation}", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "data_prep.filter", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kill_once(process, condition):
    """Kill the process and all it started as soon as ``condition()`` holds; whether it still ran then."""
    while process.poll() is None and not condition():
        time.sleep(0.002)
    running = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL) if running else None
    process.communicate()
    return running


def test_a_killed_run_is_taken_up_where_it_was(corpus, result, tmp_path):
    out = tmp_path / "out"
    work = tmp_path / ".out.work"
    assert kill_once(start(corpus, out), lambda: (work / "logs/pass0/completions/00002").exists())
    assert not out.exists()
    done = (work / "logs/pass0/completions/00000").stat().st_mtime_ns
    assert kill_once(start(corpus, out), lambda: (work / "logs/minhash2/completions/00003").exists())
    assert not out.exists()
    assert (work / "logs/pass0/completions/00000").stat().st_mtime_ns == done  # not run again
    lines = []
    filter_text(request_for(corpus, out), log=lines.append)
    assert lines[0].startswith("resuming")
    assert contents(out) == contents(result)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_another_request_starts_anew(corpus, tmp_path, monkeypatch):
    out, lines = tmp_path / "out", []
    monkeypatch.setattr(command.Publish, "__call__", lambda self: (_ for _ in ()).throw(RuntimeError("killed")))
    recipe = Recipe(("gopher_quality",))
    for samples in (5, 4, 4):
        request = Request(str(corpus[0]), out, recipe, samples=samples)
        with pytest.raises(RuntimeError):
            filter_text(request, log=lines.append)
    assert [line.split()[0] for line in lines if "work" in line] == ["the", "resuming"]
    assert not out.exists()


# --- mistakes --------------------------------------------------------------------------------------------------------


def refused(match, tmp_path, source, out="out", filters=("gopher_quality",), **options):
    recipe = options.pop("recipe", Recipe(filters))
    before = {p.name for p in tmp_path.iterdir()}
    with pytest.raises(UserError, match=match):
        filter_text(Request(str(source), tmp_path / out, recipe, **options), log=lambda line: None)
    assert {p.name for p in tmp_path.iterdir()} == before


def test_bad_input_is_refused_in_a_sentence(tmp_path, monkeypatch):
    good = tmp_path / "good.jsonl"
    good.write_text(json.dumps({"body": GOOD}) + "\n")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps({"text": GOOD}) + "\n{no json\n")
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(json.dumps({"text": varied(0) * 50}).encode())[:-20])
    (tmp_path / "taken").mkdir()
    refused("no column 'text' but 'body'", tmp_path, good)
    refused("no text", tmp_path, empty)
    refused(r"broken.jsonl:2 is not valid JSON", tmp_path, broken)
    refused("is damaged", tmp_path, cut)
    refused("there is no file", tmp_path, tmp_path / "missing.jsonl")
    refused("exists", tmp_path, good, out="taken")
    refused("must end with", tmp_path, Path(__file__))
    refused("all 1 documents were dropped .law 1.", tmp_path, good, text_column="body", filters=("c4", "law"),
            recipe=Recipe(("c4", "law"), law=LawRules(min_characters=10**6)))  # fmt: skip
    refused("--lid_model=FILE", tmp_path, good, recipe=Recipe(("language",), lid_model="missing.ftz"))
    refused("not a fastText model", tmp_path, good, recipe=Recipe(("language",), lid_model=str(good)))
    refused("no file 'eval.txt'", tmp_path, good, recipe=Recipe(("pii",), decontaminate_against=("eval.txt",)))
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    refused(r"pip install .*\.\[filter\]", tmp_path, good)


def test_the_command_ends_with_one_sentence(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text("[]\n")
    arguments = [sys.executable, "-m", "data_prep.filter", f"--source={bad}", f"--out={tmp_path / 'out'}"]
    done = subprocess.run([*arguments, "--filters=pii", "--workers=2"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "must be a JSON object" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["bad.jsonl"]


def test_slurm_needs_a_partition_and_sbatch(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    request = Request(str(corpus[0]), tmp_path / "out", Recipe(("pii",)))
    for slurm, match in ((None, "--slurm_partition"), (Slurm("cpu"), "sbatch")):
        with pytest.raises(UserError, match=match):
            filter_text(request, "slurm", slurm=slurm, log=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_help_is_quick_and_needs_no_datatrove():
    code = "import sys; sys.modules['datatrove'] = sys.modules['spacy'] = None; import runpy;"
    code += "sys.argv = ['filter', '--help']; runpy.run_module('data_prep.filter', run_name='__main__')"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--decontaminate_against" in done.stdout
    assert time.monotonic() - began < 5
