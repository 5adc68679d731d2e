"""From workdirs to a report on disk."""

from collections.abc import Sequence
from pathlib import Path

from scratchgpt.errors import UserError
from scratchgpt.files import disk_errors, write_text
from scratchgpt.reporting.charts import line_chart, loss_chart, time_chart
from scratchgpt.reporting.page import page
from scratchgpt.reporting.runs import read_runs
from scratchgpt.reporting.series import AXES

PAGE = "report.html"


def write_report(workdirs: Sequence[Path], out: Path) -> Path:
    """Write the report of one run, or of several beside one another, into the directory ``out``.

    Returns the path of its page, report.html; the charts are PNG files beside it. A file is whole or not there.

    Raises UserError if a workdir is not one, a file in it is damaged, or ``out`` cannot be written.
    """
    runs = read_runs(workdirs)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is not a directory: name one for the report")
    steps = [run.metrics.curves for run in runs]
    has_tokens = any("tokens" in curves for curves in steps)
    has_time = has_tokens and any("tokens_per_second" in curves for curves in steps)
    axes = [axis for axis, is_known in zip(AXES, (True, has_tokens, has_time), strict=True) if is_known]
    charts = [
        loss_chart(runs, axes),
        line_chart("learning_rate", "Learning rate", "learning rate", ["lr"], runs, axes, is_noisy=False),
        line_chart("gradient_norm", "Gradient norm", "norm", ["grad_norm"], runs, axes, is_noisy=True),
        line_chart("throughput", "Throughput", "tokens a second", ["tokens_per_second"], runs, axes, is_noisy=True),
        time_chart(runs),
    ]
    drawn = [chart for chart in charts if chart]
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    for chart in drawn:
        chart.write(out)
    html = page(runs, drawn, axes)  # half a UTF-16 pair, which JSON may hold, is no character
    write_text(out / PAGE, html.encode("utf-8", "replace").decode("utf-8"))
    return out / PAGE
