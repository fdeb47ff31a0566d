import pytest
from colours import Quarters, frechet, quarters, random_images
from PIL import Image

from ctf.evaluation.reconstruction import reconstruction_distance
from ctf.images.image_set import open_images
from ctf.images.pixels import to_bytes, to_tensor


@pytest.fixture
def images(tmp_path):
    for i, image in enumerate(random_images(40)):
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    return open_images(str(tmp_path), size=8)


@pytest.mark.parametrize(
    ("name", "title"),
    [("inception", "rFID"), ("colours.py:quarters", "reconstruction Fréchet distance, quarters")],
)
def test_the_distance_is_between_images_and_their_reconstructions(make_tokenizer, images, name, title):
    tokenizer, pixels = make_tokenizer(), random_images(40)
    decoded = to_bytes(tokenizer.decode(tokenizer.encode(to_tensor(pixels))))
    expected = frechet(quarters(pixels), quarters(decoded))
    distance = reconstruction_distance(tokenizer, images, Quarters(name), batch_size=7, progress=False)
    assert distance == {title: pytest.approx(expected, rel=1e-4)}
