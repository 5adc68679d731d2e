"""`torchgpt.generate --instruct`, and what of a conversation fits the context."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from chat_models import ANSWERS, characters

from data_prep.chat import ChatFormat, Message
from torchgpt.chat import TooLong, fit_conversation
from torchgpt.writer import Settings, Writer

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "torchgpt.generate", "--instruct", "--temperature=0"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def instruct(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *arguments], input=text, capture_output=True, encoding="utf-8", cwd=ROOT, env=ENVIRONMENT
    )


def conversation(*turns: str, system: str = "") -> list[Message]:
    begin = [Message("system", system)] if system else []
    return begin + [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(turns)]


def test_the_oldest_turns_go_first_and_the_system_message_stays():
    chat_format = ChatFormat(characters())
    messages = conversation("one", "two", "three", "four", "five", system="be brief")
    length = len(chat_format.prompt(messages))
    assert fit_conversation(chat_format, messages, length + 9, 9).dropped == 0
    shown = fit_conversation(chat_format, messages, length + 8, 9)
    assert shown.dropped == 2
    assert shown.messages == [messages[0], *messages[3:]]
    assert shown.prompt == chat_format.prompt(shown.messages)
    assert shown.max_new_tokens == 9
    whole = fit_conversation(chat_format, messages, length + 8, 9, drop_turns=False)
    assert (whole.dropped, whole.max_new_tokens) == (0, 8)
    last = fit_conversation(chat_format, messages, 18, 100)  # of "be brief", two line ends, "five" and the separator
    assert (last.messages, last.max_new_tokens) == ([messages[0], messages[-1]], 3)
    with pytest.raises(TooLong, match="the message has 15 tokens"):
        fit_conversation(chat_format, messages, 15, 100)
    with pytest.raises(TooLong, match="the conversation has"):
        fit_conversation(chat_format, messages, length, 1, drop_turns=False)


def test_a_single_shot_prints_the_answer_alone(trained, tmp_path):
    run = instruct(f"--checkpoint={trained}", "--prompt=hello", f"--output={tmp_path / 'answer'}")
    assert (run.returncode, run.stdout, run.stderr) == (0, ANSWERS["hello"] + "\n", "")
    assert (tmp_path / "answer").read_text(encoding="utf-8") == run.stdout


def test_answers_written_together_are_those_of_each_alone(trained):
    """Also that of a message which leaves room for few tokens."""
    writer, settings = Writer(trained, torch.device("cpu"), needs_chat=True), Settings(60, 0.0)
    near = "a" * (writer.context_length - 9)
    shown = [
        writer.fit(messages, settings)
        for messages in (conversation("hello"), conversation(near), conversation("count", system="tag"))
    ]
    assert shown[1].max_new_tokens < 9
    alone = []
    for one in shown:
        generation = writer.answer(one, settings, torch.Generator())
        assert list(generation)
        alone.append(generation.text)
    assert writer.answer_all(shown, settings, torch.Generator()) == alone


def test_a_file_of_instructions_is_answered(trained, tmp_path):
    (tmp_path / "prompts").write_text("hello\ncount\n")
    run = instruct(f"--checkpoint={trained}", "--max_new_tokens=60", f"--prompts={tmp_path / 'prompts'}")
    assert (run.returncode, run.stdout, run.stderr) == (0, f"{ANSWERS['hello']}\n---\n{ANSWERS['count']}\n", "")


def test_a_chat_remembers_forgets_and_survives_mistakes(trained, tmp_path):
    text = "hello\n\ncount\n/reset\nж\ntag\nexit\nhello\n"
    run = instruct(f"--checkpoint={trained}", "--max_new_tokens=60", f"--output={tmp_path / 'chat'}", text=text)
    assert run.returncode == 0, run.stderr
    turns = "\n".join(f"> {q}\n{ANSWERS[q]}\n" for q in ("hello", "count", "tag"))
    assert (tmp_path / "chat").read_text(encoding="utf-8") == turns
    assert run.stderr.startswith("error: character 'ж'")
    assert len(run.stderr.splitlines()) == 1


def test_turns_that_no_longer_fit_are_dropped_aloud(trained):
    run = instruct(f"--checkpoint={trained}", "--max_new_tokens=80", text="tag\nhello\ncount\n")
    assert re.search(r"note: .* context of 160 tokens; its oldest \d messages are forgotten", run.stderr)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--checkpoint={trained}", "--prompt= "], "--prompt is empty"),
        (["--checkpoint={trained}", "--num_samples=2"], "--num_samples needs --prompt"),
        (["--checkpoint={trained}", "--prompt=" + "x" * 200], "message has 201 tokens"),
        (["--checkpoint={plain}", "--prompt=x"], "not been tuned on instructions"),
        (["--noinstruct", "--prompt=x", "--system=x"], "--system needs --instruct"),
    ],
)
def test_mistakes_end_in_one_sentence(trained, directories, arguments, sentence):
    run = instruct(*(a.format(trained=trained, plain=directories["gpt2"]) for a in arguments))
    assert run.returncode == 1
    assert sentence in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert run.stdout == ""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
def test_interrupting_stops_the_answer_only(endless):
    command = [*COMMAND, f"--checkpoint={endless}", "--max_new_tokens=9000"]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, **pipes) as process:
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        shown = process.stdout.read(len(b"> ") + 1)  # it has begun to answer
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(b"/reset\nexit\n")
    assert process.returncode == 0
    assert errors == b""
    assert shown.startswith(b"> ")
    assert rest.endswith(b"\n> > ")
    assert len(rest) < 9000
