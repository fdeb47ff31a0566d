import pytest
import torch

from ctf.codebook import CoarseMap
from ctf.layout import Layout
from ctf.models import KeyValueCache, Transformer, TransformerConfig


@pytest.fixture
def make_model():
    """A small Transformer in evaluation mode whose every weight matters: norms are not one, the head is not zero."""

    def make(**settings):
        defaults = {
            "input_vocab": 11,
            "output_vocab": 11,
            "layout": Layout((2, 3)),
            "num_classes": 5,
            "layers": 2,
            "heads": 4,
        }
        config = TransformerConfig(**{**defaults, "dim": 32, "ffn_multiple": 8, **settings})
        generator = torch.Generator().manual_seed(0)
        model = Transformer(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                offset = 1.0 if parameter.ndim == 1 else 0.0
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + offset)
        return model

    return make


@pytest.fixture
def stepwise():
    """Logits of a causal model at each position of known tokens (B, N), one step after another."""

    @torch.inference_mode()
    def stepwise(model, tokens, labels, given=None):
        dtype = getattr(model, "dtype", torch.float32)
        cache = KeyValueCache(model.config, len(labels), torch.device("cpu"), dtype)
        x, steps = model.label_embedding(labels), []
        for i in range(tokens.shape[1]):
            x = x if given is None else x + model.given_embedding(given[:, i])
            steps.append(model.head(model.step(x, cache, i)).float())
            x = model.token_embedding(tokens[:, i])
        return torch.stack(steps, 1)

    return stepwise


@pytest.fixture
def tokens():
    """(3, 6), of 11."""
    return torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def given():
    """Labels of a coarser level: (3, 6), of 4."""
    return torch.randint(4, (3, 6), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def make_map():
    def make(*labels):
        return CoarseMap(torch.tensor(labels), method="test", seed=0, codebook_fingerprint="none")

    return make
