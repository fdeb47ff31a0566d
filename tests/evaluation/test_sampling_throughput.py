import itertools
import time

import numpy as np
import pytest
import torch

from ctf.evaluation.machine import Machine
from ctf.evaluation.sampling_throughput import TEMPERATURE, batch_parts, measure_sampling, time_parts

CPU = torch.device("cpu")


def a_machine(bandwidth):
    """Of which only the memory takes time."""
    return Machine("", 1, bandwidth, matrix_rate=float("inf"), products="", software="", date="")


@pytest.mark.parametrize("kind", ["baseline", "cluster", "full"])
@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
def test_the_parts_make_the_pipelines_images(make_pipeline, kind, cfg_scale):
    pipeline = make_pipeline(kind)
    result = None
    for part in batch_parts(pipeline, 3, cfg_scale).values():
        result = part(result)
    temperatures = {"temperature": TEMPERATURE, "fine_temperature": TEMPERATURE}
    images = np.concatenate([*pipeline.generate([0, 1, 2], seed=[0, 1, 2], cfg_scale=cfg_scale, **temperatures)])
    assert np.array_equal(result, images)


def test_each_part_gets_its_own_seconds(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def part(duration):
        def run(before):
            clock[0] += duration
            return (before or 0) + duration

        return run

    assert time_parts({"a": part(2), "b": part(3)}, CPU) == {"a": 2, "b": 3, "all": 5}
    assert time_parts({"a": part(2), "b": part(3)}, CPU, wait=False)["all"] == 5


@pytest.mark.parametrize(("kind", "parts"), [("baseline", 2), ("cluster", 3)])
def test_speed_is_images_over_the_seconds_of_all_parts(monkeypatch, make_pipeline, kind, parts):
    monkeypatch.setattr(time, "perf_counter", itertools.count().__next__)  # a second for each part
    speed = measure_sampling(make_pipeline(kind), 4, 2.0, 2, a_machine(1.0), a_machine(1.0))
    assert list(speed.seconds.values()) == [1] * parts + [parts]
    assert list(speed.seconds)[-1] == "all"
    assert speed.images_per_second == 4 / parts
    assert speed.first_call_seconds == parts + 2
    assert speed.seconds.keys() == speed.roofline_seconds.keys()


def test_the_decoder_has_the_roofline_of_its_own_products(make_pipeline):
    slow, fast = a_machine(1.0), a_machine(2.0)
    same, mixed = (
        measure_sampling(make_pipeline("cluster"), 1, 2.0, 1, slow, other).roofline_seconds for other in (slow, fast)
    )
    assert mixed["decoding"] == same["decoding"] / 2
    assert (mixed["stage 1"], mixed["stage 2"]) == (same["stage 1"], same["stage 2"])
    assert mixed["all"] == sum(mixed[name] for name in ("stage 1", "stage 2", "decoding"))


def test_parameters_are_those_of_each_stage(make_pipeline):
    pipeline = make_pipeline("cluster")
    speed = measure_sampling(pipeline, 1, 1.0, 1, a_machine(1.0), a_machine(1.0))
    assert speed.parameters == [pipeline.coarse.num_parameters(), pipeline.fine.num_parameters()]
