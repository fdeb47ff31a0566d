import re

import pytest
from test_distributed import start
from tiny_runs import make_token_set

from ctf.run_folder import RUN_CHECKPOINTS, latest_checkpoint
from ctf.training.watch import blame


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All runs of `uneven_processes.py`, which have ended: how, is in `hanging.txt` and so on."""
    folder = tmp_path_factory.mktemp("uneven")
    make_token_set(folder / "tokens")
    (folder / "stderr.txt").write_text(start("uneven_processes.py", folder))
    return folder


def test_a_hanging_process_ends_the_run_and_is_named(folder):
    found = re.search(r"^ctf: error: all others wait for process 1 of 2.*$", output(folder, "stderr"), re.MULTILINE)
    assert "in step 3 (reading a batch), for 3 s and more" in found[0]
    assert re.search(r"rank\s*: 0 .*\n.*exitcode\s*: 1", output(folder, "hanging"))


def test_a_process_that_dies_ends_the_run(folder):
    assert "FAILED" in output(folder, "killed")


def test_all_stop_with_a_checkpoint_when_one_is_terminated(folder):
    """Both stop after the same step, before torchrun ends them."""
    assert re.search(r"exitcode\s*: 130", output(folder, "terminated"))
    checkpoint = latest_checkpoint(folder / "terminated")
    assert checkpoint == folder / "terminated" / RUN_CHECKPOINTS / "step-00000004"
    assert f"Stopped after step 4; continue with --loop.resume true ({checkpoint})" in output(folder, "stderr")


def output(folder, name):
    return (folder / f"{name}.txt").read_text()


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ([(7, 1, 9), (7, 0, 9), (7, 1, 9)], "all others wait for process 1 of 3, in step 7 (reading a batch)"),
        ([(7, 1, 9), (6, 3, 9), (6, 3, 9)], "all others wait for processes 1, 2 of 3, in step 6 (evaluating)"),
        ([(7, 1, 9), (7, 1, 5), (7, 0, 9)], "no answer from process 1 of 3, in step 7 (training)"),
        ([(7, 2, 9), (7, 2, 9), (7, 2, 9)], "no progress of processes 0, 1, 2 of 3, in step 7 (saving)"),
    ],
)
def test_blame_names_the_late_process(now, message):
    before = [(0, 0, 5)] * 3
    assert blame(before, now, 3).startswith(message)
