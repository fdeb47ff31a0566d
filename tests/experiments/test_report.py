import pytest
from PIL import Image

from ctf.experiments.demo import FULL, SYSTEMS, run_demo
from ctf.experiments.report import demo_report, plot_curves

METRICS = {
    "quick": False,
    "threads": 3,
    "seconds": {"tokenize": 41.2, "train": 362.8},
    "tokenizer": {"psnr": 23.456},
    "clusters": {"within_cluster_distance": 0.4567, "random_within_cluster_distance": 0.9876},
    "swap_psnr": {"512": {"kmeans": 21.54, "random": 9.71}},
    "bits_per_token": {
        "baseline": {"bits_per_token": 9.8765, "token_accuracy": 0.1234},
        "coarse-to-fine": {
            "bits_per_token": 9.1112,
            "coarse_bits_per_token": 5.5554,
            "fine_bits_per_token": 3.5558,
            "coarse_accuracy": 0.2345,
            "fine_accuracy": 0.3456,
        },
    },
    "images_per_second": {"baseline": 7.77, "coarse-to-fine": 6.66},
}
NUMBERS = ["9.877", "9.111", "5.555", "3.556", "12.3%", "23.4%", "34.6%", "7.8", "6.7", "512", "21.5", "9.7"]
NUMBERS += ["23.46", "0.457", "0.988", "41 s", "363 s", "3 threads"]


@pytest.mark.parametrize("number", NUMBERS)
def test_the_report_has_the_number(number):
    assert number in demo_report(FULL, METRICS)


def test_the_report_says_what_was_trained():
    report = demo_report(FULL, METRICS)
    assert "size `nano`, trained for 700 steps of 32 images" in report
    assert all(f"]({name})" in report for name in ("samples.png", "swap.png", "curves.png", "metrics.json"))
    assert "--quick" not in report
    assert "--quick" in demo_report(FULL, METRICS | {"quick": True})


def test_curves_are_a_picture(tmp_path):
    lines = [{"step": step, "loss": 9.0 / step, "learning_rate": 1e-3} for step in (1, 2, 3)]
    lines += [{"step": 3, "held_out/loss": 5.0}]  # no training loss in it
    logs = dict.fromkeys(("baseline", "coarse", "fine"), lines)
    plot_curves(tmp_path / "curves.png", logs, METRICS["bits_per_token"], SYSTEMS)
    with Image.open(tmp_path / "curves.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.size == (1200, 480)
        assert len(picture.convert("RGB").getcolors(2**20)) > 10  # not an empty page


def test_a_demo_is_not_overwritten(tmp_path):
    from ctf.errors import InputError

    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match="is not empty"):
        run_demo(tmp_path)
