import pytest
import torch

from ctf.codebook import CoarseMap
from ctf.models import Transformer, TransformerConfig


@pytest.fixture
def coarse_map():
    """30 tokens in 6 clusters of 1 to 12 members."""
    labels = torch.arange(6).repeat_interleave(torch.tensor([1, 2, 3, 5, 7, 12]))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    return CoarseMap(labels[order], method="test", seed=0, codebook_fingerprint="none")


@pytest.fixture
def causal_model():
    return model(attention="causal", input_vocab=13, output_vocab=13)


@pytest.fixture
def fine_model():
    return model(attention="full", input_vocab=6, output_vocab=30)


def model(**vocabularies):
    """Small, in evaluation mode, with logits of a standard deviation near 1."""
    config = TransformerConfig(**vocabularies, grid=(2, 4), num_classes=5, layers=2, heads=2, dim=16, ffn_multiple=8)
    transformer = Transformer(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in transformer.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return transformer
