"""Hostile input to every command: one sentence, a failure's exit status, bounded time and memory, and nothing lost."""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.repo.warm_commands import run_command

ROOT = Path(__file__).resolve().parents[2]
TEXT = "the quick brown fox jumps over the lazy dog. pack my box with five dozen jugs.\n" * 60
SMALL = f"--config={ROOT / 'configs' / 'small.py'}"
TINY = [
    SMALL,
    "--config.data.dataset=foxes",
    "--config.data.source=text.txt",
    "--config.model.n_layer=1",
    "--config.model.n_head=2",
    "--config.model.n_embd=16",
    "--config.model.context_length=16",
    "--config.train.batch_size=4",
    "--config.train.steps=6",
    "--config.checkpoint.every=2",
    "--config.sample.prompt=the ",
    "--config.sample.max_new_tokens=5",
    "--config.log.report=False",
]
LIMIT_S, LIMIT_BYTES = 60, 3 * 2**30


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A directory with a text, its shards and a finished run."""
    place = tmp_path_factory.mktemp("finished")
    (place / "text.txt").write_text(TEXT)
    done = run_command("jaxgpt.train", *TINY, "--workdir=run", cwd=place, limit_s=300)
    assert done.returncode == 0, done.stderr
    (shards,) = (place / "data").iterdir()
    shards.rename(place / "shards")
    return place


def edit_json(path: Path, edit: Callable[[dict], None]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def edit_bytes(path: Path, edit: Callable[[bytearray], object]) -> None:
    data = bytearray(path.read_bytes())
    edit(data)
    path.write_bytes(data)


def header(edit: Callable[[dict], object]) -> Callable[[Path], None]:
    """Change the header of an export's weights."""

    def change(place: Path) -> None:
        path = place / "run" / "export" / "model.safetensors"
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        found = json.loads(data[8 : 8 + length])
        edit(found)
        encoded = json.dumps(found).encode()
        path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data[8 + length :])

    return change


def weights(edit: Callable[[bytearray], object]) -> Callable[[Path], None]:
    return lambda place: edit_bytes(place / "run" / "export" / "model.safetensors", edit)


def hf_config(**values: object) -> Callable[[Path], None]:
    return lambda place: edit_json(place / "run" / "export" / "config.json", lambda c: c.update(values))


def manifest(edit: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda place: edit_json(place / "shards" / "manifest.json", edit)


def shard(edit: Callable[[bytearray], object]) -> Callable[[Path], None]:
    return lambda place: edit_bytes(place / "shards" / "train_00000.bin", edit)


def tokenizer(edit: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda place: edit_json(place / "run" / "export" / "tokenizer.json", edit)


def file(name: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda place: (place / name).write_bytes(content.encode() if isinstance(content, str) else content)


def index(mapping: dict[str, str]) -> Callable[[Path], None]:
    """Give the export an index of shards instead of its weights."""

    def change(place: Path) -> None:
        (place / "run" / "export" / "model.safetensors").unlink()
        path = place / "run" / "export" / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": mapping}))

    return change


def records(edit: Callable[[Path], object]) -> Callable[[Path], None]:
    """Change every checkpoint of the run."""
    return lambda place: [edit(p) for p in sorted((place / "run" / "checkpoints").glob("*.json"))] and None


def cut_short(record: Path) -> None:
    """Empty the largest file of a checkpoint."""
    files = (path for path in (record.parent / record.stem).rglob("*") if path.is_file())
    max(files, key=os.path.getsize).write_bytes(b"")


def nothing(place: Path) -> None:
    pass


def set_nan(data: bytearray) -> None:
    data[-4:] = np.float32("nan").tobytes()


TRAIN, EVALUATE, GENERATE = "jaxgpt.train", "jaxgpt.evaluate", "torchgpt.generate"
MEASURE = ["--checkpoint=run", "--data=text.txt"]
RUN = [*TINY, "--workdir=run"]
READ = [*TINY, "--config.data.dir=shards", "--workdir=new"]
WRITE = ["--checkpoint=run/export", "--prompt=the ", "--max_new_tokens=3"]
PREPARE = ["--dataset=mine", "--source=text.txt", "--out=out"]
DEEP = "[" * 100_000

# name: (command, its arguments, what is done to the place before, words of the sentence)
CASES: dict[str, tuple[str, list[str], Callable[[Path], object], str]] = {
    # --- configurations
    "section misspelt": (TRAIN, [*TINY, "--config.modle.n_layer=2"], nothing, "'model.n_layer'"),
    "unknown key without a run file": (TRAIN, ["--config.model.n_heads=2"], nothing, "'model.n_head'"),
    "name beyond the disk's": (EVALUATE, [f"--checkpoint={'x' * 300}"], nothing, "File name too long"),
    "limit beyond counting": (EVALUATE, [*MEASURE, f"--limit={10**30}"], nothing, "--limit"),
    "figures over the metrics": (EVALUATE, [*MEASURE, "--output=run/metrics.jsonl"], nothing, "is no evaluation"),
    "negative steps": (TRAIN, [*TINY, "--config.train.steps=-5"], nothing, "train.steps=-5 must be at least 1"),
    "learning rate nan": (TRAIN, [*TINY, "--config.optim.learning_rate=nan"], nothing, "optim.learning_rate=nan"),
    "weight decay inf": (TRAIN, [*TINY, "--config.optim.weight_decay=inf"], nothing, "optim.weight_decay=inf"),
    "truth for a number": (TRAIN, [*TINY, "--config.train.steps=True"], nothing, "steps"),
    "huge context": (TRAIN, [*TINY, "--config.model.context_length=99999999999999"], nothing, "larger than anything"),
    "huge width": (TRAIN, [*TINY, "--config.model.n_embd=1048576"], nothing, "memory"),
    "unknown dtype": (TRAIN, [*TINY, "--config.train.dtype=fp32"], nothing, "nearest is 'float32'"),
    "two free axes": (TRAIN, [*TINY, "--config.mesh.fsdp=-1"], nothing, "only one axis may be -1"),
    "long warm-up": (TRAIN, [*TINY, "--config.optim.warmup_steps=7"], nothing, "optim.warmup_steps=7 exceeds"),
    "run file without a function": (TRAIN, ["--config=a.py"], file("a.py", "x = 1"), "get_config"),
    "run file with an error": (TRAIN, ["--config=a.py"], file("a.py", "def get_config(:"), "run file"),
    "run file of bytes": (TRAIN, ["--config=a.py"], file("a.py", bytes(range(256))), "run file"),
    "run file names a key that is none": (
        TRAIN,
        ["--config=a.py"],
        file("a.py", "from configs.schema import gpt2\n\n\ndef get_config():\n    return gpt2(n_layers=3)"),
        "run file: TypeError: ModelConfig.__init__() got an unexpected keyword argument 'n_layers'",
    ),
    "run file returns a dict": (
        TRAIN,
        ["--config=a.py"],
        file("a.py", "def get_config(): return {}"),
        "configs.schema.Config",
    ),
    "run file is a directory": (TRAIN, ["--config=run"], nothing, "there is no run file 'run'"),
    "run file exits": (TRAIN, ["--config=a.py"], file("a.py", "raise SystemExit(0)"), "run file"),
    # --- runs
    "checkpoints all cut short": (
        TRAIN,
        RUN,
        records(cut_short),
        "no checkpoint in",
    ),
    "records all damaged": (TRAIN, RUN, records(lambda p: p.write_text("{")), "no checkpoint in"),
    "checkpoints all gone": (TRAIN, RUN, lambda d: shutil.rmtree(d / "run" / "checkpoints"), "has reached step 6"),
    "metrics damaged": (TRAIN, RUN, file("run/metrics.jsonl", "{\n{}\n"), "metrics.jsonl:1 is not a JSON object"),
    "identity is a list": (TRAIN, RUN, file("run/identity.json", "[]"), "holds a run with"),
    "identity is nested": (TRAIN, RUN, file("run/identity.json", DEEP), "identity.json is not valid JSON"),
    "other data": (TRAIN, RUN, file("text.txt", TEXT + "more"), "run"),
    "replay of no run": (TRAIN, ["--workdir=none", "--replay=3"], nothing, "none/config.json does not exist"),
    "replay beyond the end": (TRAIN, ["--workdir=run", "--replay=7"], nothing, "there is no step 7"),
    "replay of a damaged config": (
        TRAIN,
        ["--workdir=run", "--replay=3"],
        file("run/config.json", '{"model": {"n_layer": "many"}}'),
        "model.n_layer",
    ),
    "export of a step that is none": (
        "jaxgpt.export",
        ["--workdir=run", "--out=out", "--step=²"],
        nothing,
        "has no checkpoint '²'",
    ),
    "export over a file": ("jaxgpt.export", ["--workdir=run", "--out=text.txt"], nothing, "text.txt exists"),
    "export of no run": ("jaxgpt.export", ["--workdir=none", "--out=out"], nothing, "none/config.json does not exist"),
    "export to a strange name": (
        "jaxgpt.export",
        ["--workdir=run", "--push_to_hub=../../etc"],
        nothing,
        "push_to_hub",
    ),
    "topology of nothing": ("jaxgpt.plan", [SMALL, "--topology=abacus:3"], nothing, "abacus"),
    # --- shards
    "manifest is empty": (TRAIN, READ, file("shards/manifest.json", ""), "is not valid JSON"),
    "manifest is a list": (TRAIN, READ, file("shards/manifest.json", "[]"), "is not a manifest"),
    "manifest is nested": (TRAIN, READ, file("shards/manifest.json", DEEP), "is not valid JSON"),
    "manifest names a file elsewhere": (
        TRAIN,
        READ,
        manifest(lambda m: m["splits"]["train"]["shards"][0].update(file="../../../etc/passwd")),
        "manifest.json",
    ),
    "manifest of too many tokens": (
        TRAIN,
        READ,
        manifest(lambda m: m["splits"]["train"]["shards"][0].update(tokens=10**15)),
        "manifest.json",
    ),
    "manifest of negative tokens": (
        TRAIN,
        READ,
        manifest(lambda m: m["splits"]["train"]["shards"][0].update(tokens=-1)),
        "manifest.json",
    ),
    "manifest without splits": (TRAIN, READ, manifest(lambda m: m.pop("splits")), "manifest.json"),
    "manifest of another dtype": (TRAIN, READ, manifest(lambda m: m.update(dtype="float64")), "dtype 'float64'"),
    "shard cut short": (TRAIN, READ, shard(lambda d: d.pop()), "train_00000.bin"),
    "shard with a flipped bit": (TRAIN, READ, shard(lambda d: d.__setitem__(99, d[99] ^ 1)), "is damaged"),
    "shard gone": (TRAIN, READ, lambda d: (d / "shards" / "train_00000.bin").unlink(), "train_00000.bin"),
    # --- tokenizers
    "tokenizer is no JSON": (GENERATE, WRITE, file("run/export/tokenizer.json", "{"), "tokenizer.json"),
    "tokenizer without a model": (GENERATE, WRITE, tokenizer(lambda t: t.pop("model")), "tokenizer.json"),
    "tokenizer is nested": (GENERATE, WRITE, file("run/export/tokenizer.json", DEEP), "tokenizer.json"),
    "tokenizer is gone": (GENERATE, WRITE, lambda d: (d / "run/export/tokenizer.json").unlink(), "tokenizer.json"),
    "tokenizer of more than the model": (
        GENERATE,
        [*WRITE, "--prompt=the<x>"],
        tokenizer(lambda t: t["added_tokens"].append(t["added_tokens"][0] | {"id": 70_000, "content": "<x>"})),
        "the tokenizer cannot encode this text",
    ),
    # --- Hugging Face directories
    "weights cut short": (GENERATE, WRITE, weights(lambda d: d.__delitem__(slice(-1000, None))), "model.safetensors"),
    "weights of no bytes": (GENERATE, WRITE, weights(lambda d: d.clear()), "model.safetensors"),
    "weights not finite": (GENERATE, WRITE, weights(set_nan), "not finite"),
    "header beyond the file": (
        GENERATE,
        WRITE,
        weights(lambda d: d.__setitem__(slice(0, 8), struct.pack("<Q", 2**62))),
        "model.safetensors",
    ),
    "header of a huge tensor": (
        GENERATE,
        WRITE,
        header(lambda h: next(v for k, v in h.items() if k != "__metadata__").update(shape=[2**40, 2**20])),
        "model.safetensors",
    ),
    "header of another shape": (
        GENERATE,
        WRITE,
        header(lambda h: next(v for k, v in h.items() if len(v.get("shape", [])) == 2)["shape"].reverse()),
        "shape",
    ),
    "tensor missing": (GENERATE, WRITE, header(lambda h: h.pop(max(h))), "tensor"),
    "tensor too many": (
        GENERATE,
        WRITE,
        header(lambda h: h.update(zzz=dict(h[max(h)]))),
        "zzz",
    ),
    "index that leaves the directory": (GENERATE, WRITE, index({"a": "../../../etc/passwd"}), "etc/passwd"),
    "index of a missing file": (GENERATE, WRITE, index({"a": "model-00001.safetensors"}), "model-00001.safetensors"),
    "only a pickle": (
        GENERATE,
        WRITE,
        lambda d: (d / "run/export/model.safetensors").rename(d / "run/export/pytorch_model.bin"),
        "pytorch_model.bin",
    ),
    "a million layers": (GENERATE, WRITE, hf_config(num_hidden_layers=10**6), "layer"),
    "negative width": (GENERATE, WRITE, hf_config(hidden_size=-1), "hidden_size=-1"),
    "other architecture": (GENERATE, WRITE, hf_config(model_type="mamba"), "mamba"),
    "context of text": (GENERATE, WRITE, hf_config(max_position_embeddings="many"), "max_position_embeddings"),
    "weights not finite, in JAX": ("jaxgpt.generate", WRITE, weights(set_nan), "not finite"),
    "weights cut short, to start from": (
        TRAIN,
        [*TINY, "--workdir=new", "--init_from=run/export"],
        weights(lambda d: d.__delitem__(slice(-1000, None))),
        "model.safetensors",
    ),
    "classifier that is none": ("torchgpt.classify", ["--checkpoint=run/export", "--text=x"], nothing, "classif"),
    # --- prompts and sampling
    "unknown character": (GENERATE, [*WRITE, "--prompt=\u00e9t\u00e9"], nothing, "U+00E9"),
    "unknown character, in JAX": ("jaxgpt.generate", [*WRITE, "--prompt=\u00e9t\u00e9"], nothing, "U+00E9"),
    "negative temperature": (GENERATE, [*WRITE, "--temperature=-1"], nothing, "temperature"),
    "temperature nan": (GENERATE, [*WRITE, "--temperature=nan"], nothing, "temperature"),
    "negative top_k": (GENERATE, [*WRITE, "--top_k=-1"], nothing, "top_k"),
    "top_p above one": (GENERATE, [*WRITE, "--top_p=1.5"], nothing, "top_p"),
    "negative length": (GENERATE, [*WRITE, "--max_new_tokens=-3"], nothing, "max_new_tokens"),
    "no samples": (GENERATE, [*WRITE, "--num_samples=0"], nothing, "num_samples"),
    "negative seed": (GENERATE, [*WRITE, "--seed=-1"], nothing, "seed"),
    "sampling nonsense, in JAX": ("jaxgpt.generate", [*WRITE, "--top_p=0"], nothing, "top_p"),
    "unknown device": (GENERATE, [*WRITE, "--device=abacus"], nothing, "abacus"),
    "output is a directory": (GENERATE, [*WRITE, "--output=run"], nothing, "run is a directory"),
    "instructions to a model without": (GENERATE, [*WRITE, "--instruct"], nothing, "instruct"),
    "prompts are gone": (GENERATE, ["--checkpoint=run/export", "--prompts=gone"], nothing, "--prompts=gone"),
    "prompts are none": (GENERATE, ["--checkpoint=run/export", "--prompts=p"], file("p", "\n \n"), "no prompt"),
    "prompts are one the model cannot read": (
        GENERATE,
        ["--checkpoint=run/export", "--prompts=p"],
        file("p", "the\n\nж\n"),
        "p, line 3: character",
    ),
    "prompts are the output": (
        GENERATE,
        ["--checkpoint=run/export", "--prompts=p", "--output=p"],
        file("p", "the"),
        "to be read",
    ),
    "prompts are no text": (GENERATE, ["--checkpoint=run/export", "--prompts=run/export"], nothing, "--prompts="),
    "prompts and a prompt": (GENERATE, [*WRITE, "--prompts=p"], file("p", "the"), "one of them"),
    "prompts and a prompt, in JAX": ("jaxgpt.generate", [*WRITE, "--prompts=p"], file("p", "the"), "one of them"),
    "weights of another kind": (GENERATE, [*WRITE, "--weights=int4"], nothing, "int4"),
    "prompt beyond the context, in a run": (
        TRAIN,
        [*TINY, "--workdir=new", "--config.sample.prompt=the quick brown fox jumps"],
        nothing,
        "model.context_length is smaller",
    ),
    "port beyond all": ("torchgpt.serve", ["--checkpoint=run/export", "--port=99999"], nothing, "port"),
    "host of nowhere": ("torchgpt.serve", ["--checkpoint=run/export", "--host=256.0.0.1"], nothing, "256.0.0.1"),
    # --- texts
    "unknown data set": ("data_prep.prepare", ["--dataset=shakespear", "--out=out"], nothing, "shakespeare"),
    "source of no bytes": ("data_prep.prepare", PREPARE, file("text.txt", ""), "the source is empty"),
    "source not UTF-8": ("data_prep.prepare", PREPARE, file("text.txt", b"caf\xe9 \xff" * 99), "text.txt"),
    "source of broken rows": (
        "data_prep.prepare",
        ["--dataset=mine", "--source=rows.jsonl", "--out=out"],
        file("rows.jsonl", '{"text": "a"}\n{"text": \n'),
        "rows.jsonl",
    ),
    "source without the column": (
        "data_prep.prepare",
        ["--dataset=mine", "--source=rows.jsonl", "--out=out"],
        file("rows.jsonl", '{"body": "a"}\n' * 9),
        "text",
    ),
    "source that does not end": (
        "data_prep.prepare",
        ["--dataset=mine", "--source=/dev/zero", "--out=out"],
        nothing,
        "/dev/zero",
    ),
    "compressed source cut short": (
        "data_prep.prepare",
        ["--dataset=mine", "--source=text.jsonl.gz", "--out=out"],
        file("text.jsonl.gz", b"\x1f\x8b\x08\x00" + b"\x00" * 20),
        "text.jsonl.gz",
    ),
    "output over a file": ("data_prep.prepare", [*PREPARE, "--out=text.txt"], nothing, "text.txt"),
    "unknown tokenizer": ("data_prep.prepare", [*PREPARE, "--tokenizer=gpt9"], nothing, "gpt9"),
    "validation of everything": ("data_prep.prepare", [*PREPARE, "--val_fraction=1"], nothing, "val_fraction"),
    "mixture of nothing": (
        "data_prep.prepare",
        ["--dataset=a:0,b:0", "--source=text.txt,text.txt", "--out=out"],
        nothing,
        "a:0",
    ),
    "vocabulary below the bytes": (
        "data_prep.train_tokenizer",
        ["--source=text.txt", "--vocab_size=12", "--out=out"],
        nothing,
        "vocab_size",
    ),
    "document beyond the last": (
        "data_prep.inspect",
        ["--data=shards", "--document=12"],
        nothing,
        "there is no document 12",
    ),
    "filter without texts": ("data_prep.filter", ["--source=none.jsonl", "--out=out"], nothing, "none.jsonl"),
    "unknown filter": ("data_prep.filter", ["--source=text.txt", "--out=out", "--filters=sieve"], nothing, "sieve"),
    "classifier of one kind": (
        "data_prep.train_classifier",
        ["--positive=text.txt", "--out=out"],
        nothing,
        "--negative",
    ),
    "comparison with nothing": (
        "data_prep.compare_tokenizers",
        ["--source=text.txt", "--tokenizers=none"],
        nothing,
        "none",
    ),
    "trainer of another objective": (
        "torchgpt.train",
        [*TINY, "--workdir=new", "--config.train.objective=dpo"],
        nothing,
        "train.objective=dpo",
    ),
}


def contents(place: Path) -> dict[str, str]:
    """SHA-256 of every file but the lock, which names the last process."""
    files = (p for p in place.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(place)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize("case", CASES)
def test_hostile_input_is_one_sentence_and_loses_nothing(finished, tmp_path, case):
    module, arguments, prepare, words = CASES[case]
    place = tmp_path / "place"
    shutil.copytree(finished, place)
    prepare(place)
    before = contents(place)
    done = run_command(module, *arguments, cwd=place, limit_s=LIMIT_S)
    assert done.returncode == 1, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    assert "Traceback" not in done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: "), last
    assert words in last
    assert len(last) < 1000
    assert done.peak_bytes < LIMIT_BYTES
    after = contents(place)
    assert {name for name in before if after.get(name) != before[name]} <= renamed(before, after)


def renamed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """Files whose content lies under another name now: what was found damaged is put aside."""
    return {name for name in before if name not in after and before[name] in after.values()}


def test_there_are_as_many_as_promised():
    assert len(CASES) >= 60
