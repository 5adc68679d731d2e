"""A text classifier in two files: hashed word n-grams and logistic regression, FineWeb-Edu's recipe in small.

``classifier.safetensors`` holds ``coefficients`` float32 [2^18] and ``intercept`` float32 [1]; ``classifier.json`` the
settings, the labels, the metrics on held-out documents and what the training data were. Nothing is pickled.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scratchgpt.errors import UserError
from scratchgpt.files import disk_errors, sha256_bytes, write_json

WEIGHTS, DESCRIPTION, REPORT, PICTURE = "classifier.safetensors", "classifier.json", "report.md", "scores.png"
FORMAT_VERSION = 1
# Presence of words and pairs of words, not counts: on Law Stack Exchange against C4 the better of the two by 0.01 F1.
VECTORIZER: dict[str, Any] = {
    "n_features": 1 << 18,
    "ngram_range": [1, 2],
    "lowercase": True,
    "token_pattern": r"(?u)\b\w\w+\b",
    "binary": True,
    "norm": "l2",
    "alternate_sign": False,
}
INVERSE_REGULARIZATION = 10.0
MAX_ITERATIONS = 1000


def check_installed() -> None:
    """Raise UserError if there is no scikit-learn."""
    try:
        import sklearn  # noqa: F401
    except ImportError as e:
        raise UserError('a classifier needs scikit-learn: pip install -c constraints.txt -e ".[filter]"') from e


def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(**{**VECTORIZER, "ngram_range": tuple(VECTORIZER["ngram_range"])})


class Classifier:
    """Linear in hashed n-grams; ``description`` is what classifier.json says, ``sha256`` that of this file.

    That file names the SHA-256 of the coefficients, so ``sha256`` stands for the whole model; "" before it is saved.
    """

    def __init__(
        self, coefficients: np.ndarray, intercept: float, description: dict[str, Any], sha256: str = ""
    ) -> None:
        self.coefficients = coefficients.astype(np.float32)
        self.intercept = float(np.float32(intercept))  # as it is saved, so that a reloaded model scores alike
        self.description, self.sha256 = description, sha256
        self._weights = self.coefficients.astype(np.float64)

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Probability of the positive class, with both classes equally frequent; float64 [len(texts)].

        A text's score does not depend on the others. A text without any word of two letters scores 0.
        """
        if not len(texts):
            return np.empty(0)
        features = _vectorizer().transform(texts)
        scores = np.exp(-np.logaddexp(0.0, -(features @ self._weights + self.intercept)))
        scores[np.diff(features.indptr) == 0] = 0.0  # nothing speaks for it, whatever the intercept says
        return scores

    def save(self, directory: Path) -> None:
        """Write both files into the existing ``directory``. Raises UserError if the disk refuses."""
        from safetensors.numpy import save

        weights = save({"coefficients": self.coefficients, "intercept": np.array([self.intercept], np.float32)})
        with disk_errors(directory):
            (directory / WEIGHTS).write_bytes(weights)
        stored = {"format_version": FORMAT_VERSION, **self.description, "weights_sha256": sha256_bytes(weights)}
        write_json(directory / DESCRIPTION, stored)


def load_classifier(directory: Path | str) -> Classifier:
    """The classifier that data_prep.train_classifier wrote to ``directory``.

    Raises UserError if scikit-learn is missing, or a file is missing, damaged or of another version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    check_installed()
    folder = Path(directory).expanduser()
    hint = "make it with python -m data_prep.train_classifier"
    try:
        text, weights = (folder / DESCRIPTION).read_bytes(), (folder / WEIGHTS).read_bytes()
    except OSError as e:
        raise UserError(f"{directory} holds no classifier ({Path(e.filename).name}: {e.strerror}): {hint}") from e
    try:
        description = json.loads(text)
        version = description["format_version"]
        same = description["vectorizer"] == VECTORIZER and version == FORMAT_VERSION
        expected = description["weights_sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise UserError(f"{folder / DESCRIPTION} is damaged: {hint} again") from e
    if not same:
        raise UserError(f"{folder / DESCRIPTION} is of another version of this program: {hint} again")
    damaged = UserError(f"{folder / WEIGHTS} is damaged, or not of this {DESCRIPTION}: {hint} again")
    if sha256_bytes(weights) != expected:
        raise damaged
    try:
        tensors = load(weights)
        coefficients, intercept = tensors["coefficients"], tensors["intercept"]
    except (SafetensorError, KeyError, ValueError) as e:
        raise damaged from e
    shapes = (coefficients.shape, intercept.shape) == ((VECTORIZER["n_features"],), (1,))
    if not shapes or coefficients.dtype != np.float32 or not np.isfinite([*intercept, abs(coefficients).max()]).all():
        raise damaged
    return Classifier(coefficients, intercept[0], description, sha256_bytes(text))


def check_threshold(threshold: float) -> None:
    """Raise UserError unless ``threshold`` is a probability."""
    if not 0 <= threshold <= 1:  # also nan
        raise UserError(f"--classifier_threshold={threshold} must be between 0 and 1")


# --- training --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Documents:
    """Distinct texts and whether each is positive, bool [len(texts)]."""

    texts: list[str]
    positive: np.ndarray


@dataclasses.dataclass
class Split:
    """Documents to learn from and to judge by, and how many of what was read are in neither."""

    train: Documents
    held_out: Documents
    read: int
    duplicates: int
    contradictory: int  # distinct texts that came with both labels


def key_of(text: str) -> bytes:
    """What makes two documents one: SHA-256 of the text without case and with single spaces."""
    return hashlib.sha256(" ".join(text.lower().split()).encode("utf-8", "surrogatepass")).digest()


def side_of(key: bytes, seed: int) -> float:
    """A number in [0, 1) that depends on a document's key and the seed alone."""
    return int.from_bytes(hashlib.sha256(seed.to_bytes(8) + key).digest()[:7]) / 2**56


def split(rows: Iterable[tuple[str, bool]], holdout: float, seed: int) -> Split:
    """Deduplicate (text, is positive) and hold a share of about ``holdout`` of the documents out.

    Neither the order of ``rows`` nor other documents decide the side of a document, and the result is sorted by the
    documents' keys. Texts with both labels are left out. Raises UserError if a class is missing on a side.
    """
    if not 0 < holdout < 1:
        raise UserError(f"--holdout={holdout} must be between 0 and 1: without held-out documents nothing is known")
    known: dict[bytes, tuple[str, bool]] = {}
    contradictory: set[bytes] = set()
    read = 0
    for text, positive in rows:
        read += 1
        key = key_of(text)
        if known.setdefault(key, (text, positive))[1] != positive:
            contradictory.add(key)
    parts: tuple[list[tuple[str, bool]], list[tuple[str, bool]]] = ([], [])
    for key in sorted(known.keys() - contradictory):
        parts[side_of(key, seed) < holdout].append(known[key])
    sides = [Documents([text for text, _ in part], np.array([label for _, label in part], bool)) for part in parts]
    for name, side in zip(("the training", "the held-out"), sides, strict=True):
        for label in (True, False):
            if not (side.positive == label).any():
                less = f" ({len(contradictory):,} texts with both labels are left out)" if contradictory else ""
                raise UserError(
                    f"{name} documents have no {'positive' if label else 'negative'} one{less}: give more documents of"
                    " both kinds, or change --holdout"
                )
    return Split(*sides, read, read - len(known), len(contradictory))


def fit(documents: Documents, description: dict[str, Any]) -> Classifier:
    """The classifier learned from ``documents``; both classes weigh the same, however many documents they have."""
    check_installed()
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=INVERSE_REGULARIZATION, class_weight="balanced", max_iter=MAX_ITERATIONS)
    model.fit(_vectorizer().transform(documents.texts), documents.positive)
    return Classifier(model.coef_[0], model.intercept_[0], {"vectorizer": VECTORIZER, **description})


def measure(scores: np.ndarray, positive: np.ndarray, threshold: float) -> dict[str, Any]:
    """Confusion, precision, recall and F1 of "positive from ``threshold`` on"; 0 where a ratio has no documents."""
    kept = scores >= threshold
    tp, fp = int((kept & positive).sum()), int((kept & ~positive).sum())
    fn, tn = int((~kept & positive).sum()), int((~kept & ~positive).sum())
    return {
        "threshold": threshold,
        "true_positives": tp,
        "false_positives": fp,
        "false_negatives": fn,
        "true_negatives": tn,
        "precision": tp / (tp + fp) if tp + fp else 0.0,
        "recall": tp / (tp + fn) if tp + fn else 0.0,
        "f1": 2 * tp / (2 * tp + fp + fn) if tp else 0.0,
    }


def telling_ngrams(
    classifier: Classifier, texts: Sequence[str], count: int = 20, min_documents: int = 3, max_texts: int = 5000
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """(n-gram, coefficient) that speak most for the positive and for the negative class.

    Hashing forgets the names, so they are looked for in the first ``max_texts`` of the training ``texts``; of n-grams
    that share a coefficient, the one in most documents is shown. Rarer ones than ``min_documents`` are left out.
    """
    from collections import Counter

    from sklearn.feature_extraction import FeatureHasher

    analyze = _vectorizer().build_analyzer()
    documents = Counter(ngram for text in texts[:max_texts] for ngram in set(analyze(text)))
    common = sorted((-n, ngram) for ngram, n in documents.items() if n >= min_documents)
    if not common:
        return [], []
    hasher = FeatureHasher(VECTORIZER["n_features"], input_type="string", alternate_sign=False)
    slots = hasher.transform([[ngram] for _, ngram in common]).indices
    shown: dict[int, str] = {}
    for slot, (_, ngram) in zip(slots.tolist(), common, strict=True):
        shown.setdefault(slot, ngram)
    ranked = sorted((float(classifier.coefficients[slot]), ngram) for slot, ngram in shown.items())
    most = [(ngram, value) for value, ngram in reversed(ranked[-count:]) if value > 0]
    return most, [(ngram, value) for value, ngram in ranked[:count] if value < 0]
