"""Many texts at once on one model: a thread that computes one token of each in turn.

Every text has its own cache and its own random numbers, so each comes out as it would alone.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence

from torchgpt.writer import Generation, Piece

# Called in the engine's thread with (number of the text, its new pieces); None: it is finished; or what went wrong.
Deliver = Callable[[int, list[Piece] | Exception | None], None]


class Full(Exception):
    """There is no room for more texts, neither at work nor waiting."""


class Task:
    """The texts of one request. :meth:`cancel` ends those that are not finished; nothing is delivered after it."""

    def __init__(self, generations: Sequence[Generation], deliver: Deliver):
        self.generations, self.deliver = generations, deliver
        self.cancelled = False

    def cancel(self) -> None:
        """May be called from any thread, at any time."""
        self.cancelled = True


class _Text:
    """One text of a task."""

    def __init__(self, task: Task, number: int):
        self.task, self.number = task, number
        self._steps = iter(task.generations[number])  # computes nothing, and takes no memory, before the first step

    def advance(self) -> list[Piece] | Exception | None:
        """Compute one token; returns what there is to deliver, which is a list as long as there may be more."""
        if self.task.cancelled:
            return None
        try:
            return next(self._steps, None)
        except Exception as e:  # it is this request's trouble; the others go on
            return e


class Engine:
    """Computes tasks until :meth:`stop`.

    Attributes:
      max_texts: how many texts can be at work or waiting.
    """

    def __init__(self, max_concurrent: int, max_waiting: int):
        self._max_concurrent, self.max_texts = max_concurrent, max_concurrent + max_waiting
        self._active: list[_Text] = []
        self._waiting: deque[_Text] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, generations: Sequence[Generation], deliver: Deliver) -> Task:
        """Queue the texts of a request, all or none. Raises Full."""
        task = Task(generations, deliver)
        with self._changed:
            self._waiting = deque(text for text in self._waiting if not text.task.cancelled)
            held = len(self._waiting) + sum(not text.task.cancelled for text in self._active)
            if held + len(generations) > self.max_texts:
                raise Full
            self._waiting.extend(_Text(task, number) for number in range(len(generations)))
            self._changed.notify()
        return task

    def stop(self) -> None:
        """End the thread after its present token."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while texts := self._next_round():
            for text in texts:
                pieces = text.advance()
                if not isinstance(pieces, list):  # it makes room before anybody can know that it is finished
                    with self._changed:
                        self._active.remove(text)
                if not text.task.cancelled:
                    text.task.deliver(text.number, pieces)

    def _next_round(self) -> list[_Text]:
        """The texts to advance; waits until there are some. Empty: the engine is to stop."""
        with self._changed:
            while True:
                if self._stopping:
                    return []
                while self._waiting and len(self._active) < self._max_concurrent:
                    self._active.append(self._waiting.popleft())
                if self._active:
                    return list(self._active)
                self._changed.wait()
