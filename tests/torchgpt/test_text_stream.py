"""Text as it is made: stop strings wherever the tokens cut them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from torchgpt.text_stream import TextStream

WORDS = ["a", "b", "ab", "ba", "aab", "é"]


@settings(derandomize=True, deadline=None, max_examples=300)
@given(ids=st.lists(st.integers(0, 5), max_size=12), stops=st.lists(st.text("abé", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_string(ids, stops):
    stream, pieces = TextStream(lambda ids: "".join(WORDS[i] for i in ids), stops), []
    text = ""
    for i in ids:
        text += WORDS[i]
        pieces += stream.add(i)
        assert text.startswith(stream.text)
        if stream.stopped:
            break
    pieces += stream.finish()
    found = [text.find(stop) for stop in stops if stop in text]
    assert stream.stopped == bool(found)
    assert stream.text == "".join(pieces) == text[: min(found, default=len(text))]
    for piece, i in list(zip(pieces, ids, strict=False))[: None if not found else -1]:
        assert piece == WORDS[i]


def test_nothing_is_held_back_without_need():
    stream = TextStream(lambda ids: bytes(ids).decode("utf-8", "replace"), ["END"])
    assert stream.add(ord("x")) == ["x"]
    assert stream.add(ord("E")) == []
    assert stream.add(ord("N")) == []
    assert stream.add(ord("E")) == ["E", "N"]  # the second E may still begin one
    assert stream.finish() == ["E"]
    assert not stream.stopped
