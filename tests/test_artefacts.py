from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ctf.artefacts import assemble, describe, from_llamagen
from ctf.codebook import cluster_codebook
from ctf.errors import InputError
from ctf.interop import llamagen
from ctf.pipeline import Pipeline
from ctf.tokens import write_token_set
from ctf.training import CoarseTraining, LoopConfig, train_coarse

GOLDEN = Path(__file__).parent / "golden" / "llamagen"


@pytest.fixture
def files(make_parts, tmp_path):
    """The parts of a pipeline of each kind, saved, with a token set: a function from name to path."""
    parts = make_parts("cluster") | {"baseline": make_parts("baseline")["baseline"]}
    for name in ("tokenizer", "coarse_map", "coarse", "fine", "baseline"):
        parts[name].save(tmp_path / f"{name}.safetensors")
    tokens = np.random.default_rng(0).integers(0, 24, (12, 1, 6))
    write_token_set(
        tmp_path / "tokens",
        tokens,
        np.arange(12) % 4,
        24,
        (2, 3),
        parts["class_names"],
        codebook=parts["tokenizer"].codebook,
    )
    return lambda name: str(tmp_path / (name if name == "tokens" else f"{name}.safetensors"))


def two_stage(files, **changes):
    names = {"tokenizer": "tokenizer", "classes": "tokens", "coarse": "coarse", "fine": "fine"}
    return {key: files(name) for key, name in {**names, "coarse_map": "coarse_map"}.items()} | changes


def test_describe_a_token_set(files):
    facts = describe(files("tokens"))
    assert (facts["kind"], facts["images"], facts["classes"], facts["grid"]) == ("token set", 12, 4, [2, 3])


def test_describe_a_coarse_map(files):
    facts = describe(files("coarse_map"))
    assert (facts["kind"], facts["num_fine"], facts["num_coarse"]) == ("coarse map", "24", "5")
    assert facts["cluster_sizes"]["min"] >= 1


@pytest.mark.parametrize(("name", "kind"), [("tokenizer", "tokenizer"), ("fine", "transformer")])
def test_describe_a_module(files, name, kind):
    facts = describe(files(name))
    assert facts["kind"] == kind
    assert facts["bytes"] == Path(files(name)).stat().st_size
    assert 24 in facts["config"].values()


def test_describe_a_run(files, tmp_path):
    loop = LoopConfig(batch_size=4, steps=2, log_every=1, device="cpu", precision="float32")
    common = {"tokens": files("tokens"), "coarse_map": files("coarse_map"), "size": "nano", "loop": loop}
    train_coarse(CoarseTraining(out=str(tmp_path / "run"), held_out=files("tokens"), **common))
    facts = describe(str(tmp_path / "run"))
    assert (facts["kind"], facts["finished"], facts["last"]["step"]) == ("run", True, 2)
    assert facts["last"]["held_out/loss"] > 0
    assert facts["settings"]["loop"]["batch_size"] == 4
    assert facts["checkpoint"].endswith("step-00000002.safetensors")


def test_describe_model_folders(files, tmp_path):
    assemble(tmp_path / "two", **two_stage(files))
    assemble(tmp_path / "one", files("tokenizer"), files("tokens"), baseline=files("baseline"))
    two, one = describe(str(tmp_path / "two")), describe(str(tmp_path / "one"))
    assert (two["kind"], two["clusters"], two["support"]) == ("coarse-to-fine pipeline", 5, "cluster")
    assert one["kind"] == "baseline pipeline"
    assert one["image_size"] == two["image_size"] == [8, 12]
    assert set(two["parameters"]) == {"tokenizer", "coarse", "fine"}
    weights = torch.nn.utils.parameters_to_vector(Pipeline.from_pretrained(tmp_path / "two").fine.parameters())
    assert two["parameters"]["fine"] == len(weights)


def test_describe_sizes():
    assert describe("sizes")["B"] == {"layers": 12, "heads": 12, "dim": 768}


def test_describe_the_embedded_model():
    facts = describe("emoji")
    assert (facts["kind"], facts["image_size"]) == ("coarse-to-fine pipeline", [64, 64])
    assert len(facts["class_names"]) == 54


def test_describe_refuses_what_is_not_ours(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.json").write_text("[]")
    (tmp_path / "text.txt").write_text("text")
    for name in ("foreign.safetensors", "bert", "list", "text.txt", "nowhere", "."):
        with pytest.raises(InputError) as error:
            describe(str(tmp_path / name))
        assert "\n" not in str(error.value)


def test_assemble_gives_what_the_parts_give(files, make_pipeline, tmp_path):
    written = assemble(tmp_path / "model", **two_stage(files))
    opened = Pipeline.from_pretrained(tmp_path / "model")
    labels = torch.arange(4)
    expected = make_pipeline("cluster").generate_tokens(labels, range(4))
    assert torch.equal(written.generate_tokens(labels, range(4)), expected)
    assert torch.equal(opened.generate_tokens(labels, range(4)), expected)
    assert opened.class_names == ["cat", "red fox", "dog", "owl"]


def test_assemble_in_half_precision(files, tmp_path):
    for half in (True, False):
        assemble(tmp_path / str(half), **two_stage(files), half=half)
    sizes = {half: (tmp_path / str(half) / "fine.safetensors").stat().st_size for half in (True, False)}
    assert sizes[True] < 0.7 * sizes[False]


def test_assemble_takes_a_run_folder(files, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    Path(files("baseline")).rename(run / "model.safetensors")
    pipeline = assemble(tmp_path / "model", files("tokenizer"), files("tokens"), baseline=str(run))
    assert pipeline.baseline is not None


def test_assemble_refuses(files, make_parts, make_tokenizer, tmp_path):
    cluster_codebook(make_tokenizer(seed=1).codebook, 5).save(tmp_path / "other_map.safetensors")
    make_tokenizer(seed=1).save(tmp_path / "other_tokenizer.safetensors")
    other = {"grid": (3, 2), "class_names": ["cat", "red fox", "dog", "owl"]}
    write_token_set(tmp_path / "upright", np.zeros((1, 6), int), np.zeros(1, int), 24, **other)
    bare = {"tokenizer": files("tokenizer"), "classes": files("tokens")}
    cases = [
        (two_stage(files, coarse_map=files("other_map")), "another codebook"),
        (two_stage(files, coarse=files("fine"), fine=files("coarse")), "causal attention"),
        (two_stage(files, coarse=None), "either a baseline, or"),
        (two_stage(files, baseline=files("baseline")), "either a baseline, or"),
        (two_stage(files, fine=files("nowhere")), "no such safetensors file"),
        (two_stage(files, fine=files("tokenizer")), "not a ctf transformer"),
        (two_stage(files, classes=str(tmp_path / "upright")), r"grid of \(3, 2\)"),
        (bare, "either a baseline, or"),
        (bare | {"baseline": files("baseline"), "tokenizer": files("other_tokenizer")}, "made with another codebook"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            assemble(tmp_path / "model", **arguments)
    assert not (tmp_path / "model").exists()


def test_from_llamagen(tmp_path):
    facts = from_llamagen(tmp_path / "model", str(GOLDEN / "vq8.pt"), str(GOLDEN / "gpt_mha.pt"), 4, (4, 4))
    assert facts["kind"] == "baseline pipeline"
    assert (facts["grid"], facts["image_size"], facts["codebook"]) == ([4, 4], [32, 32], {"size": 64, "dim": 8})
    assert (facts["class_names"], facts["size"]) == ("0 … 9", "custom")
    gpt = llamagen.load_gpt(GOLDEN / "gpt_mha.pt", 4, grid=(4, 4))
    loaded = Pipeline.from_pretrained(tmp_path / "model").baseline
    assert all(torch.equal(a, b) for a, b in zip(gpt.parameters(), loaded.parameters(), strict=True))
    again = from_llamagen(tmp_path / "again", str(GOLDEN / "vq8.pt"), str(GOLDEN / "gpt_mha.pt"), 4, (4, 4))
    assert again["checksums"] == facts["checksums"]
    assert facts["checksums"]["tokenizer"] != facts["checksums"]["baseline"]


def test_from_llamagen_refuses_files_of_different_codebooks(tmp_path):
    with pytest.raises(InputError, match="predicts 64 tokens, the codebook has 128"):
        from_llamagen(tmp_path / "model", str(GOLDEN / "vq16.pt"), str(GOLDEN / "gpt_mha.pt"), 4, (4, 4))
    assert not (tmp_path / "model").exists()
