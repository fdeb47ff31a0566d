import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from same import contents, equal

from ctf.codebook import cluster_codebook, codebook_fingerprint
from ctf.errors import InputError
from ctf.files import write_json
from ctf.images import open_images
from ctf.layout import Layout
from ctf.model_card import part_fingerprint, read_metrics
from ctf.model_folder import Pipeline, assemble, data_in_words, describe, find_model, open_stage, publish
from ctf.sampling import Sampling
from ctf.tokenizer import VQTokenizer
from ctf.tokenizer.registry import TOKENIZERS, load_tokenizer
from ctf.tokens import write_token_set
from ctf.training import CoarseTraining, LoopConfig, train_stage

KINDS = pytest.mark.parametrize("kind", ["baseline", "cluster", "full"])
LABELS = [0, 1, 2, 3, 3, 1, 0]
SEEDS = [5, 0, 7, 7, 8, 2**40, 6]


# Saved and opened


@KINDS
def test_saved_and_loaded_it_gives_the_same_images(make_pipeline, tmp_path, kind):
    pipeline = make_pipeline(kind)
    pipeline.save_pretrained(tmp_path / "model")
    loaded = Pipeline.from_pretrained(tmp_path / "model")
    assert loaded.class_names == pipeline.class_names
    assert [stage.support for stage in loaded.stages] == [stage.support for stage in pipeline.stages]
    assert [stage.predicts for stage in loaded.stages] == [stage.predicts for stage in pipeline.stages]
    assert equal(loaded(LABELS, SEEDS), pipeline(LABELS, SEEDS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_half_precision_rounds_the_stages_only(make_pipeline, tmp_path):
    pipeline = make_pipeline("cluster")
    for name, dtype in (("half", torch.float16), ("full", torch.float32)):
        pipeline.save_pretrained(tmp_path / name, dtype)
    with torch.no_grad():
        for parameter in (p for stage in pipeline.stages for p in stage.parameters()):
            parameter.copy_(parameter.half())
    loaded = Pipeline.from_pretrained(tmp_path / "half")
    assert next(loaded.stages[0].parameters()).dtype == torch.float32
    assert equal(loaded(LABELS, SEEDS), pipeline(LABELS, SEEDS))
    sizes = {name: (tmp_path / name / "fine.safetensors").stat().st_size for name in ("half", "full")}
    assert sizes["half"] < 0.7 * sizes["full"]


def test_the_model_card_of_several_scales(scales_pipeline, tmp_path):
    scales_pipeline.save_pretrained(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "tags: [autoregressive, vq, multi-scale, next-scale]" in card
    assert "4 classes; 1 × 1, 2 × 2, 4 × 4 tokens of a codebook of 24" in card


def test_the_model_card_says_what_the_model_is(make_pipeline, tmp_path):
    make_pipeline("cluster").save_pretrained(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "8 × 12 pixels" in card
    assert "4 classes; 2 × 3 tokens of a codebook of 24" in card
    assert "| coarse | autoregressive | 5 clusters (kmeans) of 24 tokens |" in card
    assert "| fine | masked | 24 tokens |" in card


def test_overwriting_replaces_the_whole_folder(make_pipeline, tmp_path):
    make_pipeline("cluster").save_pretrained(tmp_path / "model")
    make_pipeline("baseline").save_pretrained(tmp_path / "model")
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == [
        "README.md",
        "baseline.safetensors",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "tokenizer.safetensors",
    ]


def test_a_failed_overwrite_leaves_what_was_there(make_pipeline, tmp_path):
    pipeline = make_pipeline("cluster")
    pipeline.save_pretrained(tmp_path / "model")
    before = contents(tmp_path)
    pipeline.class_names = [object()]  # what JSON cannot hold: fails after the weights are written
    with pytest.raises(TypeError):
        pipeline.save_pretrained(tmp_path / "model")
    assert contents(tmp_path) == before


def test_other_peoples_files_are_not_replaced(make_pipeline, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    pipeline = make_pipeline("baseline")
    (folder / "thesis.tex").write_text("years")
    (folder / "config.json").write_text('{"loop": {}}')  # that of a run, for example
    for path in (folder, folder / "thesis.tex"):
        with pytest.raises(InputError, match="is not a model folder"):
            pipeline.save_pretrained(path)
    assert (folder / "thesis.tex").read_text() == "years"
    (tmp_path / "empty").mkdir()
    pipeline.save_pretrained(tmp_path / "empty")
    pipeline.save_pretrained(tmp_path / "empty")
    (tmp_path / "empty" / ".git").mkdir()  # a clone of its repository on the Hub
    with pytest.raises(InputError, match=r"empty also holds \.git: choose another, or move what would be lost"):
        pipeline.save_pretrained(tmp_path / "empty")


def test_a_folder_of_a_bundled_name_is_not_taken_in_silence(make_pipeline, tmp_path, monkeypatch):
    make_pipeline("baseline").save_pretrained(tmp_path / "photos")
    (tmp_path / "emoji").mkdir()
    monkeypatch.chdir(tmp_path)
    for call in (lambda: find_model("photos"), lambda: load_tokenizer("photos"), lambda: open_images("emoji")):
        with pytest.warns(UserWarning, match="is the bundled one; the folder here is ./"):
            call()
    assert find_model("./photos") == Path("photos")
    (tmp_path / "photos" / "config.json").unlink()  # as a folder of images
    (tmp_path / "photos" / "tokenizer.safetensors").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_model("photos"), load_tokenizer("photos")


def test_parts_that_do_not_belong_together(make_parts, make_tokenizer, make_stage):
    parts, baseline = make_parts("cluster"), make_parts("baseline")
    coarse, fine = parts["stages"]
    other = cluster_codebook(make_tokenizer(seed=1).codebook, 5)
    shuffled = cluster_codebook(parts["tokenizer"].codebook, 5, "random")
    level = {"given": coarse.predicts, "name": "fine"}
    unlike = [
        (parts, {"stages": [coarse]}, "a finer stage is missing"),
        (parts, {"stages": [fine]}, "fine must be given nothing but the class label"),
        (parts, {"stages": [fine, coarse]}, "fine must be given nothing"),
        (parts, {"stages": [*baseline["stages"], fine]}, "fine must be given nothing"),
        (parts, {"stages": [coarse, make_stage("masked", given=shuffled, name="fine")]}, "what coarse predicts"),
        (parts, {"stages": [make_stage(predicts=other), make_stage("masked", given=other, name="b")]}, "of another"),
        (parts, {"tokenizer": make_tokenizer(25)}, "for a codebook of 24, the tokenizer has 25"),
        (parts, {"tokenizer": make_tokenizer(seed=1)}, "tokens of another codebook"),
        (parts, {"stages": [coarse, make_stage("masked", layout=Layout((3, 2)), **level)]}, "differ in layout"),
        (parts, {"stages": [coarse, make_stage("masked", num_classes=5, **level)]}, "number of classes"),
        (parts, {"stages": [coarse, make_stage("masked", **level | {"name": "coarse"})]}, "stages of one name"),
        (parts, {"class_names": ["cat"]}, "1 class names for a model of 4 classes"),
        (baseline, {"tokenizer": make_tokenizer(25)}, "codebook of 24, the tokenizer has 25"),
        (baseline, {"class_names": ["cat"] * 5}, "5 class names for a model of 4 classes"),
    ]
    for whole, change, message in unlike:
        with pytest.raises(InputError, match=message):
            Pipeline(**whole | change)


def test_settings_of_the_folder_are_the_models_own(make_pipeline, tmp_path):
    pipeline = make_pipeline("cluster")
    pipeline.stages[0].sampling = Sampling(cfg_scale=3.0, temperature=0.9)
    pipeline.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    stored = {"cfg_scale": 3.0, "temperature": 0.9, "top_k": 0, "top_p": 1.0, "steps": None, "order": None}
    assert json.loads(path.read_text())["coarse"].items() >= stored.items()
    assert Pipeline.from_pretrained(tmp_path / "model").sampling() == pipeline.sampling()
    path.write_text('{"fine": {"temperature": 0.5}}')
    changed = [stage.sampling for stage in Pipeline.from_pretrained(tmp_path / "model").stages]
    assert changed == [Sampling(cfg_scale=3.0, temperature=0.9), Sampling(temperature=0.5)]


def test_a_part_that_is_missing_two_settings(make_pipeline, tmp_path):
    make_pipeline("cluster").save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    for text, message in (
        ("[]", "does not hold settings by stage"),
        ('{"fine": {"temprature": 1}}', "generation_config.json, fine: no sampling setting 'temprature'"),
        ('{"fine": {"top_p": 2}}', r"generation_config.json, fine: top_p 2 must be in \(0, 1\]"),
        ('{"fine": {"top_k": "many"}}', "top_k 'many' must be a whole number"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            Pipeline.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not a model folder"),
        ("{", "not valid JSON"),
        ("[]", "is not a model folder"),
        ('{"model_type": "bert"}', "is not a model folder"),
        ('{"ctf": "pipeline", "format": 1}', "model folders of format 2"),
        ('{"ctf": "pipeline", "format": 2}', "model folders of format 2"),
    ],
)
def test_not_a_model_folder(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        Pipeline.from_pretrained(tmp_path)


def test_the_bundled_model():
    pipeline = Pipeline.from_pretrained("emoji")
    assert "noto face-smiling" in pipeline.class_names
    image, *_ = pipeline(["noto face-smiling"], seed=0)
    assert image.size == (64, 64)
    assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 16  # not one flat colour


# Described and assembled


@pytest.fixture
def files(make_parts, tmp_path):
    """The parts of a pipeline of each kind, saved, with a token set: a function from name to path."""
    parts = make_parts("cluster")
    for stage in (*parts["stages"], *make_parts("baseline")["stages"]):
        stage.save(tmp_path / f"{stage.name}.safetensors")
    parts["tokenizer"].save(tmp_path / "tokenizer.safetensors")
    parts["stages"][0].predicts.save(tmp_path / "coarse_map.safetensors")
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
    parts = {"tokenizer": files("tokenizer"), "stages": [files("coarse"), files("fine")], "classes": files("tokens")}
    return parts | changes


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tokens", {"kind": "token set", "images": 12, "classes": 4, "layout": Layout((2, 3))}),
        ("coarse_map", {"kind": "coarse map", "num_fine": "24", "num_coarse": "5"}),
        ("tokenizer", {"kind": "tokenizer", "family": "vq"}),
        (
            "fine",
            {"kind": "stage", "name": "fine", "kind_of_stage": "masked", "support": "cluster"}
            | {"predicts": "24 tokens", "given": "5 clusters (kmeans) of 24 tokens"},
        ),
    ],
)
def test_describe_a_file(files, name, said):
    facts = describe(files(name))
    assert facts.items() >= said.items()
    if name == "tokenizer":
        assert (facts["bytes"], facts["config"]["codebook_size"]) == (Path(files(name)).stat().st_size, 24)


def test_describe_a_run_and_open_it_as_a_stage(files, tmp_path):
    loop = LoopConfig(batch_size=4, steps=2, log_every=1, device="cpu", precision="float32")
    common = {"tokens": files("tokens"), "coarse_map": files("coarse_map"), "size": "nano", "loop": loop}
    train_stage(CoarseTraining(out=str(tmp_path / "before"), **common))
    begun = {"start_from": str(tmp_path / "before"), "held_out": files("tokens")}
    train_stage(CoarseTraining(out=str(tmp_path / "run"), **begun, **common))
    facts = describe(str(tmp_path / "run"))
    assert (facts["kind"], facts["finished"], facts["last"]["step"]) == ("run", True, 2)
    assert facts["last"]["held_out/loss"] > 0
    assert facts["settings"]["loop"]["batch_size"] == 4
    assert facts["checkpoint"].endswith("step-00000002.safetensors")
    stage = open_stage(tmp_path / "run")
    assert (stage.name, stage.kind, stage.vocabulary) == ("coarse", "autoregressive", 5)
    assert stage.sampling == Sampling(cfg_scale=2.0, temperature=1.1)  # the paper's
    longer = dataclasses.replace(loop, steps=3, resume=True)
    train_stage(CoarseTraining(out=str(tmp_path / "run"), **{**common, "loop": longer}))  # without `begun`
    assemble(tmp_path / "model", **two_stage(files, stages=[str(tmp_path / "run"), files("fine")]))
    training = Pipeline.from_pretrained(tmp_path / "model").about.training
    assert training.keys() == {"coarse"}
    assert (training["coarse"]["settings"]["loop"]["batch_size"], training["coarse"]["last"]["step"]) == (4, 3)
    assert training["coarse"]["settings"]["start_from"] == "before"
    assert training["coarse"]["changes"] == [{"step": 2, "loop.steps": [2, 3]}]
    assert str(tmp_path) not in (tmp_path / "model" / "manifest.json").read_text()
    parts = two_stage(files, stages=[str(tmp_path / "run"), files("fine")], classes=str(tmp_path / "renamed"))
    names = {"layout": Layout((2, 3)), "class_names": ["cat", "fox", "dog", "owl"]}
    write_token_set(tmp_path / "renamed", np.zeros((1, 6), int), np.zeros(1, int), 24, **names)
    with pytest.raises(InputError, match="different classes: class 1 is red fox there, fox here"):
        assemble(tmp_path / "renamed_model", **parts)
    (tmp_path / "run" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="run that has not finished: continue it"):
        open_stage(tmp_path / "run")


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        ("coarse", "is the training run of the stage coarse, not a model folder: `ctf assemble` makes one"),
        ("tokenizer", "is the training run of the tokenizer, not a model folder: `ctf assemble`"),
        (None, "is a training run that has not finished, not a model folder: `ctf assemble`"),
    ],
)
def test_a_training_run_is_no_model(files, tmp_path, trained, message):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"loop": {}}')
    if trained:
        (tmp_path / "run" / "model.safetensors").write_bytes(Path(files(trained)).read_bytes())
    for opened in Pipeline.from_pretrained, lambda run: publish(run, "owner/name"):
        with pytest.raises(InputError, match=message):
            opened(str(tmp_path / "run"))


def test_a_run_of_fit_says_where_its_model_is(files, tmp_path):
    assemble(tmp_path / "run" / "model", **two_stage(files))
    with pytest.raises(InputError, match=r"run is not a model folder: its model is in .*run/model"):
        Pipeline.from_pretrained(tmp_path / "run")


def test_describe_model_folders(files, tmp_path):
    assemble(tmp_path / "two", **two_stage(files))
    assemble(tmp_path / "one", files("tokenizer"), [files("baseline")], files("tokens"))
    two, one = describe(str(tmp_path / "two")), describe(str(tmp_path / "one"))
    assert [stage["name"] for stage in two["stages"]] == ["coarse", "fine"]
    assert [stage["name"] for stage in one["stages"]] == ["baseline"]
    assert one["image_size"] == two["image_size"] == [8, 12]
    fine = Pipeline.from_pretrained(tmp_path / "two").stage("fine")
    data = Pipeline.from_pretrained(tmp_path / "two").about.data
    assert data == "images from elsewhere: 12 images of 4 classes"
    assert two["stages"][1]["parameters"] == len(torch.nn.utils.parameters_to_vector(fine.parameters()))


def test_assemble_gives_what_the_parts_give(files, make_pipeline, tmp_path):
    written = assemble(tmp_path / "model", **two_stage(files))
    opened = Pipeline.from_pretrained(tmp_path / "model")
    labels = torch.arange(4)
    expected = make_pipeline("cluster").generate_tokens(labels, range(4))
    assert written.stages[0].codebook == codebook_fingerprint(written.tokenizer.codebook)
    assert torch.equal(written.generate_tokens(labels, range(4)), expected)
    assert torch.equal(opened.generate_tokens(labels, range(4)), expected)
    assert opened.class_names == ["cat", "red fox", "dog", "owl"]


def test_assemble_in_half_precision(files, tmp_path):
    for half in (True, False):
        assemble(tmp_path / str(half), **two_stage(files), half=half)
    sizes = {half: (tmp_path / str(half) / "fine.safetensors").stat().st_size for half in (True, False)}
    assert sizes[True] < 0.7 * sizes[False]


def test_a_bound_on_bits_is_called_so_and_bits_of_a_part_are_no_figure(tmp_path):
    write_json(tmp_path / "bits.json", {"bits_per_token": 7.5, "bound": "upper", "images": 3})
    assert read_metrics(tmp_path / "bits.json") == {"bits_per_token_at_most": 7.5, "images": 3}
    write_json(tmp_path / "part.json", {"bits_per_token": 7.5, "unconditional_bits_per_token": 8.0})
    with pytest.raises(InputError, match=r"part\.json holds the bits of a part of images: .* without --region"):
        read_metrics(tmp_path / "part.json")


def test_the_folder_of_the_images_has_its_name_on_the_card(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "photos")
    tokens = write_token_set("../tokens", np.zeros((2, 4), int), np.zeros(2, int), 24, source=".")
    assert data_in_words(tokens).startswith("photos: 2 images")


def test_what_one_pipeline_says_of_itself_is_its_own(make_pipeline):
    first, second = make_pipeline("cluster"), make_pipeline("cluster")
    first.about.metrics["fid"] = 3.0
    assert second.about.metrics == {}


def test_the_manifest_knows_a_next_scale_stage_in_half_precision(scales_pipeline, tmp_path):
    """Its tokenizer's convolutions stay in float32."""
    scales_pipeline.save_pretrained(tmp_path / "model", torch.float16)
    stage = Pipeline.from_pretrained(tmp_path / "model").stages[0]
    written = json.loads((tmp_path / "model" / "manifest.json").read_text())["weights"]
    assert written[stage.name] == part_fingerprint(stage)


def test_a_codebook_that_is_no_parameter_is_neither_rounded_nor_left_out(make_parts, tmp_path, monkeypatch):
    class Fixed(VQTokenizer):
        """Its codebook is not trained."""

        family = "fixed"

        def build_quantizer(self):
            quantizer = super().build_quantizer()
            codebook = quantizer.weight.detach()
            del quantizer.weight
            quantizer.register_buffer("weight", codebook)
            return quantizer

    monkeypatch.setitem(TOKENIZERS, "fixed", Fixed)
    parts = make_parts("baseline")
    tokenizer = Fixed(parts["tokenizer"].config).eval()
    tokenizer.load_state_dict(parts["tokenizer"].state_dict())
    for parameter in tokenizer.parameters():
        parameter.data = parameter.half().float()
    Pipeline(**parts | {"tokenizer": tokenizer}).save_pretrained(tmp_path / "model")
    assert torch.equal(Pipeline.from_pretrained(tmp_path / "model").tokenizer.codebook, tokenizer.codebook)
    before = part_fingerprint(tokenizer)
    tokenizer.quantizer.weight += 1
    assert part_fingerprint(tokenizer) != before
