"""benchmarks/photographs_gpu.sh: its commands, what it leaves behind, how it fails; and its part in Python."""

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ctf import Pipeline
from ctf.plugins import import_source
from ctf.tokens.token_set import TokenSet
from ctf.tokens.writer import write_token_set

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
#: In place of `python3`: a command of ctf is read by its own parser, and leaves the files that the script needs.
STAND_IN = f"""#!{sys.executable}
import contextlib, io, json, os, sys
from pathlib import Path

def option(name):
    return Path(words[words.index(name) + 1])

words = sys.argv[1:]
if words[:2] == ["-m", "ctf.cli"]:
    from ctf.cli import main
    with contextlib.redirect_stdout(io.StringIO()):
        status = main([*words[2:], "--print_config"])
    print(*words[2:])
    if words[2] == "bench":
        seconds = {{"baseline": 3.0, "coarse": 1.0, "fine-cluster": 2.0}}
        rows = [{{"size": "nano", "stage": stage, "step_seconds": s}} for stage, s in seconds.items()]
        option("--out").write_text(json.dumps({{"rows": rows, "settings": {{"batch_size": 4}}}}, indent=1))
    elif words[2] != "cluster":
        option("--out").mkdir()
        (option("--out") / "log.jsonl").write_text('{{"step": 1}}\\n{{"step": 2}}\\n')
        (option("--out") / "result.json").write_text('{{\\n"bits_per_token": 1}}')
        (option("--out") / "weights").write_bytes(bytes(17_000_000))
    sys.exit(status)
if words[1:2] == ["samples"]:
    sys.exit()
os.execv({sys.executable!r}, [{sys.executable!r}, *words])
"""


@pytest.fixture(scope="module")
def part():
    return import_source(str(BENCHMARKS / "photographs_gpu.py"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens") / "train"
    values = torch.arange(40 * 256).reshape(40, 256)
    write_token_set(folder, values, torch.arange(40) % 5, 16_384, class_names=[*"abcde"])
    return folder


def run(tokens, out, seconds, **environment):
    command = ["bash", BENCHMARKS / "photographs_gpu.sh", tokens, tokens, str(seconds), "rehearse"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OUT": str(out), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_every_command_is_one_and_leaves_files_of_at_most_16_mb(tokens, tmp_path):
    (tmp_path / "python3").write_text(STAND_IN)
    (tmp_path / "python3").chmod(0o755)
    out = tmp_path / "out"
    done = run(tokens, out, 500, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    size = next(line for line in lines if "steps" in line)
    limits = {line["part"]: line["limit"] for line in lines if "limit" in line}
    for stage, seconds in {"coarse": 1, "fine": 2, "baseline": 3}.items():
        assert limits[f"train {stage}"] == pytest.approx(60 + 1.3 * seconds * size["steps"], abs=1)
        assert [line["step"] for line in lines if line["part"] == stage] == [1, 2]
    assert [line["bits_per_token"] for line in lines if line["part"] == "likelihood" and "limit" not in line] == [1]
    assert max(path.stat().st_size for path in out.iterdir()) <= 16_000_000
    for name in ("ctf", "baseline"):
        joined = tmp_path / name
        joined.write_bytes(b"".join(piece.read_bytes() for piece in sorted(out.glob(f"{name}.tar.*"))))
        with tarfile.open(joined) as archive:
            assert archive.getmember(f"{name}/weights").size == 17_000_000


def test_what_is_out_of_time_ends_the_script_with_a_line(tokens, tmp_path):
    done = run(tokens, tmp_path / "out", 1)
    assert done.returncode == 1
    assert re.search("^(tokens|clusters|rate) failed with status 124 after", done.stderr.splitlines()[-1])
    assert json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])["status"] == 124


def test_nothing_is_overwritten(tokens, tmp_path):
    (tmp_path / "results").touch()
    done = run(tokens, tmp_path, 100)
    assert (done.returncode, done.stderr) == (2, f"{tmp_path} is not empty: choose another OUT\n")


@pytest.mark.parametrize(("passes", "size", "steps"), [(2, "L", 20), (2.1, "S", 120), (99, "S", 120)])
def test_the_largest_size_that_sees_the_images_often_enough(part, tokens, tmp_path, passes, size, steps):
    """40 images in batches of 4: ten steps a pass. In 60 seconds L takes 20 steps and S takes 120."""
    seconds = {("L", "baseline"): 2.0, ("L", "coarse"): 1.0, ("S", "baseline"): 0.375, ("S", "coarse"): 0.125}
    rows = [{"size": size, "stage": stage, "step_seconds": each} for (size, stage), each in seconds.items()]
    (tmp_path / "rate.json").write_text(json.dumps({"rows": rows, "settings": {"batch_size": 4}}))
    part.choose(tmp_path / "rate.json", str(tokens), "60", str(passes), tmp_path / "size.json")
    chosen = json.loads((tmp_path / "size.json").read_text())
    assert (chosen["size"], chosen["steps"]) == (size, steps)


def test_held_out_images_are_spread_evenly(part, tokens, tmp_path):
    part.held_out(tokens, tmp_path / "few", "4")
    few = TokenSet.open(tmp_path / "few")
    assert few.gather(range(4))[:, 0].tolist() == [256 * image for image in (0, 13, 26, 39)]
    assert (few.labels.tolist(), few.class_names) == ([0, 3, 1, 4], [*"abcde"])


def test_tokens_of_samples_are_those_of_the_images(part, tmp_path):
    part.samples(tmp_path / "samples.npz", "3", "cpu", "emoji")
    model, made = Pipeline.from_pretrained("emoji", "cpu"), np.load(tmp_path / "samples.npz")
    assert (made["emoji"].dtype, made["labels"].tolist()) == (np.uint16, [0, 1, 2])
    decoded = model.decode(torch.from_numpy(made["emoji"].astype(np.int64)))
    assert np.array_equal(decoded, np.stack([np.asarray(image) for image in model([0, 1, 2], seed=0)]))
