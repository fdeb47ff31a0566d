import json

import pytest
from PIL import Image

from ctf.evaluation.protocol import Evaluation
from ctf.evaluation.table import comparison, differences, published, write_comparison

METRICS = {"FID": 2.8841, "sFID": 5.5, "IS": 271.13, "precision": 0.8312, "recall": 0.557, "KID": 0.00061}

COLUMNS = ("parameters_millions", "FID", "IS", "precision", "recall")


def make_evaluation(
    metrics=METRICS, name="inception", count=50_000, size=256, origin="moments from file", images=10_000
):
    return Evaluation(
        metrics,
        {"name": name, "fingerprint": "f" * 16, "dimensions": 2048},
        {"source": "runs/mine.npz", "count": count, "image_size": [size, size], "manifest": None},
        {
            "source": "VIRTUAL_imagenet256_labeled.npz",
            "count": images,
            "image_size": [size, size],
            "fingerprint": "a" * 16,
            "origin": origin,
            "resize": None,
            "cached": False,
        },
        {"neighbours": 3, "precision_reference_images": 10_000, "score_splits": "10 of 5,000"},
        ["a warning"],
        {},
    )


EMOJI = make_evaluation(
    {"Fréchet distance, emoji features": 14.25, "recall, emoji features": 0.5}, "emoji", 64, 64, "computed"
)


def test_published_rows_are_the_paper_s():
    rows = published()["rows"]
    assert len(rows) == 31
    (row,) = (row for row in rows if row["model"] == "LlamaGen-L + CTF")
    assert [row[name] for name in COLUMNS] == [310, 2.97, 291.53, 0.84, 0.53]
    # Sums of the columns, added up from the paper: one mistyped digit changes them.
    sums = [round(sum(row[name] or 0 for row in rows), 2) for name in COLUMNS]
    assert sums == [23_685, 156.33, 7053.96, 18.08, 11.29]


def row_of_the_run(text):
    (line,) = (line for line in text.splitlines() if "this run" in line)
    return line.split()


def test_a_comparable_run_stands_in_the_table():
    evaluation = make_evaluation()
    assert differences(evaluation) == []
    text = comparison(evaluation)
    assert "- Warning: a warning" in text
    start = text.splitlines().index(next(line for line in text.splitlines() if line.startswith("type ")))
    assert len({len(line) for line in text.splitlines()[start : start + 34]}) == 1  # columns are aligned
    assert row_of_the_run(text) == ["this", "run", "runs/mine.npz", "-", "2.88", "271.1", "0.83", "0.56"]
    assert "Comparable with the published metrics below, if the reference is ADM's ImageNet 256 × 256 batch and" in text
    assert "| this run | runs/mine.npz | - | 2.88 | 271.1 | 0.83 | 0.56 |" in comparison(evaluation, markdown=True)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"name": "dinov2"}, "features are dinov2"),
        ({"count": 10_000}, "10,000 samples"),
        ({"size": 384}, "384 × 384 pixels"),
        ({"origin": "computed"}, "ADM's ImageNet batch"),
        ({"images": 0}, "ADM's ImageNet batch"),
    ],
    ids=str,
)
def test_each_difference_keeps_a_run_out_of_the_table(facts, words):
    evaluation = make_evaluation(**facts)
    (reason,) = differences(evaluation)
    assert words in reason
    text = comparison(evaluation)
    assert "this run" not in text
    assert f"Not comparable with the published metrics below:\n- {reason}" in text


def test_other_features_keep_their_titles():
    text = comparison(EMOJI)
    assert "Fréchet distance, emoji features" in text
    assert [line for line in text.splitlines() if "FID" in line] == [
        line for line in text.splitlines() if line.startswith("type ")
    ]
    assert "14.25" in text


@pytest.mark.parametrize("evaluation", [make_evaluation(), EMOJI], ids=["comparable", "emoji"])
def test_all_of_it_is_written(tmp_path, evaluation):
    text = write_comparison(tmp_path / "out", evaluation)
    assert (tmp_path / "out" / "table.txt").read_text(encoding="utf-8") == text == comparison(evaluation)
    assert (tmp_path / "out" / "table.md").read_text(encoding="utf-8") == comparison(evaluation, markdown=True)
    result = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert result["metrics"] == evaluation.metrics
    assert result["comparison"]["comparable"] == (evaluation is not EMOJI)
    assert result["comparison"]["published"] == published()
    with Image.open(tmp_path / "out" / "plot.png") as image:
        assert image.width == 1200
