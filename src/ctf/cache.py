"""A cache on disk for what can be made again, such as features of a reference."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ctf.errors import InputError

Result = TypeVar("Result")


def cache_folder() -> Path:
    """$CTF_CACHE, or ~/.cache/ctf."""
    return Path(os.environ.get("CTF_CACHE") or Path.home() / ".cache" / "ctf")


def from_cache(
    path: Path, load: Callable[[Path], Result], make: Callable[[], Result], save: Callable[[Path, Result], None]
) -> tuple[Result, bool]:
    """Load a result from `path` in the cache, or make it and save it there.

    A cache is optional. An entry that `load` refuses is made again. A cache that cannot be written costs a warning, not
    the result.

    Returns:
        The result, and whether it came from the cache.
    """
    with suppress(InputError, OSError, KeyError, ValueError):
        return load(path), True
    result = make()
    try:
        save(path, result)
    except InputError:
        warnings.warn(
            f"the cache at {path.parent} cannot be written, so this work is done again next time: free some space "
            "there, or set $CTF_CACHE to another folder",
            stacklevel=3,
        )
    return result, False
