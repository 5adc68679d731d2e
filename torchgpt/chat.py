"""A conversation within a model's context: what of it the model is shown, and how long the answer may be."""

from collections.abc import Sequence
from typing import NamedTuple

from data_prep.chat import ChatFormat, Message
from scratchgpt.errors import UserError


class TooLong(UserError):
    """A prompt that leaves no room in the model's context."""


class Shown(NamedTuple):
    """What of a conversation fits the context."""

    messages: list[Message]
    dropped: int  # messages left out
    prompt: list[int]
    max_new_tokens: int  # as asked for, or as many as there is room for


def fit_conversation(
    chat_format: ChatFormat,
    messages: Sequence[Message],
    context_length: int,
    max_new_tokens: int,
    drop_turns: bool = True,
) -> Shown:
    """As much of ``messages`` as leaves room for the answer; the oldest turns go first, a system message never.

    An answer may count on ``max_new_tokens``, but not on more than half the context. Without ``drop_turns`` it takes
    the room there is. Raises TooLong if a conversation, or with ``drop_turns`` its last message, leaves no room at all,
    and UserError for roles out of turn.
    """
    prompt = chat_format.prompt(messages)
    begin = int(messages[0].role == "system")
    length, first = len(prompt), begin
    room = min(max_new_tokens, context_length // 2)
    while drop_turns and length + room > context_length and first < len(messages) - 1:
        length -= len(chat_format.encode(messages[first : first + 2])[0])  # a message's ids depend on no other
        first += 2
    left = context_length - length
    if left < 1:
        raise TooLong(
            f"the {'message' if first == len(messages) - 1 else 'conversation'} has {length} tokens, and the model's"
            f" context of {context_length} must hold an answer as well: shorten it"
        )
    kept = [*messages[:begin], *messages[first:]]
    if first > begin:
        prompt = chat_format.prompt(kept)
    return Shown(kept, first - begin, prompt, min(max_new_tokens, left))
