import numpy as np
import pytest
from PIL import ImageFont

from ctf.images import contact_sheet
from ctf.images.sheet import wrap


def random_image(seed, height=6, width=6):
    return np.random.default_rng(seed).integers(0, 200, (height, width, 3), dtype=np.uint8)


def test_images_are_where_they_belong_and_the_rest_is_white():
    rows = [[random_image(0), random_image(1)], [random_image(2)]]
    sheet = np.array(contact_sheet(rows, scale=2, gap=3))
    assert sheet.shape == (3 + 2 * 15, 3 + 2 * 15, 3)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            cell = sheet[3 + 15 * y : 15 + 15 * y, 3 + 15 * x : 15 + 15 * x]
            np.testing.assert_array_equal(cell, np.kron(image, np.ones((2, 2, 1), dtype=np.uint8)))
            cell[:] = 255
    assert (sheet == 255).all()


def test_smaller_images_are_centred_in_their_cell():
    small = random_image(0, 2, 4)
    sheet = np.asarray(contact_sheet([[random_image(1, 8, 8), small]], gap=0))
    np.testing.assert_array_equal(sheet[3:5, 10:14], small)


def test_labels_stand_outside_the_images():
    rows = [[random_image(y * 2 + x, 64, 64) for x in range(2)] for y in range(2)]
    sheet = np.asarray(contact_sheet(rows, ["a row", "another, much longer row " * 9], ["one", "column " * 40], gap=4))
    below, right = sheet.shape[0] - 2 * 68, sheet.shape[1] - 2 * 68
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            corner = (below + 68 * y, right + 68 * x)
            np.testing.assert_array_equal(sheet[corner[0] : corner[0] + 64, corner[1] : corner[1] + 64], image)
    assert (sheet[below:, : right - 4] < 128).any(), "row labels"
    assert (sheet[: below - 4, right:] < 128).any(), "column labels"
    assert (sheet[:, right + 64 : right + 68] == 255).all(), "nothing reaches from one column into the next"
    assert (sheet[below + 64 : below + 68] == 255).all(), "nor from one row into the next"
    assert (sheet[: below - 4, :right] == 255).all(), "the corner is empty"


@pytest.mark.parametrize("text", ["", "word", "two words", "Donaudampfschifffahrtsgesellschaft", "a b c d e f g h i"])
def test_wrapped_labels_fit(text):
    class Monospace:
        def getlength(self, text):
            return 10 * len(text)

    lines = wrap(text, Monospace(), 50, 2)
    assert len(lines) <= 2
    assert all(len(line) <= 5 for line in lines)
    assert " ".join(lines) == text or any(line.endswith("…") for line in lines)


def test_labels_are_broken_at_newlines():
    assert wrap("a b\nc", ImageFont.load_default(12), 100, 3) == ["a b", "c"]


def test_an_empty_sheet_is_a_picture_too():
    assert contact_sheet([]).size == (4, 4)
