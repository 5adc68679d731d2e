"""Damaged, unsafe and foreign Hugging Face directories end in one sentence; good ones are written whole or not."""

import json
import shutil
import struct

import numpy as np
import pytest

from configs.schema import resolve_model
from parity_tests.models import MODELS, random_weights, tokenizer_for
from scratchgpt.errors import UserError
from scratchgpt.hf_directory import open_hf_directory, write_hf_directory

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def edit_config(directory, **values):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_header(directory, edit):
    """Rewrite the safetensors header by ``edit(header)``, leaving the data."""
    data = (directory / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    edit(header)
    encoded = json.dumps(header).encode()
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(encoded)) + encoded + data[8 + length :])


def set_bytes(directory, new):
    (directory / WEIGHTS).write_bytes(new((directory / WEIGHTS).read_bytes()))


def shard(directory, file):
    names = list(open_hf_directory(directory).names)
    (directory / WEIGHTS).rename(directory / "part.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, file)}))


def only_pickle(directory):
    (directory / WEIGHTS).unlink()
    (directory / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")


def with_value(directory, value):
    """Overwrite the first number of the data."""
    data = bytearray((directory / WEIGHTS).read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    data[8 + length : 12 + length] = np.float32(value).tobytes()
    (directory / WEIGHTS).write_bytes(data)


LAYERS = MODELS["llama"].n_layer
EMBEDDING = "model.embed_tokens.weight"
DAMAGE = {
    "gone": (shutil.rmtree, "does not exist"),
    "no config": (lambda d: (d / "config.json").unlink(), "has no config.json"),
    "config is not JSON": (lambda d: (d / "config.json").write_text("{"), "is not valid JSON"),
    "config is a list": (lambda d: (d / "config.json").write_text("[]"), "must hold a JSON object"),
    "other model": (lambda d: edit_config(d, model_type="mamba"), "model_type 'mamba' is none of"),
    "model type is a list": (lambda d: edit_config(d, model_type=["llama"]), "is none of"),
    "rope is a list": (lambda d: edit_config(d, rope_parameters=[1]), "rope_parameters"),
    "theta is text": (lambda d: edit_config(d, rope_parameters={"rope_theta": "big"}), "rope_theta"),
    "scaled rope": (lambda d: edit_config(d, rope_parameters={"rope_type": "yarn"}), "rope_type='yarn'"),
    "biases": (lambda d: edit_config(d, attention_bias=True), "attention_bias=True"),
    "quantized": (lambda d: edit_config(d, quantization_config={"bits": 4}), "quantization_config"),
    "negative": (lambda d: edit_config(d, hidden_size=-1), "hidden_size=-1"),
    "other activation": (lambda d: edit_config(d, hidden_act="gelu"), "hidden_act='gelu'"),
    "too many layers": (lambda d: edit_config(d, num_hidden_layers=10**9), "too few for"),
    "one layer more": (
        lambda d: edit_config(d, num_hidden_layers=LAYERS + 1),
        f"lacks the tensor 'model.layers.{LAYERS}",
    ),
    "one layer less": (lambda d: edit_config(d, num_hidden_layers=LAYERS - 1), "tensors that llama does not"),
    "other width": (lambda d: edit_config(d, intermediate_size=7), "config.json implies"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "has no model.safetensors"),
    "pickle": (only_pickle, "never loaded: convert it"),
    "empty file": (lambda d: set_bytes(d, lambda b: b""), "has only 0 bytes"),
    "cut header": (lambda d: set_bytes(d, lambda b: b[:100]), "header claims"),
    "cut data": (lambda d: set_bytes(d, lambda b: b[:-4]), "cut short"),
    "huge header": (lambda d: set_bytes(d, lambda b: b"\xff" * 8 + b[8:]), "header claims"),
    "header is not JSON": (lambda d: set_bytes(d, lambda b: b[:8] + b"!" + b[9:]), "not JSON"),
    "deep header": (lambda d: set_bytes(d, lambda b: struct.pack("<Q", 9**5) + b"[" * 9**5), "header is not JSON"),
    "lost tensor": (lambda d: edit_header(d, lambda h: h.pop(EMBEDDING)), "lacks the tensor"),
    "entry is text": (lambda d: edit_header(d, lambda h: h.update({EMBEDDING: "x"})), "not one of the format"),
    "wrong size": (lambda d: edit_header(d, lambda h: h[EMBEDDING].update(shape=[1, 48])), "cannot have"),
    "negative shape": (lambda d: edit_header(d, lambda h: h[EMBEDDING].update(shape=[-91, -48])), "has the shape"),
    "overlap": (
        lambda d: edit_header(d, lambda h: h["model.norm.weight"].update(data_offsets=[0, 192])),
        "overlaps another",
    ),
    "integers": (lambda d: edit_header(d, lambda h: h[EMBEDDING].update(dtype="I32")), "dtype I32"),
    "NaN": (lambda d: with_value(d, np.nan), "not finite"),
    "infinity": (lambda d: with_value(d, -np.inf), "not finite"),
    "index leads out": (lambda d: shard(d, "../llama/part.safetensors"), "not a plain file name"),
    "index is absolute": (lambda d: shard(d, "/etc/passwd"), "not a plain file name"),
    "index names nothing": (lambda d: shard(d, "other.safetensors"), "lacks the file"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_in_one_sentence(directories, tmp_path, damage):
    directory = tmp_path / "llama"
    shutil.copytree(directories["llama"], directory)
    do, sentence = DAMAGE[damage]
    do(directory)
    with pytest.raises(UserError, match=sentence) as e:
        list(open_hf_directory(directory).parameters())
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("kind", "dtype"), [("F64", "<f8"), ("F16", "<f2"), ("BF16", None)])
def test_other_float_types_are_widened_exactly(directories, tmp_path, kind, dtype):
    stored = open_hf_directory(directories["llama"])
    header, blob, expected = {}, b"", {}
    for name in sorted(stored.names):
        array = stored.get(name)
        if dtype:
            raw = array.astype(dtype)
            expected[name] = raw.astype(np.float32)
            raw = raw.tobytes()
        else:
            bits = array.view(np.uint32) & 0xFFFF0000
            expected[name], raw = bits.view(np.float32), (bits >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [len(blob), len(blob) + len(raw)]}
        blob += raw
    shutil.copytree(directories["llama"], tmp_path / "m")
    encoded = json.dumps(header).encode()
    (tmp_path / "m" / WEIGHTS).write_bytes(struct.pack("<Q", len(encoded)) + encoded + blob)
    read = open_hf_directory(tmp_path / "m")
    for name in stored.names:
        np.testing.assert_array_equal(read.get(name), expected[name])
        assert read.get(name).dtype == np.float32


def test_an_export_has_every_file_and_no_copy_of_a_tied_head(directories):
    names = {p.name for p in directories["llama-tied"].iterdir()}
    wanted = {"config.json", WEIGHTS, "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert wanted <= names
    assert "lm_head.weight" not in open_hf_directory(directories["llama-tied"]).names


def test_the_safetensors_library_reads_the_same(directories):
    from safetensors.numpy import load_file

    stored = open_hf_directory(directories["gpt2"])
    arrays = load_file(directories["gpt2"] / WEIGHTS)
    assert arrays.keys() == stored.names
    assert all(np.array_equal(arrays[n], stored.get(n)) for n in arrays)


def write(directory, **changed):
    model = resolve_model(MODELS["llama"])
    weights = random_weights(model) | changed
    write_hf_directory(directory, model, weights.__getitem__, tokenizer_for(model), "card")


def test_weights_that_are_not_finite_leave_the_old_export_in_place(tmp_path):
    write(tmp_path / "out")
    before = (tmp_path / "out" / WEIGHTS).read_bytes()
    with pytest.raises(UserError, match="not finite"):
        write(tmp_path / "out", **{"final_norm.weight": np.full(48, np.nan, np.float32)})
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    write(tmp_path / "out")


def test_only_a_model_directory_is_ever_replaced(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "config.json").write_text('{"model": {}}')  # as a workdir has
    with pytest.raises(UserError, match="not a Hugging Face model directory"):
        write(tmp_path / "notes")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="not a Hugging Face model directory"):
        write(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"
