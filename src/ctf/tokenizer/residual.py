"""The sum of residual scales (VAR, arXiv 2404.02905, algorithms 1 and 2): what a scale adds, what the next one sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctf.errors import InputError
from ctf.fingerprint import joint_fingerprint
from ctf.layout import Grid, Layout

#: Which of four shared convolutions each scale takes, by the number of scales S. VAR gives scale k the one whose tick,
#: of 1/12, 13/36, 23/36, 11/12, is nearest to k / (S − 1). Exact ties, as with ten scales, fell as float64 rounded, so
#: the outcome is a table.
CONVOLUTION_OF_SCALE = {
    2: (0, 3),
    3: (0, 2, 3),
    4: (0, 1, 2, 3),
    5: (0, 1, 2, 2, 3),
    6: (0, 0, 1, 2, 3, 3),
    7: (0, 0, 1, 2, 2, 3, 3),
    8: (0, 0, 1, 1, 2, 2, 3, 3),
    9: (0, 0, 1, 1, 2, 2, 2, 3, 3),
    10: (0, 0, 1, 1, 1, 2, 2, 3, 3, 3),
    11: (0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3),
    12: (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3),
    13: (0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3),
    14: (0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3),
}


class ResidualSum(nn.Module):
    """f̂ (B, d, H, W), the sum of what the vectors of each scale contribute to the feature map, in float32.

    It holds the shared convolutions ψ and no codebook: vectors are codewords, or means of codewords in their place.
    One set of convolutions serves any list of 2 to 14 scales, so the layout is an argument.

    Args:
        dim: d.
        convolutions: how many convolutions the scales share: 4, or 1 for all.

    Raises:
        InputError: another number of convolutions.
    """

    def __init__(self, dim: int, convolutions: int = 4) -> None:
        super().__init__()
        if convolutions not in (1, 4):
            raise InputError(f"{convolutions} convolutions shared by the scales: it must be 4, or 1 for all scales")
        self.convolutions = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(convolutions))

    def convolution_of_scale(self, layout: Layout) -> tuple[int, ...]:
        """Number of the convolution that each scale takes. Raises InputError: fewer than 2 scales, or more than 14."""
        if len(layout) not in CONVOLUTION_OF_SCALE:
            raise InputError(f"{len(layout)} scales: a multi-scale tokenizer has from 2 to {max(CONVOLUTION_OF_SCALE)}")
        return CONVOLUTION_OF_SCALE[len(layout)] if len(self.convolutions) > 1 else (0,) * len(layout)

    def contribution(self, vectors: Tensor, scale: int, layout: Layout) -> Tensor:
        """Contribution of one scale's vectors (B, n, d) to f̂: (h + ψ(h)) / 2 of the upsampled vectors h, (B, d, H, W).

        Without gradients an image's is the same whatever its batch: a CPU, which rounds a convolution of another batch
        otherwise, takes one image at a time.
        """
        convolution = self.convolutions[self.convolution_of_scale(layout)[scale]]
        kind = vectors.device.type
        with nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False):
            h = to_map(vectors.float(), layout[scale])  # (B, d, rows, columns)
            if scale < len(layout) - 1:
                h = F.interpolate(h, size=layout.finest, mode="bicubic")
            h = h.contiguous(memory_format=torch.channels_last)  # of a 1 × 1 grid interpolation cannot tell the format
            alone = kind == "cpu" and not torch.is_grad_enabled()
            added = torch.cat([convolution(image) for image in h.split(1)]) if alone else convolution(h)
            return 0.5 * h + 0.5 * added

    def partial_sums(self, vectors: Tensor, layout: Layout) -> Iterator[Tensor]:
        """f̂ (B, d, H, W) after each scale of vectors (B, n, d).

        They may be those of the first scales only. A scale that is not known yet is left out of the sum: since ψ has a
        bias, zeros in its place would add something.

        Raises:
            InputError: n is not the size of the first scales, one or more.
        """
        known = [part for part in layout.slices if part.stop <= vectors.shape[1]]
        if not known or known[-1].stop != vectors.shape[1]:
            raise InputError(f"{vectors.shape[1]} vectors are not those of the first scales of {layout}")
        f_hat = self.contribution(vectors[:, known[0]], 0, layout)
        yield f_hat
        for scale, part in enumerate(known[1:], 1):
            f_hat = f_hat + self.contribution(vectors[:, part], scale, layout)
            yield f_hat

    def forward(self, vectors: Tensor, layout: Layout) -> Tensor:
        """The last of `partial_sums`."""
        *_, f_hat = self.partial_sums(vectors, layout)
        return f_hat

    def input_of_scale(self, f_hat: Tensor, scale: int, layout: Layout) -> Tensor:
        """f̂ of the scales before `scale`, area-pooled to its grid: (B, d, H, W) → (B, n, d).

        A next-scale transformer predicts this scale from it.
        """
        return to_rows(F.adaptive_avg_pool2d(f_hat, layout[scale]))

    def next_scale_input(self, vectors: Tensor, layout: Layout) -> Tensor:
        """`input_of_scale` of scales 1 … S − 1, with the true vectors (B, N, d) before each: (B, N − n_0, d)."""
        sums = self.partial_sums(vectors[:, : layout.slices[-1].start], layout)
        return torch.cat([self.input_of_scale(f_hat, scale, layout) for scale, f_hat in enumerate(sums, 1)], 1)

    def fingerprint(self, codebook: Tensor) -> str:
        """16 hexadecimal digits of a codebook (K, d) and the convolutions, which together give tokens their meaning."""
        return joint_fingerprint([codebook, *self.parameters()])


def to_map(rows: Tensor, grid: Grid) -> Tensor:
    """(B, n, d) → (B, d, rows, columns), a view in channels-last format."""
    return rows.transpose(1, 2).unflatten(2, grid)


def to_rows(maps: Tensor) -> Tensor:
    """(B, d, rows, columns) → (B, n, d): the inverse of `to_map`."""
    return maps.flatten(2).transpose(1, 2)
