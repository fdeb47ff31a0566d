import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ctf.images import center_crop, random_crop, ten_crop, ten_shift, to_bytes, to_tensor


def adm_crop_by_the_book(image: Image.Image, size: int) -> np.ndarray:
    """Written out step by step: the number of halvings first, then one resize, then slicing."""
    width, height = image.size
    halvings = 0
    while min(width, height) // 1 >= 2 * size:
        width, height, halvings = width // 2, height // 2, halvings + 1
    for step in range(halvings):
        image = image.resize((image.size[0] // 2, image.size[1] // 2), resample=Image.BOX)
        assert step < 20
    shorter = min(width, height)
    image = image.resize((round(width * (size / shorter)), round(height * (size / shorter))), resample=Image.BICUBIC)
    array = np.array(image)
    y, x = math.floor((array.shape[0] - size) / 2), math.floor((array.shape[1] - size) / 2)
    return array[y : y + size, x : x + size]


@settings(max_examples=60)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_center_crop_is_adms(width, height, size, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    cropped = np.asarray(center_crop(Image.fromarray(pixels), size))
    np.testing.assert_array_equal(cropped, adm_crop_by_the_book(Image.fromarray(pixels), size))


def places(crop: np.ndarray, image: Image.Image, shorter: int) -> list[tuple[int, int]]:
    """Where `crop` lies in `image`, resized to `shorter`: by search."""
    scale = shorter / min(image.size)
    resized = image.resize((round(image.width * scale), round(image.height * scale)), resample=Image.BICUBIC)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(resized), crop.shape)[:, :, 0]
    return [tuple(place) for place in np.argwhere((windows == crop).all((2, 3, 4)))]


def test_random_crops_reach_every_size_and_place():
    """Of 12 × 10 pixels to 8 × 8: the shorter side becomes 8, 9 or 10 = 8 / 0.8, equally often."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8))
    found = Counter()
    for draws in np.random.default_rng(1).random((3000, 3)):
        crop = np.asarray(random_crop(image, 8, 0.8, draws))
        assert crop.shape == (8, 8, 3)
        ((shorter, place),) = [(s, place) for s in (8, 9, 10) for place in places(crop, image, s)]
        found[shorter, place] += 1
    longer = {8: 10, 9: 11, 10: 12}
    assert set(found) == {(s, (y, x)) for s in longer for y in range(longer[s] - 7) for x in range(s - 7)}
    for shorter in longer:
        assert 900 < sum(count for (s, _), count in found.items() if s == shorter) < 1100


@given(st.integers(1, 150), st.integers(1, 150), st.integers(1, 40))
def test_random_crop_keeps_to_the_image_at_the_ends_of_its_draws(width, height, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    for draw in (0.0, np.nextafter(1, 0)):
        assert random_crop(image, size, 0.8, (draw, draw, draw)).size == (size, size)
    whole = random_crop(image, size, 1.0, (0.5, 0.0, 0.0))  # nothing but the place is random
    if width == height:
        np.testing.assert_array_equal(np.asarray(whole), np.asarray(center_crop(image, size)))


@given(st.integers(1, 20), st.integers(0, 9))
def test_ten_crop_places(size, margin):
    side = size + margin
    image = np.stack(np.meshgrid(np.arange(side), np.arange(side), [0], indexing="ij"), -1)[:, :, 0].astype(np.uint8)
    crops = ten_crop(image, size)  # a pixel's value is its own (row, column)
    assert crops.shape == (10, size, size, 3)
    tops_and_lefts = [tuple(crop[0, 0, :2]) for crop in crops[:5]]
    assert tops_and_lefts[:4] == [(0, 0), (0, margin), (margin, 0), (margin, margin)]
    assert max(abs(place - margin / 2) for place in tops_and_lefts[4]) <= 0.5
    for crop in crops[:5]:
        assert tuple(crop[-1, -1, :2] - crop[0, 0, :2]) == (size - 1, size - 1)
    # torchvision's TenCrop, which LlamaGen uses, mirrors first: the sixth is the top left of the mirror image.
    assert [tuple(crop[0, 0, :2]) for crop in crops[5:7]] == [(0, side - 1), (0, side - 1 - margin)]
    np.testing.assert_array_equal(crops[5:], ten_crop(image[:, ::-1], size)[:5])


def test_ten_crop_rounds_the_middle_as_torchvision():
    image = np.arange(281, dtype=np.int32)[None, :, None].repeat(281, 0)
    assert ten_crop(image, 256)[4, 0, 0, 0] == 12  # int(round((281 - 256) / 2.0))


def test_ten_shift_moves_and_repeats_the_border():
    image = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    shifts = ten_shift(image)
    assert shifts.shape == (10, 5, 5, 3)
    np.testing.assert_array_equal(shifts[4], image)
    np.testing.assert_array_equal(shifts[0, 1:, 1:], image[:-1, :-1])  # down and right
    np.testing.assert_array_equal(shifts[0, 0, 1:], image[0, :-1])
    np.testing.assert_array_equal(shifts[3, :-1, :-1], image[1:, 1:])
    np.testing.assert_array_equal(shifts[5:], ten_shift(image[:, ::-1])[:5])


def test_bytes_survive_the_round_trip():
    every_byte = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    tensor = to_tensor(every_byte)
    assert tensor.dtype == torch.float32
    assert tensor.shape == (1, 3, 16, 16)
    assert (tensor.min(), tensor.max()) == (-1, 1)
    np.testing.assert_array_equal(to_bytes(tensor), every_byte)
    assert torch.equal(to_tensor(torch.from_numpy(every_byte)), tensor)


@pytest.mark.parametrize(("value", "byte"), [(-9.0, 0), (-1.0, 0), (0.0, 128), (0.5, 191), (1.0, 255), (9.0, 255)])
def test_to_bytes_truncates_and_clamps(value, byte):
    assert to_bytes(torch.full((1, 3, 1, 1), value)).tolist() == [[[[byte] * 3]]]
