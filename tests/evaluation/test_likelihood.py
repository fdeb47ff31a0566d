import itertools
import json
import math
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from ctf.cli import main
from ctf.codebook import cluster_codebook
from ctf.errors import InputError
from ctf.evaluation import bits_by_steps, bits_per_token
from ctf.evaluation.likelihood import stage_score
from ctf.evaluation.steps_plot import plot_steps
from ctf.layout import Layout
from ctf.model_folder import Pipeline
from ctf.sampling import Sampling
from ctf.tokens import write_token_set

KINDS = pytest.mark.parametrize("kind", ["baseline", "cluster", "full"])


def write(folder, pipeline, tokens, labels, **settings):
    codebook = pipeline.tokenizer.codebook
    own = {"codebook_size": len(codebook), "layout": pipeline.layout, "class_names": pipeline.class_names}
    return write_token_set(folder, np.asarray(tokens), np.asarray(labels), **own | {"codebook": codebook} | settings)


@torch.no_grad()
def nats(stage, rows, *sampling):
    """-log P of each image, one at a time; tests/stages compares `log_prob` with its definition."""
    return np.array(
        [-float(stage.log_prob(torch.tensor([t]), torch.tensor([y]), *sampling).double().sum()) for t, y in rows]
    )


def test_bits_of_a_completion(in_steps, tmp_path):
    pipeline = in_steps()
    tokens, labels = np.random.default_rng(0).integers(0, 24, (7, 6)), np.arange(7) % 4
    token_set = write(tmp_path / "set", pipeline, tokens, labels)
    kept, settings = torch.tensor([0, 1, 1, 0, 0, 1]) == 1, {"steps": 2, "order": "raster", "fine_steps": 3}
    found = bits_per_token(pipeline, token_set, batch_size=3, progress=False, kept=kept, **settings)
    both, sampling = (torch.tensor(tokens), torch.tensor(labels)), pipeline.sampling(**settings)
    with torch.no_grad():
        bits = {
            how: sum(-s.log_prob(*both, sampling[s.name], k)[:, ~kept].mean().item() for s in pipeline.stages)
            for how, k in {"bits_per_token": kept, "unconditional_bits_per_token": None}.items()
        }
    assert {how: found[how] for how in bits} == pytest.approx({how: nats / math.log(2) for how, nats in bits.items()})
    assert found["bits_per_token"] == pytest.approx(found["coarse_bits_per_token"] + found["fine_bits_per_token"])
    assert abs(found["bits_per_token"] - found["unconditional_bits_per_token"]) > 0.01


def test_labels_are_matched_by_name(make_pipeline, tmp_path):
    pipeline = make_pipeline("baseline")  # of a cat, red fox, dog and owl

    def bits(name, label, class_names):
        token_set = write(tmp_path / name, pipeline, [[1] * 6], [label], class_names=class_names)
        return bits_per_token(pipeline, token_set, progress=False)

    dog = bits("same", 2, pipeline.class_names)
    assert bits("fewer", 0, ["dog", "owl"]) == dog != bits("other", 1, ["dog", "owl"])
    assert bits("more", 0, ["dog", "bee", "ant", "cat", "hen"]) == dog
    with pytest.raises(InputError, match="images of the class 'bee', which is none of the model's classes"):
        bits("bee", 1, ["dog", "bee"])
    with pytest.warns(UserWarning, match="names and numbers for classes: bits mean something only if"):
        assert bits("numbered", 2, list("0123")) == dog
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bits("first", 2, pipeline.class_names[:3]) == dog


@KINDS
def test_the_mean_over_all_images(make_pipeline, tmp_path, kind):
    pipeline = make_pipeline(kind)
    generator = np.random.default_rng(0)
    tokens, labels = generator.integers(0, 24, (10, 6)), generator.integers(0, 4, 10)
    token_set = write(tmp_path / "set", pipeline, tokens, labels, shard_size=4)
    metrics = bits_per_token(pipeline, token_set, batch_size=3, progress=False)

    rows = list(zip(tokens.tolist(), labels, strict=True))
    terms = {stage.name: nats(stage, rows).sum() / 60 / math.log(2) for stage in pipeline.stages}
    assert metrics["bits_per_token"] == pytest.approx(sum(terms.values()), rel=1e-5)
    if len(terms) > 1:
        assert {name: metrics[f"{name}_bits_per_token"] for name in terms} == pytest.approx(terms, rel=1e-5)
    assert metrics.get("bound") == ("upper" if kind == "full" else None)


@pytest.mark.parametrize("kinds", [("cluster", "baseline"), ("baseline", "full")], ids=str)
def test_standard_errors_and_the_paired_difference(make_pipeline, tmp_path, kinds):
    models = [make_pipeline(kind) for kind in kinds]
    generator = np.random.default_rng(0)
    tokens, labels = generator.integers(0, 24, (10, 6)), generator.integers(0, 4, 10)
    token_set = write(tmp_path / "set", models[0], tokens, labels)
    found = bits_per_token(models[0], token_set, batch_size=3, progress=False, against=models[1])

    rows = list(zip(tokens.tolist(), labels, strict=True))
    a, b = (sum(nats(stage, rows) for stage in model.stages) / 6 / math.log(2) for model in models)
    wanted = [(found, "bits_per_token", a), (found["against"], "bits_per_token", b)]
    for result, name, values in [*wanted, (found["against"], "difference", a - b)]:
        deviation = math.sqrt(((values - values.mean()) ** 2).sum() / 9)
        assert result[name] == pytest.approx(values.mean(), rel=1e-4)
        assert result["standard_error"][name] == pytest.approx(deviation / math.sqrt(10), rel=1e-4)
    assert found["images"] == 10
    assert found["standard_error"].keys() == found.keys() - {"images", "standard_error", "against"}


def test_one_image_has_no_standard_error(make_pipeline, tmp_path):
    pipeline = make_pipeline("baseline")
    found = bits_per_token(pipeline, write(tmp_path / "set", pipeline, [[1] * 6], [2]), progress=False)
    assert found["standard_error"] == {"bits_per_token": None, "token_accuracy": None}


@KINDS
def test_accuracy_counts_what_greedy_sampling_would_draw(make_pipeline, tmp_path, kind):
    pipeline = make_pipeline(kind)
    greedy = {f"{stage.name}_temperature": 0.0 for stage in pipeline.stages}
    labels = torch.arange(4)
    tokens = pipeline.generate_tokens(labels, range(4), **greedy)
    metrics = bits_per_token(pipeline, write(tmp_path / "set", pipeline, tokens, labels), progress=False)
    accuracies = {key: value for key, value in metrics.items() if "accuracy" in key}
    if kind == "full":  # whose greedy tokens may lie outside the cluster that was drawn
        assert set(accuracies) == {"coarse_accuracy", "fine_accuracy"}
    else:
        assert accuracies == dict.fromkeys(accuracies, 1.0)
        assert len(accuracies) == (1 if kind == "baseline" else 2)


def test_the_first_augmentation_is_measured(make_pipeline, tmp_path):
    pipeline = make_pipeline("baseline")
    tokens = np.random.default_rng(0).integers(0, 24, (5, 2, 6))
    both = write(tmp_path / "both", pipeline, tokens, [0] * 5, augmentations=["none", "flip"])
    first = write(tmp_path / "first", pipeline, tokens[:, 0], [0] * 5)
    assert bits_per_token(pipeline, both, progress=False) == bits_per_token(pipeline, first, progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codebook_size": 25, "codebook": None}, "codebook of 25"),
        ({"codebook": torch.ones(24, 4)}, "another codebook"),
        ({"layout": Layout((3, 2))}, "layout or classes"),
        ({"class_names": list("abcde")}, "images of the class 'a', which is none of the model's"),
    ],
)
def test_tokens_of_another_model(make_pipeline, tmp_path, settings, message):
    pipeline = make_pipeline("cluster")
    token_set = write(tmp_path / "set", pipeline, [[0] * 6], [0], **settings)
    with pytest.raises(InputError, match=message):
        bits_per_token(pipeline, token_set, progress=False)


# In steps

SEVERAL = pytest.mark.parametrize("kind", ["any_order", "masked"])
SCHEDULE = {"order": "random", "schedule": "uniform", "order_seed": 7}


@pytest.fixture
def in_steps(make_tokenizer, make_stage):
    """make(kind, fine_kind): a coarse and a fine stage that draw in up to 6 steps."""
    tokenizer = make_tokenizer()
    coarse_map = cluster_codebook(tokenizer.codebook, 5)

    def make(kind="any_order", fine_kind="masked", support="cluster", **settings):
        own = {kind: {"rounds": "any"} if kind == "masked" else {} for kind in (kind, fine_kind)}
        coarse = make_stage(kind, name="coarse", predicts=coarse_map, **own[kind], **settings)
        fine = make_stage(fine_kind, name="fine", given=coarse_map, support=support, seed=1, **own[fine_kind])
        return Pipeline(tokenizer, ["cat", "red fox", "dog", "owl"], [coarse, fine])

    return make


@pytest.fixture
def few(tmp_path):
    """A function that writes 5 images for a pipeline: the token set, its tokens, its labels."""

    def make(pipeline):
        generator = np.random.default_rng(0)
        tokens, labels = generator.integers(0, 24, (5, 6)), generator.integers(0, 4, 5)
        return write(tmp_path / "set", pipeline, tokens, labels), tokens, labels

    return make


@SEVERAL
@pytest.mark.parametrize("stage", ["coarse", "fine"])
@pytest.mark.parametrize(
    "schedule",
    [SCHEDULE, {"order": "locality", "schedule": "cosine", "order_seed": 0}],
    ids=lambda schedule: schedule["order"],
)
def test_each_row_is_the_mean_over_all_images_in_these_steps(in_steps, few, kind, stage, schedule):
    pipeline = in_steps(kind, kind)
    token_set, tokens, labels = few(pipeline)
    overrides = {f"{stage}_{name}": value for name, value in schedule.items()}
    found = bits_by_steps(pipeline, token_set, [6, 1, 3], stage, batch_size=2, progress=False, **overrides)
    assert {name: found[name] for name in ("stage", "kind", *schedule)} == {"stage": stage, "kind": kind, **schedule}
    assert [row["steps"] for row in found["rows"]] == [1, 3, 6]
    rows = list(zip(tokens.tolist(), labels.tolist(), strict=True))
    for row in found["rows"]:
        expected = nats(pipeline.stage(stage), rows, Sampling(steps=row["steps"], **schedule)).sum() / 30 / math.log(2)
        assert row[f"{stage}_bits_per_token"] == pytest.approx(expected, rel=1e-5)
        assert row["bits_per_token"] == pytest.approx(row["coarse_bits_per_token"] + row["fine_bits_per_token"])


@SEVERAL
@pytest.mark.parametrize("support", ["cluster", "full"])
def test_each_row_is_that_of_the_pipeline_in_these_steps(in_steps, few, kind, support):
    pipeline = in_steps(kind, support=support)
    token_set, *_ = few(pipeline)
    rows = bits_by_steps(pipeline, token_set, (2, 4), progress=False, fine_steps=3, **SCHEDULE)["rows"]
    for row in rows:
        steps = row.pop("steps")
        assert row == bits_per_token(pipeline, token_set, progress=False, steps=steps, fine_steps=3, **SCHEDULE)
    assert rows[0] != rows[1]
    assert [row.get("bound") for row in rows] == [None if support == "cluster" else "upper"] * 2


@pytest.mark.parametrize(("fine_kind", "equal"), [("autoregressive", True), ("masked", False)])
def test_completion_is_the_models_own_conditional_if_its_stages_are_autoregressive(
    in_steps, tmp_path, fine_kind, equal
):
    """P(rest | kept) by the definition: P of each image over the sum of all that share the kept part."""
    pipeline = in_steps("autoregressive", fine_kind)
    rows = [[7, 3, 11, 0, *rest] for rest in itertools.product(range(24), repeat=2)]
    token_set, kept = write(tmp_path / "set", pipeline, rows, [2] * 576), torch.arange(6) < 4
    whole = -6 * np.sum([stage_score(stage, token_set, progress=False).bits for stage in pipeline.stages], 0)
    completed = [stage_score(stage, token_set, progress=False, kept=kept).bits for stage in pipeline.stages]
    completed = 2 ** (-2 * np.sum(completed, 0))
    assert completed.sum() == pytest.approx(1, rel=1e-4)
    conditional = 2**whole / (2**whole).sum()
    assert np.allclose(completed, conditional, rtol=1e-3) == equal


def passes(stage):
    """A list that grows by one whenever the stage's network runs."""
    found = []
    stage.transformer.blocks[0].register_forward_pre_hook(lambda *_: found.append(stage.name))
    return found


def test_the_other_stages_run_once(in_steps, few):
    pipeline = in_steps()
    token_set, *_ = few(pipeline)
    coarse, fine = map(passes, pipeline.stages)
    bits_by_steps(pipeline, token_set, [1, 2, 4, 6], batch_size=3, progress=False, fine_steps=1)
    assert (len(coarse), len(fine)) == (2 * 4, 2)  # 5 images are two batches


def test_the_models_own_schedule_counts_and_its_filters_do_not(in_steps, few):
    plain, own = in_steps(), in_steps(sampling=Sampling(cfg_scale=3.0, temperature=0.5, top_k=1, steps=2, **SCHEDULE))
    token_set, *_ = few(plain)
    found = bits_per_token(own, token_set, progress=False)
    assert found == bits_per_token(plain, token_set, progress=False, steps=2, **SCHEDULE)
    assert found != bits_per_token(plain, token_set, progress=False)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("any_order", {"steps": [2, 7]}, "cannot draw in 7 steps: .* takes from 1 to 6"),
        ("any_order", {"steps": [0]}, "steps 0 must be at least 1"),
        ("any_order", {"steps": []}, "at least one number of steps"),
        ("any_order", {"steps": [1], "stage": "middle"}, "no stage 'middle': there are coarse, fine"),
        ("any_order", {"steps": [1], "order": "confidence"}, "cannot draw in the order confidence"),
        ("masked", {"steps": [1], "order": "confidence"}, "stage coarse: .* depends on what is drawn"),
        ("masked", {"steps": [1], "fine_order": "confidence"}, "stage fine: .* depends on what is drawn"),
        ("autoregressive", {"steps": [6, 3]}, "cannot draw in 3 steps: .* takes 6"),
    ],
    ids=str,
)
def test_steps_without_a_likelihood_are_refused_before_the_work(in_steps, few, kind, arguments, message):
    pipeline = in_steps(kind)
    token_set, *_ = few(pipeline)
    ran = [passes(stage) for stage in pipeline.stages]
    with pytest.raises(InputError, match=message):
        bits_by_steps(pipeline, token_set, progress=False, **arguments)
    assert ran == [[], []]


def test_something_must_be_left_to_measure(in_steps, few):
    pipeline = in_steps()
    token_set, *_ = few(pipeline)
    with pytest.raises(InputError, match="kept holds every position"):
        bits_per_token(pipeline, token_set, progress=False, kept=torch.ones(6, dtype=torch.bool))


def test_the_other_models_tokens_are_checked_before_the_work(in_steps, few, make_pipeline):
    pipeline = in_steps()
    token_set, *_ = few(pipeline)
    ran = [passes(stage) for stage in pipeline.stages]
    with pytest.raises(InputError, match="a codebook of 24"):
        bits_per_token(pipeline, token_set, progress=False, against=make_pipeline("baseline", codebook_size=30))
    assert ran == [[], []]


# The command


def test_the_command_writes_what_it_prints_and_a_plot(in_steps, few, tmp_path, capsys):
    pipeline, out = in_steps(), tmp_path / "out"
    token_set, *_ = few(pipeline)
    pipeline.save_pretrained(tmp_path / "model")
    words = ["evaluate", "likelihood", "--device", "cpu", "--model", str(tmp_path / "model")]
    words += ["--tokens", str(tmp_path / "set"), "--order", "random", "--order_seed", "7", "--schedule", "uniform"]

    def printed(*more):
        assert main([*words, *more]) == 0
        return json.loads(capsys.readouterr().out)

    assert printed("--stage", "fine") == bits_per_token(
        pipeline, token_set, progress=False, **{f"fine_{name}": value for name, value in SCHEDULE.items()}
    )
    own = {f"coarse_{name}": value for name, value in SCHEDULE.items()}
    assert printed("--against", str(tmp_path / "model")) == bits_per_token(
        pipeline, token_set, progress=False, against=pipeline, **own
    )
    assert printed("--region", "0", "0.5", "1", "1") == bits_per_token(
        pipeline, token_set, progress=False, kept=torch.arange(6) < 3, **own
    )
    assert main([*words, "--against", str(tmp_path / "model"), "--steps", "[1]"]) == 2
    assert "steps beside against" in capsys.readouterr().err
    found = printed("--steps", "[4, 1]", "--out", str(out))
    assert found == bits_by_steps(pipeline, token_set, [1, 4], progress=False, **SCHEDULE)
    kept = json.loads((out / "result.json").read_text())
    assert kept.pop("command")
    assert kept == found
    assert {path.name for path in out.iterdir()} == {"result.json", "plot.png"}


def test_stages_that_are_stored_with_the_order_confidence_can_be_measured_in_another(in_steps, few, tmp_path, capsys):
    pipeline = in_steps("masked")
    token_set, *_ = few(pipeline)
    for stage in pipeline.stages:
        stage.sampling = Sampling(order="confidence", steps=2)
    pipeline.save_pretrained(tmp_path / "model")
    words = ["evaluate", "likelihood", "--model", str(tmp_path / "model"), "--tokens", str(tmp_path / "set")]
    assert main(words) == 2
    assert "stage coarse: the order confidence" in capsys.readouterr().err
    assert main([*words, "--stage", "fine"]) == 2
    assert "stage fine says whose steps or order are meant" in capsys.readouterr().err
    assert main([*words, "--stage", "fine", "--order", "raster"]) == 0
    other = pipeline.stage("coarse").possible_orders[0]
    expected = bits_per_token(pipeline, token_set, progress=False, fine_order="raster", coarse_order=other)
    assert json.loads(capsys.readouterr().out) == expected


@pytest.mark.parametrize("steps", [[1], [1, 2, 4, 8, 16, 32, 64], range(1, 257)], ids=len)
@pytest.mark.parametrize("terms", [{}, {"only_bits_per_token": 2.0, "fine_bits_per_token": 1.0}], ids=len)
def test_a_plot_has_a_curve_across_it(tmp_path, steps, terms):
    """In a colour that nothing else has; of one number of steps it is a point."""
    rows = [{"steps": count, "bits_per_token": 3.0, **terms} for count in steps]
    facts = {"stage": "only", "kind": "any_order", "order": "halton", "schedule": "cosine", "order_seed": 0}
    plot_steps(tmp_path / "plot.png", {**facts, "rows": rows})
    pixels = np.asarray(Image.open(tmp_path / "plot.png").convert("RGB")).astype(int)
    drawn = (abs(pixels - [0x2F, 0x6F, 0x8F]).sum(-1) < 12).any(0).nonzero()[0]
    width = pixels.shape[1]
    assert (drawn[-1] - drawn[0] > width / 2) == (len(steps) > 1)
