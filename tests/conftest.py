import pytest
import torch

from ctf.codebook import cluster_codebook
from ctf.models import Transformer, TransformerConfig
from ctf.pipeline import Pipeline
from ctf.tokenizer import TokenizerConfig, VQTokenizer

CLASS_NAMES = ["cat", "red fox", "dog", "owl"]


@pytest.fixture
def make_tokenizer():
    """A random tokenizer of 4 × 4 pixels per token, in evaluation mode."""

    def make(codebook_size=24, seed=0):
        torch.manual_seed(seed)
        sizes = {"base_channels": 32, "channel_multipliers": (1,), "z_channels": 32, "patch_size": 4}
        blocks = {"encoder_blocks": 1, "decoder_blocks": 1}
        return VQTokenizer(TokenizerConfig(**sizes, **blocks, codebook_size=codebook_size, codebook_dim=4)).eval()

    return make


@pytest.fixture
def make_transformer():
    """A random Transformer in evaluation mode, whose logits have a standard deviation near 1."""

    def make(input_vocab, output_vocab, attention="causal", grid=(2, 3), num_classes=4, seed=0):
        config = TransformerConfig(
            input_vocab, output_vocab, grid, num_classes, layers=2, heads=2, dim=16, ffn_multiple=8, attention=attention
        )
        model = Transformer(config).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        return model

    return make


@pytest.fixture
def make_parts(make_tokenizer, make_transformer):
    """What a pipeline of a kind is made of: "baseline", or coarse-to-fine with the support "cluster" or "full"."""

    def make(kind, codebook_size=24, num_clusters=5, grid=(2, 3)):
        tokenizer = make_tokenizer(codebook_size)
        parts = {"tokenizer": tokenizer, "class_names": CLASS_NAMES}
        if kind == "baseline":
            return parts | {"baseline": make_transformer(codebook_size, codebook_size, grid=grid)}
        return parts | {
            "coarse": make_transformer(num_clusters, num_clusters, grid=grid),
            "fine": make_transformer(num_clusters, codebook_size, "full", grid=grid, seed=1),
            "coarse_map": cluster_codebook(tokenizer.codebook, num_clusters),
            "support": kind,
        }

    return make


@pytest.fixture
def make_pipeline(make_parts):
    def make(kind, **sizes):
        return Pipeline(**make_parts(kind, **sizes))

    return make
