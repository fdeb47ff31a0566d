import copy
import inspect
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from same import equal

from ctf.codebook import cluster_codebook
from ctf.completion import cells_in_region
from ctf.errors import ELSEWHERE, InputError
from ctf.images import to_bytes
from ctf.images.pixels import to_tensor
from ctf.layout import Layout
from ctf.model_folder import Pipeline
from ctf.models import Compute
from ctf.pipeline import StagePipeline
from ctf.samples.complete import BLANK, known_part
from ctf.sampling import Random, Sampling
from ctf.sampling.settings import SETTINGS
from ctf.stages import generate_tokens

KINDS = pytest.mark.parametrize("kind", ["baseline", "cluster", "full"])
LABELS = [0, 1, 2, 3, 3, 1, 0]
SEEDS = [5, 0, 7, 7, 8, 2**40, 6]
GUIDED = {"fine_cfg_scale": 1.5, "fine_top_k": 3, "top_p": 0.9}


@KINDS
@pytest.mark.parametrize("settings", [{}, GUIDED], ids=["defaults", "guided"])
def test_images_depend_on_seed_and_label_only(make_pipeline, two_threads, kind, settings):
    pipeline = make_pipeline(kind)
    if kind == "baseline":
        settings = {name: value for name, value in settings.items() if not name.startswith("fine_")}
    together = pipeline(LABELS, SEEDS, **settings)
    assert len({image.tobytes() for image in together}) == 7
    for batch_size in (1, 2, 3, 6):
        assert equal(pipeline(LABELS, SEEDS, batch_size=batch_size, **settings), together)
    order = [4, 2, 6, 0, 3, 5, 1]
    shuffled = pipeline([LABELS[i] for i in order], [SEEDS[i] for i in order], **settings)
    assert equal(shuffled, [together[i] for i in order])
    assert all(image.size == (12, 8) for image in together)  # PIL says (width, height)


def test_a_pipeline_is_its_two_stages(make_pipeline):
    pipeline = make_pipeline("cluster")
    coarse_stage, fine_stage = pipeline.stages
    labels, seeds = torch.tensor(LABELS), SEEDS
    coarse = generate_tokens(coarse_stage, labels, seeds, cfg_scale=2.0, temperature=1.1)
    fine = generate_tokens(fine_stage, labels, seeds, given=coarse, place=1, temperature=1.2)
    settings = {"cfg_scale": 2.0, "temperature": 1.1, "fine_temperature": 1.2}
    assert torch.equal(pipeline.generate_tokens(labels, seeds, **settings), fine)
    assert torch.equal(fine_stage.given.to_coarse(fine), coarse)


def test_copies_of_a_pipeline_that_has_sampled(make_pipeline):
    pipeline = make_pipeline("cluster")
    images = pipeline(LABELS, SEEDS)
    for copied in (copy.deepcopy(pipeline), pickle.loads(pickle.dumps(pipeline))):
        assert equal(copied(LABELS, SEEDS), images)


def test_settings_are_the_stages_own_unless_overridden(make_pipeline):
    pipeline = make_pipeline("cluster")
    pipeline.stages[0].sampling = Sampling(cfg_scale=3.0, top_p=0.9)
    pipeline.stages[1].sampling = Sampling(temperature=0.7)
    assert pipeline.sampling(temperature=0.5, fine_top_k=4, coarse_top_k=2, top_p=None) == {
        "coarse": Sampling(cfg_scale=3.0, temperature=0.5, top_k=2, top_p=0.9, steps=6, order="raster"),
        "fine": Sampling(temperature=0.7, top_k=4, steps=1, order="halton"),
    }
    labels, own = torch.tensor(LABELS), {"cfg_scale": 3.0, "top_p": 0.9, "fine_temperature": 0.7}
    expected = make_pipeline("cluster").generate_tokens(labels, SEEDS, **own)
    assert torch.equal(pipeline.generate_tokens(labels, SEEDS), expected)


def test_previews_end_in_the_images(make_pipeline):
    pipeline = make_pipeline("cluster")
    previews = list(pipeline.stream(LABELS, SEEDS, previews=3, cfg_scale=2.0))
    assert [(p.stage, p.step, p.steps) for p in previews] == [
        ("coarse", 2, 6),
        ("coarse", 4, 6),
        ("coarse", 6, 6),
        ("fine", 1, 1),
    ]
    assert equal(previews[-1].images, pipeline(LABELS, SEEDS, cfg_scale=2.0))
    assert all(image.size == (12, 8) for p in previews for image in p.images)


def test_a_coarse_preview_shows_the_mean_codeword_of_each_cluster(make_pipeline):
    pipeline = make_pipeline("cluster")
    tokenizer, coarse_map = pipeline.tokenizer, pipeline.stages[0].predicts
    *_, last, _ = pipeline.stream([2], seed=4)
    coarse = pipeline.packed()[0].generate(torch.tensor([2]), Random([4], 0))
    vectors = torch.stack([tokenizer.codebook[coarse_map.members(int(m))].mean(0) for m in coarse[0]])
    expected = to_bytes(tokenizer.decode_embeddings(tokenizer.project(vectors)[None], pipeline.layout))
    assert np.abs(np.asarray(last.images[0]).astype(int) - expected[0]).max() <= 1


@pytest.mark.parametrize("layout", [Layout((2, 3)), Layout.square(1, 2, 3, 5, 8)])
def test_a_token_is_generated_if_a_pixel_of_its_cell_is(layout):
    """Written out pixel by pixel; a pixel that lies across cells belongs to all of them."""
    generator, found = np.random.default_rng(0), []
    for _ in range(20):
        mask = generator.random((32, 48)) < 0.002
        expected = [
            any(
                (y + 1) * rows > i * 32
                and y * rows < (i + 1) * 32
                and (x + 1) * columns > j * 48
                and x * columns < (j + 1) * 48
                for y, x in np.argwhere(mask)
            )
            for rows, columns in layout
            for i in range(rows)
            for j in range(columns)
        ]
        assert cells_in_region(mask, layout).tolist() == expected
        found += expected
    assert {*found} == {True, False}


def test_the_layout_of_a_tokenizer_of_one_grid_has_one_scale(make_stage, make_tokenizer):
    stage = make_stage(name="only", layout=Layout.square(1, 2))
    with pytest.raises(InputError, match="stage only is for tokens of 1x1,2x2, the tokenizer makes 2x2 of 8 × 8"):
        StagePipeline(make_tokenizer(), list("abcd"), [stage])


def test_what_a_stage_does_not_know_yet_is_shown_as_it_is_given(make_stage, make_tokenizer):
    tokenizer = make_tokenizer()
    coarse_map = cluster_codebook(tokenizer.codebook, 5)
    coarse = make_stage(name="coarse", predicts=coarse_map)
    fine = make_stage("any_order", name="fine", given=coarse_map)
    shown = list(StagePipeline(tokenizer, list("abcd"), [coarse, fine]).stream([2], seed=4, previews=6, fine_steps=6))
    given = generate_tokens(coarse, torch.tensor([2]), [4])
    first = shown[6]  # one position of six is known
    vectors = tokenizer.project(coarse_map.means(tokenizer.codebook))[given]
    place = fine.plan(Sampling(steps=6)).groups[0].at
    vectors[:, place] = tokenizer.codebook[generate_tokens(fine, torch.tensor([2]), [4], given, 1, steps=6)[:, place]]
    expected = to_bytes(tokenizer.decode_embeddings(vectors, fine.layout))
    assert np.abs(np.asarray(first.images[0]).astype(int) - expected[0]).max() <= 1


def test_a_scale_that_is_not_known_yet_is_left_out_of_a_preview(scales_pipeline):
    """The sum of what the first scales contribute, means in the place of coarse labels; then what was given."""
    tokenizer, (coarse, _) = scales_pipeline.tokenizer, scales_pipeline.stages
    *previews, last = scales_pipeline.stream([2], seed=4)
    labels = generate_tokens(coarse, torch.tensor([2]), [4])
    means = coarse.predicts.means(tokenizer.codebook)[labels]
    for end, preview in zip([1, 5, 21], previews, strict=False):
        *_, f_hat = tokenizer.quantizer.residual.partial_sums(means[:, :end], coarse.layout)
        expected = to_bytes(tokenizer.decode_features(f_hat.flatten(2).transpose(1, 2), (4, 4)))
        assert np.abs(np.asarray(preview.images[0]).astype(int) - expected[0]).max() <= 1
    assert [(p.stage, p.step) for p in previews] == [(name, k) for name in ("coarse", "fine") for k in (1, 2, 3)][:-1]
    assert equal(last.images, scales_pipeline([2], [4]))


def test_completion_keeps_the_cells_of_every_scale(scales_pipeline):
    """The right half stays: nothing of one position, half of four, half of sixteen."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
    mask = np.zeros((16, 16), bool)
    mask[:, :8] = True
    known = scales_pipeline.known_tokens(image, mask)
    assert [int((known[at] >= 0).sum()) for at in scales_pipeline.layout.slices] == [0, 2, 8]
    tokens = scales_pipeline.generate_tokens(torch.tensor([1, 2]), [0, 1], known)
    assert torch.equal(tokens[:, known >= 0], known[known >= 0].expand(2, -1))
    assert scales_pipeline.complete(image, mask, [1])[0].size == (16, 16)
    clear = Image.new("RGBA", (16, 16))  # transparent black is white, as in a picture: to generate
    clear.paste((0, 0, 0, 255), (8, 0, 16, 16))
    assert torch.equal(scales_pipeline.known_tokens(image, clear), known)
    tokenizer = scales_pipeline.tokenizer
    whole = scales_pipeline.decode(tokenizer.encode(to_tensor(np.array(image)[None])))[0]
    shown = known_part(scales_pipeline, image, mask)
    assert np.array_equal(shown[:, 8:], whole[:, 8:]), "the kept part with what coarser scales add"
    assert (shown[:, :8] == BLANK).all()


def test_a_preview_that_is_left_changes_nothing(make_pipeline):
    pipeline = make_pipeline("cluster")
    next(pipeline.stream(LABELS, SEEDS))
    assert torch.is_grad_enabled()
    assert equal(pipeline(LABELS, SEEDS), make_pipeline("cluster")(LABELS, SEEDS))


def test_the_decoder_has_a_dtype_of_its_own(make_pipeline):
    pipeline = make_pipeline("cluster")
    tokens = pipeline.generate_tokens(torch.tensor(LABELS), SEEDS)
    exact = pipeline.decode(tokens)
    assert np.array_equal(pipeline.compute_in(Compute("bfloat16")).decode(tokens), exact)
    rounded = pipeline.compute_in(Compute("bfloat16", decoder_dtype="bfloat16")).decode(tokens)
    assert not np.array_equal(rounded, exact)
    assert np.abs(rounded.astype(int) - exact).mean() < 2


@pytest.mark.parametrize("seed", [3, np.int64(3)])
def test_an_int_seed_counts_up(make_pipeline, seed):
    pipeline = make_pipeline("cluster")
    assert equal(pipeline([1, 1, 2], seed), pipeline([1, 1, 2], [3, 4, 5]))


@pytest.mark.parametrize("label", ["red fox", 1, np.int64(1)], ids=str)
def test_one_label_gives_a_list_of_one_image(make_pipeline, label):
    pipeline = make_pipeline("cluster")
    assert equal(pipeline(label), pipeline([1]))
    assert equal([*pipeline.stream(label)][-1].images, pipeline([1]))


@pytest.mark.parametrize("name", ELSEWHERE)
def test_names_of_diffusers_are_answered_with_ours(make_pipeline, name):
    pipeline = make_pipeline("cluster")
    message = re.escape(f"no {name} here: use {ELSEWHERE[name]}")
    with pytest.raises(InputError, match=message):
        pipeline(3, **{name: None})
    with pytest.raises(InputError, match=message):
        pipeline(**{name: None})
    with pytest.raises(InputError, match=message):
        Pipeline.from_pretrained("emoji", **{name: None})
    for thing in pipeline, pipeline(3):
        with pytest.raises(AttributeError, match=message):
            getattr(thing, name)
    with pytest.raises(AttributeError, match="'Images' object has no attribute 'imags'"):
        _ = pipeline(3).imags


def test_without_labels_it_says_so(make_pipeline):
    with pytest.raises(InputError, match="labels are missing: give names or indices of classes"):
        make_pipeline("cluster")(seed=3)


def test_our_names_exist(make_pipeline):
    """Those that other libraries' names are answered with."""
    pipeline = make_pipeline("cluster")
    ours = {re.split("[ ,=]", said)[0] for said in ELSEWHERE.values()} - {"the"}
    arguments = {*inspect.signature(pipeline).parameters, *inspect.signature(pipeline.from_pretrained).parameters}
    assert {name for name in ours if not hasattr(pipeline, name)} <= arguments | {*SETTINGS}


def test_a_pipeline_shows_what_it_is(make_pipeline):
    pipeline = make_pipeline("cluster")
    assert repr(pipeline).splitlines() == [
        "Pipeline of 8 × 12 pixels, 4 classes, cpu, float32",
        "  coarse: autoregressive, predicts 5 clusters (kmeans) of 24 tokens, 0.0 M parameters",
        "  fine: masked, predicts 24 tokens, 0.0 M parameters",
    ]
    assert (pipeline.device, pipeline.dtype) == (torch.device("cpu"), torch.float32)
    assert pipeline.compute_in(Compute("bfloat16")).dtype == torch.bfloat16
    with pytest.raises(InputError, match="no torch_dtype here"):
        pipeline.to(torch.bfloat16)


@pytest.mark.parametrize("kind", ["baseline", "cluster"])
def test_progress_moves_with_every_step_and_ends_at_the_images(make_pipeline, kind):
    pipeline, done = make_pipeline(kind), []
    batches = pipeline.generate(LABELS, SEEDS, batch_size=4, on_progress=done.append)
    for images in (4, 7):
        next(batches)
        assert sum(done) == pytest.approx(images)
    assert max(done) < 0.7  # of a batch of 4 images in 6 or 7 steps
    plain = [*pipeline.generate(LABELS, SEEDS, batch_size=4)]
    watched = [*pipeline.generate(LABELS, SEEDS, batch_size=4, on_progress=done.append)]
    assert all(np.array_equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_labels_by_name(make_pipeline):
    pipeline = make_pipeline("cluster")
    assert equal(pipeline(["red fox", "owl", "2", 0]), pipeline([1, 3, 2, 0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": [1, 2, 3]}, "3 seeds for 2 labels"),
        ({"seed": -1}, "seed -1"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"temperature": -1.0}, "temperature"),
        ({"fine_top_p": 0.0}, "top_p"),
    ],
)
def test_settings_without_meaning(make_pipeline, settings, message):
    with pytest.raises(InputError, match=message):
        make_pipeline("cluster")([0, 1], **settings)


def test_no_labels_no_images(make_pipeline):
    assert make_pipeline("cluster")([]) == []


# --- on a GPU ---


def on_a_gpu(pipeline):
    return pipeline.to("cuda").compute_in(Compute("float32"))


def nearly(batches, others):
    """A decoder's rounding may move a byte by one."""
    pairs = zip(np.concatenate(batches).astype(int), np.concatenate(others).astype(int), strict=True)
    return all(np.abs(a - b).max() <= 1 for a, b in pairs)


@pytest.mark.gpu
def test_pipelines_on_a_gpu_take_turns(make_pipeline):
    """Two alive, batch by batch, with a smaller last one."""
    first, second = on_a_gpu(make_pipeline("cluster")), on_a_gpu(make_pipeline("full"))
    alone = [list(pipeline.generate(LABELS, SEEDS, batch_size=3)) for pipeline in (first, second)]
    turns = [*zip(*(pipeline.generate(LABELS, SEEDS, batch_size=3) for pipeline in (first, second)), strict=True)]
    assert all(nearly(batches, expected) for batches, expected in zip(zip(*turns, strict=True), alone, strict=True))


@pytest.mark.gpu
def test_threads_share_a_pipeline_on_a_gpu(make_pipeline):
    pipeline = on_a_gpu(make_pipeline("cluster"))
    seeds = [[10 * number + i for i in range(7)] for number in range(4)]

    def work(own):
        return list(pipeline.generate(LABELS, own, batch_size=3))

    expected = [*map(work, seeds)]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(nearly, pool.map(work, seeds), expected))


@pytest.mark.gpu
def test_a_gpu_generates_what_a_cpu_generates(make_pipeline):
    """Greedily, so that rounding decides between equal logits only."""
    greedy = {"temperature": 0.0, "fine_temperature": 0.0}
    pipeline = make_pipeline("cluster")
    expected = pipeline.compute_in(Compute("float32")).generate_tokens(torch.tensor(LABELS), SEEDS, **greedy)
    found = on_a_gpu(pipeline).generate_tokens(torch.tensor(LABELS), SEEDS, **greedy)
    assert torch.equal(found.cpu(), expected)


def test_previews_of_a_completion_count_its_own_steps(make_pipeline):
    known = torch.tensor([3, 4, 5, -1, -1, -1])
    coarse = [p for p in make_pipeline("cluster").stream([1], known=known) if p.stage == "coarse"]
    assert [(p.step, p.steps) for p in coarse] == [(1, 3), (2, 3), (3, 3)]


def test_the_dtype_is_that_of_the_device_that_samples(make_pipeline, monkeypatch):
    pipeline = make_pipeline("cluster")
    assert pipeline.dtype == torch.float32
    monkeypatch.setattr(StagePipeline, "device", torch.device("cuda"))
    assert pipeline.dtype == torch.bfloat16


@pytest.mark.parametrize("seed", [0.7, [0.5], "3", torch.tensor(5)])
def test_seeds_are_whole_numbers(make_pipeline, seed):
    with pytest.raises(InputError, match="give an int, or one for each label"):
        make_pipeline("cluster")([1], seed)


def test_a_mask_outside_the_centre_square_is_called_so(scales_pipeline):
    mask = np.zeros((16, 64), bool)
    mask[:, :10] = True
    with pytest.raises(InputError, match="asks for nothing: make part of it white, within the centre square"):
        scales_pipeline.known_tokens(Image.new("RGB", (64, 16)), mask)


@pytest.mark.parametrize("label", [3.0, 2.5])
def test_what_is_no_label_and_no_way_to_compute_is_named(make_pipeline, label):
    with pytest.raises(InputError, match=f"class {label}: give a name, or an index as a whole number"):
        make_pipeline("cluster")(label)
    with pytest.raises(InputError, match=r"compute 'bfloat16': give Compute\('bfloat16'\), from ctf\.models"):
        make_pipeline("cluster").compute_in("bfloat16")


@pytest.mark.parametrize("mask", [np.ones((16, 16)), np.ones((16, 16), np.int64), np.ones((16, 16, 3), np.uint8)])
def test_masks_are_bool_or_uint8(scales_pipeline, mask):
    with pytest.raises(InputError, match="give an array of bool or uint8"):
        scales_pipeline.known_tokens(Image.new("RGB", (16, 16)), mask)


def test_what_is_transparent_is_kept_as_white(scales_pipeline):
    """As in the images that a model is trained on."""
    mask = np.zeros((16, 16), bool)
    mask[:, :8] = True
    clear, white = Image.new("RGBA", (16, 16), (0, 0, 0, 0)), Image.new("RGB", (16, 16), "white")
    assert torch.equal(*(scales_pipeline.known_tokens(image, mask) for image in (clear, white)))
    with pytest.raises(InputError, match="the image or its mask has mode F with values from -1 to -1"):
        scales_pipeline.known_tokens(Image.new("F", (16, 16), -1.0), mask)
