import json
from pathlib import Path

import pytest
import torch

from ctf.errors import InputError
from ctf.evaluation import Manifest, manifest_path
from ctf.evaluation.manifest import part_fingerprint
from ctf.files import fingerprint

CHOSEN = [0, 1, 2, 3, 0]


@pytest.fixture
def manifest_of(make_pipeline):
    def make(pipeline=None, labels=CHOSEN, seed=7, batch_size=2, model="here", processes=1, **settings):
        pipeline = pipeline or make_pipeline("cluster")
        return Manifest.of(pipeline, labels, "balanced", None, seed, batch_size, settings, model, processes)

    return make


def test_what_it_says(make_pipeline, manifest_of, tmp_path):
    pipeline = make_pipeline("full")
    manifest_of(pipeline, cfg_scale=1.5).save(tmp_path / "manifest.json")
    said = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    parts = {name: getattr(pipeline, name) for name in ("tokenizer", "coarse", "fine")}
    weights = {name: fingerprint(torch.cat([p.flatten() for p in part.parameters()])) for name, part in parts.items()}
    expected = {
        "count": 5,
        "image_size": [8, 12],
        "weights": weights | {"coarse_map": fingerprint(pipeline.coarse_map.fine_to_coarse)},
        "support": "full",
        "labels": fingerprint(torch.tensor(CHOSEN)),
        "seed": 7,
        "batch_size": 2,
        "dtype": "float32",
        "decoder": {"fingerprint": weights["tokenizer"], "downsampling": 4},
        "resize": None,
        "model": "here",
    }
    assert {name: said[name] for name in expected} == expected
    assert said["settings"]["cfg_scale"] == 1.5
    assert said["settings"]["temperature"] == 1.1  # the pipeline's default


def test_save_and_load(manifest_of, tmp_path):
    manifest = manifest_of()
    manifest.save(tmp_path / "manifest.json")
    assert Manifest.load(tmp_path / "manifest.json") == manifest


@pytest.mark.parametrize(
    ("change", "differences"),
    [
        ({"model": "elsewhere", "processes": 8}, []),  # circumstances
        ({"seed": 8}, ["seed is 8 there and 7 here"]),
        ({"top_p": 0.9}, ["settings.top_p is 0.9 there and 1.0 here"]),
        ({"labels": [0, 1, 2, 3, 1]}, ["labels is"]),
        ({"labels": CHOSEN[:4], "batch_size": 3}, ["batch_size is 3 there and 2 here", "count is 4", "labels is"]),
    ],
)
def test_what_determines_the_images_is_compared(manifest_of, change, differences):
    found = manifest_of().differences(manifest_of(**change))
    assert len(found) == len(differences)
    assert all(text.startswith(start) for text, start in zip(found, differences, strict=True))
    assert (manifest_of() == manifest_of(**change)) == (not differences)


@pytest.mark.parametrize("part", ["coarse", "fine", "tokenizer"])
def test_other_weights_are_another_manifest(make_pipeline, manifest_of, part):
    pipeline = make_pipeline("cluster")
    with torch.no_grad():
        next(getattr(pipeline, part).parameters()).flatten()[0] += 1
    assert any(f"weights.{part}" in text for text in manifest_of().differences(manifest_of(pipeline)))


def test_precision_is_compared(make_pipeline, manifest_of):
    found = manifest_of().differences(manifest_of(make_pipeline("cluster").compute_in("bfloat16", "int8")))
    assert found == ["dtype is 'bfloat16' there and 'float32' here", "quantize is 'int8' there and None here"]


def test_a_baseline_has_other_parts(make_pipeline, manifest_of):
    found = manifest_of().differences(manifest_of(make_pipeline("baseline")))
    assert any(text.startswith("weights.coarse is None there") for text in found)


def test_negative_zero_is_zero():
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.zeros_(layer.weight)
    before = part_fingerprint(layer)
    torch.nn.init.constant_(layer.weight, -0.0)
    assert part_fingerprint(layer) == before


def test_where_it_is():
    assert manifest_path("runs/a.b.npz") == Path("runs/a.b.manifest.json")
    assert manifest_path("runs/samples") == Path("runs/samples/manifest.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not the manifest of a sample set"),
        ('{"ctf": "pipeline"}', "not the manifest of a sample set"),
        ('{"ctf": "samples", "format": 2}', "update ctf"),
        ('{"ctf": "samples", "format": 1, "count": 3}', "update ctf"),
    ],
)
def test_not_a_manifest(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=message):
        Manifest.load(tmp_path / "manifest.json")
