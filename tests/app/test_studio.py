"""What the page shows and hands out: the pipeline's own images, reproducible, with their manifest."""

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

from ctf.app.pictures import data_url, read_upload
from ctf.app.request import ImageRequest
from ctf.app.sampler import Sampler
from ctf.app.studio import Studio
from ctf.cli import main
from ctf.errors import InputError
from ctf.images.sheet import png_bytes
from ctf.model_folder import Pipeline
from ctf.samples import SampleSet


def values(studio, **changes):
    return [changes.get(control.key, control.value) for control in studio.controls]


def images(html):
    return [np.asarray(read_upload(url)) for url in re.findall('src="(data:image/png[^"]+)"', html)]


def unpacked(links):
    url = re.search('class="zip" href="data:application/zip;base64,([^"]+)"', links)[1]
    return zipfile.ZipFile(io.BytesIO(base64.b64decode(url)))


def stages(steps):
    return [re.findall('data-stage="(\\w+)" data-done="(\\d)"', html) for html, _ in steps]


def test_the_page_ends_with_the_images_of_the_pipeline(studio, pipeline):
    *_, (html, _) = studio.generate("dog", 3, 5, False, *values(studio, coarse_temperature=0.5, fine_top_k=3))
    wanted = pipeline(labels=["dog"] * 3, seed=5, coarse_temperature=0.5, fine_top_k=3)
    assert [np.array_equal(a, np.asarray(b)) for a, b in zip(images(html), wanted, strict=True)] == [True] * 3


def test_coarse_previews_come_first(studio):
    seen = stages(studio.generate("", 2, 0, False, *values(studio)))
    assert [step[0] for step in seen[:8]] == [("coarse", "0")] * 8
    assert seen[8:] == [[("fine", "0")], [("fine", "1")]]


def test_the_baseline_stands_beside_with_the_same_seeds(studio):
    *_, (html, links) = studio.generate("", 4, 9, True, *values(studio, coarse_temperature=0.5))
    assert re.findall('data-stage="(\\w+)" data-done="1"', html) == ["fine", "baseline"]
    assert len(re.findall(r"done in \d+\.\d s", html)) == 2
    captions = re.findall("<figcaption[^>]*>(.*?)</figcaption>", html)
    assert captions[:4] == captions[4:]
    plain = studio.baseline.pipeline(labels=ImageRequest(num=4).labels(studio.pipeline), seed=9)
    assert np.array_equal(images(html)[4], np.asarray(plain[0]))
    assert {name.split("/")[0] for name in unpacked(links).namelist()} == {"tiny", "plain"}


def test_models_of_other_classes_are_no_baseline(studio, make_parts):
    other = Pipeline(**make_parts("baseline") | {"class_names": ["a", "b", "c", "d"]})
    with pytest.raises(InputError, match="other and tiny have different classes"):
        Studio(studio.model, Sampler.of(other, "other"))


def test_the_link_leads_back_to_the_same_images(studio):
    *_, (html, links) = studio.generate("red fox", 2, 7, False, *values(studio, fine_temperature=0.4))
    address = re.search('id="permalink" href="([^"]+)"', links)[1].replace("&amp;", "&")
    request = ImageRequest.from_query(studio.controls, dict(parse_qsl(address[1:], keep_blank_values=True)))
    again = studio.generate(request.label, request.num, request.seed, False, *request.settings.values())
    *_, (second, _) = again
    assert [a.tobytes() for a in images(html)] == [b.tobytes() for b in images(second)]


def test_what_is_downloaded_is_a_sample_set_whose_command_makes_it_again(studio, pipeline, tmp_path, monkeypatch):
    *_, (html, links) = studio.generate("", 3, 11, False, *values(studio, coarse_top_p=0.9))
    monkeypatch.chdir(tmp_path)
    pipeline.save_pretrained("tiny")
    unpacked(links).extractall("download")
    samples = SampleSet.open("download/tiny")
    assert (samples.count, samples.image_size, samples.labels.tolist()) == (3, (16, 16), [0, 2, 3])
    program, *arguments = shlex.split(samples.manifest.command)
    assert program == "ctf"
    assert main([*arguments, "--device", "cpu"]) == 0
    again = SampleSet.open("samples")
    assert again.manifest.differences(samples.manifest) == [
        "batch_size is 3 there and 64 here",
    ]
    for image, name in zip(images(html), sorted(f.name for f in (tmp_path / "samples").glob("0*.png")), strict=True):
        assert np.array_equal(image, np.asarray(Image.open(f"samples/{name}")))
        assert np.array_equal(image, np.asarray(Image.open(f"download/tiny/{name}")))


def test_a_single_image_knows_how_it_was_made(studio):
    *_, (html, links) = studio.generate("owl", 1, 3, False, *values(studio))
    url = re.search('src="data:image/png;base64,([^"]+)"', html)[1]
    with Image.open(io.BytesIO(base64.b64decode(url))) as image:
        manifest = json.loads(image.text["ctf"])
    kept = json.loads(unpacked(links).read("tiny/manifest.json"))
    assert {**manifest, "date": ""} == {**kept, "date": ""}
    assert (manifest["seed"], manifest["given_labels"], manifest["count"]) == (3, [3], 1)


def test_nothing_says_where_the_model_lies(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "secret" / "model")
    studio = Studio(Sampler.of(pipeline, str(tmp_path / "secret" / "model")))
    *_, (html, links) = studio.generate("", 1, 0, False, *values(studio))
    text = html + unpacked(links).read("model/manifest.json").decode()
    text += str(next(iter(images(html))).tobytes())
    assert "secret" not in text


def test_classes_are_said_by_names_that_are_unique(studio, make_parts):
    pipeline = Pipeline(**make_parts("baseline") | {"class_names": ["crane", "owl", "crane", "3"]})
    choices = Studio(Sampler.of(pipeline, "birds")).classes()
    assert choices[1:] == [("crane (0)", "0"), ("owl", "owl"), ("crane (2)", "2"), ("3", "3")]


@pytest.mark.parametrize(
    ("label", "num", "seed", "message"),
    [
        ("nobody", 1, 0, "class 'nobody' does not exist"),
        ("7", 1, 0, "the model has the classes 0 … 3"),
        ("", 17, 0, "ask for 1 to 16 images"),
        ("", 10**9, 0, "ask for 1 to 16 images"),
        ("", None, 0, "num 'None' must be a whole number"),
        ("", 1, -1, "seed -1"),
        ([{}], 1, 0, "does not exist"),
    ],
    ids=str,
)
def test_bad_wishes(studio, label, num, seed, message):
    with pytest.raises(InputError, match=message):
        next(studio.generate(label, num, seed, False, *values(studio)))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sketch_steps", 99, "stage sketch cannot draw in 99 steps"),
        ("paint_order", ["halton"], "does not exist"),
        ("paint_temperature", -1, "paint_temperature -1"),
        ("sketch_top_k", "many", "must be a whole number"),
    ],
)
def test_bad_settings(free_studio, key, value, message):
    with pytest.raises(InputError, match=message):
        next(free_studio.generate("", 1, 0, False, *values(free_studio, **{key: value})))


# Completion


@pytest.fixture
def picture(pipeline):
    return pipeline(labels=[1], seed=4)[0].resize((40, 40))


def dropped(studio, picture, keep=None):
    return {**studio.upload(data_url(png_bytes(picture))), **({} if keep is None else {"keep": keep})}


def test_what_is_kept_stays(studio, free_studio, picture):
    for host, keep in (studio, "1" * 6 + "0" * 10), (free_studio, "0110" * 4):
        pipeline, given = host.pipeline, dropped(host, picture, keep)
        known = host.known(given)
        assert (known >= 0).tolist() == [mark == "1" for mark in keep]
        assert (known[known >= 0] == host.clusters.tokens(read_upload(given["src"]))[known >= 0]).all()
        *_, (html, links) = host.complete(given, "dog", 2, 3, *values(host))
        wanted = pipeline(labels=["dog", "dog"], seed=3, known=known)
        assert [image.tobytes() for image in images(html)] == [image.tobytes() for image in wanted]
        manifest = json.loads(unpacked(links).read(f"{host.model.name}/manifest.json"))
        assert manifest["known"] == known.tolist()
        assert "permalink" not in links


def test_a_model_says_what_it_can_keep(studio, free_studio, picture):
    assert "stage coarse is autoregressive" in studio.keeps()
    assert "rows from the top only" in studio.keeps()
    assert free_studio.keeps() == "This model can keep any part."
    with pytest.raises(InputError, match="stage coarse is autoregressive: it continues images from their first tokens"):
        studio.known(dropped(studio, picture, "0110" * 4))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "no picture: drop one"),
        ("/etc/passwd", "no picture: drop one"),
        ({"src": ""}, "no picture: drop one"),
        ({"src": "/etc/passwd", "keep": "1" + "0" * 15}, "no picture: give one as a data URL"),
        ({"src": data_url(png_bytes(Image.new("RGB", (9, 9)))), "keep": "1" * 16}, "leave a part unmarked"),
        ({"src": data_url(png_bytes(Image.new("RGB", (9, 9)))), "keep": ""}, "mark what to keep first"),
        ({"src": data_url(png_bytes(Image.new("RGB", (9, 9)))), "keep": "12"}, "a 0 or 1 for each of 4 × 4 tokens"),
        ({"src": data_url(png_bytes(Image.new("RGB", (9, 9)))), "keep": [1, 0]}, "a 0 or 1 for each of 4 × 4 tokens"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_pictures_to_complete(studio, given, message):
    with pytest.raises(InputError, match=re.escape(message)):
        studio.known(given)


def test_an_upload_is_cropped_and_half_marked(studio, picture):
    given = studio.upload(data_url(png_bytes(picture)))
    assert read_upload(given["src"]).size == (16, 16)
    assert given["keep"] == "1" * 8 + "0" * 8


def test_the_example_is_one_of_the_first_images(studio):
    *_, (html, _) = studio.generate("", 6, 0, False, *values(studio))
    given = studio.example(html)
    assert np.array_equal(np.asarray(read_upload(given["src"])), images(html)[2])
    assert (studio.known(given) >= 0).tolist() == [True] * 8 + [False] * 8


# Clusters, codebook, programs


def test_swaps_are_shown(studio, picture):
    html = studio.swap(dropped(studio, picture), 100, 8)
    assert len(images(html)) == 5
    assert "16 of 16 tokens swapped" in html
    assert len(re.findall(r"<small>[\d.]+ dB", html)) == 2
    assert "data-swapped='0'" in studio.swap(dropped(studio, picture), 0, 8)
    with pytest.raises(InputError, match="choose one of 8, 16, 32"):
        studio.swap(dropped(studio, picture), 50, 9)


def test_a_click_on_the_codebook_finds_its_cluster(studio):
    *_, (_, order) = studio.clusters.overview(8)
    assert [studio.cluster_at(8, x, y) for y, x in ((0.1, 0.1), (0.1, 0.9), (0.5, 0.5))] == [
        order[0],
        order[2],
        order[4],
    ]
    assert studio.cluster_at(8, 1.0, 1.0) == order[7]
    with pytest.raises(InputError, match="x 'None' must be a number"):
        studio.cluster_at(8, None, 0.5)
    assert len(images(studio.members(8, 2))) == len(studio.clusters.clustering(8).members(2))
    assert len([*studio.codebook(8)]) == 1


def test_programs_get_images_and_manifest(free_studio, picture):
    *steps, last = free_studio.api_generate("dog", 2, 3, {"sketch_steps": 2})
    assert steps[0] == {"stage": "sketch", "step": 1, "steps": 2}
    wanted = free_studio.pipeline(labels=["dog"] * 2, seed=3, sketch_steps=2)
    assert [read_upload(url).tobytes() for url in last["images"]] == [image.tobytes() for image in wanted]
    assert last["manifest"]["sampling"]["sketch"]["steps"] == 2
    *_, last = free_studio.api_complete(data_url(png_bytes(picture)), "0110" * 4, "dog")
    assert len(last["images"]) == 1
    with pytest.raises(InputError, match="settings: give names and values"):
        next(free_studio.api_generate(settings=["a"]))
