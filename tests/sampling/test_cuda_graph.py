"""Which recordings are made, kept and dropped; what a GPU does with them is tested in `tests/stages`."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ctf.sampling.cuda_graph import RecordedLoops, recorded_size


class OnTheCpu:
    """A recording whose replay runs the loop on the buffers that it was recorded with."""

    made, alive = [], []

    def __init__(self, loop, inputs, before, kept):
        assert kept is None  # as it was given
        self.loop, self.inputs = loop, [tensor.clone() for tensor in inputs]
        loop(*self.inputs)
        self.open = True
        self.made.append(len(inputs[0]))
        self.alive.append(self)

    def __call__(self, inputs):
        assert self.open
        for buffer, tensor in zip(self.inputs, inputs, strict=True):
            buffer[: len(tensor)] = tensor
        time.sleep(0.001)  # the turn of another thread, if it may have one
        return self.loop(*self.inputs)[: len(inputs[0])].clone()

    def close(self):
        self.open = False
        self.alive.remove(self)


@pytest.fixture(autouse=True)
def recording(monkeypatch):
    monkeypatch.setattr("ctf.sampling.cuda_graph.Recording", OnTheCpu)
    monkeypatch.setattr(OnTheCpu, "made", [])
    monkeypatch.setattr(OnTheCpu, "alive", [])
    return OnTheCpu


def call(loops, factor, images):
    """A loop that multiplies its two inputs and a factor, which is its setting."""
    labels, numbers = torch.arange(images), torch.rand(images, 3, dtype=torch.float64)
    found = loops(factor, lambda x, y: x[:, None] * y * factor, [labels, numbers])
    torch.testing.assert_close(found, labels[:, None] * numbers * factor)


def test_smaller_batches_are_recorded_for_powers_of_two(recording):
    loops = RecordedLoops()
    for images in (50, 50, 20, 17, 3, 33, 1, 2, 50):
        call(loops, 2.0, images)
    assert recording.made == [50, 32, 4, 1, 2]


def test_a_larger_batch_replaces_all(recording):
    loops = RecordedLoops()
    for images in (4, 1, 6, 1):
        call(loops, 2.0, images)
    assert recording.made == [4, 1, 6, 1]
    assert sorted(len(r.inputs[0]) for r in recording.alive) == [1, 6]


def test_other_settings_replace_all(recording):
    loops = RecordedLoops()
    for factor in (2.0, 2.0, 3.0, 2.0):
        call(loops, factor, 5)
    assert recording.made == [5, 5, 5]
    assert len(recording.alive) == 1


def test_a_failed_recording_is_made_again(recording):
    loops = RecordedLoops()
    call(loops, 2.0, 5)
    with pytest.raises(ZeroDivisionError):
        loops(3.0, lambda x: x / (1 // 0), [torch.arange(5)])
    assert recording.alive == []
    call(loops, 3.0, 5)


def test_threads_take_turns():
    """With one recording, whose inputs are its own for as long as it runs."""
    loops = RecordedLoops()

    def work(_):
        for images in (7, 5, 6) * 5:
            call(loops, 2.0, images)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))


@pytest.mark.parametrize(("images", "size"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (33, 50), (50, 50)])
def test_sizes(images, size):
    assert recorded_size(images, 50) == size
