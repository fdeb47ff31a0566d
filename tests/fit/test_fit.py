import dataclasses
import json
import math
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ctf.codebook import CoarseMap
from ctf.errors import InputError
from ctf.evaluation.likelihood import bits_per_token
from ctf.files import read_json
from ctf.fit import FitConfig, Plan, choose, decide, run_fit, run_plan
from ctf.fit.decide import parse_time
from ctf.fit.measure import bundled_tokenizers
from ctf.fit.plan import files_of
from ctf.fit.recipes import RECIPES, tokenizer_to_train
from ctf.fit.run_plan import tokenizer_warning
from ctf.images import contact_sheet, open_images
from ctf.interop.tokenizers import open_tokenizer
from ctf.layout import Layout
from ctf.model_folder import Pipeline, open_stage
from ctf.tokenizer.registry import BUNDLED
from ctf.tokens import TokenSet
from ctf.training import loop

pytestmark = pytest.mark.usefixtures("tiny_nano")


def chosen_for(images, time="60s", **asked):
    return choose(FitConfig(images, "", time, **asked), torch.device("cpu"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve images of each of two classes, noise on a colour."""
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, colour in {"red": (200, 60, 60), "blue": (50, 60, 190)}.items():
        (folder / name).mkdir()
        for i in range(12):
            pixels = np.clip(colour + generator.integers(-50, 51, (32, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return str(folder)


@pytest.fixture(scope="module")
def plan(photos):
    """Of a few steps, with a tokenizer of 64 codewords, and a baseline."""
    asked = {"image_size": 32, "batch_size": 4, "num_clusters": 8, "baseline": True, "tokenizer": "new"}
    chosen = chosen_for(photos, "30s", **asked)
    assert chosen.steps["baseline"] == chosen.steps["coarse"]
    steps = {"tokenizer": 12, "coarse": 6, "fine": 5, "baseline": 6}
    return dataclasses.replace(chosen, steps=steps, tokenizer_batch=4)


def weights(run):
    return {path.name: path.read_bytes() for path in sorted(Path(run, "model").iterdir())}


def test_a_plan_fits_the_time(photos):
    asked = {"image_size": 32, "size": "nano", "tokenizer": "new"}
    short, long = (chosen_for(photos, time, **asked) for time in ("1m", "10m"))
    for time, chosen in (60.0, short), (600.0, long):
        assert (chosen.num_images, chosen.held_out, chosen.size) == (24, "held-out", "nano")
        assert chosen.architecture.codebook_size == 64  # 22 images of 8 × 8 tokens are less than 16 vectors for 128
        assert sum(chosen.seconds.values()) <= time or min(chosen.steps.values()) == 20
    assert all(long.steps[name] >= short.steps[name] for name in long.steps)
    assert long.steps["tokenizer"] <= 100 * 22 / 22  # a batch is all images, which are seen at most 100 times
    assert "24 images of 32 × 32 pixels, every tenth held out" in long.table()


def test_a_split_is_held_out():
    asked = {"tokenizer": "emoji", "start_from": "none", "batch_size": 2}
    chosen = chosen_for("emoji", split="train", held_out="test", **asked)
    assert (chosen.num_images, chosen.splits) == (8367, ("train", "test"))
    assert "8,367 images of 64 × 64 pixels, the split test held out" in chosen.table()


def test_a_given_tokenizer_is_not_trained(photos):
    chosen = chosen_for(photos, tokenizer="emoji", start_from="none", batch_size=2)
    assert chosen.num_clusters == 512
    assert [*chosen.steps] == ["coarse", "fine"]
    assert "tokenizer: emoji, of the family vq, 8 × 8 tokens an image" in chosen.table()


@pytest.fixture(scope="module")
def run(plan, tmp_path_factory):
    out = tmp_path_factory.mktemp("fit") / "run"
    run_fit(plan, out, "cpu")
    return out


def test_a_folder_becomes_a_model(run, plan):
    pipeline = Pipeline.from_pretrained(run / "model")
    assert pipeline.class_names == ["blue", "red"]
    assert [stage.name for stage in pipeline.stages] == ["coarse", "fine"]
    assert pipeline(["red"], seed=1)[0].size == (32, 32)
    page, metrics = (run / "report.md").read_text(encoding="utf-8"), read_json(run / "metrics.json")
    assert f"Tokenizer: {metrics['tokenizer']['psnr']:.2f} dB PSNR" in page
    assert metrics["tokenizer"]["images"] == 2
    assert "what it loses no stage can give back: the bundled one" in page  # it learnt nothing in 12 steps
    assert 0 < metrics["likelihood"]["coarse_bits_per_token"] < 4
    assert Image.open(run / "curves.png").width == 4 * 540
    assert Plan.load(run / "plan.json") == plan
    assert plan.files == files_of(*plan.open())
    assert pipeline.about.sheet == (run / "samples.png").read_bytes()
    assert pipeline.about.metrics["tokenizer_psnr"] == metrics["tokenizer"]["psnr"]


def test_the_report_compares_the_model_with_the_baseline(run, plan):
    metrics, tokens = read_json(run / "metrics.json"), TokenSet.open(run / "tokens" / "test")
    model = Pipeline.from_pretrained(run / "model")
    baseline = Pipeline(model.tokenizer, model.class_names, [open_stage(run / "baseline")])
    ours, theirs = (bits_per_token(each, tokens, progress=False) for each in (model, baseline))
    page = (run / "report.md").read_text(encoding="utf-8")
    bits, of_baseline = ours["bits_per_token"], theirs["bits_per_token"]
    terms = " + ".join(f"{name} {ours[f'{name}_bits_per_token']:.3f}" for name in ("coarse", "fine"))
    assert f"| bits per token | {bits:.3f} ({terms}) | {of_baseline:.3f} |" in page
    assert f"| bits per token saved | {of_baseline - bits:.3f} ± " in page
    assert f"{theirs['token_accuracy']:.1%} |" in page
    assert metrics["images_per_second"].keys() == {"coarse-to-fine", "baseline"}
    assert Image.open(run / "samples.png").height > 10 * 64  # images, their tokens, and four rows of each system


class Killed(BaseException):
    """Ends a run as a signal would: nothing catches it."""


@contextmanager
def killed(name, number):
    """Runs of this name are killed before a step."""
    take = loop.Trainer.step

    def step(self, batch, now):
        if (self.run.name, now) == (name, number):
            raise Killed
        return take(self, batch, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "step", step)
        with pytest.raises(Killed):
            yield


def test_killed_and_started_again_it_gives_the_same_model(run, plan, tmp_path, monkeypatch):
    """In the last, the first and a middle step of its trainings."""
    for name, number in {"tokenizer": 11, "coarse": 0, "fine": 2}.items():
        with killed(name, number):
            run_fit(plan, tmp_path / "run", "cpu")
    run_fit(plan, tmp_path / "run", "cpu")
    assert weights(tmp_path / "run") == weights(run)
    trained = []
    monkeypatch.setattr("ctf.fit.run_plan.train_stage", trained.append)
    monkeypatch.setattr("ctf.fit.run_plan.train_tokenizer", trained.append)
    run_fit(plan, tmp_path / "run", "cpu")
    assert trained == []  # all is there


def test_a_flat_folder_of_few_images_is_one_class_with_none_held_out(photos, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted(Path(photos, "red").iterdir())[:6]):
        (flat / f"{i}.png").write_bytes(path.read_bytes())
    chosen = chosen_for(str(flat), "20s", image_size=32, batch_size=2, num_clusters=8, tokenizer="new")
    assert chosen.held_out is None
    assert "none held out" in chosen.table()
    chosen = dataclasses.replace(chosen, steps={"tokenizer": 2, "coarse": 2, "fine": 2})
    run_fit(chosen, tmp_path / "run", "cpu")
    assert Pipeline.from_pretrained(tmp_path / "run" / "model").class_names == ["image"]
    assert "the training images, since none were held out" in (tmp_path / "run" / "report.md").read_text("utf-8")


def test_columns_of_the_sheet_are_classes_that_were_held_out(run, photos, tmp_path, monkeypatch):
    shutil.copytree(photos, tmp_path / "fewer")
    for i in range(3):
        (tmp_path / "fewer" / "blue" / f"{i}.png").unlink()  # nine are left, of which none is held out
    held_out, columns = open_images(str(tmp_path / "fewer"), "held-out", 32), []

    def watched(rows, titles, names, **settings):
        columns.append(([len(row) for row in rows], names))
        return contact_sheet(rows, titles, names, **settings)

    monkeypatch.setattr(run_plan, "contact_sheet", watched)
    run_plan._sheet({"model": Pipeline.from_pretrained(run / "model")}, held_out, 0)
    assert columns == [([8] * 6, ["red"] * 8)]


@pytest.fixture
def splits(photos, tmp_path):
    """train/ and val/ of both classes."""
    for split in "train", "val":
        shutil.copytree(photos, tmp_path / "photos" / split)
    return tmp_path / "photos"


def test_a_held_out_folder_that_lacks_a_class_is_matched_by_name(run, plan, splits, monkeypatch):
    shutil.rmtree(splits / "val" / "blue")
    train, test = dataclasses.replace(plan, images=str(splits), split="train", held_out="val", files=None).open()
    assert (train.class_names, test.class_names) == (["blue", "red"], ["red"])
    columns = []
    monkeypatch.setattr(run_plan, "contact_sheet", lambda rows, titles, names, **settings: columns.append(names))
    run_plan._sheet({"model": Pipeline.from_pretrained(run / "model")}, test, 0)
    assert columns == [["red"] * 8]


def test_a_held_out_class_that_training_lacks_is_named_at_once(splits):
    (splits / "val" / "red").rename(splits / "val" / "green")
    with pytest.raises(InputError, match="held_out val has images of the class 'green', which is none of the training"):
        chosen_for(str(splits), split="train", held_out="val", image_size=32)


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_that_changed_since_the_plan(plan, splits, tmp_path, split):
    asked = dataclasses.replace(plan, images=str(splits), split="train", held_out="val", files=None)
    asked = dataclasses.replace(asked, files=files_of(*asked.open()))
    asked.open()
    (splits / split / "red" / "0.png").write_bytes((splits / split / "blue" / "0.png").read_bytes())
    with pytest.raises(InputError, match="have changed since the plan was made: choose another --out"):
        run_fit(asked, tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_planned(plan, photos, tmp_path):
    with pytest.raises(InputError, match="holds something else"):
        run_fit(plan, photos)
    (tmp_path / "other").mkdir()
    dataclasses.replace(plan, seed=1).save(tmp_path / "other" / "plan.json")
    with pytest.raises(InputError, match="is another plan: choose another --out"):
        run_fit(plan, tmp_path / "other")
    for split in None, "test", "Testing":  # another spelling of the same
        with pytest.raises(InputError, match="held_out test: name another split to train on"):
            chosen_for("emoji", split=split, held_out="test")
    with pytest.raises(InputError, match="says size 'nano', not 'micro': leave it out to go on"):
        plan.check_asked(tmp_path / "plan.json", FitConfig(plan.images, "", size="micro"))
    old = dataclasses.asdict(plan) | {"size": "nano", "scales": [], "tokenizer": None}
    for name in ("layout", "stages", "start_from", "bundled", "reasons"):
        del old[name]
    for text in json.dumps(old), '{"images": "x"}', "[]":
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(InputError, match=r"is no plan of this version of ctf: choose another --out"):
            Plan.load(tmp_path / "plan.json")
    with pytest.raises(InputError, match="takes multiples of 8"):
        chosen_for(photos, image_size=36, tokenizer="emoji")


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5 h", 5400)])
def test_times(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "0m", "-1h", "m", "1d"])
def test_what_is_no_time(text):
    with pytest.raises(InputError, match="give seconds, minutes or hours"):
        parse_time(text)


def test_a_family_of_several_scales(photos, tmp_path):
    """Plan, trainings and report follow from the family; a continued run and another family are told apart."""
    chosen = chosen_for(photos, "30s", image_size=32, batch_size=4, num_clusters=8, family="multi-scale", baseline=True)
    assert (chosen.tokenizer, chosen.family, chosen.layout) == ("new", "multi-scale", Layout.square(1, 2, 3, 4))
    assert "no bundled one of the family multi-scale suits 32 × 32 pixels" in chosen.table()
    assert (
        "tokenizer: new, of the family multi-scale, 1 × 1, 2 × 2, 3 × 3, 4 × 4 tokens an image, 64 codewords"
        in chosen.table()
    )
    assert chosen.table().count(": next_scale, size nano") == 3
    plan = dataclasses.replace(chosen, steps=dict.fromkeys(chosen.steps, 4), tokenizer_batch=4)
    run_fit(plan, tmp_path / "run", "cpu")
    model = Pipeline.from_pretrained(tmp_path / "run" / "model")
    assert [(stage.name, stage.kind) for stage in model.stages] == [("coarse", "next_scale"), ("fine", "next_scale")]
    assert model.stages[0].sampling.cfg_schedule == "steps"
    assert model.tokenizer.family == "multi-scale"
    assert "fine: next_scale, size nano" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert Plan.load(tmp_path / "run" / "plan.json") == plan
    with pytest.raises(InputError, match="says family 'multi-scale', not 'vq'"):
        plan.check_asked(tmp_path / "run" / "plan.json", FitConfig(photos, "", family="vq"))


def test_families_that_fit_cannot_train(photos):
    with pytest.raises(InputError, match="family 'vae': choose one of vq, multi-scale, or give a tokenizer"):
        chosen_for(photos, family="vae", tokenizer="new")
    with pytest.raises(InputError, match="tokenizer emoji is of the family vq: leave family out"):
        chosen_for(photos, family="multi-scale", tokenizer="emoji")


@pytest.fixture(scope="module")
def landscapes(tmp_path_factory):
    """Twenty images of smooth colours, which a tokenizer of photographs keeps better than one of emoji."""
    folder, generator = tmp_path_factory.mktemp("landscapes") / "all", np.random.default_rng(0)
    folder.mkdir()
    for i in range(20):
        colours = Image.fromarray(generator.integers(40, 216, (6, 6, 3), dtype=np.uint8))
        colours.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return str(folder)


def psnr_of(name, folder):
    """From the definition, one held-out image after another."""
    tokenizer, images, values = open_tokenizer(name), open_images(folder, "held-out", 64), []
    for index in range(len(images)):
        pixels = torch.tensor(images.read(index)).permute(2, 0, 1)[None]
        with torch.no_grad():
            decoded = tokenizer.decode(tokenizer.encode(pixels / 127.5 - 1))
        error = ((decoded.clamp(-1, 1) * 127.5 + 127.5).round() - pixels).double().square().mean()
        values.append(10 * math.log10(255**2 / error.item()))
    return sum(values) / len(values)


def test_the_bundled_tokenizer_that_keeps_the_images_best_is_taken(landscapes):
    chosen = chosen_for(landscapes, batch_size=2)
    expected = {name: psnr_of(name, landscapes) for name in BUNDLED}
    assert {name: kept["psnr"] for name, kept in chosen.bundled.items()} == pytest.approx(expected, abs=0.01)
    assert chosen.tokenizer == max(expected, key=expected.get) != "emoji"
    assert f"{chosen.tokenizer} {expected[chosen.tokenizer]:.1f} dB" in chosen.table()


@pytest.fixture
def kept(monkeypatch):
    """Sets what is measured of the bundled tokenizers."""

    def keep(**values):
        monkeypatch.setattr(decide, "compare_tokenizers", lambda *_: values)

    return keep


def test_of_two_that_keep_the_images_alike_the_one_with_fewer_tokens_is_taken(photos, kept):
    kept(emoji={"psnr": 24.0}, photos={"psnr": 24.9})
    chosen = chosen_for(photos, image_size=32, batch_size=2)
    assert (chosen.tokenizer, chosen.layout) == ("emoji", Layout.square(4))


def test_lpips_decides_where_it_is_measured(photos, kept):
    kept(emoji={"psnr": 24.0, "lpips": 0.5}, photos={"psnr": 22.0, "lpips": 0.3})
    chosen = [chosen_for(photos, image_size=32, batch_size=2, lpips=lpips) for lpips in (None, "weights")]
    assert [plan.tokenizer for plan in chosen] == ["emoji", "photos"]


def test_a_new_tokenizer_is_trained_where_bundled_ones_are_poor_and_there_is_time(photos, kept, monkeypatch):
    kept(emoji={"psnr": 15.0}, photos={"psnr": 19.9})
    chosen = chosen_for(photos, "10m", image_size=32, batch_size=2)
    assert chosen.tokenizer == "photos"
    assert "a new one would have 100 steps where it needs 1,500" in chosen.table()  # 100 passes over 22 images
    monkeypatch.setattr(decide, "NEW_STEPS", 100)
    chosen = chosen_for(photos, "10m", image_size=32, batch_size=2)
    assert (chosen.tokenizer, chosen.steps["tokenizer"]) == ("new", 100)
    kept(emoji={"psnr": 15.0}, photos={"psnr": 20.0})
    assert chosen_for(photos, "10m", image_size=32, batch_size=2).tokenizer == "photos"


def test_where_no_bundled_tokenizer_suits_the_size_a_new_one_is_trained(photos, monkeypatch):
    assert {size: {*bundled_tokenizers(size)} for size in (64, 62, 128, 256)} == {
        64: {*BUNDLED},
        62: set(),
        128: {"emoji"},  # photos makes 1,024 tokens of an image
        256: set(),
    }
    monkeypatch.setattr(decide, "bundled_tokenizers", lambda size: {})
    chosen = chosen_for(photos, image_size=32, batch_size=2)
    assert (chosen.tokenizer, chosen.bundled) == ("new", {})
    assert "no bundled one suits 32 × 32 pixels" in chosen.table()


def test_stages_start_from_the_bundled_model_and_a_killed_run_goes_on(photos, tmp_path):
    plan = chosen_for(photos, image_size=16, batch_size=2, tokenizer="emoji")
    assert (plan.start_from, plan.size, plan.num_clusters) == ("emoji", "micro", 512)
    assert "training starts from emoji" in plan.table()
    plan = dataclasses.replace(plan, steps={"coarse": 3, "fine": 1}, augmentation="none")
    bundled = Pipeline.from_pretrained("emoji")
    assert plan.stages["fine"].sampling == bundled.stages[1].sampling
    run_fit(plan, tmp_path / "run", "cpu")
    model = Pipeline.from_pretrained(tmp_path / "run" / "model")
    assert model.about.training["fine"]["settings"]["start_from"] == "emoji"
    for ours, theirs in zip(model.stages, bundled.stages, strict=True):
        after, before = (stage.transformer.blocks[0].attention.qkv.weight for stage in (ours, theirs))
        assert 0 < (after - before).norm() < 0.1 * before.norm()
    coarse_map = CoarseMap.load(tmp_path / "run" / "map.safetensors")
    assert torch.equal(coarse_map.fine_to_coarse, bundled.stages[0].predicts.fine_to_coarse)

    with killed("coarse", 2):
        run_fit(plan, tmp_path / "again", "cpu")
    run_fit(Plan.load(tmp_path / "again" / "plan.json"), tmp_path / "again", "cpu")
    assert weights(tmp_path / "again") == weights(tmp_path / "run")


def test_a_model_to_start_from_brings_its_tokenizer(photos, tmp_path):
    bundled = BUNDLED["emoji"]
    chosen = chosen_for(photos, image_size=32, batch_size=2, start_from=str(bundled), num_clusters=16, baseline=True)
    assert (chosen.tokenizer, chosen.start_from, chosen.num_clusters) == (str(bundled), str(bundled), 16)
    assert chosen.stages["baseline"] == chosen.stages["coarse"]
    with pytest.raises(InputError, match="its stages are of size micro: leave size out"):
        chosen_for(photos, image_size=32, start_from="emoji", size="nano")
    with pytest.raises(InputError, match="another codebook than the tokenizer's"):
        chosen_for(photos, image_size=32, start_from="emoji", tokenizer="photos")


@pytest.mark.parametrize("asked", [{"baseline": True}, {"size": "nano"}, {"start_from": "none"}])
def test_what_makes_stages_start_from_random_weights(photos, asked):
    chosen = chosen_for(photos, image_size=32, batch_size=2, tokenizer="emoji", **asked)
    assert (chosen.start_from, chosen.size) == ("none", "nano")
    assert "the stages start from random weights" in chosen.table()


def test_too_short_a_time_is_said_with_the_least_that_makes_sense(photos):
    with pytest.warns(UserWarning, match=r"--time 1s is too short: the shortest plan takes .* min, and only from"):
        chosen_for(photos, "1s", image_size=32, tokenizer="emoji")


def test_what_is_measured_is_said(photos, capsys):
    chosen_for(photos, image_size=32, batch_size=2, tokenizer="emoji")
    said = capsys.readouterr().out
    assert "Comparing the bundled tokenizers emoji and photos on the images" in said
    assert "Timing steps of coarse, fine" in said


def test_codebooks_suit_the_family():
    sizes = {name: tokenizer_to_train(recipe, 64, 100_000, False) for name, recipe in RECIPES.items()}
    assert {name: (made.codebook_size, made.downsampling) for name, made in sizes.items()} == {
        "vq": (16_384, 4),
        "multi-scale": (1_024, 8),
    }
    assert tokenizer_to_train(RECIPES["multi-scale"], 256, 100_000, False).codebook_size == 4_096  # VAR's


def test_a_tokenizer_is_judged_by_what_bundled_ones_reach(plan):
    def warning(psnr, **changes):
        return tokenizer_warning(dataclasses.replace(plan, **changes), psnr)

    of_both = {"emoji": {"psnr": 19.0}, "photos": {"psnr": 26.0}}
    assert "the bundled one, photos, keeps 26.0 dB" in warning(24.0, tokenizer="new", bundled=of_both)
    assert "take --tokenizer photos" in warning(19.0, tokenizer="emoji", bundled=of_both)
    assert warning(25.5, tokenizer="new", bundled=of_both) is None
    assert "--tokenizer new" in warning(18.0, tokenizer="photos", bundled={"photos": {"psnr": 18.0}})
    assert warning(26.0, tokenizer="photos", bundled=of_both) is None
