import json

import numpy as np
import pytest
from PIL import Image

from ctf.errors import InputError
from ctf.evaluation import sample_to

SETTINGS = {"cfg_scale": 1.5, "fine_top_k": 2}


@pytest.fixture
def pipeline(make_pipeline):
    return make_pipeline("cluster")


def expected(pipeline, labels, seed):
    return np.stack([np.asarray(image) for image in pipeline(labels, seed, **SETTINGS)])


def test_npz(pipeline, tmp_path):
    line = sample_to(pipeline, tmp_path / "samples.npz", ["owl", 0, "1"], None, 5, 2, SETTINGS)
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as file:
        assert file.files == ["arr_0", "labels"]  # the first array is what ADM's evaluator reads
        assert file["arr_0"].dtype == np.uint8
        assert np.array_equal(file["arr_0"], expected(pipeline, [3, 0, 1], 5))
        assert file["labels"].tolist() == [3, 0, 1]
    assert "[3, 8, 12, 3]" in line


def test_folder(pipeline, tmp_path):
    out = tmp_path / "samples"
    sample_to(pipeline, out, ["owl", 0], None, 5, 64, SETTINGS)
    names = ["000000-class-0003.png", "000001-class-0000.png"]
    assert sorted(path.name for path in out.iterdir()) == [*names, "samples.json", "sheet.png"]
    images = np.stack([np.asarray(Image.open(out / name)) for name in names])
    assert np.array_equal(images, expected(pipeline, [3, 0], 5))
    listed = json.loads((out / "samples.json").read_text(encoding="utf-8"))
    assert listed == {
        "settings": SETTINGS,
        "images": [
            {"file": names[0], "label": 3, "class": "owl", "seed": 5},
            {"file": names[1], "label": 0, "class": "cat", "seed": 6},
        ],
    }


def test_contact_sheet(pipeline, tmp_path):
    line = sample_to(pipeline, tmp_path / "sheet.png", None, 10, 0, 64, SETTINGS)
    assert "10 images" in line
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    width, height = Image.open(tmp_path / "sheet.png").size
    assert width >= 8 * 2 * 12  # eight columns at twice the size
    assert height >= 2 * 2 * 8


@pytest.mark.parametrize(
    ("labels", "num", "chosen"),
    [
        ([2, 1], 5, [2, 1, 2, 1, 2]),
        ([2, 1, 0], 2, [2, 1]),
        (None, None, [0, 1, 2, 3]),
        (None, 6, [0, 1, 2, 3, 0, 1]),
    ],
)
def test_labels_repeat_or_are_cut(pipeline, tmp_path, labels, num, chosen):
    sample_to(pipeline, tmp_path / "samples.npz", labels, num, 0, 3, SETTINGS)
    with np.load(tmp_path / "samples.npz") as file:
        assert file["labels"].tolist() == chosen
        assert np.array_equal(file["arr_0"], expected(pipeline, chosen, 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num": 0}, "num 0"),
        ({"labels": ["fox"]}, "'fox' does not exist"),
        ({"labels": [4]}, "classes 0 … 3"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"settings": {"top_p": 0.0}}, "top_p"),
    ],
)
def test_refusals_write_nothing(pipeline, tmp_path, changes, message):
    arguments = {"labels": None, "num": None, "seed": 0, "batch_size": 4, "settings": SETTINGS} | changes
    with pytest.raises(InputError, match=message):
        sample_to(pipeline, tmp_path / "samples", **arguments)
    assert not list(tmp_path.iterdir())
