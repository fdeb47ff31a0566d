"""What every benchmark prints: the command that makes it again, and a Markdown table row by row."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any


def command_line(verb: str, settings: Mapping[str, Any]) -> str:
    """The command that runs `verb` with these settings, all of them spelled out but for those that are None."""
    words = [f"ctf {verb}"]
    for name, value in settings.items():
        if value is not None:
            text = f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
            words.append(f"--{name} {shlex.quote(text)}")
    return " ".join(words)


def table_head(names: list[str]) -> list[str]:
    """The first two lines of a table; all columns but the first are numbers."""
    return [table_row(names), "|---" + "|---:" * (len(names) - 1) + "|"]


def table_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
