"""Tokens to text as it is made: whole characters only, and an end before the first stop string."""

from collections.abc import Callable, Sequence


class TextStream:
    """Turns tokens into text as soon as this is certain: one string a token, in order.

    A character cut between tokens is held back until its last byte is there, and what may be the beginning of a stop
    string until it turns out to be one or not. The text ends before the first stop string.

    Attributes:
      text: all that was given out.
      stopped: a stop string was met; nothing comes after it.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()):
        self._decode, self._stop = decode, stop
        self._ids: list[int] = []
        self._ends: list[int] = []  # for each token, how many whole characters there are up to it
        self._given = 0  # tokens
        self._whole = ""  # the text up to the last whole character
        self.text, self.stopped = "", False

    def add(self, token: int) -> list[str]:
        """One more token; returns the strings of those tokens that are certain now."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith("\ufffd"):
            self._ends.append(len(self._whole))
            return []
        self._whole = text
        self._ends.append(len(text))
        return self._give(self._certain())

    def finish(self) -> list[str]:
        """The strings that were held back, when no more tokens come."""
        if self.stopped or self._given == len(self._ids):
            return []
        self._whole = self._decode(self._ids)
        self._ends[-1] = len(self._whole)
        certain = self._certain()
        return self._give(certain if self.stopped else len(self._whole))

    def _certain(self) -> int:
        """Where the part of the text ends that no stop string can take back."""
        start, whole = len(self.text), self._whole
        if found := [at for stop in self._stop if (at := whole.find(stop, start)) >= 0]:
            self.stopped = True
            return min(found)
        longest = max(map(len, self._stop), default=1) - 1
        for at in range(max(start, len(whole) - longest), len(whole)):
            if any(stop.startswith(whole[at:]) for stop in self._stop):
                return at
        return len(whole)

    def _give(self, end: int) -> list[str]:
        """The strings of the tokens up to ``end``; at a stop string, the last one is cut there."""
        pieces = []
        while self._given < len(self._ids):
            at = len(self.text)
            if not (at < end if self.stopped else self._ends[self._given] <= end):
                break
            pieces.append(self._whole[at : min(end, self._ends[self._given])])
            self.text += pieces[-1]
            self._given += 1
        return pieces
