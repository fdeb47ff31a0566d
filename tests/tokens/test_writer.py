from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from same import contents

from ctf.errors import InputError
from ctf.layout import Layout
from ctf.tokens import TokenIndex, TokenSet, TokenWriter, write_token_set


def settings(**changes) -> TokenIndex:
    values = {"codebook_size": 16, "layout": Layout.square(2), "augmentations": ["none"], "class_names": ["a", "b"]}
    return TokenIndex(**(values | {"shard_size": 4, "inputs": 18} | changes))


def shards() -> list[tuple[np.ndarray, np.ndarray, list[str]]]:
    """18 inputs in shards of 4, 7 of them unreadable."""
    rng = np.random.default_rng(0)
    shards = [(3, ["x"]), (4, []), (0, ["y", "z", "u", "v"]), (2, ["w", "t"]), (2, [])]
    return [(rng.integers(16, size=(n, 1, 4)), rng.integers(2, size=n), skipped) for n, skipped in shards]


def write(folder: Path, numbers: Sequence[int] = range(5)) -> TokenWriter:
    """Write these shards, and do not close."""
    writer = TokenWriter(folder, settings())
    for number in numbers:
        writer.add(number, *shards()[number])
    return writer


def test_written_tokens_are_read_back(tmp_path):
    tokens, labels, _ = zip(*shards(), strict=True)
    found = write(tmp_path).close()
    assert torch.cat(list(found.blocks())).tolist() == np.concatenate(tokens).tolist()
    assert found.labels.tolist() == np.concatenate(labels).tolist()
    assert found.index.skipped == ["x", "y", "z", "u", "v", "w", "t"]
    assert [shard["stem"] for shard in found.index.shards] == ["00000", "00001", "00003", "00004"]


@pytest.mark.parametrize("first", [[], [0], [4, 2], [3, 1, 0], [0, 1, 2, 3, 4]])
def test_resumed_is_uninterrupted(tmp_path, first):
    write(tmp_path / "whole").close()
    write(tmp_path / "parts", first)
    missing = TokenWriter(tmp_path / "parts", settings()).missing()
    assert missing == [number for number in range(5) if number not in first]
    write(tmp_path / "parts", missing).close()
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_each_process_has_its_own_shards(tmp_path):
    writer = write(tmp_path, [1])
    assert [writer.missing(rank, 3) for rank in range(3)] == [[0, 3], [4], [2]]
    write(tmp_path, [0, 2, 3, 4]).close()
    assert [writer.missing(rank, 3) for rank in range(3)] == [[], [], []]


def test_a_set_lacks_shards(tmp_path):
    with pytest.raises(InputError, match="has 3 of 5 shards: write the others first"):
        write(tmp_path, [0, 2, 4]).close()
    with pytest.raises(InputError, match=r"incomplete \(3 shards so far\): run the command"):
        TokenSet.open(tmp_path)


@pytest.mark.parametrize("name", ["shard-00001.json", "tokens-00001.npy", "labels-00001.npy"])
@pytest.mark.parametrize("length", [0, 20, -1])
def test_a_truncated_shard_is_missing(tmp_path, name, length):
    """As after a power cut."""
    write(tmp_path / "whole").close()
    write(tmp_path / "cut")
    (tmp_path / "cut" / name).write_bytes((tmp_path / "cut" / name).read_bytes()[:length])
    writer = TokenWriter(tmp_path / "cut", settings())
    assert writer.missing() == [1] or (name, length) == ("shard-00001.json", -1)  # the end of a line
    write(tmp_path / "cut", writer.missing()).close()
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_temporary_files_of_killed_processes_are_removed(tmp_path):
    write(tmp_path).close()
    before = contents(tmp_path)
    (tmp_path / "shard-00004.json").write_text("{}")
    (tmp_path / ".tokens-00001.npy.01234567.tmp").touch()
    TokenWriter(tmp_path, settings()).close()
    assert contents(tmp_path) == before


def test_other_settings_are_named(tmp_path):
    write(tmp_path, [0])
    with pytest.raises(
        InputError, match=r"incomplete .*: layout is \(\(2, 2\),\) there and \(\(1, 4\),\) here\. Choose"
    ):
        TokenWriter(tmp_path, settings(layout=Layout((1, 4))))


def test_complete_set_takes_no_more(tmp_path):
    write(tmp_path).close()
    writer = TokenWriter(tmp_path, settings())
    assert writer.complete
    with pytest.raises(InputError, match="is a complete token set"):
        writer.add(0, *shards()[0])
    assert len(writer.close()) == 11


@pytest.mark.parametrize(
    ("tokens", "labels", "message"),
    [
        (torch.tensor([[[0, 1, 2, 16]]]), torch.tensor([0]), "range from 0 to 16: the codebook size is 16"),
        (torch.tensor([[[-1, 1, 2, 3]]]), torch.tensor([0]), "range from -1 to 3"),
        (torch.tensor([[[0, 1, 2, 3]]]), torch.tensor([2]), "number of classes is 2"),
        (torch.tensor([[[0, 1, 2]]]), torch.tensor([0]), "takes integer tokens"),
        (torch.tensor([[[0.0, 1.0, 2.0, 3.0]]]), torch.tensor([0]), "takes integer tokens"),
        (torch.tensor([[[0, 1, 2, 3]]]), torch.tensor([0, 1]), "takes integer tokens"),
        (torch.zeros(2, 1, 4, dtype=int), torch.tensor([0, 1]), "2 images and 0 unreadable ones for shard 0 of .* 1$"),
    ],
)
def test_wrong_input(tmp_path, tokens, labels, message):
    with pytest.raises(InputError, match=message):
        TokenWriter(tmp_path, settings(inputs=1)).add(0, tokens, labels)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard_size": 0}, "shard size 0: give whole numbers from 1"),
        ({"codebook_size": 0}, "codebook size 0"),
        ({"layout": Layout((3, 2))}, "takes integer tokens"),
        ({"tokens": np.zeros((3, 5), int)}, "square"),
        ({"labels": np.zeros(3)}, "labels float64"),
        ({"labels": np.zeros(2, int)}, r"tokens \[3, 4\] with labels int64 \[2\]"),
        ({"labels": np.array([0, 1, 1 << 30])}, "number classes from 0"),
        ({"labels": np.array([0, 1, -1])}, "labels"),
        ({"tokens": np.zeros((0, 4), int), "labels": np.zeros(0, int)}, "no images"),
        ({"codebook": torch.zeros(8, 2)}, "codebook of 8 for a codebook size of 16"),
    ],
)
def test_write_token_set_refuses(tmp_path, change, message):
    arguments = {"tokens": np.zeros((3, 4), int), "labels": np.zeros(3, int), "codebook_size": 16} | change
    with pytest.raises(InputError, match=message):
        write_token_set(tmp_path / "set", **arguments)


def test_nothing_to_write(tmp_path):
    with pytest.raises(InputError, match="no images"):
        TokenWriter(tmp_path, settings(inputs=0)).close()
    with pytest.raises(InputError, match="by the number of its inputs"):
        TokenWriter(tmp_path, settings(inputs=None))


def test_a_set_that_cannot_be_written_leaves_nothing_in_the_way(tmp_path):
    tokens = np.zeros((9, 4), int)
    tokens[-1] = 16
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "tokens-mine.npy").touch()
    with pytest.raises(InputError, match="codebook size"):
        write_token_set(tmp_path / "set", tokens, np.zeros(9, int), 16, shard_size=4)
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["tokens-mine.npy"]
    tokens[-1] = 15
    assert len(write_token_set(tmp_path / "set", tokens, np.zeros(9, int), 16, shard_size=4)) == 9


def test_part_of_a_set_is_called_so(tmp_path):
    write(tmp_path, [0])
    with pytest.raises(InputError, match="already holds part of a token set: choose another folder or delete this one"):
        write_token_set(tmp_path, np.zeros((9, 4), int), np.zeros(9, int), 16)


def test_a_grid_of_tokens_is_no_set_of_augmentations(tmp_path):
    tokens, labels = np.zeros((3, 4, 4), np.int64), np.zeros(3, np.int64)
    with pytest.raises(InputError, match=r"tokens \[3, 4, 4\] may be a square of tokens, or augmentations"):
        write_token_set(tmp_path / "a", tokens, labels, 16)
    assert write_token_set(tmp_path / "b", tokens, labels, 16, Layout.square(2)).index.augmentations == [*"0123"]
