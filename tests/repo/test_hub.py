"""Uploads to a stand-in of the Hugging Face Hub: everything arrives, and every failure is one sentence."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from stand_in_hub import TOKEN, running

ROOT = Path(__file__).resolve().parents[2]
PUSH = """
import sys
from pathlib import Path
from scratchgpt import cli, hub
hub.TIMEOUT_S = float(sys.argv.pop())
cli.run(lambda: print(hub.push(Path("model"), "me/fox", private={private})), "")
"""


def environment(url: str, home: Path, **more: str) -> dict[str, str]:
    """Of a process whose hub is at ``url``, with the login of the stand-in and no other."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    hf = {"HF_ENDPOINT": url, "HF_HOME": str(home / "hf"), "HF_TOKEN": TOKEN}
    return clean | {"PYTHONPATH": str(ROOT)} | hf | more


def run(*arguments: str, url: str, cwd: Path, **more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(url, cwd, **more),
        capture_output=True,
        text=True,
        timeout=100,
    )


def push(url: str, cwd: Path, private: bool = False, timeout: float = 30, **more: str) -> subprocess.CompletedProcess:
    return run("-c", PUSH.format(private=private), str(timeout), url=url, cwd=cwd, **more)


def files_of(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def assert_one_sentence(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for word in words:
        assert word in done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with something to upload in ``model``."""
    path = tmp_path_factory.mktemp("place")
    (path / "model").mkdir()
    (path / "model" / "README.md").write_text("---\ntags: [scratchgpt]\n---\n# A fox\n")
    (path / "model" / "config.json").write_text('{"model_type": "gpt2"}\n')
    (path / "model" / "model.safetensors").write_bytes(bytes(range(256)) * 3000)
    return path


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("lfs", [False, True], ids=["in the commit", "by LFS"])
def test_every_byte_arrives(place, lfs, private):
    more = {"HF_HUB_DISABLE_XET": "1"} if lfs else {}
    with running(lfs=lfs) as hub:
        done = push(hub.url, place, private, **more)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.url}/me/fox"
    assert hub.files == files_of(place / "model")
    assert hub.private is private
    assert bool(hub.blobs) is lfs


def test_an_existing_repository_takes_a_new_version(place):
    with running(private=True, files={"config.json": b"old"}) as hub:
        done = push(hub.url, place, private=True)
    assert done.returncode == 0, done.stderr
    assert hub.files == files_of(place / "model")


def test_private_is_not_a_wish(place):
    with running(private=False) as hub:
        done = push(hub.url, place, private=True)
    assert_one_sentence(done, "me/fox exists and is public")
    assert not hub.files


REFUSALS = {
    "not valid": ({"/api": 401}, "answers 401 (as the test has it): the login is not valid there"),
    "no right to create": (
        {"/api": 403},
        "answers 403 (as the test has it): this login has no right to write to me/fox",
    ),
    "no right to write": ({"/api/models/me/fox/preupload": 403}, "no right to write to me/fox"),
    "no right to commit": ({"/api/models/me/fox/commit": 403}, "no right to write to me/fox"),
    "too large": ({"/api/models/me/fox/commit": 413}, "answers 413 (as the test has it) and refuses the upload"),
    "out of order": ({"/api/repos": 500}, "answers 500 (as the test has it): try again later"),
    "no hub": ({"/api/repos": 200}, "does not answer as the Hugging Face Hub does"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_one_sentence(place, case):
    answers, message = REFUSALS[case]
    with running(answers=answers) as hub:
        done = push(hub.url, place)
    assert_one_sentence(done, message)
    assert not hub.files


@pytest.mark.parametrize(("status", "words"), [(403, "no right to write to me/fox"), (500, "try again later")])
def test_weights_that_are_refused_are_one_sentence(place, status, words):
    """hf_xet sends the large files by a protocol of its own, whose first request asks the hub for a token."""
    pytest.importorskip("hf_xet")
    with running(lfs=True, answers={"/api/models/me/fox/xet-write-token": status}) as hub:
        assert_one_sentence(push(hub.url, place, timeout=1), f"answers {status}", words)
    assert not hub.files


def test_a_wrong_token_is_refused(place):
    with running() as hub:
        assert_one_sentence(push(hub.url, place, HF_TOKEN="hf_other"), "answers 401", "hf auth login")


def test_a_hub_that_does_not_answer_is_not_waited_for(place):
    with running(silent=True) as hub:
        assert_one_sentence(push(hub.url, place, timeout=0.5), "cannot upload to http://127.0.0.1", "timed out")
    assert hub.requests


def test_a_closed_port_is_one_sentence(place):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert_one_sentence(push(f"http://127.0.0.1:{port}", place), f"cannot upload to http://127.0.0.1:{port}")


EARLY = {
    "no login": (["--push_to_hub=me/fox"], {"HF_TOKEN": ""}, ["hf auth login", "HF_TOKEN"]),
    "no owner": (["--push_to_hub=fox"], {}, ["'fox'", "USER/REPO"]),
    "two slashes": (["--push_to_hub=a/b/c"], {}, ["'a/b/c'", "is not a repository's name"]),
    "bad name": (["--push_to_hub=me/fox!"], {}, ["'me/fox!'", "is not a repository's name"]),
    "offline": (["--push_to_hub=me/fox"], {"HF_HUB_OFFLINE": "1"}, ["HF_HUB_OFFLINE"]),
    "private alone": (["--private", "--out=other"], {}, ["--push_to_hub"]),
    "nowhere to": ([], {}, ["--out=HF_DIR", "--push_to_hub"]),
}


@pytest.mark.parametrize("case", EARLY)
def test_what_is_known_beforehand_is_said_before_the_export(place, case):
    arguments, more, words = EARLY[case]
    with running() as hub:  # there is no such workdir: an export that began would say so instead
        done = run("-m", "jaxgpt.export", "--workdir=nowhere", *arguments, url=hub.url, cwd=place, **more)
    assert_one_sentence(done, *words)
    assert "nowhere" not in done.stderr
    assert not hub.requests


TINY = [
    f"--config={ROOT / 'configs' / 'small.py'}",
    "--config.data.dataset=foxes",
    "--config.data.source=text.txt",
    "--config.model.n_layer=1",
    "--config.model.n_embd=32",
    "--config.model.context_length=16",
    "--config.train.batch_size=4",
    "--config.train.steps=4",
    "--config.eval.every=2",
    "--config.sample.prompt=the ",
    "--config.sample.max_new_tokens=2",
    "--workdir=fox",
]


@pytest.fixture(scope="module")
def workdir(place):
    """A finished run in ``fox``."""
    (place / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 100)
    done = run("-m", "jaxgpt.train", *TINY, url="http://127.0.0.1:9", cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "fox"


@pytest.mark.slow
def test_from_a_run_to_the_hub(place, workdir):
    """Export and upload as a user does; then the code of the model card runs on what arrived."""
    arguments = ["--workdir=fox", "--push_to_hub=me/fox", "--private", "--step=latest", "--out=copy"]
    with running() as hub:
        done = run("-m", "jaxgpt.export", *arguments, url=hub.url, cwd=place)
    assert done.returncode == 0, done.stderr
    assert f"uploaded to {hub.url}/me/fox" in done.stdout
    assert hub.private
    assert hub.files == files_of(place / "copy")
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= hub.files.keys()
    card = hub.files["README.md"].decode()
    assert "| exported step | 4 of 4 |" in card
    assert str(place) not in card
    code = card.split("```python\n")[1].split("```")[0]
    used = run("-c", code.replace("me/fox", "copy"), url=hub.url, cwd=place, HF_HUB_OFFLINE="1")
    assert used.returncode == 0, used.stderr
    assert used.stdout.startswith("the ")


def test_without_out_nothing_stays_behind(place, workdir):
    (place / "temporary").mkdir()
    more = {"TMPDIR": str(place / "temporary")}
    with running() as hub:
        done = run("-m", "jaxgpt.export", "--workdir=fox", "--push_to_hub=me/fox", url=hub.url, cwd=place, **more)
    assert done.returncode == 0, done.stderr
    assert hub.files["model.safetensors"]
    assert hub.private is False
    assert not list((place / "temporary").glob("*/export"))
