import os

import pytest

from ctf.errors import InputError
from ctf.torchrun import rank_and_world, wait_until


def test_rank_and_world(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert rank_and_world() == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert rank_and_world() == (3, 8)


def test_it_waits_until_the_others_are_done(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    answers = iter([False, False, True])
    wait_until(lambda: next(answers), os.getppid())
    assert list(answers) == []


def test_a_process_whose_torchrun_was_killed_ends(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(InputError, match="torchrun was ended: run the same command again"):
        wait_until(lambda: False, launcher=os.getpid())
