"""Images at URLs, in memory and in files: the same as those of a local path, and only those read that are asked for."""

import json
import os
import re
import tarfile
from importlib.util import find_spec

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import SIZE, assert_holds, png, write_parquet, write_tar

from ctf.errors import InputError
from ctf.images import open_images
from ctf.images.urls import UnreachableError, read_row_group


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def folder_of_classes(folder):
    names = ["b/0.png", "b/1.PNG", "a b/2.png", "a/deep/3.png", "a/4.png"]
    write(folder, {name: png(i) for i, name in enumerate(names)} | {"a/notes.txt": b"x", ".hidden/5.png": png(5)})


def flat_folder(folder):
    write(folder, {f"{i}.png": png(i) for i in range(3)})


def splits(folder):
    write(folder, {f"{split}/{name}/{i}.png": png(i) for split in ("train", "test") for i, name in enumerate("ba")})


def parquet(folder):
    for number, split in enumerate(["train", "train", "test"]):
        images = [png(i + number) for i in range(5)]
        write_parquet(folder / f"{split}-{number:05d}.parquet", [2, 0, 1, 2, 1], images=images, row_group_size=2)


def named_parquet(folder):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cat"])})
    rows = [{"image": {"bytes": png(i), "path": None}, "label": i % 2} for i in range(3)]
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "a.parquet")


def parquet_without_labels(folder):
    write_parquet(folder / "a.parquet", ["x", "y"], column="caption")


def tars(folder):
    for number, split in enumerate(["test", "train", "train"]):
        examples = [{"png": png(i + number), "cls": b"%d" % (i % 3), "txt": b"a caption"} for i in range(4)]
        write_tar(folder / f"{split}-{number}.tar", examples)


def tar_with_json(folder):
    write_tar(folder / "x.tar", [{"json": json.dumps({"label": i}).encode(), "png": png(i)} for i in range(3)])


def tar_without_labels(folder):
    write_tar(folder / "x.tar", [{"png": png(i)} for i in range(3)])


LAYOUTS = [
    (folder_of_classes, "", None),
    (flat_folder, "", None),
    (splits, "", "train"),
    (splits, "/test", None),
    (parquet, "", "train"),
    (parquet, "/train-*.parquet", None),
    (parquet, "/train-00001.parquet", None),
    (named_parquet, "", None),
    (parquet_without_labels, "", None),
    (tars, "", "train"),
    (tars, "/*.tar", None),
    (tars, "/test-0.tar", None),
    (tar_with_json, "", None),
    (tar_without_labels, "", None),
]


@pytest.fixture
def memory(tmp_path):
    """Puts a local folder into the file system in memory, and returns its URL."""

    def put(folder):
        for path in folder.rglob("*.*"):
            if path.is_file():
                fsspec.filesystem("memory").pipe_file(str(path), path.read_bytes())
        return f"memory:/{folder}"

    yield put
    fsspec.filesystem("memory").store.clear()


def everything(images):
    return images.labels.tolist(), images.class_names, [images.read(i).tolist() for i in range(len(images))]


@pytest.mark.parametrize(("layout", "place", "split"), LAYOUTS)
def test_a_url_holds_what_the_path_holds(tmp_path, memory, layout, place, split):
    layout(tmp_path)
    local = everything(open_images(f"{tmp_path}{place}", split, SIZE))
    assert everything(open_images(f"file://{tmp_path}{place}", split, SIZE)) == local
    assert everything(open_images(f"{memory(tmp_path)}{place}", split, SIZE)) == local


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize(("layout", "place", "split"), [LAYOUTS[i] for i in (0, 2, 4, 10)])
def test_a_fingerprint_changes_with_the_files(tmp_path, scheme, layout, place, split):
    def fingerprint():
        return open_images(f"{scheme}{tmp_path}{place}", split, SIZE).fingerprint()

    def touch(pattern):
        for path in tmp_path.rglob(pattern):
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 1000))

    layout(tmp_path)
    before = fingerprint()
    if layout is splits:
        touch("test/*/*")  # the other split
    assert fingerprint() == before
    touch("*.*")
    changed = fingerprint()
    assert changed != before
    path = max(path for path in tmp_path.rglob("*.*") if path.suffix != ".txt")
    path.write_bytes(path.read_bytes() + bytes(tarfile.RECORDSIZE) if layout is tars else b"")
    if layout is parquet:
        write_parquet(path, [2, 0, 1])
    assert fingerprint() not in (before, changed)


def test_held_out_images_of_a_url(tmp_path, memory):
    write(tmp_path, {f"{i:02}.png": png(i) for i in range(21)})
    assert_holds(open_images(memory(tmp_path), "held-out", SIZE), [9, 19])


@pytest.mark.parametrize("layout", [folder_of_classes, parquet, tars])
def test_corrupt_images_are_left_out_and_named(tmp_path, memory, layout):
    if layout is tars:
        write_tar(tmp_path / "x.tar", [{"png": data, "cls": b"0"} for data in (png(0), b"damaged", png(2))])
    elif layout is parquet:
        write_parquet(tmp_path / "a.parquet", [0, 1, 2], images=[png(0), b"damaged", png(2)])
    else:
        write(tmp_path, {"a/0.png": png(0), "a/1.png": b"damaged", "b/2.png": png(2)})
    local, remote = open_images(str(tmp_path), size=SIZE), open_images(memory(tmp_path), size=SIZE)
    assert [indices.tolist() for indices, _, _ in remote.batches(8)] == [[0, 2]]
    list(local.batches(8))
    assert remote.skipped == local.skipped


# What is read


def test_a_part_of_tars_reads_its_own_bytes(tmp_path, memory, monkeypatch):
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", [{"png": png(4 * number + i), "cls": b"0"} for i in range(4)])
    url, store = memory(tmp_path), type(fsspec.filesystem("memory"))
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
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", [{"png": png(number)}])
    monkeypatch.setenv("CTF_CACHE", str(tmp_path / "0.tar"))
    with pytest.warns(UserWarning, match="the cache at .*/0.tar/tar cannot be written"):
        assert_holds(open_images(memory(tmp_path), size=SIZE), [0, 1, 2])


def test_a_tar_that_has_changed_is_looked_through_again(tmp_path, memory):
    for seeds in ([0, 1], [2, 3, 4]):
        write_tar(tmp_path / "x.tar", [{"png": png(seed)} for seed in seeds])
        assert_holds(open_images(memory(tmp_path), size=SIZE), seeds)


def test_processes_look_through_different_tars_first(tmp_path, memory, monkeypatch):
    for number in range(6):
        write_tar(tmp_path / f"{number}.tar", [{"png": png(number)}])
    monkeypatch.setattr("ctf.images.urls.CONNECTIONS", 1)
    monkeypatch.setenv("WORLD_SIZE", "3")
    url, orders = memory(tmp_path), []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        order = []
        monkeypatch.setattr("ctf.images.urls.tar_index", lambda fs, path, order=order: order.append(path) or INDEX)
        open_images(url, size=SIZE)
        orders.append([int(path[-5]) for path in order])
    assert orders == [[0, 3, 1, 4, 2, 5], [1, 4, 2, 5, 0, 3], [2, 5, 0, 3, 1, 4]]


INDEX = {"names": ["x"], "starts": [0], "ends": [1], "columns": {}}


def test_a_part_of_parquet_reads_its_own_row_groups_once(tmp_path, memory, monkeypatch):
    for number in range(2):
        images = [png(20 * number + i) for i in range(20)]
        write_parquet(tmp_path / f"{number}.parquet", [0] * 20, images=images, row_group_size=4)
    images, read = open_images(memory(tmp_path), size=SIZE), []

    def recorded(group, column):
        read.append((group.path[-9], group.row_groups[0].id))
        return read_row_group(group, column)

    monkeypatch.setattr("ctf.images.urls.read_row_group", recorded)
    assert sum(len(indices) for indices, _, _ in images.batches(3, range(9, 30))) == 21
    assert sorted(read) == [("0", 2), ("0", 3), ("0", 4), ("1", 0), ("1", 1), ("1", 2)]


# What goes wrong


@pytest.mark.parametrize("layout", [folder_of_classes, parquet, tars])
def test_bytes_that_do_not_come_are_no_corrupt_image(tmp_path, memory, layout):
    layout(tmp_path)
    images = open_images(memory(tmp_path), size=SIZE)
    fsspec.filesystem("memory").store.clear()
    with pytest.raises(UnreachableError, match=r"cannot be read \(FileNotFoundError: .*: check the URL"):
        list(images.batches(4))
    assert images.skipped == []


def test_a_tar_that_became_shorter(tmp_path):
    tar_without_labels(tmp_path)
    images = open_images(f"file://{tmp_path}", size=SIZE)
    (tmp_path / "x.tar").write_bytes((tmp_path / "x.tar").read_bytes()[:600])
    with pytest.raises(UnreachableError, match=r"x\.tar .*EOFError: 88 bytes came of the .* of x0000\.png"):
        images.read(0)


def refused(source, split=None):
    with pytest.raises(InputError) as raised:
        open_images(source, split, SIZE)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("source", ["memory://nowhere", "memory://nowhere/x.tar", "memory://nowhere/*.parquet"])
def test_nothing_there(source):
    assert re.match(re.escape(source) + r" cannot be read \(FileNotFoundError: .*check the URL", refused(source))


def test_storage_that_is_not_known():
    assert "nope://x cannot be read (ValueError: Protocol not known: nope): check" in refused("nope://x")


@pytest.mark.skipif(find_spec("s3fs") is not None, reason="the package is installed")
def test_a_missing_package_is_named():
    assert "s3://x/y.tar cannot be read (ImportError: Install s3fs to access S3): check" in refused("s3://x/y.tar")


def test_a_refusal_of_the_storage(monkeypatch):
    def deny(*_, **__):
        raise PermissionError("Forbidden\nRequestId: 1")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", deny)
    assert "cannot be read (PermissionError: Forbidden): check the URL, its credentials" in refused("memory://x")


def test_splits_and_classes(tmp_path, memory):
    splits(tmp_path / "pictures")
    (tmp_path / "shards").mkdir()
    tars(tmp_path / "shards")
    assert "holds splits, not classes: choose one of test, train" in refused(f"{memory(tmp_path)}/pictures")
    assert "has no split 'val': it has test, train" in refused(f"{memory(tmp_path)}/pictures", "val")
    assert "has no split 'val': it has test, train" in refused(f"{memory(tmp_path)}/shards", "val")
    write(tmp_path / "mixed", {"0.png": png(0), "a/1.png": png(1)})
    assert "both images and sub-folders: move the images (0.png, …)" in refused(f"{memory(tmp_path)}/mixed")
    write(tmp_path / "texts", {"a/notes.txt": b"x"})
    assert "holds no images" in refused(f"{memory(tmp_path)}/texts")


def test_truncated_tar_at_any_length(tmp_path):
    tar_with_json(tmp_path)
    path = tmp_path / "x.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        end = max(member.offset_data + member.size for member in archive)
    for length in [*range(0, end, 100), end]:
        path.write_bytes(whole[:length])
        assert "x.tar cannot be read (" in refused(f"file://{path}")


def test_damaged_shards(tmp_path):
    tar_with_json(tmp_path)
    whole = bytearray((tmp_path / "x.tar").read_bytes())
    whole[1024:1536] = b"\xff" * 512  # a header
    (tmp_path / "x.tar").write_bytes(whole)
    assert "truncated or damaged at byte 1024" in refused(f"file://{tmp_path}/x.tar")
    write_tar(tmp_path / "y.tar", [{"png": png(0), "cls": b"cat"}])
    assert "y.tar cannot be read (ValueError: invalid literal" in refused(f"file://{tmp_path}/y.tar")
    write_tar(tmp_path / "z.tar", [{"png": png(0), "cls": b"0"}, {"png": png(1)}])
    assert "row 1 has None in its label column" in refused(f"file://{tmp_path}/z.tar")


def test_truncated_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, [0, 1])
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "a.parquet cannot be read (Arrow" in refused(f"file://{path}")
    path.write_bytes(whole[:4] + b"\xff" * 40 + whole[44:])
    with pytest.raises(UnreachableError, match=r"a\.parquet cannot be read \(OSError"):
        open_images(f"file://{path}", size=SIZE).read(0)


def test_parquet_without_images(tmp_path):
    pq.write_table(pa.table({"picture": ["x"], "label": [0]}), tmp_path / "a.parquet")
    assert "has columns picture, label: name the one that holds the images 'image'" in refused(f"file://{tmp_path}")
