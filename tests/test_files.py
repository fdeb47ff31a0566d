import json
import os
import resource
import stat
from dataclasses import dataclass

import pytest
import torch

from ctf.errors import InputError
from ctf.files import (
    atomic_path,
    existing,
    load_module,
    load_tensors,
    read_json,
    read_json_lines,
    read_metadata,
    save_module,
    save_tensors,
    temporary_folder,
    write_json,
    write_text,
)


@dataclass
class Config:
    width: int


@pytest.mark.parametrize("place", ["missing", "file"])
def test_an_unusable_temporary_folder_is_named(tmp_path, monkeypatch, place):
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / place))
    with (
        pytest.raises(InputError, match=f"no temporary folder can be made in .*{place} .*set TMPDIR"),
        temporary_folder(),
    ):
        pass
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: [str(tmp_path / place)])
    with (
        pytest.raises(InputError, match=f"No usable temporary directory found in .*{place}.*set TMPDIR"),
        temporary_folder(),
    ):
        pass


def fail_halfway(path, write):
    def write_and_stop():
        with atomic_path(path) as temporary:
            write(temporary)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_stop()


def write_folder(folder, text):
    folder.mkdir()
    (folder / "file").write_text(text)


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "deep" / "file"
    fail_halfway(path, lambda temporary: temporary.write_text("half"))
    assert list(tmp_path.iterdir()) == []
    write_text(path, "old")
    fail_halfway(path, lambda temporary: temporary.write_text("half"))
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
    write_text(path, "new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_folder_alone(tmp_path):
    path = tmp_path / "folder"
    with atomic_path(path) as temporary:
        write_folder(temporary, "old")
    fail_halfway(path, lambda temporary: write_folder(temporary, "half"))
    assert (path / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_path(path) as temporary:
        write_folder(temporary, "new")
    assert (path / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_folder_returns_if_the_new_one_cannot_be_renamed(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    write_folder(path, "old")
    replace, moved = os.replace, []

    def fail_second(source, target):
        moved.append(source)
        if len(moved) == 2:
            raise OSError("cannot rename")
        replace(source, target)

    def write_new():
        with atomic_path(path) as temporary:
            write_folder(temporary, "new")

    monkeypatch.setattr(os, "replace", fail_second)
    with pytest.raises(InputError, match="cannot be written \\(cannot rename\\)"):
        write_new()
    assert (path / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_written_readably_and_read_back(tmp_path):
    value = {"a": [1, 2.5, None], "ü": "π"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert "π" in (tmp_path / "x.json").read_text(encoding="utf-8")


def test_a_line_of_json_ends_where_it_ends(tmp_path):
    """Unicode has more line ends than JSON lines; a last line without its end was cut off by a kill."""
    lines = [{"text": "a\u2028b\u0085c"}, {"n": 1}]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (tmp_path / "x.jsonl").write_text(text + '{"n": 2', encoding="utf-8")
    assert read_json_lines(tmp_path / "x.jsonl") == lines


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="nothing: no such file or folder"):
        read_json(tmp_path / "nothing")
    with pytest.raises(InputError, match="nothing: no such token set"):
        existing(tmp_path / "nothing", "token set")
    with pytest.raises(InputError, match="is not valid JSON"):
        read_json(tmp_path)
    with pytest.raises(InputError, match="no such safetensors file"):
        load_tensors(tmp_path / "nothing")
    with pytest.raises(InputError, match="is a folder: give the safetensors file"):
        load_tensors(tmp_path)


def test_tensors_and_metadata_are_read_back(tmp_path):
    tensors = {
        "t": torch.randn(3, 4).T,
        "half": torch.randn(2).half(),
        "empty": torch.zeros(0, 2),
        "n": torch.tensor(7),
    }
    path = tmp_path / "x.safetensors"
    save_tensors(path, tensors, {"kind": "test"})
    loaded, metadata = load_tensors(path)
    assert metadata == read_metadata(path) == {"kind": "test"}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_full_disk_leaves_the_old_tensors(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.zeros(1)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(InputError, match=r"x\.safetensors cannot be written \(.*\): free some space"):
            save_tensors(path, {"a": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [path]
    assert load_tensors(path)[0]["a"].tolist() == [0]


def test_modules_are_read_back_and_other_files_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    module = torch.nn.Linear(3, 3)
    save_module(path, module, "linear", Config(3), dtype=torch.float16)

    def build(config):
        return torch.nn.Linear(config["width"], config["width"])

    loaded = load_module(path, "linear", build)
    assert torch.equal(loaded.weight, module.weight.half().float())
    assert not loaded.training
    with pytest.raises(InputError, match=r"is not a ctf tokenizer \(it says 'linear'\)"):
        load_module(path, "tokenizer", build)
    with pytest.raises(InputError, match="cannot read this linear") as error:
        load_module(path, "linear", lambda config: torch.nn.Linear(2, 2))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_a_link_leads_to_is_written(tmp_path, is_folder):
    (tmp_path / "disk").mkdir()
    place, link = tmp_path / "disk" / "it", tmp_path / "link"
    link.symlink_to(place)
    if is_folder:
        place.mkdir()
    with atomic_path(link) as temporary:
        if is_folder:
            temporary.mkdir()
        (temporary / "new" if is_folder else temporary).write_text("new")
    assert link.is_symlink()
    assert (place / "new" if is_folder else place).read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["disk", "link"]
    assert os.listdir(tmp_path / "disk") == ["it"]
