import io
import json
import shlex
from contextlib import redirect_stdout

import pytest
import yaml

from ctf.cli import main
from ctf.errors import InputError
from ctf.evaluation import SamplingBenchmark

SMALL = {
    "sizes": ("nano",),
    "methods": ("baseline", "coarse-to-fine"),
    "batch_sizes": (1, 2),
    "fine_size": "nano",
    "tokenizer": "emoji",
    "grid": (2, 2),
    "vocabulary": 16_384,
    "clusters": 512,
    "cfg_scale": 2.0,
    "dtype": "float32",
    "quantize": None,
    "compile": False,
    "device": "cpu",
    "runs": 1,
    "json": None,
}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The lines and the figures of a small benchmark."""
    path = tmp_path_factory.mktemp("bench") / "figures.json"
    lines = list(SamplingBenchmark(**SMALL | {"json": str(path)}).report())
    return lines, json.loads(path.read_text())


def test_a_row_for_every_size_method_and_batch(page):
    lines, figures = page
    rows = [("baseline", 1), ("baseline", 2), ("coarse-to-fine", 1), ("coarse-to-fine", 2)]
    assert [(row["method"], row["batch_size"]) for row in figures["rows"]] == rows
    shown = [line.split(" | ") for line in lines if line.startswith("| nano, ")]
    assert [(cells[0], cells[2]) for cells in shown] == [(f"| nano, {method}", str(batch)) for method, batch in rows]
    assert [cells[5] for cells in shown[:2]] == ["-", "-"]  # a baseline has no stage 2


def test_published_rows_stand_apart_with_their_machine(page):
    lines, figures = page
    place = lines.index("Published, on one A100 at batch 64:")
    assert not any("LlamaGen" in line for line in lines[:place])
    assert not any("nano" in line for line in lines[place:])
    # Table 2 of the paper.
    speeds = {row["model"]: row["images_per_second"] for row in figures["published"]["rows"]}
    assert list(speeds.values()) == [13.75, 12.83, 7.50, 8.71, 5.32, 6.26]
    assert "| LlamaGen-XL + CTF | 734M+343M | 256+1 | 6.26 |" in lines[place:]


def test_the_page_begins_with_a_command_that_repeats_it(page):
    lines, figures = page
    program, *words = shlex.split(lines[0])
    with redirect_stdout(io.StringIO()) as out:
        assert main([*words, "--print_config"]) == 0
    assert program == "ctf"
    assert yaml.safe_load(out.getvalue()) == figures["settings"]


def test_quantized_stages_have_a_roofline_of_their_own():
    text = "\n".join(SamplingBenchmark(**SMALL | {"quantize": "int8", "methods": ()}).report())
    assert "Gop/s in int8\n" in text
    assert "Gop/s in float32\n" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": ("nano", "huge")}, "'huge' does not exist"),
        ({"fine_size": "huge"}, "'huge' does not exist"),
        ({"runs": 0}, "runs 0"),
        ({"batch_sizes": (1, 0)}, "must be at least 1"),
        ({"device": "abacus"}, "'abacus' cannot be used"),
        ({"tokenizer": "nowhere"}, "nowhere"),
        ({"clusters": 16_384}, "16384 clusters"),
        ({"vocabulary": 100}, "100"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        list(SamplingBenchmark(**SMALL | change).report())
