"""The server, through the real ``openai`` client and by hand."""

import http.client
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from chat_models import ANSWERS, CONTEXT
from server_thread import DEADLINE, running

from torchgpt.serving.app import MAX_BODY
from torchgpt.serving.guard import split_port

ROOT = Path(__file__).resolve().parents[2]
GREEDY = {"temperature": 0}


@pytest.fixture(scope="module")
def tuned(trained):
    with running(trained) as server:
        yield server


@pytest.fixture(scope="module")
def babbling(endless):
    with running(endless, max_new_tokens=15_000) as server:
        yield server


@pytest.fixture(scope="module")
def plain(directories):
    with running(directories["llama"]) as server:
        yield server


def post(server, path, body, headers=()):
    """(status, JSON) of a request by hand; ``body`` is bytes, or becomes JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, data, {"Content-Type": "application/json", **dict(headers)})
    response = connection.getresponse()
    found = response.status, json.loads(response.read())
    connection.close()
    return found


def retried(attempt):
    """What ``attempt`` gives once it gives anything but None."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if (found := attempt()) is not None:
            return found
    raise AssertionError("it did not come about")


def streamed(stream):
    """(text, finish reason) of a streamed answer of either kind."""
    text, reason = "", None
    for chunk in stream:
        for choice in chunk.choices:
            text += (choice.delta.content if hasattr(choice, "delta") else choice.text) or ""
            reason = choice.finish_reason or reason
    return text, reason


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", ANSWERS)
def test_a_chat_is_answered_whole_and_in_a_stream(tuned, question):
    whole = tuned.chat(question, **GREEDY)
    [choice] = whole.choices
    assert (choice.message.role, choice.message.content) == ("assistant", ANSWERS[question])
    assert choice.finish_reason == "stop"
    assert whole.usage.completion_tokens == len(ANSWERS[question])
    assert whole.usage.prompt_tokens == len(question) + 1
    assert streamed(tuned.chat(question, stream=True, **GREEDY)) == (ANSWERS[question], "stop")


def test_a_conversation_goes_on(tuned):
    assert tuned.chat("count", ANSWERS["count"], "hello", **GREEDY).choices[0].message.content == ANSWERS["hello"]


def test_models(tuned, plain):
    [model] = tuned.client.models.list().data
    assert model.id == tuned.client.models.retrieve(tuned.name).id == tuned.name
    assert model.chat
    assert not plain.client.models.list().data[0].chat
    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt-5'"):
        tuned.client.chat.completions.create(model="gpt-5", messages=[])


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_limit_cuts(tuned, name):
    answer = tuned.chat("hello", **{name: 5}, **GREEDY)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hi th", "length")
    chunks = list(tuned.chat("hello", stream=True, stream_options={"include_usage": True}, **{name: 5}, **GREEDY))
    assert chunks[-1].usage == answer.usage
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)


@pytest.mark.parametrize("stop", ["re! Ho", ["?", "re! Ho"], ["Hi there! How are you?x", "re! Ho"]])
def test_stop_strings_across_tokens(tuned, stop):
    answer = tuned.chat("hello", stop=stop, logprobs=True, **GREEDY).choices[0]
    assert (answer.message.content, answer.finish_reason) == ("Hi the", "stop")
    assert [entry.token for entry in answer.logprobs.content] == list("Hi the")
    assert streamed(tuned.chat("hello", stop=stop, stream=True, **GREEDY)) == ("Hi the", "stop")


def test_log_probabilities_of_a_chat(tuned):
    choice = tuned.chat("hello", logprobs=True, top_logprobs=5, **GREEDY).choices[0]
    chunks = list(tuned.chat("hello", logprobs=True, top_logprobs=5, stream=True, **GREEDY))
    entries = choice.logprobs.content
    assert [e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content] == entries
    assert bytes(b for e in entries for b in e.bytes).decode() == choice.message.content
    for entry in entries:
        found = [t.logprob for t in entry.top_logprobs]
        assert len(found) == 5
        assert found == sorted(found, reverse=True)
        assert sum(map(math.exp, found)) <= 1 + 1e-5
        assert (entry.token, entry.logprob) == (entry.top_logprobs[0].token, found[0])  # greedy takes the likeliest
    assert tuned.chat("hello", **GREEDY).choices[0].logprobs is None


def test_log_probabilities_of_a_completion(tuned):
    choice = tuned.complete("count", logprobs=3, **GREEDY).choices[0]
    found = choice.logprobs
    assert (len(choice.text), choice.finish_reason) == (16, "length")
    assert "".join(found.tokens) == choice.text
    assert found.text_offset == list(range(16))
    assert all(top[token] == max(top.values()) for top, token in zip(found.top_logprobs, found.tokens, strict=True))
    assert [top[t] for top, t in zip(found.top_logprobs, found.tokens, strict=True)] == found.token_logprobs
    chunks = list(tuned.complete("count", logprobs=3, stream=True, **GREEDY))
    assert [o for c in chunks if c.choices[0].logprobs for o in c.choices[0].logprobs.text_offset] == found.text_offset


def test_bytes_that_are_no_text_stream_as_they_come_whole(babbling):
    options = dict(max_tokens=150, seed=3, temperature=1.5)
    whole = babbling.chat("hi", logprobs=True, top_logprobs=20, **options)
    assert "\ufffd" in whole.choices[0].message.content
    assert streamed(babbling.chat("hi", stream=True, **options))[0] == whole.choices[0].message.content


def test_seeds_and_several_choices(tuned):
    def texts(**options):
        answer = tuned.complete("h", max_tokens=30, temperature=1.5, **options)
        assert [c.index for c in answer.choices] == list(range(len(answer.choices)))
        return [c.text for c in answer.choices]

    [one], [same], [other] = texts(seed=1), texts(seed=1), texts(seed=2)
    assert one == same != other
    two = texts(seed=1, n=2)
    assert two == texts(seed=1, n=2)
    assert two[0] == one != two[1]
    stream = tuned.chat("hello", n=2, seed=1, stream=True, **GREEDY)
    chunks = [(c.choices[0].index, c.choices[0].delta.content or "") for c in stream]
    assert ["".join(text for i, text in chunks if i == n) for n in (0, 1)] == [ANSWERS["hello"]] * 2


def test_many_at_once_are_each_as_alone(tuned):
    jobs = [dict(seed=seed, temperature=1.3, max_tokens=20 + 5 * seed) for seed in range(10)]
    questions = list(itertools.islice(itertools.cycle(ANSWERS), len(jobs)))

    def ask(question, job):
        return streamed(tuned.chat(question, stream=job["seed"] % 2 == 0, **job)) if job["seed"] % 2 == 0 else (
            (choice := tuned.chat(question, **job).choices[0]).message.content, choice.finish_reason)  # fmt: skip

    alone = [ask(q, job) for q, job in zip(questions, jobs, strict=True)]
    with ThreadPoolExecutor(len(jobs)) as pool:
        assert list(pool.map(ask, questions, jobs)) == alone


def test_a_short_text_need_not_wait_for_a_long_one(babbling):
    long = babbling.chat("hi", stream=True, max_tokens=15_000, **GREEDY)
    next(long)
    assert babbling.chat("hi", max_tokens=3, **GREEDY).choices[0].finish_reason == "length"
    long.close()


def test_a_model_that_cannot_chat_continues_texts(plain):
    with pytest.raises(openai.BadRequestError, match=r"not tuned on instructions.*v1/completions"):
        plain.chat("hello")
    text = plain.complete("abc", max_tokens=300, **GREEDY).choices[0].text  # beyond the context of 192
    assert len(text) == 300
    answer = plain.complete([[64, 65, 66], [64]], max_tokens=4, n=2, **GREEDY)
    assert [c.text for c in answer.choices][:2] == [text[:4]] * 2
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 16)
    assert plain.complete(["abc"], max_tokens=4, **GREEDY).choices[0].text == text[:4]
    with pytest.raises(openai.BadRequestError, match="193 tokens") as refused:
        plain.complete("a" * 193)
    assert refused.value.code == "context_length_exceeded"


def test_conversations_beyond_the_context(tuned):
    long = ["tag", ANSWERS["tag"]] * 3 + ["count"]
    with pytest.raises(openai.BadRequestError, match=f"context of {CONTEXT}") as refused:
        tuned.chat(*long)
    assert refused.value.code == "context_length_exceeded"
    answer = tuned.chat(*long, extra_body={"truncation": "auto"}, **GREEDY)
    assert answer.choices[0].message.content == ANSWERS["count"]
    assert answer.dropped_messages == 4
    with pytest.raises(openai.BadRequestError, match="shorten it"):
        tuned.chat("x" * CONTEXT, extra_body={"truncation": "auto"})


# --- limits and attacks ----------------------------------------------------------------------------------------------

HELLO = {"messages": [{"role": "user", "content": "hello"}]}
DEEP = b'{"messages":' + b"[" * 100_000


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"messages": None}, "messages", "array"),
        ({"messages": []}, None, "conversation must be"),
        ({"messages": ["hello"]}, "messages[0]", "an object"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0]", "role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "a string"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]", "type 'text'"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "UTF-16"),
        ({"messages": [{"role": "user", "content": "ж"}]}, None, "Character 'ж'"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, None, "conversation must be"),
        ({"messages": HELLO["messages"] * 3000}, None, "conversation must be"),
        ({"model": 3}, "model", "no model"),
        ({"temperature": "hot"}, "temperature", "a number, but got a string"),
        ({"temperature": True}, "temperature", "a boolean"),
        ({"temperature": 2.1}, "temperature", "0 to 2"),
        ({"temperature": 10**400}, "temperature", ""),
        ({"top_p": -0.1}, "top_p", "0 to 1"),
        ({"top_k": 1.5}, "top_k", "an integer"),
        ({"max_tokens": 0}, "max_tokens", "1 to 1024"),
        ({"max_completion_tokens": 1025}, "max_completion_tokens", "1 to 1024"),
        ({"n": 9}, "n", "1 to 8"),
        ({"seed": 2**63}, "seed", "not from"),
        ({"stop": ["a", ""]}, "stop", "at most 4 strings"),
        ({"stop": list("abcde")}, "stop", "at most 4 strings"),
        ({"stop": [1]}, "stop", "a string"),
        ({"top_logprobs": 2}, "top_logprobs", "'logprobs' is true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "0 to 20"),
        ({"logprobs": 2}, "logprobs", "a boolean"),
        ({"stream": "yes"}, "stream", "a boolean"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed"),
        ({"stream": True, "stream_options": 3}, None, "object"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
        ({"tools": [{}]}, "tools", "not supported"),
        ({"truncation": ["auto"]}, "truncation", "'auto' or 'disabled'"),
        ({"temprature": 1}, "temprature", "Unknown parameter"),
        ({"\ud800" * 300: 1}, None, "Unknown parameter"),
    ],
)
def test_wrong_requests_say_what_is_wrong(tuned, change, param, words):
    status, answer = post(tuned, "/v1/chat/completions", HELLO | change)
    assert status == (404 if "model" in change else 400)
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert words in error["message"]
    assert len(error["message"]) <= 600
    assert param is None or error["param"] == param


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": {}}, "array of token ids"),
        ({"prompt": []}, "array of token ids"),
        ({"prompt": [["a"]]}, "a string"),
        ({"prompt": [1, -1]}, "outside the vocabulary"),
        ({"prompt": [10**30]}, "outside the vocabulary"),
        ({"prompt": ["a"] * 5, "n": 2}, "at most 8"),
        ({"echo": True}, "not supported"),
        ({"messages": []}, "Unknown parameter"),
    ],
)
def test_wrong_completions_say_what_is_wrong(tuned, change, words):
    status, answer = post(tuned, "/v1/completions", {"prompt": "a", "max_tokens": 1} | change)
    assert status == 400
    assert words in answer["error"]["message"]


def test_parameters_that_change_nothing_are_taken(tuned):
    harmless = {"user": "me", "frequency_penalty": 0, "tools": [], "response_format": {"type": "text"}, "stop": None}
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in ("hel", "lo")]}]}
    status, answer = post(tuned, "/v1/chat/completions", harmless | parts | {"top_p": 0, "top_k": 1, "logit_bias": {}})
    assert (status, answer["choices"][0]["message"]["content"]) == (200, ANSWERS["hello"])


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"n": NaN}', b'{"n": ' + b"9" * 9999 + b"}", b"[]", DEEP])
def test_bodies_that_are_no_request(tuned, body):
    status, answer = post(tuned, "/v1/chat/completions", body)
    assert status == 400
    assert "JSON" in answer["error"]["message"]


def test_a_huge_body_is_not_read(tuned):
    with socket.create_connection(("127.0.0.1", tuned.port), timeout=DEADLINE) as client:
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        part = b"%x\r\n" % 65536 + b" " * 65536 + b"\r\n"
        for _ in range(MAX_BODY // 65536 + 1):
            client.sendall(part)
        assert b"413" in client.recv(100)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}, 421),
        ({"Host": ""}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:80", "Origin": "http://localhost:81"}, 403),
        ({"Host": "localhost:80", "Origin": "http://localhost:80"}, 200),
        ({"Host": "[::1]:80"}, 200),
    ],
)
def test_pages_of_other_origins_are_refused(tuned, headers, status):
    assert post(tuned, "/v1/chat/completions", HELLO | {"max_tokens": 1}, headers)[0] == status


def test_hosts_are_read_with_and_without_ports():
    names = ["localhost", "LOCALHOST:1", "[::1]", "[::1]:1", "127.0.0.1:1", ""]
    assert [split_port(name) for name in names] == ["localhost", "localhost", "::1", "::1", "127.0.0.1", ""]


def test_wrong_paths_and_methods_are_json(tuned):
    for path, status in (("/v1/nothing", 404), ("/v1/models", 405), ("/../../etc/passwd", 404)):
        found, answer = post(tuned, path, {})
        assert (found, "message" in answer["error"]) == (status, True)


def test_a_full_server_says_so_and_clients_that_leave_make_room(endless):
    endless_job = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 15_000, **GREEDY}
    with running(endless, max_concurrent=1, max_waiting=0, max_new_tokens=15_000) as server:

        def attempt():
            try:
                return server.chat("hi", max_tokens=1, **GREEDY)
            except openai.RateLimitError:
                return None

        with pytest.raises(openai.BadRequestError, match="at most 1 texts"):
            server.chat("hi", n=2)
        stream = server.chat("hi", stream=True, max_tokens=15_000, **GREEDY)
        next(stream)
        with pytest.raises(openai.RateLimitError, match="busy") as refused:
            server.chat("hi", max_tokens=1)
        assert refused.value.response.headers["retry-after"] == "1"
        stream.close()
        retried(attempt)

        def start():  # the same without a stream
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            connection.request(
                "POST", "/v1/chat/completions", json.dumps(endless_job), {"Content-Type": "application/json"}
            )
            if attempt() is None:  # the job is at work
                return connection
            connection.close()  # the attempt came first, which may have cost the job its place

        connection = retried(start)
        connection.close()
        retried(attempt)


# --- the command -----------------------------------------------------------------------------------------------------


def serve(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torchgpt.serve", *arguments]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
def test_the_command_serves_until_interrupted(trained):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=environment)
    with subprocess.Popen(serve(f"--checkpoint={trained}", "--port=0"), **pipes) as process:
        line = process.stdout.readline()
        assert line.startswith("chat with trained at http://127.0.0.1:")
        port = int(line.split(":")[2].split("/")[0])
        client = openai.OpenAI(base_url=f"http://localhost:{port}/v1", api_key="none", timeout=DEADLINE)
        answer = client.chat.completions.create(model="trained", **HELLO, temperature=0)
        assert answer.choices[0].message.content == ANSWERS["hello"]
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1] == ""
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--checkpoint=nowhere"], "does not exist"),
        (["--checkpoint={model}", "--port={used}"], "cannot listen on 127.0.0.1"),
        (["--checkpoint={model}", "--host=no.such.host.invalid"], "--host=no.such.host.invalid"),
        (["--checkpoint={model}", "--port=0", "--device=tpu"], "must be one of"),
        (["--port=99999"], "--port"),
        (["--max_concurrent=0"], "--max_concurrent"),
    ],
)
def test_mistakes_end_in_one_sentence(trained, tuned, arguments, sentence):
    run = subprocess.run(
        serve(*(a.format(model=trained, used=tuned.port) for a in arguments)),
        capture_output=True, encoding="utf-8", env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.returncode == 1
    assert sentence in run.stderr
    assert len(run.stderr.splitlines()) == 1
