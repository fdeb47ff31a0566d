"""Labels of columns, in tables and shards on disk and at a URL."""

import json
import unicodedata

import datasets
import pytest
from image_files import SIZE, assert_holds, parquet, tar, write

from ctf.errors import InputError
from ctf.images import open_images
from ctf.images.records import number_labels

CIFAR = {"a.parquet": parquet(image="img", fine_label=[0, 1, 2, 3], coarse_label=[0, 0, 1, 1])}
JSON = json.dumps({"class": "cat", "target": 1, "caption": "x"}).encode()
SHARD = {"x.tar": tar([{"png": i, "json": JSON} for i in range(2)])}


@pytest.mark.parametrize(
    ("files", "place", "class_names", "labels"),
    [
        (CIFAR, "/a.parquet#fine_label", ["0", "1", "2", "3"], [0, 1, 2, 3]),
        (CIFAR, "/a.parquet#coarse_label", ["0", "1"], [0, 0, 1, 1]),
        (CIFAR, "/a.parquet#", ["image"], [0, 0, 0, 0]),
        (SHARD, "/x.tar#class", ["cat"], [0, 0]),
        (SHARD, "/x.tar#target", ["0", "1"], [1, 1]),
    ],
)
def test_a_chosen_column(opened, files, place, class_names, labels):
    images, said = opened(files, place=place)
    assert images.class_names == class_names
    assert images.labels.tolist() == labels
    assert said == []
    assert_holds(images, range(len(labels)))


@pytest.mark.parametrize(
    ("files", "place", "message"),
    [
        (CIFAR, "", "may hold labels, fine_label, coarse_label: choose one as in '.*#fine_label', or none"),
        (CIFAR, "#label", "no column 'label': it has img, fine_label, coarse_label"),
        (SHARD, "", "several that may hold labels, class, target"),
    ],
)
def test_several_columns_of_labels(opened, files, place, message):
    with pytest.raises(InputError, match=message):
        opened(files, place=place)


@pytest.mark.parametrize(
    ("column", "values", "names"),
    [
        ("category", ["ant", "cat", "bee"], ["ant", "bee", "cat"]),
        ("class_id", [2, 0, 1], ["0", "1", "2"]),
        ("Target", [True, False, True], ["0", "1"]),
    ],
)
def test_the_only_column_that_may_hold_labels(opened, column, values, names):
    images, said = opened({"a.parquet": parquet(**{column: values}, caption=["x"] * 3)})
    assert images.class_names == names
    assert said == [f"labels are those of the column {column!r}"]


def test_a_class_label_is_one_under_any_name(opened):
    features = {"breed": datasets.ClassLabel(names=["pug", unicodedata.normalize("NFD", "café")])}
    images, _ = opened({"a.parquet": parquet(breed=[1, 0], features=features)})
    assert images.class_names == ["pug", "café"]
    assert images.labels.tolist() == [1, 0]


@pytest.mark.parametrize(("column", "values"), [("breed", ["pug", "pug"]), ("class_score", [0.3, 0.9])])
def test_other_columns_are_one_class_but_not_in_silence(opened, column, values):
    images, said = opened({"a.parquet": parquet(**{column: values})})
    assert images.class_names == ["image"]
    assert said == [f"none of its columns is taken for labels; choose one as in '{images.source}#{column}'"]


@pytest.mark.parametrize(
    ("data", "labels", "passed"),
    [
        (tar([{"png": 0}, {"png": 1}])[:2048] + tar([{"cls": b"1"}, {"cls": b"0"}]), [0, 0], "2 cls"),
        (tar([{"v2.png": 0, "cls": b"1"}, {"png": 1, "cls": b"0"}]), [0], "1 v2.png, 1 cls"),
        (tar([{"png": 0, "txt": b"a cat"}]), [0], "1 txt"),
    ],
    ids=["labels apart", "dots in names", "captions"],
)
def test_what_is_passed_over_in_shards_is_said(opened, data, labels, passed):
    images, said = opened({"x.tar": data})
    assert images.labels.tolist() == labels
    assert said == [f"passed over what is neither image nor label, or has no image right beside it: {passed}"]


def test_shards_of_class_folders(opened):
    _, said = opened({"x.tar": tar([{"png": 0}], "cat/")[:1024] + tar([{"png": 1}], "dog/")})
    assert "if the folders in it are the classes (cat, dog), unpack it" in said[0]


def test_a_folder_with_a_sign_in_its_name(tmp_path):
    write(tmp_path, {"shoot#2/0.png": 0})
    assert_holds(open_images(f"{tmp_path}/shoot#2", size=SIZE), [0])


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
