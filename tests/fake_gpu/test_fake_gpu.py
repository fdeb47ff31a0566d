"""Sampling and training as a GPU would be given them, rehearsed on fake CUDA tensors.

It sees shapes, dtypes, strides, devices, and what the host would wait for; not values, memory, streams, or kernels. Of
a training by eight processes it runs the first one, over a process group that moves nothing: how many values of which
type it exchanges is seen; the other processes, NCCL, overlap, DDP's check that all have the same weights, and the
buckets that DDP orders anew after the first step are not.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
PINS = (HERE.parents[1] / "constraints.txt").read_text().split()
#: The stand-ins replace private parts of PyTorch, which other releases may not have.
TESTED = next(pin.removeprefix("torch==") for pin in PINS if pin.startswith("torch=="))
COMPILER = shutil.which("c++")
#: Functions that check what a user gives, and say that they wait.
CHECKS = ("check_tokens", "usable_device")

pytestmark = [
    pytest.mark.fake_gpu,
    pytest.mark.skipif(torch.__version__.split("+")[0] != TESTED, reason=f"needs torch {TESTED}"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="is for CPU builds of torch"),
    pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of all parts, first the one that has faults."""
    guard, root = tmp_path_factory.mktemp("fake_gpu") / "guard.so", Path(torch.__file__).parent
    libraries = [f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root / 'lib'}"]
    flags = ["-w", "-shared", "-fPIC", "-std=c++20", f"-I{root / 'include'}"]
    command = [COMPILER, *flags, HERE / "guard.cpp", "-o", guard, *libraries]
    subprocess.run(command, check=True, capture_output=True, text=True)
    path = os.pathsep.join([str(HERE.parent), str(HERE.parent / "training"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "LD_PRELOAD": str(guard), "PYTHONPATH": path}
    done = subprocess.run([sys.executable, HERE / "rehearsal.py"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def parts(results):
    return results[1:]


def test_faults_are_found(results):
    attention = "?: attention of torch.float32, (2, 4, 8, 6) and (2, 4, 8, 6)"
    assert results[0]["found"] == ["?: _local_scalar_dense", attention]
    assert "Cannot view a tensor" in results[0]["error"]


def test_every_part_runs(parts):
    assert [f"{one['part']}: {one['error']}" for one in parts if one["error"]] == []
    assert len(parts) > 30


def test_nothing_waits_for_the_gpu_and_attention_is_fused(parts):
    found = {line for one in parts for line in one["found"] if not any(name in line for name in CHECKS)}
    assert sorted(found) == []


def test_waits_are_seen(parts):
    """Those of the checks."""
    assert {name for one in parts for line in one["found"] for name in CHECKS if name in line} == {*CHECKS}
