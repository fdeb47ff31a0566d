import math

import pytest

from ctf.errors import InputError
from ctf.training.config import LoopConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("accumulate", 0),
        ("log_every", 0),
        ("keep_checkpoints", 0),
        ("epochs", 0),
        ("steps", 0),
        ("ema", 1.0),
        ("ema", -0.1),
    ],
)
def test_settings_without_meaning(name, value):
    with pytest.raises(InputError, match=f"loop.{name} is {value}: it must be"):
        LoopConfig(**{name: value})


def test_total_steps():
    assert LoopConfig(batch_size=8, epochs=3).total_steps(10) == math.ceil(30 / 8)
    assert LoopConfig(batch_size=8, epochs=3, steps=5).total_steps(10) == 5
