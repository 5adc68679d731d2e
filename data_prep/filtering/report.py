"""The report of a run: what each filter dropped, with samples, as Markdown and as one HTML page."""

import html
import re
from pathlib import Path
from typing import Any

from scratchgpt.files import write_json, write_text

_STYLE = """
:root { color-scheme: light dark;
  --line: #d0d4da; --soft: #f3f5f7; --dim: #5b6470; --link: #1a5fb4; --kept: #3a7d5c; --lost: #c8553d; }
@media (prefers-color-scheme: dark) { :root {
  --line: #3a4048; --soft: #22262c; --dim: #9aa4b0; --link: #8ab8f0; --kept: #5fb58a; --lost: #e07a62; } }
a { color: var(--link); }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 0.3rem; } p { margin: 0.4rem 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: bottom; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } tr.total { font-weight: 600; }
.bar { height: 0.6rem; background: var(--lost); border-radius: 3px; overflow: hidden; margin: 0.6rem 0; }
.bar span { display: block; height: 100%; background: var(--kept); }
.dim { color: var(--dim); font-size: 0.9rem; overflow-wrap: anywhere; }
details { margin: 0.4rem 0; } summary { cursor: pointer; }
figure { margin: 0.8rem 0; padding: 0.6rem 0.8rem; background: var(--soft); border-radius: 6px; }
figcaption { font-size: 0.9rem; margin-bottom: 0.3rem; overflow-wrap: anywhere; }
pre { margin: 0; font: 0.85rem/1.45 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def write_reports(folder: Path, record: dict[str, Any]) -> None:
    """Write ``record`` to report.json, report.md and report.html in ``folder``."""
    write_json(folder / "report.json", record)
    write_text(folder / "report.md", as_markdown(record))
    write_text(folder / "report.html", as_html(record))


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _summary(record: dict[str, Any]) -> str:
    documents, tokens = record["documents"], record["tokens"]
    return (
        f"{documents['kept']:,} of {documents['in']:,} documents kept ({_share(documents['kept'], documents['in'])}),"
        f" {tokens['kept']:,} of {tokens['in']:,} tokens ({_share(tokens['kept'], tokens['in'])})."
    )


_HEAD = ("filter", "documents in", "dropped", "share", "edited", "tokens dropped", "tokens edited away", "tokens out")
_NOTE = (
    "Documents in = kept + dropped, by every filter and in all. Tokens in = out + those of dropped documents + those"
    " that edits took from documents that stayed (negative: edits added some). Tokens: {}."
)


def _table(record: dict[str, Any]) -> list[list[str]]:
    """Rows below _HEAD: each filter, then the sum."""
    rows = []
    for f in record["filters"]:
        documents, tokens = f["documents"], f["tokens"]
        dropped = documents["in"] - documents["out"]
        numbers = [documents["in"], dropped, documents["edited"], tokens["dropped"], tokens["edited"], tokens["out"]]
        texts = [f"{n:,}" for n in numbers]
        rows.append([f["name"], *texts[:2], _share(dropped, documents["in"]), *texts[2:]])
    dropped = record["documents"]["in"] - record["documents"]["kept"]
    tokens = [sum(f["tokens"][key] for f in record["filters"]) for key in ("dropped", "edited")]
    sums = [f"{record['documents']['in']:,}", f"{dropped:,}", _share(dropped, record["documents"]["in"]), ""]
    rows.append(["all", *sums, *(f"{n:,}" for n in [*tokens, record["tokens"]["kept"]])])
    return rows


def _evaluation(record: dict[str, Any]) -> str:
    texts = [
        f"{e['file']}: {e['texts']:,} texts, {e['ngrams']:,} distinct runs of 13 words,"
        f" {e['short']:,} texts too short to have one"
        for e in record["evaluation"]
    ]
    return f"Decontaminated against {'; '.join(texts)}." if texts else ""


def _captions(f: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """(caption, sample) of all samples of a filter."""
    dropped = [(": ".join(filter(None, [s["reason"], s["detail"]])) + f" ({s['id']})", s) for s in f["samples"]]
    return dropped + [(f"edited, as it reads now ({s['id']})", s) for s in f["edits"]]


def as_markdown(record: dict[str, Any]) -> str:
    """The report as Markdown; samples stand in fences, where nothing in them is markup."""
    lines = ["# What the filters dropped", "", _summary(record), ""]
    lines += [f"- {key}: {value}" for key, value in record["facts"].items()]
    lines += ["", "| " + " | ".join(_HEAD) + " |", "|---" + "|---:" * (len(_HEAD) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in _table(record)]
    lines += ["", _NOTE.format(record["tokens_are"]), _evaluation(record)]
    for f in record["filters"]:
        lines += ["", f"## {f['name']}", "", f["what"][0].upper() + f["what"][1:] + ".", ""]
        lines += [f"- {r['reason']}: {r['documents']:,} documents, {r['tokens']:,} tokens" for r in f["reasons"]]
        for caption, sample in _captions(f):
            lines += ["", _one_line(caption), "", *_fenced(sample["text"])]
            if "like" in sample:
                lines += ["", "kept instead:", "", *_fenced(sample["like"])]
    return "\n".join(lines).rstrip() + "\n"


def _one_line(text: str) -> str:
    return re.sub(r"([\\`*_<>\[\]&#|])", r"\\\1", " ".join(text.split()))


def _fenced(text: str) -> list[str]:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", *text.splitlines(), fence]


def as_html(record: dict[str, Any]) -> str:
    """The report as one page without scripts or outside resources; all text of the data is escaped."""
    e = html.escape
    kept = 100 * record["tokens"]["kept"] / record["tokens"]["in"] if record["tokens"]["in"] else 0
    parts = [
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>What the filters dropped</title>\n<style>{_STYLE}</style>",
        f"<h1>What the filters dropped</h1>\n<p>{e(_summary(record))}</p>",
        f'<div class="bar" role="img" aria-label="share of tokens kept"><span style="width:{kept:.2f}%"></span></div>',
        "".join(f'<p class="dim">{e(key)}: {e(value)}</p>' for key, value in record["facts"].items()),
        '<div class="scroll"><table>',
        "<tr>" + "".join(f"<th>{e(name)}</th>" for name in _HEAD) + "</tr>",
    ]
    rows = _table(record)
    for row in rows:
        name = row[0] if row is rows[-1] else f'<a href="#{e(row[0])}">{e(row[0])}</a>'
        cells = "".join(f"<td>{e(cell)}</td>" for cell in row[1:])
        opening = '<tr class="total">' if row is rows[-1] else "<tr>"
        parts.append(f"{opening}<td>{name}</td>{cells}</tr>")
    parts.append(f'</table></div>\n<p class="dim">{e(_NOTE.format(record["tokens_are"]))} {e(_evaluation(record))}</p>')
    for f in record["filters"]:
        what = f["what"][0].upper() + f["what"][1:]
        parts.append(f'<h2 id="{e(f["name"])}">{e(f["name"])}</h2>\n<p class="dim">{e(what)}.</p>')
        if f["reasons"]:
            parts.append('<div class="scroll"><table><tr><th>reason</th><th>documents</th><th>tokens</th></tr>')
            for r in f["reasons"]:
                parts.append(f"<tr><td>{e(r['reason'])}</td><td>{r['documents']:,}</td><td>{r['tokens']:,}</td></tr>")
            parts.append("</table></div>")
        captions = _captions(f)
        if captions:
            parts.append(f"<details open><summary>{len(captions)} samples</summary>")
            parts += [_figure(caption, sample) for caption, sample in captions]
            parts.append("</details>")
    return "\n".join(parts) + "\n</html>\n"


def _figure(caption: str, sample: dict[str, str]) -> str:
    e = html.escape
    like = f"<p>kept instead:</p><pre>{e(sample['like'])}</pre>" if "like" in sample else ""
    return f"<figure><figcaption>{e(caption)}</figcaption><pre>{e(sample['text'])}</pre>{like}</figure>"
