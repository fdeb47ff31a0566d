import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ctf.errors import InputError
from ctf.files import save_tensors
from ctf.tokenizer.losses import (
    LPIPS,
    PatchDiscriminator,
    adaptive_weight,
    generator_loss,
    hinge_discriminator_loss,
)

# torchvision's layout: (index of the convolution in `features`, channels in, channels out); "M" is a max pooling.
VGG16 = [
    *[(0, 3, 64), (2, 64, 64), "tap", "M", (5, 64, 128), (7, 128, 128), "tap", "M"],
    *[(10, 128, 256), (12, 256, 256), (14, 256, 256), "tap", "M"],
    *[(17, 256, 512), (19, 512, 512), (21, 512, 512), "tap", "M"],
    *[(24, 512, 512), (26, 512, 512), (28, 512, 512), "tap"],
]


@pytest.mark.parametrize(
    ("layers", "height", "width", "shape"),
    [(3, 256, 256, (30, 30)), (3, 64, 40, (6, 3)), (3, 24, 31, (1, 1)), (2, 12, 32, (1, 6)), (1, 6, 6, (1, 1))],
)
def test_one_logit_per_patch(layers, height, width, shape):
    discriminator = PatchDiscriminator(channels=2, layers=layers)
    assert discriminator(torch.zeros(2, 3, height, width)).shape == (2, 1, *shape)


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_receptive_field(layers, field):
    discriminator = PatchDiscriminator(channels=4, layers=layers).eval()
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = discriminator(images)
    middle = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], images)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().squeeze(1)
    assert rows[-1] - rows[0] + 1 == field


def test_parameters_are_llamagens():
    """Convolutions 3→64→128→256→512→1 of 4 × 4; biases at both ends, BatchNorm weight and bias in between."""
    expected = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) + 64 + 1 + 2 * (128 + 256 + 512)
    assert sum(parameter.numel() for parameter in PatchDiscriminator().parameters()) == expected


def test_initial_weights():
    torch.manual_seed(0)
    for module in PatchDiscriminator().modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.mean().item() == pytest.approx(1, abs=0.01)
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.2)
            assert not module.bias.any()


def test_too_small_images_are_refused():
    with pytest.raises(InputError, match="at least 24 × 24 pixels, got 23 × 64"):
        PatchDiscriminator(channels=2)(torch.zeros(1, 3, 23, 64))


def test_hinge_losses_by_hand():
    real = torch.tensor([2.0, 0.5, -1.0])  # max(0, 1 - x): 0, 0.5, 2
    fake = torch.tensor([-3.0, 0.0, 1.0, -0.5])  # max(0, 1 + x): 0, 1, 2, 0.5
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(0.5 * (2.5 / 3 + 3.5 / 4))
    assert generator_loss(fake).item() == pytest.approx(2.5 / 4)


def numeric_gradient_norm(loss, weight, step=1e-6):
    flat = weight.detach().flatten()
    slopes = []
    for i in range(len(flat)):
        shift = torch.zeros_like(flat)
        shift[i] = step
        above, below = (loss((flat + sign * shift).view_as(weight)) for sign in (1, -1))
        slopes.append((above - below).item() / (2 * step))
    return torch.tensor(slopes, dtype=torch.float64).norm()


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    torch.manual_seed(0)
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    weight = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def reconstruction(w):
        return (x @ w - y).square().mean()

    def adversarial(w):
        return -(x @ w).tanh().mean()

    losses = reconstruction(weight), adversarial(weight)
    balance = adaptive_weight(*losses, weight)
    expected = numeric_gradient_norm(reconstruction, weight) / (numeric_gradient_norm(adversarial, weight) + 1e-4)
    torch.testing.assert_close(balance, expected, rtol=1e-6, atol=0)
    assert not balance.requires_grad
    (losses[0] + balance * losses[1]).backward()  # the graphs are still there


def test_adaptive_weight_is_bounded():
    weight = torch.ones(3, requires_grad=True)
    assert adaptive_weight(100 * weight.sum(), 0 * weight.sum(), weight) == 1e4
    assert adaptive_weight(0 * weight.sum(), weight.sum(), weight) == 0


# ------------------------------------------------------------------------------------------------ LPIPS


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


def explicit_lpips(backbone, heads, x, y):
    """The formula, in float64 and one position at a time: Σ_l mean_hw Σ_c w_lc (x̂_lhwc - ŷ_lhwc)²."""
    mean, deviation = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]], dtype=torch.float64)
    stacks = [(image.double() - mean.view(3, 1, 1)) / deviation.view(3, 1, 1) for image in (x, y)]
    total, taps = 0.0, 0
    for layer in VGG16:
        if layer == "M":
            stacks = [h.unfold(1, 2, 2).unfold(2, 2, 2).amax((-1, -2)) for h in stacks]
        elif layer == "tap":
            head = heads[f"lin{taps}.model.1.weight"].flatten().double()
            positions = list(zip(*(h.flatten(1).T for h in stacks), strict=True))  # pairs of (C,)
            distances = [(head * (a / a.norm() - b / b.norm()).square()).sum() for a, b in positions]
            total += sum(distances) / len(distances)
            taps += 1
        else:
            weight, bias = (backbone[f"features.{layer[0]}.{name}"].double() for name in ("weight", "bias"))
            stacks = [F.conv2d(h[None], weight, bias, padding=1)[0].clamp(min=0) for h in stacks]
    return total


def test_distance_is_the_papers_formula(lpips, backbone, heads, pair):
    distances = lpips(*pair)
    assert distances.shape == (3,)
    assert distances[0].item() == pytest.approx(explicit_lpips(backbone, heads, *pair[:, 0]).item(), rel=1e-4)


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


def test_weights_saved_from_ddp_under_another_ending(lpips, backbone, heads, tmp_path):
    merged = {f"module._orig_mod.{name}": tensor for name, tensor in (backbone | heads).items()}
    torch.save({"state_dict": merged}, tmp_path / "lpips.ckpt")
    assert same(LPIPS.load(tmp_path / "lpips.ckpt"), lpips)


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
    with pytest.raises(InputError, match=r"another network than VGG16.*features\.0\.weight") as error:
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
