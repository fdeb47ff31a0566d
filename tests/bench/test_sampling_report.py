import io
import json
import shlex
from contextlib import redirect_stdout

import pytest
import yaml

from ctf.bench import SamplingBenchmark, sampling_report
from ctf.cli import main
from ctf.errors import InputError

SMALL = {
    "sizes": ("nano",),
    "grid": (2, 2),
    "vocabulary": 16_384,
    "clusters": 512,
    "device": "cpu",
    "batch_sizes": (1, 2),
    "fine_size": "nano",
    "tokenizer": "emoji",
    "runs": 1,
}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The lines and the metrics of a small benchmark."""
    path = tmp_path_factory.mktemp("bench") / "metrics.json"
    lines = list(sampling_report(SamplingBenchmark(**SMALL, json=str(path))))
    return lines, json.loads(path.read_text())


def test_a_row_for_every_size_method_and_batch(page):
    lines, metrics = page
    rows = [("baseline", 1), ("baseline", 2), ("coarse-to-fine", 1), ("coarse-to-fine", 2)]
    assert [(row["method"], row["batch_size"]) for row in metrics["rows"]] == rows
    shown = [line.split(" | ") for line in lines if line.startswith("| nano, ")]
    assert [(cells[0], cells[2]) for cells in shown] == [(f"| nano, {method}", str(batch)) for method, batch in rows]
    assert [cells[5] for cells in shown[:2]] == ["-", "-"]  # a baseline has one stage


def test_published_rows_stand_apart_with_their_machine(page):
    lines, metrics = page
    place = lines.index("Published, on one A100 at batch 64:")
    assert not any("LlamaGen" in line for line in lines[:place])
    assert not any("nano" in line for line in lines[place:])
    # Table 2 of the paper.
    speeds = {row["model"]: row["images_per_second"] for row in metrics["published"]["rows"]}
    assert list(speeds.values()) == [13.75, 12.83, 7.50, 8.71, 5.32, 6.26]
    assert "| LlamaGen-XL + CTF | 734M+343M | 256+1 | 6.26 |" in lines[place:]


def test_the_page_begins_with_a_command_that_repeats_it(page):
    lines, metrics = page
    program, *words = shlex.split(lines[0])
    with redirect_stdout(io.StringIO()) as out:
        assert main([*words, "--print_config"]) == 0
    assert program == "ctf"
    assert yaml.safe_load(out.getvalue()) == metrics["settings"]


@pytest.mark.parametrize(
    ("change", "products"),
    [
        ({}, ["GFLOP/s in float32"]),
        ({"quantize": "int8"}, ["GOP/s in int8", "GFLOP/s in float32"]),
        ({"dtype": "bfloat16"}, ["GFLOP/s in bfloat16", "GFLOP/s in float32"]),
        ({"dtype": "bfloat16", "decoder_dtype": "bfloat16"}, ["GFLOP/s in bfloat16"]),
    ],
    ids=str,
)
def test_stages_and_decoder_have_the_roofline_of_their_own_products(change, products):
    lines = list(sampling_report(SamplingBenchmark(**SMALL | {"methods": (), **change})))
    measured = [line for line in lines if "multiplies at" in line]
    assert [" ".join(line.split()[-3:]) for line in measured] == products


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": ("nano", "huge")}, "'huge' does not exist"),
        ({"fine_size": "huge"}, "'huge' does not exist"),
        ({"runs": 0}, "runs 0"),
        ({"grid": (4, 0)}, "grid 4, 0"),
        ({"batch_sizes": (1, 0)}, "must be at least 1"),
        ({"device": "abacus"}, "'abacus' cannot be used"),
        ({"tokenizer": "nowhere"}, "nowhere"),
        ({"clusters": 16_384}, "16384 clusters"),
        ({"vocabulary": 100}, "codebook of 16384"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        list(sampling_report(SamplingBenchmark(**SMALL | change)))
