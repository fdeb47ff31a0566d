"""What is read of images at URLs, and what goes wrong there; what they hold is in `test_layouts`."""

import json
import re
import tarfile
from importlib.util import find_spec

import fsspec
import pytest
from image_files import SIZE, assert_holds, parquet, png, tar

from ctf.errors import InputError
from ctf.images import open_images
from ctf.images.urls import UnreachableError, read_row_group

TARS = {f"{n}.tar": tar([{"png": 4 * n + i, "cls": b"0"} for i in range(4)]) for n in range(6)}

# What is read


def test_a_part_of_tars_reads_its_own_bytes(memory, monkeypatch):
    url, store = memory(TARS), type(fsspec.filesystem("memory"))
    open_images(url, size=SIZE)
    read = []
    cat_file = store.cat_file

    def recorded(self, path, *, start, end):  # by name, since their order is not the same in every file system
        read.append(cat_file(self, path, start, end))
        return read[-1]

    monkeypatch.setattr(store, "cat_file", recorded)
    with monkeypatch.context() as opened:
        opened.setattr(store, "open", None)  # where images are is known, from the cache folder
        images = open_images(url, size=SIZE)
    (batch,) = images.batches(8, range(3, 9))
    assert batch[0].tolist() == list(range(3, 9))
    assert sorted(read) == sorted(png(i) for i in range(3, 9))


def test_a_cache_that_cannot_be_written_costs_no_images(tmp_path, memory, monkeypatch):
    monkeypatch.setenv("CTF_CACHE", str(tmp_path / "0.tar"))
    with pytest.warns(UserWarning, match="the cache at .*/0.tar/tar cannot be written"):
        assert_holds(open_images(memory(TARS), size=SIZE), range(24))


def test_a_tar_that_has_changed_is_looked_through_again(memory):
    for seeds in ([0, 1], [2, 3, 4]):
        assert_holds(open_images(memory({"x.tar": tar([{"png": seed} for seed in seeds])}), size=SIZE), seeds)


def test_processes_look_through_different_tars_first(memory, monkeypatch):
    index = {"names": ["x"], "starts": [0], "ends": [1], "columns": {}, "passed": {}}
    monkeypatch.setattr("ctf.images.urls.CONNECTIONS", 1)
    monkeypatch.setenv("WORLD_SIZE", "3")
    url, orders = memory(TARS), []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        order = []
        monkeypatch.setattr("ctf.images.urls.tar_index", lambda fs, path, order=order: order.append(path) or index)
        open_images(url, size=SIZE)
        orders.append([int(path[-5]) for path in order])
    assert orders == [[0, 3, 1, 4, 2, 5], [1, 4, 2, 5, 0, 3], [2, 5, 0, 3, 1, 4]]


def test_a_part_of_parquet_reads_its_own_row_groups_once(memory, monkeypatch):
    files = {
        f"{n}.parquet": parquet([png(20 * n + i) for i in range(20)], label=[0] * 20, row_group_size=4) for n in (0, 1)
    }
    images, read = open_images(memory(files), size=SIZE), []

    def recorded(group, column):
        read.append((group.path[-9], group.row_groups[0].id))
        return read_row_group(group, column)

    monkeypatch.setattr("ctf.images.urls.read_row_group", recorded)
    assert sum(len(indices) for indices, _, _ in images.batches(3, range(9, 30))) == 21
    assert sorted(read) == [("0", 2), ("0", 3), ("0", 4), ("1", 0), ("1", 1), ("1", 2)]


# What goes wrong


@pytest.mark.parametrize("files", [{"a/0.png": 0}, {"a.parquet": parquet(label=[0, 1])}, TARS])
def test_bytes_that_do_not_come_are_no_corrupt_image(memory, files):
    images = open_images(memory(files), size=SIZE)
    fsspec.filesystem("memory").store.clear()
    with pytest.raises(UnreachableError, match=r"cannot be read \(FileNotFoundError: .*: check the path or URL"):
        list(images.batches(4))
    assert images.skipped == []


def test_a_tar_that_became_shorter(tmp_path):
    (tmp_path / "x.tar").write_bytes(tar([{"png": 0}]))
    images = open_images(f"file://{tmp_path}", size=SIZE)
    (tmp_path / "x.tar").write_bytes(tar([{"png": 0}])[:600])
    with pytest.raises(UnreachableError, match=r"x\.tar .*EOFError: 88 bytes came of the .* of x0000\.png"):
        images.read(0)


def refused(source):
    with pytest.raises(InputError) as raised:
        open_images(source, size=SIZE)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("memory://nowhere", "FileNotFoundError: .*"),
        ("memory://nowhere/x.tar", "FileNotFoundError: .*"),
        ("memory://nowhere/*.parquet", "FileNotFoundError: .*"),
        ("nope://x", "ValueError: Protocol not known: nope"),
        pytest.param(
            "s3://x/y.tar",
            "ImportError: Install s3fs to access S3",
            marks=pytest.mark.skipif(find_spec("s3fs") is not None, reason="the package is installed"),
        ),
    ],
)
def test_nothing_that_can_be_opened(source, reason):
    assert re.match(rf"{re.escape(source)} cannot be read \({reason}\): check the path or URL", refused(source))


def test_a_refusal_of_the_storage(monkeypatch):
    def deny(*_, **__):
        raise PermissionError("Forbidden\nRequestId: 1")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", deny)
    assert "cannot be read (PermissionError: Forbidden): check the path or URL, its credentials" in refused(
        "memory://x"
    )


WHOLE_TAR = tar([{"json": json.dumps({"label": i}).encode(), "png": i} for i in range(3)])


def test_truncated_tar_at_any_length(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(WHOLE_TAR)
    with tarfile.open(path) as archive:
        end = max(member.offset_data + member.size for member in archive)
    for length in [*range(0, end, 100), end]:
        path.write_bytes(WHOLE_TAR[:length])
        assert "x.tar cannot be read (" in refused(f"file://{path}")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (WHOLE_TAR[:1024] + b"\xff" * 512 + WHOLE_TAR[1536:], "truncated or damaged at byte 1024"),  # a header
        (WHOLE_TAR * 2, "or several in one"),
        (tar([{"png": 0, "cls": b"cat"}]), "x.tar cannot be read (ValueError: invalid literal"),
        (tar([{"png": 0, "cls": b"0"}, {"png": 1}]), "row 1 has None in its label column"),
    ],
)
def test_damaged_tar(tmp_path, data, message):
    (tmp_path / "x.tar").write_bytes(data)
    assert message in refused(f"file://{tmp_path}/x.tar")


def test_damaged_parquet(tmp_path):
    path, whole = tmp_path / "a.parquet", parquet(label=[0, 1])
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "a.parquet cannot be read (Arrow" in refused(f"file://{path}")
    path.write_bytes(whole[:4] + b"\xff" * 40 + whole[44:])
    with pytest.raises(UnreachableError, match=r"a\.parquet cannot be read \(OSError"):
        open_images(f"file://{path}", size=SIZE).read(0)
