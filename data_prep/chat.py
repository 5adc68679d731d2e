"""How a conversation becomes tokens, for tuning a model on instructions and for talking to it afterwards.

A model of subword tokens gets three special tokens, which stand before each message:

    <|system|>...<|user|>What is rain?<|assistant|>Water that falls from clouds.<|endoftext|><|user|>...

A model of characters gets one, ``|||``, between what the user wrote and the answer; a system message is put before the
first instruction:

    What is rain?|||Water that falls from clouds.<|endoftext|>...

The end of text closes every answer, so that the model learns to stop. What people write is always ordinary text: even
``<|user|>`` in a message is encoded as the characters it is made of. White space around a message is dropped. The same
format travels with the tokenizer as a Jinja chat template, which gives transformers the same ids.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_prep.tokenizers import Tokenizer
from scratchgpt.errors import UserError

ROLES = ("system", "user", "assistant")
SEPARATOR = "|||"
_MARKS = {role: f"<|{role}|>" for role in ROLES}

_MARKED_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>' + message['content'] | trim -}}
{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
_SEPARATED_TEMPLATE = """\
{%- for message in messages -%}
{{- message['content'] | trim -}}
{%- if message['role'] == 'system' -%}{{- '\\n\\n' -}}
{%- elif message['role'] == 'user' -%}{{- '|||' -}}
{%- else -%}{{- eos_token -}}
{%- endif -%}
{%- endfor -%}
"""


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str  # one of ROLES
    content: str


def check_conversation(messages: Sequence[Message]) -> None:
    """Raise UserError unless ``messages`` are user and assistant in turn, after at most one system message."""
    turns = [m.role for m in messages]
    if turns[:1] == ["system"]:
        turns = turns[1:]
    if not turns or turns != [("user", "assistant")[i % 2] for i in range(len(turns))]:
        raise UserError(
            "a conversation must be messages of user and assistant in turn, the user's first, after at most one of"
            f" system, not {', '.join(m.role for m in messages) or 'nothing'}"
        )


def add_chat_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """``tokenizer`` with the special tokens and the chat template of this module, which may be there already."""
    is_char = tokenizer.kind == "char"
    grown = tokenizer.with_special_tokens([SEPARATOR] if is_char else list(_MARKS.values()))
    grown.chat_template = _SEPARATED_TEMPLATE if is_char else _MARKED_TEMPLATE
    return grown


class ChatFormat:
    """Conversations as token ids, by a tokenizer that :func:`add_chat_tokens` has prepared.

    Attributes:
      tokenizer: as given.
      stop_ids: tokens at which an answer ends.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises UserError for the tokenizer of a model that was not tuned to follow instructions here."""
        self.tokenizer = tokenizer
        if tokenizer.chat_template not in (_MARKED_TEMPLATE, _SEPARATED_TEMPLATE):
            raise UserError(
                "this model has not been tuned on instructions by ScratchGPT (its tokenizer's chat template is not"
                " ours): use one that was, see `python -m jaxgpt.train --config=configs/sft_small.py`, or leave out"
                " --instruct to continue a text"
            )
        self._separated = tokenizer.chat_template == _SEPARATED_TEMPLATE
        ids = tokenizer.special_tokens
        self._marks = {} if self._separated else {role: [ids[mark]] for role, mark in _MARKS.items()}
        self._separator = [ids[SEPARATOR]] if self._separated else []
        marks = [*self._marks.values(), self._separator]
        self.stop_ids = frozenset({tokenizer.end_of_text_id}.union(*marks))

    def _text(self, text: str) -> list[int]:
        return [int(i) for i in self.tokenizer.encode(text)]

    def encode(self, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [n], is_response bool [n]) of a conversation.

        ``is_response`` marks what the model is to learn: every assistant's message and the end of text behind it.
        Raises UserError for roles out of turn, and for text outside the vocabulary.
        """
        check_conversation(messages)
        ids: list[int] = []
        is_response: list[bool] = []

        def add(new: list[int], learned: bool = False) -> None:
            ids.extend(new)
            is_response.extend([learned] * len(new))

        for message in messages:
            content = message.content.strip()
            add(self._marks.get(message.role, []))
            if message.role == "assistant":
                add([*self._text(content), self.tokenizer.end_of_text_id], learned=True)
            elif message.role == "user":
                add([*self._text(content), *self._separator])
            else:
                add(self._text(content + ("\n\n" if self._separated else "")))
        return np.array(ids, np.int32), np.array(is_response, bool)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation that ends with the user's message, up to where the answer begins. Raises UserError."""
        check_conversation(messages)
        if messages[-1].role != "user":
            raise UserError("there is nothing to answer: the conversation must end with a message of the user")
        return [*self.encode(messages)[0].tolist(), *self._marks.get("assistant", [])]
