"""Tiny studios, of the paper's kind and of other kinds."""

import sys
from pathlib import Path

import pytest

from ctf.app.sampler import Sampler
from ctf.app.studio import Studio
from ctf.codebook import cluster_codebook
from ctf.layout import Layout
from ctf.model_folder import Pipeline

sys.path.insert(0, str(Path(__file__).parent))  # for `shown` and `app_process`

SIZES = {"codebook_size": 64, "layout": Layout.square(4)}


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


@pytest.fixture(scope="session")
def scales_studio(scales_pipeline):
    return Studio(Sampler.of(scales_pipeline, "scales"))
