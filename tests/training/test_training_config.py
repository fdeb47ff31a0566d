import functools
import math

import pytest

from ctf.errors import InputError
from ctf.training.config import LoopConfig, OptimizerConfig, TokenizerTraining

NAN, INF = math.nan, math.inf
#: Settings, and values that they refuse.
INVALID = [
    (LoopConfig, {"ema": (1.0, -0.1)}),
    (LoopConfig, dict.fromkeys(("batch_size", "accumulate", "log_every", "keep_checkpoints"), (0,))),
    (LoopConfig, {"epochs": (0,), "steps": (0,)}),
    (OptimizerConfig, {"learning_rate": (-1, NAN, INF), "final_learning_rate": (-1e-9,)}),
    (OptimizerConfig, {"warmup_steps": (-1,), "weight_decay": (-0.1,), "clip": (-1.0, NAN)}),
    (OptimizerConfig, {"betas": ((0.9, 1.0), (-0.1, 0.9), (NAN, 0.9))}),
    (TokenizerTraining, {"image_size": (0,), "warmup_without_codebook": (-1,), "discriminator_start": (-1,)}),
    (TokenizerTraining, {"codebook_weight": (-1.0,), "commitment_weight": (NAN,), "perceptual_weight": (-0.5,)}),
    (TokenizerTraining, {"restart_after": (-1,), "restart_until": (1.1, -0.1), "discriminator_weight": (INF,)}),
    (TokenizerTraining, {"random_crop": (1.25, 1e-9, -0.8)}),
]


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [(settings, name, value) for settings, cases in INVALID for name, values in cases.items() for value in values],
)
def test_invalid_settings_are_refused(settings, name, value):
    prefix = {LoopConfig: "loop.", OptimizerConfig: "optimizer.", TokenizerTraining: ""}[settings]
    build = functools.partial(settings, out="") if settings is TokenizerTraining else settings
    with pytest.raises(InputError) as error:
        build(**{name: value})
    assert str(error.value).startswith(f"{prefix}{name} is {value}: it must be ")
    assert "\n" not in str(error.value)


def test_total_steps():
    assert LoopConfig(batch_size=8, epochs=3).total_steps(10) == math.ceil(30 / 8)
    assert LoopConfig(batch_size=8, epochs=3, steps=5).total_steps(10) == 5
