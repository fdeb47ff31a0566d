import dataclasses
import json
import shutil
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from same import contents

from ctf.codebook import CoarseMap
from ctf.errors import InputError
from ctf.evaluation.likelihood import bits_per_token
from ctf.files import read_json
from ctf.fit import FitConfig, Plan, choose, decide, page, run_fit, run_plan
from ctf.fit.decide import parse_time
from ctf.fit.measure import Times, bundled_tokenizers, measure_times
from ctf.fit.plan import StagePlan, files_of
from ctf.fit.recipes import RECIPES, tokenizer_to_train
from ctf.fit.run_plan import tokenizer_warning
from ctf.images import contact_sheet, open_images
from ctf.interop import llamagen
from ctf.interop.tokenizers import open_tokenizer
from ctf.layout import Layout
from ctf.model_folder import Pipeline, open_stage
from ctf.models.config import MODEL_SIZES
from ctf.run_folder import run_settings
from ctf.sampling import Sampling
from ctf.tokenizer import VQTokenizer
from ctf.tokenizer.measure import measure_tokenizer
from ctf.tokenizer.registry import BUNDLED, new_tokenizer
from ctf.tokens import TokenSet
from ctf.training import loop

pytestmark = pytest.mark.usefixtures("tiny_nano")
LLAMAGEN = Path(__file__).parents[1] / "golden" / "llamagen"


def chosen_for(images, time="60s", **asked):
    return choose(FitConfig(images, "", time, **asked), torch.device("cpu"))


@pytest.fixture
def known_times(monkeypatch):
    """Sets the seconds that work is measured to take; planning takes none."""

    def know(step=0.5, beside=2.0, **others):
        def times(plan, *_):
            of_trainings = {"steps": dict.fromkeys(plan.steps, step), "beside": dict.fromkeys(plan.steps, beside)}
            each = {"read": 0.01, "encode": 0.02, "reconstruct": 0.05, "score": 0.1, "clusters": 3.0, "report": 5.0}
            return Times(**of_trainings, **each | others)

        monkeypatch.setattr(decide, "measure_times", times)

    monkeypatch.setattr(decide, "monotonic", lambda: 0.0)
    know()
    return know


@pytest.fixture
def kept(monkeypatch):
    """Sets what is measured of the bundled tokenizers."""

    def keep(**values):
        monkeypatch.setattr(decide, "compare_tokenizers", lambda *_: values)

    return keep


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


@pytest.mark.parametrize("baseline", [False, True])
def test_the_parts_of_a_plan_sum_to_the_time(photos, known_times, baseline):
    """Each part from its definition; steps are whole numbers, so less than one of each training is missing."""
    chosen = chosen_for(photos, "2m", image_size=32, tokenizer="new", baseline=baseline)
    assert chosen.seconds.keys() == {"planning", *chosen.parts}
    assert chosen.parts == ["tokenizer", "tokens", "clusters", *chosen.stages, "report"]
    assert 120 - 0.5 * len(chosen.steps) - 0.1 <= sum(chosen.seconds.values()) <= 120.1
    assert (chosen.num_test, chosen.evaluated, chosen.augmentation) == (2, 2, "ten-shift")
    known = {name: 2 + 0.5 * steps for name, steps in chosen.steps.items()}
    known |= {"clusters": 3, "report": 5 + 2 * 0.1, "tokens": 22 * (0.01 + 10 * 0.02) + 2 * (0.01 + 0.02 + 0.05)}
    assert chosen.seconds == pytest.approx(known | {"planning": 0}, abs=0.06)
    if baseline:
        assert chosen.steps["baseline"] == chosen.steps["coarse"]
    assert chosen_for(photos, "2m", image_size=32, tokenizer="new", flip=False).augmentation == "none"
    for line in "coarse: autoregressive, size nano", "tokens: images to tokens and back", "together: about 2.0 min":
        assert line in chosen.table()


def test_no_training_is_longer_than_the_images_can_teach(photos, known_times):
    chosen = chosen_for(photos, "10m", image_size=32, size="nano", tokenizer="new")
    assert (chosen.num_images, chosen.held_out_split, chosen.size) == (24, "held-out", "nano")
    assert chosen.architecture.codebook_size == 64  # 22 images of 8 × 8 tokens are less than 16 vectors for 128
    assert chosen.steps == {"tokenizer": 100, "coarse": 120, "fine": 80}  # a batch is all images
    assert "24 images of 32 × 32 pixels, every tenth held out" in chosen.table()


def test_of_many_held_out_images_a_random_part_is_measured(known_times, kept):
    kept(emoji={"psnr": 24.0})

    def chosen(**times):
        known_times(**times)
        asked = {"tokenizer": "emoji", "start_from": "none", "batch_size": 2}
        return chosen_for("emoji", "50s", split="train", held_out_split="test", **asked)

    one = {"reconstruct": 0.0, "read": 0.0, "encode": 0.0}
    everything, many, fewest = (chosen(**one, score=score) for score in (0.001, 0.005, 1.0))
    assert [plan.evaluated for plan in (everything, many, fewest)] == [786, 500, 100]  # 5 % of 50 s, or a hundred
    assert "the report's figures: on 500 of the 786 held-out images, chosen at random" in many.table()
    assert "the report's figures: on 786 held-out images\n" in everything.table()
    assert (many.num_images, many.splits, many.num_clusters, [*many.steps]) == (
        *(8367, ("train", "test"), 512),
        ["coarse", "fine"],  # a given tokenizer is not trained
    )
    assert "8,367 images of 64 × 64 pixels, the split test held out" in many.table()
    assert "tokenizer: emoji, of the family vq, 8 × 8 tokens an image" in many.table()
    parts = [plan.open()[1] for plan in (everything, many, fewest)]
    place = {parts[0].name(index): index for index in range(786)}
    of_many, of_fewest = ([place[part.name(index)] for index in range(len(part))] for part in parts[1:])
    assert len(of_fewest) == 100
    assert len(of_many) == 500
    assert {*of_fewest} <= {*of_many}
    assert 300 < np.mean(of_many) < 486  # spread over all
    assert np.array_equal(parts[2].labels, parts[0].labels[of_fewest])


@pytest.fixture(scope="module")
def run(plan, tmp_path_factory):
    out = tmp_path_factory.mktemp("fit") / "run"
    start = time.monotonic()
    run_fit(plan, out, "cpu")
    (out / "wall.txt").write_text(str(time.monotonic() - start))
    return out


def test_every_part_that_runs_is_in_the_plan(run, plan):
    taken = read_json(run / "metrics.json")["seconds"]
    assert [*taken] == plan.parts == [name for name in plan.seconds if name != "planning"]
    wall = float((run / "wall.txt").read_text())
    assert 0.8 * wall <= sum(taken.values()) <= wall + 0.05 * len(taken)  # next to nothing runs outside of a part


def test_a_folder_becomes_a_model(run, plan):
    pipeline = Pipeline.from_pretrained(run / "model")
    assert pipeline.class_names == ["blue", "red"]
    assert [stage.name for stage in pipeline.stages] == ["coarse", "fine"]
    assert pipeline(["red"], seed=1)[0].size == (32, 32)
    page, metrics = (run / "report.md").read_text(encoding="utf-8"), read_json(run / "metrics.json")
    assert f"Tokenizer: {metrics['tokenizer']['psnr']:.2f} ± " in page
    assert metrics["tokenizer"]["images"] == 2
    assert "what it loses no stage can give back: the bundled one" in page  # it learnt nothing in 12 steps
    assert 0 < metrics["likelihood"]["coarse_bits_per_token"] < 4
    assert Image.open(run / "curves.png").width == 4 * 540
    assert Plan.load(run / "plan.json") == plan
    assert plan.files == files_of(*plan.open())
    assert pipeline.about.sheet == (run / "samples.png").read_bytes()
    assert pipeline.about.metrics["tokenizer_psnr"] == metrics["tokenizer"]["psnr"]


def test_the_report_compares_the_model_with_the_baseline(run):
    metrics, tokens = read_json(run / "metrics.json"), TokenSet.open(run / "tokens" / "test")
    model = Pipeline.from_pretrained(run / "model")
    baseline = Pipeline(model.tokenizer, model.class_names, [open_stage(run / "baseline")])
    ours, theirs = (bits_per_token(each, tokens, progress=False) for each in (model, baseline))
    page = (run / "report.md").read_text(encoding="utf-8")
    bits, of_baseline = ours["bits_per_token"], theirs["bits_per_token"]
    terms = " + ".join(f"{name} {ours[f'{name}_bits_per_token']:.3f}" for name in ("coarse", "fine"))
    errors = [each["standard_error"]["bits_per_token"] for each in (ours, theirs)]
    row = f"{bits:.3f} ± {errors[0]:.3f} ({terms}) | {of_baseline:.3f} ± {errors[1]:.3f} |"
    assert f"| bits per token | {row}" in page
    assert "| on 2 held-out images | coarse-to-fine | baseline |" in page
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
    assert contents(tmp_path / "run" / "model") == contents(Path(run, "model"))
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
    assert chosen.held_out_split is None
    assert "none held out" in chosen.table()
    by_confidence = Sampling(order="confidence", steps=2)  # has no likelihood, which is then that of another order
    masked = StagePlan("nano", "masked", {"rounds": "any"}, by_confidence)
    chosen = dataclasses.replace(
        chosen, steps={"tokenizer": 2, "coarse": 2, "fine": 2}, stages={**chosen.stages, "coarse": masked}
    )
    measure_times(
        chosen, open_images(str(flat), size=32), new_tokenizer("vq", chosen.architecture), torch.device("cpu")
    )
    run_fit(chosen, tmp_path / "run", "cpu")
    assert Pipeline.from_pretrained(tmp_path / "run" / "model").class_names == ["image"]
    assert "| on 6 training images, since none were held out |" in (tmp_path / "run" / "report.md").read_text("utf-8")
    card = (tmp_path / "run" / "model" / "README.md").read_text("utf-8")
    assert "bits per token on training images | " in card
    assert "bits per token | " not in card


def test_an_unreadable_image_is_passed_over_in_the_sheet(run, photos, tmp_path):
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    (folder / "red" / "0.png").write_bytes(b"")  # the first of its class, which would be shown
    sheet, _ = run_plan._sheet(
        {"model": Pipeline.from_pretrained(run / "model")}, open_images(str(folder), None, 32), 0
    )
    assert sheet.width > 8 * 64


def test_the_report_of_a_single_image_has_no_standard_errors(run):
    metrics = read_json(run / "metrics.json")
    for measured in metrics["likelihood"], metrics["likelihood"]["against"], metrics["tokenizer"]:
        measured["standard_error"] = dict.fromkeys(measured["standard_error"])
    (table, kept) = page.figures(metrics)
    assert "±" not in table
    assert f"| bits per token saved | {-metrics['likelihood']['against']['difference']:.3f} |" in table
    assert "dB PSNR" in kept


def test_a_batch_larger_than_the_images_stays_as_asked(known_times, photos):
    """Or the same command would not continue its run."""
    asked = {"image_size": 32, "tokenizer": "new"}
    assert chosen_for(photos, **asked).batch_size == 22
    chosen_for(photos, **asked, batch_size=256).check_asked(Path("plan.json"), FitConfig(photos, "", batch_size=256))


@pytest.fixture
def splits(photos, tmp_path):
    """train/ and val/ of both classes."""
    for split in "train", "val":
        shutil.copytree(photos, tmp_path / "photos" / split)
    return tmp_path / "photos"


def test_a_held_out_folder_that_lacks_a_class_is_matched_by_name(run, plan, splits, monkeypatch):
    shutil.rmtree(splits / "val" / "blue")
    train, test = dataclasses.replace(plan, images=str(splits), split="train", held_out_split="val", files=None).open()
    assert (train.class_names, test.class_names) == (["blue", "red"], ["red"])
    columns = []

    def watched(rows, titles, names, **settings):
        columns.append(([len(row) for row in rows], names))
        return contact_sheet(rows, titles, names, **settings)

    monkeypatch.setattr(run_plan, "contact_sheet", watched)
    run_plan._sheet({"model": Pipeline.from_pretrained(run / "model")}, test, 0)
    assert columns == [([8] * 6, ["red"] * 8)]


def test_a_held_out_class_that_training_lacks_is_named_at_once(splits):
    (splits / "val" / "red").rename(splits / "val" / "green")
    with pytest.raises(InputError, match="held_out_split val has images of the class 'green', which is none of the"):
        chosen_for(str(splits), split="train", held_out_split="val", image_size=32)


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_that_changed_since_the_plan(plan, splits, tmp_path, split):
    asked = dataclasses.replace(plan, images=str(splits), split="train", held_out_split="val", files=None)
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
        with pytest.raises(InputError, match="held_out_split test: name another split to train on"):
            chosen_for("emoji", split=split, held_out_split="test")
    for split, other in ("train", "held-out"), ("not-held-out", "test"):  # held-out images would be trained on
        with pytest.raises(InputError, match=f"{other}: .* or give --split not-held-out --held_out_split held-out"):
            chosen_for("emoji", split=split, held_out_split=other)
    plan.check_asked(tmp_path / "plan.json", FitConfig(f"{plan.images}/", ""))
    with pytest.raises(InputError, match="says size 'nano', not 'micro': leave it out to go on"):
        plan.check_asked(tmp_path / "plan.json", FitConfig(plan.images, "", size="micro"))
    with pytest.raises(InputError, match=r"trains on ten views of each image: .*: leave flip out to go on, or choose"):
        plan.check_asked(tmp_path / "plan.json", FitConfig(plan.images, "", flip=False))
    dataclasses.replace(plan, augmentation="none").check_asked(Path("p"), FitConfig(plan.images, "", flip=False))
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


def test_the_bundled_tokenizer_that_keeps_the_images_best_is_taken(known_times, landscapes):
    chosen = chosen_for(landscapes, batch_size=2)
    held_out = open_images(landscapes, "held-out", 64)
    expected = {name: measure_tokenizer(open_tokenizer(name), held_out, progress=False)["psnr"] for name in BUNDLED}
    assert {name: kept["psnr"] for name, kept in chosen.bundled.items()} == pytest.approx(expected, abs=0.01)
    assert chosen.tokenizer == max(expected, key=expected.get) != "emoji"
    assert f"{chosen.tokenizer} {expected[chosen.tokenizer]:.1f} dB" in chosen.table()


def test_of_two_that_keep_the_images_alike_the_one_with_fewer_tokens_is_taken(known_times, photos, kept):
    kept(emoji={"psnr": 24.0}, photos={"psnr": 24.9})
    chosen = chosen_for(photos, image_size=32, batch_size=2)
    assert (chosen.tokenizer, chosen.layout) == ("emoji", Layout.square(4))


def test_lpips_decides_where_it_is_measured(known_times, photos, kept):
    kept(emoji={"psnr": 24.0, "lpips": 0.5}, photos={"psnr": 22.0, "lpips": 0.3})
    chosen = [chosen_for(photos, image_size=32, batch_size=2, lpips=lpips) for lpips in (None, "weights")]
    assert [plan.tokenizer for plan in chosen] == ["emoji", "photos"]


def test_a_new_tokenizer_is_trained_where_bundled_ones_are_poor_and_there_is_time(
    known_times, photos, kept, monkeypatch
):
    kept(emoji={"psnr": 15.0}, photos={"psnr": 19.9})
    chosen = chosen_for(photos, "10m", image_size=32, batch_size=2)
    assert chosen.tokenizer == "photos"
    assert "a new one would have 100 steps where it needs 1,500" in chosen.table()  # 100 passes over 22 images
    monkeypatch.setattr(decide, "NEW_STEPS", 100)
    chosen = chosen_for(photos, "10m", image_size=32, batch_size=2)
    assert (chosen.tokenizer, chosen.steps["tokenizer"]) == ("new", 100)
    kept(emoji={"psnr": 15.0}, photos={"psnr": 20.0})
    assert chosen_for(photos, "10m", image_size=32, batch_size=2).tokenizer == "photos"


def test_where_no_bundled_tokenizer_suits_the_size_a_new_one_is_trained(known_times, photos, monkeypatch):
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
    assert contents(tmp_path / "again" / "model") == contents(tmp_path / "run" / "model")


def test_a_model_to_start_from_brings_its_tokenizer(known_times, photos):
    bundled = BUNDLED["emoji"]
    chosen = chosen_for(photos, image_size=32, batch_size=2, start_from=str(bundled), num_clusters=16, baseline=True)
    assert (chosen.tokenizer, chosen.start_from, chosen.num_clusters) == (str(bundled), str(bundled), 16)
    assert chosen.stages["baseline"] == chosen.stages["coarse"]
    with pytest.raises(InputError, match="its stages are of size micro: leave size out"):
        chosen_for(photos, image_size=32, start_from="emoji", size="nano")
    with pytest.raises(InputError, match=r"tokenizer's.*: give --tokenizer, the one that emoji was trained with"):
        chosen_for(photos, image_size=32, start_from="emoji", tokenizer="photos")


def test_bundled_tokenizers_are_opened_once(known_times, landscapes, monkeypatch):
    opened, load = Counter(), VQTokenizer.load.__func__

    def counted(cls, path):
        opened[path.parent.name] += 1
        return load(cls, path)

    monkeypatch.setattr(VQTokenizer, "load", classmethod(counted))
    assert chosen_for(landscapes, batch_size=2).start_from == "photos"
    assert opened == dict.fromkeys(BUNDLED, 1)


@pytest.fixture
def golden_size(monkeypatch):
    """The size "nano" is that of LlamaGen's golden GPT."""
    monkeypatch.setitem(MODEL_SIZES, "nano", (3, 4, 128))


def test_stages_start_from_a_file_of_llamagen(golden_size, photos, tmp_path):
    """Over its tokenizer all of it is taken; classes are unknown, and stage 2 is the recipe's."""
    gpt, tokenizer = str(LLAMAGEN / "gpt_mha.pt"), str(LLAMAGEN / "vq8.pt")
    asked = {"image_size": 32, "batch_size": 4, "num_clusters": 8, "start_from": gpt, "tokenizer": tokenizer}
    plan = chosen_for(photos, **asked)
    assert (plan.start_from, plan.size, plan.num_clusters) == (gpt, "nano", 8)
    assert [stage.kind for stage in plan.stages.values()] == ["autoregressive", "masked"]
    assert plan.stages["coarse"].sampling.cfg_scale == 2.0  # LlamaGen's
    assert "should be of this tokenizer's codebook" in plan.table()
    run_fit(dataclasses.replace(plan, steps={"coarse": 2, "fine": 2}, augmentation="none"), tmp_path / "run", "cpu")
    before = llamagen.load_gpt(gpt).transformer.blocks
    for name in plan.stages:
        taken = run_settings(tmp_path / "run" / name)["started"]["taken"]
        assert taken["transformer.blocks.0.attention.qkv.weight"] == "as it is"
        after = open_stage(tmp_path / "run" / name).transformer.blocks
        for ours, theirs in zip(after, before, strict=True):
            change = ours.attention.qkv.weight - theirs.attention.qkv.weight
            assert 0 < change.norm() < 0.1 * theirs.attention.qkv.weight.norm()
    assert "weighted by use" in " ".join(run_settings(tmp_path / "run" / "coarse")["started"]["taken"].values())


def test_what_fits_of_a_file_of_llamagen_is_said_or_it_is_refused(known_times, golden_size, photos, monkeypatch):
    asked = {"image_size": 32, "batch_size": 4, "start_from": str(LLAMAGEN / "gpt_mha.pt")}
    chosen = chosen_for(photos, **asked)  # it brings no tokenizer, so the best bundled one is taken
    assert chosen.tokenizer in BUNDLED
    said = "Only blocks and classes are taken: its embeddings are of 64 codewords, the tokenizer has 16,384."
    assert said in chosen.table()
    with pytest.raises(InputError, match="its stages are of size nano: leave size out"):
        chosen_for(photos, **asked, size="micro")
    monkeypatch.setitem(MODEL_SIZES, "nano", (2, 2, 32))
    with pytest.raises(InputError, match="3 layers of width 128, which is none of LlamaGen's sizes"):
        chosen_for(photos, **asked)
    with pytest.raises(InputError, match="is a tokenizer, not a GPT"):
        chosen_for(photos, **asked | {"start_from": str(LLAMAGEN / "vq8.pt")})


@pytest.mark.parametrize("asked", [{"baseline": True}, {"size": "nano"}, {"start_from": "none"}])
def test_what_makes_stages_start_from_random_weights(known_times, photos, asked):
    chosen = chosen_for(photos, image_size=32, batch_size=2, tokenizer="emoji", **asked)
    assert (chosen.start_from, chosen.size) == ("none", "nano")
    assert "the stages start from random weights" in chosen.table()


def test_too_short_a_time_is_said_with_the_least_that_makes_sense(known_times, photos, capsys):
    chosen = chosen_for(photos, "1s", image_size=32, batch_size=1, tokenizer="emoji")
    # 13 s beside the steps; 20 steps of two stages; a pass is 22 steps, and stage 2 has 0.22 of 0.55 of the time.
    assert "--time 1s is too short: the shortest plan takes 33 s, and only from 41 s on does each" in chosen.table()
    said = capsys.readouterr().out
    assert "Comparing the bundled tokenizers emoji and photos on the images" in said
    assert "Timing a little of tokens, clusters, coarse, fine, report" in said


def test_a_time_in_which_not_every_training_sees_every_image_is_said(known_times, photos):
    known_times(step=1.0)
    said = "only from 72 s on does each training see every image"
    assert said in chosen_for(photos, "60s", image_size=32, batch_size=1, tokenizer="emoji").table()
    assert "see every image" not in chosen_for(photos, "70s", image_size=32, batch_size=1, tokenizer="emoji").table()


def test_any_bundled_tokenizer_that_keeps_enough_is_better_than_a_new_one(known_times, kept, photos):
    kept(emoji={"psnr": 19.6}, photos={"psnr": 20.5})  # within what fewer tokens may cost
    assert chosen_for(photos, image_size=32).tokenizer == "photos"


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
    by_lpips = {"emoji": {"psnr": 24.0, "lpips": 0.5}, "photos": {"psnr": 22.0, "lpips": 0.3}}
    assert warning(22.0, tokenizer="photos", bundled=by_lpips) is None
    alike = {"emoji": {"psnr": 24.0}, "photos": {"psnr": 24.9}}  # the plan took emoji; of all images it keeps less
    assert warning(23.8, tokenizer="emoji", bundled=alike) is None
