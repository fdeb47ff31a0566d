"""A user's own type of stage, sampler and filter: the code in docs/stages.md."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from same import equal

from ctf.cli import main
from ctf.codebook import CoarseMap
from ctf.errors import InputError
from ctf.files import read_json
from ctf.layout import Layout
from ctf.model_folder import Pipeline, assemble, describe
from ctf.models import Compute
from ctf.plugins import _import, import_plugins, load_object, source_fingerprint
from ctf.sampling import Random, Sampling
from ctf.stages import KINDS, Autoregressive, load_stage, new_stage
from ctf.stages.cost import drawing_work
from ctf.stages.registry import find_kind
from ctf.tokens import write_token_set
from ctf.training import LoopConfig, OptimizerConfig, train
from ctf.training.token_objective import TokenObjective

DOCS = (Path(__file__).parents[1] / "docs" / "stages.md").read_text()
FILES = {name: text for text, name in re.findall(r"^```python\n(# (my_\w+\.py)\n.*?)^```$", DOCS, re.M | re.S)}
TRUTH, NAMES = np.array([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]]), ["up", "down"]
OWN = {"sampler": "my_sampler.py:GreedyAtTheEnd", "filter": "my_filter.py:min_p"}


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """The three files of the page in the current folder. What they register is removed after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ctf.stages.registry.KINDS", dict(KINDS))
    import_plugins.cache_clear()
    for name, text in FILES.items():
        assert len(text.splitlines()) < 60
        Path(name).write_text(text)


@pytest.fixture
def stage():
    return new_stage(
        "my_kind.py:Independent", "any", name="only", layout=Layout((2, 3)), num_classes=2, codebook_size=24
    )


def test_an_own_kind_as_stage_2_chooses_within_the_clusters():
    clusters = CoarseMap(torch.tensor([0, 0, 0, 1, 1, 2] * 4), "test", 0, "none")
    facts = {"layout": Layout((2, 3)), "num_classes": 2, "codebook_size": 24, "spread": 1.0}
    stage = new_stage("my_kind.py:Independent", "any", name="fine", given=clusters, **facts)
    tokens, labels = torch.tensor(TRUTH), torch.arange(2)
    same = clusters.fine_to_coarse[tokens][..., None] == clusters.fine_to_coarse  # (B, N, 24)
    expected = stage.table[labels].masked_fill(~same, -torch.inf).log_softmax(-1).gather(-1, tokens[..., None])
    torch.testing.assert_close(stage.log_prob(tokens, labels), expected.squeeze(-1))
    given = clusters.fine_to_coarse[tokens]
    assert torch.equal(clusters.fine_to_coarse[stage.generate(labels, Random([0, 1]), given=given)], given)


def test_an_own_kind_trains_samples_completes_and_is_saved(stage, make_tokenizer, monkeypatch):
    tokens = write_token_set("tokens", TRUTH, np.arange(2), 24, (2, 3), NAMES)
    loop = LoopConfig(batch_size=2, steps=60, log_every=9, device="cpu", precision="float32")
    metrics = train(TokenObjective(stage, tokens, tokens), Path("run"), OptimizerConfig(0.3, 0.01), loop, loop)
    assert metrics["held_out/bits_per_token"] < 0.1
    pipeline = Pipeline(make_tokenizer(), NAMES, [stage])
    greedy = {"temperature": 0.0, "cfg_scale": 2.0}
    assert pipeline.generate_tokens(torch.arange(2), [0, 1], **greedy).tolist() == TRUTH.tolist()
    assert stage.log_prob(torch.tensor(TRUTH), torch.arange(2)).exp().min() > 0.9
    assert pipeline.memory(100) > pipeline.memory(1) > 0
    (work,) = drawing_work(stage, 2, Sampling(), Compute("float32"))
    assert work.bytes == stage.table.nbytes
    known = torch.tensor([9, -1, -1, -1, -1, 8])
    completed = pipeline.generate_tokens(torch.arange(2), [0, 1], known, **greedy)
    assert completed.tolist() == [[9, 2, 3, 4, 5, 8], [9, 5, 4, 3, 2, 8]]
    *_, last = pipeline.stream([1], seed=3)
    pipeline.save_pretrained("model")
    monkeypatch.setattr("ctf.stages.registry.KINDS", {})
    with pytest.raises(
        InputError, match=r"kind 'independent' of stage does not exist: .* \$CTF_PLUGINS names the file"
    ):
        Pipeline.from_pretrained("model")
    monkeypatch.setenv("CTF_PLUGINS", "my_kind.py")
    for remembered in (import_plugins, _import):  # as in a new process
        remembered.cache_clear()
    assert Pipeline.from_pretrained("model")([1], seed=3)[0].tobytes() == last.images[0].tobytes()
    assert describe("model")["stages"][0]["kind_of_stage"] == "independent"


def test_own_code_may_lie_in_a_folder_with_a_space():
    Path("my kinds").mkdir()
    Path("my_kind.py").rename("my kinds/my kind.py")
    Path("my kinds/settings.yaml").write_text("kind: my kinds/my kind.py:Independent\nspread: 3")
    write_token_set("tokens", TRUTH, np.arange(2), 24, (2, 3), NAMES)
    shared = ["--tokens", "tokens", "--loop.steps", "1", "--loop.batch_size", "2"]
    assert main(["train", "baseline", "--kind", "my kinds/my kind.py:Independent", *shared, "--out", "run"]) == 0
    assert main(["train", "baseline", "--config=my kinds/settings.yaml", *shared, "--out", "second"]) == 0
    assert load_stage("second/model.safetensors").config.spread == 3


def test_what_is_no_kind_no_sampler_and_no_filter(stage):
    Path("wrong.py").write_text(
        "from ctf.stages import Autoregressive\n\n\nclass Same(Autoregressive):\n    pass\n\n\n"
        "def function(logits):\n    return logits[..., :2]\n"
    )
    with pytest.raises(InputError, match=r"wrong\.py:Same is no kind of stage: .* with a `kind` of its own"):
        find_kind("wrong.py:Same")
    assert find_kind("autoregressive") is Autoregressive
    with pytest.raises(InputError, match=r"wrong\.py:function is no kind of stage: name a subclass of"):
        new_stage("wrong.py:function", "any", name="only", layout=Layout((2, 3)), num_classes=2, codebook_size=24)
    arguments = torch.arange(2), Random([0, 1])
    with pytest.raises(InputError, match=r"sampler wrong\.py:function cannot be made \(.*: name a class that needs no"):
        stage.generate(*arguments, Sampling(sampler="wrong.py:function"))
    for temperature in 0.0, 1.0:
        with pytest.raises(InputError, match=r"filter wrong\.py:function must return logits of shape \(2, 6, 24\)"):
            stage.generate(*arguments, Sampling(filter="wrong.py:function", temperature=temperature))


def test_a_filter_counts_at_temperature_0_too(stage):
    Path("odd.py").write_text("def ban_even(logits):\n    logits[..., ::2] = -float('inf')\n    return logits\n")
    drawn = stage.generate(torch.arange(2), Random([0, 1]), Sampling(filter="odd.py:ban_even", temperature=0.0))
    assert (drawn % 2 == 1).all()


def test_the_command_takes_a_kinds_own_settings(make_tokenizer, capsys):
    write_token_set("tokens", TRUTH, np.arange(2), 24, (2, 3), NAMES)
    shared = "--tokens tokens --loop.steps 1 --loop.batch_size 2"
    assert main(f"train baseline --kind my_kind.py:Independent --spread 2 {shared} --out run".split()) == 0
    trained = load_stage("run/model.safetensors")
    assert trained.config.spread == 2
    assert trained.table.std() > 1
    Path("settings.yaml").write_text("kind: my_kind.py:Independent\nspread: 3")
    assert main(f"train baseline --config settings.yaml {shared} --out second".split()) == 0
    assert load_stage("second/model.safetensors").config.spread == 3
    assert read_json("second/config.json")["spread"] == 3
    assert main(["train", "baseline", "--config", "second/config.json", "--out", "third"]) == 0
    assert load_stage("third/model.safetensors").config.spread == 3
    make_tokenizer().save("tokenizer.safetensors")
    assembled = assemble("model", "tokenizer.safetensors", ["third"], "tokens")
    assert assembled.about.training["baseline"]["settings"]["spread"] == 3
    again = "train baseline --config second/config.json --loop.resume true --loop.steps 2 --spread 4"
    assert main(again.split()) == 2
    assert "was trained with spread 3.0, not 4.0" in capsys.readouterr().err


def test_the_command_refuses_settings_of_another_kind(capsys):
    for option in ("--spread 2", "--rounds any"):
        assert main(f"train baseline --tokens tokens --out run {option}".split()) == 2
        assert option.split()[0].strip("-") in capsys.readouterr().err
    Path("size.py").write_text(
        Path("my_kind.py").read_text().replace("    spread: float = 0.0", "    size: float = 0.0")
    )
    assert main(["train", "baseline", "--kind", "size.py:Independent", "--tokens", "tokens", "--out", "run"]) == 2
    assert "TableSettings has a setting size, which every training has: rename it" in capsys.readouterr().err


def test_own_samplers_and_filters_decide_what_is_sampled(make_stage):
    stage = make_stage("any_order", codebook_size=24)
    labels, random = torch.tensor([0, 1, 2]), Random([3, 4, 5])
    tokens = stage.generate(labels, random, Sampling(steps=2, order="raster", **OWN))
    first, second = stage.plan(Sampling(steps=2, order="raster")).groups
    plain = stage.generate(labels, random, Sampling(steps=2, order="raster", filter=OWN["filter"]))
    assert torch.equal(tokens[:, first.at], plain[:, first.at])
    known = tokens.index_fill(1, torch.arange(6)[second.at], -1)
    greedy = stage.generate(labels, random, Sampling(steps=2, order="raster", temperature=0.0), known=known)
    assert torch.equal(tokens, greedy)
    logits = stage.logits(tokens, labels, stage.plan(Sampling(steps=2, order="raster"))).log_softmax(-1)
    drawn = logits.gather(2, tokens[..., None]).squeeze(2)
    assert (drawn >= logits.amax(-1) - np.log(10) - 1e-5)[:, first.at].all()
    command = f"sample --labels 3 --num 1 --out samples --fine_sampler {OWN['sampler']} --filter {OWN['filter']}"
    assert main(command.split()) == 0
    assert "my_sampler.py:GreedyAtTheEnd " in Path("samples/manifest.json").read_text()  # with its fingerprint


def test_stage_files_never_name_code(make_stage):
    stage = make_stage(sampling=Sampling(**OWN, temperature=0.5))
    stage.save("stage.safetensors")
    assert load_stage("stage.safetensors").sampling == Sampling(temperature=0.5)
    with pytest.raises(InputError, match=r"the file names code to run \(os:system\)"):
        Sampling.of_file({"filter": "os:system"})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("step.logits.argmax(-1)[:, :1]", "must return int64 labels of shape"),
        ("step.logits.argmax(-1) + 1000", "returned labels outside −1 … 23"),
        ("step.logits.argmax(-1) * 0 - 1", "must settle 6 unknown positions"),
    ],
)
@pytest.mark.parametrize("base", ["", "Confidence"])
def test_a_sampler_with_wrong_results_is_refused(make_stage, base, body, message):
    Path("wrong.py").write_text(
        f"from ctf.sampling.samplers import Confidence\n\n\nclass Wrong({base}):\n    def __call__(self, step):\n"
        f"        return {body}\n"
    )
    with pytest.raises(InputError, match=message):
        make_stage("masked").generate(torch.tensor([0]), Random([0]), Sampling(sampler="wrong.py:Wrong"))


def test_unknown_samplers_are_refused(make_stage):
    for name, message in (
        ("typical", "sampler 'typical' does not exist: choose one of independent"),
        ("no.py:A", "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            make_stage("masked").generate(torch.tensor([0]), Random([0]), Sampling(sampler=name))


def test_own_samplers_and_filters_complete_a_picture():
    pipe, picture = Pipeline.from_pretrained("emoji"), Image.new("RGB", (64, 64), "red")
    mask = np.zeros((64, 64), dtype=bool)
    mask[32:] = True
    found = pipe.complete(picture, mask, [3], **OWN)
    assert equal(found, pipe([3], known=pipe.known_tokens(picture, mask), **OWN))
    assert not equal(found, pipe.complete(picture, mask, [3]))


def test_a_file_of_own_code_may_import_another_beside_it(monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    Path("own").mkdir()
    Path("own/beside_it.py").write_text("def f(logits): return logits\n")
    Path("own/mine.py").write_text("from beside_it import f\n")
    assert load_object("own/mine.py:f").__module__ == "beside_it"


def test_a_file_of_own_code_runs_again_only_if_it_changes():
    """An unchanged file was not run again if its function is still the same object."""
    Path("counting.py").write_text("def f(logits): return logits\n")
    first = load_object("counting.py:f")
    source_fingerprint("counting.py:f")
    assert load_object("counting.py:f") is first
    Path("counting.py").write_text("def f(logits): return -logits\n")
    os.utime("counting.py", ns=(1, 1))
    assert load_object("counting.py:f") is not first
