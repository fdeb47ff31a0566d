import json
import struct
import subprocess
import sys
import zlib

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import SIZE, assert_holds, pixels, png, write_parquet, write_tar
from PIL import Image

from ctf.errors import InputError
from ctf.images import open_images
from ctf.images.image_set import every_tenth


@pytest.fixture
def class_folder(tmp_path):
    """b/0.png, b/1.png, a/2.png, a/deep/3.png, and files that are no images."""
    for i, folder in enumerate(["b", "b", "a", "a/deep"]):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / f"{i}.png").write_bytes(png(i))
        (tmp_path / folder / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


# --- the bundled emoji ---


@pytest.mark.parametrize(("split", "count"), [(None, 9153), ("train", 8367), ("test", 786)])
def test_emoji_counts(split, count):
    emoji = open_images("emoji", split)
    assert len(emoji) == len(emoji.labels) == count
    assert emoji.labels.dtype == np.int64
    assert len(emoji.class_names) == 54
    assert emoji.class_names[:2] + emoji.class_names[-1:] == ["noto smileys", "noto people", "fxemoji flags"]


def test_emoji_are_pictures_on_white_with_their_labels():
    emoji = open_images("emoji", "test")
    by_category = [emoji.class_names[label].split()[0] for label in emoji.labels]
    assert set(by_category) == {"noto", "twemoji", "fluent-emoji", "fluent-emoji-flat", "emojione", "fxemoji"}
    image = emoji.read(by_category.index("noto"))
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert (image == 255).mean() > 0.1
    assert image.std() > 10


def test_emoji_splits_are_parts_of_the_whole():
    test, everything = open_images("emoji", "test"), open_images("emoji")
    names = [everything._records.name(i) for i in range(len(everything))]
    row = names.index(test._records.name(100))
    np.testing.assert_array_equal(test.read(100), everything.read(row))
    assert test.labels[100] == everything.labels[row]


def test_emoji_unknown_split():
    with pytest.raises(InputError, match="no split 'validation': it has test, train"):
        open_images("emoji", "validation")


# --- folders ---


def test_class_folder(class_folder):
    images = open_images(str(class_folder), size=SIZE)
    assert images.class_names == ["a", "b"]
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert_holds(images, [2, 3, 0, 1])


def test_flat_folder_is_one_class(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.PNG").write_bytes(png(i))
    images = open_images(str(tmp_path), size=SIZE)
    assert images.class_names == ["image"]
    assert images.labels.tolist() == [0, 0, 0]
    assert_holds(images, [0, 1, 2])


@pytest.mark.parametrize("counts", [(25, 9, 10), (10,)])
def test_held_out_is_every_tenth_image_of_a_class(tmp_path, counts):
    names = {}
    for label, count in enumerate(counts):
        (tmp_path / f"{label}").mkdir()
        for i in range(count):
            (tmp_path / f"{label}" / f"{i:02}.png").write_bytes(png(len(names) % 4))
            names[f"{label}/{i:02}.png"] = label
    held_out, rest, whole = (open_images(str(tmp_path), split, SIZE) for split in ("held-out", "not-held-out", None))
    assert held_out.class_names == rest.class_names == whole.class_names
    chosen = [place for place, name in enumerate(names) if int(name[-6:-4]) % 10 == 9]
    assert held_out.labels.tolist() == whole.labels[chosen].tolist()
    assert len(held_out) + len(rest) == len(whole)
    for part, places in (held_out, chosen), (rest, [i for i in range(len(whole)) if i not in chosen]):
        for index, place in enumerate(places):
            np.testing.assert_array_equal(part.read(index), whole.read(place))


def test_nothing_to_hold_out(class_folder):
    with pytest.raises(InputError, match="no class has ten images, so none can be held out"):
        open_images(str(class_folder), "held-out", SIZE)
    with pytest.raises(InputError, match="no class has ten images"):
        open_images(str(class_folder), "not-held-out", SIZE)


def test_held_out_of_classes_in_no_order():
    labels = np.random.default_rng(0).integers(0, 5, 400)
    expected = [np.sum(labels[:i] == label) % 10 == 9 for i, label in enumerate(labels)]
    np.testing.assert_array_equal(every_tenth(labels), expected)


def test_folder_with_splits(class_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    class_folder.rename(root / "train")
    assert_holds(open_images(str(root), "train", SIZE), [2, 3, 0, 1])
    with pytest.raises(InputError, match="holds splits, not classes: choose one of train"):
        open_images(str(root))
    with pytest.raises(InputError, match="no split 'test': it has train"):
        open_images(str(root), "test")


@pytest.mark.parametrize(
    ("files", "message"),
    [([], "holds no images"), (["a/notes.txt"], "holds no images"), (["0.png", "a/1.png"], "both images and sub-fold")],
)
def test_folder_errors(tmp_path, files, message):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(0))
    with pytest.raises(InputError, match=message):
        open_images(str(tmp_path))


def test_missing_source():
    with pytest.raises(InputError, match="nowhere: no such folder or file of images"):
        open_images("nowhere")
    with pytest.raises(InputError, match=r"nowhere\.parquet: no such file"):
        open_images("nowhere.parquet")
    with pytest.raises(InputError, match=r"nowhere/\*\.tar: no such file"):
        open_images("nowhere/*.tar")


def test_a_file_that_is_no_set_of_images(tmp_path):
    (tmp_path / "one.png").write_bytes(png(0))
    with pytest.raises(InputError, match="is not a set of images"):
        open_images(str(tmp_path / "one.png"))


# --- Parquet, WebDataset, saved data sets ---


def test_parquet_file_with_numbers_as_labels(tmp_path):
    images = open_images(write_parquet(tmp_path / "a.parquet", [2, 0, 2]), size=SIZE)
    assert images.labels.tolist() == [2, 0, 2]
    assert images.class_names == ["0", "1", "2"]
    assert_holds(images, [0, 1, 2])


def test_parquet_with_words_as_labels(tmp_path):
    images = open_images(write_parquet(tmp_path / "a.parquet", ["cat", "dog", "cat", "ant"]), size=SIZE)
    assert images.class_names == ["ant", "cat", "dog"]
    assert images.labels.tolist() == [1, 2, 1, 0]


def test_parquet_without_labels(tmp_path):
    images = open_images(write_parquet(tmp_path / "a.parquet", ["x", "y"], column="caption"), size=SIZE)
    assert images.class_names == ["image"]
    assert images.labels.tolist() == [0, 0]


def test_parquet_folder_has_the_splits_that_its_files_name(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [0, 1])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", [1])
    write_parquet(tmp_path / "test-00000-of-00001.parquet", [0])
    assert open_images(str(tmp_path), "train", SIZE).labels.tolist() == [0, 1, 1]
    assert open_images(str(tmp_path), "test", SIZE).labels.tolist() == [0]
    assert sorted(open_images(str(tmp_path), size=SIZE).labels.tolist()) == [0, 0, 1, 1]
    with pytest.raises(InputError, match="no split 'val': it has train, test"):
        open_images(str(tmp_path), "val")


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, -1, 1], "row 1 has the label -1, outside 0 to 1"), ([0, None, 1], "row 1 has None in its label column")],
)
def test_labels_that_name_no_class(tmp_path, labels, message):
    with pytest.raises(InputError, match=message):
        open_images(write_parquet(tmp_path / "a.parquet", labels))


def test_parquet_without_images(tmp_path):
    pq.write_table(pa.table({"picture": ["x"], "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="has columns picture, label: name the one that holds the images 'image'"):
        open_images(str(tmp_path / "a.parquet"))


def test_truncated_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, [0, 1])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot be opened as a set of images") as raised:
        open_images(str(path))
    assert "\n" not in str(raised.value)


def test_saved_data_set_with_class_names(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cat"])})
    rows = [{"image": {"bytes": png(i), "path": None}, "label": i % 2} for i in range(3)]
    dataset = datasets.Dataset.from_list(rows, features=features)
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=dataset, test=dataset.select([2])).save_to_disk(tmp_path / "two")
    one = open_images(str(tmp_path / "one"), size=SIZE)
    one_fingerprint = one.fingerprint()
    assert open_images(str(tmp_path / "one"), size=SIZE).fingerprint() == one_fingerprint
    assert one.class_names == ["ant", "bee", "cat"]
    assert one.labels.tolist() == [0, 1, 0]
    assert_holds(one, [0, 1, 2])
    assert_holds(open_images(str(tmp_path / "two"), "test", SIZE), [2])
    dataset.select([2, 1, 0]).save_to_disk(tmp_path / "one")
    assert open_images(str(tmp_path / "one"), size=SIZE).fingerprint() != one_fingerprint


@pytest.mark.parametrize("label", [lambda i: {"cls": b"%d" % i}, lambda i: {"json": json.dumps({"label": i}).encode()}])
def test_webdataset(tmp_path, label):
    write_tar(tmp_path / "x0.tar", [{"png": png(i)} | label(i) for i in range(2)])
    write_tar(tmp_path / "x1.tar", [{"png": png(2)} | label(2)])
    for source in (str(tmp_path), f"{tmp_path}/*.tar"):
        images = open_images(source, size=SIZE)
        assert images.labels.tolist() == [0, 1, 2]
        assert_holds(images, [0, 1, 2])


def test_a_corrupt_image_of_a_shard_is_left_out_and_named(tmp_path):
    write_tar(tmp_path / "x.tar", [{"png": data, "cls": b"0"} for data in (png(0), b"damaged", png(2))])
    images = open_images(str(tmp_path / "x.tar"), size=SIZE)
    assert [indices.tolist() for indices, _, _ in images.batches(8)] == [[0, 2]]
    assert images.skipped == ["row 1 (x0001.png)"]


def test_truncated_tar(tmp_path):
    write_tar(tmp_path / "x.tar", [{"png": png(i), "cls": b"0"} for i in range(9)])
    (tmp_path / "x.tar").write_bytes((tmp_path / "x.tar").read_bytes()[:9000])
    with pytest.raises(InputError, match="cannot be opened as a set of images"):
        open_images(str(tmp_path / "x.tar"))


# --- reading ---


def test_transparency_becomes_white_and_grey_becomes_rgb(tmp_path):
    clear = np.zeros((SIZE, SIZE, 4), dtype=np.uint8)
    clear[0, 0] = (10, 20, 30, 255)
    clear[0, 1] = (0, 0, 0, 51)
    Image.fromarray(clear).save(tmp_path / "0.png")
    Image.fromarray(np.full((SIZE, SIZE), 7, dtype=np.uint8)).save(tmp_path / "1.png")
    palette = Image.fromarray(np.full((SIZE, SIZE), 1, dtype=np.uint8)).convert("P")
    palette.save(tmp_path / "2.png", transparency=1)
    images = open_images(str(tmp_path), size=SIZE)
    assert images.read(0)[0, :3].tolist() == [[10, 20, 30], [204] * 3, [255] * 3]
    assert (images.read(1) == 7).all()
    assert (images.read(2) == 255).all()


def test_sixteen_bit_grey_keeps_its_upper_byte(tmp_path):
    grey = np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE) * 1000
    Image.fromarray(grey).save(tmp_path / "0.png")
    np.testing.assert_array_equal(open_images(str(tmp_path), size=SIZE).read(0)[:, :, 1], grey // 256)


RAMP = np.linspace(0, 1, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)


def test_floats_from_0_to_1_are_dark_to_light(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "0.tif")
    np.testing.assert_array_equal(open_images(str(tmp_path), size=SIZE).read(0)[:, :, 0], np.round(RAMP * 255))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (RAMP * 255, "mode F with values from 0 to 255: convert it to 8 bits"),
        (RAMP - 0.5, "mode F with values from -0.5 to 0.5"),
        (np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32), "mode F with values from nan to nan"),
        ((RAMP * 255).astype(np.int32), "mode I with values from 0 to 255"),
        ((RAMP * 1e6).astype(np.int32), "mode I with values from 0 to 1e\\+06"),
        ((RAMP * 255).astype(np.uint16), "mode I;16 with values from 0 to 255"),
        ((RAMP * 4095).astype(np.uint16), "mode I;16 with values from 0 to 4095"),
    ],
)
def test_grey_of_an_unknown_range_is_left_out_and_named(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "0.tif")
    Image.fromarray(RAMP).save(tmp_path / "1.tif")
    images = open_images(str(tmp_path), size=SIZE)
    with pytest.warns(UserWarning, match="grey images whose range is not known are left out: convert them to 8 bits"):
        assert [indices.tolist() for indices, _, _ in images.batches(2)] == [[1]]
    assert images.skipped == ["0.tif"]
    with pytest.raises(InputError, match=message), pytest.warns(match="left out"):
        images.read(0)


@pytest.mark.parametrize("values", [np.zeros((SIZE, SIZE), np.uint16), np.zeros((SIZE, SIZE), np.int32)])
def test_black_is_black_in_any_range(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "0.tif")
    assert (open_images(str(tmp_path), size=SIZE).read(0) == 0).all()


@pytest.mark.parametrize(("colour", "clear"), [(0, [30000]), (2, [30000, 40000, 50000])])
def test_a_transparent_shade_of_16_bits(tmp_path, colour, clear):
    """A 16-bit PNG, grey or of colours, whose tRNS chunk makes one shade transparent."""
    values = np.full((SIZE, SIZE, len(clear)), 20000, ">u2")
    values[0, 0] = clear
    scanlines = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 16, colour, 0, 0, 0)
    shade = np.array(clear, ">u2").tobytes()
    data = png_of((b"IHDR", header), (b"tRNS", shade), (b"IDAT", zlib.compress(scanlines)), (b"IEND", b""))
    (tmp_path / "0.png").write_bytes(data)
    image = open_images(str(tmp_path), size=SIZE).read(0)
    assert image[0, 0].tolist() == [255] * 3
    assert (image[1:] == 20000 >> 8).all()


def test_size_is_the_crop(tmp_path):
    Image.fromarray(pixels(0, 10, 16)).save(tmp_path / "0.png")
    images = open_images(str(tmp_path), size=10)
    np.testing.assert_array_equal(images.read(0), pixels(0, 10, 16)[:, 3:13])
    assert images.read(0, size=13).shape == (13, 13, 3)
    shrunk = next(images.batches(1, crop=lambda image, size: image.resize((size // 2, size))))[1]
    assert shrunk.shape == (1, 10, 5, 3)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_batches_are_everything_in_order(tmp_path, batch_size):
    images = open_images(write_parquet(tmp_path / "a.parquet", list(range(20))), size=SIZE)
    for part in (None, range(5, 20), range(8, 11), range(20, 20)):
        batches = list(images.batches(batch_size, part, workers=3))
        assert all(len(indices) <= batch_size for indices, _, _ in batches)
        assert [i for indices, _, _ in batches for i in indices] == list(range(20) if part is None else part)
        for indices, pictures, labels in batches:
            assert labels.tolist() == indices.tolist()
            np.testing.assert_array_equal(pictures, np.stack([pixels(i) for i in indices]))


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"x" + data[1:]]
)
def test_corrupt_images_are_left_out_and_named(tmp_path, damage):
    for i in range(9):
        data = png(i)
        (tmp_path / f"{i}.png").write_bytes(damage(data) if i in (2, 3, 4, 8) else data)
    images = open_images(str(tmp_path), size=SIZE)
    assert images.report_skipped() == ""
    for _ in range(2):  # a second pass counts none of them again
        batches = list(images.batches(2))
        assert [indices.tolist() for indices, _, _ in batches] == [[0, 1], [5], [6, 7]]
        assert images.skipped == ["2.png", "3.png", "4.png", "8.png"]
    assert images.report_skipped(2) == "Left out 4 of 9 images as unreadable: 2.png, 3.png and 2 more"
    with pytest.raises(InputError, match=r"3\.png is not a readable image"):
        images.read(3)


def test_a_corrupt_row_of_a_parquet_file_is_named_by_its_number(tmp_path):
    source = write_parquet(tmp_path / "a.parquet", [0, 1, 2], images=[png(0), b"damaged", png(2)])
    images = open_images(source, size=SIZE)
    assert [indices.tolist() for indices, _, _ in images.batches(8)] == [[0, 2]]
    assert images.skipped == ["row 1"]


def test_nothing_readable_at_all(tmp_path):
    (tmp_path / "0.png").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"not one image is readable.*0\.png"):
        list(open_images(str(tmp_path)).batches(4))


def empty_png(width, height):
    """A PNG that claims a size and holds a single byte of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png_of((b"IHDR", header), (b"IDAT", zlib.compress(b"0")), (b"IEND", b""))


def png_of(*chunks):
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.filterwarnings("ignore:Image size")  # as `ctf.images` does; pytest puts its own filters in their place
@pytest.mark.parametrize("size", [(60_000, 60_000), (10_000, 10_000), (1, 101), (101, 1)])
def test_an_image_too_large_to_decode_is_left_out_like_any_other(tmp_path, size):
    """Of 3.6 billion pixels, which Pillow refuses; of 100 million, of which it warns; and of a hair's width."""
    (tmp_path / "0.png").write_bytes(png(0))
    (tmp_path / "1.png").write_bytes(empty_png(*size))
    images = open_images(str(tmp_path), size=SIZE)
    assert [indices.tolist() for indices, _, _ in images.batches(2)] == [[0]]
    assert images.report_skipped() == "Left out 1 of 2 images as unreadable: 1.png"
    with pytest.raises(InputError, match=r"1\.png is not a readable image .*pixels"):
        images.read(1)


def test_no_image_makes_the_command_warn(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(png(0))
    for i, side in enumerate((10_000, 60_000), start=1):
        (tmp_path / "images" / f"{i}.png").write_bytes(empty_png(side, side))
    # A process of its own, since pytest replaces the filters of warnings.
    line = "tokenize --images images --image_size 16 --augmentation none --device cpu --out tokens"
    program = f"import sys; from ctf.cli import main; sys.exit(main({line!r}.split()))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Left out 2 of 3 images as unreadable: 1.png, 2.png" in done.stdout
    assert "warning" not in done.stderr.lower()


@pytest.mark.parametrize("size", [0, -1, 8193])
def test_sizes_that_no_image_has(size):
    with pytest.raises(InputError, match="images have 1 to 8192 pixels per side"):
        open_images("emoji", size=size)


def test_a_class_number_that_is_a_mistake(tmp_path):
    with pytest.raises(InputError, match="labels up to 1,000,000,000: number classes from 0"):
        open_images(write_parquet(tmp_path / "a.parquet", [0, 10**9]))
