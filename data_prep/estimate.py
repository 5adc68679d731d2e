"""What preparing will take: the disk before it starts, the time while it runs."""

import shutil
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from data_prep.shards import DOCUMENT_BYTES
from data_prep.sources import Source
from scratchgpt.errors import UserError
from scratchgpt.progress import duration

_READ_CHARACTERS, _ENCODED_CHARACTERS = 1 << 23, 1 << 18
_REPORT_EVERY_S = 10.0


def expected(
    sources: list[Source], weights: list[Fraction], count: Callable[[str], int], max_tokens: int
) -> tuple[int, int] | None:
    """(tokens, documents) that the sources will give, from the beginning of each; None if that cannot be known.

    Args:
      count: how many tokens a text has.
      max_tokens: an upper limit; 0: none.
    """
    tokens, documents_a_token = [], 0.0
    for source in sources:
        n, ratio = _extrapolated(source, count)
        tokens.append(n)
        documents_a_token = max(documents_a_token, ratio)
    whole = sum(weights)
    known = [n / float(w / whole) for n, w in zip(tokens, weights, strict=True) if n is not None]
    if max_tokens:
        known.append(float(max_tokens))
    elif None in tokens:  # the others may end later
        return None
    total = min(known)
    return round(total), round(total * documents_a_token)


def _extrapolated(source: Source, count: Callable[[str], int]) -> tuple[float | None, float]:
    """(tokens in all or None, documents a token) of one source."""
    documents = read = encoded = tokens = 0
    for block in source.blocks():
        documents += block.closes
        if encoded < _ENCODED_CHARACTERS:
            text = block.text[: _ENCODED_CHARACTERS - encoded]
            encoded += len(text)
            tokens += count(text)
        read += len(block.text)
        if read >= _READ_CHARACTERS:
            break
    else:
        source.share_read = 1.0
    here = tokens / max(1, encoded) * read + documents
    return here / source.share_read if source.share_read else None, documents / max(1.0, here)


def announce(
    need: tuple[int, int] | None, token_bytes: int, directory: Path, there: int, log: Callable[[str], None]
) -> None:
    """Say how much disk ``need`` (tokens, documents) takes in ``directory``, of which ``there`` bytes are written.

    Raises UserError if so much is not free.
    """
    free = shutil.disk_usage(next(p for p in (directory, *directory.absolute().parents) if p.is_dir())).free
    if need is None:
        log(f"how much disk it takes is not known, for the source does not say its length; {_size(free)} are free")
        return
    size = need[0] * token_bytes + need[1] * DOCUMENT_BYTES
    log(f"it takes about {_size(size)} of disk for about {need[0]:,} tokens; {_size(free)} are free")
    if size - there > free:
        raise UserError(
            f"{directory} needs about {_size(size - there)} of disk, but only {_size(free)} are free there: free some,"
            " choose another disk with --out=DIR (in training: data.dir), or take less text with --max_tokens"
        )


def _size(n: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


class Progress:
    """A bar on a terminal, else a line every ten seconds: tokens, their rate, and the time left."""

    def __init__(self, tokens: int, share: Callable[[int], float], log: Callable[[str], None]) -> None:
        """``share`` tells the part of the work that is done when so many tokens are written, 0 if it is not known."""
        self._log, self._share = log, share
        self._tokens = self._first = tokens
        self._began = time.monotonic()
        self._next, self._first_share = self._began + _REPORT_EVERY_S, 0.0
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(initial=tokens, unit="tok", unit_scale=True, desc="tokenizing", dynamic_ncols=True)

    def add(self, tokens: int) -> None:
        """So many more tokens are written."""
        self._tokens += tokens
        if self._bar is not None:
            if (share := self._share(self._tokens)) > 0:
                self._bar.total = max(self._tokens, round(self._tokens / share))
            self._bar.update(tokens)
        elif (now := time.monotonic()) >= self._next:
            self._next = now + _REPORT_EVERY_S
            self._log(self._line(now - self._began))

    def _line(self, seconds: float) -> str:
        rate = (self._tokens - self._first) / seconds
        line = f"{self._tokens:,} tokens so far, {rate:,.0f} tokens/s"
        share = self._share(self._tokens)
        if share <= 0 or rate <= 0:
            return line
        left = max(0.0, self._tokens / share - self._tokens) / rate
        return f"{line}, {share:.0%} done, ETA {duration(left)}"

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
