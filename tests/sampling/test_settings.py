import math

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
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("temperature", "1"),
        ("temperature", None),
        ("cfg_scale", True),
        ("top_k", 2.5),
        ("top_k", False),
    ],
)
def test_settings_without_meaning_are_refused(setting, value):
    with pytest.raises(InputError, match=f"{setting} {value!r} must be"):
        Sampling(**{setting: value})


def test_the_edges_are_allowed():
    edges = Sampling(cfg_scale=0, temperature=0, top_k=10**9, top_p=1)
    assert Sampling.of({"cfg_scale": 0, "temperature": 0, "top_k": 10**9, "top_p": 1}) == edges


@pytest.mark.parametrize(("cfg_scale", "guided"), [(1, False), (1.0, False), (0.0, True), (2.5, True)])
def test_guidance_takes_two_rows_but_for_a_scale_of_one(cfg_scale, guided):
    assert Sampling(cfg_scale=cfg_scale).guided is guided


@pytest.mark.parametrize("name", ["fine_temperature", "seed"])
def test_a_setting_that_does_not_exist(name):
    with pytest.raises(InputError, match=rf"no sampling setting '{name}': there are cfg_scale, temperature, top_k, t"):
        Sampling.of({name: 1.0})


def test_no_overrides_are_the_stages_own_settings():
    assert overridden(STAGES, {}) == overridden(STAGES, {"top_k": None, "fine_temperature": None}) == dict(STAGES)


def test_a_name_alone_is_the_first_stages_and_a_prefix_tells_the_stage():
    changed = overridden(STAGES, {"temperature": 0.5, "coarse_top_k": 3, "fine_temperature": 0.0, "finest_top_p": 0.9})
    assert changed == {
        "coarse": Sampling(cfg_scale=2.0, temperature=0.5, top_k=3),
        "fine": Sampling(temperature=0.0, top_k=5),
        "finest": Sampling(top_p=0.9),
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
    ],
)
def test_an_override_without_meaning_is_named_as_it_was_given(overrides, message):
    with pytest.raises(InputError, match=message):
        overridden(STAGES, overrides)


def test_a_pipeline_of_one_stage_offers_no_prefix():
    with pytest.raises(InputError, match=r"top_p$"):
        overridden([("baseline", Sampling())], {"fine_top_k": 1})
