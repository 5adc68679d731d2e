"""Sampling, text beyond the context, and the command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import llama
from parity_tests.models import random_weights
from scratchgpt.errors import UserError
from torchgpt.device import pick_device
from torchgpt.hf import load_model
from torchgpt.model import GPT
from torchgpt.sampling import filtered_probabilities, generate
from torchgpt.text_stream import TextStream

ROOT = Path(__file__).resolve().parents[2]
LOGITS = st.lists(st.sampled_from([-9.0, -2.0, 0.0, 0.5, 1.0, 3.0]), min_size=2, max_size=12)


def small(context: int = 8) -> GPT:
    model = GPT(llama(n_layer=1, n_head=2, n_embd=16, context_length=context, vocab_size=23))
    model.load_state_dict({n: torch.from_numpy(a) for n, a in random_weights(model.config).items()})
    return model.eval()


@settings(derandomize=True, deadline=None, max_examples=60)
@given(values=LOGITS, temperature=st.sampled_from([0.3, 1.0, 4.0]), top_k=st.integers(0, 14), top_p=st.floats(0.05, 1))
def test_filtered_probabilities_keep_what_the_rules_say(values, temperature, top_k, top_p):
    logits = torch.tensor([values], dtype=torch.float64)
    probs = filtered_probabilities(logits, temperature, top_k, top_p)[0]
    assert probs.sum().item() == pytest.approx(1)
    assert probs.argmax() == logits.argmax()
    full = filtered_probabilities(logits, temperature, top_k, 1.0)[0]
    kept = probs > 0
    mass = full[kept].sum().item()
    assert mass >= top_p - 1e-9
    if top_p < 1:  # without its least likely member the set would be too small
        assert mass - full[kept].min().item() < top_p + 1e-9
    if top_k > 0:
        assert (full > 0).sum() >= min(top_k, len(values))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 99), temperature=st.sampled_from([0.5, 2.0]), top_k=st.integers(1, 20), top_p=st.floats(0.1, 1)
)
def test_filtering_agrees_with_transformers(seed, temperature, top_k, top_p):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores = logits
    for warper in (TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)):
        scores = warper(None, scores)
    torch.testing.assert_close(filtered_probabilities(logits, temperature, top_k, top_p), scores.softmax(-1))


def test_temperature_zero_takes_the_first_maximum():
    assert filtered_probabilities(torch.tensor([[1.0, 3.0, 3.0]]), 0.0).tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"temperature": -1.0}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"top_k": -1}, "--top_k"),
        ({"top_p": 0.0}, "--top_p"),
        ({"top_p": float("nan")}, "--top_p"),
        ({"max_new_tokens": -1}, "--max_new_tokens"),
    ],
)
def test_impossible_values_name_their_flag(values, flag):
    with pytest.raises(UserError, match=flag):
        list(generate(small(), [1], **{"max_new_tokens": 1, **values}))


@pytest.mark.parametrize("context", [1, 2, 5, 8])
@torch.no_grad()
def test_a_full_context_keeps_its_last_half(context):
    model, text = small(context), [3]
    window = 1
    for _ in range(3 * context + 2):  # the rule by full forward passes over a window, without any cache
        logits = model(torch.tensor([text[-window:]]))[0, -1]
        text.append(int(logits.argmax()))
        window = window + 1 if window < context else max(1, context // 2)
    assert list(generate(model, [3], max_new_tokens=3 * context + 2, temperature=0.0)) == text[1:]


def test_seeds_repeat_and_stop_tokens_end_the_text():
    model = small()

    def draw(seed, **options):
        random = torch.Generator().manual_seed(seed)
        return list(generate(model, [1, 2], max_new_tokens=20, temperature=1.0, generator=random, **options))

    assert draw(1) == draw(1) != draw(2)
    text = draw(1)
    assert draw(1, stop_ids=[text[4]]) == text[: text.index(text[4])]


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers():
    with pytest.raises(UserError, match=r"9 tokens.* 8"):
        list(generate(small(8), list(range(9)), max_new_tokens=1))


@pytest.mark.parametrize("data", ["aé漢😀z".encode(), b"\xf0\x9f\x98", b"a\xff\xfeb\xe2\x82"])
def test_characters_are_shown_only_when_whole(data):
    stream = TextStream(lambda ids: bytes(ids).decode("utf-8", "replace"))
    pieces = [piece for byte in data for piece in stream.add(byte)] + stream.finish()
    assert stream.text == "".join(pieces) == data.decode("utf-8", "replace")
    assert len(pieces) == len(data)


def test_devices():
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="must be one of"):
        pick_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="not available"):
            pick_device("cuda")


# --- the command -----------------------------------------------------------------------------------------------------


def infer(*arguments: str, text: str | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torchgpt.generate", *arguments]
    return subprocess.run(
        command, input=text, capture_output=True, encoding="utf-8", cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def test_samples_are_printed_and_written(directories, tmp_path):
    run = infer(f"--checkpoint={directories['llama']}", "--prompt=abc", "--max_new_tokens=9", "--num_samples=2",
                "--top_k=5", f"--output={tmp_path / 'out.txt'}")  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout == (tmp_path / "out.txt").read_text(encoding="utf-8")
    assert run.stdout.count("abc") >= 2
    assert "\n---\nabc" in run.stdout


def test_a_file_of_prompts_is_written_as_each_alone(directories, tmp_path):
    options = [f"--checkpoint={directories['llama']}", "--max_new_tokens=9", "--temperature=0"]
    prompts = ["abc", "Then", "x"]
    (tmp_path / "prompts").write_text("\n".join([prompts[0], "", *prompts[1:]]))
    together = infer(*options, f"--prompts={tmp_path / 'prompts'}", "--num_samples=2", f"--output={tmp_path / 'out'}")
    assert together.returncode == 0, together.stderr
    alone = [infer(*options, f"--prompt={prompt}").stdout.removesuffix("\n") for prompt in prompts]
    assert together.stdout == "\n---\n".join(text for text in alone for _ in range(2)) + "\n"
    assert (tmp_path / "out").read_text(encoding="utf-8") == together.stdout


def test_weights_of_8_bits_write_too(directories):
    run = infer(f"--checkpoint={directories['llama']}", "--prompt=abc", "--max_new_tokens=9", "--weights=int8")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("abc")
    assert len(run.stdout) > len("abc\n")


def test_the_newest_export_under_runs_is_the_default(directories, tmp_path):
    shutil.copytree(directories["gpt2"], tmp_path / "runs" / "first" / "export")
    run = infer("--prompt=", "--max_new_tokens=3", "--temperature=0", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    workdir = infer("--checkpoint=runs/first", "--prompt=", "--max_new_tokens=3", "--temperature=0", cwd=tmp_path)
    assert workdir.stdout == run.stdout


def test_a_conversation_survives_an_unknown_character_and_ends_at_exit(directories):
    run = infer(f"--checkpoint={directories['nanochat']}", "--max_new_tokens=4", text="é\nabc\nexit\nxyz\n")
    assert run.returncode == 0
    assert "character 'é'" in run.stderr
    assert "abc" in run.stdout
    assert "xyz" not in run.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prompt=a"], "there is no trained model"),
        (["--checkpoint=nowhere", "--prompt=a"], "does not exist"),
        (["--top_p=2"], "--top_p"),
        (["--nonsense=1"], "nonsense"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path, arguments, sentence):
    run = infer(*arguments, cwd=tmp_path)
    assert run.returncode == 1
    assert sentence in run.stderr
    assert len(run.stderr.splitlines()) == 1


# Known defects, each with what it does today. The marks are strict: they fail, and go, with the mending.


def test_output_never_replaces_a_directory(directories, tmp_path):
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "precious").touch()
    infer(f"--checkpoint={directories['llama']}", "--prompt=a", "--max_new_tokens=1", f"--output={tmp_path / 'keep'}")
    assert (tmp_path / "keep" / "precious").exists()


def test_a_tiny_temperature_is_nearly_greedy():
    assert filtered_probabilities(torch.tensor([[1.0, 3.0]]), 1e-42).tolist() == [[0.0, 1.0]]


def test_a_seed_out_of_range_is_one_sentence(directories):
    run = infer(f"--checkpoint={directories['llama']}", "--prompt=a", f"--seed={2**64}")
    assert len(run.stderr.splitlines()) == 1


def test_sizes_that_only_the_config_claims_are_refused(directories, tmp_path):
    shutil.copytree(directories["llama"], tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 9 * 10**11}))
    with pytest.raises(UserError, match=r"config\.json implies"):
        load_model(tmp_path / "m")


def test_a_workdir_without_an_export_says_how_to_make_one(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert "jaxgpt.export" in infer(f"--checkpoint={tmp_path / 'run'}", "--prompt=a").stderr
