"""Layout: where the tokens of an image lie, on one grid or on several of growing size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from operator import index
from typing import Any, TypeAlias

from ctf.errors import InputError

Grid: TypeAlias = tuple[int, int]


class Layout(tuple[Grid, ...]):
    """The grids (rows, columns) of an image's scales, coarsest first.

    LlamaGen's layout is ((16, 16),), VAR's ((1, 1), (2, 2), …, (16, 16)). Tokens are in the order of the scales, and
    row by row within a scale. A layout is a tuple, so it can be compared, hashed and written to JSON.

    Args:
        grids: (rows, columns) of each scale; one pair of numbers for a single scale; or text, see `parse`.

    Raises:
        InputError: no grid, a side below 1, or a scale with fewer rows or columns than the one before.
    """

    def __new__(cls, grids: Iterable[Sequence[int]] | Sequence[int] | str) -> Layout:
        if isinstance(grids, str):
            return cls.parse(grids)
        read: Any = grids
        try:
            read = tuple(grids)
            if len(read) == 2 and all(isinstance(side, int) for side in read):
                read = (read,)
            layout = super().__new__(cls, [(index(rows), index(columns)) for rows, columns in read])
        except (TypeError, ValueError):
            raise InputError(f"layout {read!r}: every scale is a pair (rows, columns) of whole numbers") from None
        if not layout or min(side for grid in layout for side in grid) < 1:
            raise InputError(f"layout {layout}: at least one scale, and one row and column in each")
        if any(fine[0] < coarse[0] or fine[1] < coarse[1] for coarse, fine in pairwise(layout)):
            raise InputError(f"layout {layout}: scales go from coarse to fine")
        return layout

    @classmethod
    def square(cls, *sides: int) -> Layout:
        """One square scale for each side."""
        return cls((side, side) for side in sides)

    @classmethod
    def parse(cls, text: str) -> Layout:
        """The layout of a text such as "16x16" or "1x1,2x2,4x4", which `str` writes. Raises InputError: other text."""
        try:
            pairs = [grid.split("x") for grid in text.replace("×", "x").split(",")]
            grids = [(int(rows), int(columns)) for rows, columns in pairs]
        except ValueError:
            raise InputError(f"layout {text!r}: write rows x columns, such as 16x16, or 1x1,2x2,4x4") from None
        return cls(grids)

    def __str__(self) -> str:
        return ",".join(f"{rows}x{columns}" for rows, columns in self)

    @property
    def words(self) -> str:
        """The layout for people to read: "16 × 16", or "1 × 1, 2 × 2, 4 × 4"."""
        return ", ".join(f"{rows} × {columns}" for rows, columns in self)

    @property
    def num_tokens(self) -> int:
        """N, the number of tokens of an image."""
        return sum(self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of tokens of each scale."""
        return tuple(rows * columns for rows, columns in self)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The slice of each scale among the N tokens."""
        ends = [sum(self.sizes[: scale + 1]) for scale in range(len(self))]
        return tuple(slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True))

    @property
    def finest(self) -> Grid:
        """(rows, columns) of the last scale: the size of the tokenizer's feature map."""
        return self[-1]

    @property
    def coordinates(self) -> list[tuple[int, float, float]]:
        """(scale, row, column) of each position: the centre of its cell, in units of the finest grid's cells.

        Row i of p rows has its centre at (i + ½) · H / p − ½ of H rows. On the finest scale that is i.
        """
        height, width = self.finest
        return [
            (scale, (row + 0.5) * height / rows - 0.5, (column + 0.5) * width / columns - 0.5)
            for scale, (rows, columns) in enumerate(self)
            for row in range(rows)
            for column in range(columns)
        ]


def square_layout(num_tokens: int) -> Layout:
    """A layout of one square scale. Raises InputError: the number of tokens is not a square."""
    side = math.isqrt(num_tokens)
    if side * side != num_tokens:
        raise InputError(f"{num_tokens} tokens are not a square: give their layout, such as 16x8 for 128 tokens")
    return Layout.square(side)


def with_layout(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings from a file with `layout` as a Layout. Older files call it `grid`."""
    settings = dict(settings)
    if "grid" in settings:
        settings["layout"] = settings.pop("grid")
    if settings.get("layout") is not None:
        settings["layout"] = Layout(settings["layout"])
    return settings
