"""Small images in files of each layout, for tests of what reads them."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIZE = 8


def pixels(seed, height=SIZE, width=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(seed):
    stream = io.BytesIO()
    Image.fromarray(pixels(seed)).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(path, labels, column="label", images=None, **options):
    images = images or [png(i) for i in range(len(labels))]
    rows = [{"image": {"bytes": data, "path": None}, column: label} for data, label in zip(images, labels, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return str(path)


def write_tar(path, examples):
    """`examples`: for each, extension → bytes."""
    with tarfile.open(path, "w") as archive:
        for i, example in enumerate(examples):
            for extension, data in example.items():
                member = tarfile.TarInfo(f"{path.stem}{i:04d}.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def assert_holds(images, seeds):
    assert len(images) == len(seeds)
    for index, seed in enumerate(seeds):
        np.testing.assert_array_equal(images.read(index), pixels(seed))
