"""Labels of columns, in tables and shards on disk and at a URL."""

import io
import json
import tarfile
import unicodedata
import warnings

import datasets
import numpy as np
import pytest
from image_files import SIZE, assert_holds, png, write_parquet, write_tar

from ctf.errors import InputError
from ctf.images import open_images
from ctf.images.records import number_labels


def with_columns(path, columns, image="image", features=None):
    """A Parquet file of images with these columns (name → values), and what `datasets` would write of `features`."""
    count = len(next(iter(columns.values())))
    rows = datasets.Dataset.from_dict(
        {image: [{"bytes": png(i), "path": None} for i in range(count)], **columns},
        features=datasets.Features({image: datasets.Image(), **features}) if features else None,
    )
    rows.to_parquet(path)
    return path


def opened(source):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = open_images(source, size=SIZE)
    return images, [str(warning.message) for warning in caught]


CIFAR = {"fine_label": [0, 1, 2, 3], "coarse_label": [0, 0, 1, 1]}


@pytest.mark.parametrize("url", ["", "file://"])
def test_several_columns_of_labels(tmp_path, url):
    source = f"{url}{with_columns(tmp_path / 'a.parquet', CIFAR, 'img')}"
    message = "several that may hold labels, fine_label, coarse_label: choose one as in '.*#fine_label', or none"
    with pytest.raises(InputError, match=message):
        open_images(source)
    for column, labels in CIFAR.items():
        images, said = opened(f"{source}#{column}")
        assert images.labels.tolist() == labels
        assert said == []
    assert_holds(images, [0, 1, 2, 3])
    assert opened(f"{source}#")[0].class_names == ["image"]
    with pytest.raises(InputError, match="no column 'label': it has img, fine_label, coarse_label"):
        open_images(f"{source}#label")


@pytest.mark.parametrize("url", ["", "file://"])
@pytest.mark.parametrize(
    ("column", "values", "names"),
    [
        ("category", ["ant", "cat", "bee"], ["ant", "bee", "cat"]),
        ("class_id", [2, 0, 1], ["0", "1", "2"]),
        ("Target", [True, False, True], ["0", "1"]),
    ],
)
def test_the_only_column_that_may_hold_labels(tmp_path, url, column, values, names):
    images, said = opened(f"{url}{with_columns(tmp_path / 'a.parquet', {column: values, 'caption': ['x'] * 3})}")
    assert images.class_names == names
    assert said == [f"{images.source}: labels are those of the column {column!r}"]


@pytest.mark.parametrize("url", ["", "file://"])
def test_a_class_label_is_one_under_any_name(tmp_path, url):
    features = {"breed": datasets.ClassLabel(names=["pug", unicodedata.normalize("NFD", "café")])}
    images, _ = opened(f"{url}{with_columns(tmp_path / 'a.parquet', {'breed': [1, 0]}, features=features)}")
    assert images.class_names == ["pug", "café"]
    assert images.labels.tolist() == [1, 0]


@pytest.mark.parametrize("url", ["", "file://"])
@pytest.mark.parametrize(("column", "values"), [("breed", ["pug", "pug"]), ("class_score", [0.3, 0.9])])
def test_other_columns_are_one_class_but_not_in_silence(tmp_path, url, column, values):
    images, said = opened(f"{url}{with_columns(tmp_path / 'a.parquet', {column: values})}")
    assert images.class_names == ["image"]
    assert f"all images are one class; choose a column of labels as in '{images.source}#{column}'" in said[0]


@pytest.mark.parametrize("url", ["", "file://"])
def test_labels_in_the_json_of_shards(tmp_path, url):
    example = {"class": "cat", "target": 1, "caption": "x"}
    source = f"{url}{tmp_path / 'x.tar'}"
    write_tar(tmp_path / "x.tar", [{"png": png(i), "json": json.dumps(example).encode()} for i in range(2)])
    with pytest.raises(InputError, match="several that may hold labels, class, target"):
        open_images(source)
    assert opened(f"{source}#class")[0].class_names == ["cat"]
    assert opened(f"{source}#target")[0].labels.tolist() == [1, 1]


@pytest.mark.parametrize("url", ["", "file://"])
def test_shards_of_class_folders(tmp_path, url):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for i, name in enumerate(["cat", "dog"]):
            member = tarfile.TarInfo(f"{name}/{i}.png")
            member.size = len(png(i))
            archive.addfile(member, io.BytesIO(png(i)))
    _, said = opened(f"{url}{tmp_path / 'x.tar'}")
    assert "if the folders in it are the classes (cat, dog), unpack it" in said[0]


@pytest.mark.parametrize("url", ["", "file://"])
def test_shards_of_other_formats_and_with_masks(tmp_path, url):
    write_tar(tmp_path / "x.tar", [{"gif": png(i), "cls": b"0"} for i in range(2)])
    assert_holds(open_images(f"{url}{tmp_path / 'x.tar'}", size=SIZE), [0, 1])
    write_tar(tmp_path / "y.tar", [{"jpg": png(i), "png": png(9), "cls": b"0"} for i in range(2)])
    assert_holds(open_images(f"{url}{tmp_path / 'y.tar'}", size=SIZE), [0, 1])


def test_a_folder_with_a_sign_in_its_name(tmp_path):
    (tmp_path / "shoot#2").mkdir()
    (tmp_path / "shoot#2" / "0.png").write_bytes(png(0))
    assert_holds(open_images(f"{tmp_path}/shoot#2", size=SIZE), [0])


@pytest.mark.parametrize("url", ["", "file://"])
def test_whole_floats_are_labels(tmp_path, url):
    images = open_images(f"{url}{write_parquet(tmp_path / 'a.parquet', [0.0, 2.0, 0.0])}", size=SIZE)
    assert images.labels.dtype == np.int64
    assert images.labels.tolist() == [0, 2, 0]
    assert images.class_names == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 0.5], "row 1 has 0.5 in its label column 'y': give every row a whole number, or every row a name"),
        ([0.0, float("nan")], "row 1 has nan"),
        ([0.0, float("inf")], "row 1 has inf"),
        (["cat", None], "row 1 has None"),
        (["cat", ""], "row 1 has ''"),
        (["cat", 1], "row 1 has 1 "),
        ([1, "cat"], "row 0 has 1 "),
        ([0, 1e300], "number classes from 0, at most"),
        ([0, -1], "row 1 has the label -1, outside 0 to 0"),
    ],
)
def test_values_that_are_no_labels(values, message):
    with pytest.raises(InputError, match=message):
        number_labels(values, None, "y", "table")
