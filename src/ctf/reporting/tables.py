"""Tables, as Markdown and as aligned text: the first columns hold words, the others numbers, at the right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table_head(titles: Sequence[str], words: int = 1) -> list[str]:
    """The first two lines of a Markdown table whose first `words` columns hold words."""
    return [table_row(titles), "|" + "---|" * words + "---:|" * (len(titles) - words)]


def table_row(cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def markdown_table(rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """All of a table; the first row holds the titles."""
    titles, *body = rows
    return "\n".join([*table_head(titles, words), *map(table_row, body)])


def text_table(rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table for a terminal, in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place < words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def bullets(lines: Iterable[str]) -> str:
    """A list, in Markdown and for a terminal."""
    return "\n".join(f"- {line}" for line in lines)
