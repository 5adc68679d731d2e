"""Byte pair encoding, learned from text: which two neighbouring tokens become one, and in which order.

Gage (1994), "A New Algorithm for Data Compression", replaces the most frequent pair of bytes of a file by a byte that
the file does not use, again and again. Sennrich, Haddow and Birch (2016, arXiv:1508.07909) learn a vocabulary that way:
each replacement is a *merge*, its result a new token, and no merge crosses the border of a word. GPT-2 (Radford et al.
2019) starts from the 256 bytes, so that every text has tokens, and takes a regular expression's matches as its words.

Of equally frequent pairs, the one with the smaller first id is merged, then the one with the smaller second id. Ids
are GPT-2's: the bytes in the order of the printable characters that stand for them, then the merges' results as they
are made. This is the order of the ``BpeTrainer`` of Hugging Face's ``tokenizers``, and so the merges are the same.

A plain implementation counts all pairs again before every merge. Here a merge costs as much as the pair has
occurrences, because three things are kept up to date: the count of every pair, the positions where it occurs, and a
heap of the counts. Each distinct word is laid out once and weighs as much as it occurs.
"""

import heapq
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

import regex

from data_prep.tokenizers import _GPT2_PATTERN, _byte_characters

Merge = tuple[bytes, bytes]

BYTES = tuple(bytes([b]) for b in _byte_characters().values())  # the token of each id below 256
_ID_OF_BYTE = bytes(BYTES.index(bytes([b])) for b in range(256))  # a table for bytes.translate
_WORD = regex.compile(_GPT2_PATTERN)
_BORDER, _GONE = -1, -2  # what stands in place of a token between two words, and where the token to the left grew


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word, a match of GPT-2's pattern, occurs in ``texts``; no word lies in two of them.

    The memory needed grows with the number of distinct words, not with the text. ``regex``, tiktoken and ``tokenizers``
    may know different versions of Unicode: a letter that is too new for one of them is a sign there, not a letter.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_WORD.findall(text))
    return counts


def learn_merges(counts: Mapping[str, int]) -> Iterator[Merge]:
    """Yield the merges of a text in order, each as its two tokens, until every word is one token.

    Args:
      counts: how often each word occurs, see :func:`count_words`.

    No two merges have the same result: inside a stretch of text whose ends no merge has crossed, the merges so far
    have done the same wherever that stretch occurs, so whenever it becomes one token, it does so everywhere at once.
    Hence token number 256 + i is the result of merge i, and all occurrences of a pair appear in one round, the one that
    makes the younger of its tokens. Afterwards its count only falls. That is why the heap may be out of date: an entry
    promises at least what the pair still has, and one that promises too much is put back with the count of today.
    """
    tokens = list(BYTES)
    token, weight = _lay_out(counts)
    before, after = array("i", range(-1, len(token) - 1)), array("i", range(1, len(token) + 1))
    pair_counts, positions = _count_pairs(token, weight)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    while heap:
        promised, pair = heapq.heappop(heap)
        count = pair_counts[pair]
        if count != -promised:
            if count:
                heapq.heappush(heap, (-count, pair))
            continue
        left, right = pair
        yield tokens[left], tokens[right]
        new = len(tokens)
        tokens.append(tokens[left] + tokens[right])
        made: defaultdict[tuple[int, int], array[int]] = defaultdict(lambda: array("i"))
        for i in positions.pop(pair):  # from left to right, so that aaa becomes aa a
            j = after[i]
            if token[i] != left or token[j] != right:  # an earlier merge has taken one of the two
                continue
            token[i], token[j] = new, _GONE
            h, k = before[i], after[j]
            after[i], before[k] = k, i
            n = weight[i]
            if (neighbour := token[h]) != _BORDER:
                pair_counts[neighbour, left] -= n
                pair_counts[neighbour, new] += n
                made[neighbour, new].append(h)
            if (neighbour := token[k]) != _BORDER:
                pair_counts[right, neighbour] -= n
                pair_counts[new, neighbour] += n
                made[new, neighbour].append(i)
        for made_pair, where in made.items():
            if count := pair_counts[made_pair]:  # none where the neighbour was merged in its turn
                positions[made_pair] = where
                heapq.heappush(heap, (-count, made_pair))


def _lay_out(counts: Mapping[str, int]) -> tuple["array[int]", "array[int]"]:
    """The bytes' ids of all words, one word after the other with a border on each side, and each id's weight."""
    token, weight = array("i", [_BORDER]), array("q", [0])
    for word, count in counts.items():
        ids = word.encode("utf-8").translate(_ID_OF_BYTE)
        if len(ids) > 1:
            token.extend(ids)
            token.append(_BORDER)
            weight.extend([count] * len(ids))
            weight.append(0)
    return token, weight


def _count_pairs(token: "array[int]", weight: "array[int]") -> tuple[Counter, dict]:
    """How often each pair of neighbours occurs, overlaps (aaa) included, and the positions of its left one."""
    pair_counts: Counter[tuple[int, int]] = Counter()
    positions: defaultdict[tuple[int, int], array[int]] = defaultdict(lambda: array("i"))
    for i in range(1, len(token) - 1):
        left, right = token[i], token[i + 1]
        if left != _BORDER and right != _BORDER:
            pair_counts[left, right] += weight[i]
            positions[left, right].append(i)
    return pair_counts, dict(positions)
