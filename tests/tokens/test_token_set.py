import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctf.errors import InputError
from ctf.files import read_json, write_json
from ctf.layout import Layout
from ctf.tokens import TokenSet, write_token_set

N, A, K = 23, 3, 300


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(K, size=(N, A, 6)), rng.integers(5, size=N)


@pytest.fixture
def folder(tmp_path: Path, arrays: tuple[np.ndarray, np.ndarray]) -> Path:
    write_token_set(tmp_path / "set", *arrays, codebook_size=K, layout=Layout((2, 3)), shard_size=5)
    return tmp_path / "set"


@pytest.fixture(scope="module")
def token_set(tmp_path_factory: pytest.TempPathFactory, arrays: tuple[np.ndarray, np.ndarray]) -> TokenSet:
    return write_token_set(
        tmp_path_factory.mktemp("set"), *arrays, codebook_size=K, layout=Layout((2, 3)), shard_size=5
    )


def test_round_trip(folder, arrays):
    token_set = TokenSet.open(folder)
    assert (len(token_set), token_set.num_augmentations, token_set.num_tokens) == arrays[0].shape
    assert token_set.layout == Layout((2, 3))
    assert token_set.codebook_size == K
    assert token_set.augmentations == ["0", "1", "2"]
    assert token_set.class_names == ["0", "1", "2", "3", "4"]
    assert token_set.labels.dtype == np.int64
    np.testing.assert_array_equal(token_set.labels, arrays[1])
    np.testing.assert_array_equal(torch.cat(list(token_set.blocks(2))), arrays[0])
    assert [len(np.load(path)) for path in sorted(folder.glob("tokens-*.npy"))] == [5, 5, 5, 5, 3]


@pytest.mark.parametrize(("size", "dtype"), [(256, "uint8"), (257, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_smallest_integer_type_keeps_the_largest_token(tmp_path, size, dtype):
    token_set = write_token_set(tmp_path, torch.tensor([[0, 0, 0, size - 1]]), torch.tensor([0]), size)
    assert np.load(tmp_path / "tokens-00000.npy").dtype == dtype
    assert token_set.gather([0]).tolist() == [[0, 0, 0, size - 1]]


@given(st.lists(st.tuples(st.integers(0, N - 1), st.integers(0, A - 1))))
def test_gather_is_indexing(token_set, arrays, wanted):
    indices, augmentations = np.array(wanted, dtype=np.int64).reshape(-1, 2).T
    tokens = token_set.gather(indices, augmentations)
    assert tokens.dtype == torch.int64
    np.testing.assert_array_equal(tokens, arrays[0][indices, augmentations])
    np.testing.assert_array_equal(token_set.gather(indices, 1), arrays[0][indices, 1])


@pytest.mark.parametrize(
    ("names", "plain"),
    [
        (["none", "flip", "x"], 0),
        (["1.1/top-left", "1.1/center", "1.1/center/flip"], 1),
        (["1.1/center", "1.05/center", "1.05/center/flip"], 1),
        (["a", "b", "c"], 0),
    ],
)
def test_without_an_augmentation_the_plainest_is_taken(tmp_path, arrays, names, plain):
    token_set = write_token_set(tmp_path, *arrays, codebook_size=K, layout=Layout((2, 3)), augmentations=names)
    np.testing.assert_array_equal(token_set.gather(range(N)), arrays[0][:, plain])


def test_describe_counts_what_is_there(token_set, arrays):
    tokens, labels = arrays
    _, counts = np.unique(tokens, return_counts=True)
    p = counts / counts.sum()
    per_class = [int((labels == c).sum()) for c in range(5)]
    found = token_set.describe()
    assert found["codebook_usage"] == pytest.approx(len(counts) / K)
    assert found["codebook_perplexity"] == pytest.approx(np.prod(p**-p))
    assert found["images_per_class"] == {"min": min(per_class), "median": np.median(per_class), "max": max(per_class)}
    assert found["bytes"] == tokens.size * 2


def test_codebook_is_recognised(tmp_path, token_set):
    codebook = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    known = write_token_set(tmp_path, np.zeros((1, 4), int), np.zeros(1, int), 4, codebook=codebook)
    known.check_codebook(codebook.clone())
    with pytest.raises(InputError, match="another codebook"):
        known.check_codebook(codebook + 1)
    with pytest.raises(InputError, match="codebook of 300, this codebook has 4"):
        token_set.check_codebook(codebook)
    token_set.check_codebook(torch.zeros(K, 2))  # tokens from elsewhere: nothing but K to compare


# --- errors ---


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        TokenSet.open(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def change_index(folder: Path, **change) -> None:
    write_json(folder / "index.json", read_json(folder / "index.json") | change)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: folder.rename(folder.with_name("away")), "no such token set"),
        (lambda folder: (folder / "index.json").unlink(), "not a token set"),
        (lambda folder: write_json(folder / "index.json", {"format": "other"}), "not the index of a token set"),
        (lambda folder: change_index(folder, version=2), "update ctf"),
        (lambda folder: change_index(folder, complete=False), "incomplete (0 shards so far): run the command"),
        (lambda folder: (folder / "tokens-00001.npy").unlink(), "tokens-00001.npy is missing"),
        (
            lambda folder: np.save(folder / "tokens-00001.npy", np.zeros((5, 2, 6), np.uint16)),
            "holds uint16 [5, 2, 6], expected integers [5, 3, 6]",
        ),
        (lambda folder: np.save(folder / "labels-00001.npy", np.array([0, 1, 2, 3, 5])), "number of classes is 5"),
    ],
)
def test_damaged_token_sets_are_refused(folder, damage, message):
    damage(folder)
    assert message in refused(folder)


@pytest.mark.parametrize("name", ["tokens-00002.npy", "labels-00002.npy"])
def test_truncated_shard_at_any_length(folder, name):
    whole = (folder / name).read_bytes()
    for length in itertools.chain(range(0, len(whole), 13), [len(whole) - 1]):
        (folder / name).write_bytes(whole[:length])
        assert f"{name} is truncated" in refused(folder)


def test_an_older_index_says_grid(folder):
    index = read_json(folder / "index.json")
    assert index.pop("layout") == [[2, 3]]
    write_json(folder / "index.json", index | {"grid": [2, 3]})
    assert TokenSet.open(folder).layout == Layout((2, 3))


@pytest.mark.parametrize("wrong", [K, -1])
def test_a_token_out_of_range_is_refused_when_it_is_read(folder, arrays, wrong):
    shard = np.load(folder / "tokens-00003.npy").astype(np.int16)
    shard[2, 1, 3] = wrong
    np.save(folder / "tokens-00003.npy", shard)
    token_set = TokenSet.open(folder)
    message = rf"tokens of .*tokens-00003\.npy range from -?\d+ to \d+: the codebook size is {K}"
    with pytest.raises(InputError, match=message):
        token_set.gather([0, 17, 22], [0, 1, 0])
    with pytest.raises(InputError, match=message):
        list(token_set.blocks(2))
    with pytest.raises(InputError, match=message):
        token_set.describe()
    np.testing.assert_array_equal(token_set.gather([0, 17, 22], 0), arrays[0][[0, 17, 22], 0])  # not what is not read


@pytest.mark.parametrize(
    "change",
    [
        {"codebook_size": "300"},
        {"codebook_size": 1 << 30},
        {"layout": [2]},
        {"layout": [6, -1]},
        {"layout": None},
        {"shard_size": 0},
        {"shards": [{"stem": "00000"}]},
        {"shards": [{"stem": 0, "count": 5}]},
        {"shards": [{"stem": "00000", "count": 0}]},
        {"class_names": [0, 1]},
        {"surprise": 1},
    ],
)
def test_an_index_that_no_writer_writes(folder, change):
    change_index(folder, **change)
    assert "index.json is damaged" in refused(folder)
