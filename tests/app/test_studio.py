"""What the web app shows and hands out: the pipeline's own images, reproducible, with their manifest."""

import base64
import io
import json
import re
import shlex
import zipfile
from urllib.parse import parse_qsl

import numpy as np
import pytest
from PIL import Image
from shown import asked, opened

from ctf.app.request import ImageRequest
from ctf.app.sampler import Sampler
from ctf.app.studio import Studio
from ctf.cli import main
from ctf.errors import InputError
from ctf.images.sheet import png_bytes
from ctf.model_folder import Pipeline
from ctf.models.config import Compute
from ctf.samples import SampleSet


def images(items):
    """Gradio's Gallery → uint8 arrays."""
    return [np.asarray(opened(item["image"]["url"])) for item in items]


def equal(items, wanted):
    return all(np.array_equal(a, np.asarray(b)) for a, b in zip(images(items), wanted, strict=True))


def generated(studio, label="", num=2, seed=0, beside=False, **changes):
    """The runs of a request that is carried out to its end."""
    *_, runs = studio.generate(*asked(studio, label, num, seed, beside, **changes))
    return runs


def unpacked(links):
    url = re.search('class="zip" href="data:application/zip;base64,([^"]+)"', links)[1]
    return zipfile.ZipFile(io.BytesIO(base64.b64decode(url)))


def test_a_run_ends_with_the_images_of_the_pipeline(studio, pipeline):
    runs = generated(studio, "dog", 3, 5, coarse_temperature=0.5, fine_top_k=3)
    assert equal(runs[0].gallery(), pipeline(labels=["dog"] * 3, seed=5, coarse_temperature=0.5, fine_top_k=3))
    assert [item["caption"] for item in runs[0].gallery()] == [f"dog, seed\xa0{seed}" for seed in (5, 6, 7)]
    assert runs[0].gallery()[1]["image"]["orig_name"] == "dog-seed-6.png"


def test_frames_and_stages_of_a_run_can_be_looked_at_afterwards(studio, pipeline):
    runs = generated(studio)
    frames = list(pipeline.stream([0, 3], seed=0))
    run = studio.frame(runs, 9)
    for number, frame in enumerate(frames, 1):
        assert equal(run.gallery(number), frame.images)
    assert [run.when(number) for number in range(1, 9)] == [
        f"stage 1 · clusters, step {2 * i} of 16" for i in range(1, 9)
    ]
    run.chosen = 1
    coarse, fine, changed = run.stages()
    assert equal([coarse, fine], [frames[7].images[1], frames[8].images[1]])
    change = np.asarray(frames[8].images[1], int) - np.asarray(frames[7].images[1], int)
    assert np.abs(images([changed])[0] - (128 + change / 2)).max() <= 0.5
    for kept, number in ((runs, 10), (runs, 0), (None, 1)):
        with pytest.raises(InputError, match="not kept any more: press Generate again"):
            studio.frame(kept, number)


def test_a_stopped_run_says_where_and_leaves_a_link(studio):
    runs = [next(steps) for steps in [studio.generate(*asked(studio, "dog", 2, 5))] for _ in range(3)][-1]
    assert re.fullmatch(r"stage 1 · clusters, step 6 of 16 · \d\.\d s", runs[0].state)
    runs[0].stopped = True
    assert runs[0].state == "stopped after stage 1 · clusters, step 6 of 16"
    assert runs[0].stages() == []
    assert re.findall('href="([^"]{4})', studio.links(runs)) == ["?lab"]  # no ZIP: these are not the model's images


def test_a_baseline_stands_beside_with_the_same_seeds(studio):
    runs = generated(studio, "", 4, 9, True, coarse_temperature=0.5)
    assert [run.sampler.name for run in runs if run.done] == ["tiny", "plain"]
    mine, theirs = (run.gallery() for run in runs)
    assert [item["caption"] for item in mine] == [item["caption"] for item in theirs]
    assert equal(theirs, studio.against.pipeline(labels=[0, 1, 2, 3], seed=9))
    assert {name.split("/")[0] for name in unpacked(studio.links(runs)).namelist()} == {"tiny", "plain"}


def test_two_models_of_one_name_have_a_folder_each(make_pipeline):
    studio = Studio(*(Sampler.of(make_pipeline("cluster"), "model") for _ in range(2)))
    runs = generated(studio, "red fox", 2, 7, beside=True)
    assert {name.split("/")[0] for name in unpacked(studio.links(runs)).namelist()} == {"model-1", "model-2"}


def test_models_of_other_classes_are_no_baseline(studio, make_parts):
    other = Pipeline(**make_parts("baseline") | {"class_names": ["a", "b", "c", "d"]})
    with pytest.raises(InputError, match="other and tiny have different classes"):
        Studio(studio.model, Sampler.of(other, "other"))


def test_the_link_leads_back_to_the_same_images(studio):
    runs = generated(studio, "red fox", 2, 7, fine_temperature=0.4)
    address = re.search('id="permalink" href="([^"]+)"', studio.links(runs))[1].replace("&amp;", "&")
    request = ImageRequest.from_query(studio.controls, dict(parse_qsl(address[1:], keep_blank_values=True)))
    again = studio.generate(request.label, "", request.num, request.seed, False, *request.settings.values())
    assert list(again)[-1][0].gallery() == runs[0].gallery()


def test_a_download_is_a_sample_set_whose_command_makes_it_again(pipeline, tmp_path, monkeypatch):
    pipeline.save_pretrained(tmp_path / "tiny")
    in_bfloat16 = Pipeline.from_pretrained(tmp_path / "tiny", compute=Compute("bfloat16"))
    studio = Studio(Sampler.of(in_bfloat16, "tiny"))
    runs = generated(studio, "", 3, 11, coarse_top_p=0.9)
    assert 'download="tiny-all-classes-seed-11.zip"' in studio.links(runs)
    monkeypatch.chdir(tmp_path)
    unpacked(studio.links(runs)).extractall("download")
    samples = SampleSet.open("download/tiny")
    assert (samples.count, samples.image_size, samples.labels.tolist()) == (3, (16, 16), [0, 2, 3])
    program, *arguments = shlex.split(samples.manifest.command)
    assert program == "ctf"
    assert main([*arguments, "--device", "cpu"]) == 0
    again = SampleSet.open("samples")
    assert again.manifest.differences(samples.manifest) == ["batch_size is 3 there and 64 here"]
    names = sorted(f.name for f in (tmp_path / "samples").glob("0*.png"))
    for folder in ("samples", "download/tiny"):
        assert equal(runs[0].gallery(), [Image.open(f"{folder}/{name}") for name in names])


def test_a_single_image_knows_how_it_was_made(studio):
    runs = generated(studio, "owl", 1, 3)
    manifest = json.loads(opened(runs[0].gallery()[0]["image"]["url"]).text["ctf"])
    kept = json.loads(unpacked(studio.links(runs)).read("tiny/manifest.json"))
    assert {**manifest, "date": ""} == {**kept, "date": ""}
    assert (manifest["seed"], manifest["given_labels"], manifest["count"]) == (3, [3], 1)


def test_nothing_says_where_the_model_lies(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "secret" / "model")
    studio = Studio(Sampler.of(pipeline, str(tmp_path / "secret" / "model")))
    runs = generated(studio, num=1)
    text = runs[0].state + unpacked(studio.links(runs)).read("model/manifest.json").decode()
    text += base64.b64decode(runs[0].gallery()[0]["image"]["url"].split(",")[1]).decode("latin-1")
    assert "secret" not in text


@pytest.mark.parametrize(
    ("label", "num", "seed", "message"),
    [
        ("nobody", 1, 0, "no such class: 'nobody'"),
        ("owls", 1, 0, "no such class: 'owls'; did you mean 'owl'\\?"),
        ("7", 1, 0, "the model has the classes 0 … 3"),
        ("", 17, 0, "ask for 1 to 16 images"),
        ("", 10**9, 0, "ask for 1 to 16 images"),
        ("", None, 0, "num None: ask for 1 to 16 images"),
        ("", 1, -1, "seed -1"),
        ([{}], 1, 0, "no such class"),
    ],
    ids=str,
)
def test_requests_that_cannot_be_met_are_refused(studio, label, num, seed, message):
    with pytest.raises(InputError, match=message):
        next(studio.generate(*asked(studio, label, num, seed)))


def test_a_class_that_is_typed_with_its_design_needs_no_other(make_parts):
    pipeline = Pipeline(
        **make_parts("baseline") | {"class_names": ["noto cat", "noto dog", "fxemoji cat", "fxemoji dog"]}
    )
    request = Studio(Sampler.of(pipeline, "pairs")).request
    assert [request(subject, "noto", 1, 0, {}).label for subject in ("dog", "fxemoji dog")] == [
        "noto dog",
        "fxemoji dog",
    ]


# Completion


@pytest.fixture
def picture(pipeline):
    return pipeline(labels=[1], seed=4)[0].resize((40, 40))


def given(studio, picture):
    return studio.upload(png_bytes(picture))


def test_what_is_kept_stays(studio, free_studio, scales_studio, picture):
    """Of a model of several scales too: each scale keeps the tokens of which nothing is to be generated."""
    for host, keep in (studio, "1" * 6 + "0" * 10), (free_studio, "0110" * 4), (scales_studio, "0110" * 4):
        pipeline, kept = host.pipeline, given(host, picture)
        known = host.known(kept, keep)
        finest = known[pipeline.layout.slices[-1]]
        assert (finest >= 0).tolist() == [mark == "1" for mark in keep]
        assert (known[known >= 0] == host.clusters.tokens(kept.image)[known >= 0]).all()
        *_, runs = host.complete(kept, keep, "dog", "", 2, 3)
        assert equal(runs[0].gallery(), pipeline(labels=["dog", "dog"], seed=3, known=known))
        manifest = json.loads(unpacked(host.links(runs)).read(f"{host.model.name}/manifest.json"))
        assert manifest["known"] == known.tolist()
        assert "permalink" not in host.links(runs)


def test_a_model_that_goes_row_by_row_asks_for_rows(studio, free_studio, scales_studio, picture):
    assert [host.continues for host in (studio, free_studio, scales_studio)] == [True, False, False]
    with pytest.raises(InputError, match="stage coarse is autoregressive: it continues images from their first tokens"):
        next(studio.complete(given(studio, picture), "0110" * 4, "dog", "", 1, 0))


def test_a_completion_inherits_class_and_settings(studio, pipeline):
    runs = generated(studio, "", 4, 9, coarse_temperature=0.5)
    runs[0].chosen = 2
    picture, *label = studio.take(runs)
    assert label == ["dog", ""]
    assert np.array_equal(np.asarray(picture.image), images(runs[0].gallery())[2])
    assert studio.settings_note(picture) == "Settings of the picture: coarse_temperature 0.5."
    keep = studio.marked(picture, 2)["keep"]
    assert keep == "1" * 8 + "0" * 8
    *_, (completed,) = studio.complete(picture, keep, *label, 2, 3)
    known = studio.known(picture, keep)
    assert equal(completed.gallery(), pipeline(["dog"] * 2, seed=3, known=known, coarse_temperature=0.5))
    assert studio.settings_note(given(studio, picture.image)) == "Settings of the picture: the model's own."
    with pytest.raises(InputError, match="no finished image in the tab Generate"):
        studio.take(None)


@pytest.mark.parametrize("keep", ["0" * 16, "1" * 16, "", None, "12", [1, 0], "01" * 9, "012" + "0" * 13], ids=str)
def test_pictures_that_cannot_be_completed_are_refused(studio, picture, keep):
    with pytest.raises(InputError, match="keep a part of the picture, and leave a part to generate"):
        studio.known(given(studio, picture), keep)
    with pytest.raises(InputError, match="no picture: give one"):
        studio.known(None, keep)


# Clusters and codebook


def test_a_swap_shows_six_pictures_and_what_was_lost(studio, picture):
    shown = studio.swap(given(studio, picture), 100, 8)
    assert len(images(shown)) == 6
    assert all(re.match(r"16 of 16 swapped within [\w-]+ clusters: [\d.]+\sdB", item["caption"]) for item in shown[4:])
    assert studio.swap(given(studio, picture), 0, 8)[4]["caption"] == "0 of 16 swapped within k-means clusters"
    with pytest.raises(InputError, match="choose one of 8, 16, 32"):
        studio.swap(given(studio, picture), 50, 9)


def test_a_cluster_of_the_codebook_is_shown_whole(studio):
    (picture,) = studio.codebook(8)
    assert opened(picture["url"]).size == (64, 64)  # 3 × 3 blocks of 4 × 4 tiles of 4 pixels, and 4 around them
    tiles = studio.members(8, 2)
    assert [tile["caption"] for tile in tiles] == [str(i) for i in studio.clusters.clustering(8).members(2).tolist()]
    assert studio.members(8, None) == []  # a field that was emptied


def test_a_model_of_several_scales_shows_its_frames_stages_and_clusters(scales_studio, picture):
    (run,) = generated(scales_studio, "owl")
    assert equal(run.gallery(), scales_studio.pipeline(labels=["owl"] * 2, seed=0))
    assert [run.when(i) for i in (1, 2, 3)] == [f"stage 1 · clusters, step {i} of 3" for i in (1, 2, 3)]
    assert len(run.stages()) == 3
    assert len(scales_studio.swap(given(scales_studio, picture), 50, 5)) == 6
    *_, codebook = scales_studio.codebook(5)
    assert opened(codebook["url"]).size == (64, 44)
