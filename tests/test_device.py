import platform
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch

from ctf.device import available_memory, device_name, gpu_compiles, usable_device
from ctf.errors import InputError


def test_auto_is_a_gpu_if_there_is_one():
    assert usable_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert usable_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["abacus", "cuda:77", "meta"])
def test_unusable_devices_are_refused(name):
    with pytest.raises(InputError, match=f"device '{name}' cannot be used here"):
        usable_device(name)


@pytest.mark.gpu
def test_torchrun_gives_each_process_its_own_gpu(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert usable_device("cuda") == usable_device("auto") == torch.device("cuda:0")


@pytest.mark.parametrize("error", [None, RuntimeError("no C compiler"), subprocess.CalledProcessError(1, "gcc")])
def test_a_gpu_whose_compiler_does_not_work_is_warned_of_once(monkeypatch, error):
    class Driver:
        @property
        def active(self):
            raise error

    monkeypatch.setitem(sys.modules, "triton", None if error is None else types.ModuleType("triton"))
    runtime = types.ModuleType("triton.runtime")
    runtime.driver = Driver()
    monkeypatch.setitem(sys.modules, "triton.runtime", None if error is None else runtime)
    gpu_compiles.cache_clear()
    with pytest.warns(UserWarning, match=f"{type(error).__name__ if error else 'NotFound'}.*install Triton, gcc"):
        assert not gpu_compiles()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not gpu_compiles()
    gpu_compiles.cache_clear()


@pytest.mark.gpu
def test_this_gpu_compiles():
    assert gpu_compiles()


def test_the_cpu_has_the_name_that_the_system_gives():
    name, cpuinfo = device_name(torch.device("cpu")), Path("/proc/cpuinfo")
    assert name
    assert name in (cpuinfo.read_text() if cpuinfo.exists() else "") + " ".join(platform.uname())


def test_available_memory_is_less_than_there_is():
    import psutil

    assert 0 < available_memory(torch.device("cpu")) < psutil.virtual_memory().total
