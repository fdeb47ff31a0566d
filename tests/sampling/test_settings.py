import dataclasses
import json
import math
import re

import numpy as np
import pytest

from ctf.errors import InputError
from ctf.sampling import Sampling
from ctf.sampling.settings import overridden

STAGES = [("coarse", Sampling(cfg_scale=2.0, temperature=1.1)), ("fine", Sampling(top_k=5)), ("finest", Sampling())]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("cfg_scale", -0.1),
        ("cfg_scale", math.nan),
        ("cfg_scale", math.inf),
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", 1e-45),
        ("temperature", 1e-39),
        ("temperature", 1e39),
        ("cfg_scale", 1e39),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("temperature", "1"),
        ("temperature", None),
        ("cfg_scale", True),
        ("top_k", 2.5),
        ("top_k", False),
        ("steps", 0),
        ("steps", 2.0),
        ("steps", True),
        ("steps", "8"),
        ("order_seed", -1),
        ("order_seed", 2**32),
        ("order_seed", None),
    ],
)
def test_settings_without_meaning_are_refused(setting, value):
    with pytest.raises(InputError, match=re.escape(f"{setting} {value!r} must be")):
        Sampling(**{setting: value})


@pytest.mark.parametrize(
    ("setting", "value", "choices"),
    [
        ("order", "zigzag", "raster, random, halton, locality, scales, confidence"),
        ("order", 3, "raster, random, halton, locality, scales, confidence"),
        ("schedule", "linear", "cosine, arccos, uniform"),
        ("schedule", None, "cosine, arccos, uniform"),
        ("cfg_schedule", "cosine", "constant, steps, known"),
    ],
)
def test_a_choice_that_does_not_exist_lists_those_that_do(setting, value, choices):
    with pytest.raises(InputError, match=f"^{setting} {value!r} does not exist: choose one of {choices}$"):
        Sampling(**{setting: value})


@pytest.mark.parametrize(
    "edges",
    [
        {"cfg_scale": 0, "temperature": 0, "top_k": 10**9, "top_p": 1},
        {"cfg_scale": 1e6, "temperature": 1e6},
        {"steps": 1, "order": None, "order_seed": 2**32 - 1},
        {"steps": None, "order": "confidence", "order_seed": 0},
    ],
)
def test_the_edges_are_allowed(edges):
    assert dataclasses.asdict(Sampling.of(edges)).items() >= edges.items()


def test_numbers_of_numpy_can_be_stored():
    settings = Sampling(cfg_scale=np.float32(2), top_k=np.int64(5), temperature=np.float64(0.5))
    assert json.loads(json.dumps(settings.for_file())) == Sampling(2.0, 0.5, 5).for_file()


@pytest.mark.parametrize(("cfg_scale", "guided"), [(1, False), (1.0, False), (0.0, True), (2.5, True)])
def test_guidance_takes_two_rows_but_for_a_scale_of_one(cfg_scale, guided):
    for schedule in ("constant", "steps"):
        assert Sampling(cfg_scale=cfg_scale, cfg_schedule=schedule).guided is guided


@pytest.mark.parametrize(
    ("schedule", "scales"),
    [
        ("constant", [3.0, 3.0, 3.0, 3.0, 3.0]),
        ("steps", [1.0, 1.5, 2.0, 2.5, 3.0]),
        ("known", [1.0, 1.25, 1.5, 2.0, 2.75]),
    ],
)
def test_guidance_in_five_steps(schedule, scales):
    sampling = Sampling(cfg_scale=3.0, cfg_schedule=schedule)
    known = [0, 1 / 8, 1 / 4, 1 / 2, 7 / 8]
    assert [sampling.cfg_scale_at(step, 5, share) for step, share in enumerate(known)] == scales


def test_guidance_that_grows_is_whole_in_a_single_step():
    assert Sampling(cfg_scale=3.0, cfg_schedule="steps").cfg_scale_at(0, 1, 0.0) == 3.0


def test_growing_guidance_below_one_falls():
    assert Sampling(cfg_scale=0.0, cfg_schedule="steps").cfg_scale_at(3, 5, 0.5) == 0.25


@pytest.mark.parametrize("name", ["fine_temperature", "seed"])
def test_a_setting_that_does_not_exist(name):
    with pytest.raises(InputError, match=rf"no sampling setting '{name}': there are cfg_scale, temperature, top_k, t"):
        Sampling.of({name: 1.0})


def test_no_overrides_are_the_stages_own_settings():
    assert overridden(STAGES, {}) == overridden(STAGES, {"top_k": None, "fine_temperature": None}) == dict(STAGES)


def test_settings_without_a_prefix_are_the_first_stages():
    changed = overridden(STAGES, {"temperature": 0.5, "coarse_top_k": 3, "fine_temperature": 0.0, "finest_top_p": 0.9})
    assert changed == {
        "coarse": Sampling(cfg_scale=2.0, temperature=0.5, top_k=3),
        "fine": Sampling(temperature=0.0, top_k=5),
        "finest": Sampling(top_p=0.9),
    }


def test_steps_and_orders_of_later_stages():
    changed = overridden(STAGES, {"steps": 8, "fine_order": "halton", "fine_steps": 3, "finest_cfg_schedule": "steps"})
    assert changed == {
        "coarse": Sampling(cfg_scale=2.0, temperature=1.1, steps=8),
        "fine": Sampling(top_k=5, order="halton", steps=3),
        "finest": Sampling(cfg_schedule="steps"),
    }


def test_a_stage_whose_name_begins_like_another_or_like_a_setting():
    stages = [("top", Sampling()), ("top_p", Sampling())]
    changed = overridden(stages, {"top_p": 0.5, "top_top_k": 2, "top_p_top_k": 3})
    assert changed == {"top": Sampling(top_p=0.5, top_k=2), "top_p": Sampling(top_k=3)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"middle_top_k": 1}, "no sampling setting 'middle_top_k': there are cfg_scale, .*fine_"),
        ({"fine_": 1}, "no sampling setting 'fine_'"),
        ({"temperature": -1.0}, "^temperature -1.0 must be"),
        ({"fine_temperature": -1.0}, "^fine_temperature -1.0 must be"),
        ({"fine_steps": 0}, "^fine_steps 0 must be at least 1"),
        ({"fine_order": "zigzag"}, "^fine_order 'zigzag' does not exist"),
    ],
)
def test_an_override_without_meaning_is_named_as_it_was_given(overrides, message):
    with pytest.raises(InputError, match=message):
        overridden(STAGES, overrides)


def test_a_pipeline_of_one_stage_offers_no_prefix():
    with pytest.raises(
        InputError,
        match=r"there are cfg_scale, .*, sampler, noise, filter; did you mean top_k\?$",
    ):
        overridden([("baseline", Sampling())], {"fine_top_k": 1})


def test_the_order_confidence_needs_a_sampler_that_chooses():
    with pytest.raises(InputError, match=r"^sampler independent settles all positions at once"):
        Sampling(sampler="independent", order="confidence")
    assert Sampling(sampler="confidence", order="halton").sampler == "confidence"
