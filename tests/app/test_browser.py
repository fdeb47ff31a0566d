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

import ctf
from ctf.app.pictures import read_upload
from ctf.images import center_crop

pytestmark = pytest.mark.browser

CHROMIUM = "/usr/bin/chromium"
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
#: Notes every state of the panels, so that none is missed between two looks.
RECORD = """() => {
  window.seen = [];
  const note = () => {
    const panel = [...document.querySelectorAll("#made section")].at(-1);
    if (panel) window.seen.push([panel.dataset.stage, panel.dataset.done, panel.querySelector("img").src]);
  };
  const all = { subtree: true, childList: true, attributes: true };
  new MutationObserver(note).observe(document.querySelector("#made"), all);
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with running(tmp_path_factory.mktemp("browser"), "--baseline", "emoji") as address:
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
    page.set_default_timeout(30_000)
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
    """The images in a part of the page, uint8 arrays."""
    urls = page.eval_on_selector_all(f"{place} img", "images => images.map((image) => image.src)")
    return [np.asarray(read_upload(url)) for url in urls]


def finished(page, place="#made"):
    page.wait_for_selector(f"{place} section[data-done='1']")
    return shown(page, place)


def generate(page, label=None, **fields):
    """Fill the form, press Generate, wait for the end."""
    if label:
        chooser = page.get_by_label("class (type to search)").first
        chooser.fill("")
        chooser.press_sequentially(label)
        page.get_by_role("option", name=label, exact=True).click()
    for name, value in fields.items():
        page.get_by_label(name.replace("_", " "), exact=False).first.fill(str(value))
    page.evaluate(RECORD)
    page.click("#generate")
    page.wait_for_function("() => window.seen.some(([, done]) => done === '0')")
    return finished(page)


def equal(images, wanted):
    return [np.array_equal(a, np.asarray(b)) for a, b in zip(images, wanted, strict=True)] == [True] * len(wanted)


def test_coarse_previews_then_the_fine_images(page, pipeline):
    images = generate(page, "noto face-smiling", seed_of_the_first=3)
    assert equal(images, pipeline(labels=["noto face-smiling"] * 8, seed=3))
    seen = page.evaluate("window.seen")
    stages = [stage for stage, done, _ in seen if done == "0"]
    assert "coarse" in stages  # how many of them a busy machine's browser shows is its own choice
    assert stages == sorted(stages)  # coarse before fine
    assert seen[-1][2] not in {source for stage, done, source in seen if (stage, done) == ("coarse", "0")}
    assert page.eval_on_selector("#made img", "image => [image.width, getComputedStyle(image).imageRendering]") == [
        128,
        "pixelated",
    ]


def test_the_baseline_stands_beside(page):
    page.get_by_label("baseline beside it").check()
    images = generate(page)
    page.wait_for_selector("#made section[data-done='1'] ~ section[data-done='1']")
    images = shown(page, "#made")
    assert equal(images[:8], images[8:])  # the baseline is the same model here
    assert len(re.findall(r"done in \d+\.\d s", page.inner_text("#made"))) == 2


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
    other.wait_for_function("() => document.querySelector('#made small')?.textContent === 'seed 41'")
    assert equal(finished(other), images)
    assert other.get_by_label("seed of the first").first.input_value() == "41"
    other.goto(f"{address}/?seed=1&label=<img src=x onerror=alert(1)>")
    other.get_by_text("does not exist").wait_for()
    assert other.locator("img[src=x]").count() == 0
    other.close()


def test_download(page, tmp_path):
    images = generate(page, seed_of_the_first=2)
    with page.expect_download() as saved:
        page.click("a.zip >> nth=0")
    with zipfile.ZipFile(saved.value.path()) as packed:
        names = sorted(packed.namelist())
        first = np.asarray(Image.open(io.BytesIO(packed.read(names[0]))))
        manifest = json.loads(packed.read("emoji/manifest.json"))
    assert saved.value.suggested_filename == "emoji-seed-2.zip"
    assert np.array_equal(first, images[0])
    assert (manifest["seed"], manifest["count"]) == (2, 8)
    page.click("#made img >> nth=3")
    with page.expect_download() as saved:
        page.click("a.png >> nth=0")
    with Image.open(saved.value.path()) as image:
        assert np.array_equal(np.asarray(image), images[3])
        assert json.loads(image.text["ctf"])["seed"] == 2
    assert saved.value.suggested_filename.endswith(".png")


def test_stop_ends_a_request_and_the_next_one_runs(page):
    page.get_by_label("number input for images").first.fill("16")
    page.evaluate(RECORD)
    page.click("#generate")
    page.wait_for_function("() => window.seen.some(([, done]) => done === '0')")
    page.click("#stop-generate")
    page.wait_for_timeout(2000)  # longer than 16 images take
    assert page.get_attribute("#made section", "data-done") == "0"
    assert len(generate(page, number_input_for_images=2)) == 2


def test_a_failed_request_says_why(page):
    page.get_by_label("seed of the first").first.fill("-5")
    page.click("#generate")
    page.get_by_text(re.compile("seed -5|[Mm]inimum")).wait_for()
    assert len(generate(page, seed_of_the_first=1)) == 8


def test_completion_with_a_drawn_mask(page, pipeline):
    images = generate(page, "noto face-smiling", seed_of_the_first=3)
    page.click("#made img >> nth=1")
    page.get_by_role("tab", name="Complete").click()
    page.locator("button:has-text('Take the chosen image') >> visible=true").click()
    page.wait_for_function(
        "source => document.querySelector('.mask-editor img').src === source",
        arg=page.get_attribute("#made img >> nth=1", "src"),
    )

    def drag(row, to):
        """Along a row of tokens."""
        box = page.locator(".cells >> visible=true").bounding_box()
        y = box["y"] + (row + 0.5) * box["height"] / 8
        page.mouse.move(box["x"] + 5, y)
        page.mouse.down()
        page.mouse.move(box["x"] + (to + 0.5) * box["width"] / 8, y, steps=20)
        page.mouse.up()

    drag(4, 2)  # beyond the upper half, which is marked, the left of the next row
    assert page.locator(".cells i.kept >> visible=true").count() == 35
    page.evaluate("document.querySelector('#rest').dataset.before = document.querySelector('#rest img').src")
    page.click("#complete")
    page.wait_for_function(
        "() => document.querySelector('#rest img').src !== document.querySelector('#rest').dataset.before"
    )
    completed = finished(page, "#rest")
    mask = np.ones((64, 64), bool)
    mask[:32] = mask[32:40, :24] = False
    labels = [0, 161, 321, 482]
    assert equal(completed, pipeline.complete(Image.fromarray(images[1]), mask, labels))
    drag(7, 7)  # not what a stage that goes row by row can keep
    page.click("#complete")
    page.get_by_text("stage coarse is autoregressive: it continues images").wait_for()


def test_uploads(page, tmp_path):
    page.get_by_role("tab", name="Clusters").click()
    chooser = page.locator("input[type=file] >> nth=0")
    first = page.get_attribute("#swapped img >> nth=0", "src")
    (tmp_path / "photo.png").write_bytes(b"no picture")
    chooser.set_input_files(tmp_path / "photo.png")
    page.get_by_text("the upload cannot be read as an image").wait_for()
    (tmp_path / "huge.png").write_bytes(b"\0" * (9 << 20))
    chooser.set_input_files(tmp_path / "huge.png")
    page.get_by_text("huge.png has 9 MiB: give one of at most 8").wait_for()
    assert page.get_attribute("#swapped img >> nth=0", "src") == first
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 200, 3), np.uint8))
    picture.save(tmp_path / "photo.png")
    chooser.set_input_files(tmp_path / "photo.png")
    page.wait_for_function("first => document.querySelector('#swapped img').src !== first", arg=first)
    assert np.array_equal(shown(page, "#swapped")[0], np.asarray(center_crop(picture, 64)))


def test_swap_with_a_slider(page):
    page.get_by_role("tab", name="Clusters").click()
    assert page.get_attribute("#swapped section >> nth=1", "data-swapped") == "35"
    page.get_by_label("number input for tokens swapped, %").fill("100")
    page.keyboard.press("Tab")
    page.wait_for_selector("#swapped section[data-swapped='64']")
    near, far = (float(text) for text in re.findall(r"([\d.]+) dB", page.inner_text("#swapped")))
    assert near > far + 5


def test_codebook(page, pipeline):
    page.get_by_role("tab", name="Codebook").click()
    page.wait_for_selector("#codebook img")
    page.get_by_text("cluster 0: 35 tokens").wait_for()
    page.wait_for_function("() => document.querySelector('#codebook img').complete")
    page.locator("#codebook img").click(position={"x": 5, "y": 5})
    page.wait_for_function("() => !document.querySelector('#members h3').textContent.startsWith('cluster 0:')")
    cluster = int(page.get_by_label("cluster", exact=True).input_value())
    size = len(pipeline.stages[0].predicts.members(cluster))
    page.get_by_text(f"cluster {cluster}: {size} tokens").wait_for()
    assert page.locator("#members img").count() == size
    assert np.mean([image.mean() for image in shown(page, "#members")]) < 60  # the darkest stands first
