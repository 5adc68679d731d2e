"""Questions with answers to choose from, or to complete, as a small task file describes them.

A task file is JSON; ``configs/tasks/`` has some. ``context`` is a Jinja template over the columns of a row. Either
``choices`` is a Jinja expression for the list of possible continuations and ``answer`` one for the number of the right
one, from 0; or ``target`` is a template for the one continuation that counts (as in LAMBADA). ``delimiter`` stands
between a context and a choice. ``source`` and ``split`` are where the rows come from: a file, folder or glob, or a data
set on the Hugging Face hub.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.download import LOCAL_COPY_HINT
from data_prep.example_rows import open_rows
from scratchgpt.errors import UserError
from scratchgpt.files import read_json

TASKS = Path(__file__).resolve().parents[1] / "configs" / "tasks"
_KEYS = {"name", "source", "split", "context", "choices", "answer", "target", "delimiter"}


class Question(NamedTuple):
    """One row of a task.

    Attributes:
      context: what the model reads first.
      continuations: what might follow, each with its delimiter; one if the task asks for completion.
      choices: the same as they stand in the row, whose lengths normalise ``acc_norm``.
      answer: number of the right one.
    """

    context: str
    continuations: list[str]
    choices: list[str]
    answer: int


def wikihow(text: str) -> str:
    """Text of HellaSwag without the marks of its sources, as Zellers et al. 2019 evaluate it."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


class Task:
    """A task file, checked and compiled.

    Args:
      name: of a file in ``configs/tasks`` without its ending, or the path of a task file.

    Raises UserError for a file that is missing or says something impossible.
    """

    def __init__(self, name: str) -> None:
        path = Path(name) if name.endswith(".json") else TASKS / f"{name}.json"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in TASKS.glob("*.json")))
            raise UserError(f"there is no task {name!r}: give a task file (.json), or one of {known}")
        values = read_json(path)
        if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
            raise UserError(f"{path} must be a JSON object whose values are texts")
        if unknown := values.keys() - _KEYS:
            raise UserError(f"{path}: unknown key {min(unknown)!r}; the keys are {', '.join(sorted(_KEYS))}")
        if "context" not in values or ("target" in values) == ("choices" in values and "answer" in values):
            raise UserError(f"{path} needs 'context', and either 'choices' with 'answer' or 'target'")
        if "target" in values and "delimiter" in values:
            raise UserError(f"{path}: 'delimiter' stands before a choice; with 'target' write it into the template")
        self.path, self.name = path, values.get("name", path.stem)
        self.source, self.split = values.get("source", ""), values.get("split", "")
        self._delimiter = values.get("delimiter", " ")
        self.completes = "target" in values
        self._compile(values)

    def _compile(self, values: dict[str, str]) -> None:
        from jinja2 import StrictUndefined, TemplateError, meta
        from jinja2.sandbox import SandboxedEnvironment

        environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        environment.filters["wikihow"] = wikihow
        environment.filters["fromjson"] = json.loads
        try:
            self._context = environment.from_string(values["context"])
            if self.completes:
                if not meta.find_undeclared_variables(environment.parse(values["target"])):
                    raise UserError(f"{self.path}: 'target' names no column: write it as {{{{ column }}}}")
                self._target = environment.from_string(values["target"])
            else:
                self._choices = environment.compile_expression(values["choices"], undefined_to_none=False)
                self._answer = environment.compile_expression(values["answer"], undefined_to_none=False)
        except TemplateError as e:
            raise UserError(f"{self.path}: a template cannot be read: {e}") from e

    def questions(self, source: str = "", limit: int = 0) -> Iterator[Question]:
        """The questions of ``source`` (empty: the task's own), the first ``limit`` of them if it is not 0.

        Raises UserError while iterating, naming the row that does not fit the task.
        """
        if not (source or self.source):
            raise UserError(f"{self.path} names no source: give one with --data")
        try:
            rows = open_rows(self.name, source or self.source, split="" if source else self.split)
        except UserError as e:
            where = "name the task's rows with --data=FILE (in training: --config.eval.task_data=FILE)"
            raise UserError(str(e).replace(LOCAL_COPY_HINT, where)) from e
        for number, (where, row) in enumerate(rows):
            if limit and number >= limit:
                return
            yield self._question(where, row)

    def _question(self, where: str, row: dict[str, Any]) -> Question:
        try:
            context = self._context.render(row)
            if self.completes:
                target = self._target.render(row)
                if not target:
                    raise UserError(f"{where}: the target is empty")
                return Question(context, [target], [target], 0)
            choices, answer = self._choices(row), self._answer(row)
            if not (type(answer) is int or (isinstance(answer, str) and answer.isdecimal())):
                raise UserError(f"{where}: the answer of {self.name} must be the number of a choice, not {answer!r}")
            answer = int(answer)
        except UserError:
            raise
        except Exception as e:  # a template is code: whatever a row makes it raise
            raise UserError(f"{where} does not fit the task {self.name}: {e}") from e
        if not (isinstance(choices, list | tuple) and len(choices) > 1 and all(isinstance(c, str) for c in choices)):
            raise UserError(f"{where}: the choices of {self.name} must be a list of two or more texts, not {choices!r}")
        if not 0 <= answer < len(choices) or not all(choices):
            raise UserError(f"{where}: answer {answer} of {len(choices)} choices, none of which may be empty")
        return Question(context, [self._delimiter + choice for choice in choices], list(choices), answer)
