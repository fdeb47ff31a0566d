import numpy as np
import pytest
import torch
from image_files import image_bytes

from ctf.errors import InputError
from ctf.images.image_set import ImageSet
from ctf.images.pixels import to_tensor
from ctf.images.sources import Records
from ctf.tokenizer import LPIPS, TokenizerConfig, VQTokenizer
from ctf.tokenizer.measure import measure_tokenizer, psnr, ssim


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return VQTokenizer(TokenizerConfig(32, (1,), 1, 1, 8, codebook_size=64, codebook_dim=4, patch_size=8)).eval()


def make_images(pixels, corrupt=()):
    def encoded(index):
        return b"" if index in corrupt else image_bytes(pixels[index])

    return ImageSet(Records(np.zeros(len(pixels), np.int64), ["image"], str, encoded), "noise", pixels.shape[1])


def test_psnr_by_hand():
    image = torch.full((1, 2, 2, 3), 100, dtype=torch.uint8)
    other = image.clone()
    other[0, 0, 0, 0] = 112  # a mean squared error of 144 / 12 = 12
    assert psnr(image, other).item() == pytest.approx(10 * np.log10(255**2 / 12))
    assert psnr(image, image).item() == pytest.approx(10 * np.log10(255**2 / (0.25 / 12)))


def ssim_by_windows(image, other):
    """Wang et al. 2004, equations 13 to 16, with 2-d windows and centred moments."""
    axis = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(axis, axis) / axis.sum() ** 2
    values = []
    for channel in range(3):
        for top in range(image.shape[0] - 10):
            for left in range(image.shape[1] - 10):
                cut = np.s_[top : top + 11, left : left + 11, channel]
                x, y = image[cut].astype(float), other[cut].astype(float)
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                cov = (window * (x - mx) * (y - my)).sum()
                c1, c2 = 2.55**2, 7.65**2
                values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return np.mean(values)


def test_ssim_against_windows():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (2, 13, 16, 3), dtype=np.uint8)
    noise = generator.normal(0, 20, images.shape)
    others = np.clip(images + noise, 0, 255).astype(np.uint8)
    expected = [ssim_by_windows(*pair) for pair in zip(images, others, strict=True)]
    np.testing.assert_allclose(ssim(torch.from_numpy(images), torch.from_numpy(others)), expected, rtol=1e-9)


def test_ssim_of_itself_and_of_its_negative():
    image = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8))
    assert ssim(image, image).item() == pytest.approx(1, abs=1e-12)
    assert ssim(image, 255 - image).item() < -0.8


def test_ssim_of_too_small_an_image():
    image = torch.zeros(1, 10, 16, 3, dtype=torch.uint8)
    with pytest.raises(InputError, match="10 × 16"):
        ssim(image, image)


def test_metrics_against_numpy(tokenizer):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    metrics = measure_tokenizer(tokenizer, make_images(pixels, corrupt={2}), batch_size=2, progress=False)

    kept = pixels[[0, 1, 3, 4]]
    tokens = tokenizer.encode(to_tensor(kept))
    floats = tokenizer.decode(tokens).permute(0, 2, 3, 1).numpy()
    decoded = np.floor(np.clip(127.5 * floats + 128, 0, 255))
    errors = ((kept.astype(np.float64) - decoded) ** 2).reshape(4, -1).mean(1)
    similarities = [ssim_by_windows(*pair) for pair in zip(kept, decoded.astype(np.uint8), strict=True)]
    frequency = np.unique(tokens.numpy(), return_counts=True)[1] / tokens.numel()
    assert metrics["images"] == 4
    assert metrics["psnr"] == pytest.approx(np.mean(10 * np.log10(255**2 / errors)), abs=1e-3)
    assert metrics["psnr_of_mean"] == pytest.approx(10 * np.log10(255**2 / errors.mean()), abs=1e-3)
    assert metrics["psnr_of_mean"] <= metrics["psnr"]
    assert metrics["ssim"] == pytest.approx(np.mean(similarities), abs=1e-5)
    spread = {"psnr": np.std(10 * np.log10(errors), ddof=1), "ssim": np.std(similarities, ddof=1)}
    assert metrics["standard_error"] == pytest.approx({name: s / 2 for name, s in spread.items()}, rel=1e-3)
    assert metrics["usage"] == pytest.approx(len(frequency) / 64)
    assert metrics["perplexity"] == pytest.approx(np.exp(-(frequency * np.log(frequency)).sum()))


def test_lpips_of_what_is_decoded(tokenizer):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    perceptual = LPIPS("alex")
    for head in perceptual.heads:
        head.weight.abs_()
    metrics = measure_tokenizer(tokenizer, make_images(pixels), batch_size=2, progress=False, perceptual=perceptual)
    decoded = tokenizer.decode(tokenizer.encode(to_tensor(pixels)))
    decoded = to_tensor(torch.floor((127.5 * decoded + 128).clamp(0, 255)).byte().permute(0, 2, 3, 1).numpy())
    distances = perceptual(to_tensor(pixels), decoded)
    assert metrics["lpips"] == pytest.approx(distances.mean().item(), rel=1e-5)
    assert metrics["standard_error"]["lpips"] == pytest.approx(distances.std().item() / 3**0.5, rel=1e-3)


def test_of_large_images_fewer_are_in_memory_at_once(tokenizer, monkeypatch):
    images, sizes = make_images(np.zeros((5, 128, 128, 3), np.uint8)), []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda tokens, layout: sizes.append(len(tokens)) or decode(tokens, layout))
    measure_tokenizer(tokenizer, images, batch_size=8, progress=False)
    assert sizes == [2, 2, 1]


def test_nothing_readable(tokenizer):
    images = make_images(np.zeros((2, 16, 16, 3), np.uint8), corrupt={0, 1})
    with pytest.raises(InputError, match="not one image is readable"):
        measure_tokenizer(tokenizer, images, progress=False)
