"""A report as one HTML page that needs nothing beside itself: no script, no network."""

from collections.abc import Sequence

from scratchgpt.reporting import sections
from scratchgpt.reporting.figures import Chart
from scratchgpt.reporting.html import escape, section
from scratchgpt.reporting.runs import Run
from scratchgpt.reporting.series import MOST_POINTS
from scratchgpt.reporting.style import style_sheet

# what a text from a run could bring in, had it not been escaped, is not loaded either
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(runs: Sequence[Run], charts: Sequence[Chart], axes: Sequence[str]) -> str:
    """The page.

    Args:
      runs: what it tells of.
      charts: of them.
      axes: the horizontal axes that can be chosen between.
    """
    names = ", ".join(run.name for run in runs) if len(runs) <= 4 else f"{len(runs)} runs"
    parts = [
        f"<header><p>{escape('Run report' if len(runs) == 1 else 'Comparison of runs')}</p><h1>{escape(names)}</h1>",
        sections.summary(runs),
        "</header>",
        _charts(charts, axes, len(runs) > 1),
        section("Time of each start", sections.time_spent(runs)),
        section("Evaluation", sections.evaluations(runs)),
        section("Samples", sections.samples(runs)),
        section("Configuration", sections.configuration(runs)),
        section("Provenance", sections.provenance(runs)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(names)} · run report</title><style>{style_sheet()}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _charts(charts: Sequence[Chart], axes: Sequence[str], is_comparison: bool) -> str:
    if not charts:
        return ""
    figures = "".join(_figure(chart) for chart in charts)
    lines = "In the loss chart, validation has dots and the heavier line. " if is_comparison else ""
    thinned = (
        f"{lines}Of a curve with more than {MOST_POINTS} points, the lowest and highest of equal stretches are drawn."
    )
    return (
        f'<section aria-label="Charts">{_switch(axes)}<div class="charts">{figures}</div>'
        f'<p class="remark">{thinned} The same charts are PNG files beside this page.</p></section>'
    )


def _switch(axes: Sequence[str]) -> str:
    if len(axes) < 2:
        return ""
    choices = "".join(
        f'<label><input type="radio" name="axis" id="axis-{axis}"{" checked" if axis == axes[0] else ""}>{axis}</label>'
        for axis in axes
    )
    return f'<fieldset><legend>Charts over</legend><div class="switch">{choices}</div></fieldset>'


def _figure(chart: Chart) -> str:
    def drawings(svg: dict[str, str]) -> str:
        return "".join(
            f'<div class="over {axis or "steps tokens time"}">{drawing}</div>' for axis, drawing in svg.items()
        )

    inner = drawings(chart.svg)
    if chart.small_svg:
        inner = f'<div class="big">{inner}</div><div class="small">{drawings(chart.small_svg)}</div>'
    return (
        f'<figure{" class=large" if chart.small_svg else ""} role="img"'
        f' aria-label="{escape(f"{chart.title}. {chart.told}.")}">'
        f'<figcaption aria-hidden="true">{escape(chart.title)}</figcaption>{inner}</figure>'
    )
