"""The page that a verb writes: a title, its parts, and how it was made."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ctf.files import write_text
from ctf.reporting.tables import bullets

#: The name of a page in its folder.
PAGE = "report.md"


def picture(path: str, what: str) -> str:
    """A part: a picture, whose path is relative to the page, and what it shows."""
    return f"![{what}]({path})"


def write_page(folder: Path, title: str, parts: Iterable[str], made: Iterable[str]) -> None:
    """Write report.md, in Markdown.

    Args:
        folder: of the page and its pictures.
        title: of the page.
        parts: paragraphs, tables, pictures; empty ones are left out.
        made: lines on how it was made: the command, settings, data.
    """
    every = [f"# {title}", *parts, "## How it was made", bullets(made)]
    write_text(folder / PAGE, "\n\n".join(filter(None, every)) + "\n")
