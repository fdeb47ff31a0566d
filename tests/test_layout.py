import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctf.errors import InputError
from ctf.layout import Layout, square_layout, with_layout


def test_positions_are_ordered_by_scale_and_row():
    layout = Layout([(1, 1), (2, 3), (4, 6)])
    assert layout.num_tokens == 31
    assert layout.sizes == (1, 6, 24)
    assert layout.finest == (4, 6)
    assert [list(range(31))[part] for part in layout.slices] == [[0], list(range(1, 7)), list(range(7, 31))]
    scales, rows, columns = zip(*layout.coordinates, strict=True)
    assert scales == (0,) + (1,) * 6 + (2,) * 24
    assert (rows[0], columns[0]) == (1.5, 2.5)  # the middle of the image
    assert rows[1:7] == (0.5, 0.5, 0.5, 2.5, 2.5, 2.5)
    assert columns[1:4] == (0.5, 2.5, 4.5)
    assert [(row, column) for row, column in zip(rows[7:], columns[7:], strict=True)] == [
        divmod(cell, 6) for cell in range(24)
    ]


@pytest.mark.parametrize("layout", [Layout((3, 5)), Layout.square(1, 2, 4), Layout([(1, 2), (1, 2)])])
def test_layouts_are_read_back_from_json_and_text(layout):
    assert Layout(json.loads(json.dumps(layout))) == layout == Layout.parse(str(layout)) == Layout(str(layout))
    assert with_layout({"layout": json.loads(json.dumps(layout)), "seed": 3}) == {"layout": layout, "seed": 3}


def test_a_grid_of_older_files_is_a_layout_of_one_scale():
    assert with_layout({"grid": [16, 8]}) == {"layout": Layout([(16, 8)])}
    assert with_layout({"seed": 3}) == {"seed": 3}


@pytest.mark.parametrize(
    "grids", [[], [(0, 4)], (4,), 4 * [3], [(4, 4), (2, 2)], [("a", "b")], [(1, 2, 3)], 7, None, ["2", "2"], (2.0, 3.5)]
)
def test_invalid_layouts_are_refused(grids):
    with pytest.raises(InputError, match="layout"):
        Layout(grids)


@given(st.integers(1, 5000))
def test_square_layout_takes_squares_only(count):
    side = math.isqrt(count)
    if side * side == count:
        assert square_layout(count) == Layout([(side, side)])
    else:
        with pytest.raises(InputError, match="not a square"):
            square_layout(count)


@pytest.mark.parametrize("text", ["", "16", "16x", "4x4,2x2", "axb", "1x2x3"])
def test_invalid_texts_are_refused(text):
    with pytest.raises(InputError, match="layout"):
        Layout.parse(text)
