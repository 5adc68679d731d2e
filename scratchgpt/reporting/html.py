"""Pieces of a page; every text that is put in is escaped."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from scratchgpt.reporting.figures import PALETTE

__all__ = ["details", "escape", "mark", "number_cell", "section", "shown", "table"]


def section(title: str, *parts: str) -> str:
    """A section with its heading; nothing if it has no content. ``parts`` are HTML."""
    content = "".join(parts)
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def details(summary: str, content: str, is_open: bool = False) -> str:
    """A part that opens on a click. ``content`` is HTML."""
    return f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>{content}</details>"


def number_cell(value: str, is_best: bool = False) -> tuple[str, str]:
    """A cell for :func:`table`, set to the right, bold where it ``is_best``."""
    return value, "number best" if is_best else "number"


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str | tuple[str, str]]], mark_rows: bool = False
) -> str:
    """A table that scrolls by itself where the screen is narrow; nothing without rows.

    Args:
      caption: what it holds, for who does not see it.
      head: of the columns.
      rows: texts, or pairs of a text and its CSS classes; the first of a row is its heading.
      mark_rows: put the colour that the charts give to the run of this number before each row.
    """
    body = []
    for i, row in enumerate(rows):
        cells = [cell if isinstance(cell, tuple) else (cell, "") for cell in row]
        (first, _), *others = cells
        body.append(
            f'<tr><th scope="row">{mark(i) if mark_rows else ""}{escape(first)}</th>'
            + "".join(f"<td{_class(classes)}>{escape(text)}</td>" for text, classes in others)
            + "</tr>"
        )
    if not body:
        return ""
    top = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def mark(index: int) -> str:
    """A dot in the colour that the charts give to the run of this number."""
    return f'<span class="mark" style="background: var(--c{index % len(PALETTE)})" aria-hidden="true"></span>'


def shown(value: Any) -> str:
    """A value of a configuration, on one line of bounded length."""
    text = value if isinstance(value, str) and value else repr(value)
    return text if len(text) <= 300 else f"{text[:200]} … {text[-80:]}"


def _class(classes: str) -> str:
    return f' class="{escape(classes)}"' if classes else ""
