import dataclasses
import json

import pytest
import torch
from stage_cases import EVERY_KIND, EVERY_TASK

from ctf.errors import InputError
from ctf.files import load_tensors, read_metadata, save_tensors
from ctf.layout import Layout
from ctf.sampling import Random, Sampling
from ctf.stages import KINDS, Masked, load_stage, new_stage, register_kind

OWN = Sampling(2.5, 0.9, 7, 0.8, "known", steps=4, order="random", schedule="arccos", order_seed=3)
TOKENS = torch.randint(30, (3, 8), generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 4, 5])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "stage.safetensors"


@EVERY_KIND
@EVERY_TASK
def test_everything_survives(make, path, kind, task):
    stage = make(kind, task, name="mine", sampling=OWN, kv_heads=1, class_dropout=0.2).train()
    stage.save(path)
    loaded = load_stage(path)
    assert type(loaded) is type(stage) is KINDS[kind.split(",")[0]]
    for name in ("name", "config", "predicts", "given", "support", "sampling", "codebook"):
        assert getattr(loaded, name) == getattr(stage, name), name
    for found, level in zip((loaded.predicts, loaded.given), (stage.predicts, stage.given), strict=True):
        for name in ("method", "seed", "codebook_fingerprint") if level else ():
            assert getattr(found, name) == getattr(level, name), name
    assert not loaded.training
    way = Sampling()  # its own may be another kind's
    assert torch.equal(loaded.log_prob(TOKENS, LABELS, way), stage.eval().log_prob(TOKENS, LABELS, way))


@pytest.mark.parametrize("kind", ["autoregressive", "any_order", "masked, any"])
def test_loading_draws_no_random_numbers(make, path, kind):
    """Those of XL would take a CPU seconds, for weights that are then replaced."""
    make(kind).save(path)
    before = torch.get_rng_state()
    load_stage(path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.gpu)])
@EVERY_KIND
def test_a_new_stage_is_where_its_weights_are_drawn(coarse_map, kind, device):
    kind, _, rounds = kind.partition(", ")
    facts = {"given": coarse_map, **TASK, **({"rounds": rounds} if rounds else {})}
    torch.manual_seed(0)
    expected = new_stage(kind, "nano", **facts)
    torch.manual_seed(0)
    stage = new_stage(kind, "nano", **facts, device=torch.device(device))
    assert {tensor.device.type for tensor in (*stage.parameters(), *stage.buffers())} == {device}
    if device == "cpu":
        assert all(map(torch.equal, stage.parameters(), expected.parameters()))
    elif device == "cuda":
        assert stage.eval().generate(LABELS, Random(range(3)), given=torch.zeros(3, 8).long()).is_cuda


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_half_the_bytes_and_opens_as_float32(make, tmp_path, dtype):
    stage = make("masked", "fine", dim=64)
    stage.save(tmp_path / "whole")
    stage.save(tmp_path / "half", dtype)
    loaded = load_stage(tmp_path / "half")
    for parameter, original in zip(loaded.parameters(), stage.parameters(), strict=True):
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, original.to(dtype).float())
    assert (tmp_path / "half").stat().st_size < 0.55 * (tmp_path / "whole").stat().st_size
    assert torch.equal(loaded.given.fine_to_coarse, stage.given.fine_to_coarse)


def test_equal_stages_are_equal_bytes(make, tmp_path):
    for name in "ab":
        make("masked", "middle").save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "diffusion"}, "kind 'diffusion' of stage does not exist: choose one of autoregressive, masked"),
        ({"kind": None}, "this version of ctf cannot read this stage"),
        ({"config": '{"depth": 3}'}, "this version of ctf cannot read this stage"),
        ({"config": "{"}, "this version of ctf cannot read this stage"),
        ({"config": "[]"}, "this version of ctf cannot read this stage"),
        ({"sampling": '{"temperature": -1}'}, "temperature -1 must be"),
        ({"sampling": '{"seed": 1}'}, "no sampling setting 'seed'"),
        ({"sampling": "null"}, "this version of ctf cannot read this stage"),
        ({"support": "clusters"}, "support 'clusters' does not exist"),
        ({"given": "3"}, "this version of ctf cannot read this stage"),
        ({"given": torch.arange(29) % 6}, "stage stage predicts 30 labels, its level has 29"),
        ({"given": torch.arange(30) % 7}, "stage stage reads 6 given labels, their level has 7"),
        ({"given": torch.full((30,), 2)}, ".*labels must be 0"),
        ({"transformer.head.weight": torch.zeros(30, 17)}, "this version of ctf cannot read this stage"),
        ({"transformer.head.weight": None}, "this version of ctf cannot read this stage"),
        ({"more": torch.zeros(1)}, "this version of ctf cannot read this stage"),
    ],
)
def test_a_file_that_another_version_may_have_written(make, path, change, message):
    make("masked", "fine").save(path)
    tensors, metadata = load_tensors(path)
    for name, value in change.items():
        part = tensors if torch.is_tensor(value) or name not in metadata else metadata
        part.update({name: value}) if value is not None else part.pop(name)
    save_tensors(path, tensors, metadata)
    with pytest.raises(InputError, match=rf"stage\.safetensors: {message}") as error:
        load_stage(path)
    assert "\n" not in str(error.value)


def test_a_registered_kind_is_made_and_loaded_by_its_name(monkeypatch, path):
    monkeypatch.setattr("ctf.stages.registry.KINDS", dict(KINDS))

    @register_kind
    class Mine(Masked):
        kind = "mine"

    stage = new_stage("mine", "nano", name="a", layout=Layout((2, 4)), num_classes=5, codebook_size=30)
    assert type(stage) is Mine
    stage.save(path)
    assert read_metadata(path)["kind"] == "mine"
    assert json.loads(read_metadata(path)["config"])["output_vocab"] == 30
    assert type(load_stage(path)) is Mine


TASK = {"name": "a", "layout": Layout((2, 4)), "num_classes": 5, "codebook_size": 30}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "diffusion"}, "kind 'diffusion' of stage does not exist: choose one of autoregressive, masked"),
        ({"size": "G"}, "model size 'G' does not exist"),
        ({"name": "stage 1"}, "a stage cannot be called 'stage 1'"),
        ({"support": "none"}, "support 'none' does not exist: choose one of cluster, full"),
        ({"codebook_size": 31}, "codebook of 31, the coarse map is for 30"),
        ({"codebook": "0123456789abcdef"}, "belong to different codebooks"),
        ({"predicts": "unrelated"}, "is no coarsening of what it predicts: make nested maps"),
    ],
)
def test_inconsistent_stages_are_refused(coarse_map, wrong, message):
    if wrong.get("predicts"):
        unrelated = torch.arange(30) % 10
        wrong = {"predicts": dataclasses.replace(coarse_map, fine_to_coarse=unrelated)}
    with pytest.raises(InputError, match=message):
        new_stage(**{"kind": "masked", "size": "nano", "given": coarse_map, **TASK, **wrong})


def test_with_full_support_maps_need_not_be_nested(coarse_map):
    unrelated = dataclasses.replace(coarse_map, fine_to_coarse=torch.arange(30) % 10)
    stage = new_stage("masked", "nano", predicts=unrelated, given=coarse_map, support="full", **TASK)
    assert stage(TOKENS, LABELS).shape == (3, 8)
