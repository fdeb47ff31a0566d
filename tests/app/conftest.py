"""A tiny studio for the logic, and a server with a tiny model for what goes over HTTP."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from ctf.app.sampler import Sampler
from ctf.app.studio import Studio
from ctf.codebook import cluster_codebook
from ctf.model_folder import Pipeline

SIZES = {"codebook_size": 64, "grid": (4, 4)}


@pytest.fixture(scope="session")
def pipeline(make_pipeline):
    """Of the paper's kind, 16 × 16 pixels, 16 tokens in 8 clusters."""
    return make_pipeline("cluster", num_clusters=8, **SIZES)


@pytest.fixture(scope="session")
def free_pipeline(make_tokenizer, make_stage):
    """Of stages with other names and kinds, which can choose steps and keep any part."""
    tokenizer = make_tokenizer(64)
    coarse_map = cluster_codebook(tokenizer.codebook, 8)
    sketch = make_stage("any_order", name="sketch", predicts=coarse_map, **SIZES)
    paint = make_stage("masked", name="paint", given=coarse_map, rounds="any", **SIZES)
    return Pipeline(tokenizer, ["cat", "red fox", "dog", "owl"], [sketch, paint])


@pytest.fixture(scope="session")
def studio(pipeline, make_pipeline):
    return Studio(Sampler.of(pipeline, "tiny"), Sampler.of(make_pipeline("baseline", **SIZES), "plain"))


@pytest.fixture(scope="session")
def free_studio(free_pipeline):
    return Studio(Sampler.of(free_pipeline, "free"))


@contextmanager
def running(folder, *arguments):
    """`ctf app` in a process whose working, home and temporary folders are new ones in `folder`; gives its address."""
    places = {name: folder / name for name in ("work", "home", "temporary")}
    for place in places.values():
        place.mkdir()
    environment = {**os.environ, "HOME": str(places["home"]), "TMPDIR": str(places["temporary"])}
    command = [sys.executable, "-m", "ctf.cli", "app", "--device", "cpu", "--port", "0", *arguments]
    with subprocess.Popen(command, cwd=places["work"], env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            yield re.search(r"http://127\.0\.0\.1:\d+", line)[0]
            assert process.poll() is None, "the server has ended"
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
