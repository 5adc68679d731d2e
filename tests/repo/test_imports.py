"""Imports run one way: configs <- scratchgpt <- data_prep <- jaxgpt, torchgpt; neither framework needs the other."""

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "configs": {"configs"},
    "scratchgpt": {"configs", "scratchgpt"},
    "data_prep": {"configs", "scratchgpt", "data_prep"},
    "jaxgpt": {"configs", "scratchgpt", "data_prep", "jaxgpt"},
    "torchgpt": {"configs", "scratchgpt", "data_prep", "torchgpt"},
}
BLOCKED = {
    "configs": ["jax", "flax", "torch", "transformers"],
    "scratchgpt": ["jax", "flax", "torch", "transformers"],
    "data_prep": ["jax", "flax", "torch", "transformers"],
    "jaxgpt": ["torch", "transformers"],
    "torchgpt": ["jax", "flax", "optax", "orbax", "grain", "transformers"],
}


@pytest.mark.parametrize("package", ALLOWED)
def test_modules_import_only_what_lies_below_them(package):
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in {n.split(".")[0] for n in names} & {*ALLOWED, "parity_tests"}:
                assert name in ALLOWED[package], f"{path} imports {name}"


@pytest.mark.parametrize("package", BLOCKED)
def test_every_module_imports_without_the_other_framework(package):
    modules = [m.name for m in pkgutil.walk_packages([str(ROOT / package)], f"{package}.")]
    code = f"""
import importlib, sys
for name in {BLOCKED[package]!r}:
    sys.modules[name] = None  # importing it now raises ImportError
for name in {modules!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
