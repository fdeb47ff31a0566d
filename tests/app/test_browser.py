"""The web app with the bundled model as a visitor has it, in Debian's Chromium."""

import io
import json
import re
import zipfile

import numpy as np
import pytest
from app_process import running
from PIL import Image
from playwright.sync_api import sync_playwright
from same import equal
from shown import opened

import ctf
from ctf.images import center_crop
from ctf.images.sheet import png_bytes

pytestmark = pytest.mark.browser

DESIGNS = ["emojione", "fluent-emoji", "fluent-emoji-flat", "fxemoji", "noto", "twemoji"]

CHROMIUM = "/usr/bin/chromium"
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with running(tmp_path_factory.mktemp("browser"), "--against", "emoji") as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """A page that has loaded, and that fails the test for an error in its scripts or a request to elsewhere."""
    page = browser.new_page(viewport={"width": 1280, "height": 860})
    page.set_default_timeout(90_000)
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith((address, "data:", "blob:")) else None)
    page.on("requestfailed", lambda r: wrong.append(r.url) if "csp" in (r.failure or "") else None)
    page.goto(address)
    page.wait_for_selector("#made img")
    page.wait_for_timeout(500)  # what is typed before the form has come to life is lost
    yield page
    page.close()
    assert wrong == []


@pytest.fixture(scope="module")
def pipeline():
    return ctf.Pipeline.from_pretrained("emoji")


def shown(page, place):
    """The images in a part of the web app, uint8 arrays."""
    urls = page.eval_on_selector_all(f"{place} img", "images => images.map((image) => image.src)")
    return [np.asarray(opened(url)) for url in urls]


def state(page):
    return page.locator("#made-status p").all_inner_texts()


def generate(page, **fields):
    """Fill the form, press Generate, wait for the end; the images."""
    for name, value in fields.items():
        page.get_by_label(name.replace("_", " "), exact=False).first.fill(str(value))
    press(page, "generate")
    return shown(page, "#made")


def press(page, action, place="made", until="[data-ended='1']"):
    """Press a button, and wait for a state that is not the one before."""
    page.evaluate(f"document.querySelector('#{place}-status .status').dataset.ended = 'old'")
    page.click(f"#{action}")
    page.wait_for_selector(f"#{place}-status .status{until}")


def search(page, words):
    """Type into the class, as a visitor does who does not look at the list, and leave the field."""
    chooser = page.get_by_label("class (type to search)").first
    chooser.fill("")
    chooser.press_sequentially(words)
    chooser.press("Tab")


def test_generated_images_their_frames_and_stages(page, pipeline):
    images = generate(page, seed_of_the_first=3)
    labels = [0, 69, 138, 207, 275, 344, 413, 482]
    frames = list(pipeline.stream(labels, seed=3))
    assert equal(images, frames[-1].images)
    coarse = frames[7]
    assert (coarse.stage, coarse.step) == ("coarse", 64)
    scrubber = page.locator("#made-frame input[type=number]")
    assert scrubber.input_value() == "9"
    scrubber.fill("8")
    page.keyboard.press("Tab")
    page.get_by_text("stage 1 · clusters, step 64 of 64").wait_for()
    page.wait_for_timeout(500)
    assert equal(shown(page, "#made"), coarse.images)
    first = page.get_attribute("#made-stages img >> nth=0", "src")
    page.get_by_role("button", name="Thumbnail 3 of 8").first.click()  # the third image, enlarged and chosen
    page.wait_for_selector("#made .preview img")
    page.wait_for_function("first => document.querySelector('#made-stages img').src !== first", arg=first)
    assert equal(shown(page, "#made-stages")[:2], [coarse.images[2], images[2]])
    page.keyboard.press("Escape")
    page.wait_for_selector("#made .preview img", state="detached")


def test_a_class_is_found_by_a_keyword(page, pipeline):
    search(page, "dog")
    assert equal(generate(page, number_input_for_images=6), pipeline([f"{d} animal-mammal" for d in DESIGNS]))
    search(page, "xyzzy")
    page.click("#generate")
    page.get_by_text("no such class: 'xyzzy'").wait_for()
    page.get_by_label("class (type to search)").first.fill("smile")
    page.get_by_role("option", name=re.compile("^face-smiling · .*smile")).click()
    assert equal(generate(page), pipeline([f"{d} face-smiling" for d in DESIGNS]))
    page.get_by_role("button", name="noto face-smiling").click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('#made img')].at(-1).alt === 'noto face-smiling, seed\u00a05'"
    )


def test_another_model_stands_beside(page):
    page.get_by_label("emoji beside it").check()
    images = generate(page)
    assert equal(shown(page, "#made-beside"), images)  # it is the same model here
    assert [re.sub(r"[\d.]+ s", "", text) for text in state(page)] == ["emoji done in "] * 2


def test_a_link_leads_back_to_the_images(page, browser, address, pipeline):
    page.get_by_role("button", name="stage 2 · tokens").click()
    page.wait_for_timeout(500)  # until it has unfolded
    page.get_by_label("number input for temperature").last.fill("0.8")
    page.keyboard.press("Tab")
    images = generate(page, seed_of_the_first=41)
    assert equal(images[:1], pipeline(labels=[0], seed=41, fine_temperature=0.8))
    link = page.get_attribute("#permalink", "href")
    page.wait_for_function("link => location.search === link", arg=link)
    other = browser.new_page()
    other.goto(f"{address}/{link}")
    other.wait_for_function("() => document.querySelector('#made img')?.alt === 'emojione alphanum, seed\u00a041'")
    other.wait_for_selector("#made-status .status[data-ended='1']")
    assert equal(shown(other, "#made"), images)
    assert other.get_by_label("seed of the first").first.input_value() == "41"
    other.goto(f"{address}/?seed=1&label=<img src=x onerror=alert(1)>")
    other.get_by_text("no such class").wait_for()
    assert other.locator("img[src=x]").count() == 0
    other.close()


def test_downloads_are_named_after_class_and_seed(page):
    images = generate(page, seed_of_the_first=2)
    with page.expect_download() as saved:
        page.click("a.zip >> visible=true")
    with zipfile.ZipFile(saved.value.path()) as packed:
        names = sorted(packed.namelist())
        first = np.asarray(Image.open(io.BytesIO(packed.read(names[0]))))
        manifest = json.loads(packed.read("emoji/manifest.json"))
    assert saved.value.suggested_filename == "emoji-all-classes-seed-2.zip"
    assert np.array_equal(first, images[0])
    assert (manifest["seed"], manifest["count"]) == (2, 8)
    page.get_by_role("button", name="Thumbnail 4 of 8").first.click()
    with page.expect_download() as saved:
        page.locator("#made").get_by_role("button", name="Download").click()
    assert saved.value.suggested_filename == "fluent-emoji-flat-lock-seed-5.png"
    with Image.open(saved.value.path()) as image:
        assert np.array_equal(np.asarray(image), images[3])
        assert json.loads(image.text["ctf"])["seed"] == 2


def test_stop_leaves_what_was_made_and_a_second_visitor_waits(page, browser, address):
    other = browser.new_page()
    other.goto(address)
    other.wait_for_selector("#made img")
    page.get_by_label("number input for images").first.fill("16")
    press(page, "generate", until="[data-ended='0']")
    press(other, "generate", until="[data-ended='old']")
    other.get_by_text("queue: 1/1").wait_for()
    page.click("#stop-generate")
    page.get_by_text("stopped after stage 1 · clusters, step").wait_for()
    assert len(shown(page, "#made-stages")) == 0  # the second stage was not reached
    assert "num=16" in page.get_attribute("#permalink", "href")
    other.wait_for_selector("#made-status .status[data-ended='1']")
    other.close()
    assert len(generate(page, number_input_for_images=2)) == 2


def test_a_failed_request_says_why(page):
    page.get_by_label("seed of the first").first.fill("-5")
    page.click("#generate")
    page.get_by_text(re.compile("seed -5|[Mm]inimum")).wait_for()
    assert len(generate(page, seed_of_the_first=1)) == 8


def test_a_completion_inherits_class_and_settings(page, pipeline):
    """And the emoji model, which goes row by row, is asked for rows only."""
    page.get_by_role("button", name="stage 1 · clusters").click()
    page.wait_for_timeout(500)
    page.get_by_label("number input for temperature").first.fill("0.6")
    page.keyboard.press("Tab")
    images = generate(page, seed_of_the_first=3)
    page.get_by_role("button", name="Thumbnail 2 of 8").first.click()
    page.wait_for_timeout(500)
    page.get_by_role("tab", name="Complete").click()
    page.locator("button:has-text('Take the image chosen') >> visible=true").click()
    page.get_by_text("Settings of the picture: coarse_temperature 0.6.").wait_for()
    page.locator("#rows input[type=number]").fill("5")
    page.keyboard.press("Tab")
    page.wait_for_function("() => document.querySelectorAll('.cells i.m1').length === 40")
    press(page, "complete", "rest")
    mask = np.ones((64, 64), bool)
    mask[:40] = False
    wanted = pipeline.complete(Image.fromarray(images[1]), mask, ["emojione time"] * 4, coarse_temperature=0.6)
    assert equal(shown(page, "#rest"), wanted)


def test_strokes_of_the_pointer_mark_what_is_kept(browser, free_pipeline, tmp_path):
    free_pipeline.save_pretrained(tmp_path / "model")
    with running(tmp_path, "--model", str(tmp_path / "model")) as address:
        page = browser.new_page()
        page.set_default_timeout(90_000)
        page.goto(address)
        page.wait_for_selector("#made img")
        page.get_by_role("tab", name="Complete").click()
        cells = page.locator(".cells i")  # 4 × 4 tokens, of which the upper half is kept at first
        for start, end in ((0, 2), (11, 15)):
            cells.nth(start).hover()
            page.mouse.down()
            box = cells.nth(end).bounding_box()
            page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=9)
            page.mouse.up()
        keep = page.eval_on_selector_all(".cells i", "cells => cells.map((cell) => +cell.className[1])")
        assert keep == [0, 0, 0, 1] + [1, 1, 1, 1] + [0, 0, 0, 1] * 2
        press(page, "complete", "rest")
        mask = np.array(keep).reshape(4, 4).repeat(4, 0).repeat(4, 1) == 0
        picture = Image.fromarray(shown(page, ".given")[0])
        assert equal(shown(page, "#rest"), free_pipeline.complete(picture, mask, ["red fox"] * 4))
        page.close()


def test_uploads_and_swaps(page, tmp_path):
    page.get_by_role("tab", name="Clusters").click()
    page.get_by_text("35 of 64 swapped within k-means").first.wait_for()

    def give(name, data):
        (tmp_path / name).write_bytes(data)
        page.locator(".drop >> visible=true").locator("input[type=file]").set_input_files(tmp_path / name)

    before = shown(page, "#swapped")[0]
    give("photo.png", b"no picture")
    page.get_by_text("the upload cannot be read as an image").wait_for()
    assert equal(shown(page, "#swapped")[:1], [before])
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8))
    give("photo.png", png_bytes(picture))
    page.wait_for_function(
        "before => document.querySelector('#swapped img').src !== before",
        arg=page.get_attribute("#swapped img >> nth=0", "src"),
    )
    assert equal(shown(page, "#swapped")[:1], [center_crop(picture, 64)])
    page.get_by_label("number input for tokens swapped, %").fill("100")
    page.keyboard.press("Tab")
    page.get_by_text("64 of 64 swapped within k-means").first.wait_for()
    page.get_by_role("tab", name="Complete").click()
    page.wait_for_selector(".given img")
    assert equal(shown(page, ".given"), [center_crop(picture, 64)])


def test_a_click_on_the_codebook_shows_a_cluster(page, pipeline):
    page.get_by_role("tab", name="Codebook").click()
    page.wait_for_selector("#codebook img")
    page.wait_for_function("() => document.querySelectorAll('#members img').length === 35")
    page.wait_for_timeout(3000)  # until all is decoded: a picture that changes takes no clicks
    page.locator("#codebook img").click(position={"x": 9, "y": 9})
    page.wait_for_function("() => document.querySelectorAll('#members img').length !== 35")
    cluster = int(page.get_by_label("cluster", exact=True).input_value())
    members = pipeline.stages[0].predicts.members(cluster).tolist()
    assert page.eval_on_selector_all("#members img", "images => images.map((image) => +image.alt)") == members
    assert np.mean([image.mean() for image in shown(page, "#members")]) < 60  # the darkest stands first


@pytest.mark.parametrize("width", [390, 1280])
def test_results_stand_above_the_settings_and_no_tab_is_hidden(browser, address, width):
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.goto(address)
    page.wait_for_selector("#made img")
    assert page.locator("[role=tab] >> visible=true").all_inner_texts() == [
        "Generate",
        "Complete",
        "Clusters",
        "Codebook",
    ]
    images, settings = page.locator("#made").bounding_box(), page.get_by_text("stage 1 · clusters").first.bounding_box()
    assert images["y"] < min(settings["y"], 844)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.close()
