import dataclasses
import json

import numpy as np
import pytest
from colours import Quarters, frechet, quarters, random_images

from ctf.errors import InputError
from ctf.evaluation.metrics import inception_score, kernel_distance, precision_recall
from ctf.evaluation.protocol import check_samples, evaluate_samples
from ctf.evaluation.reference import open_reference
from ctf.evaluation.table import write_comparison
from ctf.samples import SampleSet, sample_to, write_images


def stored(path, images):
    write_images(path, [images], len(images), images.shape[1:3])
    return str(path)


@pytest.fixture
def evaluate(tmp_path):
    """Evaluate images against others, in batches that do not divide them."""

    def evaluate_images(samples, reference, extractor=None, samples_file="samples.npz"):
        extractor = extractor or Quarters()
        source = stored(tmp_path / samples_file, samples)
        of = open_reference(stored(tmp_path / "r.npz", reference), extractor, cache=tmp_path, progress=False)
        return evaluate_samples(SampleSet.open(source), of, extractor, source, batch_size=7, progress=False)

    return evaluate_images


def test_metrics_are_those_of_the_features(evaluate):
    samples, reference = random_images(40), random_images(40, seed=1)
    metrics = evaluate(samples, reference).metrics
    a, b = quarters(samples), quarters(reference)
    precision, recall = precision_recall(b, a)
    expected = {
        "Fréchet distance, quarters": frechet(a, b),
        "spatial Fréchet distance, colours.py:quarters features": frechet(a[:, :6], b[:, :6]),
        "classifier score, colours.py:quarters features": inception_score(Quarters()(samples).probabilities),
        "precision, colours.py:quarters features": precision,
        "recall, colours.py:quarters features": recall,
        "kernel distance, colours.py:quarters features": kernel_distance(b, a),
    }
    assert metrics.keys() == expected.keys()
    assert metrics == pytest.approx(expected, rel=1e-5)
    assert 0 < precision != recall < 1


def test_inception_alone_has_the_field_s_names(evaluate):
    extractor = Quarters("inception")
    extractor.distance = "FID"
    metrics = evaluate(random_images(20), random_images(20, seed=1), extractor).metrics
    assert list(metrics) == ["FID", "sFID", "IS", "precision", "recall", "KID"]


@pytest.mark.parametrize("spatial", [False, True])
def test_moments_alone_give_distances_alone(tmp_path, spatial):
    samples, features = random_images(20), quarters(random_images(30, seed=1)).astype(np.float64)
    moments = {"mu": features.mean(0), "sigma": np.cov(features.T)}
    if spatial:
        moments |= {"mu_s": features[:, :6].mean(0), "sigma_s": np.cov(features[:, :6].T)}
    np.savez(tmp_path / "stats.npz", **moments)
    extractor = Quarters("inception")
    extractor.distance = "FID"
    source = stored(tmp_path / "samples.npz", samples)
    of = open_reference(str(tmp_path / "stats.npz"), extractor, cache=tmp_path, progress=False)
    evaluation = evaluate_samples(SampleSet.open(source), of, extractor, source, progress=False)
    assert evaluation.metrics.keys() == {"FID", "IS"} | ({"sFID"} if spatial else set())
    assert evaluation.metrics["FID"] == pytest.approx(frechet(quarters(samples), features), rel=1e-5)
    notes = " ".join(evaluation.warnings)
    assert "stats.npz holds moments and no images, so precision, recall and KID are left out" in notes
    assert ("sFID is left out" in notes) == (not spatial)
    text = write_comparison(tmp_path / "out", evaluation)
    assert "stats.npz, no images, fingerprint" in text
    assert "Precision and recall: left out" in text


def test_all_that_decides_the_metrics_is_in_the_result(evaluate):
    evaluation = evaluate(random_images(30), random_images(40, seed=1))
    assert evaluation.samples["count"] == 30
    assert evaluation.reference["count"] == 40
    assert evaluation.reference["origin"] == "computed"
    assert evaluation.features == {"name": "colours.py:quarters", "fingerprint": "0123456789abcdef", "dimensions": 12}
    assert evaluation.settings["score_splits"] == "one of all 30 images: fewer than the protocol's 5,000"
    assert set(evaluation.versions) == {"ctf", "torch", "numpy", "python"}
    written = dataclasses.asdict(evaluation)
    assert json.loads(json.dumps(written)) == written


def test_a_short_last_split_of_the_score_is_said(evaluate, monkeypatch):
    monkeypatch.setattr("ctf.evaluation.protocol.SCORE_SPLIT", 20)
    evaluation = evaluate(random_images(50), random_images(40, seed=1))
    assert evaluation.settings["score_splits"] == "2 of 20, one of 10"
    assert [note for note in evaluation.warnings if note.startswith("the score's last split has 10 images")]
    assert not [note for note in evaluate(random_images(40), random_images(40)).warnings if "last split" in note]


def test_samples_of_ours_bring_their_manifest(tmp_path, make_pipeline):
    sample_to(make_pipeline("baseline"), tmp_path / "s.npz", num=5, seed=3, batch_size=8, model="tiny")
    samples, extractor = SampleSet.open(tmp_path / "s.npz"), Quarters()
    of = open_reference(str(tmp_path / "s.npz"), extractor, cache=tmp_path, progress=False)
    evaluation = evaluate_samples(samples, of, extractor, progress=False)
    assert evaluation.samples["manifest"]["model"] == "tiny"
    assert evaluation.samples["manifest"]["seed"] == 3
    assert not any("manifest" in warning for warning in evaluation.warnings)


def test_warnings_name_what_weakens_the_metrics(evaluate):
    evaluation = evaluate(random_images(3), random_images(20, seed=1))
    warnings = " ".join(evaluation.warnings)
    for words in "only 3 images for 12 features", "precision and recall need more than 3", "no manifest":
        assert words in warnings
    assert not any("precision" in name for name in evaluation.metrics)


def test_sizes_must_be_equal(evaluate):
    with pytest.raises(InputError, match="images of 8 × 8 pixels, the samples have 4 × 4"):
        evaluate(random_images(20, size=4), random_images(20))


def test_the_reference_must_be_in_the_same_features(tmp_path):
    source, extractor, other = stored(tmp_path / "s.npz", random_images(20)), Quarters(), Quarters()
    other.fingerprint = "fedcba9876543210"
    of = open_reference(source, other, cache=tmp_path, progress=False)
    with pytest.raises(InputError, match="opened with other features"):
        evaluate_samples(SampleSet.open(source), of, extractor, progress=False)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (random_images(1), "holds one image"),
        (np.random.default_rng(0).random((5, 8, 8, 3)).round().astype(np.uint8), "no pixel above 1"),
        (np.zeros((5, 8, 8, 3), np.uint8), "no pixel above 1"),
    ],
    ids=["one", "floats cast", "black"],
)
def test_meaningless_samples_are_refused(tmp_path, images, message):
    with pytest.raises(InputError, match=message):
        check_samples(SampleSet.open(stored(tmp_path / "s.npz", images)), "s.npz")


def test_one_black_batch_is_no_reason(tmp_path):
    images = np.concatenate([np.zeros((64, 8, 8, 3), np.uint8), random_images(1)])
    check_samples(SampleSet.open(stored(tmp_path / "s.npz", images)), "s.npz")
