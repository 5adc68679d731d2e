"""What a request's JSON may say, checked as OpenAI's server does. An explicit null is the same as nothing.

https://platform.openai.com/docs/api-reference/chat/create and .../completions/create; ``top_k`` and, for a
conversation, ``truncation`` are ours.
"""

from dataclasses import dataclass
from typing import Any

from data_prep.chat import Message
from torchgpt.serving.errors import ApiError
from torchgpt.writer import Settings

MAX_CHOICES = 8
MAX_ALTERNATIVES = 20  # log probabilities of so many tokens
MAX_STOPS = 4
MAX_STOP_LENGTH = 200  # characters

# Parameters that change nothing here, and such as can only have the value that changes nothing.
_IGNORED = ("user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
}
_NEUTRAL_CHAT: dict[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
}
_NEUTRAL_COMPLETION: dict[str, tuple[Any, ...]] = {"echo": (False,), "best_of": (1,), "suffix": ("",)}


@dataclass(frozen=True)
class Request:
    """What both kinds of requests say."""

    settings: Settings
    seed: int | None
    n: int
    stream: bool
    include_usage: bool


@dataclass(frozen=True)
class ChatRequest(Request):
    """A conversation to answer."""

    messages: list[Message]
    drop_turns: bool


@dataclass(frozen=True)
class CompletionRequest(Request):
    """Texts, or token ids, to continue."""

    prompts: list[str | list[int]]


class _Reader:
    """Takes parameters out of a request, each with a check; what is left in the end was none."""

    def __init__(self, body: Any):
        if not isinstance(body, dict):
            raise ApiError(400, "The request must be a JSON object.")
        self._rest = {name: value for name, value in body.items() if value is not None}

    def take(self, name: str) -> Any:
        """The value, or None."""
        return self._rest.pop(name, None)

    def number(self, name: str, low: float, high: float, default: Any, *, whole: bool = False) -> Any:
        """A number from ``low`` to ``high``."""
        value = self.take(name)
        if value is None:
            return default
        kinds = int if whole else int | float
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise _wrong_type(name, "an integer" if whole else "a number", value)
        if not low <= value <= high:
            raise ApiError(
                400, f"Invalid {name!r}: {value} is not from {low} to {high}.", param=name, code="invalid_value"
            )
        return value

    def flag(self, name: str) -> bool:
        """A boolean, false by default."""
        value = self.take(name)
        if not isinstance(value, bool | None):
            raise _wrong_type(name, "a boolean", value)
        return bool(value)

    def finish(self, neutral: dict[str, tuple[Any, ...]]) -> None:
        """Refuse what nobody took, unless it changes nothing."""
        for name in _IGNORED:
            self.take(name)
        for name, values in neutral.items():
            value = self.take(name)
            if value is not None and value not in values:
                raise ApiError(
                    400, f"{name!r} is not supported by this server.", param=name, code="unsupported_parameter"
                )
        for name in self._rest:
            raise ApiError(400, f"Unknown parameter: {name[:100]!r}.", param=name[:100], code="unknown_parameter")


def _wrong_type(name: str, expected: str, value: Any) -> ApiError:
    found = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "an integer"}
    found[type(None)] = "null"
    return ApiError(
        400,
        f"Invalid type for {name!r}: expected {expected}, but got {found.get(type(value), 'a number')} instead.",
        param=name,
        code="invalid_type",
    )


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong_type(name, "a string", value)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as e:
        raise ApiError(400, f"{name!r} holds half of a UTF-16 pair, which is no character.", param=name) from e
    return value


def _read_stop(read: _Reader) -> tuple[str, ...]:
    value = read.take("stop")
    if value is None:
        return ()
    stops = tuple(_text("stop", s) for s in (value if isinstance(value, list) else [value]))
    if len(stops) > MAX_STOPS or not all(0 < len(s) <= MAX_STOP_LENGTH for s in stops):
        raise ApiError(
            400, f"'stop' takes at most {MAX_STOPS} strings of 1 to {MAX_STOP_LENGTH} characters.", param="stop"
        )
    return stops


def _read_common(read: _Reader, max_new_tokens: int, alternatives: int | None) -> dict[str, Any]:
    """The fields of :class:`Request`."""
    stream = read.flag("stream")
    options = read.take("stream_options")
    if options is not None and not stream:
        raise ApiError(400, "'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    stream_options = _Reader(options or {})
    include_usage = stream_options.flag("include_usage")
    stream_options.flag("include_obfuscation")  # a matter of networks with listeners; there is nothing to hide here
    stream_options.finish({})
    settings = Settings(
        max_new_tokens=max_new_tokens,
        temperature=read.number("temperature", 0, 2, 1.0),
        top_k=read.number("top_k", 0, 2**31, 0, whole=True),
        top_p=read.number("top_p", 0, 1, 1.0) or 1e-9,  # OpenAI allows 0: the likeliest token alone
        stop=_read_stop(read),
        alternatives=alternatives,
    )
    return {
        "settings": settings,
        "seed": read.number("seed", -(2**63), 2**63 - 1, None, whole=True),
        "n": read.number("n", 1, MAX_CHOICES, 1, whole=True),
        "stream": stream,
        "include_usage": include_usage,
    }


def _read_messages(value: Any) -> list[Message]:
    if not isinstance(value, list):
        raise ApiError(400, "'messages' must be an array of messages.", param="messages")
    messages = []
    for i, message in enumerate(value):
        name = f"messages[{i}]"
        if not isinstance(message, dict):
            raise _wrong_type(name, "an object", message)
        role = {"developer": "system"}.get(str(message.get("role")), message.get("role"))
        if role not in ("system", "user", "assistant"):
            raise ApiError(
                400, f"'{name}.role' must be system, developer, user or assistant.", param=name, code="invalid_value"
            )
        content = message.get("content")
        if isinstance(content, list):
            parts = [
                part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
            ]
            if not all(isinstance(part, str) for part in parts):
                raise ApiError(400, f"'{name}.content' may only have parts of type 'text'.", param=name)
            content = "".join(parts)
        messages.append(Message(role, _text(f"{name}.content", content)))
    return messages


def read_chat(body: Any, most_tokens: int) -> ChatRequest:
    """The request of /v1/chat/completions. Raises ApiError."""
    read = _Reader(body)
    read.take("model")
    messages = _read_messages(read.take("messages"))
    logprobs = read.flag("logprobs")
    alternatives = read.number("top_logprobs", 0, MAX_ALTERNATIVES, None, whole=True)
    if alternatives is not None and not logprobs:
        raise ApiError(400, "'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs")
    old = read.number("max_tokens", 1, most_tokens, most_tokens, whole=True)  # the former name of the next one
    max_new_tokens = read.number("max_completion_tokens", 1, most_tokens, old, whole=True)
    truncation = read.take("truncation")
    if truncation not in (None, "auto", "disabled"):
        raise ApiError(400, "'truncation' must be 'auto' or 'disabled'.", param="truncation", code="invalid_value")
    common = _read_common(read, max_new_tokens, (alternatives or 0) if logprobs else None)
    read.finish(_NEUTRAL | _NEUTRAL_CHAT)
    return ChatRequest(**common, messages=messages, drop_turns=truncation == "auto")


def read_completion(body: Any, most_tokens: int) -> CompletionRequest:
    """The request of /v1/completions. Raises ApiError."""
    read = _Reader(body)
    read.take("model")
    prompts = _read_prompts(read.take("prompt"))
    max_new_tokens = read.number("max_tokens", 1, most_tokens, min(16, most_tokens), whole=True)
    alternatives = read.number("logprobs", 0, MAX_ALTERNATIVES, None, whole=True)
    common = _read_common(read, max_new_tokens, alternatives)
    read.finish(_NEUTRAL | _NEUTRAL_COMPLETION)
    if common["n"] * len(prompts) > MAX_CHOICES:
        raise ApiError(400, f"'n' times the number of prompts must be at most {MAX_CHOICES}.", param="n")
    return CompletionRequest(**common, prompts=prompts)


def _read_prompts(value: Any) -> list[str | list[int]]:
    """A text, a list of token ids, or a list of such."""
    if value is None:
        return [""]
    if isinstance(value, str) or (isinstance(value, list) and value and all(type(v) is int for v in value)):
        value = [value]
    if not isinstance(value, list) or not value:
        raise ApiError(400, "'prompt' must be a string, an array of token ids, or an array of such.", param="prompt")
    for prompt in value:
        if not (isinstance(prompt, list) and prompt and all(type(v) is int for v in prompt)):
            _text("prompt", prompt)
    return value
