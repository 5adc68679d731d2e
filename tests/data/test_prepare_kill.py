"""``data_prep.prepare`` killed anywhere: the same command continues, and the shards are those of a quiet run."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Runs prepare; a number kills the process with SIGKILL just before that file operation of its own on the output.
CHILD = """
import os, signal, sys
from configs.schema import DataConfig
from data_prep.prepare import prepare

source, out, dataset, tokenizer, max_tokens, kill_at, workers = sys.argv[1:]
count = 0

def hook(event, arguments):
    global count
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.listdir", "os.scandir"):
        if ".partial" in str(arguments[0]) or out in str(arguments[0]):
            count += 1
            if count == int(kill_at):
                os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
data = DataConfig(dataset=dataset, source=source, dir=out, tokenizer=tokenizer, max_tokens=int(max_tokens))
prepare(data, log=lambda line: print(line, flush=True), workers=int(workers), shard_tokens=9_000)
print("operations", count, flush=True)
"""


class Run:
    """The arguments of a preparation, to be run in a process of its own."""

    def __init__(self, source: str, dataset: str = "mine", tokenizer: str = "char", max_tokens: int = 0) -> None:
        self.arguments = (dataset, tokenizer, str(max_tokens))
        self.source = source

    def start(self, out: Path, kill_at: int = 0, workers: int = 2) -> subprocess.Popen:
        """The process."""
        arguments = [self.source, str(out), *self.arguments, str(kill_at), str(workers)]
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, out: Path, workers: int = 2) -> str:
        """What a run that nothing disturbs prints."""
        process = self.start(out, workers=workers)
        printed, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return printed


def contents(directory: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}


def finished_shards(out: Path) -> dict[str, tuple[int, int]]:
    """(inode, time of change) of the files of the shards that the saved state calls finished."""
    partial = out.with_name(f".{out.name}.partial")
    if not (partial / "state.json").is_file():
        return {}
    writers = json.loads((partial / "state.json").read_text())["writers"].values()
    files = [Path(s["file"]) for w in writers for s in w["shards"]]
    names = [n for f in files for n in (f.name, f.with_suffix(".docs").name)]
    paths = [partial / "shards" / name for name in names]
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in paths if p.exists()}


def check_rerun(run: Run, out: Path, quiet: dict[str, str], workers: int) -> int:
    """Run again after a kill; the number of shard files that the second run took over."""
    before = {} if out.exists() else finished_shards(out)
    run.finish(out, workers)
    assert contents(out) == quiet
    after = {name: ((out / name).stat().st_ino, (out / name).stat().st_mtime_ns) for name in before}
    assert after == before, "a finished shard was written again"
    assert [p.name for p in out.parent.iterdir()] == [out.name]
    return len(before)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder of rows.jsonl with 700 documents, few.txt with one long one, and 200 more in other.jsonl."""
    folder = tmp_path_factory.mktemp("texts")
    words = "the of and to in a is that for it as was with be by on not he his but é 日本".split()  # noqa: SIM905
    chance = random.Random(5)

    def text(n):
        return " ".join(chance.choice(words) for _ in range(n))

    rows = [text(chance.randrange(1, 80)) for _ in range(700)]
    rows[300] = text(9000)  # lies in several shards
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (folder / "other.jsonl").write_text("".join(json.dumps({"text": text(60)}) + "\n" for _ in range(200)))
    (folder / "few.txt").write_text(text(200_000))
    return folder


def _runs(texts: Path) -> dict[str, Run]:
    return {
        "documents": Run(f"{texts}/rows.jsonl"),
        "one long text": Run(f"{texts}/few.txt", max_tokens=500_000),
        "mixture": Run(f"{texts}/rows.jsonl,{texts}/other.jsonl", "mine:0.6,other:0.4"),
    }


def _kills(run: Run, root: Path, seed: int, times: int) -> None:
    (root / "quiet").mkdir()
    printed = run.finish(root / "quiet" / "out", workers=1)
    operations = int(printed.split()[-1])
    quiet = contents(root / "quiet" / "out")
    chance, taken_over, killed = random.Random(seed), 0, 0
    print(f"seed {seed}, {operations} operations")
    for number in range(times):
        out = root / f"kill{number}" / "out"
        out.parent.mkdir()
        # every third is killed twice: while it begins, or in the work that it continues
        for _ in range(1 + (number % 3 == 0)):
            kill_at = chance.randrange(operations * 3 // 5 if number % 2 else 1, operations)
            process = run.start(out, kill_at, workers=chance.choice([1, 3]))
            process.communicate(timeout=120)
            print(f"killed before operation {kill_at}: {process.returncode}")
            killed += process.returncode == -signal.SIGKILL
        taken_over += check_rerun(run, out, quiet, workers=chance.choice([1, 3]))
    assert killed >= times
    assert taken_over > 0, "no kill fell after a finished shard"


@pytest.mark.parametrize("name", ["documents", "one long text", "mixture"])
def test_a_kill_at_any_file_operation(name, texts, tmp_path):
    _kills(_runs(texts)[name], tmp_path, seed=20 + len(name), times=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["documents", "one long text", "mixture"])
def test_many_kills_at_any_file_operation(name, texts, tmp_path):
    _kills(_runs(texts)[name], tmp_path, seed=100 + len(name), times=25)


def _kills_from_outside(run: Run, root: Path, seed: int, times: int) -> None:
    """SIGKILL after a random time, which falls into the work because it begins with the first line printed."""
    (root / "quiet").mkdir()
    run.finish(root / "quiet" / "out")
    quiet = contents(root / "quiet" / "out")
    chance, killed = random.Random(seed), 0
    for number in range(times):
        out = root / f"kill{number}" / "out"
        out.parent.mkdir()
        process = run.start(out)
        assert process.stdout is not None
        process.stdout.readline()
        delay = chance.uniform(0.0, 0.25)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate(timeout=120)
        killed += process.returncode == -signal.SIGKILL
        print(f"seed {seed}, after {delay:.3f} s: {process.returncode}")
        check_rerun(run, out, quiet, workers=2)
    assert killed > 0


def test_a_kill_at_any_time(texts, tmp_path):
    _kills_from_outside(_runs(texts)["mixture"], tmp_path, seed=7, times=2)


@pytest.mark.slow
def test_many_kills_at_any_time(texts, tmp_path):
    _kills_from_outside(_runs(texts)["documents"], tmp_path, seed=8, times=30)


def test_a_changed_source_is_not_continued(texts, tmp_path):
    source = tmp_path / "in" / "rows.jsonl"
    source.parent.mkdir()
    source.write_bytes((texts / "rows.jsonl").read_bytes())
    run, out = Run(str(source)), tmp_path / "work" / "out"
    out.parent.mkdir()
    process = run.start(out, kill_at=70)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert finished_shards(out)
    source.write_text(source.read_text().replace("the", "The"))
    printed = run.finish(out)
    assert "continuing" not in printed
    (tmp_path / "quiet").mkdir()
    run.finish(tmp_path / "quiet" / "out")
    assert contents(out) == contents(tmp_path / "quiet" / "out")


def test_a_kill_while_the_manifest_is_written_leaves_nothing_of_it(texts, tmp_path):
    run, out = _runs(texts)["mixture"], tmp_path / "out"
    (tmp_path / "quiet").mkdir()
    operations = int(run.finish(tmp_path / "quiet" / "out").split()[-1])
    shards = tmp_path / ".out.partial" / "shards"
    for kill_at in range(operations - 1, operations - 20, -1):  # from the end, until one falls there
        process = run.start(out, kill_at)
        process.communicate(timeout=120)
        if list(shards.glob(".manifest.json.tmp-*")):
            break
        run.finish(out)
        shutil.rmtree(out)
    else:
        pytest.fail("no kill fell while the manifest was written")
    run.finish(out)
    assert contents(out) == contents(tmp_path / "quiet" / "out")


def test_damaged_leftovers_are_made_anew(texts, tmp_path):
    run, out = _runs(texts)["documents"], tmp_path / "out"
    process = run.start(out, kill_at=70)
    process.communicate(timeout=120)
    shard = next((tmp_path / ".out.partial" / "shards").glob("train_00000.bin"))
    shard.write_bytes(b"")
    assert "starting again" in run.finish(out)
    (tmp_path / "quiet").mkdir()
    run.finish(tmp_path / "quiet" / "out")
    assert contents(out) == contents(tmp_path / "quiet" / "out")
