import json
import math
from contextlib import closing

import pytest
import torch

from ctf.files import read_json_lines
from ctf.training.log import Log, Meter


def test_lines_are_rounded_and_read_back(tmp_path):
    with closing(Log(tmp_path, 0)) as log:
        log.write(1, {"loss": math.pi * 1000, "count": 3.0})
    assert read_json_lines(tmp_path / "log.jsonl") == [{"step": 1, "loss": 3141.59, "count": 3.0}]


@pytest.mark.parametrize("tail", ["", '{"step": 4, "lo'])
def test_resuming_drops_later_and_truncated_lines(tail, tmp_path):
    lines = "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2, 3))
    (tmp_path / "log.jsonl").write_text(lines + tail)
    with closing(Log(tmp_path, 2)) as log:
        log.write(3, {"loss": 0.5})
    lines = read_json_lines(tmp_path / "log.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 1.0), (3, 0.5)]


def test_a_new_run_begins_a_new_log_and_a_silent_one_writes_nothing(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n')
    with closing(Log(tmp_path, 0, tensorboard=True, silent=True)) as log:
        log.write(1, {"loss": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
    with closing(Log(tmp_path, 0)):
        assert read_json_lines(tmp_path / "log.jsonl") == []


def test_means_are_over_the_steps_that_have_a_value():
    meter = Meter()
    for step in range(4):
        for _ in range(2):
            meter.add({"loss": torch.tensor(float(step))}, weight=0.5)
        if step >= 2:
            meter.add({"adversarial": torch.tensor(10.0 * step)})
        meter.end_step({"restarts": 2.0})
    line = meter.line()
    assert (line["loss"], line["adversarial"], line["restarts"]) == (1.5, 25.0, 8.0)
    assert line["steps_per_second"] > 0
    meter.add({"loss": torch.tensor(7.0)})
    meter.end_step({})
    assert meter.line()["loss"] == 7.0


def test_not_finite_names_the_value():
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0), "mse": torch.tensor(math.inf)})
    meter.add({"mse": torch.tensor(1.0)})
    assert meter.not_finite() == "mse"
