"""The web app below a prefix, behind a reverse proxy that keeps the prefix or takes it off."""

import json
import re

import pytest
from shown import asked, opened

from ctf.app.server import application, checked_root_path
from ctf.errors import InputError

testclient = pytest.importorskip("starlette.testclient", reason="pip install -e '.[app]'")

#: As nginx sends them with the settings in docs/index.md.
FORWARDED = {"x-forwarded-host": "example.org", "x-forwarded-proto": "https"}


@pytest.fixture(scope="module")
def client(studio):
    app = application(studio, loopback=True, root_path="/ctf")
    with testclient.TestClient(app, base_url="http://127.0.0.1:7860", headers=FORWARDED) as client:
        yield client


@pytest.mark.parametrize("prefix", ["", "/ctf"])
def test_the_web_app_its_files_and_its_api_are_served(client, studio, prefix):
    page = client.get(f"{prefix}/?label=dog&seed=3")  # as a permalink leads to it
    assert re.findall(r'"root": ?"([^"]*)"', page.text) == ["https://example.org/ctf"]
    (script,) = re.findall(r'src="\./(assets/[^"]+)"', page.text)
    assert client.get(f"{prefix}/{script}").status_code == 200
    assert client.get(f"{prefix}/config").json()["root"] == "https://example.org/ctf"
    call = f"{prefix}/gradio_api/call/generate"
    event = client.post(call, json={"data": asked(studio, "dog")}).json()["event_id"]
    (last,) = re.findall("event: complete\ndata: (.*)\n", client.get(f"{call}/{event}").text)
    assert json.loads(last)[2][0]["image"]["url"].startswith("data:image/png")


def test_a_model_of_several_scales_opens(scales_studio):
    with testclient.TestClient(application(scales_studio, loopback=True), base_url="http://127.0.0.1") as client:
        assert "A decoder turns the tokens into pixels" in client.get("/").text
        data = asked(scales_studio, "owl")
        event = client.post("/gradio_api/call/generate", json={"data": data}).json()["event_id"]
        stream = client.get(f"/gradio_api/call/generate/{event}").text
    (wanted,) = scales_studio.pipeline(labels=["owl"], seed=0)
    (last,) = re.findall("event: complete\ndata: (.*)\n", stream)
    assert opened(json.loads(last)[2][0]["image"]["url"]).tobytes() == wanted.tobytes()


def test_permalinks_and_downloads_need_no_prefix(studio):
    *_, runs = studio.generate("dog", "", 1, 0, False, *(control.value for control in studio.controls))
    assert {re.split("[?:]", address)[0] for address in re.findall('href="([^"]+)"', studio.links(runs))} == {
        "",
        "data",
    }


@pytest.mark.parametrize("path", ["/ctf/gradio_api/file=/etc/passwd", "/ctf/ctf/", "/ctfx/", "/other/"])
def test_other_addresses_stay_closed(client, path):
    assert client.get(path).status_code == 404


def test_another_name_is_refused_behind_a_proxy_too(client):
    assert client.get("/ctf/", headers={"host": "example.org"}).status_code == 400


def test_a_prefix_is_the_path_of_an_address():
    assert [checked_root_path(path) for path in ("", "/", "/ctf", "/a/b-c/")] == ["", "", "/ctf", "/a/b-c"]
    for path in ("ctf", "https://example.org/ctf", "/a b", "//ctf", '/"x'):
        with pytest.raises(InputError, match="give the path below which a proxy shows the web app, such as /ctf"):
            checked_root_path(path)
