"""A conversation within a model's context: what of it the model is shown, and how long the answer may be."""

from collections.abc import Sequence
from typing import NamedTuple

from data_prep.chat import ChatFormat, Message
from scratchgpt.errors import UserError


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
    the room there is. Raises UserError for roles out of turn and for a conversation, or with ``drop_turns`` a single
    message, that leaves no room at all.
    """
    kept = list(messages)
    begin = int(kept[:1] != [] and kept[0].role == "system")
    room = min(max_new_tokens, context_length // 2)
    while True:
        prompt = chat_format.prompt(kept)
        if not drop_turns or len(prompt) + room <= context_length or len(kept) <= begin + 2:
            break
        del kept[begin : begin + 2]
    left = context_length - len(prompt)
    if left < 1 and max_new_tokens:
        what = "message has" if len(kept) <= begin + 1 else "conversation has"
        raise UserError(
            f"the {what} {len(prompt)} tokens, and the model's context of {context_length} must hold an answer as well:"
            " shorten it"
        )
    return Shown(kept, len(messages) - len(kept), prompt, min(max_new_tokens, left))
