"""What a visitor asks for: controls made from the stages, values that are checked, addresses that lead back."""

from urllib.parse import parse_qsl

import pytest

from ctf.app.classes import Classes
from ctf.app.request import MOST_IMAGES, ImageRequest, controls_of
from ctf.app.sampler import Run, Sampler
from ctf.errors import InputError
from ctf.pipeline import StagePipeline
from ctf.sampling import Sampling


@pytest.fixture
def controls(free_studio):
    return free_studio.controls


def test_controls_are_what_the_stage_can_use(pipeline, free_pipeline):
    common = ["cfg_scale", "temperature", "top_k", "top_p"]
    steps = ["cfg_schedule", "steps", "order", "schedule", "order_seed"]
    found = [[c.setting for c in controls_of(s)] for s in [*pipeline.stages, *free_pipeline.stages]]
    assert found == [[*common, "cfg_schedule"], common, common + steps, common + steps]


def test_controls_begin_with_the_models_own_settings(make_stage):
    own = Sampling(cfg_scale=12.5, top_k=7, steps=3, order="random")
    controls = {c.setting: c for c in controls_of(make_stage("any_order", name="sketch", sampling=own))}
    assert {name: c.value for name, c in controls.items() if name in ("cfg_scale", "top_k", "steps", "order")} == {
        "cfg_scale": 12.5,
        "top_k": 7,
        "steps": 3,
        "order": "random",
    }
    assert controls["cfg_scale"].options["maximum"] == 12.5  # beyond where the slider usually ends
    assert controls["steps"].options == {"minimum": 1, "maximum": 6, "step": 1}
    assert "random" in controls["order"].options["choices"]
    assert {c.key for c in controls.values()} == {f"sketch_{name}" for name in controls}


def test_an_address_leads_back(controls):
    settings = {c.key: c.value for c in controls} | {"sketch_temperature": 0.35, "paint_order": "halton"}
    for request in (ImageRequest(), ImageRequest("red fox & é", 3, 2**53 - 16, settings)):
        assert ImageRequest.from_query(controls, dict(parse_qsl(request.query(), keep_blank_values=True))) == request


BAD = [
    ({"num": "0"}, "ask for 1 to 16"),
    ({"num": "17"}, "ask for 1 to 16"),
    ({"num": "many"}, "num many: ask for 1 to 16"),
    ({"num": "1e3"}, "num 1000.0: ask for 1 to 16"),
    ({"num": "true"}, "num True: ask for 1 to 16"),
    ({"seed": "-1"}, "seed -1"),
    ({"seed": "[1]"}, "give a whole number from 0"),
    ({"seed": str(2**53)}, "give a whole number from 0"),
    ({"seed": "9" * 5000}, "give a whole number from 0"),
    ({"sketch_top_k": "1.5"}, "must be a whole number"),
    ({"sketch_top_k": "true"}, "must be a whole number"),
    ({"sketch_temperature": "nan"}, "temperature 'nan' must be a number"),
    ({"sketch_temperature": "NaN"}, "temperature nan must be"),
    ({"sketch_temperature": "Infinity"}, "temperature inf must be"),
    ({"paint_temperature": "-1"}, "paint_temperature -1"),
    ({"sketch_steps": "99"}, "stage sketch cannot draw in 99 steps"),
    ({"paint_order": '["halton"]'}, "does not exist"),
    ({"fine_temperature": "1"}, "no setting 'fine_temperature': there are label, num, seed, sketch_cfg_scale"),
    ({"sketch_filter": "/tmp/mine.py:run"}, "no setting 'sketch_filter'"),  # code that would run
    ({"__class__": "1"}, "no setting"),
]


@pytest.mark.parametrize(("query", "message"), BAD, ids=str)
def test_addresses_with_wrong_values_are_refused(free_studio, query, message):
    with pytest.raises(InputError, match=message):
        free_studio.checked(ImageRequest.from_query(free_studio.controls, query))


def test_images_are_spread_evenly_over_the_classes_found():
    classes = Classes(["cat", "red fox", "dog", "owl"])
    assert ImageRequest(num=3).labels(classes) == [0, 2, 3]
    assert ImageRequest(num=1).labels(classes) == [0]
    assert set(ImageRequest(num=MOST_IMAGES).labels(classes)) == {0, 1, 2, 3}
    assert ImageRequest("red fox", 2).labels(classes) == ImageRequest("1", 2).labels(classes) == [1, 1]


def test_a_command_says_a_class_whose_name_is_a_number_by_its_name(make_parts):
    numbered = StagePipeline(**make_parts("baseline") | {"class_names": ["1", "10", "2", "x"]})
    sampler = Sampler(numbered, "x", {"coarse": ""}, Classes(numbered.class_names))
    assert Run(sampler, ImageRequest("3")).labels == [3] * 8
    command = Run(sampler, ImageRequest("10", 2)).manifest().command
    assert """--labels '["10", "10"]'""" in command  # as 1 it would be ambiguous
