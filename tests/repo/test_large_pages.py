"""A command with large buffers starts once more to have large pages, and nothing else does."""

import os
import runpy
import subprocess
import sys

import pytest

from scratchgpt.large_pages import POLICY

PROBE = """
import os
from scratchgpt import cli
def main():
    print(os.environ.get("GLIBC_TUNABLES"), os.environ["BEGAN"] == str(os.getpid()))
if __name__ == "__main__":
    cli.run(main, "", large_pages=True)
"""
# The shell's process becomes the probe's, whose number is the same before and after it starts again.
SHELL = 'BEGAN=$$ exec "$0" "$@"'


@pytest.mark.parametrize("given", [None, "glibc.malloc.hugetlb=0", "glibc.malloc.arena_max=1"])
def test_a_module_starts_again_unless_the_user_has_chosen(tmp_path, given):
    (tmp_path / "probe.py").write_text(PROBE)
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {"GLIBC_TUNABLES": given} if given else {}
    command = ["sh", "-c", SHELL, sys.executable, "-m", "probe"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    asked = POLICY.exists() and "[madvise]" in POLICY.read_text() and "hugetlb" not in (given or "")
    expected = f"{given}:glibc.malloc.hugetlb=1".removeprefix("None:") if asked else str(given)
    assert done.stdout == f"{expected} True\n"


def test_a_debugger_goes_on(tmp_path):
    (tmp_path / "probe.py").write_text(PROBE)
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = ["sh", "-c", SHELL, sys.executable, "-m", "pdb", "-c", "continue", "-c", "quit", "-m", "probe"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "None True"


def test_a_program_that_began_otherwise_goes_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "probe.py").write_text(PROBE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setenv("BEGAN", str(os.getpid()))
    monkeypatch.setattr(sys, "argv", ["probe"])
    with pytest.raises(SystemExit):  # of absl, at the end
        runpy.run_module("probe", run_name="__main__", alter_sys=True)
    assert capsys.readouterr().out == "None True\n"
