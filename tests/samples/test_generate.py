import json
from collections import Counter
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from same import contents, equal

from ctf.cli import main
from ctf.codebook import cluster_codebook
from ctf.errors import InputError
from ctf.images import to_tensor
from ctf.model_folder import Pipeline
from ctf.pipeline import StagePipeline
from ctf.samples import Manifest, SampleSet, sample_to

SETTINGS = {"cfg_scale": 1.5, "fine_top_k": 2}
CLASSES = ["cat", "red fox", "dog", "owl"]


@pytest.fixture
def pipeline(make_pipeline):
    return make_pipeline("cluster")


def expected(pipeline, labels, seed):
    return np.stack([np.asarray(image) for image in pipeline(labels, seed, **SETTINGS)])


def sample(pipeline, out, labels=None, num=None, seed=0, batch_size=4, overrides=SETTINGS, **more):
    return sample_to(pipeline, out, labels, num, seed, batch_size, overrides, **more)


# Completion


@pytest.fixture
def mask():
    """The right half of an image of 2 × 3 tokens of 4 × 4 pixels: two columns of tokens are touched."""
    mask = np.zeros((8, 12), dtype=bool)
    mask[:, 7:] = True
    return mask


def test_completion(make_stage, make_tokenizer, tmp_path, mask):
    tokenizer = make_tokenizer()
    coarse_map = cluster_codebook(tokenizer.codebook, 5)
    coarse = make_stage("any_order", name="coarse", predicts=coarse_map)
    pipeline = StagePipeline(tokenizer, CLASSES, [coarse, make_stage("masked", name="fine", given=coarse_map)])
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8))
    known = pipeline.known_tokens(picture, mask)
    assert (known < 0).tolist() == [False, True, True] * 2
    tokens = tokenizer.encode(to_tensor(np.asarray(picture)[None].copy()))[0]
    assert torch.equal(known[known >= 0], tokens[known >= 0])
    images = pipeline.complete(picture, Image.fromarray(mask), ["owl", "cat"], seed=3)
    completed = pipeline.generate_tokens(torch.tensor([3, 0]), [3, 4], known=known)
    assert (completed[:, known >= 0] == known[known >= 0]).all()
    assert (completed >= 0).all()
    assert np.array_equal(pipeline.decode(completed), np.stack([np.asarray(image) for image in images]))
    *_, last = pipeline.stream(["owl", "cat"], 3, known=known)
    assert all(np.array_equal(a, b) for a, b in zip(last.images, images, strict=True))
    sample(pipeline, tmp_path / "samples.npz", ["owl", "cat"], seed=3, overrides={}, known=known)
    with np.load(tmp_path / "samples.npz") as file:
        assert np.array_equal(file["arr_0"], np.stack([np.asarray(image) for image in images]))
    assert Manifest.load(tmp_path / "samples.manifest.json").known == known.tolist()
    with pytest.raises(InputError, match="known is"):
        sample(pipeline, tmp_path / "samples.npz", ["owl", "cat"], seed=3, overrides={})


def test_the_command_completes_what_the_pipeline_does(make_stage, make_tokenizer, tmp_path, mask):
    tokenizer = make_tokenizer()
    coarse_map = cluster_codebook(tokenizer.codebook, 5)
    coarse = make_stage("any_order", name="coarse", predicts=coarse_map)
    pipeline = Pipeline(tokenizer, CLASSES, [coarse, make_stage("masked", name="fine", given=coarse_map)])
    pipeline.save_pretrained(tmp_path / "model")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8))
    picture.save(tmp_path / "picture.png")
    line = f"complete --model {tmp_path}/model --image {tmp_path}/picture.png --region 0.6 0 1 1 --labels owl cat"
    line += f" --seed 3 --temperature 0.5 --device cpu --out {tmp_path}/samples.npz"
    assert main(line.split()) == 0
    images = pipeline.complete(picture, mask, ["owl", "cat"], seed=3, temperature=0.5)
    with np.load(tmp_path / "samples.npz") as file:
        assert equal(file["arr_0"], images)


# Writing


def test_npz(pipeline, tmp_path):
    line = sample(pipeline, tmp_path / "samples.npz", ["owl", 0, "1"], seed=5, batch_size=2, model="owls")
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as file:
        assert file.files == ["arr_0", "labels"]  # the first array is what ADM's evaluator reads
        assert np.array_equal(file["arr_0"], expected(pipeline, [3, 0, 1], 5))
        assert file["labels"].tolist() == [3, 0, 1]
    assert "3 images of 8 × 12" in line
    assert "samples.manifest.json" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.manifest.json", "samples.npz"]
    manifest = Manifest.load(tmp_path / "samples.manifest.json")
    assert (manifest.model, manifest.label_policy, manifest.given_labels) == ("owls", "given", [3, 0, 1])


def test_folder(pipeline, tmp_path):
    out = tmp_path / "samples"
    sample(pipeline, out, ["owl", 0], seed=5)
    names = ["000000-class-0003.png", "000001-class-0000.png"]
    assert sorted(path.name for path in out.iterdir()) == [*names, "manifest.json", "samples.json", "sheet.png"]
    images = np.stack([np.asarray(Image.open(out / name)) for name in names])
    assert np.array_equal(images, expected(pipeline, [3, 0], 5))
    assert json.loads((out / "samples.json").read_text(encoding="utf-8")) == [
        {"file": names[0], "label": 3, "class": "owl", "seed": 5},
        {"file": names[1], "label": 0, "class": "cat", "seed": 6},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]


def test_contact_sheet(pipeline, tmp_path):
    line = sample(pipeline, tmp_path / "sheet.png", num=10)
    assert "10 images" in line
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    width, height = Image.open(tmp_path / "sheet.png").size
    assert width >= 8 * 2 * 12  # eight columns at twice the size
    assert height >= 2 * 2 * 8
    assert "64 images" in sample(pipeline, tmp_path / "sheet.png", num=100)  # at most


@pytest.mark.parametrize(
    ("labels", "num", "chosen"),
    [
        ([2, 1], 5, [2, 1, 2, 1, 2]),
        ([2, 1, 0], 2, [2, 1]),
        (None, None, [0, 1, 2, 3]),
        (None, 6, [0, 1, 2, 3, 0, 1]),
    ],
)
def test_labels_repeat_or_are_cut(pipeline, tmp_path, labels, num, chosen):
    sample(pipeline, tmp_path / "samples.npz", labels, num, batch_size=3)
    with np.load(tmp_path / "samples.npz") as file:
        assert file["labels"].tolist() == chosen
        assert np.array_equal(file["arr_0"], expected(pipeline, chosen, 0))


def labels_of(pipeline, out, **changes):
    sample(pipeline, out, batch_size=128, overrides={"cfg_scale": 1, "temperature": 0}, **changes)
    return SampleSet.open(out).labels.tolist()


def test_label_policies(pipeline, tmp_path):
    balanced = labels_of(pipeline, tmp_path / "balanced.npz", num=202, label_policy="balanced")
    assert sorted(Counter(balanced).values()) == [50, 50, 51, 51]
    uniform = labels_of(pipeline, tmp_path / "uniform.npz", num=202, label_policy="uniform")
    counts = np.bincount(uniform, minlength=4)
    assert ((counts - 50.5) ** 2 / 50.5).sum() < 16.3  # χ² of three degrees of freedom, p = 0.001
    assert len(set(counts)) > 2
    assert labels_of(pipeline, tmp_path / "fewer.npz", num=50, label_policy="uniform") == uniform[:50]
    assert labels_of(pipeline, tmp_path / "other.npz", num=50, label_policy="uniform", seed=1) != uniform[:50]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num": 0}, "num 0"),
        ({"labels": ["fox"]}, "'fox' does not exist"),
        ({"labels": [4]}, "classes 0 … 3"),
        ({"labels": [1], "label_policy": "uniform"}, "give one of them"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"overrides": {"top_p": 0.0}}, "top_p"),
        ({"overrides": {"middle_top_k": 1}}, "middle_top_k"),
        ({"seed": -1, "label_policy": "uniform"}, "seed -1"),
        ({"seed": 2**64 - 3}, "seeds of 4 images"),
    ],
)
@pytest.mark.parametrize("name", ["samples", "samples.npz"])
def test_refusals_write_nothing(pipeline, tmp_path, name, changes, message):
    with pytest.raises(InputError, match=message):
        sample(pipeline, tmp_path / name, **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "stages"), [("baseline", 1), ("cluster", 2), ("full", 2)])
def test_pipelines_of_any_stages(make_pipeline, tmp_path, kind, stages):
    pipeline = make_pipeline(kind)
    sample_to(pipeline, tmp_path / "samples.npz", num=6, batch_size=4)
    samples = SampleSet.open(tmp_path / "samples.npz")
    images = np.stack([np.asarray(image) for image in pipeline([0, 1, 2, 3, 0, 1])])  # with the model's own settings
    assert np.array_equal(np.concatenate(list(samples.batches(6))), images)
    assert len(samples.manifest.stages) == stages


# What is there already


NAMES = pytest.mark.parametrize("name", ["samples", "samples.npz"])


@contextmanager
def left_alone(folder, message=""):
    """Nothing is written in the block, nor removed; with a message it raises that InputError."""
    before = contents(folder)
    with pytest.raises(InputError, match=message) if message else nullcontext():
        yield
    assert contents(folder) == before


@NAMES
def test_a_finished_set_is_left_alone(pipeline, tmp_path, name):
    sample(pipeline, tmp_path / name)
    with left_alone(tmp_path):
        assert "sampled before" in sample(pipeline, tmp_path / name, model="the same weights from elsewhere")
    with left_alone(tmp_path, "seed is 0 there and 1 here: choose another --out"):
        sample(pipeline, tmp_path / name, seed=1)


@NAMES
def test_what_is_no_sample_set_is_refused(pipeline, tmp_path, name):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "photo.png").touch()
    (tmp_path / "samples.npz").touch()
    with left_alone(tmp_path, "has no manifest: choose another --out"):
        sample(pipeline, tmp_path / name)


def test_an_empty_folder_is_filled(pipeline, tmp_path):
    (tmp_path / "samples").mkdir()
    sample(pipeline, tmp_path / "samples")
    assert SampleSet.open(tmp_path / "samples").count == 4


@NAMES
def test_samples_are_written_where_a_link_leads(pipeline, tmp_path, name):
    place = tmp_path / "disk" / name
    place.parent.mkdir()
    if not place.suffix:
        place.mkdir()
    (tmp_path / name).symlink_to(place)
    sample(pipeline, tmp_path / name)
    assert (tmp_path / name).is_symlink()
    assert SampleSet.open(tmp_path / name).count == 4
    assert "left as they are" in sample(pipeline, tmp_path / name)


# Several processes, one after another


def sample_as(monkeypatch, rank, count, *arguments, **changes):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(count))
    return sample(*arguments, **changes)


@NAMES
def test_processes_share_the_batches(pipeline, tmp_path, monkeypatch, capsys, name):
    sample(pipeline, tmp_path / "alone" / name, num=22)
    capsys.readouterr()
    for rank in (2, 1):
        assert sample_as(monkeypatch, rank, 3, pipeline, tmp_path / "shared" / name, num=22) is None
    assert capsys.readouterr() == ("", "")
    parts = sorted(path.name for path in (tmp_path / "shared" / f"{name}.parts").iterdir())
    assert parts == [*(f"batch-{k:06d}.npz" for k in (1, 2, 4, 5)), "manifest.json"]
    assert sample_as(monkeypatch, 0, 3, pipeline, tmp_path / "shared" / name, num=22)
    alone, shared = contents(tmp_path / "alone"), contents(tmp_path / "shared")
    assert alone.keys() == shared.keys()
    assert all(alone[name] == shared[name] for name in alone if not name.endswith("manifest.json"))
    # One that starts late finds everything done.
    assert sample_as(monkeypatch, 1, 3, pipeline, tmp_path / "shared" / name, num=22) is None
    assert contents(tmp_path / "shared") == shared


@NAMES
def test_the_slower_of_two_equal_commands_finds_the_set_finished(pipeline, tmp_path, monkeypatch, name):
    out, generate = tmp_path / name, type(pipeline).generate

    def overtaken(self, *arguments, **settings):
        monkeypatch.setattr(type(pipeline), "generate", generate)
        for number, batch in enumerate(self.generate(*arguments, **settings)):
            if number == 1:
                sample(pipeline, out, num=12)
            yield batch

    monkeypatch.setattr(type(pipeline), "generate", overtaken)
    assert "sampled before" in sample(pipeline, out, num=12)
    assert SampleSet.open(out).count == 12
    assert not (tmp_path / f"{name}.parts").exists()


def test_unfinished_parts_with_other_settings_are_refused(pipeline, tmp_path, monkeypatch):
    sample_as(monkeypatch, 1, 2, pipeline, tmp_path / "samples.npz", num=8)
    with left_alone(tmp_path, r"sampling\.coarse\.top_k is 0 there and 3 here.*delete the parts"):
        sample_as(monkeypatch, 0, 1, pipeline, tmp_path / "samples.npz", num=8, overrides={**SETTINGS, "top_k": 3})


def test_a_damaged_part_is_named(pipeline, tmp_path, monkeypatch):
    sample_as(monkeypatch, 1, 2, pipeline, tmp_path / "samples.npz", num=8)
    part = tmp_path / "samples.npz.parts" / "batch-000001.npz"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"batch-000001\.npz is damaged: delete it"):
        sample_as(monkeypatch, 0, 1, pipeline, tmp_path / "samples.npz", num=8)
    part.unlink()
    sample_as(monkeypatch, 0, 1, pipeline, tmp_path / "samples.npz", num=8)
    assert SampleSet.open(tmp_path / "samples.npz").count == 8


# The batch size that memory allows


def test_auto_takes_as_many_as_memory_holds(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(type(pipeline), "largest_batch", lambda self, **overrides: 3 if overrides == SETTINGS else 0)
    for num, batch_size in ((5, 3), (2, 2)):
        out = tmp_path / f"{num}.npz"
        sample(pipeline, out, num=num, batch_size="auto")
        assert SampleSet.open(out).manifest.batch_size == batch_size
        sample(pipeline, tmp_path / "again.npz", num=num, batch_size=batch_size)
        assert out.read_bytes() == (tmp_path / "again.npz").read_bytes()
        (tmp_path / "again.npz").unlink()


def test_auto_continues_with_the_batches_that_are_there(pipeline, tmp_path, monkeypatch):
    out = tmp_path / "samples.npz"
    monkeypatch.setattr(type(pipeline), "largest_batch", lambda self, **overrides: 3)
    with monkeypatch.context() as stopped:
        stopped.setattr("ctf.samples.generate.write_images", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sample(pipeline, out, num=5, batch_size="auto")
    monkeypatch.setattr(type(pipeline), "largest_batch", lambda self, **overrides: 1)
    for _ in range(2):
        sample(pipeline, out, num=5, batch_size="auto")
        assert SampleSet.open(out).manifest.batch_size == 3


def test_auto_is_for_one_process(pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="give a number"):
        sample(pipeline, tmp_path / "samples.npz", batch_size="auto")
