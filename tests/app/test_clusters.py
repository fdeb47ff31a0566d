"""Swaps within clusters, and the codebook as tiles."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from ctf.app.clusters import AROUND, SIDE, Clusters
from ctf.errors import InputError
from ctf.images import to_bytes
from ctf.layout import Layout


@pytest.fixture(scope="module")
def clusters(pipeline):
    return Clusters(pipeline)


@pytest.fixture
def tokens():
    return torch.randint(64, (16,), generator=torch.Generator().manual_seed(1))


def test_the_models_own_clusters_come_first(clusters, pipeline):
    assert (clusters.counts, clusters.count) == ([8, 16, 32], 8)
    assert clusters.clustering(8) is pipeline.stages[0].predicts
    assert clusters.clustering(16) is clusters.clustering(16)
    with pytest.raises(InputError, match="choose one of 8, 16, 32"):
        clusters.clustering(9)


def test_without_a_share_nothing_is_swapped(clusters, tokens):
    before = clusters.decoded(tokens)
    found = clusters.swaps(tokens, 0, 8)
    assert [*found] == [f"0 of 16 swapped within {name} clusters" for name in ("k-means", "random")]
    assert all(np.array_equal(after, before) for after in found.values())


@pytest.mark.parametrize("method", ["kmeans", "random"])
def test_all_swapped_tokens_lie_in_their_clusters(clusters, tokens, method, monkeypatch):
    """And those of a smaller share are among those of a larger one."""
    decoded = []
    monkeypatch.setattr(clusters, "decoded", lambda t: decoded.append(t) or np.zeros((16, 16, 3), np.uint8))
    place, coarse_map = {"kmeans": 1, "random": 2}[method], clusters.clustering(8, method)
    changed = []
    for share in (0.25, 0.5, 1):
        decoded.clear()
        said = [int(caption.split()[0]) for caption in clusters.swaps(tokens, share, 8)]
        after = decoded[place]
        assert torch.equal(coarse_map.to_coarse(after), coarse_map.to_coarse(tokens))
        changed.append({*(after != tokens).nonzero().flatten().tolist()})
        assert len(changed[-1]) <= said[0] == said[1]
    assert changed[0] < changed[1] < changed[2]
    alone = (coarse_map.sizes[coarse_map.to_coarse(tokens)] == 1).sum()
    assert len(changed[2]) == 16 - int(alone)


def test_clusters_made_another_way_are_called_so(pipeline, tokens, monkeypatch):
    fine = pipeline.stages[1]
    monkeypatch.setattr(fine, "given", dataclasses.replace(fine.given, method="random"))
    captions = [*Clusters(pipeline).swaps(tokens, 0, 8)]
    assert captions == [f"0 of 16 swapped within {name} clusters" for name in ("the model's own random", "random")]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_lies_between_0_and_1(clusters, tokens, share):
    with pytest.raises(InputError, match="from 0 \\(none\\) to 1"):
        clusters.swaps(tokens, share, 8)


def test_a_tile_is_the_middle_of_equal_tokens(clusters, pipeline):
    members, tiles = clusters.member_tiles(8, 3)
    assert members == pipeline.stages[0].predicts.members(3).tolist()
    square = torch.full((1, AROUND**2), members[1])
    whole = to_bytes(pipeline.tokenizer.decode(square, Layout.square(AROUND)))[0]
    assert np.array_equal(tiles[1], whole[4:8, 4:8])
    with pytest.raises(InputError, match="has the clusters 0 … 7"):
        clusters.member_tiles(8, 8)


def test_the_overview_shows_every_cluster_from_dark_to_light(clusters):
    *_, (picture, order) = clusters.overview(8)
    assert sorted(order) == list(range(8))
    block = SIDE * 4
    for place, cluster in enumerate(order):
        y, x = 4 + (block + 4) * (place // 3), 4 + (block + 4) * (place % 3)
        tiles = clusters.member_tiles(8, cluster)[1]
        for i, tile in enumerate(tiles[: SIDE**2]):
            top, left = y + 4 * (i // SIDE), x + 4 * (i % SIDE)
            there = np.asarray(picture)[top : top + 4, left : left + 4].astype(int)
            assert np.abs(there - tile).max() <= 1  # another batch rounds otherwise
        assert clusters.cluster_at(8, x + 1, y + block - 1) == cluster
    assert [again is picture for again, _ in clusters.overview(8)] == [True]


def test_clusters_alone_show_their_means(clusters, tokens):
    coarse_map = clusters.clustering(8)
    labels = coarse_map.to_coarse(tokens)
    image = clusters.means(labels, coarse_map)
    other = coarse_map.swap_within_cluster(tokens, torch.Generator().manual_seed(0))
    assert np.array_equal(image, clusters.means(coarse_map.to_coarse(other), coarse_map))
    assert Image.fromarray(image).size == (16, 16)


def test_a_tile_of_several_scales_is_of_the_first_alone(scales_pipeline):
    """The middle of a field that every position of the feature map sees alike, but for its border."""
    clusters, tokenizer = Clusters(scales_pipeline), scales_pipeline.tokenizer
    vectors = tokenizer.codebook[:3]
    tiles = clusters.tiles(vectors)
    assert tiles.shape == (3, 4, 4, 3)
    with torch.no_grad():
        found = tokenizer.decode_embeddings(vectors[:, None], Layout.square(1, AROUND))
    expected = to_bytes(found)[:, 4 * (AROUND // 2) :][:, :4, 4 * (AROUND // 2) :][:, :, :4]
    assert np.array_equal(tiles, expected)
    assert len({tile.tobytes() for tile in tiles}) == 3
