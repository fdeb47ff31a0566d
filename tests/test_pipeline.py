import numpy as np
import pytest
import torch

from ctf.codebook import cluster_codebook
from ctf.errors import InputError
from ctf.pipeline import Pipeline

KINDS = pytest.mark.parametrize("kind", ["baseline", "cluster", "full"])
LABELS = [0, 1, 2, 3, 3, 1, 0]
SEEDS = [5, 0, 7, 7, 8, 2**40, 6]
GUIDED = {"fine_cfg_scale": 1.5, "fine_top_k": 3, "top_p": 0.9}


def arrays(images):
    return [np.asarray(image) for image in images]


def equal(images, others):
    return all(np.array_equal(a, b) for a, b in zip(arrays(images), arrays(others), strict=True))


@KINDS
@pytest.mark.parametrize("settings", [{}, GUIDED], ids=["defaults", "guided"])
def test_tokens_depend_on_seed_and_label_only(make_pipeline, kind, settings):
    pipeline = make_pipeline(kind)
    labels = torch.tensor(LABELS)
    together = pipeline.generate_tokens(labels, SEEDS, **settings)
    assert len({tuple(row) for row in together.tolist()}) == 7
    for i, (label, seed) in enumerate(zip(LABELS, SEEDS, strict=True)):
        assert torch.equal(pipeline.generate_tokens(torch.tensor([label]), [seed], **settings), together[i : i + 1])
    order = [4, 2, 6, 0, 3, 5, 1]
    shuffled = pipeline.generate_tokens(labels[order], [SEEDS[i] for i in order], **settings)
    assert torch.equal(shuffled, together[order])


@KINDS
def test_images_depend_on_seed_and_label_only(make_pipeline, kind):
    pipeline = make_pipeline(kind)
    together = pipeline(LABELS, SEEDS)
    for batch_size in (1, 2, 3, 6):
        assert equal(pipeline(LABELS, SEEDS, batch_size=batch_size), together)
    order = [4, 2, 6, 0, 3, 5, 1]
    shuffled = pipeline([LABELS[i] for i in order], [SEEDS[i] for i in order])
    assert equal(shuffled, [together[i] for i in order])
    assert all(image.size == (12, 8) for image in together)  # PIL says (width, height)


def test_a_pipeline_is_its_two_stages(make_pipeline):
    from ctf.sampling import generate_tokens, refine_tokens

    pipeline = make_pipeline("cluster")
    labels, seeds = torch.tensor(LABELS), SEEDS
    coarse = generate_tokens(pipeline.coarse, labels, seeds, 2.0, 1.1)
    fine = refine_tokens(pipeline.fine, coarse, labels, pipeline.coarse_map, seeds, temperature=1.1)
    assert torch.equal(pipeline.generate_tokens(labels, seeds), fine)
    assert torch.equal(pipeline.coarse_map.to_coarse(fine), coarse)


@pytest.mark.parametrize("seed", [3, np.int64(3)])
def test_an_int_seed_counts_up(make_pipeline, seed):
    pipeline = make_pipeline("cluster")
    assert equal(pipeline([1, 1, 2], seed), pipeline([1, 1, 2], [3, 4, 5]))


def test_labels_by_name(make_pipeline):
    pipeline = make_pipeline("cluster")
    assert equal(pipeline(["red fox", "owl", "2", 0]), pipeline([1, 3, 2, 0]))


@pytest.mark.parametrize(
    ("label", "message"),
    [(4, "classes 0 … 3"), (-1, "classes 0 … 3"), ("4", "classes 0 … 3"), ("-1", "0 … 3"), ("fox", "'fox' does not")],
)
def test_unknown_labels(make_pipeline, label, message):
    with pytest.raises(InputError, match=message):
        make_pipeline("cluster")([label])


@pytest.mark.parametrize("label", ["²", "--3", ""])
def test_what_only_looks_like_a_number_is_a_name(make_pipeline, label):
    with pytest.raises(InputError, match="does not exist"):
        make_pipeline("cluster")([label])


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


@KINDS
def test_saved_and_loaded_it_gives_the_same_images(make_pipeline, tmp_path, kind):
    pipeline = make_pipeline(kind)
    pipeline.save_pretrained(tmp_path / "model")
    loaded = Pipeline.from_pretrained(tmp_path / "model")
    assert loaded.class_names == pipeline.class_names
    assert loaded.support == pipeline.support
    assert equal(loaded(LABELS, SEEDS), pipeline(LABELS, SEEDS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_half_precision_rounds_the_transformers_only(make_pipeline, tmp_path):
    pipeline = make_pipeline("cluster")
    pipeline.save_pretrained(tmp_path / "half", torch.float16)
    for model in (pipeline.coarse, pipeline.fine):
        model.half().float()
        model.rotary.copy_(type(model)(model.config).rotary)  # not a weight: not stored
    loaded = Pipeline.from_pretrained(tmp_path / "half")
    assert loaded.coarse.head.weight.dtype == torch.float32
    assert equal(loaded(LABELS, SEEDS), pipeline(LABELS, SEEDS))
    pipeline.save_pretrained(tmp_path / "full")
    sizes = {name: (tmp_path / name / "fine.safetensors").stat().st_size for name in ("half", "full")}
    assert sizes["half"] < 0.7 * sizes["full"]


def test_the_model_card_says_what_the_model_is(make_pipeline, tmp_path):
    make_pipeline("cluster").save_pretrained(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "8 × 12 pixels" in card
    assert "4 classes; 2 × 3 tokens of a codebook of 24, 5 clusters" in card
    assert "| fine | 2 × 16 | 5 → 24 |" in card


def test_overwriting_replaces_the_whole_folder(make_pipeline, tmp_path):
    make_pipeline("cluster").save_pretrained(tmp_path / "model")
    make_pipeline("baseline").save_pretrained(tmp_path / "model")
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == ["README.md", "baseline.safetensors", "config.json", "tokenizer.safetensors"]


def test_a_failed_overwrite_leaves_what_was_there(make_pipeline, tmp_path):
    pipeline = make_pipeline("cluster")
    pipeline.save_pretrained(tmp_path / "model")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    pipeline.class_names = [object()]  # what JSON cannot hold: fails after the weights are written
    with pytest.raises(TypeError):
        pipeline.save_pretrained(tmp_path / "model")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


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


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("cluster", ["coarse"]),
        ("cluster", ["fine"]),
        ("cluster", ["coarse_map"]),
        ("cluster", ["coarse", "fine", "coarse_map"]),
        ("baseline", ["baseline"]),
    ],
)
def test_missing_parts(make_parts, kind, names):
    parts = make_parts(kind)
    with pytest.raises(InputError, match="either a baseline, or"):
        Pipeline(**{name: part for name, part in parts.items() if name not in names})


@pytest.mark.parametrize("extra", ["coarse", "fine", "coarse_map"])
def test_a_baseline_takes_no_part_of_two_stages(make_parts, extra):
    with pytest.raises(InputError, match="either a baseline, or"):
        Pipeline(**make_parts("baseline"), **{extra: make_parts("cluster")[extra]})


def test_parts_that_do_not_belong_together(make_parts, make_tokenizer, make_transformer):
    parts, baseline = make_parts("cluster"), make_parts("baseline")
    unlike = [
        (parts, {"coarse_map": cluster_codebook(make_tokenizer(seed=1).codebook, 5)}, "another codebook"),
        (parts, {"coarse_map": cluster_codebook(parts["tokenizer"].codebook, 6)}, "vocabularies"),
        (parts, {"tokenizer": make_tokenizer(25)}, "24 codewords, this codebook has 25"),
        (parts, {"coarse": make_transformer(6, 6)}, "vocabularies"),
        (parts, {"fine": make_transformer(5, 25, "full")}, "vocabularies"),
        (parts, {"fine": make_transformer(6, 24, "full")}, "vocabularies"),
        (parts, {"fine": make_transformer(5, 24, "full", grid=(3, 2))}, "differ in grid"),
        (parts, {"fine": make_transformer(5, 24, "full", num_classes=5)}, "number of classes"),
        (parts, {"coarse": make_transformer(5, 5, "full")}, "causal attention"),
        (parts, {"class_names": ["cat"]}, "1 class names for a model of 4 classes"),
        (parts, {"support": "some"}, "support 'some' does not exist"),
        (baseline, {"tokenizer": make_tokenizer(25)}, "the baseline predicts 24 tokens, the codebook has 25"),
        (baseline, {"class_names": ["cat"] * 5}, "5 class names for a model of 4 classes"),
        (baseline, {"baseline": parts["fine"]}, "causal attention"),
    ]
    for whole, change, message in unlike:
        with pytest.raises(InputError, match=message):
            Pipeline(**whole | change)


@pytest.mark.parametrize("name", ["tokenizer", "coarse_map", "coarse", "fine"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_parts(make_pipeline, tmp_path, name, damage):
    make_pipeline("cluster").save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / f"{name}.safetensors"
    whole = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=rf"{name}\.safetensors.*(no such|truncated)") as error:
        Pipeline.from_pretrained(tmp_path / "model")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not a model folder"),
        ("{", "not valid JSON"),
        ("[]", "is not a model folder"),
        ('{"model_type": "bert"}', "is not a model folder"),
        ('{"ctf": "pipeline", "format": 2}', "reads model folders of format 1"),
        ('{"ctf": "pipeline", "format": 1}', "reads model folders of format 1"),
    ],
)
def test_not_a_model_folder(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        Pipeline.from_pretrained(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="no such model folder"):
        Pipeline.from_pretrained(tmp_path / "nowhere")


def test_a_hub_id_without_a_network(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="nobody/nothing is neither a folder here nor a model that the hub gives") as e:
        Pipeline.from_pretrained("nobody/nothing")
    assert "\n" not in str(e.value)


def test_a_device_that_is_not_here(make_pipeline, tmp_path):
    make_pipeline("baseline").save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="device 'abacus' cannot be used here"):
        Pipeline.from_pretrained(tmp_path / "model", "abacus")


def test_the_embedded_model():
    pipeline = Pipeline.from_pretrained("emoji")
    assert "noto animals" in pipeline.class_names
    image, *_ = pipeline(["noto animals"], seed=0)
    assert image.size == (64, 64)
    assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 16  # not one flat colour
