"""Train a classifier that tells wanted text from other text, and judge it on documents it has not seen.

Either --positive and --negative name example documents of the two kinds (files, folders or globs of .txt, .jsonl,
.jsonl.gz or .parquet files, or Hugging Face data set ids), or --labelled names such files whose --label_column says
which: a row is positive if the label equals --positive_label, or is at least --min_label, or else is true or 1.

Copies of a text count once, before a share of --holdout is set aside by a hash of the text. OUT appears complete:
classifier.safetensors and classifier.json (the model), report.md and scores.png.

Example: python -m data_prep.train_classifier --positive=posts.jsonl --negative=web.parquet --out=classifier
         python -m data_prep.filter --source=pool.jsonl --out=filtered --filters=classifier --classifier=classifier
"""

import importlib.metadata
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from data_prep.classifier import (
    DESCRIPTION,
    INVERSE_REGULARIZATION,
    PICTURE,
    REPORT,
    WEIGHTS,
    Classifier,
    Split,
    check_installed,
    fit,
    measure,
    split,
    telling_ngrams,
)
from data_prep.filtering.rows import pieces, read
from data_prep.sources import documents, local_files
from scratchgpt import cli
from scratchgpt.errors import UserError
from scratchgpt.files import atomic_path, disk_errors, write_text

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_SIDES = (("train", "learned from"), ("held_out", "held out"))


def examples(source: str, flag: str, text_column: str, label: bool, limit: int = 0) -> Iterator[tuple[str, bool]]:
    """(text, label) of the first ``limit`` documents of ``source`` (0: all). Raises UserError that names ``flag``."""
    empty = True
    try:
        for text in itertools.islice(documents(flag, source, text_column)[0], limit or None):
            empty = False
            yield text, label
    except UserError as e:  # it knows of one column, here there may be two
        column = "--positive_column" if flag == "positive" else "--text_column"
        raise UserError(f"--{flag}: {str(e).replace('--text_column', column)}") from e
    if empty:
        raise UserError(f"--{flag}={source} holds no text: every document in it is empty")


def labelled_examples(
    source: str,
    text_column: str,
    label_column: str,
    positive_label: str = "",
    min_label: float | None = None,
    limit: int = 0,
) -> Iterator[tuple[str, bool]]:
    """(text, is positive) of the first ``limit`` rows of ``source``. Raises UserError for a row without a label."""
    files = local_files(source)
    if not files or not all(file.name.endswith((".jsonl", ".jsonl.gz", ".parquet")) for _, file in files):
        raise UserError(
            f"--labelled={source} must be a .jsonl, .jsonl.gz or .parquet file, or a folder or glob of them"
        )
    found = (row for piece in pieces(files, 1 << 60) for row in read(piece, text_column))
    empty = True
    for where, text, columns in itertools.islice(found, limit or None):
        empty = False
        if label_column not in columns:
            others = ", ".join(map(repr, columns)) or "no other"
            raise UserError(f"{where}: there is no column {label_column!r} but {others}: name one with --label_column")
        yield text, _is_positive(columns[label_column], where, label_column, positive_label, min_label)
    if empty:
        raise UserError(f"--labelled={source} holds no text: every document in it is empty")


def _is_positive(value: Any, where: str, column: str, positive_label: str, min_label: float | None) -> bool:
    if positive_label:
        return str(value) == positive_label
    number = isinstance(value, int | float)  # True and False are numbers, too
    if min_label is not None and number:
        return value >= min_label
    if min_label is not None or not number or value not in (0, 1):
        wanted = "a number" if min_label is not None else "true, false, 0 or 1"
        raise UserError(
            f"{where}: {column!r} holds {str(value)[:50]!r}, not {wanted}: say which labels are positive with"
            " --positive_label=VALUE or --min_label=NUMBER"
        )
    return bool(value)


def train(
    rows: Iterable[tuple[str, bool]],
    out: Path,
    names: dict[str, str],
    holdout: float = 0.2,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> Classifier:
    """Learn from ``rows`` (text, is positive) and write the directory ``out``, which appears complete or not at all.

    ``names`` says what "positive" and "negative" documents are, for the report. Raises UserError as
    :func:`data_prep.classifier.split` does, and if ``out`` cannot be written or holds anything but a classifier.
    """
    check_installed()
    _check_out(out)
    parts = split(rows, holdout, seed)
    counts = {
        side: {"positive": int(part.positive.sum()), "negative": int((~part.positive).sum())}
        for side, part in (("train", parts.train), ("held_out", parts.held_out))
    }
    training = {"documents_read": parts.read, "duplicates": parts.duplicates, "with_both_labels": parts.contradictory}
    training |= {"holdout": holdout, "seed": seed, "inverse_regularization": INVERSE_REGULARIZATION, **counts}
    training["scikit-learn"] = importlib.metadata.version("scikit-learn")
    classifier = fit(parts.train, {"labels": names, "training": training})
    scores = classifier.score(parts.held_out.texts)
    table = [measure(scores, parts.held_out.positive, threshold) for threshold in THRESHOLDS]
    classifier.description["held_out"] = table
    report = _report(classifier, parts)
    log(report.removeprefix("# Classifier\n\n").strip())
    _check_out(out)  # training takes a while: another process may have used the name
    with atomic_path(out) as temporary:
        temporary.mkdir()
        classifier.save(temporary)
        _plot(scores, parts.held_out.positive, names, temporary / PICTURE)
        write_text(temporary / REPORT, f"{report}\n![Scores of the held-out documents]({PICTURE})\n")
    log(f"saved in {out}")
    return classifier


def _report(classifier: Classifier, parts: Split) -> str:
    d = classifier.description
    names, t, table = d["labels"], d["training"], d["held_out"]
    at = next(row for row in table if row["threshold"] == 0.5)
    lines = [
        "# Classifier",
        "",
        f"Positive: `{names['positive']}`, negative: `{names['negative']}`. {t['documents_read']:,} documents read, of"
        f" which {t['duplicates']:,} were copies and {t['with_both_labels']:,} texts came with both labels.",
        "",
        "| documents | positive | negative |",
        "|---|---:|---:|",
        *(f"| {what} | {t[k]['positive']:,} | {t[k]['negative']:,} |" for k, what in _SIDES),
        "",
        f"Held out, at a score of 0.5: precision {at['precision']:.4f}, recall {at['recall']:.4f}, F1 {at['f1']:.4f}.",
        "",
        "| held out | scored positive | scored negative |",
        "|---|---:|---:|",
        f"| positive | {at['true_positives']:,} | {at['false_negatives']:,} |",
        f"| negative | {at['false_positives']:,} | {at['true_negatives']:,} |",
        "",
        "| score from | kept | precision | recall | F1 |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in table:
        kept = row["true_positives"] + row["false_positives"]
        ratios = " | ".join(f"{row[k]:.4f}" for k in ("precision", "recall", "f1"))
        lines.append(f"| {row['threshold']} | {kept:,} | {ratios} |")
    lines += [
        "",
        "Precision holds for the mixture of the held-out documents: with fewer positives in a pool it is lower.",
    ]
    for what, ngrams in zip(("positive", "negative"), telling_ngrams(classifier, parts.train.texts), strict=True):
        listed = ", ".join(f"{ngram} ({value:+.1f})" for ngram, value in ngrams) or "none in three documents or more"
        lines += ["", f"What speaks most for {what}: {listed}."]
    return "\n".join(lines) + "\n"


def _plot(scores: np.ndarray, positive: np.ndarray, names: dict[str, str], path: Path) -> None:
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    figure = Figure(figsize=(8, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for label, color in ((False, "#c8442f"), (True, "#3a6ea5")):
        name = f"{'positive' if label else 'negative'}: {names['positive' if label else 'negative']}"
        axes.hist(scores[positive == label], np.linspace(0, 1, 51), alpha=0.65, color=color, label=name)
    axes.set(xlabel="score", ylabel="held-out documents", yscale="log", title="Scores of the held-out documents")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png", metadata={"Software": None})  # the same bytes from every version of matplotlib


def _check_out(out: Path) -> None:
    """Raise UserError, before the work rather than after it, if no classifier may be written to ``out``."""
    if os.path.isfile(out):
        raise UserError(f"{out} is a file: choose a directory with --out=DIR")
    if os.path.isdir(out) and os.path.samefile(out, os.curdir):  # a shell in it would be left in a removed directory
        raise UserError(f"--out={out} is the current directory, which is not replaced: name one below it")
    ours = {WEIGHTS, DESCRIPTION, REPORT, PICTURE}
    with disk_errors(out):
        others = sorted({p.name for p in out.iterdir()} - ours) if os.path.isdir(out) else []
    if others:
        raise UserError(f"{out} holds {others[0]!r}, which is no file of a classifier: choose another with --out=DIR")
    nearest = next(p for p in Path(os.path.abspath(out)).parents if os.path.exists(p))
    if not os.path.isdir(nearest) or not os.access(nearest, os.W_OK):
        raise UserError(f"cannot write {out}: {nearest} is no directory to write in; choose another with --out=DIR")


def _define_flags() -> dict[str, flags.FlagHolder]:
    string = flags.DEFINE_string
    return {
        "positive": string("positive", "", "documents to look for: file, folder, glob or Hugging Face data set id"),
        "negative": string("negative", "", "other documents: file, folder, glob or Hugging Face data set id"),
        "text_column": string("text_column", "text", "column that holds the text"),
        "positive_column": string("positive_column", "", "the same for --positive; empty: --text_column"),
        "labelled": string("labelled", "", "instead of the two: file, folder or glob of rows with a label"),
        "label_column": string("label_column", "label", "column that holds the label"),
        "positive_label": string("positive_label", "", "label of the positive rows; empty: see --min_label"),
        "min_label": flags.DEFINE_float("min_label", None, "least label of the positive rows; unset: true or 1"),
        "out": string("out", "", "directory to write; an earlier classifier there is replaced"),
        "holdout": flags.DEFINE_float("holdout", 0.2, "share of the documents that judge the classifier"),
        "seed": flags.DEFINE_integer("seed", 0, "which documents are held out", lower_bound=0, upper_bound=2**31),
        "max_documents": flags.DEFINE_integer(
            "max_documents", 0, "take the first so many documents of each source; 0: all", lower_bound=0
        ),
    }


def main(values: dict[str, Any]) -> None:
    """The command, from the values of its flags. Raises UserError."""
    v = values
    if not v["out"]:
        raise UserError("--out is empty: name the directory to write, as in --out=classifier")
    if bool(v["labelled"]) == bool(v["positive"] or v["negative"]) or bool(v["positive"]) != bool(v["negative"]):
        raise UserError("name the documents with --positive=FILE and --negative=FILE, or with --labelled=FILE alone")
    limit = v["max_documents"]
    if v["labelled"]:
        label, least, column = v["positive_label"], v["min_label"], v["label_column"]
        rows = labelled_examples(v["labelled"], v["text_column"], column, label, least, limit)
        rule = f"is {label}" if label else f"is at least {least:g}" if least is not None else "is true or 1"
        name = Path(v["labelled"]).name
        names = {"positive": f"{name}, {column} {rule}", "negative": f"{name}, the other rows"}
    else:
        columns = {"positive": v["positive_column"] or v["text_column"], "negative": v["text_column"]}
        rows = itertools.chain.from_iterable(
            examples(v[flag], flag, column, flag == "positive", limit) for flag, column in columns.items()
        )
        names = {flag: Path(v[flag]).name or v[flag] for flag in columns}
    train(rows, Path(v["out"]).expanduser(), names, v["holdout"], v["seed"])


if __name__ == "__main__":
    _FLAGS = _define_flags()
    cli.run(lambda: main({name: flag.value for name, flag in _FLAGS.items()}), summary=__doc__)
