from pathlib import Path

import numpy as np
import pytest
import torch

from ctf.errors import InputError
from ctf.tokens import TokenIndex, TokenSet, TokenWriter, write_token_set


def settings(**changes) -> TokenIndex:
    values = {"codebook_size": 16, "grid": [2, 2], "augmentations": ["none"], "class_names": ["a", "b"]}
    return TokenIndex(**(values | {"shard_size": 4} | changes))


def stream() -> list[tuple[np.ndarray, np.ndarray, list[str]]]:
    """26 inputs in uneven batches, 3 of them unreadable."""
    rng = np.random.default_rng(0)
    batch = [(3, ["x"]), (2, []), (6, []), (0, ["y", "z"]), (1, []), (3, []), (3, []), (5, [])]
    return [(rng.integers(16, size=(n, 1, 4)), rng.integers(2, size=n), skipped) for n, skipped in batch]


def write(folder: Path, stop: int | None = None) -> TokenWriter:
    """Write the stream from where the folder stands up to batch `stop`, and do not close."""
    writer = TokenWriter(folder, settings())
    start, position = writer.consumed, 0
    for tokens, labels, skipped in stream()[:stop]:
        if position >= start:
            writer.add(tokens, labels, skipped)
        position += len(labels) + len(skipped)
    return writer


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("stop", range(len(stream()) + 1))
def test_resumed_is_uninterrupted(tmp_path, stop):
    whole = write(tmp_path / "whole").close()
    assert (len(whole), whole.index.skipped) == (23, ["x", "y", "z"])
    write(tmp_path / "parts", stop)
    write(tmp_path / "parts").close()
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_unreadable_inputs_at_the_end_are_named(tmp_path):
    writer = TokenWriter(tmp_path, settings())
    writer.add(np.zeros((4, 1, 4), int), np.zeros(4, int))
    assert writer.close(["last"]).index.skipped == ["last"]


def test_other_settings_are_named(tmp_path):
    write(tmp_path, stop=3)
    with pytest.raises(InputError, match=r"incomplete token set .*: grid is \[2, 2\] there and \[1, 4\] here\. Choose"):
        TokenWriter(tmp_path, settings(grid=[1, 4]))


def test_complete_set_takes_no_more(tmp_path):
    write(tmp_path).close()
    writer = TokenWriter(tmp_path, settings())
    assert writer.complete
    with pytest.raises(InputError, match="is a complete token set"):
        writer.add(*stream()[0])
    assert len(writer.close()) == 23


@pytest.mark.parametrize(
    ("tokens", "labels", "message"),
    [
        (torch.tensor([[[0, 1, 2, 16]]]), torch.tensor([0]), "range from 0 to 16: the codebook size is 16"),
        (torch.tensor([[[-1, 1, 2, 3]]]), torch.tensor([0]), "range from -1 to 3"),
        (torch.tensor([[[0, 1, 2, 3]]]), torch.tensor([2]), "number of classes is 2"),
        (torch.tensor([[[0, 1, 2]]]), torch.tensor([0]), "takes integer tokens"),
        (torch.tensor([[[0.0, 1.0, 2.0, 3.0]]]), torch.tensor([0]), "takes integer tokens"),
        (torch.tensor([[[0, 1, 2, 3]]]), torch.tensor([0, 1]), "takes integer tokens"),
    ],
)
def test_wrong_input(tmp_path, tokens, labels, message):
    with pytest.raises(InputError, match=message):
        TokenWriter(tmp_path, settings()).add(tokens, labels)


@pytest.mark.parametrize(
    "change", [{"shard_size": 0}, {"codebook_size": 0}, {"grid": [0, 4]}, {"grid": [4]}, {"codebook_size": 1 << 25}]
)
def test_settings_that_no_set_can_have(change):
    with pytest.raises(InputError, match="give whole numbers from 1"):
        settings(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard_size": 0}, "shard size 0"),
        ({"codebook_size": 0}, "codebook size 0"),
        ({"grid": (3, 2)}, "takes integer tokens"),
        ({"tokens": np.zeros((3, 5), int)}, "square"),
        ({"labels": np.zeros(3)}, "labels float64"),
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
        TokenWriter(tmp_path, settings()).close()


def test_write_token_set_does_not_overwrite(tmp_path):
    write(tmp_path).close()
    before = files(tmp_path)
    with pytest.raises(InputError, match="already holds a token set"):
        write_token_set(tmp_path, np.zeros((1, 4), int), np.zeros(1, int), 16)
    assert files(tmp_path) == before


def test_write_token_set_needs_a_label_per_image(tmp_path):
    with pytest.raises(InputError, match=r"tokens \[3, 4\] with labels int64 \[2\]"):
        write_token_set(tmp_path, np.zeros((3, 4), int), np.zeros(2, int), 16)


def test_an_incomplete_set_does_not_open(tmp_path):
    write(tmp_path, stop=3)
    with pytest.raises(InputError, match=r"incomplete \(11 images so far\)"):
        TokenSet.open(tmp_path)
