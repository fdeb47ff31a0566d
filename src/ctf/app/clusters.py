"""The codebook and its clusters, to look at: swaps within clusters (Fig. 1), and every codeword as a tile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ctf.codebook.clustering import cluster_codebook
from ctf.codebook.coarse_map import CoarseMap
from ctf.errors import InputError
from ctf.images.pixels import to_bytes, to_tensor
from ctf.images.sheet import contact_sheet
from ctf.layout import Layout
from ctf.pipeline import StagePipeline
from ctf.preview import level_embeddings
from ctf.tokenizer.measure import psnr

Method = Literal["kmeans", "random"]
METHODS: dict[Method, str] = {"kmeans": "k-means", "random": "random"}
#: Larger codebooks take minutes to cluster: for them the web app has the model's own clusters only.
CLUSTERED_AT_ONCE = 1 << 15
#: A tile is the middle of so many equal tokens in a square: at its border it is that codeword among its like.
AROUND = 3
TILES_AT_ONCE = 512
#: Tiles of a cluster in the overview, as a square of this side.
SIDE = 4
GAP = 4  # pixels around the clusters of the overview


class Clusters:
    """The clusterings of a pipeline's codebook; each is made once."""

    def __init__(self, pipeline: StagePipeline) -> None:
        self.pipeline, self.tokenizer = pipeline, pipeline.tokenizer
        own = [m for stage in pipeline.stages for m in (stage.predicts, stage.given) if m is not None]
        self._maps = {("kmeans", m.num_coarse): m for m in own}
        self._overviews: dict[int, tuple[Image.Image, list[int]]] = {}
        size = self.tokenizer.codebook_size
        others = [2**power for power in range(4, size.bit_length() - 1)] if size <= CLUSTERED_AT_ONCE else []
        #: Numbers of clusters to choose from, and the model's own or a middling one.
        self.counts = sorted({*others, *(m.num_coarse for m in own)})
        self.count = own[0].num_coarse if own else self.counts[len(self.counts) // 2] if self.counts else 0

    def clustering(self, count: int, method: Method = "kmeans") -> CoarseMap:
        """`count` clusters. Raises InputError: not one of `counts`."""
        if count not in self.counts:
            raise InputError(f"{count} clusters: choose one of {', '.join(map(str, self.counts))}")
        if (method, count) not in self._maps:
            self._maps[method, count] = cluster_codebook(self.tokenizer.codebook, count, method)
        return self._maps[method, count]

    @torch.inference_mode()
    def tokens(self, image: Image.Image) -> Tensor:
        """An image of the model's size in RGB → its tokens, int64 (N,)."""
        return self.tokenizer.encode(to_tensor(np.array(image)[None]).to(self.pipeline.device))[0].cpu()

    def decoded(self, tokens: Tensor) -> np.ndarray:
        """Tokens int64 (N,) → uint8 (H, W, 3)."""
        return self.pipeline.decode(tokens[None].to(self.pipeline.device))[0]

    @torch.inference_mode()
    def means(self, labels: Tensor, coarse_map: CoarseMap) -> np.ndarray:
        """What the clusters alone show: labels int64 (N,), each as its cluster's mean codeword → uint8 (H, W, 3)."""
        vectors = level_embeddings(self.tokenizer, coarse_map)[labels][None]
        return to_bytes(self.tokenizer.decode_embeddings(vectors, self.pipeline.layout))[0]

    def swaps(self, tokens: Tensor, share: float, count: int) -> dict[str, Image.Image]:
        """Swap a share of the tokens within clusters, k-means and random ones: the same positions in both.

        With a larger share the positions of a smaller one stay among those that are swapped.

        Returns:
            What was done, with the PSNR in dB against the image before → the image after.

        Raises:
            InputError: a number of clusters that there is not, or a share outside 0 to 1.
        """
        if not 0 <= share <= 1:
            raise InputError(f"share {share}: from 0 (none) to 1 (all tokens)")
        before, found = torch.from_numpy(self.decoded(tokens))[None], {}
        for method, name in METHODS.items():
            generator = torch.Generator().manual_seed(0)
            turn = torch.rand(len(tokens), generator=generator) < share
            clusters = self.clustering(count, method)
            if clusters.method != method:  # the model's own, made another way
                name = f"the model's own {clusters.method}"
            other = clusters.swap_within_cluster(tokens, generator)
            after = self.decoded(other.where(turn, tokens))
            loss = f": {psnr(before, torch.from_numpy(after)[None]).item():.1f}\u00a0dB" if turn.any() else ""
            found[f"{turn.sum()} of {len(tokens)} swapped within {name} clusters{loss}"] = Image.fromarray(after)
        return found

    @torch.inference_mode()
    def tiles(self, vectors: Tensor) -> np.ndarray:
        """Vectors (n, d) in the space of the codebook → a tile of each: uint8 (n, f, f, 3).

        It is cut from a field of equal vectors. Of several scales the field is the first one's, alone.
        """
        side, found = self.tokenizer.downsampling, []
        several = len(self.pipeline.layout) > 1
        layout = Layout.square(1, AROUND) if several else self.tokenizer.layout((AROUND * side, AROUND * side))
        for part in vectors.split(TILES_AT_ONCE):
            square = part[:, None].expand(-1, layout.sizes[0], -1)
            found.append(to_bytes(self.tokenizer.decode_embeddings(square, layout)))
        middle = slice(AROUND // 2 * side, (AROUND // 2 + 1) * side)
        return np.concatenate(found)[:, middle, middle]

    def member_tiles(self, count: int, cluster: int) -> tuple[list[int], np.ndarray]:
        """The tokens of a cluster, and a tile of each, uint8 (n, f, f, 3). Raises InputError: no such cluster."""
        members = self.clustering(count).members(cluster)
        return members.tolist(), self.tiles(self.tokenizer.codebook[members.to(self.pipeline.device)])

    def overview(self, count: int) -> Iterator[tuple[Image.Image, list[int]]]:
        """The codebook by cluster, from dark to light: each a block of up to `SIDE`² of its tokens' tiles.

        Yields:
            The picture so far, and the cluster of each of its blocks, row by row. A finished one is kept.
        """
        if count in self._overviews:
            yield self._overviews[count]
            return
        coarse_map, side = self.clustering(count), self.tokenizer.downsampling
        order = self.tiles(level_embeddings(self.tokenizer, coarse_map)).mean((1, 2, 3)).argsort(kind="stable").tolist()
        members = [
            (place, *divmod(i, SIDE), token)
            for place, cluster in enumerate(order)
            for i, token in enumerate(coarse_map.members(cluster)[: SIDE**2].tolist())
        ]
        blocks, columns = np.full((count, SIDE, side, SIDE, side, 3), 255, np.uint8), math.ceil(math.sqrt(count))
        for start in range(0, len(members), 4 * TILES_AT_ONCE):
            places, rows, cells, tokens = torch.tensor(members[start : start + 4 * TILES_AT_ONCE]).T
            blocks[places, rows, :, cells] = self.tiles(self.tokenizer.codebook[tokens.to(self.pipeline.device)])
            squares = blocks.reshape(count, SIDE * side, SIDE * side, 3)
            picture = contact_sheet([[*squares[i : i + columns]] for i in range(0, count, columns)], gap=GAP)
            yield picture, order
        self._overviews[count] = picture, order

    def cluster_at(self, count: int, x: float, y: float) -> int:
        """The cluster whose block is at a pixel of the overview, or nearest to it."""
        *_, (picture, order) = self.overview(count)
        columns = math.ceil(math.sqrt(count))
        step = (picture.width - GAP) / columns
        row, column = (max(int((at - GAP) / step), 0) for at in (y, x))
        return order[min(row * columns + min(column, columns - 1), count - 1)]
