"""Filter text with datatrove, deduplicate it and report what each filter dropped.

    source: .txt, .jsonl (also .gz, .zst), .parquet, hub
      │ pieces, one a task
      ▼
    filters up to a deduplication ──► shards ──► signatures ──► duplicates
                                        └──► filters from it on ◄──┘     (again for the next deduplication)
                                               ▼
                       OUT/00000.jsonl.gz …  report.md  report.html  report.json

The filters run in the order of --filters: language, gopher_repetition, gopher_quality, c4, fineweb_quality, law,
classifier, exact_dedup, minhash, decontaminate, pii. The default is all but law, and classifier and decontaminate only
together with --classifier and --decontaminate_against. The texts must be English.

OUT appears complete at the end. Until then the work lies in .OUT.work beside it, and the same command resumes there.
The output does not depend on --workers or --executor. With --executor=slurm the command submits the jobs and returns.

Example: python -m data_prep.filter --source=posts.jsonl --out=filtered
         python -m data_prep.prepare --dataset=filtered --source=filtered --tokenizer=gpt2
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from absl import flags

from data_prep.filtering.counts import TokenCounter
from data_prep.filtering.pipeline import Slurm, run_here, stages, submit
from data_prep.filtering.publish import NothingLeft, Publish
from data_prep.filtering.recipe import DEFAULT, Recipe, find_lid_model, parse_filters, with_classifier
from data_prep.filtering.rows import copy_source, pieces
from data_prep.filtering.rules import LawRules
from data_prep.readers import EXTENSIONS
from data_prep.sources import documents, local_files
from scratchgpt import cli
from scratchgpt.errors import UserError
from scratchgpt.files import disk_errors, read_json, write_json, write_text

_NEEDED = ("datatrove", "spacy", "fasttext", "xxhash", "orjson")


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command line asks for, but for the machines."""

    source: str
    out: Path
    recipe: Recipe
    dataset: str = ""
    text_column: str = "text"
    tokens: str = "words"
    samples: int = 5
    shard_mb: float = 16.0


def filter_text(
    request: Request,
    executor: str = "local",
    workers: int = 1,
    slurm: Slurm | None = None,
    log: Callable[[str], None] = print,
) -> None:
    """Filter ``request.source`` into the directory ``request.out``, which appears complete or not at all.

    Raises UserError: datatrove is missing, the source cannot be read, the output exists, no document is left.
    """
    if any(importlib.util.find_spec(name) is None for name in _NEEDED):
        raise UserError('filtering needs datatrove: pip install -c constraints.txt -e ".[filter]"')
    out = Path(os.path.abspath(request.out.expanduser()))
    if out.exists() or out.is_symlink():
        raise UserError(f"{request.out} exists: choose another directory with --out=DIR, or delete it")
    files = _source_files(request)
    recipe = _checked_recipe(request.recipe)
    TokenCounter(request.tokens)("")
    work = out.with_name(f".{out.name}.work")
    with disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    with _alone(work, out):
        _start_or_resume(work, _fingerprint(request, recipe, files), log)
        try:
            if not files:
                files = copy_source(request.dataset, request.source, request.text_column, work / "source")
            column = request.text_column if request.source and local_files(request.source) else "text"
            plan = pieces(files, max(1, round(request.shard_mb * 1e6)))
            write_text(work / "pieces.jsonl", "".join(json.dumps(dataclasses.asdict(piece)) + "\n" for piece in plan))
            chain = stages(recipe, len(plan), column, request.tokens, request.samples, work)
            facts = _facts(request, recipe)
            publish = Publish(recipe.filters, work, out, request.samples, request.tokens, facts)
            if executor == "slurm":
                jobs = submit(chain, publish, work, workers, slurm or Slurm())
                log(
                    f"submitted {jobs} stages: {out} appears when the last job has ended; their logs are in {work}/logs"
                )
                return
            run_here(chain, publish, work, executor, workers, log)
        except UserError as e:
            if isinstance(e, NothingLeft) or not any(work.glob("logs/*/completions/*")):
                shutil.rmtree(work)  # there is nothing that a second try could build on
            raise
        shutil.rmtree(work)
    record = read_json(out / "report.json")
    log(
        f"{out}: {record['documents']['kept']:,} of {record['documents']['in']:,} documents and"
        f" {record['tokens']['kept']:,} of {record['tokens']['in']:,} tokens ({record['tokens_are']}) left, in"
        f" {record['shards']} files; what was dropped and why: {out / 'report.html'}"
    )


def _source_files(request: Request) -> list[tuple[str, Path]]:
    """The local files of the source; none if it is a data set to be fetched."""
    if not request.source and not request.dataset:
        raise UserError("there is no text to filter: name it with --source=FILE, or --dataset=shakespeare")
    files = local_files(request.source) if request.source and not request.source.endswith(".tar.gz") else []
    for _, file in files:
        if not file.name.endswith(EXTENSIONS):
            raise UserError(f"{file}: the name must end with one of {', '.join(EXTENSIONS)} to be read as text")
        if not os.access(file, os.R_OK):
            raise UserError(f"cannot read {file}: permission denied")
    if not files:
        documents(request.dataset or "text", request.source, request.text_column)  # says what is wrong with it
    return files


def _checked_recipe(recipe: Recipe) -> Recipe:
    """``recipe`` with the models found. Raises UserError for a file that is missing or cannot be used."""
    recipe = with_classifier(recipe)
    for name in recipe.decontaminate_against:
        if not Path(name).expanduser().is_file():
            raise UserError(f"--decontaminate_against: there is no file {name!r}")
    against = tuple(str(Path(name).expanduser().resolve()) for name in recipe.decontaminate_against)
    model = find_lid_model(recipe.lid_model) if "language" in recipe.filters else ""
    return dataclasses.replace(recipe, lid_model=model, decontaminate_against=against)


def _fingerprint(request: Request, recipe: Recipe, files: list[tuple[str, Path]]) -> dict[str, Any]:
    """All that the output depends on: an unfinished run is taken up only by the same request."""

    def state(path: str | Path) -> list[Any]:
        return [str(path), os.stat(path).st_size, os.stat(path).st_mtime_ns]

    used = [recipe.lid_model] if recipe.lid_model else []
    asked = dataclasses.asdict(request) | {"out": str(request.out), "recipe": dataclasses.asdict(recipe)}
    asked["files"] = [state(path) for path in [*(file for _, file in files), *used, *recipe.decontaminate_against]]
    libraries = ("datatrove", "spacy", *(["scikit-learn"] if recipe.classifier_sha256 else []))
    asked["versions"] = [importlib.metadata.version(name) for name in libraries]
    return json.loads(json.dumps(asked))


@contextmanager
def _alone(work: Path, out: Path) -> Iterator[None]:
    """Refuse to work in ``work`` while another process does; its lock ends with it, however it ends.

    A lock by lockf, for one by flock would live on in the processes that it has forked.
    """
    with open(work / "lock", "wb") as file:
        with suppress(ImportError):  # Windows: nothing keeps two processes apart
            import fcntl

            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as e:
                raise UserError(f"another process is filtering into {out}: wait for it, or stop it") from e
            except OSError:  # a file system without locks
                pass
        yield


def _start_or_resume(work: Path, asked: dict[str, Any], log: Callable[[str], None]) -> None:
    request = work / "request.json"
    if request.exists():
        if read_json(request) == asked:
            log(f"resuming what an earlier run left in {work}")
            return
        log(f"the request or the source has changed since the run that left {work}: starting anew")
    for stale in work.iterdir():
        if stale.is_dir():
            shutil.rmtree(stale)
        elif stale.name != "lock":
            stale.unlink()
    write_json(request, asked)


def _facts(request: Request, recipe: Recipe) -> dict[str, str]:
    """What the report says about the run; names without folders, for a report is passed on."""
    facts = {"source": Path(request.source).name or request.dataset, "filters": ", ".join(recipe.filters)}
    if "language" in recipe.filters:
        facts["language"] = f"English with a score above {recipe.language_threshold}, {Path(recipe.lid_model).name}"
    if "law" in recipe.filters:
        law = recipe.law
        lengths = f"{law.min_characters:,} to {law.max_characters:,} characters"
        facts["law"] = f"{law.score_column} of at least {law.min_score}, {lengths}"
    if "classifier" in recipe.filters:
        model = f"{Path(recipe.classifier).name}, SHA-256 {recipe.classifier_sha256[:16]}…"
        facts["classifier"] = f"score of at least {recipe.classifier_threshold}, {model}"
    if recipe.decontaminate_against:
        facts["evaluation texts"] = ", ".join(Path(name).name for name in recipe.decontaminate_against)
    facts["datatrove"] = importlib.metadata.version("datatrove")
    return facts


def _define_flags() -> dict[str, flags.FlagHolder]:
    law = LawRules()
    string, integer, floating = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float
    return {
        "source": string("source", "", "file, folder, glob or Hugging Face data set id"),
        "dataset": string("dataset", "", "a named data set of data_prep.prepare; not needed with --source"),
        "text_column": string("text_column", "text", "column that holds the text"),
        "out": string("out", "", "directory to write; it must not exist"),
        "filters": string("filters", "", f"names in the order to run them; empty: {','.join(DEFAULT)}"),
        "lid_model": string("lid_model", "", "fastText model of the language filter; empty: lid.176.ftz, downloaded"),
        "language_threshold": floating("language_threshold", 0.65, "least score for English", 0, 1),
        "decontaminate_against": string("decontaminate_against", "", "files of evaluation texts, separated by commas"),
        "classifier": string("classifier", "", "directory that data_prep.train_classifier wrote"),
        "classifier_threshold": floating("classifier_threshold", 0.5, "least score that passes, 0 to 1"),
        "score_column": string("score_column", law.score_column, "law: column that holds the score of a post"),
        "min_score": integer("min_score", law.min_score, "law: least score"),
        "min_characters": integer("min_characters", law.min_characters, "law: least length once cleaned", 0),
        "max_characters": integer("max_characters", law.max_characters, "law: greatest length once cleaned", 1),
        "tokenizer": string("tokenizer", "words", "what the report counts: words, gpt2 or a tokenizer's directory"),
        "samples": integer("samples", 5, "samples in the report for each filter", 0),
        "shard_mb": floating("shard_mb", 16.0, "size of the pieces of a .jsonl file; each is a task", 1e-6),
        "executor": flags.DEFINE_enum("executor", "local", ["local", "slurm", "ray"], "what runs the tasks"),
        "workers": integer("workers", 1, "tasks that run at a time", 1),
        "slurm_partition": string("slurm_partition", "", "Slurm: partition"),
        "slurm_time": string("slurm_time", "24:00:00", "Slurm: time limit of a task"),
        "slurm_memory_gb": integer("slurm_memory_gb", 4, "Slurm: memory of a task", 1),
        "slurm_env_command": string("slurm_env_command", "", "Slurm: command that activates the environment"),
    }


def main(values: dict[str, Any]) -> None:
    """The command, from the values of its flags. Raises UserError."""
    v = values
    if not v["out"]:
        raise UserError("--out is empty: name the directory to write, as in --out=filtered")
    against = tuple(name for name in v["decontaminate_against"].split(",") if name)
    law = LawRules(v["score_column"], v["min_score"], v["min_characters"], v["max_characters"])
    filters = parse_filters(v["filters"], against, v["classifier"])
    model, threshold = v["classifier"], v["classifier_threshold"]
    recipe = Recipe(filters, v["lid_model"], v["language_threshold"], law, against, model, threshold)
    request = Request(
        v["source"], Path(v["out"]), recipe, v["dataset"], v["text_column"], v["tokenizer"], v["samples"], v["shard_mb"]
    )
    # an exit unwinds, so that datatrove ends the processes it has started
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    slurm = Slurm(v["slurm_partition"], v["slurm_time"], v["slurm_memory_gb"], v["slurm_env_command"])
    filter_text(request, v["executor"], v["workers"], slurm)


if __name__ == "__main__":
    _FLAGS = _define_flags()
    cli.run(lambda: main({name: flag.value for name, flag in _FLAGS.items()}), summary=__doc__)
