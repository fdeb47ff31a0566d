import copy
import itertools
import math

import numpy as np
import pytest
import torch

from ctf.errors import InputError
from ctf.evaluation import bits_per_token
from ctf.tokens import write_token_set

KINDS = pytest.mark.parametrize("kind", ["baseline", "cluster", "full"])


def write(folder, pipeline, tokens, labels, **settings):
    codebook = pipeline.tokenizer.codebook
    own = {"codebook_size": len(codebook), "grid": pipeline.grid, "class_names": pipeline.class_names}
    return write_token_set(folder, np.asarray(tokens), np.asarray(labels), **own | {"codebook": codebook} | settings)


@torch.no_grad()
def log_probability(stage, tokens, label):
    """log P of one sequence under a stage, in float64: each term by the definition, from the logits of all labels."""

    def labels_of(level, numbers):
        return list(numbers) if level is None else level.fine_to_coarse[list(numbers)].tolist()

    unrestricted = copy.deepcopy(stage)
    unrestricted.members = None
    given = [None] * len(tokens) if stage.given is None else labels_of(stage.given, tokens)
    total = 0.0
    for i, right in enumerate(labels_of(stage.predicts, tokens)):
        # A causal stage is shown each prefix by itself: what follows it is token 0.
        shown = [*tokens[:i], *[0] * (len(tokens) - i)] if stage.kind == "autoregressive" else tokens
        logits = unrestricted.logits(torch.tensor([shown]), torch.tensor([label]))[0, i].tolist()
        allowed = range(stage.vocabulary)
        if stage.given is not None and stage.support == "cluster":
            allowed = [k for k, cluster in enumerate(labels_of(stage.given, allowed)) if cluster == given[i]]
        total += logits[right] - math.log(sum(math.exp(logits[k]) for k in allowed))
    return total


@KINDS
def test_against_the_definition(make_pipeline, tmp_path, kind):
    pipeline = make_pipeline(kind)
    generator = np.random.default_rng(0)
    tokens, labels = generator.integers(0, 24, (10, 6)), generator.integers(0, 4, 10)
    token_set = write(tmp_path / "set", pipeline, tokens, labels, shard_size=4)
    metrics = bits_per_token(pipeline, token_set, batch_size=3, progress=False)

    rows = list(zip(tokens.tolist(), labels, strict=True))
    terms = {
        stage.name: -sum(log_probability(stage, *row) for row in rows) / 60 / math.log(2) for stage in pipeline.stages
    }
    assert metrics["bits_per_token"] == pytest.approx(sum(terms.values()), rel=1e-5)
    if len(terms) > 1:
        assert {name: metrics[f"{name}_bits_per_token"] for name in terms} == pytest.approx(terms, rel=1e-5)
    assert metrics.get("bound") == ("upper" if kind == "full" else None)


@pytest.mark.parametrize("kind", ["baseline", "cluster"])
def test_probabilities_of_all_sequences_sum_to_one(make_pipeline, tmp_path, kind):
    pipeline = make_pipeline(kind, codebook_size=6, num_clusters=2, grid=(1, 2))
    total = 0.0
    for a, b in itertools.product(range(6), repeat=2):
        token_set = write(tmp_path / f"{a}-{b}", pipeline, [[a, b]], [3])
        total += 2 ** (-2 * bits_per_token(pipeline, token_set, progress=False)["bits_per_token"])
    assert total == pytest.approx(1.0, abs=1e-5)


def test_full_support_wastes_probability_outside_the_clusters(make_pipeline, tmp_path):
    cluster, full = make_pipeline("cluster"), make_pipeline("full")
    token_set = write(tmp_path / "set", full, [[3, 1, 4, 1, 5, 9]], [0])
    narrow, wide = (bits_per_token(pipeline, token_set, progress=False) for pipeline in (cluster, full))
    assert narrow["coarse_bits_per_token"] == wide["coarse_bits_per_token"]
    assert narrow["fine_bits_per_token"] < wide["fine_bits_per_token"]


@KINDS
def test_accuracy_counts_what_greedy_sampling_would_draw(make_pipeline, tmp_path, kind):
    pipeline = make_pipeline(kind)
    greedy = {f"{stage.name}_temperature": 0.0 for stage in pipeline.stages}
    labels = torch.arange(4)
    tokens = pipeline.generate_tokens(labels, range(4), **greedy)
    metrics = bits_per_token(pipeline, write(tmp_path / "set", pipeline, tokens, labels), progress=False)
    accuracies = {key: value for key, value in metrics.items() if "accuracy" in key}
    if kind == "full":  # whose greedy tokens may lie outside the cluster that was drawn
        assert set(accuracies) == {"coarse_accuracy", "fine_accuracy"}
    else:
        assert accuracies == dict.fromkeys(accuracies, 1.0)
        assert len(accuracies) == (1 if kind == "baseline" else 2)


def test_the_first_augmentation_is_measured(make_pipeline, tmp_path):
    pipeline = make_pipeline("baseline")
    tokens = np.random.default_rng(0).integers(0, 24, (5, 2, 6))
    both = write(tmp_path / "both", pipeline, tokens, [0] * 5, augmentations=["none", "flip"])
    first = write(tmp_path / "first", pipeline, tokens[:, 0], [0] * 5)
    assert bits_per_token(pipeline, both, progress=False) == bits_per_token(pipeline, first, progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codebook_size": 25, "codebook": None}, "codebook of 25"),
        ({"codebook": torch.ones(24, 4)}, "another codebook"),
        ({"grid": (3, 2)}, "grid or classes"),
        ({"class_names": list("abcde")}, "grid or classes"),
    ],
)
def test_tokens_of_another_model(make_pipeline, tmp_path, settings, message):
    pipeline = make_pipeline("cluster")
    token_set = write(tmp_path / "set", pipeline, [[0] * 6], [0], **settings)
    with pytest.raises(InputError, match=message):
        bits_per_token(pipeline, token_set, progress=False)
