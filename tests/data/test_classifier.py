"""The classifier: honest splits, the same scores after a reload, refusals in a sentence, and its use as a filter."""

import gzip
import json
import math
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from filter_texts import ROOT, varied

pytest.importorskip("sklearn")

from data_prep import classifier as c
from data_prep.classifier import DESCRIPTION, VECTORIZER, WEIGHTS, fit, key_of, load_classifier, measure, split
from data_prep.filtering.recipe import Recipe, make_block, parse_filters, with_classifier
from data_prep.train_classifier import examples, labelled_examples, main, train
from scratchgpt.errors import UserError
from scratchgpt.files import sha256_bytes

FILES = ["classifier.json", "classifier.safetensors", "report.md", "scores.png"]


def post(i):
    """A question of a forum, one of its own for every i."""
    choose = random.Random(i).choice
    who, what = choose(["landlord", "employer", "neighbour", "court"]), choose(["lease", "contract", "licence", "will"])
    return f"Can my {who} legally end the {what} number {i}? I signed it {i % 9} years ago; what does the statute say?"


def rows(n=60):
    return [(post(i), True) for i in range(n)] + [(varied(i), False) for i in range(n)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "classifier"
    train(rows(), out, {"positive": "posts", "negative": "pages"}, log=lambda line: None)
    return out


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_no_text_lies_on_both_sides():
    copies = [(post(i).upper().replace(" ", "  \n"), True) for i in range(0, 60, 3)]
    parts = split(rows() + copies + copies, 0.3, seed=5)
    train_keys, held_keys = ({key_of(text) for text in part.texts} for part in (parts.train, parts.held_out))
    assert not train_keys & held_keys
    assert len(train_keys) + len(held_keys) == len(parts.train.texts) + len(parts.held_out.texts) == 120
    assert (parts.read, parts.duplicates, parts.contradictory) == (160, 40, 0)
    assert 20 <= len(held_keys) <= 52  # 36 expected
    for part in (parts.train, parts.held_out):
        assert [text.lower().startswith("can my") for text in part.texts] == part.positive.tolist()


def test_a_documents_side_depends_on_the_text_and_the_seed_alone():
    few, more, other = split(rows(30), 0.3, 5), split(rows(60)[::-1], 0.3, 5), split(rows(60), 0.3, 6)
    assert set(few.held_out.texts) <= set(more.held_out.texts)
    assert not set(few.train.texts) & set(more.held_out.texts)
    assert more.held_out.texts == split(rows(60), 0.3, 5).held_out.texts
    assert set(more.held_out.texts) != set(other.held_out.texts)
    assert c.side_of(key_of("A  b"), 0) == c.side_of(key_of("a B\n"), 0) == 0.9240117231871469  # the same forever


def test_texts_with_both_labels_are_left_out():
    parts = split([*rows(), (post(7), False), (post(7), False)], 0.3, 5)
    assert (parts.contradictory, parts.duplicates) == (1, 2)
    assert post(7) not in parts.train.texts + parts.held_out.texts


def test_a_reloaded_model_gives_the_same_scores(model):
    texts = [*(text for text, _ in rows(90)), "", "? !", "zzz unseen words", "a\ud800b \0 naïve"]
    parts = split(rows(), 0.2, 0)
    fresh = fit(parts.train, {}).score(texts)
    assert np.array_equal(load_classifier(model).score(texts), fresh)
    assert (fresh[:90] > 0.5).all()
    assert (fresh[90:180] < 0.5).all()
    assert fresh[180:182].tolist() == [0.0, 0.0]
    assert [load_classifier(model).score([text])[0] for text in texts[::9]] == fresh[::9].tolist()
    assert load_classifier(model).score([]).shape == (0,)


def test_a_score_is_the_logistic_function_of_the_mean_weight():
    """By the definition, with the hash taken from its own function."""
    from sklearn.utils import murmurhash3_32

    coefficients = np.zeros(VECTORIZER["n_features"], np.float32)
    grams = ["alpha", "beta", "alpha beta", "beta alpha"]
    for gram, value in zip(grams, (1.0, -2.0, 0.5, 3.0), strict=True):
        coefficients[abs(murmurhash3_32(gram, seed=0)) % len(coefficients)] = value
    classifier = c.Classifier(coefficients, 0.25, {})
    expected = [(1.0 - 2.0 + 0.5) / 3**0.5, (1.0 - 2.0 + 0.5 + 3.0) / 4**0.5, 1.0]
    expected = [1 / (1 + math.exp(-x - 0.25)) for x in expected]
    assert classifier.score(["Alpha, beta!", "alpha beta alpha beta", "alpha"]) == pytest.approx(expected, abs=1e-12)


def test_training_again_gives_the_same_bytes(model, tmp_path):
    names = {"positive": "posts", "negative": "pages"}
    shuffled = rows() + rows(3)[:3]
    random.Random(0).shuffle(shuffled)
    train(shuffled, tmp_path / "again", names, log=str)
    again, first = contents(tmp_path / "again"), contents(model)
    assert again["classifier.json"] != first["classifier.json"]  # it counts the three copies
    assert all(again[name] == first[name] for name in ("classifier.safetensors", "scores.png"))
    train(rows(), tmp_path / "again", names, log=str)  # replaces it
    assert contents(tmp_path / "again") == first


def test_the_directory_holds_no_pickle(model):
    assert sorted(p.name for p in model.iterdir()) == FILES
    assert (model / "scores.png").read_bytes().startswith(b"\x89PNG")
    header = (model / WEIGHTS).read_bytes()
    assert set(json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])) == {"coefficients", "intercept"}
    stored = json.loads((model / DESCRIPTION).read_text())
    assert stored["weights_sha256"] == sha256_bytes(header)
    assert stored["training"]["train"]["positive"] + stored["training"]["held_out"]["positive"] == 60
    assert str(model.parent) not in (model / DESCRIPTION).read_text() + (model / "report.md").read_text()


def test_measures():
    scores, positive = np.array([0.9, 0.5, 0.4, 0.8, 0.1]), np.array([True, True, True, False, False])
    at = measure(scores, positive, 0.5)
    assert [at[k] for k in ("true_positives", "false_positives", "false_negatives", "true_negatives")] == [2, 1, 1, 1]
    assert [at[k] for k in ("precision", "recall", "f1")] == pytest.approx([2 / 3, 2 / 3, 2 / 3])
    nothing = measure(scores, positive, 0.95)
    assert (nothing["precision"], nothing["recall"], nothing["f1"]) == (0.0, 0.0, 0.0)


def test_the_ngrams_that_tell_are_named(model):
    parts = split(rows(), 0.2, 0)
    for_posts, for_pages = c.telling_ngrams(load_classifier(model), parts.train.texts)
    assert {"my", "legally"} < {ngram for ngram, _ in for_posts}
    assert {"reasons", "known to"} & {ngram for ngram, _ in for_pages}
    assert all(value > 0 for _, value in for_posts)
    assert all(value < 0 for _, value in for_pages)
    assert "legally (+" in (model / "report.md").read_text()


def write(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def command(**values):
    defaults = {"text_column": "text", "positive_column": "", "label_column": "label", "positive_label": ""}
    defaults |= {"positive": "", "negative": "", "labelled": "", "min_label": None, "out": ""}
    main({**defaults, "holdout": 0.2, "seed": 0, "max_documents": 0, **values})


def test_documents_of_two_columns_and_the_printed_table(tmp_path, capsys):
    positive = write(tmp_path / "posts.jsonl", [{"question": post(i)} for i in range(80)])
    (tmp_path / "pages").mkdir()
    for i in range(70):
        (tmp_path / "pages" / f"{i}.txt").write_text(varied(i))
    out = tmp_path / "classifier"
    command(positive=positive, negative=str(tmp_path / "pages"), positive_column="question", out=str(out), seed=3,
            max_documents=60)  # fmt: skip
    printed = capsys.readouterr().out
    assert "F1 1.0000" in printed
    assert "| score from | kept | precision | recall | F1 |" in printed
    assert printed.strip().endswith(f"saved in {out}")
    training = json.loads((out / DESCRIPTION).read_text())["training"]
    assert (training["documents_read"], training["seed"]) == (60 + 60, 3)


LABELS = [
    ([True, False, 1, 0.0], {}, [True, False, True, False]),
    ([0, 3, 5, 2.9], {"min_label": 3}, [False, True, True, False]),
    (["law", "web", None, "law"], {"positive_label": "law"}, [True, False, False, True]),
]


@pytest.mark.parametrize(("labels", "options", "expected"), LABELS)
def test_labelled_rows(tmp_path, labels, options, expected):
    source = write(tmp_path / "rows.jsonl", [{"text": f"t{i}", "good": label} for i, label in enumerate(labels)])
    found = list(labelled_examples(source, "text", "good", **options))
    assert found == [(f"t{i}", label) for i, label in enumerate(expected)]


BAD = {
    "no source": ({}, "name the documents with --positive=FILE and --negative=FILE, or with --labelled=FILE"),
    "half of them": ({"positive": "posts"}, "name the documents with --positive"),
    "empty": ({"positive": "posts", "negative": "empty"}, "--negative=.*empty.jsonl holds no text"),
    "one file twice": ({"positive": "posts", "negative": "posts"}, "no positive one .60 texts with both labels"),
    "too few": ({"positive": "few", "negative": "pages"}, "have no positive one: give more documents"),
    "no column": ({"positive": "posts", "negative": "other"}, "no column 'text' but 'body': name one with --text_col"),
    "no positive column": (
        {"positive": "posts", "negative": "pages", "positive_column": "x"},
        "--positive: .*no column 'x' but 'text': name one with --positive_column$",
    ),
    "no file": ({"positive": "posts", "negative": "/nowhere/x.jsonl"}, "--negative: there is no file"),
    "labels of one class": ({"labelled": "ones"}, "no negative one"),
    "no label": ({"labelled": "posts"}, r"posts.jsonl:\d+: there is no column 'label' but no other"),
    "odd label": ({"labelled": "words"}, r"words.jsonl:\d+: 'label' holds 'law', not true.*--positive_label=VALUE"),
    "no number": ({"labelled": "words", "min_label": 2.0}, "holds 'law', not a number"),
    "labels in a text": ({"labelled": "/nowhere/x.txt"}, "must be a .jsonl, .jsonl.gz or .parquet file"),
    "holdout": ({"positive": "posts", "negative": "pages", "holdout": 1.0}, "--holdout=1.0 must be between 0 and 1"),
    "no out": ({"out": ""}, "--out is empty"),
    "taken": ({"positive": "posts", "negative": "pages", "out": "taken"}, "'notes', which is no file of a classifier"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_a_sentence(tmp_path, case):
    values, match = BAD[case]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes").write_text("mine")
    texts = {"posts": [{"text": post(i)} for i in range(60)], "pages": [{"text": varied(i)} for i in range(60)]}
    texts |= {"empty": [{"text": ""}], "few": [{"text": post(0)}], "other": [{"body": post(0)}]}
    texts |= {"ones": [{"text": post(i), "label": 1} for i in range(60)], "words": [{"text": "x", "label": "law"}]}
    paths = {name: write(tmp_path / f"{name}.jsonl", values) for name, values in texts.items()}
    paths["taken"] = str(tmp_path / "taken")
    given = {key: paths.get(value, value) if isinstance(value, str) else value for key, value in values.items()}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=match) as e:
        command(**{"out": str(tmp_path / "out"), **given})
    assert "\n" not in str(e.value)
    assert sorted(tmp_path.rglob("*")) == before


def run_command(*arguments, code=""):
    code += "import runpy, sys; sys.argv = ['train_classifier', *sys.argv[1:]];"
    code += "runpy.run_module('data_prep.train_classifier', run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_without_scikit_learn_the_command_says_what_to_install(tmp_path):
    source = write(tmp_path / "posts.jsonl", [{"text": post(0)}])
    hidden = "import sys; sys.modules['sklearn'] = None;"
    done = run_command(f"--positive={source}", f"--negative={source}", f"--out={tmp_path / 'out'}", code=hidden)
    assert done.returncode == 1
    assert done.stderr.startswith("error: a classifier needs scikit-learn: pip install")
    assert done.stderr.strip().endswith('".[filter]"')
    assert done.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["posts.jsonl"]
    done = run_command(
        "--help", code=hidden + "sys.modules['scipy'] = sys.modules['torch'] = sys.modules['jax'] = None;"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"--{name}:" in done.stdout for name in ("positive", "labelled", "holdout", "max_documents"))


DAMAGE = {
    "a bit": "safetensors is damaged",
    "cut": "safetensors is damaged",
    "nan": "safetensors is damaged",
    "pickle": "safetensors is damaged",
    "no weights": r"holds no classifier \(classifier.safetensors: No such file",
    "no description": r"holds no classifier \(classifier.json: No such file",
    "no json": "classifier.json is damaged",
    "a list": "classifier.json is damaged",
    "version": "is of another version",
    "settings": "is of another version",
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_models_are_refused(model, tmp_path, what):
    data, stored = (model / WEIGHTS).read_bytes(), json.loads((model / DESCRIPTION).read_text())
    middle, nan = len(data) // 2, np.float32(np.nan).tobytes()
    weights = {"a bit": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :], "cut": data[:-100]}
    forged = {"nan": data[:-4] + nan, "pickle": b"\x80\x04pickle"}  # with the right checksum
    texts = {"no json": "{", "a list": "[]", "version": json.dumps(stored | {"format_version": 2})}
    texts["settings"] = json.dumps(stored | {"vectorizer": VECTORIZER | {"lowercase": False}})
    texts |= {name: json.dumps(stored | {"weights_sha256": sha256_bytes(forged[name])}) for name in forged}
    if what != "no weights":
        (tmp_path / WEIGHTS).write_bytes((weights | forged).get(what, data))
    if what != "no description":
        (tmp_path / DESCRIPTION).write_text(texts.get(what, json.dumps(stored)))
    with pytest.raises(UserError, match=DAMAGE[what]) as e:
        load_classifier(tmp_path)
    assert "python -m data_prep.train_classifier" in str(e.value)


@pytest.fixture
def pool(tmp_path):
    """Twenty posts and twenty pages in turn, in several pieces."""
    texts = [text for pair in zip(rows(120)[100:120], rows(120)[220:240], strict=True) for text, _ in pair]
    write(tmp_path / "pool.jsonl", [{"text": text, "n": i} for i, text in enumerate(texts)])
    return tmp_path / "pool.jsonl"


def filtered(pool, out, model, threshold=0.5, workers=1, log=lambda line: None):
    pytest.importorskip("datatrove")
    pytest.importorskip("spacy")
    from data_prep.filter import Request, filter_text

    recipe = Recipe(("classifier",), classifier=str(model), classifier_threshold=threshold)
    filter_text(Request(str(pool), out, recipe, samples=2, shard_mb=0.003), workers=workers, log=log)
    return [json.loads(line) for p in sorted(out.glob("*.gz")) for line in gzip.decompress(p.read_bytes()).splitlines()]


def test_the_filter_keeps_what_scores_high(pool, model, tmp_path):
    kept = filtered(pool, tmp_path / "out", model)
    assert [row["n"] for row in kept] == list(range(0, 40, 2))
    assert all(row["text"] == post(100 + row["n"] // 2) for row in kept)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    [counts] = report["filters"]
    assert (counts["documents"]["in"], counts["reasons"][0]["reason"]) == (40, "low score")
    scores = load_classifier(model).score([text for text, _ in rows(120)[220:240]])
    details = [sample["detail"] for sample in counts["samples"]]
    assert details == [f"score {score:.3f}" for score in scores[:2]]
    assert report["facts"]["classifier"].startswith(f"score of at least 0.5, classifier, SHA-256 {sha_of(model)[:16]}")
    assert len(filtered(pool, tmp_path / "two", model, workers=2)) == 20
    assert contents(tmp_path / "two") == contents(tmp_path / "out")


def sha_of(model):
    return sha256_bytes((model / DESCRIPTION).read_bytes())


def test_the_threshold_is_the_least_score_that_passes(pool, model, tmp_path):
    texts = [json.loads(line)["text"] for line in pool.read_text().splitlines()]
    scores = load_classifier(model).score(texts)
    middle = float(np.sort(scores)[30])
    kept = filtered(pool, tmp_path / "out", model, threshold=middle)
    assert [row["n"] for row in kept] == np.flatnonzero(scores >= middle).tolist()
    assert 10 <= len(kept) < 20
    assert len(filtered(pool, tmp_path / "all", model, threshold=0.0)) == 40
    with pytest.raises(UserError, match=r"all 40 documents were dropped \(classifier 40\)"):
        filtered(pool, tmp_path / "none", model, threshold=1.0)


def test_a_run_is_taken_up_with_the_same_model_only(pool, model, tmp_path, monkeypatch):
    pytest.importorskip("datatrove")
    from data_prep import filter as filtering

    changing, lines = tmp_path / "model", []
    shutil.copytree(model, changing)
    begun = with_classifier(Recipe(("classifier",), classifier=str(changing)))
    with monkeypatch.context() as patch:
        patch.setattr(filtering.Publish, "__call__", lambda self: (_ for _ in ()).throw(RuntimeError("killed")))
        for run in range(3):
            if run == 2:
                train(rows(), changing, {"positive": "posts", "negative": "pages"}, seed=1, log=str)
            with pytest.raises(RuntimeError):
                filtered(pool, tmp_path / "out", changing, log=lines.append)
    assert [line.split()[0] for line in lines if "work" in line] == ["resuming", "the"]
    with pytest.raises(UserError, match="has changed since the run began"):
        make_block("classifier", begun, tmp_path)


def test_the_filter_refuses_what_it_cannot_use(pool, model, tmp_path):
    for threshold in (-0.1, 1.5, math.nan):
        with pytest.raises(UserError, match=r"--classifier_threshold=.* must be between 0 and 1"):
            c.check_threshold(threshold)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="--classifier_threshold=2"):
        filtered(pool, tmp_path / "out", model, threshold=2)
    with pytest.raises(UserError, match="holds no classifier"):
        filtered(pool, tmp_path / "out", tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match="needs a model: make one with"):
        parse_filters("classifier,pii")
    with pytest.raises(UserError, match="add it to --filters"):
        parse_filters("pii", classifier="dir")
    names = parse_filters("", ["x"], "dir")
    assert names.index("fineweb_quality") < names.index("classifier") < names.index("exact_dedup")
    assert "decontaminate" in names


def test_law_posts_are_told_from_c4(shared):
    """On held-out rows; the classifier never saw OpenWebText, and lets little of it through."""
    law, c4 = str(shared / "law_stack_exchange" / "law_stack_exchange.jsonl"), str(shared / "c4")
    found = [*examples(law, "positive", "text", True), *examples(c4, "negative", "text", False)]
    parts = split(found, 0.2, 0)
    classifier = fit(parts.train, {})
    at = measure(classifier.score(parts.held_out.texts), parts.held_out.positive, 0.5)
    assert (parts.duplicates, len(parts.held_out.texts)) == (474, 556)
    assert at["f1"] >= 0.97, at
    web = [text for text, _ in examples(str(shared / "openwebtext"), "negative", "text", False, 300)]
    assert (classifier.score(web) >= 0.5).mean() < 0.06
