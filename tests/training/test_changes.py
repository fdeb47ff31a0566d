"""Settings that a resumed run may change, their record, and finished runs."""

import dataclasses
import json
import warnings
from dataclasses import dataclass, field

import pytest
from same import contents
from tiny_runs import interrupted, make_loop, make_token_objective, make_token_set

from ctf.errors import InputError
from ctf.files import read_json, read_json_lines, write_json
from ctf.model_folder import describe, open_stage
from ctf.run_folder import checkpoint_path
from ctf.training.changes import changed_settings
from ctf.training.config import LoopConfig, OptimizerConfig
from ctf.training.loop import train


@dataclass(frozen=True)
class Settings:
    loop: LoopConfig
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-3))
    dropout: float = 0.0
    coarse_map: str = "here"


def start(tokens, out, optimizer=None, **settings):
    """Train for four steps, or as `settings` say: fields of `Settings`, or of its loop."""
    fields = {name: settings.pop(name) for name in ("dropout", "coarse_map") if name in settings}
    optimizer = optimizer or OptimizerConfig(learning_rate=1e-3)
    made = Settings(make_loop(**{"steps": 4, **settings}), optimizer, **fields)
    return train(make_token_objective(tokens, held_out=tokens), out, made.optimizer, made.loop, made)


@pytest.fixture
def finished(tokens, tmp_path):
    start(tokens, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("changed", "trained"),
    [
        ({"batch_size": 4}, "loop.batch_size 8, not 4"),
        ({"seed": 7}, "loop.seed 0, not 7"),
        ({"ema": 0.5}, "loop.ema 0.0, not 0.5"),
        ({"dropout": 0.1}, "dropout 0.0, not 0.1"),
        ({"optimizer": OptimizerConfig(1e-3, name="muon")}, "optimizer.name adamw, not muon"),
        ({"batch_size": 4, "seed": 7, "steps": 2}, "loop.batch_size 8, not 4, loop.seed 0, not 7"),
    ],
)
def test_changed_fixed_settings_are_refused(changed, trained, tokens, finished):
    before = contents(finished)
    for steps in (2, 4, 8):  # fewer than are done, as many, and more
        with pytest.raises(
            InputError, match=f"was trained with {trained}: resume with the settings in its config.json"
        ):
            start(tokens, finished, resume=True, **{"steps": steps, **changed})
    assert contents(finished) == before


@pytest.mark.parametrize("source", [None, "theirs"])
def test_a_run_that_goes_on_has_the_start_that_it_had(source, tmp_path):
    """Other weights would be named in the log and on the card, but not taken: those of the checkpoint are."""
    started = {"started": {"source": source, "taken": []}} if source else {}
    write_json(tmp_path / "config.json", {"loop": {}, "start_from": None, **started})  # resumed once without it
    assert changed_settings(tmp_path, {"start_from": None, "loop": {}}) == {}
    assert changed_settings(tmp_path, {"start_from": source, "loop": {}}) == {}
    with pytest.raises(InputError, match=f"was trained with start_from {source}, not others: resume with the settings"):
        changed_settings(tmp_path, {"start_from": "others", "loop": {}})


@pytest.mark.parametrize("steps", [2, 4])
def test_a_finished_run_has_nothing_left_to_train(steps, tokens, finished, capsys):
    before, metrics = contents(finished), start(tokens, finished, steps=4, resume=True)
    again = start(tokens, finished, OptimizerConfig(learning_rate=5e-3), steps=steps, resume=True)
    assert again == metrics
    assert again.keys() == {"held_out/loss", "held_out/bits_per_token", "held_out/accuracy"}
    assert contents(finished) == before
    assert f"has done 4 steps, and {steps} were asked for: nothing is left to train" in capsys.readouterr().err


def test_a_finished_run_goes_on_for_more_steps(tokens, finished, capsys):
    shorter = open_stage(finished).state_dict()
    slower = OptimizerConfig(learning_rate=5e-4)
    start(tokens, finished, slower, steps=8, resume=True, device="auto", coarse_map="there")
    assert "goes on after step 4 with" in capsys.readouterr().err
    config = read_json(finished / "config.json")
    assert (config["loop"]["steps"], config["optimizer"]["learning_rate"], config["coarse_map"]) == (8, 5e-4, "there")
    change = {
        "step": 4,
        "loop.steps": [4, 8],
        "loop.device": ["cpu", "auto"],
        "optimizer.learning_rate": [1e-3, 5e-4],
        "coarse_map": ["here", "there"],
    }
    assert read_json_lines(finished / "changes.jsonl") == [change]
    assert describe(str(finished))["changes"] == [change]
    lines = [line for line in read_json_lines(finished / "log.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["epoch"] for line in lines] == [8 * step / len(tokens) for step in range(1, 9)]
    kept = open_stage(finished / "milestones" / "step-00000004.safetensors").state_dict()
    assert all((kept[name] == shorter[name]).all() for name in shorter)


def test_a_milestone_that_a_run_has_passed_is_named(tokens, finished):
    with pytest.warns(UserWarning, match="is beyond step 2, whose weights were not kept"):
        start(tokens, finished, steps=6, resume=True, milestones=(2, 4, 5))
    assert {path.name[:13] for path in (finished / "milestones").iterdir()} == {"step-00000004", "step-00000005"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start(tokens, finished, steps=7, resume=True, milestones=(4, 5))


def test_a_longer_run_has_no_model_before_its_end(tokens, finished):
    """Else its settings and log would describe the weights of the shorter run."""
    objective, settings = interrupted(make_token_objective(tokens), 4), Settings(make_loop(steps=8, resume=True))
    with pytest.raises(KeyboardInterrupt):
        train(objective, finished, settings.optimizer, settings.loop, settings)
    with pytest.raises(InputError, match="is a run that has not finished"):
        open_stage(finished)


def test_an_unfinished_run_needs_at_least_the_steps_done(tokens, finished):
    (finished / "model.safetensors").unlink()
    before = contents(finished)
    with pytest.raises(InputError, match=r"has done 4 steps: loop\.steps, or epochs, must be at least that, not 3"):
        start(tokens, finished, steps=3, resume=True)
    assert contents(finished) == before


def test_a_model_without_a_checkpoint_is_refused(tokens, finished):
    for path in (finished / "checkpoints").iterdir():
        path.unlink()
    before = contents(finished)
    with pytest.raises(InputError, match="holds a model, but no checkpoint to continue from"):
        start(tokens, finished, steps=8, resume=True)
    assert contents(finished) == before


def test_resuming_with_other_images_is_refused(finished, tmp_path):
    with pytest.raises(InputError, match="is of a run over 16 images, and here are 20"):
        start(make_token_set(tmp_path / "more", images=20), finished, steps=8, resume=True)


def test_changes_are_recorded_at_the_restored_step(tokens, tmp_path):
    often = {"checkpoint_every": 1, "keep_checkpoints": 9}
    start(tokens, tmp_path, **often)
    start(tokens, tmp_path, steps=5, resume=True, **often)
    (tmp_path / "model.safetensors").unlink()
    for step in (3, 4, 5):
        checkpoint_path(tmp_path, step).unlink()
    start(tokens, tmp_path, steps=5, resume=True, **often)
    assert read_json_lines(tmp_path / "changes.jsonl") == [{"step": 2, "loop.steps": [4, 5]}]


def test_settings_of_other_versions_are_not_compared(tokens, finished):
    config = read_json(finished / "config.json")
    del config["loop"]["ema"]
    config["colours"] = 3
    (finished / "config.json").write_text(json.dumps(config))
    start(tokens, finished, steps=5, resume=True)
    assert dataclasses.asdict(Settings(make_loop())).keys() == read_json(finished / "config.json").keys()
