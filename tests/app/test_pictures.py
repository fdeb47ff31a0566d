"""Pictures from visitors are decoded with limits, pictures to them are exact."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from hostile import HOSTILE, encoded, image
from PIL import Image

from ctf.app.pictures import data_url, label_colours, read_upload, tile_sheet
from ctf.errors import InputError
from ctf.images.sheet import png_bytes


@pytest.mark.parametrize(("url", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_uploads(url, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_upload(url)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "JPEG"])
def test_pictures_are_read(kind):
    url = data_url(encoded(image(40, 30), kind), f"image/{kind.lower()}")
    assert read_upload(url).size == (40, 30)
    assert read_upload(url.replace(f"image/{kind.lower()}", "")).mode == "RGB"


def test_png_is_exact_and_holds_notes():
    data = png_bytes(image(), ctf=json.dumps({"seed": 3, "class": "é"}))
    with Image.open(io.BytesIO(data)) as back:
        assert np.array_equal(np.asarray(back), np.asarray(image()))
        assert json.loads(back.text["ctf"]) == {"seed": 3, "class": "é"}
    assert read_upload(data_url(data)).tobytes() == image().tobytes()


def test_tiles_stand_in_rows():
    tiles = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2).repeat(3, 3)
    sheet = tile_sheet(tiles, columns=2, gap=1)
    assert sheet[..., 0].tolist() == [
        [0, 0, 255, 1, 1, 255],
        [0, 0, 255, 1, 1, 255],
        [255] * 6,
        [2, 2, 255, 255, 255, 255],
        [2, 2, 255, 255, 255, 255],
        [255] * 6,
    ]


def test_equal_labels_have_equal_colours():
    colours = np.asarray(label_colours(torch.tensor([[3, 4], [3, 3]]))).reshape(4, 3).tolist()
    assert colours[0] == colours[2] == colours[3] != colours[1]


def test_data_urls_are_what_they_hold():
    assert base64.b64decode(data_url(b"\0\xff").removeprefix("data:image/png;base64,")) == b"\0\xff"
