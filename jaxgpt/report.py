"""Write what runs did as one page, several beside one another.

    python -m jaxgpt.report WORKDIR [WORKDIR ...] [--out=DIR]

Leaves report.html, which needs nothing beside itself, and its charts as PNG files in --out, or in the first
WORKDIR/report. For workdirs of jaxgpt.train and torchgpt.train. docs/report.md says what it shows.
"""

from pathlib import Path

from absl import flags

from scratchgpt import cli as command
from scratchgpt.errors import UserError
from scratchgpt.workdir import REPORT

if __name__ == "__main__":
    _OUT = flags.DEFINE_string("out", "", "directory to write into; empty: report/ in the first workdir")

    def main(arguments: list[str]) -> None:
        """Write the report of the workdirs that ``arguments`` name."""
        if not arguments:
            raise UserError("name at least one workdir: python -m jaxgpt.report WORKDIR [WORKDIR ...]")
        from scratchgpt.reporting.report import write_report  # numpy is imported only here: --help answers at once

        workdirs = [Path(argument) for argument in arguments]
        print(f"wrote {write_report(workdirs, Path(_OUT.value) if _OUT.value else workdirs[0] / REPORT)}")

    command.run(main, __doc__, takes_arguments=True)
