"""The web app over HTTP: crowds and hostile requests leave it running; nothing is read, fetched or written for them."""

import json
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from app_process import running
from hostile import HOSTILE

from ctf.app.gate import MOST_BODY
from ctf.app.pictures import read_upload
from ctf.app.server import listen
from ctf.errors import InputError

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
        answer(client, "generate", ["dog", 1, 0, {}])  # the first call of all: Matplotlib lists the fonts in its cache
        yield client


@pytest.fixture
def contents(place):
    """Everything in the folders that a server could write to."""
    return lambda: {path: path.stat().st_size for path in place.rglob("*")}


@pytest.fixture(autouse=True)
def unharmed(client, contents):
    """After every test the server answers as before, and has written nothing."""
    before = contents()
    yield
    assert len(answer(client, "generate", ["dog", 1, 0, {}])["images"]) == 1
    assert contents() == before


def answer(client, name, data):
    """The last event of a call; a failed one as its message."""
    event = client.post(f"{API}/{name}", json={"data": data})
    event.raise_for_status()
    stream = client.get(f"{API}/{name}/{event.json()['event_id']}").text
    kind, value = re.findall("event: (\\w+)\ndata: (.*)\n", stream)[-1]
    value = json.loads(value)
    assert kind in ("complete", "error"), stream
    return value[0] if kind == "complete" else value["error"]


def test_images_are_those_of_the_pipeline(client, pipeline):
    got = answer(client, "generate", ["dog", 2, 5, {"fine_temperature": 0.5}])
    wanted = pipeline(labels=["dog"] * 2, seed=5, fine_temperature=0.5)
    assert [read_upload(url).tobytes() for url in got["images"]] == [image.tobytes() for image in wanted]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["nobody <b>", 1, 0, {}], "no such class: 'nobody &lt;b&gt;'"),
        (["x" * 10_000, 1, 0, {}], "xxx …"),
        (["", 10**6, 0, {}], "ask for 1 to 16 images"),
        (["", 1, 10**30, {}], "seed 1000"),
        (["", 1, 0, {"fine_top_p": 7}], "fine_top_p 7.0 must be in (0, 1]"),
        (["", 1, 0, ["a"]], "settings: give names and values"),
        ([[[[]]], {}, None, 0], "num '{}' must be a whole number"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_failed_request_says_why_in_one_line(client, data, message):
    said = answer(client, "generate", data)
    assert message in said
    assert "\n" not in said
    assert len(said) < 400


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_uploads(client, name):
    url, _ = HOSTILE[name]
    marks = "1" * 8 + "0" * 8
    if isinstance(url, dict):  # stands for a file: the gate refuses it
        assert client.post(f"{API}/complete", json={"data": [url, marks, "", 1, 0, {}]}).status_code == 400
        return
    said = answer(client, "complete", [url, marks, "", 1, 0, {}])
    assert re.search("no picture|the picture|the upload", said)
    assert "\n" not in said


def test_fifty_at_once(client):
    """Who finds the queue full is told so; everybody else gets images."""

    def one(i):
        with httpx.Client(base_url=client.base_url, timeout=60) as own:
            try:
                return len(answer(own, "generate", ["", 2, i, {}])["images"])
            except httpx.HTTPStatusError as error:
                return error.response.status_code, "Queue is full" in error.response.text

    with ThreadPoolExecutor(50) as pool:
        got = list(pool.map(one, range(50)))
    assert set(got) <= {2, (503, True)}
    assert got.count(2) >= 20


def test_files_and_addresses_in_a_request_are_neither_opened_nor_fetched(client):
    """As Gradio's own clients send them: an address would be fetched, a path copied."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        address = f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"
        meta = {"meta": {"_type": "gradio.FileData"}}
        for path in ("/etc/passwd", address, "../../etc/passwd", f"file://{__file__}"):
            payload = {"path": path, "url": path, "orig_name": "../../x", **meta}
            for data in ([payload], ["", 1, 0, {"deep": [[payload]]}]):
                body = {"data": data, "session_hash": "s", "fn_index": 0, "event_data": payload}
                for where in (f"{API}/generate", f"{API}/complete", "/gradio_api/queue/join"):
                    reply = client.post(where, json=body)
                    assert (reply.status_code, "pictures come as data URLs" in reply.text) == (400, True)
            assert "no picture" in answer(client, "complete", [path, "1" * 8 + "0" * 8, "", 1, 0, {}])
            escaped = json.dumps({"data": [payload]}).replace("path", "p\\u0061th").replace("meta", "met\\u0061")
            assert client.post(f"{API}/generate", content=escaped).status_code == 400
        with pytest.raises(TimeoutError):
            trap.accept()


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


def test_uploads_of_files_are_closed(client):
    """A name cannot lead anywhere: there is nothing that takes a file."""
    files = {"files": ("../../../../tmp/x.png", b"x" * 1000)}
    for where in (
        "/gradio_api/upload",
        "/gradio_api/upload?upload_id=../../x",
        "/upload",
        "/gradio_api/component_server",
    ):
        assert client.post(where, files=files).status_code == 404
    assert client.put("/gradio_api/queue/join", content=b"{}").status_code == 404


def test_large_and_broken_bodies_are_refused(client):
    assert client.post(f"{API}/generate", content=b"x" * (MOST_BODY + 1)).status_code == 413
    assert client.post(f"{API}/generate", content=iter([b"x" * (1 << 20)] * 13)).status_code == 413
    for body in (b"", b"{", b"\xff", b"[" * 100_000, b"{}", b'{"data": 3}'):
        assert client.post(f"{API}/generate", content=body).status_code in (400, 422)


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
    code = "import sys; sys.modules['gradio'] = None; from ctf.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "app", "--model", str(place / "tiny"), "--device", "cpu", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith("pip install -e '.[app]' in a checkout of ctf\n")
    assert done.stderr.count("\n") == 1
