"""Conversations out of the rows of instruction data sets, whatever their columns are called.

Known forms of a row:

    instruction, output and perhaps input             Alpaca (Taori et al. 2023)
    instruction, response and perhaps context         Dolly (Conover et al. 2023)
    prompt, and answer, completion or response        a prompt may be laid out as Alpaca's, which is taken apart again
    messages: [{role, content}, ...]                  OpenAI's and the hub's chat format
    conversations: [{from, value}, ...]               ShareGPT

An optional ``system`` column is the system message.
"""

import re
from typing import Any

from data_prep.chat import Message, check_conversation
from scratchgpt.errors import UserError

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
_ALPACA_PROMPT = re.compile(
    r"Below is an instruction.*?### Instruction:\s*(?P<instruction>.*?)\s*(?:### Input:\s*(?P<input>.*?)\s*)?"
    r"### Response:\s*",
    re.DOTALL,
)
_END_MARKS = ("###eos_token###", "### End")  # what some copies of Dolly leave at the end of an answer
_ANSWERS = ("output", "response", "answer", "completion")
_INPUTS = ("input", "context")


def conversation_of(row: dict[str, Any], where: str) -> list[Message]:
    """The conversation of a row, checked to be turns of user and assistant; empty if it has nothing to learn from.

    Raises UserError that begins with ``where`` for a row of none of the known forms.
    """
    if turns := _turns(row, where):
        messages = turns
    elif "instruction" in row:
        messages = [Message("user", instruction_of(row, where)), Message("assistant", _answer(row, where))]
    elif "prompt" in row:
        messages = [*prompt_of(row["prompt"], where), Message("assistant", _answer(row, where))]
    else:
        raise UserError(
            f"{where}: the columns {', '.join(map(repr, row))} are none of the known forms: instruction and output,"
            " prompt and answer, messages, or conversations"
        )
    messages = [m for m in messages if m.content.strip() or m.role != "system"]
    if row.get("system") and messages[0].role != "system":
        messages.insert(0, Message("system", _text(row["system"], where)))
    if not messages[-1].content.strip() or not any(m.role == "user" and m.content.strip() for m in messages):
        return []
    try:
        check_conversation(messages)
    except UserError as e:
        raise UserError(f"{where}: {e}") from e
    return messages


def instruction_of(row: dict[str, Any], where: str) -> str:
    """What a user asks in a row of instruction and, perhaps, input."""
    instruction = _text(row["instruction"], where).strip()
    extra = next((text for key in _INPUTS if (text := _text(row.get(key), where).strip())), "")
    return f"{instruction}\n\n{extra}" if extra else instruction


def prompt_of(prompt: Any, where: str) -> list[Message]:
    """The messages before an answer: of a text, or of a list of messages."""
    if isinstance(prompt, list):
        return [_message(m, where) for m in prompt]
    text = _text(prompt, where)
    if match := _ALPACA_PROMPT.fullmatch(text.strip()):
        text = match["instruction"] + (f"\n\n{match['input']}" if match["input"] else "")
    return [Message("user", text)]


def answer_of(answer: Any, where: str) -> str:
    """An answer: a text, one message, or the last of a list of messages."""
    if isinstance(answer, list) and answer:
        answer = answer[-1]
    if isinstance(answer, dict):
        answer = _message(answer, where).content
    text = _text(answer, where).strip()
    for mark in _END_MARKS:
        text = text.removesuffix(mark).rstrip()
    return text


def _turns(row: dict[str, Any], where: str) -> list[Message]:
    for column in ("messages", "conversations"):
        if row.get(column) is not None:
            if not isinstance(row[column], list):
                raise UserError(f"{where}: {column!r} must be a list of messages, not {row[column]!r:.50}")
            return [_message(m, where) for m in row[column]]
    return []


def _message(message: Any, where: str) -> Message:
    if isinstance(message, dict):
        role, content = (message.get(a, message.get(b)) for a, b in (("role", "from"), ("content", "value")))
        if role in _ROLES and isinstance(content, str):
            return Message(_ROLES[role], content)
    raise UserError(f"{where}: a message must have a role (system, user or assistant) and a text, not {message!r:.200}")


def _answer(row: dict[str, Any], where: str) -> str:
    for key in _ANSWERS:
        if key in row:
            return answer_of(row[key], where)
    raise UserError(f"{where}: there is no answer: none of the columns {', '.join(_ANSWERS)}")


def _text(value: Any, where: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    raise UserError(f"{where}: a text is expected, not {value!r:.100}")
