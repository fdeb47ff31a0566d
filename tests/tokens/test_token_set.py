import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctf.errors import InputError
from ctf.files import read_json, write_json
from ctf.tokens import TokenBatches, TokenSet, write_token_set

N, A, K = 23, 3, 300


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(K, size=(N, A, 6)), rng.integers(5, size=N)


@pytest.fixture
def folder(tmp_path: Path, arrays: tuple[np.ndarray, np.ndarray]) -> Path:
    write_token_set(tmp_path / "set", *arrays, codebook_size=K, grid=(2, 3), shard_size=5)
    return tmp_path / "set"


@pytest.fixture(scope="module")
def token_set(tmp_path_factory: pytest.TempPathFactory, arrays: tuple[np.ndarray, np.ndarray]) -> TokenSet:
    return write_token_set(tmp_path_factory.mktemp("set"), *arrays, codebook_size=K, grid=(2, 3), shard_size=5)


def test_round_trip(folder, arrays):
    token_set = TokenSet.open(folder)
    assert (len(token_set), token_set.num_augmentations, token_set.num_tokens) == arrays[0].shape
    assert token_set.grid == (2, 3)
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


# ------------------------------------------------------------------------------------------------ batches


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    """The first token tells the image, the second the augmentation; the label is the image modulo 5."""
    tokens = np.stack(np.broadcast_arrays(np.arange(N)[:, None], np.arange(A)), axis=-1)
    return write_token_set(tmp_path_factory.mktemp("n"), tokens, np.arange(N) % 5, K, grid=(1, 2), shard_size=4)


@given(batch_size=st.integers(1, 3 * N), seed=st.integers(0, 2**32))
def test_every_image_once_per_epoch(numbered, batch_size, seed):
    batches = TokenBatches(numbered, batch_size, seed)
    stream = torch.cat([batches[step][0] for step in range(-(-3 * N // batch_size))])
    for epoch in range(3):
        assert sorted(stream[epoch * N : (epoch + 1) * N, 0].tolist()) == list(range(N))
    assert stream[:N, 0].tolist() != stream[N : 2 * N, 0].tolist()


def test_labels_belong_to_their_images(numbered):
    tokens, labels = TokenBatches(numbered, 2 * N, seed=1)[3]
    assert torch.equal(tokens[:, 0] % 5, labels)


def test_a_batch_depends_on_its_step_alone(token_set):
    uninterrupted = TokenBatches(token_set, 7, seed=3)
    expected = [uninterrupted[step] for step in range(12)]
    for step in (11, 0, 5, 4):
        tokens, labels = TokenBatches(token_set, 7, seed=3)[step]
        assert torch.equal(tokens, expected[step][0])
        assert torch.equal(labels, expected[step][1])


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_ranks_share_the_global_batch(token_set, world):
    for step in range(8):
        tokens, labels = TokenBatches(token_set, 6, seed=0)[step]
        parts = [TokenBatches(token_set, 6, seed=0, rank=rank, world=world)[step] for rank in range(world)]
        assert torch.equal(torch.cat([part[0] for part in parts]), tokens)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)


def test_augmentations_are_uniform_and_independent_of_the_image(numbered):
    epochs = 1200
    tokens, _ = TokenBatches(numbered, N * epochs, seed=0)[0]
    counts = torch.bincount(tokens[:, 0] * A + tokens[:, 1], minlength=N * A)
    # 69 binomial counts of mean 400 and standard deviation 16.3.
    assert (counts - epochs / A).abs().max() < 5 * (epochs / A * (1 - 1 / A)) ** 0.5


def test_seeds_give_different_orders(token_set):
    drawn = {tuple(TokenBatches(token_set, N, seed)[0][0].flatten().tolist()) for seed in range(10)}
    assert len(drawn) == 10


def test_batch_must_divide_over_processes(token_set):
    with pytest.raises(InputError, match="cannot be split over 3"):
        TokenBatches(token_set, 8, seed=0, world=3)


# ------------------------------------------------------------------------------------------------- errors


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        TokenSet.open(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def test_missing_folder(tmp_path):
    assert "no such token set" in refused(tmp_path / "nothing")


def test_a_folder_of_something_else(tmp_path):
    assert "not a token set" in refused(tmp_path)
    write_json(tmp_path / "index.json", {"format": "other"})
    assert "not the index of a token set" in refused(tmp_path)


def test_newer_version(folder):
    write_json(folder / "index.json", read_json(folder / "index.json") | {"version": 2})
    assert "update ctf" in refused(folder)


def test_damaged_index(folder):
    index = read_json(folder / "index.json")
    del index["grid"]
    write_json(folder / "index.json", index)
    assert "damaged" in refused(folder)


def test_incomplete_set_says_how_to_go_on(folder):
    write_json(folder / "index.json", read_json(folder / "index.json") | {"complete": False})
    assert "incomplete (23 images so far): run the command" in refused(folder)


@pytest.mark.parametrize("name", ["tokens-00002.npy", "labels-00002.npy"])
def test_truncated_shard_at_any_length(folder, name):
    whole = (folder / name).read_bytes()
    for length in itertools.chain(range(0, len(whole), 13), [len(whole) - 1]):
        (folder / name).write_bytes(whole[:length])
        assert f"{name} is truncated" in refused(folder)


def test_missing_shard(folder):
    (folder / "tokens-00001.npy").unlink()
    assert "tokens-00001.npy is missing" in refused(folder)


def test_shard_of_another_set(folder):
    np.save(folder / "tokens-00001.npy", np.zeros((5, 2, 6), np.uint16))
    assert "holds uint16 [5, 2, 6], index.json says integers [5, 3, 6]" in refused(folder)


def test_label_out_of_range(folder):
    np.save(folder / "labels-00001.npy", np.array([0, 1, 2, 3, 5]))
    assert "number of classes is 5" in refused(folder)


def test_verify_finds_a_token_out_of_range(folder):
    TokenSet.open(folder).verify()
    shard = np.load(folder / "tokens-00003.npy")
    shard[2, 1, 3] = K
    np.save(folder / "tokens-00003.npy", shard)
    with pytest.raises(InputError, match=r"tokens-00003\.npy range from \d+ to 300: the codebook size is 300"):
        TokenSet.open(folder).verify()
