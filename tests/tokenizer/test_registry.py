from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from ctf.errors import InputError
from ctf.files import read_metadata, save_tensors
from ctf.layout import Layout
from ctf.tokenizer import Tokenizer
from ctf.tokenizer.registry import TOKENIZERS, is_ours, load_tokenizer, register_tokenizer


@dataclass(frozen=True)
class GreyConfig:
    levels: int = 4
    pixels: int = 2


class Grey(Tokenizer):
    """One of K grey levels per square of pixels: the least that a tokenizer can be."""

    family = "grey"
    config_type = GreyConfig

    def __init__(self, config: GreyConfig) -> None:
        super().__init__()
        self.config = config
        self.levels = nn.Parameter(torch.linspace(-1, 1, config.levels)[:, None])

    @property
    def codebook(self) -> Tensor:
        return self.levels.detach()

    @property
    def downsampling(self) -> int:
        return self.config.pixels

    def encode(self, images: Tensor) -> Tensor:
        grey = nn.functional.avg_pool2d(images.mean(1, keepdim=True), self.downsampling)
        return (grey.flatten(1)[:, :, None] - self.codebook[:, 0]).abs().argmin(-1)

    def decode_embeddings(self, vectors: Tensor, layout: Layout) -> Tensor:
        squares = vectors.view(-1, 1, *layout.finest).repeat_interleave(self.downsampling, 2)
        return squares.repeat_interleave(self.downsampling, 3).expand(-1, 3, -1, -1)

    def decoding_memory(self, batch: int, layout: Layout, device_type: str, dtype: torch.dtype) -> int:
        return batch * layout.num_tokens * self.downsampling**2 * 3 * dtype.itemsize


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr("ctf.tokenizer.registry.TOKENIZERS", dict(TOKENIZERS))
    return register_tokenizer(Grey)


def test_a_family_from_elsewhere_is_saved_and_loaded(registered, tmp_path):
    tokenizer = registered(GreyConfig(levels=5, pixels=4))
    tokenizer.levels.data[2] = 0.1
    tokenizer.save(tmp_path / "tokenizer.safetensors")
    assert read_metadata(tmp_path / "tokenizer.safetensors")["family"] == "grey"
    for source in (tmp_path, tmp_path / "tokenizer.safetensors"):  # a folder, and the file
        assert is_ours(source)
        loaded = load_tokenizer(source)
        assert isinstance(loaded, Grey)
        assert loaded.config == tokenizer.config
        assert torch.equal(loaded.codebook, tokenizer.codebook)


def test_a_family_inherits_the_rest_of_the_interface(registered):
    tokenizer = registered(GreyConfig(levels=3))
    image = torch.tensor([[-1.0, 0.0, 1.0], [1.0, 1.0, -1.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    tokens = tokenizer.encode(image.expand(1, 3, 4, 6))
    assert tokens.tolist() == [[0, 1, 2, 2, 2, 0]]
    assert tokenizer.codebook_size == 3
    assert torch.equal(tokenizer.decode(tokens, tokenizer.layout((4, 6))), image.expand(1, 3, 4, 6))
    with pytest.raises(InputError, match="the codebook has 3"):
        tokenizer.decode(tokens + 1, Layout((2, 3)))
    assert tokenizer.decoder_parts() == [tokenizer]


def test_a_family_that_nobody_registered(tmp_path):
    Grey(GreyConfig()).save(tmp_path / "grey.safetensors")
    with pytest.raises(
        InputError, match="a tokenizer of the family 'grey', not one of vq, multi-scale: import the module"
    ) as error:
        load_tokenizer(tmp_path / "grey.safetensors")
    assert "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path):
    save_tensors(tmp_path / "map.safetensors", {"fine_to_coarse": torch.zeros(3)}, {"ctf": "coarse_map"})
    assert is_ours(tmp_path / "map.safetensors")
    assert not is_ours(tmp_path / "nothing.pt")
    with pytest.raises(InputError, match=r"not a ctf tokenizer.*coarse_map"):
        load_tokenizer(tmp_path / "map.safetensors")
    with pytest.raises(InputError, match=r"tokenizer\.safetensors: no such safetensors file"):
        load_tokenizer(tmp_path)
