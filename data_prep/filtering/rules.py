"""Rules for Law Stack Exchange: posts in Markdown become plain prose; low scores and odd lengths are dropped.

A post is its title on the first line and then the Markdown (with some HTML) of the question.
"""

import dataclasses
import html
import re
from collections.abc import Iterator
from typing import Any

# Elements that HTML knows: `<Legal Entity Name>` and `<checksum>` are words of the text and stay.
_BLOCKS = "p|div|br|hr|li|ul|ol|dl|dd|dt|h[1-6]|blockquote|table|tr|section|article"
_INLINE = (
    "a|b|i|u|s|em|strong|strike|del|ins|sub|sup|small|big|span|font|td|th|tbody|thead|img|kbd|samp|var|abbr|cite|q"
)
_BLOCK_TAG = re.compile(rf"</?(?:{_BLOCKS})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_INLINE_TAG = re.compile(rf"</?(?:{_INLINE})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_UNSEEN = re.compile(r"<(script|style|pre)\b[^<>]*>.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_CODE_TAG = re.compile(r"</?(?:code|tt)(?:\s[^<>]*)?>", re.IGNORECASE)

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n`]*\n.*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?:(?: {4}|\t)[^\n]*(?:\n|\Z)|\n(?= {4}|\t))+")
_TICKS = re.compile(r"(`+)(?!`)((?:(?!\n\n).)+?)(?<!`)\1(?!`)", re.DOTALL)
_IMAGE = re.compile(r"!\[[^\[\]]*\](?:\([^()\s]*(?:\([^()]*\)[^()\s]*)*(?:\s+\"[^\"]*\")?\)|\[[^\[\]]*\])")
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\([^()\s]*(?:\([^()]*\)[^()\s]*)*(?:\s+\"[^\"]*\")?\)")
_NUMBERED_LINK = re.compile(r"\[([^\[\]]+)\]\[[^\[\]]*\]")
_LINK_TARGET = re.compile(r"^ {0,3}\[[^\[\]]+\]:[ \t]*<?\w+://\S+.*$", re.MULTILINE)
_ADDRESS = re.compile(r"<((?:https?|ftp)://[^<>\s]+)>")
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.*?)[ \t]*#*$", re.MULTILINE)
_RULE = re.compile(r"^ {0,3}(?:[-*_][ \t]*){3,}$", re.MULTILINE)
_BOLD = re.compile(r"(?<!\\)(\*\*|__)(?=[^\s_*])(.+?)(?<=[^\s_\\])\1")
_ITALIC = re.compile(
    r"(?<![\w*\\])(?:\*(?=[^\s*])([^*\n]+?)(?<=[^\s*\\])\*(?!\*)|_(?=[^\s_])([^_\n]+?)(?<=[^\s_\\])_(?![\w]))"
)
_ESCAPE = re.compile(r"\\([\\`*_{}\[\]()#+.!>~|-])")
_BLANK_TO_FILL = re.compile(r"(?:\\_?){4,}")  # a form's line to write on, escaped twice over
_QUOTE = re.compile(r"^[ \t]*(?:>[ \t]?)+", re.MULTILINE)
_LIST_ITEM = re.compile(r"(?:[-*+•]|\(?\w{1,3}[.)])\s")
_SPACES = re.compile(r"[ \t\u00a0]+")


@dataclasses.dataclass(frozen=True)
class LawRules:
    """Thresholds of the filter ``law``; lengths are characters after the clean-up."""

    score_column: str = "score"
    min_score: int = 0
    min_characters: int = 200
    max_characters: int = 20_000
    max_code_share: float = 0.5


def clean(text: str) -> tuple[str, float]:
    """Markdown and HTML to plain prose, and the share of its characters that were code blocks and are gone.

    Links keep their words and lose their addresses, images go, quotations stay as paragraphs, and lines that were
    wrapped by hand become paragraphs of one line. The first line, the title, stays on a line of its own.
    """
    text = _QUOTE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    before = len(text.strip())
    text = _COMMENT.sub("", text)
    without_code = _INDENTED.sub("\n", _FENCE.sub("\n", _UNSEEN.sub("\n", text)))
    code_share = (len(text) - len(without_code)) / before if before else 0.0
    # Code in a sentence is part of the sentence: `&lt;b&gt;` and **kwargs are kept from the rules for markup.
    spans: list[str] = []

    def put_away(match: re.Match[str]) -> str:
        spans.append(match[2].strip())
        return f"\ue000{len(spans) - 1}\ue001"

    text = _TICKS.sub(put_away, without_code.replace("\ue000", "").replace("\ue001", ""))
    text = _LINK_TARGET.sub("", _RULE.sub("", _HEADING.sub(r"\1\n", text)))
    text = _NUMBERED_LINK.sub(r"\1", _LINK.sub(r"\1", _IMAGE.sub("", text)))
    text = _ADDRESS.sub(r"\1", text)
    text = _CODE_TAG.sub("", _INLINE_TAG.sub("", _BLOCK_TAG.sub("\n\n", text)))
    text = "\n".join(_paragraphs(text)).strip()
    text = _ITALIC.sub(r"\1\2", _BOLD.sub(r"\2", text))  # after the joining: emphasis may span wrapped lines
    text = _ESCAPE.sub(r"\1", _BLANK_TO_FILL.sub("____", text))
    text = html.unescape(text)  # after the tags: &lt;b&gt; is text about a tag
    text = re.sub("\ue000(\\d+)\ue001", lambda match: spans[int(match[1])], text)
    return text.strip(), code_share


def _paragraphs(text: str) -> Iterator[str]:
    """Lines of ``text`` with the wrapped ones joined, one blank line between paragraphs."""
    open_line = ""
    ended = True  # a blank line has been given, or nothing yet
    for number, line in enumerate(text.strip().split("\n")):
        hard_break = line.endswith("  ")
        line = _SPACES.sub(" ", line).strip()
        if open_line and (not line or _LIST_ITEM.match(line)):
            yield open_line
            open_line = ""
        if line:
            open_line, ended = f"{open_line} {line}".strip(), False
        elif not ended:
            yield ""
            ended = True
        if open_line and (number == 0 or hard_break):
            yield open_line
            open_line = ""
    if open_line:
        yield open_line


def judge(text: str, code_share: float, row: dict[str, Any], rules: LawRules) -> str:
    """Why a cleaned post is dropped; '' keeps it. A row without a number as its score is not judged by score."""
    score = row.get(rules.score_column)
    if isinstance(score, int | float) and not isinstance(score, bool) and score < rules.min_score:
        return "low score"
    if code_share > rules.max_code_share:
        return "mostly code"
    if len(text) < rules.min_characters:
        return "too short"
    if len(text) > rules.max_characters:
        return "too long"
    return ""
