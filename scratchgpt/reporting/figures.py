"""From a drawing to a chart: PNG, and SVG that follows the page's colours."""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scratchgpt.files import atomic_path
from scratchgpt.progress import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, PAPER = "#1f2429", "#ffffff"  # in SVG: currentColor, and the variable --card of the page
# after Okabe and Ito 2008, told apart with any colour vision; in SVG the variables --c0, --c1, ... of the page
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b07d00", "#3d9bd1", "#7a5195", "#6b6b6b")
WIDE, SMALL = (9.6, 3.7), (5.4, 3.3)  # inches at 72 units
_LEGEND_ROW = 15.5  # high, in 72 to the inch

_RC = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a run's name is no formula
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.unicode_minus": True,
    "path.simplify": True,
    "path.simplify_threshold": 0.3,
    "agg.path.chunksize": 10000,
}


@dataclass(slots=True)
class Chart:
    """A drawn chart.

    Attributes:
      name: of its PNG, without the ending.
      title: one line.
      told: what it shows, in words, for who does not see it.
      svg: by axis (steps, tokens, time), or by "" if it has one only; for wide screens.
      small_svg: the same for narrow ones; empty if ``svg`` serves both.
      png: bytes.
    """

    name: str
    title: str
    told: str
    svg: dict[str, str]
    small_svg: dict[str, str]
    png: bytes

    def write(self, directory: Path) -> None:
        """Write the PNG."""
        with atomic_path(directory / f"{self.name}.png") as temporary:
            temporary.write_bytes(self.png)


def make_chart(
    name: str,
    title: str,
    told: str,
    draw: Callable[["Axes", str], None],
    axes: Sequence[str],
    small: bool = False,
    size: tuple[float, float] = SMALL,
) -> Chart:
    """Draw a chart over each of its axes. ``small``: for wide and narrow screens, otherwise for both."""
    svg, small_svg, png = {}, {}, b""
    for axis in axes:
        figure = make_figure(draw, axis, WIDE if small else size)
        svg[axis] = to_svg(figure, f"{name}-{axis}")
        png = png or to_png(figure, title)
        if small:
            small_svg[axis] = to_svg(make_figure(draw, axis, size), f"{name}-{axis}-small")
    return Chart(name, title, told, svg, small_svg, png)


def make_figure(draw: Callable[["Axes", str], None], axis: str, size: tuple[float, float]) -> "Figure":
    """What ``draw`` draws over an axis (steps, tokens, time; or "" if it sees to that), ``size`` in inches."""
    import matplotlib
    from matplotlib.figure import Figure  # no pyplot: no display, no global state
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=size, dpi=72)
        plot = figure.add_subplot()
        draw(plot, axis)
        if axis:
            plot.set_xlim(left=0)
            plot.grid(alpha=0.15, color=INK, linewidth=0.7)
            plot.set_xlabel("step" if axis == "steps" else axis)
            plot.xaxis.set_major_formatter(FuncFormatter(lambda x, _: count(x)))
        if axis == "time":
            unit, seconds = _unit_of_time(plot.get_xlim()[1])
            plot.set_xlabel(f"time spent on training steps ({unit})")
            _ticks_every(plot, seconds)
        if axis:
            if plot.get_yscale() == "log":
                low, high = plot.get_ylim()
                subs = (1.0, 2.0, 5.0) if high / low < 1e4 else (1.0,)  # over many decades: powers of ten alone
                plot.yaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
                plot.yaxis.set_minor_formatter(NullFormatter())
            plot.yaxis.set_major_formatter(FuncFormatter(lambda y, _: count(y)))
        if (rows := _legend_rows(plot)) > 1:  # a higher picture, not a smaller curve
            figure.set_size_inches(size[0], size[1] + _LEGEND_ROW * (rows - 1) / 72)
        _arrange(figure)
    return figure


def _unit_of_time(seconds: float) -> tuple[str, float]:
    if seconds < 180:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds < 3 * 3600 else ("hours", 3600.0) if seconds < 96 * 3600 else ("days", 86400.0)


def _ticks_every(plot: "Axes", seconds: float) -> None:
    """Ticks at round numbers of a unit that is ``seconds`` long."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    low, high = plot.get_xlim()
    ticks = MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]).tick_values(low / seconds, high / seconds) * seconds
    plot.set_xticks([t for t in ticks if low <= t <= high])
    plot.xaxis.set_major_formatter(FuncFormatter(lambda x, _: count(x / seconds)))


def count(number: float) -> str:
    """Such as 250, 1.5k, 2M or 10B; small numbers with the digits that they need."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= max(1e4, size * 0.9995):
            return f"{number / size:.4g}{letter}"
    return f"{number:.4g}" if number == 0 or abs(math.log10(abs(number))) < 5 else f"{number:.2g}"


def _legend_rows(plot: "Axes") -> int:
    legend = plot.get_legend()
    return -(-len(legend.get_texts()) // legend._ncols) if legend else 0


def _arrange(figure: "Figure", above: float = 0) -> None:
    """Leave room for labels and legend, in 72 to the inch; matplotlib's own layouts take as long as the drawing."""
    (plot,) = figure.axes
    width, height = 72 * figure.get_size_inches()
    names = [len(line) for label in plot.get_yticklabels() for line in label.get_text().split("\n")]
    left = 14 + 6.2 * max(names, default=6) + (18 if plot.get_ylabel() else 0)
    top = above + 8 + _LEGEND_ROW * _legend_rows(plot)
    figure.subplots_adjust(left / width, 42 / height, 1 - 10 / width, 1 - top / height)


def short_duration(seconds: float) -> str:
    """Such as 0.4s, 48s or 3m12s."""
    return f"{seconds:.1f}s" if seconds < 10 else duration(seconds)


def to_png(figure: "Figure", title: str) -> bytes:
    """The figure as a PNG on white."""
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context(_RC):
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + 24 / 72)
        _arrange(figure, above=24)
        figure.text(10 / 72 / width, 1 - 18 / 72 / (height + 24 / 72), title, ha="left", fontsize=11.5)
        figure.savefig(file, format="png", dpi=144, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def to_svg(figure: "Figure", name: str) -> str:
    """The figure as an ``<svg>`` for a page, in the page's colours; its ids are of this ``name`` alone."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({**_RC, "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)  # the style is the page's
    return re.sub(r"\s*\n\s*", "\n", re.sub("<[^>]*>", lambda tag: _for_a_page(tag[0]), svg))


def _for_a_page(tag: str) -> str:
    """An SVG tag of matplotlib with the page's font and colours, two decimals, and only the ids that are used."""
    if tag.startswith("<svg"):
        box = re.search('viewBox="[^"]*"', tag)[0]
        return f'<svg {box} aria-hidden="true" focusable="false">'
    tag = re.sub(r' id="(?!m[0-9a-f]{10}|p[0-9a-f]{10})[^"]*"', "", tag)
    tag = re.sub(r"(\.\d\d)\d+", r"\1", tag)
    tag = re.sub(r"font-family: [^;]*; ?", "", tag).replace("xlink:href", "href").replace(INK, "currentColor")
    tag = tag.replace(PAPER, "var(--card)")
    for i, color in enumerate(PALETTE):
        tag = tag.replace(color, f"var(--c{i})")
    return tag
