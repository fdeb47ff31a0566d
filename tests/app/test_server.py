"""The web app over HTTP: crowds and hostile requests leave it running; no file is read and nothing fetched for them."""

import json
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio_client
import httpx
import pytest
from app_process import running
from PIL import Image
from shown import asked, opened

from ctf.app.gate import MOST_BODY
from ctf.app.server import listen
from ctf.app.studio import MOST_BYTES
from ctf.errors import InputError
from ctf.images.sheet import png_bytes

API = "/gradio_api/call"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def client(place, pipeline):
    pipeline.save_pretrained(place / "tiny")
    with (
        running(place, "--model", str(place / "tiny")) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def unharmed(client, studio):
    """After every test the server answers as before."""
    yield
    assert len(answer(client, "generate", asked(studio, "dog"))) == 1


def answer(client, name, data):
    """The images that a call ends with, or its message if it failed."""
    event = client.post(f"{API}/{name}", json={"data": data})
    event.raise_for_status()
    stream = client.get(f"{API}/{name}/{event.json()['event_id']}").text
    kind, value = re.findall("event: (\\w+)\ndata: (.*)\n", stream)[-1]
    value = json.loads(value)
    assert kind in ("complete", "error"), stream
    return value[2] if kind == "complete" else value["error"]


def test_images_are_those_of_the_pipeline(client, studio, pipeline):
    got = answer(client, "generate", asked(studio, "dog", 2, 5, fine_temperature=0.5))
    wanted = pipeline(labels=["dog"] * 2, seed=5, fine_temperature=0.5)
    assert [opened(shown["image"]["url"]).tobytes() for shown in got] == [image.tobytes() for image in wanted]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "nobody <b>"}, "no such class: 'nobody &lt;b&gt;'"),
        ({"label": "x" * 10_000}, "no such class: …"),
        ({"num": 10**6}, "ask for 1 to 16 images"),
        ({"seed": 10**30}, "seed 1000"),
        ({"fine_top_p": 7}, "fine_top_p 7 must be in (0, 1]"),
        ({"label": [[[]]], "num": {}}, "num {}: ask for 1 to 16 images"),
        ({"coarse_top_k": "many"}, "top_k 'many' must be a whole number"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_failed_request_says_why_in_one_line(client, studio, changes, message):
    said = answer(client, "generate", asked(studio, **changes))
    assert message in said
    assert "\n" not in said
    assert len(said) < 400


def upload(client, name, data):
    return client.post("/gradio_api/upload", files={"files": (name, data)})


def test_programs_generate_and_complete(client, place, studio, pipeline):
    """By `gradio_client`, with settings by their names, and a picture that stays in the session."""
    (image,) = pipeline(labels=["dog"], seed=3)
    session = gradio_client.Client(str(client.base_url), verbose=False, download_files=False)
    image.save(place / "dog.png")
    _, got, *_ = session.predict(label="dog", num=1, seed=3, fine_temperature=0.5, api_name="/generate")
    (wanted,) = pipeline(labels=["dog"], seed=3, fine_temperature=0.5)
    assert opened(got[0]["image"]["url"]).tobytes() == wanted.tobytes()
    marked, *_ = session.predict(gradio_client.handle_file(place / "dog.png"), 2, api_name="/upload")
    *_, got, _, _, _, _ = session.predict(marked, "dog", "", 2, 3, api_name="/complete")
    known = studio.known(studio.upload((place / "dog.png").read_bytes()), "1" * 8 + "0" * 8)
    wanted = pipeline(["dog"] * 2, seed=3, known=known)
    assert [opened(shown["image"]["url"]).tobytes() for shown in got] == [image.tobytes() for image in wanted]


def test_fifty_at_once(client, studio):
    """Who finds the queue full is told so; everybody else gets images."""

    def one(i):
        with httpx.Client(base_url=client.base_url, timeout=60) as own:
            try:
                return len(answer(own, "generate", asked(studio, "", 2, i)))
            except httpx.HTTPStatusError as error:
                return error.response.status_code, "Queue is full" in error.response.text

    with ThreadPoolExecutor(50) as pool:
        got = list(pool.map(one, range(50)))
    assert set(got) <= {2, (503, True)}
    assert got.count(2) >= 20


@pytest.mark.parametrize("call", ["upload", "generate"])
def test_files_that_were_not_uploaded_are_not_read_and_addresses_not_fetched(client, place, studio, call):
    (place / "work" / "mine.png").write_bytes(png_bytes(Image.new("RGB", (16, 16))))  # where the server runs
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        address = f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"
        for path in (
            f"{place}/work/mine.png",
            "mine.png",
            "/etc/passwd",
            address,
            address.upper(),
            f"file://{__file__}",
        ):
            file = {"path": path, "url": path, "orig_name": "../../x.png", "meta": {"_type": "gradio.FileData"}}
            data = [file, 2] if call == "upload" else [file, *asked(studio)[1:]]
            said = answer(client, call, data)
            assert "not uploaded" in said or "not an address" in said or "Cannot move" in said, said
        with pytest.raises(TimeoutError):
            trap.accept()


def test_what_is_uploaded_stays_in_the_temporary_folder_and_is_bounded(client, place):
    (path,) = upload(client, "../../../../x.png", b"x" * 1000).json()
    assert Path(path).is_relative_to(place / "temporary")
    assert upload(client, "x.png", b"x" * (MOST_BYTES + 1)).status_code == 413
    for where in ("/upload", "/gradio_api/component_server", "/gradio_api/process_recording"):
        assert client.post(where, files={"files": ("x.png", b"x")}).status_code == 404
    assert client.get(f"/gradio_api/file={path}").status_code == 404
    assert client.put("/gradio_api/queue/join", content=b"{}").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        *("/gradio_api/file=/etc/passwd", "/file=/etc/passwd", "/gradio_api/proxy=http://127.0.0.1:9/", "/monitoring"),
        *("/gradio_api/deep_link", "/gradio_api/vibe-code", "/gradio_api/openapi.json", "/docs", "/openapi.json"),
        *("/static/../../../../etc/passwd", "/assets/%2e%2e/%2e%2e/%2e%2e/config.json", "//etc/passwd", "/nothing"),
    ],
)
def test_other_addresses_are_closed(client, path):
    assert client.get(path).status_code in (403, 404)


def test_large_and_broken_bodies_are_refused(client):
    assert client.post(f"{API}/generate", content=b"x" * (MOST_BODY + 1)).status_code == 413
    json_type = {"content-type": "application/json"}
    parts = iter([b"x" * (1 << 20)] * 13)
    assert client.post(f"{API}/generate", content=parts, headers=json_type).status_code in (400, 413)
    for body in (b"", b"{", b"\xff", b"[" * 100_000, b"{}", b'{"data": 3}'):
        assert client.post(f"{API}/generate", content=body).status_code == 415
        assert client.post(f"{API}/generate", content=body, headers=json_type).status_code in (400, 422)


def test_a_page_elsewhere_cannot_point_its_name_here(client):
    reply = client.get("/", headers={"host": "evil.example"})
    assert (reply.status_code, reply.text) == (400, "Invalid host header")
    assert client.get("/", headers={"host": "localhost:7860"}).status_code == 200


def test_the_browser_may_fetch_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    elsewhere = re.findall(r"""(?:src|href)=["'](https?://[^"']+)""", page.text)
    assert elsewhere == []
    assert re.findall(r"url\(['\"]?https?:[^)]+", client.get("/theme.css").text) == []


def test_a_port_in_use_is_an_error(client):
    with pytest.raises(InputError, match=r"127\.0\.0\.1:\d+ cannot be listened on \(Address already in use\)"):
        listen("127.0.0.1", client.base_url.port)


def test_without_gradio_it_says_what_to_install(place):
    code = "import sys; sys.modules |= dict.fromkeys(['gradio', 'uvicorn', 'fastapi'])\n"
    code += "from ctf.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "app", "--model", str(place / "tiny"), "--device", "cpu", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith("pip install -e '.[app]' in a checkout of ctf\n")
    assert done.stderr.count("\n") == 1
