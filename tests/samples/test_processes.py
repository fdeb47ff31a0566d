import os
import subprocess
import sys
from pathlib import Path

import pytest

from ctf.model_folder import Pipeline
from ctf.samples import SampleSet, sample_to

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # torchrun's own choice for several processes on a CPU
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


@pytest.fixture
def model(make_pipeline, tmp_path):
    make_pipeline("cluster").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def python(*arguments):
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_process_of_two_threads_and_two_of_one_write_the_same_bytes(model, tmp_path, two_threads):
    sample_to(Pipeline.from_pretrained(model), tmp_path / "alone.npz", num=200, batch_size=25)
    options = ["--model", model, "--device", "cpu", "--num", 200, "--batch_size", 25, "--out", tmp_path / "shared.npz"]
    said = python(*TORCHRUN, 2, "-m", "--", "ctf.cli", "sample", *options)
    assert (tmp_path / "alone.npz").read_bytes() == (tmp_path / "shared.npz").read_bytes()
    assert said.count("\n") == 1
    assert SampleSet.open(tmp_path / "shared.npz").manifest.processes == 2
    assert not (tmp_path / "shared.npz.parts").exists()


def test_a_kill_at_any_moment_and_another_try_give_the_same_bytes(model, tmp_path):
    python(Path(__file__).parents[1] / "killed_processes.py", "samples", model, tmp_path / "tries")
    # Three batches, two manifests, what the batches are merged to under two names, the end of the parts; in a folder
    # the list and the sheet, for an .npz the manifest under its last name. The last try is not killed.
    for name, moments in ("samples", 10), ("samples.npz", 9):
        *killed, last = sorted((tmp_path / "tries" / name).iterdir(), key=lambda folder: int(folder.name))
        assert len(killed) == moments
        assert SampleSet.open(last / name).count == 12
        assert all(contents(folder) == contents(last) for folder in killed)


def contents(folder):
    """The bytes of every file; a manifest holds a date."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p.relative_to(folder)): None if "manifest" in p.name else p.read_bytes() for p in files}
