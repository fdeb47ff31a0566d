import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from image_files import SIZE, assert_holds, empty_png, image_bytes, parquet, pixels, png, png_of, write
from PIL import Image

from ctf.errors import InputError
from ctf.images import open_images
from ctf.images.image_set import decode, every_tenth
from ctf.images.urls import UnreachableError

SHADES = np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE)
RAMP = np.linspace(0, 1, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)


def test_held_out_is_every_tenth_image_of_a_class(tmp_path):
    names = [f"{label}/{i:02}.png" for label, count in enumerate([25, 9, 10]) for i in range(count)]
    write(tmp_path, {name: seed for seed, name in enumerate(names)})
    tenths = [place for place, name in enumerate(names) if name[-6:-4] in ("09", "19")]
    others = [place for place in range(len(names)) if place not in tenths]
    for split, places in ("held-out", tenths), ("not-held-out", others):
        part = open_images(str(tmp_path), split, SIZE)
        assert part.class_names == ["0", "1", "2"]
        assert part.labels.tolist() == [int(names[place][0]) for place in places]
        assert_holds(part, places)


def test_held_out_of_classes_in_no_order():
    labels = np.random.default_rng(0).integers(0, 5, 400)
    expected = [np.sum(labels[:i] == label) % 10 == 9 for i, label in enumerate(labels)]
    np.testing.assert_array_equal(every_tenth(labels), expected)


def test_transparency_becomes_white():
    clear = np.zeros((SIZE, SIZE, 4), dtype=np.uint8)
    clear[0, :2] = (10, 20, 30, 255), (0, 0, 0, 51)
    assert decode(image_bytes(clear), SIZE)[0, :3].tolist() == [[10, 20, 30], [204] * 3, [255] * 3]
    palette = Image.fromarray(np.full((SIZE, SIZE), 1, dtype=np.uint8)).convert("P")
    assert (decode(image_bytes(np.asarray(palette), transparency=1), SIZE) == 255).all()


@pytest.mark.parametrize(
    ("values", "ending", "expected"),
    [
        (np.full((SIZE, SIZE), 7, np.uint8), "PNG", 7),
        (SHADES * 1000, "PNG", SHADES * 1000 // 256),  # 16 bits: the upper byte
        (RAMP, "TIFF", np.round(RAMP * 255)),
        (np.zeros((SIZE, SIZE), np.uint16), "TIFF", 0),
        (np.zeros((SIZE, SIZE), np.int32), "TIFF", 0),
    ],
)
def test_grey(values, ending, expected):
    expected = np.broadcast_to(expected, (SIZE, SIZE))
    np.testing.assert_array_equal(decode(image_bytes(values, ending), SIZE), np.stack([expected] * 3, -1))


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
    write(tmp_path, {"0.tif": image_bytes(values, "TIFF"), "1.tif": image_bytes(RAMP, "TIFF")})
    images = open_images(str(tmp_path), size=SIZE)
    with pytest.warns(UserWarning, match="grey images whose range is not known are left out: convert them to 8 bits"):
        assert [indices.tolist() for indices, _, _ in images.batches(2)] == [[1]]
    assert images.skipped == ["0.tif"]
    with pytest.raises(InputError, match=message), pytest.warns(match="left out"):
        images.read(0)


@pytest.mark.parametrize(("colour", "clear"), [(0, [30000]), (2, [30000, 40000, 50000])])
def test_a_transparent_shade_of_16_bits(colour, clear):
    """A 16-bit PNG, grey or of colours, whose tRNS chunk makes one shade transparent."""
    values = np.full((SIZE, SIZE, len(clear)), 20000, ">u2")
    values[0, 0] = clear
    scanlines = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 16, colour, 0, 0, 0)
    shade = np.array(clear, ">u2").tobytes()
    data = png_of((b"IHDR", header), (b"tRNS", shade), (b"IDAT", zlib.compress(scanlines)), (b"IEND", b""))
    image = decode(data, SIZE)
    assert image[0, 0].tolist() == [255] * 3
    assert (image[1:] == 20000 >> 8).all()


def test_size_is_the_crop(tmp_path):
    write(tmp_path, {"0.png": image_bytes(pixels(0, 10, 16))})
    images = open_images(str(tmp_path), size=10)
    np.testing.assert_array_equal(images.read(0), pixels(0, 10, 16)[:, 3:13])
    assert images.read(0, size=13).shape == (13, 13, 3)
    shrunk = next(images.batches(1, crop=lambda image, size: image.resize((size // 2, size))))[1]
    assert shrunk.shape == (1, 10, 5, 3)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_batches_are_everything_in_order(tmp_path, batch_size):
    write(tmp_path, {"a.parquet": parquet(label=range(20))})
    images = open_images(f"{tmp_path}/a.parquet", size=SIZE)
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
    write(tmp_path, {f"{i}.png": damage(png(i)) if i in (2, 3, 4, 8) else i for i in range(9)})
    images = open_images(str(tmp_path), size=SIZE)
    assert images.report_skipped() == ""
    for _ in range(2):  # a second pass counts none of them again
        batches = list(images.batches(2))
        assert [indices.tolist() for indices, _, _ in batches] == [[0, 1], [5], [6, 7]]
        assert images.skipped == ["2.png", "3.png", "4.png", "8.png"]
    assert images.report_skipped() == "Left out 4 of 9 images as unreadable: 2.png, 3.png, 4.png, 8.png"
    with pytest.raises(InputError, match=r"3\.png is not a readable image"):
        images.read(3)


@pytest.mark.filterwarnings("ignore:Image size")  # as `ctf.images` does; pytest puts its own filters in their place
@pytest.mark.parametrize("size", [(60_000, 60_000), (10_000, 10_000), (1, 101), (101, 1)])
def test_an_image_too_large_to_decode_is_left_out_like_any_other(tmp_path, size):
    """Of 3.6 billion pixels, which Pillow refuses; of 100 million, of which it warns; and of a hair's width."""
    write(tmp_path, {"0.png": 0, "1.png": empty_png(*size)})
    images = open_images(str(tmp_path), size=SIZE)
    assert [indices.tolist() for indices, _, _ in images.batches(2)] == [[0]]
    assert images.report_skipped() == "Left out 1 of 2 images as unreadable: 1.png"
    with pytest.raises(InputError, match=r"1\.png is not a readable image .*pixels"):
        images.read(1)


def test_no_image_makes_the_command_warn(tmp_path):
    write(tmp_path / "images", {"0.png": 0, "1.png": empty_png(10_000, 10_000), "2.png": empty_png(60_000, 60_000)})
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


@pytest.mark.parametrize(("bits", "shade"), [(2, 2), (4, 5)])
def test_a_transparent_shade_of_a_few_bits(bits, shade):
    """Pillow scales the pixels to 8 bits, but not the shade."""
    row = np.array([shade, 0] * (SIZE // 2), np.uint8).reshape(-1, 8 // bits)
    packed = b"\0" + bytes(int("".join(f"{value:0{bits}b}" for value in values), 2) for values in row)
    header = struct.pack(">IIBBBBB", SIZE, SIZE, bits, 0, 0, 0, 0)
    data = zlib.compress(packed * SIZE)
    encoded = png_of((b"IHDR", header), (b"tRNS", struct.pack(">H", shade)), (b"IDAT", data), (b"IEND", b""))
    assert decode(encoded, SIZE)[0, :, 0].tolist() == [255, 0] * (SIZE // 2)


def test_a_disk_that_is_gone_is_no_damage(tmp_path):
    """One file that is gone is left out; where all are, the run ends."""
    write(tmp_path / "photos", {f"{i}.png": i for i in range(3)})
    images = open_images(str(tmp_path / "photos"), size=SIZE)
    (tmp_path / "photos" / "1.png").unlink()
    assert [indices.tolist() for indices, _, _ in images.batches(3)] == [[0, 2]]
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    with pytest.raises(UnreachableError, match=r"photos/0\.png cannot be read \(No such file .*: is its disk there"):
        list(images.batches(3))
