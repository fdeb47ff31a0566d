import dataclasses
import json

import pytest
import torch

from ctf.codebook import CoarseMap
from ctf.errors import InputError
from ctf.fingerprint import fingerprint
from ctf.model_card import part_fingerprint
from ctf.models.config import Compute
from ctf.samples import Manifest

CHOSEN = [0, 1, 2, 3, 0]
ASKED = {"label_policy": "balanced", "given_labels": [], "seed": 7, "batch_size": 2, "model": "here"}


@pytest.fixture
def manifest_of(make_pipeline):
    def make(pipeline=None, labels=CHOSEN, processes=1, overrides=None, **asked):
        return Manifest.of(pipeline or make_pipeline("cluster"), labels, overrides or {}, processes, **ASKED | asked)

    return make


def test_what_it_says(make_pipeline, manifest_of, tmp_path):
    pipeline = make_pipeline("full")
    manifest = manifest_of(pipeline, overrides={"cfg_scale": 1.5, "fine_top_k": 3})
    manifest.save(tmp_path / "manifest.json")
    assert Manifest.load(tmp_path / "manifest.json") == manifest
    said = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    coarse, fine = pipeline.stages
    expected = {
        "count": 5,
        "image_size": [8, 12],
        "stages": [
            {"name": "coarse", "kind": "autoregressive", "support": coarse.support},
            {"name": "fine", "kind": "masked", "support": "full"},
        ],
        "sampling": {
            "coarse": dataclasses.asdict(coarse.sampling) | {"cfg_scale": 1.5, "steps": 6, "order": "raster"},
            "fine": dataclasses.asdict(fine.sampling) | {"top_k": 3, "steps": 1, "order": "halton"},
        },
        "compute": {"dtype": "float32", "quantize": None, "compile": False, "decoder_dtype": "float32"},
        "labels": fingerprint(torch.tensor(CHOSEN)),
        "label_policy": "balanced",
        "seed": 7,
        "batch_size": 2,
        "resize": None,
        "model": "here",
    }
    assert {name: said[name] for name in expected} == expected
    values = torch.cat([p.flatten() for p in fine.parameters()] + [fine.given.fine_to_coarse])
    assert said["weights"]["fine"] == fingerprint(values)
    assert said["weights"].keys() == {"tokenizer", "coarse", "fine"}


@pytest.mark.parametrize(
    ("change", "differences"),
    [
        ({"model": "elsewhere", "processes": 8}, []),  # circumstances
        ({"seed": 8}, ["seed is 8 there and 7 here"]),
        ({"overrides": {"top_p": 0.9}}, ["sampling.coarse.top_p is 0.9 there and 1.0 here"]),
        ({"overrides": {"fine_top_k": 3}}, ["sampling.fine.top_k is 3 there and 0 here"]),
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
        next(pipeline.parts()[part].parameters()).flatten()[0] += 1
    found = manifest_of().differences(manifest_of(pipeline))
    assert [text.split()[0] for text in found] == [f"weights.{part}"]


def test_another_map_is_another_manifest(make_stage):
    one, other = (CoarseMap(torch.tensor([0, 1, 2] * 8).roll(shift), "kmeans", 0, "") for shift in (0, 1))
    prints = {part_fingerprint(make_stage("masked", given=coarse_map)) for coarse_map in (one, other)}
    assert len(prints) == 2


def test_precision_is_compared(make_pipeline, manifest_of):
    compute = Compute("bfloat16", quantize="int8", decoder_dtype="bfloat16")
    found = manifest_of().differences(manifest_of(make_pipeline("cluster").compute_in(compute)))
    assert found == [
        "compute.decoder_dtype is 'bfloat16' there and 'float32' here",
        "compute.dtype is 'bfloat16' there and 'float32' here",
        "compute.quantize is 'int8' there and None here",
    ]


def test_another_pipeline_differs_in_its_stages(make_pipeline, manifest_of):
    other = manifest_of().differences(manifest_of(make_pipeline("full")))
    assert "stages.fine.support is 'full' there and 'cluster' here" in other
    fewer = manifest_of().differences(manifest_of(make_pipeline("baseline")))
    assert any(text.startswith("weights.coarse is None there") for text in fewer)


def test_negative_zero_is_zero():
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.zeros_(layer.weight)
    before = part_fingerprint(layer)
    torch.nn.init.constant_(layer.weight, -0.0)
    assert part_fingerprint(layer) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not the manifest of a sample set"),
        ('{"ctf": "pipeline"}', "not the manifest of a sample set"),
        ('{"ctf": "samples", "format": 1}', "not of format 2"),
        ('{"ctf": "samples", "format": 2, "count": 3}', "not of format 2"),
        ({"count": "three"}, "count is"),
        ({"image_size": 8}, "image_size is"),
        ({"weights": []}, "weights is"),
        ({"seed": None}, "seed is"),
        ({"stages": {}}, "stages is"),
    ],
)
def test_a_damaged_manifest_is_named(manifest_of, tmp_path, change, message):
    text = change if isinstance(change, str) else json.dumps(manifest_of().as_json() | change)
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"manifest\.json:? .*{message}"):
        Manifest.load(tmp_path / "manifest.json")
