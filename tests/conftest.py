import dataclasses
import os
import shutil
import sys
from pathlib import Path

# One thread per process: on more, small networks are no faster, and the test command starts one process per core.
# Tests of threads set their number themselves; threads that wait do not spin. PyTorch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

from ctf.codebook import cluster_codebook
from ctf.images import sources
from ctf.images.sources import emoji_records
from ctf.layout import Layout
from ctf.model_folder import Pipeline
from ctf.models.config import MODEL_SIZES
from ctf.stages import KINDS, new_stage
from ctf.tokenizer import MultiScaleConfig, MultiScaleTokenizer, TokenizerConfig, VQTokenizer

sys.path.insert(0, str(Path(__file__).parent))  # for what tests share
from code_files import write_codes
from hub_stand_in import HubStandIn

hypothesis.settings.register_profile("ctf", deadline=None)  # a core that others use too is no fault
hypothesis.settings.load_profile("ctf")

CLASS_NAMES = ["cat", "red fox", "dog", "owl"]
ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(config, items):
    """Where there is no GPU, `pytest -m gpu` has nothing to run."""
    if not torch.cuda.is_available():
        left_out = [item for item in items if item.get_closest_marker("gpu")]
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="module")
def tiny_nano():
    """The size "nano" with two layers of width 32, for tests that are not about sizes: a tenth of the training time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODEL_SIZES, "nano", (2, 2, 32))
        yield


@pytest.fixture(scope="module")
def quick_machine():
    """Bandwidth and rate of the machine from one try, not the best of five, for tests that are not about them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ctf.bench.machine.REPEATS", 1)
        yield


@pytest.fixture
def set_threads():
    """`torch.set_num_threads`, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def two_threads(set_threads):
    """Products shared among two threads, as on most machines, for tests of what must not depend on it."""
    set_threads(2)


@pytest.fixture(scope="module")
def small_examples(tiny_nano, quick_machine):
    """The commands of help and documentation as they are, but on every eighth emoji; `ctf fit` takes three steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ctf.fit.decide.FEWEST_STEPS", 3)
        patch.setattr(sources, "emoji_records", eighth_of_the_emoji)
        yield


def eighth_of_the_emoji(source, split):
    everything = emoji_records(source, split)
    return everything.subset(np.arange(0, len(everything.labels), 8))


@pytest.fixture(scope="session")
def make_tokenizer():
    """A random tokenizer of 4 × 4 pixels per token, in evaluation mode."""

    def make(codebook_size=24, seed=0):
        torch.manual_seed(seed)
        sizes = {"base_channels": 32, "channel_multipliers": (1,), "z_channels": 32, "patch_size": 4}
        blocks = {"encoder_blocks": 1, "decoder_blocks": 1}
        return VQTokenizer(TokenizerConfig(**sizes, **blocks, codebook_size=codebook_size, codebook_dim=4)).eval()

    return make


@pytest.fixture(scope="session")
def make_stage():
    """A random stage in evaluation mode, whose logits have a standard deviation near 1.

    A kind may be "masked, any": trained for any number of rounds.
    """

    def make(
        kind="autoregressive",
        predicts=None,
        given=None,
        name="stage",
        support="cluster",
        codebook_size=24,
        layout=Layout((2, 3)),
        num_classes=4,
        seed=0,
        sampling=None,
        **settings,
    ):
        kind, _, rounds = kind.partition(", ")
        own = {"rounds": settings.pop("rounds", rounds or "one")} if kind == "masked" else {}
        config = KINDS[kind].configure(
            "nano",
            vocabulary=codebook_size if predicts is None else predicts.num_coarse,
            given=0 if given is None else given.num_coarse,
            layout=layout,
            num_classes=num_classes,
            **own,
        )
        config = dataclasses.replace(config, **{"layers": 2, "heads": 2, "dim": 16, "ffn_multiple": 8, **settings})
        facts = {"predicts": predicts, "given": given, "support": support, "sampling": sampling}
        stage = KINDS[kind](config, name=name, **facts).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in stage.parameters():
                if parameter.ndim == 2:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        return stage

    return make


@pytest.fixture(scope="session")
def make_parts(make_tokenizer, make_stage):
    """What a pipeline is made of: "baseline", or coarse-to-fine with the support "cluster" or "full"."""

    def make(kind, codebook_size=24, num_clusters=5, layout=Layout((2, 3))):
        tokenizer, sizes = make_tokenizer(codebook_size), {"codebook_size": codebook_size, "layout": layout}
        if kind == "baseline":
            stages = [make_stage(name="baseline", **sizes)]
        else:
            coarse_map = cluster_codebook(tokenizer.codebook, num_clusters)
            stages = [
                make_stage(name="coarse", predicts=coarse_map, **sizes),
                make_stage("masked", name="fine", given=coarse_map, support=kind, seed=1, **sizes),
            ]
        return {"tokenizer": tokenizer, "class_names": CLASS_NAMES, "stages": stages}

    return make


@pytest.fixture(scope="session")
def make_pipeline(make_parts):
    def make(kind, **sizes):
        return Pipeline(**make_parts(kind, **sizes))

    return make


@pytest.fixture(scope="session")
def scales_pipeline():
    """Coarse and fine stage of kind next_scale over tokens on 1 × 1, 2 × 2 and 4 × 4, of 16 × 16 pixels."""
    torch.manual_seed(0)
    sizes = {"z_channels": 32, "patch_size": 4, "codebook_size": 24, "codebook_dim": 4, "scales": (1, 2, 4)}
    tokenizer = MultiScaleTokenizer(MultiScaleConfig(32, (1,), 1, 1, **sizes)).eval()
    coarse_map = cluster_codebook(tokenizer.codebook, 5)
    facts = {"layout": tokenizer.quantizer.scales, "num_classes": 4, "codebook_size": 24, "tokenizer": tokenizer}
    levels = {"coarse": {"predicts": coarse_map}, "fine": {"given": coarse_map}}
    stages = [new_stage("next_scale", "nano", name=name, **facts, **level).eval() for name, level in levels.items()]
    for stage in stages:
        torch.nn.init.normal_(stage.transformer.head.weight, std=0.3)
    return Pipeline(tokenizer, CLASS_NAMES, stages)


@pytest.fixture(scope="session")
def scales_stage():
    """A stage of size nano with its initial weights over tokens on 1 × 1, 2 × 2 and 3 × 3."""

    def make(kind, **settings):
        config = MultiScaleConfig(32, (1,), 1, 1, z_channels=32, codebook_size=24, scales=(1, 2, 3))
        tokenizer = {"tokenizer": MultiScaleTokenizer(config)} if kind == "next_scale" else {}
        facts = {"name": "a", "layout": Layout.square(1, 2, 3), "num_classes": 5, "codebook_size": 24}
        return new_stage(kind, "nano", **facts, **tokenizer, **settings).eval()

    return make


@pytest.fixture(scope="session")
def fill_workplace():
    """A function that puts into a folder what the commands of help and documentation find there."""

    def fill(folder):
        generator = np.random.default_rng(0)
        for place, count in ("pictures", 16), ("photos/flower", 20), ("photos/temple", 20), ("few/noto heart", 2):
            (folder / place).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(generator.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / place / f"{i}.png")
        shutil.copy(folder / "pictures" / "0.png", folder / "photo.png")
        (folder / "configs").symlink_to(ROOT / "configs")
        golden = ROOT / "tests" / "golden" / "llamagen"
        (folder / "vq_ds16_c2i.pt").symlink_to(golden / "vq8.pt")
        (folder / "c2i_B_256.pt").symlink_to(golden / "gpt_mha.pt")
        (folder / "vae_ch160v4096z32.pth").symlink_to(golden.parent / "var" / "vq.pt")
        (folder / "var_d16.pth").symlink_to(golden.parent / "var" / "var_adaln.pt")
        np.save(folder / "tokens.npy", generator.integers(0, 16_384, (5, 2, 64), np.uint16))
        np.save(folder / "labels.npy", np.arange(5))
        for name in ("imagenet_code_c2i_flip_ten_crop", "imagenet_code_c2i_flip_ten_crop_105"):
            write_codes(folder / name, generator.integers(0, 64, (3, 10, 256)), np.arange(3))

    return fill


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub of this process alone where `owner` is logged in, its own cache, and no waiting between attempts."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    with HubStandIn(tmp_path / "hub") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", hub.token_of["owner"])
        yield hub
