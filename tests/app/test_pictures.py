"""Pictures to visitors are exact, with notes on how they were made."""

import json

import numpy as np
import torch
from PIL import Image
from shown import opened

from ctf.app.pictures import item, label_colours


def test_a_picture_is_exact_and_holds_name_and_notes():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8))
    shown = item(image, "a cat", "cat-seed-3", ctf=json.dumps({"seed": 3, "class": "é"}))
    back = opened(shown["image"]["url"])
    assert np.array_equal(np.asarray(back), np.asarray(image))
    assert json.loads(back.text["ctf"]) == {"seed": 3, "class": "é"}
    assert (shown["caption"], shown["image"]["orig_name"]) == ("a cat", "cat-seed-3.png")


def test_equal_labels_have_equal_colours():
    colours = np.asarray(label_colours(torch.tensor([[3, 4], [3, 3]]))).reshape(4, 3).tolist()
    assert colours[0] == colours[2] == colours[3] != colours[1]
