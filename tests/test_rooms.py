"""The layers of the package: imports go down only, and no code branches on a stage's name."""

import ast
from pathlib import Path

import pytest

import ctf

SOURCE = Path(ctf.__file__).parent
#: From the bottom up: each imports from lower layers only, never from its own.
LAYERS = [
    {"errors", "progress", "fingerprint", "elementwise"},
    {"files", "cache", "layout", "device", "torchrun", "classes"},
    {"weights", "plugins"},
    {"images"},
    {"tokenizer"},
    {"codebook"},
    {"tokens"},
    {"models"},
    {"sampling"},
    {"stages"},
    {"interop"},
    {"completion", "preview"},
    {"pipeline"},
    {"model_card", "hub"},
    {"run_folder"},
    {"model_folder"},
    {"training"},
    {"samples"},
    {"reporting"},
    {"evaluation"},
    {"bench"},
    {"fit"},
    {"experiments"},
    {"app"},
    {"commands"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports(path):
    """Full names of what a file imports from `ctf`, also within functions and for type checking."""
    package = ["ctf", *path.relative_to(SOURCE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]  # a file, or a name in one
        else:
            continue
        yield from (name for name in names if name.startswith("ctf."))


def test_imports_go_down_only():
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        package = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if path == SOURCE / "__init__.py":
            continue
        if package not in RANK:
            wrong.append(f"{path.relative_to(SOURCE)} is in no layer")
            continue
        for name in imports(path):
            imported = name.split(".")[1]
            if RANK.get(imported, len(LAYERS)) >= RANK[package] and imported != package:
                wrong.append(f"{path.relative_to(SOURCE)} imports {name}")
    assert wrong == []


def test_no_two_files_import_each_other():
    edges = {}
    for path in SOURCE.rglob("*.py"):
        if path.name != "__init__.py":
            module = ".".join(["ctf", *path.relative_to(SOURCE).with_suffix("").parts])
            edges[module] = {name for name in imports(path) if name != module}
    circles = [(a, b) for a, names in edges.items() for b in names if a < b and a in edges.get(b, ())]
    assert circles == []


#: Where the paper's systems are set up or reported: presets, not branches.
PRESETS = ("training/config.py", "fit/", "experiments/", "bench/", "interop/llamagen.py", "interop/var.py")
PRESETS += ("commands/main.py", "commands/plan.py")


@pytest.mark.parametrize("name", ["coarse", "fine", "baseline"])
def test_no_branch_on_the_name_of_a_stage(name):
    found = [
        f"{path.relative_to(SOURCE)}: {line.strip()}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if f'"{name}"' in line and not str(path.relative_to(SOURCE)).startswith(PRESETS)
    ]
    assert found == []
