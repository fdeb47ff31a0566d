import itertools
from contextlib import closing
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import make_image_set

from ctf.errors import InputError
from ctf.images.urls import UnreachableError
from ctf.layout import Layout
from ctf.tokens import TokenSet, write_token_set
from ctf.training.batches import ImageBatches, TokenBatches, on_device, results_ahead

N, A, K = 23, 3, 300


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    """The first token tells the image, the second the augmentation; the label is the image modulo 5."""
    tokens = np.stack(np.broadcast_arrays(np.arange(N)[:, None], np.arange(A)), axis=-1)
    return write_token_set(
        tmp_path_factory.mktemp("n"), tokens, np.arange(N) % 5, K, layout=Layout((1, 2)), shard_size=4
    )


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


def test_a_batch_of_tokens_depends_on_its_step_alone(numbered):
    uninterrupted = TokenBatches(numbered, 7, seed=3)
    expected = [uninterrupted[step] for step in range(12)]
    for step in (11, 0, 5, 4):
        tokens, labels = TokenBatches(numbered, 7, seed=3)[step]
        assert torch.equal(tokens, expected[step][0])
        assert torch.equal(labels, expected[step][1])


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_ranks_share_the_global_batch(numbered, world):
    for step in range(8):
        tokens, labels = TokenBatches(numbered, 6, seed=0)[step]
        parts = [TokenBatches(numbered, 6, seed=0, rank=rank, world=world)[step] for rank in range(world)]
        assert torch.equal(torch.cat([part[0] for part in parts]), tokens)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)


def test_augmentations_are_uniform_and_independent_of_the_image(numbered):
    epochs = 1200
    tokens, _ = TokenBatches(numbered, N * epochs, seed=0)[0]
    counts = torch.bincount(tokens[:, 0] * A + tokens[:, 1], minlength=N * A)
    # 69 binomial counts of mean 400 and standard deviation 16.3.
    assert (counts - epochs / A).abs().max() < 5 * (epochs / A * (1 - 1 / A)) ** 0.5


def test_seeds_give_different_orders(numbered):
    drawn = {tuple(TokenBatches(numbered, N, seed)[0][0].flatten().tolist()) for seed in range(10)}
    assert len(drawn) == 10


def which(batch):
    """Numbers of the images in a batch, by their grey level; mirroring does not change it."""
    return ((batch.mean((1, 2, 3)) + 1) * 127.5 / 8).round().long().tolist()


def test_half_of_the_images_are_mirrored():
    images = make_image_set(images=10)
    batches = ImageBatches(images, 10, seed=0)
    plain = np.stack([images.read(index) for index in range(10)])
    mirrored = 0
    for step in range(20):
        for number, image in zip(which(batches[step]), batches[step], strict=True):
            pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            flipped = np.array_equal(pixels, plain[number, :, ::-1])
            assert flipped or np.array_equal(pixels, plain[number])
            mirrored += flipped
    assert 70 < mirrored < 130
    straight = ImageBatches(images, 10, seed=0, flip=False)[0]
    assert torch.equal(
        (straight[0] + 1).mul(127.5).round().byte().permute(1, 2, 0), torch.from_numpy(plain[which(straight)[0]])
    )


def test_an_image_that_cannot_be_reached_is_not_replaced():
    """Another run would get it, and train on something else."""
    images = make_image_set(images=3)

    def read(index, crop):
        raise UnreachableError("no network")

    images.read = read
    with pytest.raises(UnreachableError, match="no network"):
        ImageBatches(images, batch_size=2, seed=0)[0]


def test_a_corrupt_image_is_replaced_by_the_next():
    batches = ImageBatches(make_image_set(images=20, corrupt={4, 19}), batch_size=20, seed=0)
    expected = sorted([*(set(range(20)) - {4, 19}), 5, 0])
    assert sorted(which(batches[0])) == expected
    assert batches.images.skipped == ["image 4", "image 19"]


def test_a_set_without_readable_images_is_refused():
    with pytest.raises(InputError, match="5 images in a row are unreadable"):
        ImageBatches(make_image_set(images=5, corrupt=range(5)), batch_size=2, seed=0)[0]


def test_batches_of_images_depend_on_seed_and_step_alone():
    images = make_image_set(size=40)
    batches = ImageBatches(images, 6, seed=1, crop=0.8)
    expected = [batches[step] for step in range(5)]
    assert expected[0].shape == (6, 3, 40, 40)
    for step in (4, 0, 3):
        assert torch.equal(ImageBatches(images, 6, seed=1, crop=0.8)[step], expected[step])
    for step, batch in enumerate(islice(batches.stream(2), 3), start=2):
        assert torch.equal(batch, expected[step])
    for world in (2, 3, 6):
        parts = [ImageBatches(images, 6, seed=1, crop=0.8, rank=rank, world=world)[1] for rank in range(world)]
        assert torch.equal(torch.cat(parts), expected[1])


def test_crops_change_from_epoch_to_epoch_and_leave_the_order_alone():
    images = make_image_set(images=10)
    cropped, whole = (ImageBatches(images, 10, seed=3, flip=False, crop=crop) for crop in (0.8, 0.0))
    epochs = [dict(zip(which(cropped[epoch]), cropped[epoch], strict=True)) for epoch in range(2)]
    assert [which(cropped[epoch]) for epoch in range(2)] == [which(whole[epoch]) for epoch in range(2)]
    assert sum(not torch.equal(epochs[0][image], epochs[1][image]) for image in range(10)) > 7
    assert all(epochs[0][image].shape == (3, 32, 32) for image in range(10))


# --- read ahead ---


def endless(read):
    for number in itertools.count():
        read.append(number)
        yield (torch.tensor(number),)


def test_batches_are_read_ahead_in_order():
    read = []
    batches = results_ahead(itertools.repeat(partial(next, endless(read))), 3, workers=1)
    assert read == []
    assert [int(next(batches)[0]) for _ in range(5)] == [0, 1, 2, 3, 4]
    batches.close()  # waits for what is being read
    assert read == [*range(len(read))]
    assert 5 <= len(read) <= 8
    assert next(batches, None) is None


def test_errors_of_reading_are_raised_by_next():
    def broken():
        yield 1
        raise InputError("a shard is damaged")

    batches = results_ahead(itertools.repeat(partial(next, broken())), 2, workers=1)
    assert next(batches) == 1
    with pytest.raises(InputError, match="a shard is damaged"):
        next(batches)


def test_on_a_cpu_nothing_is_read_ahead():
    read = []
    batches = on_device(endless(read), torch.device("cpu"))
    assert int(next(batches)[0]) == 0
    assert read == [0]


@pytest.mark.gpu
def test_batches_arrive_on_a_gpu():
    with closing(on_device(endless([]), torch.device("cuda"))) as batches:
        found = [next(batches)[0] for _ in range(50)]
    assert all(tensor.is_cuda for tensor in found)
    assert torch.stack(found).tolist() == [*range(50)]
