import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from ctf.errors import InputError
from ctf.samples import ImageArray, SampleSet, sample_to, write_images

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 6, 3), np.uint8)
LABELS = np.arange(7)


def write(path, images=IMAGES, labels=LABELS, batch_size=3):
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    write_images(path, batches, len(images), images.shape[1:3], labels)
    return path


def read(path, batch_size):
    return np.concatenate(list(ImageArray(path).batches(batch_size)))


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
    assert ImageArray(one).labels.tolist() == list(range(7))
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
    assert (array.count, array.image_size) == (7, (4, 6))
    batches = list(array.batches(batch_size))
    assert np.array_equal(np.concatenate(batches), IMAGES)
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    batches[0] += 1  # torch warns of arrays that must not be written to


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
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "holds moments and no images: give the images themselves"),
        ({"arr_0": IMAGES, "labels": LABELS[:3]}, r"labels are int64 \[3\] for 7 images"),
        ({"arr_0": IMAGES, "labels": np.array([None] * 7)}, "not an .npz"),
        ({"arr_0": np.array([None])}, "object values"),
    ],
)
def test_arrays_that_are_not_images(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=message):
        ImageArray(tmp_path / "x.npz")


@pytest.mark.parametrize("save", [np.savez_compressed, write], ids=["compressed", "ours"])
def test_damaged_pixels(tmp_path, save):
    save(tmp_path / "x.npz", IMAGES)
    whole = bytearray((tmp_path / "x.npz").read_bytes())
    whole[400] ^= 255
    (tmp_path / "x.npz").write_bytes(whole)
    with pytest.raises(InputError, match="truncated or not an"):
        read(tmp_path / "x.npz", 3)


def test_fewer_pixels_than_the_header_says(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive, archive.open("arr_0.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (8, 4, 6, 3)})
        file.write(IMAGES.data)
    with pytest.raises(InputError, match="504 bytes for an array"):
        read(tmp_path / "x.npz", 3)


@pytest.mark.parametrize(
    ("images", "count", "message"),
    [
        (IMAGES, 8, "7 of arr_0 came, but 8 were announced"),
        (IMAGES.swapaxes(1, 2), 7, r"arr_0 of uint8 \[7, 6, 4, 3\], but uint8 \[7, 4, 6, 3\] was announced"),
        (IMAGES / 255, 7, "arr_0 of float64"),
    ],
)
def test_other_images_than_announced_are_not_written(tmp_path, images, count, message):
    with pytest.raises(InputError, match=message):
        write_images(tmp_path / "x.npz", [images], count, (4, 6))
    assert list(tmp_path.iterdir()) == []


# Sets in either format


@pytest.fixture
def pipeline(make_pipeline):
    return make_pipeline("baseline")


@pytest.mark.parametrize("name", ["samples", "samples.npz"])
def test_open(pipeline, tmp_path, name):
    sample_to(pipeline, tmp_path / name, ["owl", 0], 5, seed=3)
    samples = SampleSet.open(tmp_path / name)
    assert (samples.count, samples.image_size) == (5, (8, 12))
    assert samples.labels.tolist() == [3, 0, 3, 0, 3]
    assert samples.manifest.seed == 3
    batches = list(samples.batches(2))
    assert [batch.shape for batch in batches] == [(2, 8, 12, 3), (2, 8, 12, 3), (1, 8, 12, 3)]
    assert np.array_equal(np.concatenate(batches), np.stack(pipeline([3, 0, 3, 0, 3], 3)))
    assert torch.from_numpy(batches[0]).dtype == torch.uint8


def test_open_samples_of_others(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), np.uint8)
    np.savez(tmp_path / "samples.npz", images)
    (tmp_path / "samples").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "samples" / f"{i}.png")
    for name in ("samples", "samples.npz"):
        samples = SampleSet.open(tmp_path / name)
        assert (samples.count, samples.image_size, samples.manifest, samples.labels) == (3, (4, 6), None, None)
        assert np.array_equal(np.concatenate(list(samples.batches(2))), images)


def test_an_image_too_few(pipeline, tmp_path):
    sample_to(pipeline, tmp_path / "samples", num=5)
    (tmp_path / "samples" / "000004-class-0000.png").unlink()
    with pytest.raises(InputError, match=r"holds 4 images of 8 × 12, .*manifest\.json says 5 of 8 × 12"):
        SampleSet.open(tmp_path / "samples")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "holds no PNG images"),
        ([Image.new("RGB", (6, 4)), Image.new("RGB", (4, 6))], "several sizes .*0.png has 4 × 6, 1.png has 6 × 4"),
        ([Image.new("RGBA", (6, 4))], "0.png is a PNG of mode RGBA: convert"),
        ([Image.new("L", (6, 4))], "mode L"),
    ],
)
def test_folders_that_are_refused(tmp_path, images, message):
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    with pytest.raises(InputError, match=message):
        SampleSet.open(tmp_path)


def test_pngs_in_capitals_count_and_other_pictures_are_named(tmp_path):
    for name in ("a.png", "b.PNG"):
        Image.new("RGB", (6, 4)).save(tmp_path / name)
    assert SampleSet.open(tmp_path).count == 2
    Image.new("RGB", (6, 4)).save(tmp_path / "c.jpg")
    with pytest.raises(InputError, match=r"no PNGs \(c\.jpg\): convert"):
        SampleSet.open(tmp_path)


@pytest.mark.parametrize("kept", [0, 20, 60, 200])
def test_a_truncated_png_is_named(tmp_path, kept):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:kept])
    with pytest.raises(InputError, match=r"x\.png cannot be read"):
        list(SampleSet.open(tmp_path).batches(1))


@pytest.mark.parametrize("text", ["3", "[3]", '[{"file": "x.png"}]', '[{"file": "y.png", "label": 0}]', "[]", "{"])
def test_a_list_without_the_labels_is_named(tmp_path, text):
    Image.new("RGB", (6, 4)).save(tmp_path / "x.png")
    (tmp_path / "samples.json").write_text(text)
    with pytest.raises(InputError, match=r"samples\.json"):
        SampleSet.open(tmp_path)
