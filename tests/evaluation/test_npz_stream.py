import tracemalloc
import zipfile

import numpy as np
import pytest

from ctf.errors import InputError
from ctf.evaluation import ImageArray, write_images

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 6, 3), np.uint8)
LABELS = np.arange(7)


def write(path, images=IMAGES, labels=LABELS, batch_size=3):
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    write_images(path, batches, len(images), images.shape[1:3], labels)
    return path


def read(path, batch_size):
    return np.concatenate(list(ImageArray(path).batches(batch_size)))


def test_numpy_reads_it(tmp_path):
    with np.load(write(tmp_path / "x.npz"), allow_pickle=False) as file:
        assert file.files == ["arr_0", "labels"]
        assert np.array_equal(file["arr_0"], IMAGES)
        assert np.array_equal(file["labels"], LABELS)
        assert file["labels"].dtype == np.int64


def test_it_can_be_read_as_adm_does(tmp_path):
    """Its evaluator opens the archive, parses the header of version 1 or 2, and reads rows from the stream."""
    with zipfile.ZipFile(write(tmp_path / "x.npz", labels=None)) as archive, archive.open("arr_0.npy") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        assert (shape, fortran, dtype) == (IMAGES.shape, False, np.uint8)
        assert file.read(2 * IMAGES[0].size) == IMAGES[:2].tobytes()
        assert archive.namelist() == ["arr_0.npy"]


def test_equal_images_are_equal_bytes(tmp_path):
    one, other = write(tmp_path / "one.npz"), write(tmp_path / "other.npz", batch_size=2)
    assert one.read_bytes() == other.read_bytes()
    with zipfile.ZipFile(one) as archive:
        entries = archive.infolist()
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}
    assert one.read_bytes()[4:6] == bytes([45, 0])  # the version that zip64 needs, for more than 4 GiB


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, write], ids=["numpy", "compressed", "ours"])
def test_batches(tmp_path, save, batch_size):
    save(tmp_path / "x.npz", IMAGES)
    array = ImageArray(tmp_path / "x.npz")
    assert array.shape == IMAGES.shape
    batches = list(array.batches(batch_size))
    assert np.array_equal(np.concatenate(batches), IMAGES)
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    batches[0] += 1  # torch warns of arrays that must not be written to


def test_labels(tmp_path):
    assert ImageArray(write(tmp_path / "x.npz")).labels.tolist() == list(range(7))
    assert ImageArray(write(tmp_path / "y.npz", labels=None)).labels is None


def test_a_few_batches_in_memory(tmp_path):
    batch = np.zeros((10, 100, 100, 3), np.uint8)
    tracemalloc.start()
    write_images(tmp_path / "x.npz", (batch + i for i in range(40)), 400, (100, 100), np.zeros(400, np.int64))
    means = [images.mean() for images in ImageArray(tmp_path / "x.npz").batches(10)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert means == list(range(40))
    assert peak < 6 * batch.nbytes


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": IMAGES / 255}, "float64 values: convert the images to uint8 from 0 to 255"),
        ({"arr_0": IMAGES.transpose(0, 3, 1, 2).copy()}, r"\[7, 3, 4, 6\]: images are \[n, height, width, 3\]"),
        ({"arr_0": IMAGES[:0]}, "n positive"),
        ({"arr_0": np.asfortranarray(IMAGES)}, "Fortran order"),
        ({"images": IMAGES}, "holds images: the images must be called arr_0"),
        ({"arr_0": IMAGES, "labels": LABELS[:3]}, r"labels are int64 \[3\] for 7 images"),
        ({"arr_0": IMAGES, "labels": np.array([None] * 7)}, "not an .npz"),
    ],
)
def test_arrays_that_are_not_images(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=message):
        ImageArray(tmp_path / "x.npz")


@pytest.mark.parametrize("kept", [0, 40, 300, -1])
def test_truncated(tmp_path, kept):
    whole = write(tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(whole[:kept])
    with pytest.raises(InputError, match="truncated or not an"):
        ImageArray(tmp_path / "x.npz")


def test_damaged_pixels(tmp_path):
    whole = bytearray(write(tmp_path / "x.npz").read_bytes())
    whole[400] ^= 1
    (tmp_path / "x.npz").write_bytes(whole)
    with pytest.raises(InputError, match="truncated or not an"):
        read(tmp_path / "x.npz", 3)


def test_fewer_pixels_than_the_header_says(tmp_path):
    write_images(tmp_path / "x.npz", [IMAGES], 8, IMAGES.shape[1:3])
    with pytest.raises(InputError, match="fewer images than it says"):
        read(tmp_path / "x.npz", 3)


def test_missing(tmp_path):
    with pytest.raises(InputError, match="no such file of images"):
        ImageArray(tmp_path / "x.npz")
