"""Turn text into token shards that training reads.

The data set is shakespeare, tinyshakespeare, wikitext103, wikitext2, fineweb, fineweb_edu, openwebtext,
law_stack_exchange or tinystories, or any name together with --source: a file, folder or glob of .txt or .jsonl files
(also .gz or .zst) or .parquet files, or a Hugging Face data set id (ID or ID:CONFIGURATION, streamed).

A mixture is written NAME:WEIGHT,NAME:WEIGHT. The weights are shares of the tokens; whole documents are taken in turn,
and the mixture ends where the part whose turn it is has no more. --source then names one source for each, in the same
order and separated by commas; an empty one is the data set's own.

Fewer than 100 documents are split into training and validation by position, at 1 - val_fraction of their characters;
from 100 on, each document goes whole to one side by a hash of its index. The end-of-text token follows each document,
unless there is but one. With --max_tokens, the training and the validation split take that many tokens together.

A run that was killed is continued by the same command. The shards depend neither on that nor on --workers, and
`python -m data_prep.inspect` tells which document each token comes from.

Example: python -m data_prep.prepare --dataset=shakespeare --tokenizer=char
         python -m data_prep.prepare --dataset=fineweb:0.8,law_stack_exchange:0.2 --tokenizer=gpt2 --max_tokens=50000000
"""

import contextlib
import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from absl import flags

from configs.schema import Config, DataConfig, validate
from data_prep.build import Plan, build, collect_characters
from data_prep.estimate import announce, expected
from data_prep.mixture import MixturePart, open_parts, parse
from data_prep.restart import Work, work_path
from data_prep.shards import FORMAT_VERSION, MANIFEST, SHARD_TOKENS, Unusable, check_sizes, dtype_for, load_manifest
from data_prep.sources import local_files
from data_prep.split import Rule, rule_for
from data_prep.tokenizers import JSON_NAME, Tokenizer, gpt2_tokenizer, load_tokenizer
from scratchgpt import cli
from scratchgpt.errors import UserError
from scratchgpt.files import disk_errors, sha256_file

# What shards depend on; `dir` is merely where they lie.
_REQUEST = ("dataset", "source", "text_column", "tokenizer", "val_fraction", "max_tokens")


def directory_of(data: DataConfig) -> Path:
    """Where the shards of ``data`` lie: data.dir, else data/<dataset>-<tokenizer> under the current directory.

    A source, and a tokenizer that is a directory, add a short hash of their names.
    """
    if data.dir:
        return Path(data.dir).expanduser()
    name = f"{data.dataset}-{data.tokenizer}"
    if data.tokenizer not in ("char", "gpt2"):
        name = f"{data.dataset}-{Path(data.tokenizer).name}-{_short_hash(str(Path(data.tokenizer).expanduser()))}"
    if data.source:
        name += f"-{_short_hash(data.source)}"
    return Path("data") / (re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".") or "unnamed")


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def prepare(
    data: DataConfig, log: Callable[[str], None] = print, workers: int = 0, shard_tokens: int = SHARD_TOKENS
) -> Path:
    """Make sure that the token shards of ``data`` exist; returns their directory.

    Does nothing if they do. Otherwise the directory appears complete at the end, or not at all; a second process that
    prepares the same directory waits for the first and then uses its work, and one that was killed is continued.

    Args:
      workers: threads that encode; 0: one for each core. The shards do not depend on it.
      shard_tokens: tokens in every shard but the last of each split.

    Raises UserError if the directory holds something else, or the text, the tokenizer or the disk fails.
    """
    validate(Config(data=data))
    if not data.dataset:
        raise UserError("--dataset is empty: name a data set, or give your --source a name of your own")
    mixture = parse(data.dataset, data.source, data.text_column)
    directory = directory_of(data)
    if _is_prepared(directory, data, mixture) and not work_path(directory).exists():
        return directory
    with _lock(directory, log):
        if _is_prepared(directory, data, mixture):  # by the process that we waited for, or one killed at the very end
            Work(directory, {}).discard()
            return directory
        log(f"preparing {data.dataset} with the {data.tokenizer} tokenizer in {directory}")
        with disk_errors(directory):
            manifest = _build(directory, data, mixture, log, workers, shard_tokens)
    counts = {name: split["tokens"] for name, split in manifest["splits"].items()}
    log(
        f"{directory}: {counts['train']:,} training and {counts['val']:,} validation tokens,"
        f" vocabulary of {manifest['tokenizer']['size']:,}"
    )
    if "mixture" in manifest:
        shares = ", ".join(f"{n:,} of {name}" for name, n in manifest["mixture"]["tokens"].items())
        ended = manifest["mixture"]["ended_with"]
        log(f"tokens: {shares}" + (f"; it ended where {ended} had no more" if ended else ""))
        wanted = [float(part.weight / sum(p.weight for p in mixture)) for part in mixture]
        total = max(1, sum(manifest["mixture"]["tokens"].values()))
        for part, share in zip(mixture, wanted, strict=True):
            found = manifest["mixture"]["tokens"][part.dataset] / total
            if abs(found - share) > 0.05:
                log(
                    f"{part.dataset} has {found:.0%} of the tokens, not the {share:.0%} asked for: only whole documents"
                    " are taken, and some are long beside the whole (a .txt file is one document)"
                )
    if data.val_fraction and not counts["val"]:
        log(f"no text fell to the validation split: raise val_fraction={data.val_fraction} or use more text")
    return directory


def _build(
    directory: Path,
    data: DataConfig,
    mixture: list[MixturePart],
    log: Callable[[str], None],
    workers: int,
    shard_tokens: int,
) -> dict[str, Any]:
    tokenizer = _fixed_tokenizer(data.tokenizer)
    sources, record = open_parts(mixture)
    facts = {"dataset": data.dataset, "request": _request(data), "source": record}
    identity = {
        **facts,
        "format_version": FORMAT_VERSION,
        "shard_tokens": shard_tokens,
        "tokenizer": tokenizer and tokenizer.sha256,
    }
    plan = Plan(mixture, sources, [], data.val_fraction, data.max_tokens, facts)
    work = Work(directory, identity)
    try:
        try:
            manifest = _start_or_resume(work, directory, plan, tokenizer, log, workers, shard_tokens)
        except Unusable as e:
            log(f"{e} is not as the run before left it: starting again")
            work.discard()
            manifest = _start_or_resume(work, directory, plan, tokenizer, log, workers, shard_tokens)
        work.publish()
    except BaseException:
        if not work.has_tokens():
            work.discard()
        else:
            log("what is finished is kept: the same command continues from there")
        raise
    return manifest


def _start_or_resume(
    work: Work,
    directory: Path,
    plan: Plan,
    tokenizer: Tokenizer | None,
    log: Callable[[str], None],
    workers: int,
    shard_tokens: int,
) -> dict[str, Any]:
    """Write the shards, from the beginning or where the run before was when it last saved its state."""
    state = work.load()
    weights = [part.weight for part in plan.mixture]
    need = expected(plan.sources, weights, (lambda t: len(tokenizer.encode(t))) if tokenizer else len, plan.max_tokens)
    announce(
        need, 4 if tokenizer and dtype_for(tokenizer.size) == "uint32" else 2, directory, work.written_bytes(), log
    )
    if state:
        plan.rules = [Rule(*rule) for rule in state["rules"]]
        tokenizer = tokenizer or load_tokenizer(work.shards)
        shards = [shard for writer in state["writers"].values() for shard in writer["shards"]]
        log(f"continuing a run before this one, which finished {len(shards)} shards")
    else:
        plan.rules = [rule_for(source.blocks(), plan.val_fraction) for source in plan.sources]
        if tokenizer is None:  # two passes: which characters are there, then their ids
            log("collecting the characters of the text")
            tokenizer = collect_characters(plan)
        tokenizer.save(work.shards)
    return build(work, plan, tokenizer, state, log, workers, shard_tokens)


def _fixed_tokenizer(name: str) -> Tokenizer | None:
    """The tokenizer that ``name`` means, or None for "char", which is made from the text."""
    if name == "char":
        return None
    if name == "gpt2":
        return gpt2_tokenizer()
    directory = Path(name).expanduser()
    if not directory.is_dir():
        raise UserError(f"--tokenizer={name} must be char, gpt2 or a directory that holds {JSON_NAME}")
    return load_tokenizer(directory)


def _request(data: DataConfig) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(data).items() if key in _REQUEST}


def _is_prepared(directory: Path, data: DataConfig, mixture: list[MixturePart]) -> bool:
    """Whether ``directory`` holds exactly what ``data`` asks for. Raises UserError if it holds anything else."""
    if not directory.exists():
        return False
    if not directory.is_dir():
        raise UserError(f"{directory} is a file: choose another directory with --out=DIR (in training: data.dir)")
    if not (directory / MANIFEST).exists():
        if any(directory.iterdir()):
            raise UserError(
                f"{directory} holds files but no {MANIFEST}, so it is not ours to fill: choose another directory with"
                " --out=DIR (in training: data.dir), or delete it"
            )
        return False
    manifest = load_manifest(directory)
    wanted, found = _request(data), manifest["request"]
    for key in _REQUEST:
        if found.get(key) != wanted[key]:
            raise UserError(
                f"{directory} was prepared with {key}={found.get(key)!r}, not {wanted[key]!r}: choose another directory"
                " with --out=DIR (in training: data.dir), or delete it"
            )
    check_sizes(directory, manifest)
    if not (directory / JSON_NAME).is_file() or sha256_file(directory / JSON_NAME) != manifest["tokenizer"]["sha256"]:
        raise UserError(f"{directory / JSON_NAME} is missing or damaged: delete the directory and prepare it again")
    _check_unchanged(directory, data, mixture, manifest)
    return True


def _check_unchanged(directory: Path, data: DataConfig, mixture: list[MixturePart], manifest: dict[str, Any]) -> None:
    """Raise UserError if the files that the shards came from have other names or sizes by now; gone ones are fine."""
    record = manifest.get("source")
    records = [p["source"] for p in record["parts"]] if len(mixture) > 1 else [record]
    for part, record in zip(mixture, records, strict=True):
        if part.source and isinstance(record, dict) and record.get("kind") == "files":
            now = {name: path.stat().st_size for name, path in local_files(part.source)}
            if now and now != {f.get("name"): f.get("bytes") for f in record.get("files", [])}:
                raise UserError(
                    f"{part.source} has changed since {directory} was prepared from it: delete that directory"
                )
    tokenizer = Path(data.tokenizer).expanduser() / JSON_NAME
    named = data.tokenizer in ("char", "gpt2")
    if not named and tokenizer.is_file() and sha256_file(tokenizer) != manifest["tokenizer"]["sha256"]:
        raise UserError(f"{tokenizer} has changed since {directory} was prepared with it: delete that directory")


@contextlib.contextmanager
def _lock(directory: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Hold an advisory lock beside ``directory``; it ends with its process, however that ends."""
    path = directory.with_name(f".{directory.name}.lock")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with disk_errors(path):
            file = open(path, "wb")  # noqa: SIM115
        with file:
            _wait_for(file, directory, log)
            if not _is_at(file, path):  # its last holder has removed it meanwhile: a newcomer would lock another file
                continue
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    path.unlink()
            return


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _wait_for(file: IO[bytes], directory: Path, log: Callable[[str], None]) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two processes at once do the work twice, and one of them may fail
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log(f"waiting for another process that prepares {directory}")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        return


def _define_flags() -> dict[str, flags.FlagHolder]:
    d = DataConfig()
    return {
        "dataset": flags.DEFINE_string("dataset", d.dataset, "name of the data set, or NAME:WEIGHT,NAME:WEIGHT"),
        "source": flags.DEFINE_string("source", d.source, "file, folder, glob or Hugging Face data set id"),
        "text_column": flags.DEFINE_string("text_column", d.text_column, "column that holds the text; A+B joins two"),
        "tokenizer": flags.DEFINE_string("tokenizer", d.tokenizer, "char, gpt2 or a directory with tokenizer.json"),
        "dir": flags.DEFINE_string("out", d.dir, "directory to write; empty: data/<dataset>-<tokenizer>"),
        "val_fraction": flags.DEFINE_float("val_fraction", d.val_fraction, "share of the text that validates"),
        "max_tokens": flags.DEFINE_integer("max_tokens", d.max_tokens, "stop after this many tokens; 0: all"),
    }


if __name__ == "__main__":
    _FLAGS = _define_flags()
    _WORKERS = flags.DEFINE_integer("workers", 0, "threads that encode; 0: one for each core", lower_bound=0)
    cli.run(
        lambda: print(prepare(DataConfig(**{k: f.value for k, f in _FLAGS.items()}), workers=_WORKERS.value)),
        summary=__doc__,
    )
