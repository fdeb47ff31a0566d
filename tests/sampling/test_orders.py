import math
from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctf.errors import InputError
from ctf.layout import Layout
from ctf.sampling.orders import Schedule, group_sizes, order_groups

ORDERS = ["raster", "random", "halton", "locality"]
SCHEDULES = ["cosine", "arccos", "uniform"]
LAYOUTS = [Layout(grid) for grid in [(1, 1), (1, 7), (7, 1), (4, 4), (3, 10), (9, 5), (16, 16)]]
SEEDS = st.integers(0, 2**64 - 1)

# mit-han-lab/lpd, orders/group_sizes_lookup.json
LPD_20 = [1, 2, 4, 5, 7, 8, 10, 11, 12, 14, 15, 16, 17, 18, 18, 19, 19, 20, 20, 20]
LPD_48 = [*range(1, 24), 23, 24, 25, 26, 26, 27, 28, 28, 29, 29, 30, 30, 31, 31, 32, 32, 32, *[33] * 7, 34]


def known_share(schedule: Schedule, time: float) -> float:
    match schedule:
        case "cosine":
            return 1 - math.cos(math.pi * time / 2)
        case "arccos":
            return 1 - 2 / math.pi * math.acos(time)
        case "uniform":
            return time


@given(st.data(), st.integers(1, 300), st.sampled_from(SCHEDULES))
@settings(deadline=None)
def test_sizes(data, count, schedule):
    steps = data.draw(st.integers(1, count))
    sizes = group_sizes(count, steps, schedule)
    assert len(sizes) == steps
    assert sum(sizes) == count
    assert sizes[0] >= 1
    assert sizes == sorted(sizes)
    ideal = [count * (known_share(schedule, (t + 1) / steps) - known_share(schedule, t / steps)) for t in range(steps)]
    if min(ideal) >= 1:
        assert all(abs(size - exact) < 1 + 1e-9 for size, exact in zip(sizes, ideal, strict=True))
    rounded = [max(1, round(exact)) for exact in ideal]
    if sum(rounded) == count and all(abs(exact % 1 - 0.5) > 1e-9 for exact in ideal):
        assert sizes == rounded


def test_cosine_sizes_are_lpds():
    assert group_sizes(256, 20) == LPD_20
    assert group_sizes(1024, 48) == LPD_48


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("order", ORDERS)
def test_groups_partition_the_layout(order, layout):
    count = layout.num_tokens
    for steps in {1, (count + 1) // 2, count}:
        for sizes in (group_sizes(count, steps), group_sizes(count, steps)[::-1]):
            groups = order_groups(order, layout, tuple(sizes), seed=5)
            assert [len(group) for group in groups] == sizes
            positions = torch.cat(groups)
            assert positions.dtype == torch.int64
            assert sorted(positions.tolist()) == list(range(count))


def test_raster():
    assert [group.tolist() for group in order_groups("raster", Layout((2, 3)), (1, 2, 3))] == [[0], [1, 2], [3, 4, 5]]


@pytest.mark.parametrize("layout", [*LAYOUTS, Layout((5, 27)), Layout.square(24)])
def test_halton_is_the_first_hits_of_a_written_out_sequence(layout):
    def radical_inverse(index, base):
        digits = []
        while index:
            digits.append(index % base)
            index //= base
        return sum((Fraction(digit, base ** (place + 1)) for place, digit in enumerate(digits)), Fraction())

    height, width = layout.finest
    cells, index = [], 1
    while len(cells) < height * width:
        cell = int(radical_inverse(index, 2) * height) * width + int(radical_inverse(index, 3) * width)
        if cell not in cells:
            cells.append(cell)
        index += 1
    assert torch.cat(order_groups("halton", layout, (height * width,))).tolist() == cells


def chebyshev(a, b):
    return max(abs(a[0] - b[0]), abs(a[1] - b[1]))


@pytest.mark.parametrize(
    ("grid", "sizes", "repulsion"),
    [
        ((16, 16), LPD_20, 2),
        ((16, 16), [1] * 256, 2),
        ((16, 16), [40, 216], 2),
        ((24, 24), group_sizes(576, 30), 3),
        ((6, 11), [1, 2, 3, 5, 8, 12, 15, 20], 1),
        ((1, 9), [1, 3, 5], 1),
    ],
)
def test_locality_follows_lpds_rule(grid, sizes, repulsion):
    """Each position is a best choice, of all that are left, by the rule written out; how ties break stays open."""
    groups = order_groups("locality", Layout(grid), tuple(sizes), seed=11)
    cells = set(product(range(grid[0]), range(grid[1])))
    known = set()
    for positions in groups:
        near = {}
        for cell in cells - known:
            neighbours = [other for other in known if chebyshev(cell, other) <= 1]
            near[cell] = round(sum(1 / math.dist(cell, other) for other in neighbours), 9)
        group = []
        for cell in (divmod(position, grid[1]) for position in positions.tolist()):
            left = near.keys() - group
            apart = [c for c in left if near[c] >= 1 and all(chebyshev(c, other) > repulsion for other in group)]
            if apart:
                assert cell in apart
                assert near[cell] == max(near[c] for c in apart)
            elif group:
                spread = {c: min(math.dist(c, other) for other in group) for c in left}
                farthest = [c for c in left if spread[c] == max(spread.values())]
                unsupported = [c for c in farthest if near[c] < 1]  # come first among the equally far
                assert cell in farthest
                assert near[cell] == max(near[c] for c in unsupported or farthest)
            group.append(cell)
        known |= set(group)
    assert known == cells


@given(SEEDS, st.sampled_from(ORDERS))
@settings(deadline=None, max_examples=20)
def test_orders_depend_on_their_arguments_only(seed, order):
    groups = order_groups(order, Layout((6, 7)), (1, 4, 37), seed)
    torch.manual_seed(seed % 2**32)
    order_groups.cache_clear()
    again = order_groups(order, Layout((6, 7)), (1, 4, 37), seed)
    assert all(torch.equal(a, b) for a, b in zip(groups, again, strict=True))


def test_seeds_change_random_and_locality_only():
    sizes = tuple(group_sizes(64, 8))
    for order, different in (("raster", 1), ("halton", 1), ("random", 20), ("locality", 20)):
        assert (
            len({tuple(torch.cat(order_groups(order, Layout.square(8), sizes, s)).tolist()) for s in range(20)})
            == different
        )


def test_locality_starts_anywhere():
    firsts = {int(order_groups("locality", Layout((2, 3)), (1, 5), seed)[0]) for seed in range(100)}
    assert firsts == set(range(6))


@pytest.mark.parametrize(("count", "steps"), [(4, 0), (4, 5), (0, 0), (4, -1)])
def test_steps_out_of_range(count, steps):
    with pytest.raises(InputError, match=f"{steps} steps for {count} positions"):
        group_sizes(count, steps)


def test_unknown_names():
    with pytest.raises(InputError, match="no schedule 'linear': there are cosine, arccos, uniform"):
        group_sizes(4, 2, "linear")
    with pytest.raises(InputError, match="no order 'spiral': a layout of 2x2 has raster, random, halton, locality"):
        order_groups("spiral", Layout.square(2), (4,))


@pytest.mark.parametrize("sizes", [(), (3,), (5,), (0, 4), (5, -1)])
def test_sizes_that_do_not_fill_the_layout(sizes):
    with pytest.raises(InputError, match="at least 1 and sum to 4"):
        order_groups("halton", Layout.square(2), sizes)


def test_of_several_scales_there_are_raster_and_scales():
    layout = Layout.square(1, 2, 3)
    assert torch.cat(order_groups("raster", layout, (3, 11))).tolist() == list(range(14))
    assert [group.tolist() for group in order_groups("scales", layout, layout.sizes)] == [
        [0],
        [1, 2, 3, 4],
        list(range(5, 14)),
    ]
    for order in ("halton", "locality", "random"):
        with pytest.raises(InputError, match=f"no order '{order}': a layout of 1x1,2x2,3x3 has raster, scales"):
            order_groups(order, layout, layout.sizes)
    with pytest.raises(InputError, match="no order 'scales': a layout of 2x2 has raster, random, halton, locality"):
        order_groups("scales", Layout.square(2), (4,))


@pytest.mark.parametrize("order", ["random", "locality"])
def test_seed_out_of_range(order):
    with pytest.raises(InputError, match="seed -1"):
        order_groups(order, Layout.square(2), (4,), -1)
