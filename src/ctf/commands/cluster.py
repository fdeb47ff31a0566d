"""`ctf cluster`."""

from __future__ import annotations

from typing import Literal

from ctf.files import check_writable


def cluster(
    out: str,
    codebook: str = "emoji",
    num_clusters: int = 512,
    method: Literal["kmeans", "balanced", "ward", "random"] = "kmeans",
    seed: int = 0,
    finer: str | None = None,
    tokens: str | None = None,
    allow_namespace: bool = False,
) -> None:
    """Cluster a codebook and write the coarse map.

    Example:
        ctf cluster --codebook emoji --num_clusters 512 --out runs/map.safetensors

    Args:
        out: the coarse map, a safetensors file.
        codebook: a tokenizer ("emoji", "photos", a file, a folder, LlamaGen's file), or a matrix in .npy, .pt or
            .safetensors ("file:key" where it holds several), or an implicit one: lfq:18, bsq:18, fsq:8,8,8,5,5,5.
        num_clusters: M.
        method: k-means; equal cluster sizes; Ward's agglomerative clustering; or a random partition, the paper's
            control.
        seed: of the clustering.
        finer: a map of this codebook whose clusters are kept whole, for a hierarchy of stages.
        tokens: a token set; kmeans and ward then count each codeword as often as it occurs there, plus once.
        allow_namespace: accept an argparse.Namespace beside the weights of a .pt file.
    """
    from ctf.codebook import CoarseMap, cluster_codebook, describe, format_description
    from ctf.interop.tokenizers import open_codebook
    from ctf.tokens import TokenSet

    check_writable(out)
    matrix = open_codebook(codebook, allow_namespace)
    parts = CoarseMap.load(finer) if finer else None
    counts = None
    if tokens:
        token_set = TokenSet.open(tokens)
        token_set.check_codebook(matrix)
        counts = token_set.token_counts()
    coarse_map = cluster_codebook(matrix, num_clusters, method, seed, parts, counts)
    coarse_map.save(out)
    print(f"{out}: {format_description(describe(matrix, coarse_map))}")
