import re

import pytest
from test_distributed import start
from tiny_runs import make_token_set

from ctf.run_folder import RUN_CHECKPOINTS, latest_checkpoint
from ctf.training.watch import blame


@pytest.fixture
def folder(tmp_path):
    make_token_set(tmp_path / "tokens")
    return tmp_path


def test_a_process_that_hangs_ends_the_run_with_its_number(folder):
    done = start("uneven_processes.py", folder, "hanging")
    assert done.returncode != 0
    found = re.search(r"^ctf: error: all others wait for process 1 of 2.*$", done.stderr, re.MULTILINE)
    assert "in step 3 (reading a batch), for 3 s and more" in found[0]


def test_a_process_that_dies_ends_the_run_with_its_number(folder):
    done = start("uneven_processes.py", folder, "killed")
    assert done.returncode != 0
    assert re.search(r"rank\s*: 1 .*\n.*exitcode\s*: -9", done.stderr)


def test_all_stop_with_a_checkpoint_when_one_is_terminated(folder):
    """After the same step, and before torchrun ends them."""
    done = start("uneven_processes.py", folder, "terminated")
    assert done.returncode != 0
    checkpoint = latest_checkpoint(folder / "terminated")
    assert checkpoint == folder / "terminated" / RUN_CHECKPOINTS / "step-00000004"
    assert f"Stopped after step 4; continue with --loop.resume true ({checkpoint})" in done.stderr


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ([(7, 1, 9), (7, 0, 9), (7, 1, 9)], "all others wait for process 1 of 3, in step 7 (reading a batch)"),
        ([(7, 1, 9), (6, 3, 9), (6, 3, 9)], "all others wait for processes 1, 2 of 3, in step 6 (evaluating)"),
        ([(7, 1, 9), (7, 1, 5), (7, 0, 9)], "no answer from process 1 of 3, in step 7 (training)"),
        ([(7, 2, 9), (7, 2, 9), (7, 2, 9)], "no progress of processes 0, 1, 2 of 3, in step 7 (saving)"),
    ],
)
def test_who_is_blamed(now, said):
    before = [(0, 0, 5)] * 3
    assert blame(before, now, 3).startswith(said)
