"""Code of the user's own: "file.py:name" or "package.module:name"."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ctf.errors import InputError
from ctf.files import existing


def load_object(name: str) -> Any:
    """The function or class that "file.py:name" or "package.module:name" names.

    Raises:
        InputError: there is no such file, module or name, or importing it fails.
    """
    source, _, attribute = name.rpartition(":")
    if not source:
        raise InputError(f"{name!r} is no code of yours: give file.py:name or package.module:name")
    if not callable(found := getattr(import_source(source), attribute, None)):
        raise InputError(f"{source} has no function or class {attribute!r}: name one that is there")
    return found


@lru_cache
def import_plugins() -> None:
    """The files that $CTF_PLUGINS names: they register kinds and samplers that a model's file knows by a word."""
    for file in filter(None, os.environ.get("CTF_PLUGINS", "").split(os.pathsep)):
        import_source(file)


def source_fingerprint(name: str) -> str:
    """The shortened SHA-256 of the file in which "file.py:name" is defined.

    Raises:
        InputError: as `load_object`; there is no source file.
    """
    source = name.rpartition(":")[0]
    if not (file := getattr(import_source(source), "__file__", None)):
        raise InputError(f"{source} has no source file to take the fingerprint of: write the function in a file")
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def import_source(source: str) -> ModuleType:
    """The module in a file that ends in .py, or the one of that name; a file is run once, until it changes."""
    path = existing(source, "file").resolve() if source.endswith(".py") else None
    return _import(source, path, 0 if path is None else path.stat().st_mtime_ns)


@lru_cache
def _import(source: str, path: Path | None, changed: int) -> ModuleType:
    try:
        if path is None:
            return importlib.import_module(source)
        spec = importlib.util.spec_from_file_location(f"ctf_own_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module  # dataclasses look their module up here
        if (beside := str(path.parent.resolve())) not in sys.path:  # it may import other files of its folder
            sys.path.append(beside)
        spec.loader.exec_module(module)
        return module
    except InputError:
        raise
    except Exception as error:  # the user's code fails in any way
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise InputError(f"{source} cannot be imported ({reason}): fix it or name another") from None
