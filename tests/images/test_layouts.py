"""Each layout from a path, a file's URL and memory: what it holds, its fingerprint, and what is refused."""

import json
import os
import tarfile

import datasets
import pytest
from image_files import SIZE, assert_holds, parquet, png, tar, write

from ctf.errors import InputError
from ctf.images import open_images

NAMES = ["ant", "bee", "cat"]
CLASS_FOLDERS = {"b/0.png": 0, "b/1.PNG": 1, "a b/2.png": 2, "a/deep/3.png": 3, "a/4.png": 4, ".hidden/5.png": 5}
SPLITS = {"train/b/0.png": 0, "train/a/1.png": 1, "test/b/2.png": 2, "test/a/3.png": 3}
PARQUET = {
    f"{split}-{n:05}.parquet": parquet([png(5 * n + i) for i in range(5)], label=[2, 0, 1, 2, 1], row_group_size=2)
    for n, split in enumerate(["train", "train", "test"])
}
TARS = {
    f"{split}-{n}.tar": tar([{"png": 4 * n + i, "cls": b"%d" % (i % 3), "txt": b"a caption"} for i in range(4)])
    for n, split in enumerate(["test", "train", "train"])
}
TWELVE = ["0", "1", "2"], [0, 1, 2, 0] * 3, range(12)

#: files, place in the folder, split → class names, labels, seeds of the images
LAYOUTS = {
    "class folders": (
        CLASS_FOLDERS | {"a/notes.txt": b"x"},
        "",
        None,
        ["a", "a b", "b"],
        [0, 0, 1, 2, 2],
        [4, 3, 2, 0, 1],
    ),
    "flat": ({f"{i}.PNG": i for i in range(3)}, "", None, ["image"], [0] * 3, range(3)),
    "splits": (SPLITS, "", "train", ["a", "b"], [0, 1], [1, 0]),
    "split as the folder": (SPLITS, "/test", None, ["a", "b"], [0, 1], [3, 2]),
    "parquet": (PARQUET, "", "train", ["0", "1", "2"], [2, 0, 1, 2, 1] * 2, range(10)),
    "parquet, another spelling": (PARQUET, "", "Testing", ["0", "1", "2"], [2, 0, 1, 2, 1], range(10, 15)),
    "parquet of splits whose names overlap": (
        {
            f"data/{split}-00000-of-00001.parquet": PARQUET[name]
            for split, name in zip(("train", "train_extra", "test"), PARQUET, strict=True)
        },
        *("", "train", ["0", "1", "2"], [2, 0, 1, 2, 1], range(5)),
    ),
    "parquet pattern": (PARQUET, "/train-*.parquet", None, ["0", "1", "2"], [2, 0, 1, 2, 1] * 2, range(10)),
    "parquet pattern of a split": (PARQUET, "/*.parquet", "test", ["0", "1", "2"], [2, 0, 1, 2, 1], range(10, 15)),
    "parquet, only one named after a split": (
        {"my.test.parquet": PARQUET["test-00002.parquet"], "b.parquet": PARQUET["train-00000.parquet"]},
        *("", None, ["0", "1", "2"], [2, 0, 1, 2, 1] * 2, [*range(5), *range(10, 15)]),
    ),
    "parquet file": (PARQUET, "/train-00001.parquet", None, ["0", "1", "2"], [2, 0, 1, 2, 1], range(5, 10)),
    "class names": (
        {"a.parquet": parquet(label=[0, 1, 0], features={"label": datasets.ClassLabel(names=NAMES)})},
        *("", None, NAMES, [0, 1, 0], range(3)),
    ),
    "words": ({"a.parquet": parquet(label=["cat", "bee", "cat", "ant"])}, "", None, NAMES, [2, 1, 2, 0], range(4)),
    "whole floats": ({"a.parquet": parquet(label=[0.0, 2.0])}, "", None, ["0", "1", "2"], [0, 2], range(2)),
    "parquet without labels": ({"a.parquet": parquet(caption=["x", "y"])}, "", None, ["image"], [0, 0], range(2)),
    "tars": (TARS, "", "train", ["0", "1", "2"], [0, 1, 2, 0] * 2, range(4, 12)),
    "tars, splits of one word": (
        {name.replace("-", "2017-"): data for name, data in TARS.items()},
        *("", "train", ["0", "1", "2"], [0, 1, 2, 0] * 2, range(4, 12)),
    ),
    "tar pattern": (TARS, "/*.tar", None, *TWELVE),
    "tar file": (TARS, "/test-0.tar", None, ["0", "1", "2"], [0, 1, 2, 0], range(4)),
    "a list in json": (
        {"x.tar": tar([{"json": b"[1, 2]", "png": i, "cls": b"%d" % i} for i in range(2)])},
        *("", None, ["0", "1"], [0, 1], range(2)),
    ),
    "labels in json": (
        {"x.tar": tar([{"json": json.dumps({"label": i}).encode(), "png": i} for i in range(3)])},
        *("", None, ["0", "1", "2"], [0, 1, 2], range(3)),
    ),
    "a column": (
        {"x.tar": tar([{"json": json.dumps({"breed": "ab"[i], "label": 0}).encode(), "png": i} for i in range(2)])},
        *("/x.tar#breed", None, ["a", "b"], [0, 1], range(2)),
    ),
    "tar without labels": ({"x.tar": tar([{"png": i} for i in range(3)])}, "", None, ["image"], [0] * 3, range(3)),
    "several formats": (
        {"x.tar": tar([{"png": 0, "cls": b"1"}, {"jpg": 1, "cls": b"0"}])},
        *("", None, ["0", "1"], [1, 0], range(2)),
    ),
    "gif": ({"x.tar": tar([{"gif": i, "cls": b"0"} for i in range(2)])}, "", None, ["0"], [0, 0], range(2)),
    "masks": ({"x.tar": tar([{"jpg": i, "png": 9, "cls": b"0"} for i in range(2)])}, "", None, ["0"], [0, 0], range(2)),
}


@pytest.mark.parametrize("scheme", ["", "file://", "memory:/"])
@pytest.mark.parametrize("files", [PARQUET, TARS], ids=["parquet", "tars"])
def test_shards_of_several_splits_are_not_taken_together(tmp_path, memory, scheme, files):
    memory(files)
    with pytest.raises(InputError, match="holds splits: choose one of "):
        open_images(f"{scheme}{tmp_path}", None, SIZE)


@pytest.mark.filterwarnings("ignore:.*(passed over|all images are one class|taken for labels)")
@pytest.mark.parametrize("scheme", ["", "file://", "memory:/"])
@pytest.mark.parametrize(("files", "place", "split", "class_names", "labels", "seeds"), LAYOUTS.values(), ids=LAYOUTS)
def test_layout(tmp_path, memory, scheme, files, place, split, class_names, labels, seeds):
    memory(files)
    images = open_images(f"{scheme}{tmp_path}{place}", split, SIZE)
    assert images.class_names == class_names
    assert images.labels.tolist() == labels
    assert images.labels.dtype == "int64"
    assert_holds(images, seeds)


@pytest.mark.filterwarnings("ignore:.*passed over")
@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("files", [CLASS_FOLDERS, SPLITS, PARQUET, TARS], ids=["classes", "splits", "parquet", "tars"])
def test_a_fingerprint_changes_with_the_files(tmp_path, scheme, files):
    def fingerprint():
        return open_images(f"{scheme}{tmp_path}", None if files is CLASS_FOLDERS else "train", SIZE).fingerprint()

    def touch(pattern):
        for path in tmp_path.rglob(pattern):
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 1000))

    write(tmp_path, files)
    before = fingerprint()
    if files is SPLITS:
        touch("test/*/*")  # the other split
    assert fingerprint() == before
    touch("*.*")
    changed = fingerprint()
    assert changed != before
    path = tmp_path / max(files)
    if files is PARQUET:
        path.write_bytes(parquet(label=[2, 0, 1]))
    else:
        path.write_bytes(path.read_bytes() + bytes(tarfile.RECORDSIZE) if files is TARS else b"")
    assert fingerprint() not in (before, changed)


@pytest.mark.parametrize(
    ("files", "skipped"),
    [
        ({"a/0.png": 0, "a/1.png": b"damaged", "b/2.png": 2}, "a/1.png"),
        ({"a.parquet": parquet([png(0), b"damaged", png(2)], label=[0, 1, 2])}, "row 1"),
        ({"x.tar": tar([{"png": data, "cls": b"0"} for data in (0, b"damaged", 2)])}, "row 1 (x0001.png)"),
    ],
)
def test_corrupt_images_are_left_out_and_named(opened, files, skipped):
    images, _ = opened(files)
    assert [indices.tolist() for indices, _, _ in images.batches(8)] == [[0, 2]]
    assert images.skipped == [skipped]


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        ({"a/notes.txt": b"x"}, None, "holds no images"),
        ({"0.png": 0, "a/1.png": 1}, None, r"both images and sub-folders: move the images \(0\.png, …\)"),
        (SPLITS, None, "holds splits, not classes: choose one of test, train"),
        (SPLITS, "val", "has no split 'val': it has test, train"),
        (PARQUET, "val", "has no split 'val': it has (test, train|train, test)"),
        (TARS, "val", "has no split 'val': it has (test, train|train, test)"),
        ({f"{i}/0.png": i for i in range(9)}, "held-out", "no class has ten images, so none can be held out"),
        ({f"{i}/0.png": i for i in range(9)}, "not-held-out", "no class has ten images"),
        ({"a.parquet": parquet(label=[0, -1, 1])}, None, "row 1 has the label -1, outside 0 to 1"),
        ({"a.parquet": parquet(label=[0, None, 1])}, None, "row 1 has None in its label column"),
        ({"a.parquet": parquet(label=[0, 10**9])}, None, "labels up to 1,000,000,000: number classes from 0"),
        ({"a.parquet": parquet(image="picture", label=[0])}, None, "columns picture, label: name the one .* 'image'"),
        ({"a.parquet": parquet(label=[0, 1])[:-20]}, None, "cannot be (read|opened)"),
        ({"x.tar": tar([{"png": i, "cls": b"0"} for i in range(9)])[:9000]}, None, "cannot be (read|opened)"),
    ],
)
def test_refused(opened, files, split, message):
    with pytest.raises(InputError, match=message) as raised:
        opened(files, split)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "nowhere: no such folder or file of images"),
        ("nowhere.parquet", r"nowhere\.parquet: no such file"),
        ("nowhere/*.tar", r"nowhere/\*\.tar: no such file"),
        (__file__, "is not a set of images"),
    ],
)
def test_no_set_of_images_there(source, message):
    with pytest.raises(InputError, match=message):
        open_images(source)


def test_saved_data_set(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rows = [{"image": {"bytes": png(i), "path": None}, "label": i % 2} for i in range(3)]
    dataset = datasets.Dataset.from_list(rows, features=features)
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=dataset, test=dataset.select([2])).save_to_disk(tmp_path / "two")
    one = open_images(str(tmp_path / "one"), size=SIZE)
    before = one.fingerprint()
    assert open_images(str(tmp_path / "one"), size=SIZE).fingerprint() == before
    assert one.class_names == NAMES
    assert one.labels.tolist() == [0, 1, 0]
    assert_holds(one, [0, 1, 2])
    assert_holds(open_images(str(tmp_path / "two"), "test", SIZE), [2])
    dataset.select([2, 1, 0]).save_to_disk(tmp_path / "one")
    assert open_images(str(tmp_path / "one"), size=SIZE).fingerprint() != before


def test_local_parquet_without_splits_is_train(tmp_path):
    """As `datasets` calls it."""
    (tmp_path / "a.parquet").write_bytes(PARQUET["train-00000.parquet"])
    assert_holds(open_images(str(tmp_path), "train", SIZE), range(5))
    with pytest.raises(InputError, match="has no split 'test'"):
        open_images(str(tmp_path), "test", SIZE)


@pytest.mark.parametrize("place", ["set [v2]", "set [v2]/a[1].parquet", "a[1].parquet"])
def test_brackets_in_names_are_no_patterns(tmp_path, place):
    folder = tmp_path / ("set [v2]" if place.startswith("set") else "")
    folder.mkdir(exist_ok=True)
    (folder / "a[1].parquet").write_bytes(PARQUET["test-00002.parquet"])
    if place.endswith("parquet"):  # what the name would match as a pattern
        (folder / "a1.parquet").write_bytes(PARQUET["train-00000.parquet"])
    images = open_images(str(tmp_path / place), None, SIZE)
    assert_holds(images, range(10, 15))
    before = images.fingerprint()
    (folder / "a[1].parquet").write_bytes(PARQUET["train-00001.parquet"])
    assert open_images(str(tmp_path / place), None, SIZE).fingerprint() != before
