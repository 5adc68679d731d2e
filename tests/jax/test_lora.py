"""Training with LoRA: what learns, what takes memory, checkpoints, and whole runs of the commands."""

import functools
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.schema import Config, LoraConfig, OptimConfig, TrainConfig, gpt2, llama, nanochat, qwen3, resolve_model
from data_prep.tokenizers import char_tokenizer
from jaxgpt.checkpoint import Checkpoints
from jaxgpt.lora import is_adapter
from jaxgpt.loss import cross_entropy_sums
from jaxgpt.objective import Sums
from jaxgpt.sharding import make_mesh
from jaxgpt.step import Steps
from scratchgpt.hf_directory import write_hf_directory
from scratchgpt.hf_layout import parameter_shapes
from scratchgpt.standing import Standing
from tests.repo.warm_commands import Done, run_command

ROOT = Path(__file__).resolve().parents[2]
ONE = np.float32(1)
# Sides that tell every matrix from every other array: 24 wide, queries 32, keys 16, MLP 40, vocabulary 26.
SHAPE = dict(n_layer=2, n_head=4, n_embd=24, mlp_dim=40, context_length=8, vocab_size=23, padded_vocab_size=26)
MODELS = {
    "gpt2": gpt2(**SHAPE),
    "llama": llama(**SHAPE, n_kv_head=2, head_dim=8),
    "qwen3": qwen3(**SHAPE, n_kv_head=2, head_dim=8, tie_embeddings=True),
    "nanochat": nanochat(**SHAPE, n_kv_head=2),
}


def loss_sums(model, batch, key):
    return Sums(*cross_entropy_sums(model(batch["inputs"])[0], batch["targets"]), {})


@functools.cache
def make_steps(family: str, rank: int, optimizer: str = "adamw") -> Steps:
    config = Config(
        model=MODELS[family],
        train=TrainConfig(batch_size=7, dtype="float32"),
        optim=OptimConfig(learning_rate=0.01, optimizer=optimizer),
        lora=LoraConfig(rank=rank, alpha=6.0, new_tokens=2),
    )
    is_trained = is_adapter if rank else lambda _: True
    return Steps(config, resolve_model(config.model), loss_sums, make_mesh(config), is_trained)


def batch(seed: int = 0) -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(seed).integers(0, 23, (1, 7, 6), dtype=np.int32)
    return {"inputs": tokens[..., :-1], "targets": tokens[..., 1:]}


@pytest.mark.parametrize(("family", "optimizer"), [("gpt2", "adamw"), ("llama", "muon"), ("nanochat", "muon")])
def test_the_adapters_alone_learn(family, optimizer):
    steps = make_steps(family, 3, optimizer)
    state = steps.initial_state()
    before = jax.tree.map(np.asarray, state["params"])
    losses = []
    for _ in range(3):  # in the first step only B learns, since it is zero
        state, metrics = steps.update(state, batch(), ONE)
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[0]
    unchanged = {n for n, p in state["params"].items() if np.array_equal(p, before[n])}
    assert unchanged == {n for n in before if not is_adapter(n)}


@pytest.mark.parametrize("family", MODELS)
def test_optimizer_slots_are_the_adapters_alone(family):
    steps = make_steps(family, 3)
    paths = jax.tree_util.tree_leaves_with_path(steps.abstract_state["opt"])
    slots = [path[-1].key for path, leaf in paths if leaf.ndim]
    adapters = [n for n in steps.abstract_state["params"] if is_adapter(n)]
    assert sorted(slots) == sorted(2 * adapters)  # two moments of AdamW
    for path, leaf in paths:
        if leaf.ndim:
            assert leaf.shape == steps.abstract_state["params"][path[-1].key].shape


def products(jaxpr) -> set[tuple[int, ...]]:
    """Shapes of everything that a matrix product or a scatter makes, in ``jaxpr`` and all within it."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "scatter-add"):
            found |= {v.aval.shape for v in equation.outvars}
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            found |= products(inner) if hasattr(inner, "eqns") else set()
    return found


@pytest.mark.parametrize("family", MODELS)
def test_no_gradient_is_as_large_as_a_matrix_of_the_model(family):
    shapes = parameter_shapes(resolve_model(MODELS[family]))
    large = {s for n, s in shapes.items() if len(s) == 2 and not n.startswith("position")}
    large |= {s[::-1] for s in large}

    def made(rank):
        steps = make_steps(family, rank)
        jaxpr = jax.make_jaxpr(steps._update)(steps.abstract_state, batch(), ONE)
        return products(jaxpr.jaxpr) & large

    assert {min(s, s[::-1]) for s in made(0)} == {min(s, s[::-1]) for s in large}  # the test can see them
    assert not made(3)


def test_rank_zero_is_the_model_without_adapters():
    steps, plain = make_steps("gpt2", 0), make_steps("gpt2", 0, "adamw")
    config = Config(model=MODELS["gpt2"], train=plain.config.train, optim=plain.config.optim)
    plain = Steps(config, resolve_model(config.model), loss_sums, make_mesh(config))
    assert not any(is_adapter(n) for n in steps.abstract_state["params"])
    texts = [s.update.lower(s.abstract_state, batch(), ONE).as_text() for s in (steps, plain)]
    assert texts[0] == texts[1]


def test_a_run_that_was_saved_goes_on_bit_by_bit(tmp_path):
    steps = make_steps("gpt2", 3)
    state = steps.initial_state()
    checkpoints = Checkpoints(tmp_path)
    for i in range(4):
        if i == 2:
            checkpoints.save(i, state, 1.0, Standing())
            checkpoints.wait()
        state, _ = steps.update(state, batch(i), ONE)
    loaded = checkpoints.load(2, steps.abstract_state)
    for i in range(2, 4):
        loaded, _ = steps.update(loaded, batch(i), ONE)
    jax.tree.map(np.testing.assert_array_equal, loaded, state)
    abstract = steps.abstract_state["params"]
    assert checkpoints.load_parameters(2, abstract).keys() == abstract.keys()  # without the slots


# --- commands --------------------------------------------------------------------------------------------------------


def command(module: str, *arguments: str, cwd: Path) -> Done:
    return run_command(module, *arguments, cwd=cwd, limit_s=600)


SFT = [
    *(f"--config={ROOT / 'configs' / 'small.py'}", "--init_from=base", "--config.train.objective=sft"),
    *("--config.data.dataset=rows", "--config.data.source=rows.jsonl", "--config.data.val_fraction=0.3"),
    *("--config.train.steps=6", "--config.train.batch_size=4", "--config.train.sequence_length=32"),
    *("--config.eval.every=0", "--config.checkpoint.every=3", "--config.optim.learning_rate=0.05"),
    *("--config.sample.prompt=abc", "--config.sample.max_new_tokens=4", "--config.log.report=False"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a base model of no training, rows to tune it on, and a finished run with LoRA in it."""
    path = tmp_path_factory.mktemp("place")
    tokenizer = char_tokenizer(["".join(map(chr, range(97, 123)))])
    model = resolve_model(llama(n_layer=2, n_head=2, n_embd=16, context_length=32), tokenizer.size)
    rng = np.random.default_rng(0)
    weights = {n: rng.normal(0, 0.3, s).astype(np.float32) for n, s in parameter_shapes(model).items()}
    write_hf_directory(path / "base", model, weights.__getitem__, tokenizer)
    words = ["".join(chr(97 + (i * j) % 26) for j in range(1, 6)) for i in range(1, 40)]
    rows = [{"instruction": w, "input": "", "output": w[::-1]} for w in words]
    (path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = command("jaxgpt.train", *SFT, "--config.lora.rank=8", "--workdir=run", cwd=path)
    assert done.returncode == 0, done.stderr
    assert "numbers learn)" in done.stdout
    return path


@pytest.mark.slow
def test_resuming_ends_in_the_same_bytes(place):
    shutil.copytree(place / "run", place / "again")
    (place / "again" / "checkpoints" / "00000006.json").unlink()
    shutil.rmtree(place / "again" / "checkpoints" / "00000006")
    done = command("jaxgpt.train", *SFT, "--config.lora.rank=8", "--workdir=again", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "resuming again at step 3" in done.stdout
    for name in ("export/model.safetensors", "samples.txt"):
        assert (place / "again" / name).read_bytes() == (place / "run" / name).read_bytes()


def test_the_workdir_and_its_export_write_the_same(place):
    texts = [
        command("jaxgpt.generate", f"--checkpoint={c}", "--prompt=abc", "--max_new_tokens=12", "--seed=3", cwd=place)
        for c in ("run", "run/export")
    ]
    assert texts[0].returncode == 0, texts[0].stderr
    assert texts[0].stdout == texts[1].stdout


def test_the_exported_adapter_is_the_exported_model(place):
    """By the instructions of its card, with the token that tuning added."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    done = command("jaxgpt.export", "--workdir=run", "--adapter", "--out=adapter", cwd=place)
    assert done.returncode == 0, done.stderr
    card = (place / "adapter" / "README.md").read_text()
    assert 'base_model: "base"' in card
    assert "27 tokens" not in card.split("base model's")[0]
    assert str(place) not in card
    assert (place / "adapter" / "chat_template.jinja").is_file()
    here = Path.cwd()
    os.chdir(place)  # where the relative name of the base model leads to it
    try:
        with_adapter = AutoPeftModelForCausalLM.from_pretrained("adapter").eval()
    finally:
        os.chdir(here)
    tokens = torch.arange(28)[None]
    with torch.no_grad():
        theirs = with_adapter(tokens).logits
        merged = AutoModelForCausalLM.from_pretrained(place / "run" / "export").eval()(tokens).logits
    assert theirs.shape == merged.shape == (1, 28, 28)
    assert (theirs - merged).abs().max() <= 1e-5 * merged.abs().max()


TRAIN, RANK = "jaxgpt.train", "--config.lora.rank=8"
MISTAKES = {
    "negative": (TRAIN, [*SFT, "--config.lora.rank=-1"], "lora.rank=-1 must be at least 0"),
    "too large": (TRAIN, [*SFT, "--config.lora.rank=17"], "the narrowest of which has model.n_embd=16"),
    "alpha": (TRAIN, [*SFT, RANK, "--config.lora.alpha=0"], "lora.alpha=0.0 must be greater than 0"),
    "no base": (TRAIN, [SFT[0], RANK], "--init_from=HF_DIR"),
    "other rank": (TRAIN, [*SFT, "--config.lora.rank=4", "--workdir=run"], "run with lora.rank=8"),
    "none": (TRAIN, [*SFT, "--workdir=run"], "lora.rank=8, this configuration has None"),
    "torch": ("torchgpt.train", [*SFT, RANK], "this trainer has no adapters"),
    "onto a model": ("jaxgpt.export", ["--workdir=run", "--adapter", "--out=base"], "not the directory of an adapter"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(place, mistake):
    module, arguments, words = MISTAKES[mistake]
    before = sorted((p, p.stat().st_mtime_ns) for p in (place / "run").rglob("*") if p.name != ".lock")
    done = command(module, *arguments, cwd=place)
    assert done.returncode == 1
    assert words in done.stderr, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert before == sorted((p, p.stat().st_mtime_ns) for p in (place / "run").rglob("*") if p.name != ".lock")


def test_a_run_without_adapters_has_none_to_export(place, tmp_path):
    config = json.loads((place / "run" / "config.json").read_text())
    config["lora"]["rank"] = 0
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = command("jaxgpt.export", f"--workdir={tmp_path}", "--adapter", "--out=adapter", cwd=tmp_path)
    assert done.returncode == 1
    assert "is not a run with LoRA" in done.stderr
    assert not (tmp_path / "adapter").exists()
