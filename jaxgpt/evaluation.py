"""What ``jaxgpt.evaluate`` measures, for any loaded model."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.download import LOCAL_COPY_HINT
from data_prep.evaluation_tasks import Task
from data_prep.prepare import directory_of
from data_prep.shards import MANIFEST, Tokens, load_manifest, open_tokens
from data_prep.sources import NAMED, documents
from data_prep.tokenizers import Tokenizer
from jaxgpt.loading import LoadedModel
from jaxgpt.multiple_choice import measure
from jaxgpt.perplexity import Measured, disjoint_windows, windows
from jaxgpt.scoring import Request, Scorer
from scratchgpt import workdir as layout
from scratchgpt.errors import UserError
from scratchgpt.progress import Progress

_AT_ONCE = 1 << 20  # tokens that are read before they are scored


class Evaluation(NamedTuple):
    """Figures of a model.

    Attributes:
      data: what they were measured on.
      metrics: by their names; counts are integers.
      stderr: standard errors of some.
    """

    data: str
    metrics: dict[str, float]
    stderr: dict[str, float]


def answer_questions(loaded: LoadedModel, task: Task, source: str, limit: int, batch_size: int) -> Evaluation:
    """The accuracy on the questions of ``task``. Raises UserError for rows that do not fit it."""
    questions = list(task.questions(source, limit))
    scorer = Scorer(loaded.graphdef, loaded.params, loaded.model, batch_size=batch_size)
    progress = Progress(sum(len(q.continuations) for q in questions), unit="answer")
    metrics, stderr = measure(scorer, loaded.tokenizer, questions, lambda n: progress.step(n, "", True))
    progress.close()
    return Evaluation(source or ", ".join(filter(None, [task.source, task.split])), metrics, stderr)


def measure_text(
    loaded: LoadedModel,
    data: str,
    *,
    workdir: Path | None,
    split: str,
    text_column: str,
    stride: int,
    limit: int,
    batch_size: int,
) -> Evaluation:
    """The loss on a text, or on the data of the run in ``workdir`` if ``data`` is empty.

    Raises UserError for data that cannot be found or read, or hold nothing to predict.
    """
    context = loaded.model.context_length
    if stride > context:
        raise UserError(f"--stride={stride} is longer than the model's context of {context}")
    if not data:
        if workdir is None or not layout.is_workdir(workdir):
            raise UserError("--data is needed: shards or a text to measure the loss on (a workdir knows its own data)")
        data = str(directory_of(layout.stored_config(workdir).data))
        if not (Path(data) / MANIFEST).is_file():
            raise UserError(f"the run's data are not in {data}: name shards or a text with --data")
    scorer = Scorer(loaded.graphdef, loaded.params, loaded.model, batch_size=batch_size)
    if (Path(data) / MANIFEST).is_file():
        if limit:
            raise UserError("--limit counts documents or questions; shards are read whole")
        tokens, text_bytes = _shards(Path(data), split, loaded.tokenizer)
        total, what = len(tokens) - 1, f"{data}, {split}"
        requests = windows(tokens, context, stride) if stride else disjoint_windows(tokens, context)
    else:
        named = {"dataset": data} if data in NAMED else {"dataset": "", "source": data}
        try:
            texts = itertools.islice(documents(**named, text_column=text_column)[0], limit or None)
        except UserError as e:
            raise UserError(str(e).replace(LOCAL_COPY_HINT, "name a file or folder with --data")) from e
        text_bytes, total, what = _Bytes(texts), 0, data
        requests = _of_texts(text_bytes, loaded.tokenizer, context, stride or context)
    nats, counts = [], []
    progress = Progress(total, unit="token")
    for batch in _batches(requests):
        nats += [-score.log_likelihood for score in scorer.score(batch)]
        counts += [request.targets for request in batch]
        progress.step(sum(counts), f"loss {sum(nats) / max(1, sum(counts)):.4f}", True)
    progress.close()
    if not sum(counts):
        raise UserError(f"{data} holds nothing to predict")
    measured = Measured(np.array(nats), np.array(counts), text_bytes.count)
    return Evaluation(what, measured.figures(), measured.standard_errors())


class _Bytes:
    """Texts whose bytes of UTF-8 are counted as they pass."""

    def __init__(self, texts: Iterable[str], count: int = 0) -> None:
        self._texts, self.count = texts, count

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.count += len(text.encode("utf-8", "surrogatepass"))  # the tokenizer has its own word on half a pair
            yield text


class _Split:
    """The tokens of a split, read as they are asked for."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, part: slice) -> np.ndarray:
        return self._tokens.slice(part.start or 0, min(part.stop, len(self)))


def _shards(directory: Path, split: str, tokenizer: Tokenizer) -> tuple[_Split, _Bytes]:
    """The tokens of a split, and the bytes of the text after the first token, which nothing predicts."""
    manifest = load_manifest(directory)
    if manifest["tokenizer"]["sha256"] != tokenizer.sha256:
        raise UserError(
            f"{directory} was prepared with another tokenizer than the model's: name the text itself with --data"
        )
    tokens = open_tokens(directory, split)
    if len(tokens) < 2:
        raise UserError(f"{directory} holds nothing to predict in {split}: it has {len(tokens)} tokens")
    first = tokenizer.decode(tokens.slice(0, 1))
    first_bytes = 0 if tokens.slice(0, 1)[0] == tokenizer.end_of_text_id else len(first.encode("utf-8"))
    return _Split(tokens), _Bytes((), manifest["splits"][split]["bytes"] - first_bytes)


def _of_texts(texts: Iterable[str], tokenizer: Tokenizer, context: int, stride: int) -> Iterator[Request]:
    for number, text in enumerate(texts, 1):
        try:
            ids = [tokenizer.end_of_text_id, *map(int, tokenizer.encode(text))]
        except UserError as e:
            raise UserError(f"document {number}: {e}") from e
        if text:
            yield from windows(ids, context, stride)


def _batches(requests: Iterator[Request]) -> Iterator[list[Request]]:
    """Requests in lists of about a million tokens."""
    batch, size = [], 0
    for request in requests:
        batch.append(request)
        size += len(request.tokens)
        if size >= _AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
