"""Accuracy on questions: the right continuation should be the likeliest one."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from configs.schema import EvalConfig
from data_prep.evaluation_tasks import Question, Task
from data_prep.tokenizers import Tokenizer
from jaxgpt.scoring import Request, Score, Scorer
from scratchgpt.errors import UserError


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str, limit: int) -> Request:
    """A context and what might follow it, as EleutherAI's harness cuts them into tokens.

    White space at the end of the context goes to the continuation, both are encoded together, and what does not fit
    into ``limit`` + 1 tokens is cut off the front. Raises UserError for a continuation longer than ``limit``.
    """
    stripped = context.rstrip()
    context, continuation = stripped, context[len(stripped) :] + continuation
    if context:
        whole, before = list(tokenizer.encode(context + continuation)), len(tokenizer.encode(context))
    else:
        whole, before = [tokenizer.end_of_text_id, *tokenizer.encode(continuation)], 1
    targets = len(whole) - before
    if not 0 < targets <= limit:
        raise UserError(
            f"a continuation of {targets} tokens does not fit a context of {limit}: {continuation[:60]!r}; such"
            " questions need a longer context or a coarser tokenizer"
        )
    return Request([int(token) for token in whole[-(limit + 1) :]], targets)


def measure(
    scorer: Scorer, tokenizer: Tokenizer, questions: Sequence[Question], done: Callable[[int], None] = lambda _: None
) -> tuple[dict[str, float], dict[str, float]]:
    """(figures, their standard errors) over ``questions``, all of which choose or all of which complete.

    One question has no standard errors.

    Choosing: ``acc`` by the log-likelihood of a choice, ``acc_norm`` by the same divided by its characters. Completing:
    ``acc``, whether every token of the target is the likeliest one, and ``perplexity`` of whole targets.
    """
    limit, requests = scorer.model.context_length, []
    for number, question in enumerate(questions, 1):
        try:
            requests += [encode_pair(tokenizer, question.context, text, limit) for text in question.continuations]
        except UserError as e:
            raise UserError(f"question {number}: {e}") from e
    scores = iter(scorer.score(requests, done))
    outcomes = [_judge(question, [next(scores) for _ in question.continuations]) for question in questions]
    columns = {name: np.array([outcome[name] for outcome in outcomes], np.float64) for name in outcomes[0]}
    nats = columns.pop("nats", None)
    figures = {name: float(column.mean()) for name, column in columns.items()}
    errors = {name: _standard_error(column) for name, column in columns.items()} if len(questions) > 1 else {}
    if nats is not None:
        figures["perplexity"] = math.exp(min(float(nats.mean()), 700.0))
        if errors:
            errors["perplexity"] = figures["perplexity"] * _standard_error(nats)  # to first order
    return figures | {"questions": len(questions)}, errors


class Exam:
    """The questions of a run's ``eval`` section, read before it begins: an hour later a mistake would cost the hour."""

    def __init__(self, config: EvalConfig, tokenizer: Tokenizer) -> None:
        task = Task(config.task)
        self._name, self._tokenizer = task.name, tokenizer
        self._questions = list(task.questions(config.task_data, config.task_rows))

    def figures(self, scorer: Scorer) -> dict[str, float]:
        """Such as ``hellaswag_acc``."""
        figures, _ = measure(scorer, self._tokenizer, self._questions)
        return {f"{self._name}_{name}": value for name, value in figures.items() if name != "questions"}


def _judge(question: Question, scores: list[Score]) -> dict[str, float]:
    likelihoods = np.array([score.log_likelihood for score in scores])
    if len(scores) == 1:
        return {"acc": float(scores[0].is_greedy), "nats": -scores[0].log_likelihood}
    characters = np.array([len(choice) for choice in question.choices], np.float64)
    return {
        "acc": float(np.argmax(likelihoods) == question.answer),
        "acc_norm": float(np.argmax(likelihoods / characters) == question.answer),
    }


def _standard_error(column: np.ndarray) -> float:
    """Of the mean of ``column``, by the sample's variance."""
    return float(column.std(ddof=1) / math.sqrt(len(column)))
