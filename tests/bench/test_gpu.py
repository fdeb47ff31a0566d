"""`make gpu`: what it says where there is no GPU, how a part ends, and the page."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ctf.plugins import import_source

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    return import_source(str(SCRIPT))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_and_exit_code_2():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "make gpu: there is no GPU here: run it on a machine with one\n"


def test_parts_end_failed_done_or_out_of_time(gpu, tmp_path):
    log = tmp_path / "log"
    outcomes = [
        gpu.run_part(gpu.Part("a", command, limit), log)
        for command, limit in (("timeit --no-such-option", 60), ("platform", 60), ("http.server 0", 1))
    ]
    assert [one.outcome for one in outcomes] == ["failed", "done", "out of time"]
    assert outcomes[1].last_line == platform.platform()
    assert 1 <= outcomes[2].seconds < 20


def test_a_benchmark_out_of_time_keeps_its_rows(gpu, tmp_path, monkeypatch):
    """A stand-in for the command that writes a row and goes on for ever."""
    (tmp_path / "slow.py").write_text(
        "import json, sys, time\n"
        "open(sys.argv[-1], 'w').write(json.dumps({'rows': [{'size': 'B'}]}))\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(gpu.MODULES, "ctf", "slow")
    outcome = gpu.run_part(gpu.Part("a", "ctf bench", 2), tmp_path / "log")
    assert (outcome.outcome, outcome.rows) == ("out of time", [{"size": "B"}])


def test_the_page_has_every_row_and_what_was_not_measured(gpu):
    speed = {"images_per_second": 81.234, "seconds": {"decoding": 0.5, "all": 2.0}, "roofline_seconds": {"all": 0.5}}
    row = {"size": "L", "kind": "autoregressive", "batch_size": 64, "first_call_seconds": 12.0, **speed}
    trained = {"size": "L", "stage": "coarse", "kind": "autoregressive", "tokens_per_second": 1e6, "utilisation": 0.431}
    outcomes = [
        gpu.Outcome(gpu.PARTS[0], 160.0, "out of time", "", [row]),
        gpu.Outcome(gpu.PARTS[1], 61.0, "failed", "2 failed | 3 passed", []),
        gpu.Outcome(gpu.PARTS[2], 50.0, "done", "Source: a paper", [trained]),
    ]
    text = gpu.page("NVIDIA H200", "2026-11-25", outcomes)
    assert "| tests | 61 | 150 | failed | 2 failed · 3 passed |" in text
    assert (
        "| sampling: L, autoregressive | 81.2 images/s, 25% of the roofline, decoder 128 images/s, first call 12 s |"
        in text
    )
    assert "| sampling: XL, autoregressive | not measured | 100 images/s |" in text
    assert "| training | 50 | 75 | done |  |" in text
    assert "| training: L, coarse | 1,000,000 tokens/s, MFU 43% | MFU 45% |" in text
    assert all(f"    {part.command}\n" in text for part in gpu.PARTS[:3])


def test_all_parts_fit_into_ten_minutes_and_are_commands(gpu):
    """Each benchmark's settings, and those of its rehearsal, are read by the command itself."""
    from ctf.cli import main

    assert sum(part.limit for part in gpu.PARTS) < 600
    commands = [part for part in gpu.PARTS if part.command.startswith("ctf ")]
    assert len(commands) == len(gpu.PARTS) - 1  # beside the tests
    for part in commands:
        for command in (part.command, f"{part.command} {part.rehearsal}"):
            assert main([*gpu.shlex.split(command)[1:], "--print_config"]) == 0
