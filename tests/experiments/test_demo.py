import re

import pytest
from PIL import Image

from ctf.experiments import demo
from ctf.experiments.demo import run_demo
from ctf.files import read_json


@pytest.mark.usefixtures("small_examples")
def test_the_report_has_pictures_and_the_swaps(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "QUICK", (1, 16))
    metrics = run_demo(tmp_path / "demo", quick=True)
    page = (tmp_path / "demo" / "report.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[.+\]\((.+)\)", page)
    assert pictures == ["samples.png", "curves.png", "swap.png", "bundled.png"]
    assert all(Image.open(tmp_path / "demo" / name).width > 300 for name in pictures)
    (swap,) = metrics["swap_psnr"].values()
    assert swap["kmeans"] > swap["random"] + 4
    assert f"M = 512: k-means {swap['kmeans']:.2f} dB, random {swap['random']:.2f} dB" in page
    assert "This was `--quick`" in page
    images = tmp_path / "demo" / "images"
    assert {path.name for path in (images / "train").iterdir()} == {*demo.FOLDERS}
    assert len([*images.glob("train/*/*.png")]) == read_json(tmp_path / "demo" / "plan.json")["num_images"]
    assert read_json(tmp_path / "demo" / "metrics.json") == metrics
