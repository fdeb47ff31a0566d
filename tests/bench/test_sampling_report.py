import io
import json
import shlex
from contextlib import redirect_stdout

import pytest
import yaml

from ctf.bench import SamplingBenchmark, sampling_report
from ctf.cli import main
from ctf.errors import InputError
from ctf.layout import Layout, with_layout

SMALL = {
    "sizes": ("nano",),
    "layout": Layout.square(2),
    "codebook_size": 16_384,
    "num_clusters": 512,
    "device": "cpu",
    "batch_sizes": (1, 2),
    "fine_size": "nano",
    "tokenizer": "emoji",
    "runs": 1,
}


pytestmark = pytest.mark.usefixtures("quick_machine")


def report(folder, **settings):
    """The lines and the metrics of a small benchmark."""
    lines = list(sampling_report(SamplingBenchmark(**SMALL | settings, out=str(folder / "metrics.json"))))
    return lines, json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return report(tmp_path_factory.mktemp("bench"))


def test_a_row_for_every_size_method_and_batch(page):
    lines, metrics = page
    rows = [("baseline", 1), ("baseline", 2), ("coarse-to-fine", 1), ("coarse-to-fine", 2)]
    assert [(row["method"], row["batch_size"]) for row in metrics["rows"]] == rows
    shown = [line.split(" | ") for line in lines if line.startswith("| nano, ")]
    assert [(cells[0], cells[3]) for cells in shown] == [(f"| nano, {method}", str(batch)) for method, batch in rows]
    assert {cells[1] for cells in shown} == {"autoregressive, 4 steps"}
    assert [cells[6] for cells in shown[:2]] == ["-", "-"]  # a baseline has one stage


KINDS = {"kinds": ("autoregressive", "any_order", "masked"), "steps": (3, 1), "order": "random"}
FIRST = [("autoregressive", 4), ("any_order", 3), ("any_order", 1), ("masked", 3), ("masked", 1)]


def test_a_row_for_every_kind_in_every_number_of_steps_that_it_can_take(tmp_path):
    lines, metrics = report(tmp_path, **KINDS, systems=("coarse", "coarse-to-fine"), batch_sizes=(2,))
    rows = [(method, *first) for method in ("coarse", "coarse-to-fine") for first in FIRST]
    assert [(row["method"], row["kind"], row["steps"]) for row in metrics["rows"]] == rows
    assert [row["order"] for row in metrics["rows"]] == 2 * ["raster", *4 * ["random"]]
    shown = [line.split(" | ") for line in lines if line.startswith("| nano, ")]
    assert [(cells[0], cells[1]) for cells in shown] == [
        (f"| nano, {method}", f"{kind}, {steps} steps") for method, kind, steps in rows
    ]
    assert all(cells[6:8] == ["-", "-"] and cells[5] == cells[8] for cells in shown[:5])  # no stage 2, no pixels


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
    assert with_layout(yaml.safe_load(out.getvalue())) == with_layout(metrics["settings"])


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
    lines = list(sampling_report(SamplingBenchmark(**SMALL | {"systems": (), **change})))
    measured = [line for line in lines if "multiplies at" in line]
    assert [" ".join(line.split()[-3:]) for line in measured] == products


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": ("nano", "huge")}, "'huge' does not exist"),
        ({"fine_size": "huge"}, "'huge' does not exist"),
        ({"runs": 0}, "runs is 0"),
        ({"batch_sizes": (1, 0)}, "must be at least 1"),
        ({"device": "abacus"}, "'abacus' cannot be used"),
        ({"tokenizer": "nowhere"}, "nowhere"),
        ({"num_clusters": 16_384}, "16384 clusters"),
        ({"kinds": ("autoregressive", "gan")}, "kind 'gan' of stage does not exist"),
        ({"steps": (0,)}, "steps is .0"),
        ({"kinds": ("any_order",), "steps": (4, 5)}, "cannot draw in 5 steps: .* from 1 to 4"),
        ({"kinds": ("masked", "any_order"), "order": "confidence"}, "cannot draw in the order confidence"),
        ({"codebook_size": 100}, "codebook of 16384"),
    ],
    ids=str,
)
def test_invalid_settings_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        list(sampling_report(SamplingBenchmark(**SMALL | change)))
