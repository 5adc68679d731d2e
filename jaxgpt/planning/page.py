"""A plan as one HTML page that needs nothing beside itself, with every tensor's layout."""

from html import escape
from itertools import groupby

from jaxgpt.planning.program import Tensor
from jaxgpt.planning.report import Plan, gigabytes, headline, sections, verdict

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: CanvasText; background: Canvas; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
.verdict { padding: .6rem .8rem; border-left: .3rem solid; } .fits { border-color: #2a8; } .not { border-color: #d44; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { padding: .25rem .6rem .25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid color-mix(in srgb, CanvasText 18%, Canvas); }
.number { text-align: right; white-space: nowrap; }
code { font-size: .92em; }
"""


def page(plan: Plan) -> str:
    """The figures of the terminal, and a table of parameters and one of optimizer slots."""
    tensors = plan.program.tensors()
    parts = [f"<h1>{escape(headline(plan))}</h1>", _verdict(plan)]
    for section in sections(plan):
        rows = "".join(
            f'<tr><td>{escape(row.label)}</td><td class="number">{escape(row.value)}</td>'
            f"<td>{escape(row.remark)}</td></tr>"
            for row in section.rows
        )
        parts.append(f'<h2>{escape(section.title)}</h2><div class="wide"><table>{rows}</table></div>')
    for is_slot, group in groupby(tensors, key=lambda t: "(" in t.name):
        parts.append(_tensors("optimizer slots and counters" if is_slot else "parameters", list(group)))
    title = escape(f"plan of {plan.run_file} on {plan.topology.name}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport"'
        f' content="width=device-width, initial-scale=1"><title>{title}</title><style>{_STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _verdict(plan: Plan) -> str:
    told = verdict(plan)
    return f'<p class="verdict {"not" if told.startswith("does not fit") else "fits"}">{escape(told)}</p>'


def _tensors(title: str, tensors: list[Tensor]) -> str:
    whole, own = sum(t.bytes for t in tensors), sum(t.bytes_per_device for t in tensors)
    head = (
        "<tr><th>name</th><th>shape</th><th>dtype</th><th>mesh axis of each dimension</th>"
        '<th class="number">bytes</th><th class="number">bytes of a device</th></tr>'
    )
    rows = "".join(
        f"<tr><td><code>{escape(t.name)}</code></td><td>{' x '.join(map(str, t.shape)) or 'number'}</td>"
        f"<td>{t.dtype}</td><td>{escape(t.spec)}</td>"
        f'<td class="number">{t.bytes:,}</td><td class="number">{t.bytes_per_device:,}</td></tr>'
        for t in tensors
    )
    caption = f"{title}: {gigabytes(whole)}, of a device {gigabytes(own)}"
    return f'<h2>{escape(caption)}</h2><div class="wide"><table>{head}{rows}</table></div>'
