import time
from contextlib import closing

import pytest
import torch
from torch import nn

from ctf.errors import InputError
from ctf.run_folder import checkpoint_path, latest_checkpoint
from ctf.training.checkpoint import Checkpoints, load_checkpoint, not_finite, resume, tidy

#: Of an epoch.
IMAGES = 16


def make_parts(channels=4, layers=1, seed=0):
    torch.manual_seed(seed)
    body = nn.Sequential(
        *(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(layers)), nn.BatchNorm2d(channels)
    )
    model = body.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    return {"model": model, "optimizer": optimizer}


def save_checkpoint(run, step, parts, keep):
    with closing(Checkpoints(run, parts, keep, IMAGES)) as checkpoints:
        checkpoints.save(step)
    return checkpoint_path(run, step)


def step(parts, seed):
    torch.manual_seed(seed)
    channels = next(parts["model"].parameters()).shape[1]
    parts["model"](torch.randn(2, channels, 5, 5)).square().mean().backward()
    parts["optimizer"].step()
    parts["optimizer"].zero_grad()


def test_resuming_channels_last_weights_is_exact(tmp_path):
    original, resumed = make_parts(), make_parts(seed=1)
    step(original, 1)
    path = save_checkpoint(tmp_path, 1, original, keep=1)
    assert load_checkpoint(path, resumed, IMAGES) == 1
    for seed in (2, 3):
        step(original, seed)
        step(resumed, seed)
    for key, tensor in original["model"].state_dict().items():
        assert torch.equal(tensor, resumed["model"].state_dict()[key]), key


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for done in (1, 20, 300):
        save_checkpoint(tmp_path, done, make_parts(), keep=2)
    assert sorted((tmp_path / "checkpoints").iterdir()) == [checkpoint_path(tmp_path, done) for done in (20, 300)]
    assert latest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 300)


@pytest.mark.parametrize(
    ("stored", "wanted", "reason"),
    [
        (make_parts(), make_parts(8), r"model: .*0.weight is \[4, 4, 3, 3\] there and \[8, 8, 3, 3\] here"),
        (make_parts(), make_parts(layers=2), "model: .*only in one of the two"),
        ({"model": nn.Linear(3, 1)}, {"model": nn.Linear(3, 5)}, "model: "),  # a shape that would broadcast
        ({"model": nn.Linear(3, 1)}, {"model": nn.Linear(3, 1), "ema": nn.Linear(3, 1)}, "ema: "),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(stored, wanted, reason, tmp_path):
    path = save_checkpoint(tmp_path, 1, stored, keep=1)
    with pytest.raises(InputError, match=rf"does not fit this run's settings \({reason}") as error:
        load_checkpoint(path, wanted, IMAGES)
    assert "\n" not in str(error.value)


def flip_a_bit(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "flipped": lambda path: flip_a_bit(path, -7),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_resuming_falls_back_to_the_checkpoint_before_a_damaged_one(damage, tmp_path, capsys):
    original = make_parts()
    for seed in (1, 2):
        step(original, seed)
        last = save_checkpoint(tmp_path, seed, original, keep=2)
    damage(last)
    resumed = make_parts(seed=1)
    assert resume(tmp_path, resumed, IMAGES) == 1
    assert f"Going on from {checkpoint_path(tmp_path, 1)}" in capsys.readouterr().err
    tidy(tmp_path, 1)
    assert not last.exists()  # or it would be kept in place of a good one
    step(resumed, 2)
    for key, tensor in original["model"].state_dict().items():
        assert torch.equal(tensor, resumed["model"].state_dict()[key]), key
    damage(checkpoint_path(tmp_path, 1))
    with pytest.raises(InputError, match=r"step-00000001\.safetensors is"):
        resume(tmp_path, resumed, IMAGES)
    assert resume(tmp_path / "elsewhere", resumed, IMAGES) == 0


def test_a_checkpoint_of_other_images_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, 1, make_parts(), keep=1)
    with pytest.raises(InputError, match=r"step-00000001\.safetensors is of a run over 16 images, and here are 1,000"):
        load_checkpoint(path, make_parts(), 1000)


def test_a_failed_write_is_raised_before_the_next_save(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    checkpoints = Checkpoints(tmp_path, make_parts(), 1, IMAGES)
    checkpoints.check()
    checkpoints.save(1)
    time.sleep(0.5)
    with pytest.raises(InputError, match="cannot be written"):
        checkpoints.check()
    checkpoints.close()


def test_not_finite_names_the_tensor():
    parts = make_parts()
    step(parts, 0)
    assert not_finite(parts) is None
    parts["optimizer"].state[parts["model"][0].bias]["exp_avg"][1] = torch.inf
    assert not_finite(parts) == "optimizer/1/exp_avg"
