"""What users bring in files of their own: "file.py:name" or "package.module:name"."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

from ctf.errors import InputError
from ctf.files import existing


def load_object(name: str) -> Any:
    """What "file.py:name" or "package.module:name" names.

    Raises:
        InputError: there is no such file, module or name, or importing it fails.
    """
    source, _, attribute = name.rpartition(":")
    module = import_source(source)
    if not callable(found := getattr(module, attribute, None)):
        raise InputError(f"{source} has no function or class {attribute!r}: name one that is there")
    return found


def import_source(source: str) -> ModuleType:
    """The module in a file that ends in .py, or the one of that name."""
    try:
        if not source.endswith(".py"):
            return importlib.import_module(source)
        path = existing(source, "file")
        spec = importlib.util.spec_from_file_location(f"ctf_own_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module  # dataclasses look their module up here
        spec.loader.exec_module(module)
        return module
    except InputError:
        raise
    except Exception as error:  # the user's code fails in any way
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise InputError(f"{source} cannot be imported ({reason}): fix it or name another") from None
