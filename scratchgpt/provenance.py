"""Where a result comes from: versions, the commit of the code, and a record of every start of a run."""

import datetime
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from scratchgpt.files import disk_errors


def versions(*packages: str) -> list[str]:
    """Such as ``["Python 3.11.7", "scratchgpt 0.1.0", "jax 0.10.2"]``; packages that are not installed are left out."""
    found = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return found


def commit() -> str | None:
    """The commit of the checkout that this code runs from, ``+`` appended if files have changed since; else None."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:  # installed inside somebody else's repository
            return None
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def now() -> str:
    """The time, ISO 8601 with its zone."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append ``value`` to a file of JSON objects, a line each. A last line that a crash cut short is dropped."""
    line = json.dumps(value, ensure_ascii=False).encode() + b"\n"
    with disk_errors(path), open(path, "ab+") as file:
        file.seek(0)
        written = file.read()
        if last := written[written.rfind(b"\n") + 1 :]:  # never where lines are whole: another process may be appending
            try:
                json.loads(last)
                line = b"\n" + line  # only its end is missing
            except ValueError:
                file.truncate(len(written) - len(last))
        file.write(line)
