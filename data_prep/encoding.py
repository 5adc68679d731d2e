"""Text to ids on every core: documents are cut into pieces, and threads encode them while the next ones are read.

What comes out depends neither on the number of threads nor on how the pieces fall: cuts lie where they do not change
the ids. Threads are enough, for the tokenizers leave Python's lock alone while they work.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from data_prep.split import Part
from data_prep.tokenizers import BPETokenizer, Tokenizer
from scratchgpt.errors import UserError

_PIECE_CHARACTERS = 1 << 17
_BATCH_CHARACTERS = 1 << 18  # what a thread encodes at a time


class Piece(NamedTuple):
    """A stretch of a document that is encoded by itself."""

    index: int  # of the document in its source
    file: int
    row: int
    number: int  # of the piece in its document
    split: str
    text: str
    begins: bool  # the document, or what of it falls to this split, begins here
    closes: bool  # the document ends here
    ends: bool  # an end-of-text token follows


class Encoded(NamedTuple):
    """A piece with its ids, the end-of-text token included."""

    piece: Piece
    ids: np.ndarray | UserError  # [tokens], of the shards' dtype; or why the piece cannot be encoded
    bytes: int  # of the piece in UTF-8


def pieces(parts: Iterable[Part], cuts: Callable[[str, int], list[str]]) -> Iterator[Piece]:
    """The parts in pieces that a thread can encode without much memory; ``cuts`` is a tokenizer's method.

    Of a document that comes in many parts, no more than is needed to find the next cut is held.
    """
    index, number = -1, 0
    for (document, split), stretches in itertools.groupby(parts, key=lambda part: (part.index, part.split)):
        if document != index:
            index, number = document, 0
        begins, rest, patience = True, "", 0
        for part in stretches:
            rest += part.text
            if part.closes or len(rest) < patience:
                continue
            *done, rest = _cut(rest, cuts)
            patience = 2 * len(rest)  # where there is no place to cut, looking again after each stretch is quadratic
            for text in done:
                yield Piece(index, part.file, part.row, number, split, text, begins, False, False)
                begins, number = False, number + 1
        *done, rest = _cut(rest, cuts)
        for text in done:
            yield Piece(index, part.file, part.row, number, split, text, begins, False, False)
            begins, number = False, number + 1
        yield Piece(index, part.file, part.row, number, split, rest, begins, part.closes, part.ends)
        number += 1


def _cut(text: str, cuts: Callable[[str, int], list[str]]) -> list[str]:
    texts = cuts(text, _PIECE_CHARACTERS)
    if len(texts) > 1 and len(texts[-1]) == 1:  # no safe place was found before the last character
        texts[-2:] = [texts[-2] + texts[-1]]
    return texts


def encoded(
    stream: Iterable[Piece],
    encode: Callable[[str], object],
    end_of_text_id: int,
    dtype: np.dtype,
    pool: ThreadPoolExecutor,
    ahead: int,
) -> Iterator[Encoded]:
    """Every piece with its ids, in order; up to ``ahead`` batches are being encoded meanwhile.

    An error of ``stream`` is raised when everything before it has been given.
    """
    batches, pending = _batches(stream), deque[Future[list[Encoded]]]()
    error = None
    while True:
        try:
            batch = next(batches, None) if error is None else None
        except Exception as e:
            error, batch = e, None
        if batch:
            pending.append(pool.submit(_encode, batch, encode, end_of_text_id, dtype))
        if pending and (len(pending) > ahead or not batch):
            yield from pending.popleft().result()
        elif not batch:
            break
    if error is not None:
        raise error


def _batches(stream: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    characters = 0
    try:
        for piece in stream:
            batch.append(piece)
            characters += len(piece.text)
            if characters >= _BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
    except Exception as e:
        if batch:
            yield batch
        raise e
    if batch:
        yield batch


def _encode(batch: list[Piece], encode: Callable[[str], object], end_of_text_id: int, dtype: np.dtype) -> list[Encoded]:
    results = []
    for piece in batch:
        size = len(piece.text) if piece.text.isascii() else len(piece.text.encode("utf-8", "surrogatepass"))
        try:
            found = encode(piece.text)
        except UserError as e:  # it matters only if the piece is used
            results.append(Encoded(piece, e, size))
            continue
        ids = np.empty(len(found) + piece.ends, dtype)
        ids[: len(found)] = found
        if piece.ends:
            ids[-1] = end_of_text_id
        results.append(Encoded(piece, ids, size))
    return results


def as_characters(stream: Iterable[Piece]) -> Iterator[Encoded]:
    """Every piece as if each character were a token; the ids say nothing but how many there are."""
    for piece in stream:
        yield Encoded(piece, np.broadcast_to(np.uint8(0), len(piece.text) + piece.ends), 0)


def encoder_for(tokenizer: Tokenizer, made_from_text: bool) -> Callable[[str], object]:
    """How to encode: ``made_from_text`` says that a character tokenizer knows every character that will be used.

    Then others, in text that was read ahead and that no budget has room for, are no error.
    """
    if made_from_text:
        known = tokenizer.decode([0])
        return lambda text: tokenizer.encode(text, replace=known)  # type: ignore[call-arg]
    if isinstance(tokenizer, BPETokenizer):  # an array at once takes a tenth less time than a list that becomes one
        fast = tokenizer._encoding.encode_to_numpy

        def encode(text: str) -> object:
            try:
                return fast(text, disallowed_special=())
            except UnicodeEncodeError:  # half of a UTF-16 pair, which JSON can spell
                return tokenizer.encode(text)

        return encode
    return tokenizer.encode
