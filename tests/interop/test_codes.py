import os

import numpy as np
import pytest
import torch
from code_files import write_codes
from same import contents

from ctf.cli import main
from ctf.codebook import lfq_codebook
from ctf.errors import InputError
from ctf.fingerprint import fingerprint
from ctf.interop import export_codes, import_codes
from ctf.layout import Layout
from ctf.tokens import TokenSet
from ctf.tokens.writer import write_token_set

SETTINGS = {"size": 64, "codebook_size": 32, "num_classes": 10, "progress": False}


def make_codes(folder, count=12, augmentations=2, seed=0):
    """A folder of random codes of 2 × 2 tokens; returns them, [n, A, N]."""
    codes = np.random.default_rng(seed).integers(0, 32, (count, augmentations, 4))
    write_codes(folder, codes, np.arange(count) * 7 % 10, size=64)
    return codes


def test_a_thousand_files_come_back_byte_for_byte(tmp_path):
    codes = make_codes(tmp_path / "in", count=1000)
    token_set = import_codes(tmp_path / "in", tmp_path / "set", **SETTINGS, shard_size=300)
    assert token_set.augmentations == ["none", "flip"]
    assert token_set.layout == Layout.square(2)
    assert token_set.num_classes == 10
    assert np.array_equal(torch.cat(list(token_set.blocks())).numpy(), codes)  # 10.npy is image 10, not image 2
    assert np.array_equal(token_set.labels, np.arange(1000) * 7 % 10)
    export_codes(token_set, tmp_path / "out", progress=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "in")


def test_the_second_crop_range_follows_the_first(tmp_path):
    first = make_codes(tmp_path / "ten_crop", augmentations=10)
    second = make_codes(tmp_path / "ten_crop_105", augmentations=10, seed=1)
    token_set = import_codes(tmp_path / "ten_crop", tmp_path / "set", **SETTINGS, second=tmp_path / "ten_crop_105")
    assert token_set.augmentations[0] == "1.1/top-left"
    assert token_set.augmentations[19] == "1.05/center/flip"
    assert np.array_equal(torch.cat(list(token_set.blocks())).numpy(), np.concatenate([first, second], axis=1))
    export_codes(token_set, tmp_path / "a", second=tmp_path / "b", progress=False)
    assert contents(tmp_path / "a") == contents(tmp_path / "ten_crop")
    assert contents(tmp_path / "b") == contents(tmp_path / "ten_crop_105")


def test_codes_of_another_folder_are_another_set(tmp_path):
    for name in "one", "other":
        make_codes(tmp_path / name)
    import_codes(tmp_path / "one", tmp_path / "set", **SETTINGS)
    import_codes(tmp_path / "one", tmp_path / "set", **SETTINGS)  # left as it is
    with pytest.raises(InputError, match="holds tokens of LlamaGen codes as it was"):
        import_codes(tmp_path / "other", tmp_path / "set", **SETTINGS)


def test_count_leaves_out_the_padding_and_the_codebook_is_remembered(tmp_path):
    codes = make_codes(tmp_path / "in")
    codebook = torch.arange(64.0).view(32, 2)
    token_set = import_codes(tmp_path / "in", tmp_path / "set", **SETTINGS, count=10, codebook=codebook)
    assert token_set.fingerprint_of_codebook == fingerprint(codebook)
    assert np.array_equal(torch.cat(list(token_set.blocks())).numpy(), codes[:10])


def test_an_interrupted_import_continues(tmp_path):
    codes = make_codes(tmp_path / "in")
    damaged = tmp_path / "in" / "imagenet64_codes" / "9.npy"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:50])
    with pytest.raises(InputError, match=r"9\.npy is truncated"):
        import_codes(tmp_path / "in", tmp_path / "set", **SETTINGS, shard_size=4)
    damaged.write_bytes(whole)
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("tokens-*.npy")}
    assert len(shards) == 2
    token_set = import_codes(tmp_path / "in", tmp_path / "set", **SETTINGS, shard_size=4)
    assert np.array_equal(torch.cat(list(token_set.blocks())).numpy(), codes)
    assert all(path.stat().st_mtime_ns == written for path, written in shards.items())


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "interrupted"])
def test_codes_that_changed_since_they_were_read_are_named(tmp_path, finished):
    make_codes(tmp_path / "in")
    last = tmp_path / "in" / "imagenet64_codes" / "11.npy"
    whole = last.read_bytes()
    if not finished:
        last.write_bytes(whole[:50])
        with pytest.raises(InputError, match=r"11\.npy is truncated"):
            import_codes(tmp_path / "in", tmp_path / "set", **SETTINGS, shard_size=4)
        last.write_bytes(whole)
    else:
        import_codes(tmp_path / "in", tmp_path / "set", **SETTINGS, shard_size=4)
    changed = tmp_path / "in" / "imagenet64_codes" / "5.npy"
    np.save(changed, np.zeros_like(np.load(changed)))
    now = last.stat().st_mtime_ns + 10**9  # a clock may be too coarse to tell
    os.utime(changed, ns=(now, now))
    with pytest.raises(InputError, match=r"5\.npy has changed since .*set was written"):
        import_codes(tmp_path / "in", tmp_path / "set", **SETTINGS, shard_size=4)


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        ("codes/5", None, r"imagenet64_codes lacks 5\.npy \(1 of 12 missing\)"),
        ("labels/11", None, r"imagenet64_labels lacks 11\.npy \(1 of 12 missing\)"),
        ("codes/0", np.zeros((2, 4), int), r"0\.npy has the shape \[2, 4\].*\[1, A, N\]"),
        ("codes/5", np.zeros((1, 10, 4), int), r"5\.npy holds int64 \[1, 10, 4\], expected integers \[1, 2, 4\]"),
        ("codes/5", np.zeros((1, 2, 4)), r"5\.npy holds float64 \[1, 2, 4\], expected integers"),
        ("codes/5", np.full((1, 2, 4), 32), r"5\.npy range from 32 to 32: the codebook size is 32"),
        ("codes/5", np.full((1, 2, 4), -1), r"5\.npy range from -1"),
        ("labels/5", np.array([10]), r"5\.npy range from 10 to 10: the number of classes is 10"),
        ("labels/5", np.array(3), r"5\.npy holds int64 \[\], expected integers \[1\]"),
    ],
)
def test_import_refuses(tmp_path, file, array, message):
    make_codes(tmp_path / "in")
    path = tmp_path / "in" / f"imagenet64_{file}.npy"
    path.unlink()
    if array is not None:
        np.save(path, array)
    with pytest.raises(InputError, match=message) as error:
        import_codes(tmp_path / "in", tmp_path / "set", **SETTINGS)
    assert "\n" not in str(error.value)


def test_import_refuses_sets_of_other_images_or_sizes(tmp_path):
    make_codes(tmp_path / "a")
    make_codes(tmp_path / "b")
    np.save(tmp_path / "b" / "imagenet64_labels" / "3.npy", np.array([9]))
    with pytest.raises(InputError, match=r"3\.npy has label 9, .*3\.npy has 1"):
        import_codes(tmp_path / "a", tmp_path / "set", **SETTINGS, second=tmp_path / "b")
    with pytest.raises(InputError, match="imagenet384_codes: no such folder"):
        import_codes(tmp_path / "a", tmp_path / "set", **{**SETTINGS, "size": 384})


def test_import_refuses_another_codebook_and_one_folder_twice(tmp_path):
    make_codes(tmp_path / "in")
    with pytest.raises(InputError, match="a codebook of 16 for a codebook size of 32: give the tokens' own"):
        import_codes(tmp_path / "in", tmp_path / "set", **SETTINGS, codebook=torch.zeros(16, 4))
    with pytest.raises(InputError, match="in is given twice: name another second folder"):
        import_codes(tmp_path / "in", tmp_path / "set", **SETTINGS, second=tmp_path / "x" / ".." / "in")
    assert not (tmp_path / "set").exists()


def test_export_refuses(tmp_path):
    make_codes(tmp_path / "in", augmentations=3)
    token_set = import_codes(tmp_path / "in", tmp_path / "set", **SETTINGS)
    with pytest.raises(InputError, match="a is given twice"):
        export_codes(token_set, tmp_path / "a", second=tmp_path / "a")
    with pytest.raises(InputError, match="3 augmentations cannot be halved"):
        export_codes(token_set, tmp_path / "a", second=tmp_path / "b")
    with pytest.raises(InputError, match="already exists"):
        export_codes(token_set, tmp_path / "in")
    wide = write_token_set(tmp_path / "wide", np.zeros((2, 36), int), np.zeros(2, int), 8, Layout((4, 9)))
    with pytest.raises(InputError, match=r"wide holds 4 × 9: LlamaGen's codes are those of one square"):
        export_codes(wide, tmp_path / "b", 64)


def test_the_command_takes_tokens_from_elsewhere(tmp_path, capsys):
    tokens = np.random.default_rng(0).integers(0, 64, (5, 3, 4))
    np.save(tmp_path / "tokens.npy", tokens)
    np.save(tmp_path / "labels.npy", np.array([0, 2, 1, 2, 0]))
    line = ["convert", "tokens", "--tokens", str(tmp_path / "tokens.npy"), "--labels", str(tmp_path / "labels.npy")]
    assert main([*line, "--codebook_size", "64", "--codebook", "lfq:6", "--out", str(tmp_path / "set")]) == 0
    stored = TokenSet.open(tmp_path / "set")
    assert torch.equal(next(stored.blocks()), torch.from_numpy(tokens))
    assert stored.labels.tolist() == [0, 2, 1, 2, 0]
    stored.check_codebook(lfq_codebook(6))
    with pytest.raises(InputError, match="another codebook"):
        stored.check_codebook(lfq_codebook(6).flip(0))
    capsys.readouterr()
    assert main([*line, "--codebook_size", "63", "--out", str(tmp_path / "other")]) == 2
    assert "codebook size is 63" in capsys.readouterr().err
