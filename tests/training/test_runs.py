import dataclasses
import warnings

import pytest
import torch
from tiny_runs import COARSE_MAP, make_loop, make_token_set

from ctf.codebook import CoarseMap
from ctf.errors import InputError
from ctf.files import read_json, write_json
from ctf.fingerprint import fingerprint
from ctf.sampling import Sampling
from ctf.stages import load_stage
from ctf.training import (
    BaselineTraining,
    CoarseTraining,
    FineTraining,
    LoopConfig,
    OptimizerConfig,
    StageTraining,
    TokenizerTraining,
    train_stage,
    train_tokenizer,
)


@pytest.fixture
def paths(tmp_path):
    """Tokens, and maps of 4 and 8 clusters, the latter parts of the former."""
    make_token_set(tmp_path / "tokens")
    paths = {name: str(tmp_path / name) for name in ("tokens", "map", "finer")}
    COARSE_MAP.save(paths["map"])
    CoarseMap(torch.arange(16) % 8, "test", 0, "none").save(paths["finer"])
    return paths


def test_the_seed_fixes_everything(paths, tmp_path):
    config = CoarseTraining(
        out=str(tmp_path / "a"),
        tokens=paths["tokens"],
        held_out=paths["tokens"],
        size="nano",
        coarse_map=paths["map"],
        sampling=Sampling(cfg_scale=1.5, temperature=0.9),
        optimizer=OptimizerConfig(learning_rate=3e-4),
        loop=make_loop(steps=2, seed=3),
    )
    metrics = train_stage(config)
    assert metrics["held_out/bits_per_token"] == pytest.approx(2, rel=0.05)

    torch.rand(7)  # random state outside the run does not matter
    assert train_stage(dataclasses.replace(config, out=str(tmp_path / "b"))) == metrics
    train_stage(dataclasses.replace(config, out=str(tmp_path / "c"), loop=make_loop(steps=2, seed=4)))
    saved = [load_stage(tmp_path / name / "model.safetensors") for name in "abc"]
    weights = [fingerprint(stage.transformer.head.weight) for stage in saved]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(
    ("training", "settings", "kind", "levels", "sampling"),
    [
        (BaselineTraining, {}, "autoregressive", (None, None), Sampling(cfg_scale=2.0)),
        (BaselineTraining, {"coarse_map": "map", "cluster_loss_weight": 1.0}, "autoregressive", (None, None), None),
        (CoarseTraining, {"coarse_map": "map"}, "autoregressive", (4, None), Sampling(cfg_scale=2.0, temperature=1.1)),
        (FineTraining, {"coarse_map": "map"}, "masked", (None, 4), Sampling(temperature=1.1)),
        (FineTraining, {"coarse_map": "map", "kind": "autoregressive"}, "autoregressive", (None, 4), None),
        (FineTraining, {"coarse_map": "map", "support": "full"}, "masked", (None, 4), None),
        (StageTraining, {"predicts": "finer", "given": "map", "kind": "masked"}, "masked", (8, 4), Sampling()),
        (StageTraining, {"sampling": Sampling(top_k=3)}, "autoregressive", (None, None), Sampling(top_k=3)),
    ],
)
def test_a_run_saves_kind_levels_and_sampling(paths, tmp_path, training, settings, kind, levels, sampling):
    settings = {key: paths.get(value, value) if isinstance(value, str) else value for key, value in settings.items()}
    out = str(tmp_path / "run")
    train_stage(training(out=out, tokens=paths["tokens"], size="nano", loop=make_loop(steps=1), **settings))
    stage = load_stage(tmp_path / "run" / "model.safetensors")
    assert stage.kind == kind
    assert tuple(level and level.num_coarse for level in (stage.predicts, stage.given)) == levels
    assert stage.support == settings.get("support", "cluster")
    assert sampling is None or stage.sampling == sampling
    assert stage.config.dropout == stage.config.class_dropout == 0.1


def test_classes_without_images_are_named(paths, tmp_path):
    index = read_json(tmp_path / "tokens" / "index.json")
    write_json(tmp_path / "tokens" / "index.json", index | {"class_names": [*index["class_names"], "bird"]})
    with pytest.warns(UserWarning, match="tokens has no image of the classes bird: do not sample them"):
        train_stage(
            CoarseTraining(
                str(tmp_path / "run"),
                tokens=paths["tokens"],
                size="nano",
                coarse_map=paths["map"],
                loop=make_loop(steps=1),
            )
        )


def test_held_out_tokens_that_are_trained_on_are_named(paths, tmp_path):
    tokens = {"tokens": paths["tokens"], "held_out": paths["tokens"]}
    with pytest.warns(UserWarning, match="tokens: held-out tokens are trained on too, so their figures say nothing"):
        train_stage(BaselineTraining(str(tmp_path / "run"), size="nano", loop=make_loop(steps=1), **tokens))


@pytest.mark.parametrize(
    ("split", "held_out_split", "shared"),
    [
        ("train", "test", False),
        ("not-held-out", "held-out", False),
        (None, "held-out", True),
        ("not-held-out", "test", True),
        ("train", "train", True),
        ("train", "Training", True),
        ("train", "held-out", True),
        (None, None, True),
    ],
)
def test_held_out_images_that_are_trained_on_are_named(tmp_path, split, held_out_split, shared):
    config = TokenizerTraining(
        str(tmp_path / "run"), "emoji", split=split, held_out="emoji", held_out_split=held_out_split,
        warmup_without_codebook=1, loop=LoopConfig(steps=1),
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as said, pytest.raises(InputError, match="never used"):
        train_tokenizer(config)
    assert ["trained on too" in str(each.message) for each in said] == [True] * shared
