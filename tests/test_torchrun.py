import os

import pytest

from ctf.errors import InputError
from ctf.torchrun import rank_and_world, wait_until


def test_rank_and_world_size_are_torchruns(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert rank_and_world() == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert rank_and_world() == (3, 8)


def test_waiting_ends_when_the_work_is_done(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    answers = iter([False, False, True])
    wait_until(lambda: next(answers), os.getppid())
    assert list(answers) == []


def test_waiting_ends_when_torchrun_was_killed(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(InputError, match="torchrun was ended: run the same command again"):
        wait_until(lambda: False, launcher=os.getpid())
