"""Folders as people have them, on disk and at a URL: splits, metadata, leftovers, archives."""

import errno
import json
import os
import unicodedata

import pytest
from image_files import SIZE, assert_holds, parquet, tar
from PIL import Image

from ctf.errors import InputError
from ctf.images import open_images
from ctf.images.formats import image_endings


def classes(images):
    return [images.class_names[label] for label in images.labels]


# --- splits ---


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (["Training/cat", "Testing/cat"], "Testing, Training"),
        (["train/cat", "val/cat", "docs"], "train, val"),
        (["TRAIN/cat", "Dev/cat"], "Dev, TRAIN"),
        (["training_set/cat", "test_set/cat"], "test_set, training_set"),
        (["seg_train/cat", "seg_test/cat", "seg_pred"], "seg_test, seg_train"),
        (["train2017", "val2017"], "train2017, val2017"),
        (["trainA", "testA", "trainB", "testB"], "testA, testB, trainA, trainB"),
        (["cat/train", "cat/test", "dog/train"], "test, train"),
        (["data/train/cat", "data/validation/cat"], "train, validation"),
        (["train/cat", "extra"], "train"),
        (["Train"], "Train"),
    ],
)
def test_splits_are_no_classes(opened, folders, splits):
    with pytest.raises(InputError, match=f"holds splits, not classes: choose one of {splits} with --split, or rename"):
        opened({f"{folder}/{i}.png": i for i, folder in enumerate(folders)})


@pytest.mark.parametrize(
    "folders",
    [["freight train", "bus"], ["trainer", "tester"], ["TESTAMENT", "TRAINER"], ["cat/train", "dog/train"], ["a/b/c"]],
)
def test_names_that_are_no_splits(opened, folders):
    images, _ = opened({f"{folder}/{i}.png": i for i, folder in enumerate(folders)})
    assert images.class_names == sorted(folder.partition("/")[0] for folder in folders)


def test_a_class_may_be_called_test(opened):
    images, said = opened({"bus/0.png": 0, "car/1.png": 1, "test/2.png": 2})
    assert images.class_names == ["bus", "car", "test"]
    assert said == ["the folder 'test' is taken for a class; move it away if it is a split"]


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("Training", "Training"),
        ("Training", "training"),
        ("Training", "train"),
        ("valid", "val"),
        ("dev", "validation"),
        ("training_set", "train"),
    ],
)
def test_other_spellings_of_a_split(opened, folder, split):
    other = folder.replace("Training", "Testing").replace("training", "test") if "rain" in folder else "train"
    images, _ = opened({f"{folder}/b/0.png": 0, f"{folder}/a/1.png": 1, f"{other}/a/2.png": 2}, split)
    assert classes(images) == ["a", "b"]
    assert_holds(images, [1, 0])


@pytest.mark.parametrize("place", ["{name}/{split}", "data/{split}/{name}", "{split}/{name}"])
def test_splits_at_another_level(opened, place):
    names = {("dog", "train"): 0, ("cat", "train"): 1, ("cat", "test"): 2}
    files = {f"{place.format(name=name, split=split)}/{i}.png": i for (name, split), i in names.items()}
    images, _ = opened(files, "Train")
    assert classes(images) == ["cat", "dog"]
    assert_holds(images, [1, 0])


@pytest.mark.parametrize(
    ("folders", "split"), [(["trainA", "testA", "trainB", "testB"], "train"), (["a_train", "bus"], "train")]
)
def test_ambiguous_splits_are_refused(opened, folders, split):
    with pytest.raises(InputError, match=f"has no split '{split}'"):
        opened({f"{folder}/{i}.png": i for i, folder in enumerate(folders)}, split)


# --- labels ---

ROWS = [{"file_name": "1.png", "label": "dog"}, {"file_name": "0.png", "label": "cat"}]
PARQUET = parquet(**{key: [row[key] for row in ROWS] for key in ROWS[0]})
CSV = b"file_name,label\n1.png,dog\n0.png,cat\n"
JSONL = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


@pytest.mark.parametrize("name_and_data", [("csv", CSV), ("jsonl", JSONL), ("parquet", PARQUET)])
@pytest.mark.parametrize("folder", ["", "train/"])
def test_labels_of_a_metadata_file(opened, name_and_data, folder):
    ending, data = name_and_data
    files = {f"{folder}metadata.{ending}": data, f"{folder}0.png": 0, f"{folder}1.png": 1}
    images, said = opened(files, folder.rstrip("/") or None)
    assert classes(images) == ["cat", "dog"]
    assert_holds(images, [0, 1])
    assert said == []


def test_metadata_above_the_folders_that_it_names(opened):
    data = b"file_name,label\ntrain/0.png,2\ntrain/deep/1.png,0\ntest/2.png,1\n"
    files = {"metadata.csv": data, "train/0.png": 0, "train/deep/1.png": 1, "test/2.png": 2}
    images, _ = opened(files, "train")
    assert images.labels.tolist() == [2, 0]
    assert images.class_names == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("table", "column", "message"),
    [
        (
            "file_name,fine_label,coarse_label\n0.png,1,0\n",
            "",
            "several that may hold labels, fine_label, coarse_label",
        ),
        ("file_name,label\n1.png,dog\n", "", "metadata have no row for 0.png: add rows"),
        ("file_name,label\n0.png,\n", "", "0.png has None in its label column 'label'"),
        (
            "file_name,label\n0.png,0.5\n",
            "",
            "0.png has 0.5 in its label column 'label': give every row a whole number",
        ),
        ("file_name,label\n0.png,cat,dog\n", "", "metadata.csv cannot be read"),
        ("file_name,label\n0.png,cat\n0.png,dog\n", "", "metadata.csv: 0.png has several labels"),
        ("file_name,label,label\n0.png,cat,dog\n", "", "metadata.csv has several columns called 'label': rename"),
        ("file_name,\udce9tat,label\n0.png,a,cat\n", "", "metadata.csv cannot be read .*utf-8"),
        ("file_name,label\n0.png,cat\n", "#breed", "has no column 'breed': it has label"),
        ("id,label\n0,cat\n", "#label", "has no metadata.csv with a column 'label'"),
    ],
)
def test_metadata_that_do_not_fit(opened, table, column, message):
    with pytest.raises(InputError, match=message):
        opened({"0.png": 0, "metadata.csv": table.encode(errors="surrogateescape")}, place=column)


@pytest.mark.parametrize(
    ("table", "column", "names", "said"),
    [
        ("file_name,category\n0.png,cat\n", "", ["cat"], ["labels are those of the column 'category'"]),
        ("file_name,breed\n0.png,pug\n", "#breed", ["pug"], []),
        ("file_name,fine_label,coarse_label\n0.png,1,0\n", "#coarse_label", ["0"], []),
        ("file_name,fine_label,coarse_label\n0.png,1,0\n", "#", ["image"], []),
        ("file_name,label\n0.png,true\n", "", ["true"], []),
        ("file_name,label\n0.png,2020-01-01\n", "", ["2020-01-01"], []),
        ("file_name,breed\n0.png,pug\n", "", ["image"], ["none of its columns is taken for labels; choose one as in "]),
        ("id,label\n0,cat\n", "", ["image"], ["it has no column 'file_name'"]),
        ("file_name,label\n0.png,01\n", "", ["01"], []),
        ("file_name,label\n0.png,NA\n1.png,cat\n", "", ["NA"], []),
        ("file_name,label\n0.png,1\n0.png,1\n", "", ["0", "1"], []),
    ],
)
def test_the_column_of_labels_in_metadata(opened, table, column, names, said):
    images, warned = opened({"0.png": 0, "metadata.csv": table.encode()}, place=column)
    assert images.class_names == names
    assert len(warned) == len(said)
    assert all(part in text for part, text in zip(said, warned, strict=True))


def test_metadata_in_a_folder_of_their_own(opened):
    table = b"file_name,label\n../images/0.png,a\n../images/1.png,b\n"
    images, _ = opened({"images/0.png": 0, "images/1.png": 1, "labels/metadata.csv": table})
    assert (images.class_names, images.labels.tolist()) == (["a", "b"], [0, 1])


def test_metadata_of_another_split_do_not_matter(opened):
    files = {f"{split}/{i}.png": i for split in ("train", "val") for i in range(2)}
    files["train/metadata.csv"] = b"file_name,label\n0.png,a\n1.png,b\n"
    files["val/metadata.csv"] = b"file_name,class_a,class_b\n0.png,1,2\n1.png,1,2\n"
    images, _ = opened(files, "train")
    assert (images.class_names, images.labels.tolist()) == (["a", "b"], [0, 1])


def test_metadata_beside_class_folders(opened):
    """Captions are no labels; "#" asks for one class."""
    files = {"cat/0.png": 0, "dog/1.png": 1, "metadata.csv": b"file_name,text\ncat/0.png,a cat\ndog/1.png,a dog\n"}
    images, said = opened(files)
    assert images.class_names == ["cat", "dog"]
    assert said[0].startswith("none of its columns is taken for labels; choose one as in ")
    assert "#text" in said[0]
    assert opened({}, place="#")[0].class_names == ["image"]


def test_class_names_have_one_unicode_form(opened):
    name = "café"
    images, _ = opened({f"{unicodedata.normalize('NFD', name)}/0.png": 0, "tea/1.png": 1})
    assert images.class_names == [name, "tea"]
    table = f"file_name,label\n{name}/0.png,{unicodedata.normalize('NFD', name)}\ntea/1.png,tea\n"
    images, _ = opened({"metadata.csv": table.encode()})
    assert images.class_names == [name, "tea"]


TINY_IMAGENET = {
    "wnids.txt": b"n3\nn1\nn4\nn2\n",
    "words.txt": b'n0\tentity\nn1\tcrane, lifting device\nn2\tcrane\nn3\tcaf\xc3\xa9, "coffee bar\nn4\tplane\n',
    "train/n1/n1_boxes.txt": b"n1_0.JPEG\t0\t0\t7\t7\n",
    "train/n1/images/n1_0.JPEG": 0,
    "train/n2/images/n2_0.JPEG": 1,
    "train/n3/images/n3_0.JPEG": 2,
    "val/val_annotations.txt": b"val_1.JPEG\tn1\t0\t0\t7\t7\nval_0.JPEG\tn2\t0\t0\t7\t7\n",
    "val/images/val_0.JPEG": 3,
    "val/images/val_1.JPEG": 4,
    "test/images/test_0.JPEG": 5,
}


@pytest.mark.parametrize(
    ("split", "expected", "seeds"),
    [
        ("train", ["crane (n1)", "crane (n2)", "café"], [0, 1, 2]),
        ("val", ["crane (n2)", "crane (n1)"], [3, 4]),
        ("validation", ["crane (n2)", "crane (n1)"], [3, 4]),
    ],
)
def test_tiny_imagenet(opened, split, expected, seeds):
    images, _ = opened(TINY_IMAGENET, split)
    assert images.class_names == ["café", "crane (n1)", "plane", "crane (n2)"]  # in the order of wnids.txt
    assert classes(images) == expected
    assert_holds(images, seeds)


def test_tiny_imagenet_without_labels_or_words(opened):
    files = {name: data for name, data in TINY_IMAGENET.items() if name != "words.txt"}
    assert opened(files, "test")[0].class_names == ["images"]
    assert opened({}, "train")[0].class_names == ["n3", "n1", "n4", "n2"]
    with pytest.raises(InputError, match="holds splits, not classes: choose one of test, train, val"):
        opened({})


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("wnids.txt", b"n1\n", r"no class in wnids\.txt for val/images/val_0\.JPEG: add it, or move"),
        ("val/images/val_2.JPEG", 0, r"no class in wnids\.txt for val/images/val_2\.JPEG"),
        ("words.txt", b"n1\tcrane\nn2\n", r"words\.txt cannot be read"),
    ],
)
def test_tiny_imagenet_with_a_table_that_does_not_fit(opened, name, data, message):
    with pytest.raises(InputError, match=message):
        opened(TINY_IMAGENET | {name: data}, "val")


# --- what is passed over ---


def test_leftovers_and_folders_without_images_are_no_classes(opened):
    leftovers = [
        "__MACOSX/cat/._0.png",
        "@eaDir/0.png",
        "$RECYCLE.BIN/0.png",
        ".ipynb_checkpoints/0.png",
        "cat/._0.png",
    ]
    images, said = opened({"cat/0.png": 0, "dog/1.png": 1, "bird/notes.txt": b"x"} | dict.fromkeys(leftovers, b"x"))
    assert images.class_names == ["cat", "dog"]
    assert_holds(images, [0, 1])
    assert said == ["folders without images are no classes: bird", "passed over files that are no images: 1 .txt"]


@pytest.mark.parametrize("opened", [""], indirect=True)  # storage knows no empty folders
def test_an_empty_folder_is_no_class(opened, tmp_path):
    (tmp_path / "bird").mkdir()
    images, said = opened({"cat/0.png": 0})
    assert images.class_names == ["cat"]
    assert said == ["folders without images are no classes: bird"]


def test_files_of_every_ending_that_pillow_reads(opened, tmp_path):
    endings = [end for end in (".avif", ".jfif", ".jp2", ".PNG", ".tif", ".webp") if end.lower() in image_endings()]
    assert len(endings) > 3
    for end in endings:
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / f"0{end}")
    images, said = opened({"a.heic": b"x", "b.heic": b"x", "c.pdf": b"x", "d.eps": b"x", "README": b"x"})
    assert len(images) == len(endings)
    assert images.read(0).shape == (SIZE, SIZE, 3)
    assert {*said[0].partition(": ")[2].split(", ")} == {"2 .heic", "1 .pdf", "1 .eps", "1 without an ending"}


def test_only_files_of_other_endings(opened):
    with pytest.raises(InputError, match=r"holds no images but 2 \.heic, 1 \.txt: is it the right folder"):
        opened({"a/0.heic": b"x", "a/1.heic": b"x", "a/x.txt": b"x"})


def test_a_table_that_is_not_read_beside_one_class(opened):
    _, said = opened({"0.png": 0, "labels.csv": b"id,label\n0,cat\n"})
    assert said == [
        "passed over files that are no images: 1 .csv; labels are read from metadata.csv, with the columns file_name "
        "and label"
    ]


def test_one_class_with_folders_below_it(opened):
    images, said = opened({"images/cat/0.png": 0, "images/dog/1.png": 1})
    assert images.class_names == ["images"]
    assert "all images are one class, 'images'; if the classes are below it, give " in said[0]
    assert said[0].endswith("/images")


# --- shards and images ---


ARCHIVE = tar([{"png": 0}])


def test_archives_beside_the_folders_that_they_were_unpacked_to(opened):
    images, said = opened({"n01.tar": ARCHIVE, "n02.tar": ARCHIVE, "n01/0.png": 0, "n02/1.png": 1})
    assert images.class_names == ["n01", "n02"]
    assert said == ["passed over files that are no images: 2 .tar"]


def test_archives_of_splits_beside_them(opened):
    images, _ = opened({"train.tar": ARCHIVE, "val.tar": ARCHIVE, "train/a/0.png": 0, "val/a/1.png": 1}, "val")
    assert_holds(images, [1])


def test_shards_beside_images_are_refused(opened):
    with pytest.raises(InputError, match=r"holds both shards \(all\.tar\) and images \(cat/0\.png\).*/\*\.tar'"):
        opened({"all.tar": ARCHIVE, "cat/0.png": 0})


def test_a_link_to_a_folder_above_is_passed_over(tmp_path):
    for name, seed in {"cat": 0, "dog": 1}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (SIZE, SIZE), (seed, 0, 0)).save(tmp_path / "photos" / name / "0.png")
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "photos" / "latest").symlink_to(".")
    (tmp_path / "photos" / "cat" / "all").symlink_to("../..")
    (tmp_path / "photos" / "emu").symlink_to("../elsewhere")
    images = open_images(str(tmp_path / "photos"), None, SIZE)
    assert (classes(images), len(images)) == (["cat", "dog", "emu"], 3)
    (tmp_path / "photos" / "cat" / "dogs").symlink_to("../dog")
    (tmp_path / "photos" / "dog" / "cats").symlink_to("../cat")  # and so on in a circle
    images = open_images(str(tmp_path / "photos"), None, SIZE)
    assert classes(images) == ["cat", "cat", "dog", "dog", "emu"]


def test_a_folder_that_may_not_be_listed_is_no_missing_class(tmp_path, monkeypatch):
    (tmp_path / "cat").mkdir()
    (tmp_path / "owl").mkdir()
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "cat" / "0.png")
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("owl"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(PermissionError, match="owl"):
        open_images(str(tmp_path), None, SIZE)
