"""Small images in files of each layout, for tests of what reads them."""

import io
import struct
import tarfile
import zlib

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIZE = 8


def pixels(seed, height=SIZE, width=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def image_bytes(values, ending="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, ending, **options)
    return stream.getvalue()


def png(seed):
    return image_bytes(pixels(seed))


def png_of(*chunks):
    """A PNG of these chunks: name, bytes."""
    parts = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def empty_png(width, height):
    """A PNG that claims a size and holds a single byte of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png_of((b"IHDR", header), (b"IDAT", zlib.compress(b"0")), (b"IEND", b""))


def parquet(images=None, image="image", row_group_size=None, features=None, **columns):
    """Parquet of images, by default of seeds from 0 on, and `columns`, with `features` as `datasets` has them."""
    count = len(next(iter(columns.values())))
    rows = {image: [{"bytes": data, "path": None} for data in images or map(png, range(count))], **columns}
    stream = io.BytesIO()
    if features:
        features = datasets.Features({image: datasets.Image(), **features})
        datasets.Dataset.from_dict(rows, features=features).to_parquet(stream)
    else:
        pq.write_table(pa.table(rows), stream, row_group_size)
    return stream.getvalue()


def tar(examples, stem="x"):
    """A .tar file of `examples`: for each, extension → bytes, or the seed of an image."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for i, example in enumerate(examples):
            for extension, data in example.items():
                data = data if isinstance(data, bytes) else png(data)
                member = tarfile.TarInfo(f"{stem}{i:04d}.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def write(folder, files):
    """`files`: name → bytes, or the seed of an image."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data if isinstance(data, bytes) else png(data))


def assert_holds(images, seeds):
    assert len(images) == len(seeds)
    for index, seed in enumerate(seeds):
        np.testing.assert_array_equal(images.read(index), pixels(seed))
