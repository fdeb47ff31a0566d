"""Push and pull through a stand-in for the Hub (tests/hub_stand_in.py), without the network."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_stand_in import Faults
from huggingface_hub import HfApi
from PIL import Image
from same import contents

from ctf.cli import main
from ctf.errors import InputError
from ctf.images.sheet import png_bytes
from ctf.model_card import About, part_fingerprint
from ctf.model_folder import Pipeline, complete_card, describe, find_model, publish

NAME = "owner/birds"


@pytest.fixture(scope="module")
def models(make_pipeline, tmp_path_factory):
    """A folder of two model folders: "whole" has every optional part, "baseline" none."""
    place, pipeline = tmp_path_factory.mktemp("models"), make_pipeline("cluster")
    sheet = png_bytes(Image.new("RGB", (8, 8), "red"))
    pipeline.about = About("20 birds", "mit", {"bits_per_token": 8.25}, {"coarse": {"last": {"step": 3}}}, sheet)
    pipeline.save_pretrained(place / "whole")
    make_pipeline("baseline").save_pretrained(place / "baseline")
    return place


@pytest.fixture
def model(models, tmp_path):
    """A copy of the model folder "whole"."""
    return Path(shutil.copytree(models / "whole", tmp_path / "model"))


#: Of every answer: config.json is smaller, the weights are larger.
AFTER_CONFIG = 1000


def on_the_hub(hub, name=NAME):
    """The names of the files in the newest commit; None without a repository."""
    repo = hub.folder / "repos" / name
    return set(hub.files(repo, "main")[1]) - {".gitattributes"} if (repo / "main").exists() else None


def cached(tmp_path, name=NAME):
    """The snapshots in the local cache."""
    return sorted((tmp_path / "cache" / f"models--{name.replace('/', '--')}" / "snapshots").iterdir())


def disconnect(monkeypatch):
    """Let the Hub be where nobody listens."""
    from huggingface_hub import constants

    for name in "ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE":
        address = re.sub("^http://[^/]+", "http://127.0.0.1:9", getattr(constants, name))
        monkeypatch.setattr(constants, name, address)


def push(model, *options):
    return main(["push", "--model", str(model), "--to", NAME, *options])


def error(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("ctf: error: ")][-1]


# Pushed and pulled


@pytest.mark.parametrize("parts_from", [2**40, 1000], ids=["in one piece", "in parts"])
def test_a_pulled_model_has_the_bytes_that_were_pushed(hub, model, tmp_path, parts_from):
    hub.parts_from = parts_from
    assert push(model) == 0
    pulled = Pipeline.from_pretrained(NAME)
    (snapshot,) = cached(tmp_path)
    assert contents(snapshot) == contents(model)
    assert pulled.about == Pipeline.from_pretrained(model).about
    assert any("lfs-part" in line for line in hub.requests) == (parts_from == 1000)


def test_an_opened_model_is_saved_as_the_same_bytes(model, tmp_path):
    Pipeline.from_pretrained(model).save_pretrained(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(model)


def test_push_and_sample_by_the_command_in_a_new_process(hub, model, tmp_path):
    """In a new process, since huggingface_hub reads HF_ENDPOINT when it is imported."""
    ours = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    ours |= {"HF_TOKEN": "hf_owner", "HF_HUB_OFFLINE": "0"}
    program = f"""
from ctf.cli import main
assert main(["push", "--model", {str(model)!r}, "--to", {NAME!r}, "--private"]) == 0
assert main(["sample", "--model", {NAME!r}, "--labels", "[1]", "--out", {str(tmp_path / "x.png")!r}]) == 0
"""
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, env=os.environ | ours, capture_output=True, text=True, check=True)
    assert f"{hub.endpoint}/{NAME}: open it with --model {NAME}" in done.stdout
    assert Image.open(tmp_path / "x.png").size
    (snapshot,) = (tmp_path / "home").rglob("snapshots/*")
    assert contents(model).items() <= contents(snapshot).items()


def test_push_from_python_in_half_precision(hub, make_pipeline):
    pipeline = make_pipeline("baseline")
    assert pipeline.push_to_hub(NAME, dtype=torch.float16) == f"{hub.endpoint}/{NAME}"
    pulled = Pipeline.from_pretrained(NAME)
    for found, exact in zip(pulled.stages[0].parameters(), pipeline.stages[0].parameters(), strict=True):
        assert torch.equal(found, exact.half().float())
    weights = json.loads((find_model(NAME) / "manifest.json").read_text())["weights"]
    assert weights == {name: part_fingerprint(part) for name, part in pulled.parts().items()}


def test_a_revision_is_opened_by_its_commit(hub, model, models):
    assert push(model) == 0
    first = hub.head(hub.folder / "repos" / NAME)
    publish(models / "baseline", NAME)
    assert [stage.name for stage in Pipeline.from_pretrained(NAME).stages] == ["baseline"]
    assert [stage.name for stage in Pipeline.from_pretrained(NAME, revision=first).stages] == ["coarse", "fine"]
    assert len(Pipeline.from_pretrained(f"{NAME}@{first}").stages) == 2
    with pytest.raises(InputError, match=r"neither a folder here nor .* \(it has no such revision\)"):
        Pipeline.from_pretrained(f"{NAME}@v9")


def test_a_push_replaces_the_model_in_one_commit(hub, model, models):
    assert push(model) == 0
    publish(models / "baseline", NAME)
    files = {"README.md", "baseline.safetensors", "config.json", "generation_config.json", "manifest.json"}
    assert on_the_hub(hub) == files | {"tokenizer.safetensors"}
    assert len([line for line in hub.requests if "/commit/" in line]) == 2
    hub.requests.clear()
    publish(models / "baseline", NAME)  # nothing new
    assert not [line for line in hub.requests if "/commit/" in line or line.startswith("PUT")]


# The card


def test_the_card_and_the_manifest_hold_what_is_known(model):
    card = (model / "README.md").read_text(encoding="utf-8")
    assert 'license: "mit"\nlibrary_name: ctf' in card
    assert "tags: [autoregressive, vq, masked]" in card
    assert "![samples](samples.png)" in card
    assert "**Data.** 20 birds" in card
    assert "| bits per token | 8.25 |" in card
    assert "| coarse | autoregressive |" in card
    manifest = json.loads((model / "manifest.json").read_text())
    assert manifest["training"] == {"coarse": {"last": {"step": 3}}}
    assert manifest["weights"].keys() == {"tokenizer", "coarse", "fine"}
    assert manifest["versions"]["torch"] == torch.__version__


def test_options_of_push_complete_the_card(hub, model, tmp_path):
    weights = {name: content for name, content in contents(model).items() if name.endswith(".safetensors")}
    (tmp_path / "result.json").write_text('{"metrics": {"FID": 3.5, "note": "x"}, "count": 7}')
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "sheet.png")
    options = ["--licence", "apache-2.0", "--metrics", f"[{tmp_path}/result.json]"]
    assert push(model, *options, "--sheet", f"{tmp_path}/sheet.png") == 0
    about = Pipeline.from_pretrained(NAME).about
    assert (about.data, about.licence, about.metrics) == (
        "20 birds",
        "apache-2.0",
        {"bits_per_token": 8.25, "FID": 3.5},
    )
    assert about.sheet == png_bytes(Image.open(tmp_path / "sheet.png"))
    assert weights.items() <= contents(model).items()


def test_a_folder_without_a_manifest_opens(model):
    (model / "manifest.json").unlink()
    (model / "samples.png").unlink()
    assert Pipeline.from_pretrained(model).about == About()
    complete_card(model, About(licence="mit"))
    assert Pipeline.from_pretrained(model).about == About(licence="mit")


@pytest.mark.parametrize(
    "content",
    ["[]", "{", '{"ctf": "model", "format": 9}', '{"ctf": "model", "format": 1, "data": 3}'],
)
def test_a_damaged_manifest_is_refused(model, content):
    (model / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json.*restore"):
        Pipeline.from_pretrained(model)


# Refused


def test_missing_rights_and_logins_are_refused(hub, model, monkeypatch, capsys):
    assert push(model, "--private") == 0
    monkeypatch.setenv("HF_TOKEN", hub.token_of["other"])
    assert push(model) == 2
    assert "owner/birds could not be published (the Hub says 403" in error(capsys)
    with pytest.raises(InputError, match="no such model, or only for others: check the name"):
        Pipeline.from_pretrained(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    assert push(model) == 2
    assert "(the Hub says 401, Invalid username or password.: log in with `hf auth login`" in error(capsys)
    with pytest.raises(InputError, match=r"nobody/nothing is neither .* only for others"):
        Pipeline.from_pretrained("nobody/nothing")


def test_a_gated_model_is_refused_with_a_hint(hub, model, monkeypatch):
    hub.create(NAME, private=False, gated=True)
    assert push(model) == 0
    monkeypatch.setenv("HF_TOKEN", hub.token_of["other"])
    with pytest.raises(InputError, match="it is gated: ask for access on its page"):
        Pipeline.from_pretrained(NAME)


def test_offline_only_the_cache_is_used(hub, model, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set, and it is not in the cache"):
        Pipeline.from_pretrained(NAME)
    assert push(model) == 2
    assert "could not be published (HF_HUB_OFFLINE is set" in error(capsys)


def test_a_repository_of_something_else_is_not_replaced(hub, model, capsys):
    bert = {"config.json": hub.store(b'{"model_type": "bert"}'), "model.bin": hub.store(b"weights")}
    hub.create(NAME, private=False)
    repo = hub.folder / "repos" / NAME
    for files in (bert, {"thesis.tex": hub.store(b"years")}):
        hub.commit(repo, hub.head(repo), files)
        assert push(model) == 2
        assert "is there already and is no model of ctf: choose another name" in error(capsys)
        assert on_the_hub(hub) == set(files)
        with pytest.raises(InputError, match="is not a model folder"):
            Pipeline.from_pretrained(NAME)


def test_a_public_model_does_not_become_private(hub, model, capsys):
    assert push(model) == 0
    assert push(model, "--private", "--licence", "other") == 2
    assert "is there already and public" in error(capsys)


def test_an_unknown_licence_is_refused(hub, model, capsys):
    assert push(model, "--licence", "free beer") == 2
    assert "license" in error(capsys)
    assert on_the_hub(hub) == set()


# Interrupted

FAULTS = {
    "the connection breaks in an upload": (Faults(upload_bytes=2000), "birds could not be published (Error while"),
    "the commit is refused": (Faults(commit=(500, "Internal Error")), "the Hub says 500, Internal Error"),
    "someone else was faster": (Faults(commit=(412, "A commit has happened since.")), "the Hub says 412, A commit"),
    "the connection breaks at the commit": (Faults(commit_is_lost=True), "what is there is whole, run it again"),
}


@pytest.mark.parametrize(("faults", "message"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("before", [False, True], ids=["the first", "over another"])
def test_an_interrupted_push_leaves_no_half_model(hub, model, models, capsys, faults, message, before):
    if before:
        publish(models / "baseline", NAME)
    old = on_the_hub(hub) or set()
    hub.faults = dataclasses.replace(faults)
    assert push(model) == 2
    assert message in error(capsys)
    assert on_the_hub(hub) == old
    if before:
        assert [stage.name for stage in Pipeline.from_pretrained(NAME).stages] == ["baseline"]
    hub.faults = Faults()
    assert push(model) == 0
    assert on_the_hub(hub) == set(contents(model))


def test_a_push_survives_one_broken_connection(hub, model):
    hub.faults = Faults(upload_bytes=2000, uploads=1)
    assert push(model) == 0
    assert on_the_hub(hub) == set(contents(model))


def test_an_interrupted_pull_leaves_no_half_model(hub, model, tmp_path):
    assert push(model) == 0
    hub.faults = Faults(download_bytes=AFTER_CONFIG)
    with pytest.raises(InputError, match=r"neither a folder here nor .* run it again, what is whole is kept"):
        Pipeline.from_pretrained(NAME)
    whole = contents(model)
    for snapshot in cached(tmp_path):
        assert contents(snapshot).items() <= whole.items()
        assert not [name for name in contents(snapshot) if name.endswith(".safetensors")]
    assert not list((tmp_path / "cache").rglob("*.incomplete"))
    hub.faults = Faults()
    Pipeline.from_pretrained(NAME)
    (snapshot,) = cached(tmp_path)
    assert whole.items() <= contents(snapshot).items()


@pytest.mark.parametrize("config", [None, '{"model_type": "llama"}'])
def test_of_a_repository_of_something_else_nothing_is_downloaded(hub, model, tmp_path, config):
    api = HfApi()
    api.create_repo(NAME)
    api.upload_file(path_or_fileobj=bytes(10_000_000), path_in_repo="pytorch_model.bin", repo_id=NAME)
    if config:
        api.upload_file(path_or_fileobj=config.encode(), path_in_repo="config.json", repo_id=NAME)
    with pytest.raises(InputError, match=f"{NAME} is not a model folder: its config.json is missing or says something"):
        Pipeline.from_pretrained(NAME)
    assert not list((tmp_path / "cache").rglob("pytorch_model.bin"))


def test_a_model_on_the_hub_is_described_and_only_it_has_revisions(hub, model):
    assert push(model) == 0
    assert describe(NAME) == describe(str(model))
    with pytest.raises(InputError, match="revision main: only models on the Hub have any, and emoji is no owner"):
        Pipeline.from_pretrained("emoji", revision="main")


def test_a_broken_download_resumes_where_it_broke(hub, model, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**16)  # what is written, and so kept, at a time
    assert push(model) == 0
    hub.faults = Faults(download_bytes=3 * 2**16 + 5)  # of every answer: the tokenizer is larger
    Pipeline.from_pretrained(NAME)
    assert any(line.endswith(f"/tokenizer.safetensors bytes={6 * 2**16}-") for line in hub.requests)
    (snapshot,) = cached(tmp_path)
    assert contents(model).items() <= contents(snapshot).items()


def test_half_a_model_in_the_cache_is_refused_without_the_hub(hub, model, monkeypatch):
    assert push(model) == 0
    hub.faults = Faults(download_bytes=AFTER_CONFIG)
    with pytest.raises(InputError):
        Pipeline.from_pretrained(NAME)
    disconnect(monkeypatch)
    with pytest.raises(InputError, match="only a part of it is in the cache, and the Hub cannot be reached"):
        Pipeline.from_pretrained(NAME)


def test_a_whole_model_in_the_cache_opens_without_the_hub(hub, model, monkeypatch, capsys):
    assert push(model) == 0
    Pipeline.from_pretrained(NAME)
    disconnect(monkeypatch)
    assert [stage.name for stage in Pipeline.from_pretrained(NAME).stages] == ["coarse", "fine"]
    assert push(model) == 2
    assert "could not be published ([Errno 111] Connection refused" in error(capsys)
