from itertools import islice

import numpy as np
import pytest
import torch
from tiny_runs import make_image_set

from ctf.errors import InputError
from ctf.training.image_batches import ImageBatches


def which(batch):
    """Numbers of the images in a batch, by their grey level; mirroring does not change it."""
    return ((batch.mean((1, 2, 3)) + 1) * 127.5 / 8).round().long().tolist()


def test_streaming_is_random_access():
    batches = ImageBatches(make_image_set(), batch_size=6, seed=1)
    for step, batch in enumerate(islice(batches.stream(3, ahead=3), 5), start=3):
        assert torch.equal(batch, ImageBatches(batches.images, 6, seed=1)[step])


def test_every_image_once_per_epoch_in_another_order_each():
    batches = ImageBatches(make_image_set(images=20), batch_size=8, seed=0)
    seen = [image for step in range(5) for image in which(batches[step])]  # 40 images, a batch across the epochs
    assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20))
    assert seen[:20] != seen[20:]


def test_the_processes_share_out_the_batch_of_one():
    images = make_image_set()
    whole = ImageBatches(images, 8, seed=3)[2]
    parts = [ImageBatches(images, 8, seed=3, rank=rank, world=4)[2] for rank in range(4)]
    assert torch.equal(torch.cat(parts), whole)


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


def test_a_corrupt_image_is_replaced_by_the_next():
    batches = ImageBatches(make_image_set(images=20, corrupt={4, 19}), batch_size=20, seed=0)
    expected = sorted([*(set(range(20)) - {4, 19}), 5, 0])
    assert sorted(which(batches[0])) == expected
    assert batches.images.skipped == ["image 4", "image 19"]


def test_nothing_readable():
    with pytest.raises(InputError, match="5 images in a row are unreadable"):
        ImageBatches(make_image_set(images=5, corrupt=range(5)), batch_size=2, seed=0)[0]
