from pathlib import Path

import numpy as np
import pytest
from colours import Quarters, quarters, random_images
from PIL import Image

from ctf.errors import InputError
from ctf.evaluation.extraction import extract
from ctf.evaluation.reference import open_reference
from ctf.samples import write_images


@pytest.fixture
def images():
    return random_images(30)


@pytest.fixture
def batch(tmp_path, images):
    """An ADM batch whose moments are not those of its images, as theirs are not either."""
    generator = np.random.default_rng(1)
    moments = {}
    for end, dim in ("", 12), ("_s", 6):
        root = generator.normal(size=(dim, dim))
        moments |= {f"mu{end}": generator.normal(size=dim), f"sigma{end}": root @ root.T}
    np.savez(tmp_path / "batch.npz", arr_0=images, **moments)
    return str(tmp_path / "batch.npz"), moments


@pytest.fixture
def folder(tmp_path, images):
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "folder" / f"{i:02d}.png")
    return str(tmp_path / "folder")


@pytest.fixture
def opened(tmp_path):
    """`open_reference` with a cache of its own and batches that do not divide 30."""

    def open_one(source, extractor, **options):
        return open_reference(source, extractor, batch_size=7, cache=tmp_path / "cache", progress=False, **options)

    return open_one


def test_statistics_are_those_of_the_features(opened, folder, images):
    reference = opened(folder, Quarters(), image_size=(8, 8))
    features = quarters(images).astype(np.float64)
    np.testing.assert_allclose(reference.extracted.statistics.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(reference.extracted.statistics.covariance, np.cov(features.T), rtol=1e-9)
    np.testing.assert_allclose(reference.extracted.spatial.covariance, np.cov(features[:, :6].T), rtol=1e-9)
    np.testing.assert_array_equal(reference.extracted.features, quarters(images))
    assert (reference.count, reference.image_size, reference.origin) == (30, (8, 8), "computed")
    smaller = opened(folder, Quarters(), image_size=(4, 4))
    assert (smaller.image_size, smaller.resize) == ((4, 4), "ADM's centre crop")


def test_a_folder_of_images_may_hold_a_manifest_of_its_own(opened, folder):
    Path(folder, "manifest.json").write_text('{"name": "my page"}')
    assert opened(folder, Quarters(), image_size=(8, 8)).count == 30


def test_moments_of_an_adm_batch_are_taken_as_they_are(opened, batch, images):
    source, moments = batch
    assert opened(source, Quarters()).origin == "computed"  # they are Inception's alone
    reference = opened(source, Quarters("inception"))
    assert not reference.cached  # another extractor is another entry
    np.testing.assert_array_equal(reference.extracted.statistics.mean, moments["mu"])
    np.testing.assert_array_equal(reference.extracted.statistics.covariance, moments["sigma"])
    np.testing.assert_array_equal(reference.extracted.spatial.mean, moments["mu_s"])
    np.testing.assert_array_equal(reference.extracted.spatial.covariance, moments["sigma_s"])
    np.testing.assert_array_equal(reference.extracted.features, quarters(images))
    assert reference.origin == "moments from file"


def test_moments_belong_to_the_fingerprint(opened, batch, tmp_path, images):
    source, moments = batch
    np.savez(tmp_path / "other.npz", arr_0=images, **moments | {"mu": moments["mu"] + 1})
    one, other = (opened(path, Quarters("inception")) for path in (source, str(tmp_path / "other.npz")))
    assert one.fingerprint != other.fingerprint


def test_the_same_pixels_are_computed_once(opened, folder, batch):
    first, again = Quarters(), Quarters()
    computed = opened(folder, first, image_size=(8, 8))
    cached = opened(batch[0], again)
    assert (first.seen, again.seen) == (30, 1)  # the first image shows that the extractor is still the same
    assert (computed.cached, cached.cached) == (False, True)
    assert computed.fingerprint == cached.fingerprint
    for name in "mean", "covariance", "count":
        np.testing.assert_array_equal(
            getattr(computed.extracted.statistics, name), getattr(cached.extracted.statistics, name)
        )
    np.testing.assert_array_equal(computed.extracted.features, cached.extracted.features)


def test_one_pixel_more_is_another_reference(opened, tmp_path, images):
    write_images(tmp_path / "a.npz", [images], 30, (8, 8))
    images[29, 7, 7, 2] ^= 1
    write_images(tmp_path / "b.npz", [images], 30, (8, 8))
    one, other = (opened(str(tmp_path / name), Quarters()) for name in ("a.npz", "b.npz"))
    assert one.fingerprint != other.fingerprint
    assert not other.cached


def test_a_cache_that_cannot_be_written_costs_no_result(tmp_path, batch, images):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match=f"^the cache at {tmp_path}/file/references cannot be written") as warned:
        reference = open_reference(batch[0], Quarters(), cache=tmp_path / "file", progress=False)
    assert len(warned) == 1
    np.testing.assert_array_equal(reference.extracted.features, quarters(images))


def test_a_damaged_entry_is_made_again(opened, batch, tmp_path):
    opened(batch[0], Quarters())
    (entry,) = (tmp_path / "cache" / "references").iterdir()
    entry.write_bytes(entry.read_bytes()[:100])
    assert [opened(batch[0], Quarters()).cached for _ in range(2)] == [False, True]


def test_an_extractor_that_has_changed_under_its_fingerprint(opened, batch, images):
    """As a function that reads other weights from the same path."""

    class Changed(Quarters):
        def _extract(self, images):
            return super()._extract(255 - images)

    opened(batch[0], Quarters())
    reference = opened(batch[0], Changed())
    assert not reference.cached
    np.testing.assert_array_equal(reference.extracted.features, quarters(255 - images))


@pytest.fixture
def moments_file(tmp_path, batch):
    """A function that writes moments without images."""

    def make(*names):
        np.savez(tmp_path / "stats.npz", **{name: batch[1][name] for name in names})
        return str(tmp_path / "stats.npz")

    return make


@pytest.mark.parametrize("names", [("mu", "sigma"), ("mu", "sigma", "mu_s", "sigma_s")], ids=len)
def test_moments_without_images(opened, moments_file, batch, names):
    reference = opened(moments_file(*names), Quarters("inception"), image_size=(16, 16))
    np.testing.assert_array_equal(reference.extracted.statistics.mean, batch[1]["mu"])
    np.testing.assert_array_equal(reference.extracted.statistics.covariance, batch[1]["sigma"])
    assert (reference.extracted.spatial is not None) == ("mu_s" in names)
    assert reference.facts()["image_size"] is None
    assert (reference.images, reference.count, reference.origin) == (None, 0, "moments from file")
    reference.check((16, 16), Quarters("inception"))  # of any size


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("colours.py:quarters", {}, "holds moments of Inception only, and no images: give images to compare colours"),
        ("inception", {"split": "test"}, "has no splits: leave out split 'test'"),
    ],
    ids=["features", "split"],
)
def test_moments_that_cannot_be_compared(opened, moments_file, name, options, message):
    with pytest.raises(InputError, match=message):
        opened(moments_file("mu", "sigma"), Quarters(name), **options)


@pytest.mark.parametrize("with_images", [True, False])
def test_moments_of_another_layer(opened, tmp_path, images, with_images):
    arrays = {"mu": np.zeros(5), "sigma": np.eye(5)} | ({"arr_0": images} if with_images else {})
    np.savez(tmp_path / "five.npz", **arrays)
    with pytest.raises(InputError, match=r"five\.npz are of 5 features, these are 12: give moments"):
        opened(str(tmp_path / "five.npz"), Quarters("inception"))


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch, batch):
    monkeypatch.setenv("CTF_CACHE", str(tmp_path / "there"))
    open_reference(batch[0], Quarters(), progress=False)
    assert len(list((tmp_path / "there" / "references").iterdir())) == 1


def test_kept_rows_are_spread_over_the_set(images):
    batches = [images[:7], images[7:20], images[20:]]
    seen = extract(Quarters(), batches, 30, keep=4, progress=False)
    np.testing.assert_array_equal(seen.features, quarters(images)[[0, 7, 15, 22]])
    assert seen.probabilities.shape == (4, 4)
    assert seen.statistics.count == 30


def test_unreadable_images_are_left_out_and_named(opened, folder, images):
    with open(f"{folder}/03.png", "wb"):
        pass
    reference = opened(folder, Quarters(), image_size=(8, 8))
    np.testing.assert_array_equal(reference.extracted.features, np.delete(quarters(images), 3, 0))
    assert reference.count == 29
    assert "03.png" in reference.note


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (16, 16)}, "images of 8 × 8 pixels, the samples have 16 × 16"),
        ({"split": "test"}, "has no splits: leave out split 'test'"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_before_any_work(opened, batch, options, message):
    extractor = Quarters()
    with pytest.raises(InputError, match=message):
        opened(batch[0], extractor, **options)
    assert extractor.seen == 0
