"""Files that are nearly right: every reader takes them or says one sentence, whatever was changed in them."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.schema import Config, ConfigError, DataConfig, from_dict, to_dict
from data_prep.document_index import DocumentIndex
from data_prep.prepare import prepare
from data_prep.shards import open_tokens
from data_prep.tokenizers import char_tokenizer, load_tokenizer
from parity_tests.models import MODELS, random_weights, tokenizer_for
from scratchgpt.errors import UserError
from scratchgpt.files import read_json
from scratchgpt.hf_directory import INDEX, WEIGHTS, open_hf_directory, write_hf_directory
from scratchgpt.metrics import read_metrics

FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUMBERS = st.sampled_from([0, -1, 1, 2**31, 2**53, 10**18, -(10**18), 10**30, 0.5, 1e300, float("nan"), float("inf")])
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.sampled_from(["../../x", "/etc/passwd", "\x00"])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=5,
)


def paths_of(value: Any, path: tuple = ()) -> list[tuple]:
    """Where something stands in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, inner in items for p in paths_of(inner, (*path, key)))]


@st.composite
def edited(draw: st.DrawFn, value: Any) -> Any:
    """``value`` with one to three places set to something else, or taken away."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from(paths_of(value)[1:] or [("",)]))
        inner = value
        for key in parents:
            inner = inner[key]
        if draw(st.booleans()) and isinstance(inner, dict):
            inner.pop(last, None)
        elif isinstance(inner, dict | list) and inner:
            inner[last] = draw(VALUES)
    return value


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """``data`` cut short, with bytes changed, or with others in between."""
    at = draw(st.integers(0, max(0, len(data) - 1)))
    kind = draw(st.sampled_from(["cut", "change", "insert"]))
    if kind == "cut":
        return data[:at]
    more = draw(st.binary(min_size=1, max_size=8))
    return data[:at] + more + data[at + (len(more) if kind == "change" else 0) :]


def takes_or_tells(read: Callable[[], Any]) -> None:
    """Any error but the two that make one sentence fails the test."""
    try:
        read()
    except (UserError, ConfigError) as e:
        assert str(e).strip()  # noqa: PT017 (a reader may also succeed)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    place = tmp_path_factory.mktemp("shards")
    (place / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    return prepare(
        DataConfig(dataset="fox", source=str(place / "text.txt"), dir=str(place / "out")), log=lambda _: None
    )


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A Hugging Face directory of each of two families, the second with an index of its weights."""
    place = tmp_path_factory.mktemp("exports")
    for family in ("gpt2", "llama"):
        write_hf_directory(
            place / family, MODELS[family], random_weights(MODELS[family]).get, tokenizer_for(MODELS[family])
        )
    (place / "llama" / WEIGHTS).rename(place / "llama" / "part.safetensors")
    names = dict.fromkeys(open_names(place / "llama" / "part.safetensors"), "part.safetensors")
    (place / "llama" / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    return place


def open_names(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return list(file.keys())


def copy_of(directory: Path, tmp_path: Path) -> Path:
    """A fresh one, for every example."""
    place = tmp_path / "place"
    shutil.rmtree(place, ignore_errors=True)
    return Path(shutil.copytree(directory, place))


def read_shards(directory: Path) -> None:
    for split in ("train", "val"):
        tokens = open_tokens(directory, split)
        tokens.slice(0, len(tokens))
        index = DocumentIndex(directory, split)
        index[len(index) - 1]
    load_tokenizer(directory)


def read_export(directory: Path) -> None:
    found = open_hf_directory(directory)
    for _ in found.parameters():
        pass
    assert isinstance(found.labels, list)
    load_tokenizer(directory).encode("a")


@FUZZ
@given(data=st.data())
def test_a_manifest(shards, tmp_path, data):
    place = copy_of(shards, tmp_path)
    path = place / "manifest.json"
    if data.draw(st.booleans()):
        path.write_text(json.dumps(data.draw(edited(json.loads(path.read_text())))))
    else:
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    takes_or_tells(lambda: read_shards(place))


@FUZZ
@given(data=st.data())
def test_shards_are_taken_only_as_they_were(shards, tmp_path, data):
    place = copy_of(shards, tmp_path)
    path = place / data.draw(
        st.sampled_from(["train_00000.bin", "val_00000.bin", "train_00000.docs", "val_00000.docs"])
    )
    whole = path.read_bytes()
    path.write_bytes(data.draw(damaged(whole)))
    if path.read_bytes() != whole:
        with pytest.raises(UserError, match=path.name):
            read_shards(place)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@FUZZ
@given(data=st.data())
def test_a_hugging_face_directory(exports, tmp_path, family, data):
    place = copy_of(exports / family, tmp_path)
    names = sorted(p.name for p in place.iterdir() if p.suffix in (".json", ".safetensors"))
    path = place / data.draw(st.sampled_from(names))
    if path.suffix == ".json" and data.draw(st.booleans()):
        path.write_text(json.dumps(data.draw(edited(json.loads(path.read_text())))))
    elif path.suffix == ".json":
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    else:  # the header is what can do harm
        whole = path.read_bytes()
        length = int.from_bytes(whole[:8], "little")
        header = json.dumps(data.draw(edited(json.loads(whole[8 : 8 + length])))).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length :])
        if data.draw(st.booleans()):
            path.write_bytes(data.draw(damaged(path.read_bytes()[:300])) + path.read_bytes()[300:])
    takes_or_tells(lambda: read_export(place))


@FUZZ
@given(data=st.data())
def test_a_stored_configuration(tmp_path, data):
    path = tmp_path / "config.json"
    whole = json.dumps(to_dict(Config()))
    if data.draw(st.booleans()):
        path.write_text(json.dumps(data.draw(edited(json.loads(whole)))))
    else:
        path.write_bytes(data.draw(damaged(whole.encode())))
    takes_or_tells(lambda: from_dict(read_json(path)))


@FUZZ
@given(data=st.data())
def test_a_checkpoint_record_and_metrics(tmp_path, data):
    from jaxgpt.checkpoint import Checkpoints

    standing = {"best_val_loss": 1.5, "evaluations_since_best": 0, "nonfinite_steps": 0}
    record = {"step": 5, "val_loss": 1.5, "standing": standing, "files": {"a": "0" * 64}}
    (tmp_path / "00000005").mkdir(exist_ok=True)
    path = tmp_path / "00000005.json"
    for other in tmp_path.glob("*.damaged"):
        other.unlink()
    if data.draw(st.booleans()):
        path.write_text(json.dumps(data.draw(edited(record))))
    else:
        path.write_bytes(data.draw(damaged(json.dumps(record).encode())))
    checkpoints = Checkpoints(tmp_path, log=lambda _: None)
    takes_or_tells(checkpoints.newest_good)
    lines = "".join(json.dumps({"step": i, "train_loss": 1.0}) + "\n" for i in range(5))
    (tmp_path / "metrics.jsonl").write_bytes(data.draw(damaged(lines.encode())))
    takes_or_tells(lambda: read_metrics(tmp_path / "metrics.jsonl"))


@FUZZ
@given(data=st.data())
def test_a_tokenizer(tmp_path, data):
    char_tokenizer(["abc"]).save(tmp_path)
    path = tmp_path / data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
    if data.draw(st.booleans()):
        path.write_text(json.dumps(data.draw(edited(json.loads(path.read_text())))))
    else:
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    takes_or_tells(lambda: load_tokenizer(tmp_path).encode("cab"))
