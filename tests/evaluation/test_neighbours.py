import numpy as np
import pytest
from colours import Quarters, quarters, random_images
from scipy.spatial.distance import cdist

from ctf.errors import InputError
from ctf.evaluation import neighbours
from ctf.evaluation.neighbours import compare_distances, compare_neighbours, nearest, summary
from ctf.evaluation.reference import open_reference
from ctf.samples import SampleSet, write_images


@pytest.fixture
def compare(tmp_path):
    """Compare samples with training and held-out images, in batches that do not divide them."""

    def stored(name, images):
        write_images(tmp_path / name, [images], len(images), images.shape[1:3])
        return str(tmp_path / name)

    def compare_images(samples, training, held_out, num=4):
        extractor, settings = Quarters(), {"cache": tmp_path, "progress": False, "all_features": True}
        opened = [
            open_reference(stored(name, images), extractor, **settings)
            for name, images in (("training.npz", training), ("held_out.npz", held_out))
        ]
        samples = SampleSet.open(stored("samples.npz", samples))
        return compare_neighbours(samples, *opened, extractor, num, batch_size=7, progress=False)

    return compare_images


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_nearest_against_all_distances(monkeypatch, dtype):
    monkeypatch.setattr(neighbours, "BLOCK_ROWS", 8)  # many blocks, the last ones short
    rows, points = (random_images(count, seed).astype(dtype) for count, seed in ((30, 0), (50, 1)))
    distances = cdist(rows.reshape(30, -1).astype(np.float64), points.reshape(50, -1).astype(np.float64))
    found = nearest(rows, [points[:21], points[21:22], points[22:]])
    np.testing.assert_array_equal(found.index, distances.argmin(1))
    np.testing.assert_allclose(found.distance, distances.min(1), rtol=1e-14)


def test_a_copy_is_found_among_images_that_differ_in_one_value():
    """Squared norms near 10⁹, where float32 has steps of 64."""
    points = np.full((40, 64, 64, 3), 250, np.uint8)
    points.reshape(40, -1)[np.arange(40), np.arange(40)] -= 1
    found = nearest(points[::-1], [points])
    np.testing.assert_array_equal(found.index, np.arange(40)[::-1])
    assert not found.distance.any()


def test_the_first_of_equally_near_images_is_named():
    points = np.zeros((9, 2))
    assert nearest(points[:1], [points[:4], points[4:]]).index == 0


def test_distances_compared_by_hand():
    """Of 12 pairs, the sample is nearer in 4 + 3 and equally near in 1."""
    compared = compare_distances(np.array([0.5, 2, 9]), np.array([4.0, 1, 2, 3]))
    assert compared["nearer"] == pytest.approx((4 + 2 + 0.5) / 12)
    assert compared["suspicious"] == pytest.approx(1 / 3)  # the percentile lies between 1 and 2
    assert (compared["median_samples"], compared["median_held_out"]) == (2, 2.5)


def test_equal_distances_are_half_nearer():
    distances = np.random.default_rng(0).random(200)
    compared = compare_distances(distances, np.random.default_rng(1).permutation(distances))
    assert compared["nearer"] == 0.5
    assert compared["suspicious"] == 0.01


def test_the_error_is_that_of_many_draws():
    generator = np.random.default_rng(0)
    draws = [compare_distances(generator.random(20), generator.random(50)) for _ in range(1000)]
    assert np.std([draw["nearer"] for draw in draws]) == pytest.approx(draws[0]["standard_error"], rel=0.1)


def test_distances_are_those_of_the_images(compare):
    samples, training, held_out = (random_images(20, seed) for seed in range(3))
    result = compare(samples, training, held_out).result
    spaces = {"features": quarters, "pixels": lambda images: images.reshape(len(images), -1) / np.sqrt(8 * 8 * 3)}
    for name, space in spaces.items():
        near, unseen = (cdist(space(images), space(training)) for images in (samples, held_out))
        expected = compare_distances(near.min(1), unseen.min(1))
        assert result["distances"][name] == pytest.approx(expected, rel=1e-6)
        for i, shown in zip((0, 5, 10, 15), result["shown"], strict=True):
            assert shown["sample"] == i
            assert shown[name] == pytest.approx({"image": near[i].argmin(), "distance": near[i].min()}, rel=1e-6)


def test_copies_are_found(compare):
    """A quarter of the samples are training images; one held-out image is."""
    fresh, training, held_out = (random_images(30, seed) for seed in range(3))
    held_out[7] = training[3]
    compared = compare(np.concatenate([training[[4, 8, 15, 16, 23, 29, 0, 1, 1, 2]], fresh]), training, held_out, 40)
    assert compared.result["copies"] == {"samples": 10, "held_out": 1}
    assert compared.result["warnings"] == [
        "1 held-out images are among the training images: name a --split without them"
    ]
    for name in ("features", "pixels"):
        copied = [shown[name] for shown in compared.result["shown"][:10]]
        assert [shown["image"] for shown in copied] == [4, 8, 15, 16, 23, 29, 0, 1, 1, 2]
        assert not any(shown["distance"] for shown in copied)
    assert compared.result["distances"]["pixels"]["suspicious"] >= 0.25
    assert "Exact copies of training images: 10 samples, 1 held-out images." in summary(compared.result)


def test_the_sheet_shows_samples_above_their_nearest(compare):
    samples, training = random_images(6), random_images(20, seed=1)
    compared = compare(samples, training, random_images(6, seed=2), num=3)
    pixels = np.asarray(compared.sheet)
    below, right = (side - count * (2 * 8 + 4) for side, count in zip(pixels.shape, (3, 3), strict=False))
    for x, shown in enumerate(compared.result["shown"]):
        column = [samples[shown["sample"]], *(training[shown[name]["image"]] for name in ("features", "pixels"))]
        for y, image in enumerate(column):
            top, left = below + 20 * y, right + 20 * x
            np.testing.assert_array_equal(pixels[top : top + 16 : 2, left : left + 16 : 2], image)


def test_features_of_some_images_are_not_enough(tmp_path, monkeypatch, compare):
    monkeypatch.setattr("ctf.evaluation.reference.PRECISION_IMAGES", 5)
    images = [random_images(20, seed) for seed in range(3)]
    assert compare(*images).result["reference"]["count"] == 20
    some = open_reference(str(tmp_path / "training.npz"), Quarters(), cache=tmp_path, progress=False)
    assert len(some.extracted.features) == 5  # that of all is another entry of the cache
    with pytest.raises(InputError, match="open it with all_features"):
        compare_neighbours(SampleSet.open(tmp_path / "samples.npz"), some, some, Quarters(), progress=False)


def test_moments_have_no_neighbours(tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(12), sigma=np.eye(12))
    write_images(tmp_path / "samples.npz", [random_images(20)], 20, (8, 8))
    extractor = Quarters("inception")
    moments = open_reference(str(tmp_path / "stats.npz"), extractor, progress=False)
    with pytest.raises(InputError, match="holds moments and no images: give images"):
        compare_neighbours(SampleSet.open(tmp_path / "samples.npz"), moments, moments, extractor, progress=False)
