import dataclasses
import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctf.errors import InputError
from ctf.evaluation.likelihood import bits_per_token
from ctf.experiments.artifacts import Clusters, Training
from ctf.experiments.beyond import BEYOND
from ctf.experiments.experiment import Claim, Experiment, Measured, Row, judge
from ctf.experiments.measurements import RESULT, Likelihood, Samples, Speed, Swap, drawing_operations
from ctf.experiments.page import write_report
from ctf.experiments.paper import EXPERIMENTS
from ctf.experiments.presets import EMOJI, IMAGENET, TINY_IMAGENET, Lab, Preset
from ctf.experiments.reproduce import find, plan, reproduce
from ctf.experiments.store import Store, in_order
from ctf.files import read_json
from ctf.images import open_images
from ctf.model_folder import open_stage
from ctf.models.config import Compute
from ctf.stages.cost import drawing_work, forward_operations
from ctf.tokens import TokenSet

ALL = EXPERIMENTS | BEYOND
pytestmark = pytest.mark.usefixtures("tiny_nano")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Sixteen of the emoji in two classes, nano models, two steps, eight samples."""
    folder, emoji = tmp_path_factory.mktemp("pictures"), open_images("emoji", "test")
    for place, index in enumerate(np.linspace(0, len(emoji) - 1, 16).astype(int)):
        (folder / "ab"[place % 2]).mkdir(exist_ok=True)
        Image.fromarray(emoji.read(int(index))).save(folder / "ab"[place % 2] / f"{index:04d}.png")
    data = dataclasses.replace(
        EMOJI.data, images=str(folder), train_split=None, test_split=None, num_classes=2, num_images=16
    )
    short = EMOJI.changed(steps=2)
    loop = dataclasses.replace(short.training["loop"], batch_size=4, device="cpu", precision="float32")
    return dataclasses.replace(
        short,
        data=data,
        sizes=dict.fromkeys("BLX", "nano") | {"XL": "nano"},
        training=short.training | {"loop": loop},
        reference=str(folder),
        reference_split=None,
        num_samples=8,
        seeds=(0, 1),
    )


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CTF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A store that the tests of this file share."""
    return tmp_path_factory.mktemp("store")


# What is compared


@pytest.mark.parametrize("preset", [EMOJI, IMAGENET], ids=["emoji", "imagenet"])
@pytest.mark.parametrize("name", ALL)
def test_claims_are_of_rows_that_are_measured(name, preset):
    experiment = find(name)(preset)
    names = [row.name for row in experiment.rows]
    assert len(set(names)) == len(names)
    assert all(len(row.name) == len(experiment.columns) for row in experiment.rows)
    for claim in experiment.claims:
        for row in (row for row in experiment.rows if row.name in (*claim.better, *claim.worse)):
            assert ("bits" if claim.metric == "bits_per_token" else "samples") in row.measured
        assert {*claim.better, *claim.worse} <= set(names)
    assert experiment.artifacts(preset)


def test_experiments_share_what_they_train():
    def trainings(*names):
        return {a for name in names for a in in_order(find(name)(EMOJI).artifacts(EMOJI)) if isinstance(a, Training)}

    assert len(trainings("table1")) == 3 * 5  # two baselines, two coarse stages, one fine
    assert trainings("fig2", "fig3", "accuracy", "table2", "table3c", "table3d", "fig1b") <= trainings("table1")
    one_seed = trainings("table3b")
    assert len(one_seed - trainings("table1", "table3a")) == 1  # the fine stage of size XL


def test_a_seed_changes_trainings_but_not_clusters():
    first, second = (Lab(EMOJI, seed) for seed in (0, 1))
    assert first.coarse().key != second.coarse().key
    assert first.clusters().key == second.clusters().key


def test_where_it_is_computed_decides_nothing():
    training = Lab(EMOJI, 0).coarse()
    loop = dataclasses.replace(training.config.loop, device="cuda", log_every=7, keep_checkpoints=9, tensorboard=True)
    elsewhere = dataclasses.replace(training, config=dataclasses.replace(training.config, loop=loop))
    assert elsewhere.key == training.key
    longer = dataclasses.replace(training.config, loop=dataclasses.replace(loop, steps=7))
    assert dataclasses.replace(training, config=longer).key != training.key


def test_clusters_are_those_of_the_tokenizer_not_of_the_images():
    assert Clusters(EMOJI.data).key == Clusters(dataclasses.replace(EMOJI.data, images="others")).key
    assert Clusters(EMOJI.data).key != Clusters(dataclasses.replace(EMOJI.data, tokenizer="other")).key


def test_likelihood_does_not_depend_on_guidance():
    lab = Lab(EMOJI, 0)
    system = lab.system(lab.coarse(kind="any_order"), lab.fine(), steps=4)
    coarse, fine = Likelihood.of(system)
    assert [coarse, fine] == Likelihood.of(system.sampling(cfg_scale=7.0, fine_temperature=0.5))
    other, same = Likelihood.of(system.sampling(steps=8))
    assert fine == same
    assert coarse != other


def test_no_such_experiment():
    with pytest.raises(InputError, match="experiment 'table9' does not exist: choose one of table1, "):
        find("table9")


# What a claim is worth


def measured(**rows):
    return [Measured(Row((name,), ()), {"FID": list(values)}) for name, values in rows.items()]


@pytest.mark.parametrize(
    ("good", "bad", "word"),
    [
        ((1.0,), (2.0,), "as claimed, one seed"),
        ((2.0,), (1.0,), "not as claimed, one seed"),
        ((1.0, 1.2, 1.1), (2.0, 2.1, 2.2), "confirmed"),
        ((2.0, 2.1, 2.2), (1.0, 1.2, 1.1), "not confirmed"),
        ((1.0, 3.0, 2.0), (2.0, 3.1, 2.5), "within the noise"),
        ((1.0, 1.2, 1.1), (1.2,), "within the noise"),  # a row of one seed spreads as the other does
        ((1.2,), (1.0, 1.2, 1.1), "within the noise"),
        ((1.0, 1.2, 1.1), (1.4,), "confirmed"),
    ],
)
def test_verdicts(good, bad, word):
    assert judge(Claim("", "FID", (("good",),), (("bad",),)), measured(good=good, bad=bad)).word == word


def test_a_claim_holds_if_it_holds_of_all_its_rows():
    rows = measured(a=[1.0], b=[3.0], c=[2.0])
    assert judge(Claim("", "FID", (("a",),), (("b",), ("c",))), rows).word == "as claimed, one seed"
    assert judge(Claim("", "FID", (("a",), ("b",)), (("c",),)), rows).word == "not as claimed, one seed"


def test_a_difference_is_noise_up_to_two_standard_errors():
    rows = measured(good=[0.0, 2.0], bad=[2.0, 4.0])  # standard errors of 1 each: the difference is 2 ± 1.41
    assert judge(Claim("", "FID", (("good",),), (("bad",),)), rows).word == "within the noise"
    rows = measured(good=[0.0, 2.0], bad=[2.9, 4.9])
    assert judge(Claim("", "FID", (("good",),), (("bad",),)), rows).word == "confirmed"


# A plan


def test_a_plan_counts_what_is_missing():
    text = plan("table1", IMAGENET, "nowhere")
    assert re.search(r"^training +5 +5 ", text, re.MULTILINE)
    assert "one A100" in text
    assert not re.search("^made", text, re.MULTILINE)


def test_operations_of_a_training_are_those_of_the_stage(tiny, out):
    lab = Lab(tiny, 0)
    for training in (lab.baseline(), lab.coarse(), lab.fine(), lab.coarse(kind="any_order")):
        stage = open_stage(Store(out, "cpu").get(training))
        assert training.stage().num_parameters() == stage.num_parameters()
        assert math.isclose(training.operations(), 3 * forward_operations(stage) * 2 * 4, rel_tol=1e-6)


@pytest.mark.parametrize("make", ["baseline", "coarse", "fine", "any_order"])
def test_operations_of_drawing_are_those_of_all_blocks(make):
    """They are counted with one block and with two."""
    lab = Lab(dataclasses.replace(EMOJI, sizes=dict.fromkeys(("B", "L"), "micro")), 0)
    training = lab.coarse(kind="any_order") if make == "any_order" else getattr(lab, make)()
    stage = training.stage()
    assert stage.config.layers == 6
    work = sum(step.operations for step in drawing_work(stage, 1, stage.sampling, Compute("float32")))
    assert math.isclose(drawing_operations(training, stage.sampling), work, rel_tol=1e-9)


# Made for real


def test_an_experiment_stopped_at_any_artifact_repeats_nothing(tiny, out, monkeypatch):
    """The sample sets of Table 3d; each attempt stops when it has made one more of them."""
    make, made, tiny = Samples.make, [], dataclasses.replace(tiny, seeds=(0,))

    def stopping(self, folder, store):
        make(self, folder, store)
        made.append(self.key)
        raise KeyboardInterrupt

    monkeypatch.setattr(Samples, "make", stopping)
    for count in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            reproduce("table3d", tiny, str(out), "cpu")
        assert len(made) == len(set(made)) == count
    trained = {path: path.stat().st_mtime_ns for path in out.glob("training/*/model.safetensors")}
    page = reproduce("table3d", tiny, str(out), "cpu", "ctf reproduce table3d")
    assert len(made) == 3
    assert trained == {path: path.stat().st_mtime_ns for path in out.glob("training/*/model.safetensors")}

    text = page.read_text(encoding="utf-8")
    assert "`ctf reproduce table3d`" in text
    assert all(Image.open(page.with_name(name)).width > 300 for name in ("plot.png", "samples.png"))
    store = Store(out, "cpu")
    for row in find("table3d")(tiny).rows:
        (metrics,) = row.metrics(tiny)
        value = read_json(store.get(metrics) / RESULT)["metrics"]["Fréchet distance, emoji features"]
        assert re.search(rf"^\| {row.name[0]} \| {value:.2f} \[{row.published['FID']:g}\] \|", text, re.MULTILINE)
    assert re.search(r"^\| top-k = 1 in stage 2 hurts \(Table 3d\) \| (not )?as claimed, one", text, re.MULTILINE)
    plan_now = plan("table3d", tiny, str(out))
    assert re.search(r"^together +\d+ +0 ", plan_now, re.MULTILINE)


def test_seeds_are_averaged_and_milestones_opened(tiny, out):
    store = Store(out, "cpu")
    page = reproduce("support", tiny, str(out), "cpu")
    row = find("support")(tiny).rows[0]
    bits = [sum(read_json(store.get(s) / RESULT)["bits_per_token"] for s in stages) for stages in row.likelihoods()]
    assert len(bits) == 2
    assert f"{np.mean(bits):.3f} ± {np.std(bits, ddof=1):.3f}" in page.read_text(encoding="utf-8")
    milestone = find("fig2")(tiny).rows[0].systems[0].stages[0]
    assert milestone.milestone == 1
    assert open_stage(milestone.path(store)).num_parameters() == milestone.training.stage().num_parameters()


def test_a_look_makes_nothing(tiny, out, tmp_path):
    page = reproduce("table3d", tiny, str(tmp_path), "cpu", make=False)
    assert [path.name for path in tmp_path.iterdir()] == ["table3d"]
    assert [path.name for path in page.parent.iterdir()] == ["report.md"]
    assert "| not measured |" in page.read_text(encoding="utf-8")


def test_bits_are_those_of_the_pipeline(tiny, out):
    lab, store = Lab(tiny, 0), Store(out, "cpu")
    system = lab.system(lab.coarse(kind="any_order"), lab.fine(), steps=4, order="halton")
    row = Row(("a",), (system,), measured=("bits",))
    for artifact in row.likelihoods()[0]:
        store.get(artifact)
    values = Measured.read(row, tiny, store).values
    tokens = TokenSet.open(store.folder(lab.held_out))
    expected = bits_per_token(system.open(store), tokens, progress=False, steps=4, order="halton")
    assert values["bits_per_token"] == pytest.approx([expected["bits_per_token"]])
    assert values["fine_accuracy"] == pytest.approx([expected["fine_accuracy"]])


def test_bits_of_full_support_are_bounds(tiny, out, tmp_path):
    lab = Lab(tiny, 0)
    systems = {name: lab.system(lab.coarse(), lab.fine(support=name)) for name in ("cluster", "full")}
    rows = tuple(Row((name,), (system,), measured=("bits",)) for name, system in systems.items())
    experiment, store = Experiment("Support", ("support",), rows), Store(out, "cpu")
    for artifact in experiment.artifacts(tiny):
        store.get(artifact)
    write_report(tmp_path, experiment, tiny, store, "")
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    exact, bound = (line for line in lines if line.startswith(("| cluster", "| full")))
    assert "≤" not in exact
    assert re.match(r"\| full \| ≤ \d+\.\d{3} \|", bound)


def test_results_alone_are_enough_for_a_page(tiny, out, tmp_path):
    """As those in benchmarks/reproduce, without the sample sets and weights that they are of."""
    page = reproduce("table3d", tiny, str(out), "cpu")
    Store(out).publish(find("table3d")(tiny).artifacts(tiny), tmp_path / "table3d.jsonl")
    reproduce("table3d", tiny, str(tmp_path), "cpu")  # makes nothing
    assert {path.name for path in tmp_path.iterdir()} == {"table3d.jsonl", "table3d"}
    tables = [p.read_text(encoding="utf-8").split("![")[0] for p in (page, tmp_path / "table3d" / "report.md")]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("name", ["table1", "fig1b", "rounds"])
def test_published_results_are_those_of_todays_settings(name):
    """Else `ctf reproduce` would train and measure anew what benchmarks/reproduce holds."""
    preset, store = EMOJI.changed(steps=800), Store(Path(__file__).parents[2] / "benchmarks" / "reproduce")
    assert all(map(store.has, find(name)(preset).artifacts(preset)))


def test_swaps_and_speed_have_pages_too(tiny, out, tmp_path, monkeypatch):
    monkeypatch.setattr("ctf.experiments.experiment.Speed", partial(Speed, batch=2, repeats=1))
    lab, store = Lab(tiny, 0), Store(out, "cpu")
    systems = lab.system(lab.coarse(), lab.fine("L")), lab.system(lab.baseline())
    rows = tuple(Row((name,), (system,), measured=()) for name, system in zip("ab", systems, strict=True))
    experiment = Experiment("T", ("system",), rows, speed=True, figures=(Swap(systems[0], (8,), num=12),))
    for artifact in experiment.artifacts(tiny):
        store.get(artifact)
    write_report(tmp_path, experiment, tiny, store, "ctf")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert re.search(r"M = 8: k-means [\d.]+ dB, random [\d.]+ dB", text)
    assert re.search(r"^\| a \| [\d.e-]+ \|\n\| b \| [\d.e-]+ \|$", text, re.MULTILINE)
    assert Image.open(tmp_path / "figure-0.png").width > 300
    assert not (tmp_path / "plot.png").exists()

    store.publish(experiment.artifacts(tiny), tmp_path / "t.jsonl")
    write_report(tmp_path / "again", experiment, tiny, Store(tmp_path), "ctf")
    again = (tmp_path / "again" / "report.md").read_text(encoding="utf-8")
    assert again == text.replace("![tokens swapped](figure-0.png)\n\n", "")


def test_photographs_are_named_by_the_user_and_are_their_own_reference():
    with pytest.raises(InputError, match="--images"):
        TINY_IMAGENET.changed(steps=2)
    assert TINY_IMAGENET.changed("tiny-imagenet-200").reference == "tiny-imagenet-200"
    assert TINY_IMAGENET.changed("tiny-imagenet-200", reference="set.npz").reference == "set.npz"


def test_settings_replace_the_presets():
    changed: Preset = EMOJI.changed("photos", reference="set.npz", seeds=(5,), steps=70, num_samples=9)
    assert (changed.data.images, changed.data.tokenizer, changed.reference) == ("photos", "emoji", "set.npz")
    assert (changed.seeds, changed.training["loop"].steps, changed.num_samples) == ((5,), 70, 9)
    assert changed.training["optimizer"].warmup_steps == 35
    for seeds in ((), (1, 1)):
        with pytest.raises(InputError, match="one or more different ones"):
            EMOJI.changed(seeds=seeds)
