import itertools
import platform
import time
from pathlib import Path

import pytest
import torch

from ctf.evaluation.machine import Machine, device_name, measure_machine, seconds


@pytest.fixture
def ticking_clock(monkeypatch):
    """Whoever reads it finds it a second later than the last time."""
    monkeypatch.setattr(time, "perf_counter", itertools.count().__next__)


@pytest.mark.parametrize(("how", "products"), [(("bfloat16",), "bfloat16"), (("float32", "int8"), "int8")])
def test_rates_are_what_was_done_in_the_seconds_that_passed(ticking_clock, how, products):
    machine = measure_machine("cpu", *how)
    assert machine.memory_bandwidth == 512 * 2**20
    assert machine.matrix_rate == 2 * 1024 * 2048 * 2048
    assert machine.products == products


def test_rates_are_those_of_real_machines():
    machine = measure_machine()
    assert 1e8 < machine.memory_bandwidth < 1e14
    assert 1e8 < machine.matrix_rate < 1e16
    assert machine.threads == torch.get_num_threads()


def test_seconds_include_the_call(monkeypatch):
    clock = [10.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert seconds(lambda: clock.__setitem__(0, 12.5), torch.device("cpu")) == 2.5


def test_name_is_what_the_system_calls_the_processor():
    cpuinfo = Path("/proc/cpuinfo")
    said = cpuinfo.read_text() if cpuinfo.exists() else " ".join(platform.uname())
    assert device_name(torch.device("cpu")) in said


def test_text_names_all_that_a_result_depends_on():
    machine = Machine("EPYC", 2, 20e9, 150e9, "float32", "torch 2.13.0", "2026-11-23")
    assert str(machine) == (
        "EPYC, 2 CPU thread(s), torch 2.13.0, 2026-11-23: reads 20.0 GB/s, multiplies at 150 Gop/s in float32"
    )
