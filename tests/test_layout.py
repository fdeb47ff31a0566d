"""The layout of DESIGN.md: rooms import from earlier rooms only, and light modules stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ctf

SOURCE = Path(ctf.__file__).parent
ROOMS = [
    {"errors", "files", "progress", "device", "command"},
    {"images"},
    {"tokenizer"},
    {"codebook"},
    {"tokens"},
    {"models"},
    {"interop"},
    {"sampling"},
    {"pipeline"},
    {"training"},
    {"artefacts"},
    {"evaluation"},
    {"experiments"},
    {"app"},
]
RANK = {name: rank for rank, names in enumerate(ROOMS) for name in names}
HEAVY = ("torch", "numpy", "sklearn", "datasets")


def imports(path):
    """Full names of what a file imports from `ctf`, wherever it does: in functions and for type checking too."""
    package = ["ctf", *path.relative_to(SOURCE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" if module == "ctf" else module for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith("ctf."))


def test_no_import_against_the_stream():
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if path.name == "__init__.py" or room in ("cli", "__main__"):
            continue
        if room not in RANK:
            wrong.append(f"{path.relative_to(SOURCE)} is in no room of the layout")
            continue
        for name in imports(path):
            if RANK.get(name.split(".")[1], len(ROOMS)) > RANK[room]:
                wrong.append(f"{path.relative_to(SOURCE)} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("module", ["ctf", "ctf.cli", "ctf.training.config"])
def test_help_needs_nothing_heavy(module):
    code = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
