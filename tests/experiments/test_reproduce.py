import dataclasses
import math
import re
import shutil
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
from ctf.experiments.page import draw, sheet, write_report
from ctf.experiments.paper import EXPERIMENTS
from ctf.experiments.presets import EMOJI, IMAGENET, TINY_IMAGENET, Lab, Preset
from ctf.experiments.reproduce import find, plan, reproduce
from ctf.experiments.store import Pace, Store, in_order
from ctf.files import read_json, read_json_lines, write_json
from ctf.images import open_images
from ctf.layout import Layout
from ctf.model_folder import open_stage
from ctf.models.config import Compute
from ctf.stages.cost import drawing_work, forward_operations
from ctf.tokens import TokenSet

ALL = EXPERIMENTS | BEYOND
PHOTOGRAPHS = TINY_IMAGENET.changed("tiny-imagenet-200")
PUBLISHED = sorted((Path(__file__).parents[2] / "benchmarks" / "reproduce").glob("*.jsonl"))
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


@pytest.mark.parametrize("preset", [EMOJI, IMAGENET, PHOTOGRAPHS], ids=["emoji", "imagenet", "tiny-imagenet"])
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

    assert len(trainings("table1")) == 3 * 6  # baselines, coarse and fine stages of two sizes
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


# What a claim is worth


@pytest.mark.parametrize(
    ("better", "worse", "word"),
    [
        ((9.9, True), (9.8, False), "undecided by an upper bound"),  # the better one's bits may be fewer
        ((9.7, True), (9.8, False), "as claimed, one seed"),
        ((9.7, False), (9.8, True), "undecided by an upper bound"),
        ((9.9, False), (9.8, True), "not as claimed, one seed"),
        ((9.7, True), (9.8, True), "undecided by an upper bound"),
    ],
)
def test_an_upper_bound_is_no_measurement(better, worse, word):
    sides = zip("ab", (better, worse), strict=True)
    rows = [Measured(Row((name,), ()), {"bits_per_token": [bits]}, bound) for name, (bits, bound) in sides]
    found = judge(Claim("", "bits_per_token", (("a",),), (("b",),)), rows)
    assert found.word == word
    assert found.evidence.count("≤") == better[1] + worse[1]


def verdict(**sides):
    """On rows of these values of FID by seed, of which each `better` one should beat each `worse` one."""
    rows = {
        side: [Measured(Row((side, str(place)), ()), {"FID": list(each)}) for place, each in enumerate(values)]
        for side, values in sides.items()
    }
    names = {side: tuple(measured.row.name for measured in found) for side, found in rows.items()}
    return judge(Claim("", "FID", **names), [*rows["better"], *rows["worse"]]).word


@pytest.mark.parametrize(
    ("better", "worse", "expected"),
    [
        ([(1.0,)], [(2.0,)], "as claimed, one seed"),
        ([(2.0,)], [(1.0,)], "not as claimed, one seed"),
        ([(1.0, 1.2, 1.1)], [(2.0, 2.1, 2.2)], "confirmed"),
        ([(2.0, 2.1, 2.2)], [(1.0, 1.2, 1.1)], "not confirmed"),
        ([(1.0, 3.0, 2.0)], [(2.0, 3.1, 2.5)], "within the noise"),
        ([(1.0, 1.2, 1.1)], [(1.2,)], "within the noise"),  # a row of one seed spreads as the other does
        ([(1.2,)], [(1.0, 1.2, 1.1)], "within the noise"),
        ([(1.0, 1.2, 1.1)], [(1.4,)], "confirmed"),
        ([(1.0,)], [(3.0,), (2.0,)], "as claimed, one seed"),  # of all rows
        ([(1.0,), (3.0,)], [(2.0,)], "not as claimed, one seed"),
        ([(0.0, 2.0)], [(2.0, 4.0)], "within the noise"),  # standard errors of 1 each: the difference is 2 ± 1.41
        ([(0.0, 2.0)], [(2.9, 4.9)], "confirmed"),
    ],
)
def test_verdicts(better, worse, expected):
    assert verdict(better=better, worse=worse) == expected


# A plan


def test_a_plan_counts_what_is_missing():
    text = plan("table1", IMAGENET, "nowhere")
    assert re.search(r"^training +9 +9 ", text, re.MULTILINE)
    assert "one A100" in text
    assert re.search(r"^missing +\S+ +774\.7 M  baseline-autoregressive-XL", text, re.MULTILINE)
    assert not re.search("^made", text, re.MULTILINE)


def test_a_plan_leaves_out_what_only_results_that_are_there_need(tiny, tmp_path):
    experiment, store = find("table3d")(tiny), Store(tmp_path)
    assert re.search(r"^training +\d+ +[1-9]", plan("table3d", tiny, str(tmp_path), "cpu"), re.MULTILINE)
    for artifact in experiment.artifacts(tiny):
        write_json(store.folder(artifact) / RESULT, {})
    text = plan("table3d", tiny, str(tmp_path), "cpu")
    assert not re.search(r"^training", text, re.MULTILINE)
    assert re.search(r"^together +\d+ +0 ", text, re.MULTILINE)


def test_sampling_on_an_a100_is_planned_at_the_rates_of_the_papers_table_2():
    rows = {row.name: Samples(row.systems[0], 1_000) for row in find("table1")(IMAGENET).rows}
    for size, baseline, coarse_to_fine in (("B", 13.75, 12.83), ("L", 7.50, 8.71), ("XL", 5.32, 6.26)):
        assert rows[size, "baseline", "equal"].seconds(IMAGENET.pace) == pytest.approx(1_000 / baseline)
        assert rows[size, "coarse-to-fine", "the paper's"].seconds(IMAGENET.pace) == pytest.approx(
            1_000 / coarse_to_fine
        )
    (any_order,) = find("orders")(IMAGENET).rows[-1].systems
    assert any_order.seconds_per_image(IMAGENET.pace) == pytest.approx(16 / 256 / 12.83)
    assert any_order.seconds_per_image(Pace("slow", 1e9)) == any_order.operations_per_image() / 1e9


@pytest.mark.parametrize("preset", [EMOJI, IMAGENET], ids=["emoji", "imagenet"])
def test_nothing_but_clusters_is_free(preset):
    artifacts = in_order(find("table1")(preset).artifacts(preset))
    assert {artifact.room for artifact in artifacts if not artifact.operations()} == {"clusters"}


def test_the_papers_rows_have_full_support_and_all_sizes_on_imagenet():
    experiment = find("table1")(IMAGENET)
    fine = [row.systems[0].stages[1].training for row in experiment.rows if row.name[1] == "coarse-to-fine"]
    assert [training.config.support for training in fine] == ["full"] * 6
    assert [training.config.size for training in fine] == ["B", "L", "L", "L", "XL", "L"]
    assert [row.name[0] for row in find("fig3")(IMAGENET).rows] == ["XL", "XL"]
    assert find("table1")(EMOJI).rows[1].systems[0].stages[1].training.config.support == "cluster"


def test_table_1_begins_with_equal_sizes_and_settings():
    baseline, equal, paper = find("table1")(EMOJI).rows[:3]
    assert [row.systems[0].title for row in (baseline, equal, paper)] == ["nano", "nano-nano", "nano-micro"]
    assert set(equal.systems[0].settings) == {*baseline.systems[0].settings, ("fine_temperature", 1.0)}


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
        cells = rf"{row.name[0]} \| \S+ \+ \S+ M \| {value:.2f} \[{row.published['FID']:g}\]"
        assert re.search(rf"^\| {cells} \|", text, re.MULTILINE)
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


def test_an_interrupted_token_set_is_continued(tiny, tmp_path):
    store, tokens = Store(tmp_path, "cpu"), Lab(tiny, 0).held_out
    index = TokenSet.open(store.get(tokens)).index
    dataclasses.replace(index, shards=[], complete=False).save(store.folder(tokens))
    assert not store.has(tokens)
    assert len(TokenSet.open(store.get(tokens))) == 16


@pytest.mark.parametrize("lost", ["tokens-00000.npy", "labels-00000.npy"])
def test_tokens_that_the_index_names_are_missed(tiny, tmp_path, lost):
    store, tokens = Store(tmp_path, "cpu"), Lab(tiny, 0).held_out
    (store.get(tokens) / lost).unlink()
    with pytest.raises(InputError, match=rf"{lost} is missing.*Or delete {store.folder(tokens)}:"):
        store.get(tokens)


@pytest.mark.parametrize("damaged", ["model.safetensors", "milestones/step-00000001.safetensors"])
def test_weights_that_are_truncated_are_missed(tiny, out, damaged, tmp_path):
    training = Lab(tiny, 0).baseline()
    shutil.copytree(Store(out, "cpu").get(training), Store(tmp_path).folder(training))
    store, path = Store(tmp_path), Store(tmp_path).folder(training) / damaged
    assert store.has(training)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match=rf"{damaged} is truncated.*Or delete"):
        store.has(training)


def test_a_look_makes_nothing(tiny, tmp_path):
    page = reproduce("table3d", tiny, str(tmp_path), "cpu", make=False)
    assert [path.name for path in tmp_path.iterdir()] == ["table3d"]
    assert [path.name for path in page.parent.iterdir()] == ["report.md"]
    assert "| not measured |" in page.read_text(encoding="utf-8")


def test_images_of_fewer_classes_than_the_presets_have_a_sheet(tiny, out, tmp_path):
    reproduce("table3d", tiny, str(out), "cpu")
    many = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, num_classes=54))
    assert sheet(tmp_path / "sheet.png", find("table3d")(tiny), many, Store(out))


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


def test_bits_of_own_images_are_of_classes_matched_by_name(tiny, tmp_path):
    pictures = Path(tiny.data.images)
    for split, names in ("train", "xab"), ("test", "ab"):  # "x" before the others moves their labels
        for name in names:
            shutil.copytree(pictures / ("b" if name == "x" else name), tmp_path / "images" / split / name)
    data = dataclasses.replace(tiny.data, images=str(tmp_path / "images"), train_split="train", test_split="test")
    preset = dataclasses.replace(tiny, data=data, reference=data.images, reference_split="train").measured()
    lab, store = Lab(preset, 0), Store(tmp_path / "store", "cpu")
    system = lab.system(lab.baseline())
    (likelihood,) = Likelihood.of(system)
    store.get(likelihood)
    tokens = TokenSet.open(store.folder(lab.held_out))
    assert (tokens.class_names, lab.preset.data.num_classes) == (["a", "b"], 3)
    expected = bits_per_token(system.open(store), tokens, progress=False)["bits_per_token"]
    assert store.result(likelihood)["bits_per_token"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"reference": "nowhere"}, "nowhere: no such folder"), ({"features": "mine.py:f"}, "mine.py: no such file")],
)
def test_what_cannot_measure_is_said_before_the_training(tiny, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        reproduce("table3d", dataclasses.replace(tiny, **changes), str(tmp_path), "cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_legend_has_every_curve_also_where_the_first_panel_lacks_some(monkeypatch, tmp_path):
    legends = []
    monkeypatch.setattr("matplotlib.figure.Figure.legend", lambda self, lines, labels, **_: legends.append(labels))
    rows = [Row((name, steps), (), measured=()) for name in "ab" for steps in "12"]
    values = [{"bits_per_token": [1.0]} | ({"FID": [2.0]} if row.name[0] == "a" else {}) for row in rows]
    measured = [Measured(row, each, False) for row, each in zip(rows, values, strict=True)]
    draw(tmp_path / "plot.png", Experiment("T", ("system", "steps"), tuple(rows), curve=1), measured, EMOJI)
    assert legends == [["a", "b"]]


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
    assert re.match(r"\| full \| \S+ \+ \S+ M \| ≤ \d+\.\d{3} \|", bound)


def test_results_alone_are_enough_for_a_page(tiny, out, tmp_path):
    """As those in benchmarks/reproduce, without the sample sets and weights that they are of."""
    page = reproduce("table3d", tiny, str(out), "cpu")
    Store(out).publish(find("table3d")(tiny).artifacts(tiny), tmp_path / "table3d.jsonl")
    reproduce("table3d", tiny, str(tmp_path), "cpu")  # makes nothing
    assert {path.name for path in tmp_path.iterdir()} == {"table3d.jsonl", "table3d"}
    tables = [p.read_text(encoding="utf-8").split("![")[0] for p in (page, tmp_path / "table3d" / "report.md")]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_results_are_those_of_todays_settings(path):
    """Else `ctf reproduce` would train and measure anew what benchmarks/reproduce holds."""
    preset = EMOJI.changed(steps=800)
    today = {f"{artifact.room}/{artifact.name}" for artifact in find(path.stem)(preset).artifacts(preset)}
    assert {line["artifact"] for line in read_json_lines(path)} <= today


def test_passes_compares_both_systems_at_each_milestone(tiny, out):
    one_seed = dataclasses.replace(tiny, seeds=(0,), passes=(1 / 4,))
    page = reproduce("passes", one_seed, str(out), "cpu")
    text = page.read_text(encoding="utf-8")
    for system in ("baseline", "coarse-to-fine"):
        assert re.findall(rf"^\| {system} \| (\S+) \| .*?M \| \d", text, re.MULTILINE) == ["0.25", "0.5"]
    for other in ("stage 2 for any rounds, in 8", "any_order as stage 1", "any_order as stage 2"):
        assert re.findall(rf"^\| {other} \| (\S+) \| .*?M \| \d", text, re.MULTILINE) == ["0.5"]
    plot = Image.open(page.with_name("plot.png"))  # of four metrics and bits, in two rows
    assert plot.height > 0.4 * plot.width


def test_weights_of_photographs_are_kept_after_half_a_pass_to_four_of_six():
    lab = Lab(PHOTOGRAPHS, 0)
    assert [step * 32 / 100_000 for step in lab.milestones()] == pytest.approx([0.5, 1, 2, 4], abs=1e-3)
    two = Lab(TINY_IMAGENET.changed("photographs", steps=6_250), 0)
    assert two.milestones() == lab.milestones()[:2]


def test_swaps_and_speed_have_pages_too(tiny, out, tmp_path, monkeypatch):
    monkeypatch.setattr("ctf.experiments.experiment.Speed", partial(Speed, batch=2, repeats=1))
    lab, store = Lab(tiny, 0), Store(out, "cpu")
    systems = lab.system(lab.coarse(), lab.fine("L")), lab.system(lab.baseline())
    rows = tuple(Row((name,), (system,), measured=()) for name, system in zip("ab", systems, strict=True))
    experiment = Experiment("T", ("system",), rows, speed=True, swaps=(Swap(systems[0], (8,), num=12),))
    for artifact in experiment.artifacts(tiny):
        store.get(artifact)
    write_report(tmp_path, experiment, tiny, store, "ctf")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert re.search(r"M = 8: k-means [\d.]+ dB, random [\d.]+ dB", text)
    assert re.search(r"^\| a \| \S+ \+ \S+ M \| [\d.e-]+ \|\n\| b \| \S+ M \| [\d.e-]+ \|$", text, re.MULTILINE)
    assert Image.open(tmp_path / "figure-0.png").width > 300
    assert not (tmp_path / "plot.png").exists()

    store.publish(experiment.artifacts(tiny), tmp_path / "t.jsonl")
    write_report(tmp_path / "again", experiment, tiny, Store(tmp_path), "ctf")
    again = (tmp_path / "again" / "report.md").read_text(encoding="utf-8")
    assert again == text.replace("![tokens swapped](figure-0.png)\n\n", "")


def test_own_images_have_their_own_numbers(tmp_path):
    for split, images in ("train", 3), ("val", 2):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(images):
                Image.new("RGB", (64, 64), (i, 9, 9)).save(tmp_path / split / name / f"{i}.png")
    data = TINY_IMAGENET.changed(str(tmp_path), tokenizer="emoji").measured().data
    assert (data.num_images, data.num_held_out, data.num_classes) == (6, 4, 2)
    assert (data.layout, data.codebook_size) == (Layout.square(8), 16_384)
    assert EMOJI.measured() == EMOJI


def test_an_experiment_of_one_step_has_no_milestones():
    experiment = find("fig2")(EMOJI.changed(steps=1))
    assert [row.name for row in experiment.rows] == [("baseline", "1"), ("coarse-to-fine", "1")]


@pytest.mark.parametrize(("steps", "claimed"), [(6250, False), (900, True)])
def test_a_third_of_the_training_is_a_third(steps, claimed):
    """Half a pass is 1,562 steps; without a whole share of passes milestones are the paper's shares."""
    claims = [claim.says for claim in find("fig2")(TINY_IMAGENET.changed("photos", steps=steps)).claims]
    assert any("a third" in claim for claim in claims) == claimed


def test_photographs_are_named_by_the_user_and_are_their_own_reference():
    with pytest.raises(InputError, match="--images"):
        TINY_IMAGENET.changed(steps=2)
    assert TINY_IMAGENET.changed("tiny-imagenet-200").reference == "tiny-imagenet-200"
    stored = TINY_IMAGENET.changed("tiny-imagenet-200", reference="set.npz")
    assert (stored.reference, stored.reference_split) == ("set.npz", None)  # an .npz has no splits
    assert EMOJI.changed("photos").reference == "photos"
    assert EMOJI.changed(tokenizer="photos").reference == "emoji"


def test_settings_replace_the_presets():
    changed: Preset = EMOJI.changed("photos", reference="set.npz", seeds=(5,), steps=70, num_samples=9)
    assert (changed.data.images, changed.data.tokenizer, changed.reference) == ("photos", "emoji", "set.npz")
    assert (changed.seeds, changed.training["loop"].steps, changed.num_samples) == ((5,), 70, 9)
    assert changed.training["optimizer"].warmup_steps == 35
    for seeds in ((), (1, 1)):
        with pytest.raises(InputError, match="one or more different ones"):
            EMOJI.changed(seeds=seeds)
