r"""Where coarse-to-fine needs more bits than a one-stage baseline: in the clusters, or in the tokens within them?

    python benchmarks/where_bits_go.py parts --model photos --baseline runs/photos-baseline-model \
        --tokens runs/photos-tokens/val
    python benchmarks/where_bits_go.py context --train runs/photos-tokens/train \
        --tokens runs/photos-tokens/val --map runs/photos-map.safetensors
    python benchmarks/where_bits_go.py rounds --train runs/photos-tokens/train \
        --tokens runs/photos-tokens/val --map runs/photos-map.safetensors

`parts` splits the baseline's bits of a token into those of its cluster, whose probability is the sum of its members',
and those of the token given its cluster, beside the bits of stage 1 and stage 2 on the same images, one per class.
`context` asks what stage 1 misses by seeing clusters only: the same small network (two hidden layers of 384) predicts a
token's cluster from the twelve tokens nearest to it among those before, given as codewords or as their clusters' means.
`rounds` asks what rounds of stage 2 can gain: a small network (two hidden layers of 512) predicts a token within its
cluster from the 24 positions around it, their clusters' means and the codewords of those that earlier rounds chose.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctf.codebook.coarse_map import CoarseMap
from ctf.evaluation.likelihood import of_classes
from ctf.interop.tokenizers import open_tokenizer
from ctf.layout import Layout
from ctf.model_folder import Pipeline
from ctf.models.cluster_head import ClusterMembers, member_logits
from ctf.sampling.orders import group_sizes, order_groups
from ctf.tokens.token_set import TokenSet

STEPS, BATCH = 2500, 2048
#: Rows and columns from a token to those that it is predicted from.
NEIGHBOURS = [(0, -1), (0, -2), (0, -3)]
NEIGHBOURS += [(-1, -2), (-1, -1), (-1, 0), (-1, 1), (-1, 2), (-2, -1), (-2, 0), (-2, 1), (-3, 0)]


def spread(bits: Tensor) -> str:
    """Mean ± standard error of values (images,)."""
    return f"{bits.mean():.3f} ± {bits.std() / len(bits) ** 0.5:.3f}"


@torch.inference_mode()
def parts(model: str, baseline: str, tokens: str) -> None:
    ours, theirs = Pipeline.from_pretrained(model, "cpu"), Pipeline.from_pretrained(baseline, "cpu")
    token_set, found = TokenSet.open(tokens), []
    sets = of_classes(theirs, token_set), of_classes(ours, token_set)
    cluster = ours.stage("fine").given.fine_to_coarse
    for image in np.unique(token_set.labels, return_index=True)[1]:
        x, labels = sets[0].gather([image]), [torch.from_numpy(each.labels[[image]]) for each in sets]
        p = theirs.stages[0].logits(x, labels[0])[0].softmax(-1)  # (N, V)
        of_clusters = torch.zeros(len(p), int(cluster.max()) + 1).index_add_(1, cluster, p)
        token, coarse = p.gather(1, x[0, :, None]), of_clusters.gather(1, cluster[x[0]][:, None])
        by_ours = [stage.scores(x, labels[1])[0].mean() / -math.log(2) for stage in ours.stages]
        found.append(torch.stack([-coarse.log2().mean(), (coarse / token).log2().mean(), *by_ours]))
    split = torch.stack(found).T
    for name, ours_is, baseline_is in ("cluster", split[2], split[0]), ("token given its cluster", split[3], split[1]):
        print(f"{name}: baseline {spread(baseline_is)}, model {spread(ours_is)}", end=", ")
        print(f"difference {spread(ours_is - baseline_is)}")


def read(train: str, tokens: str, coarse_map: str) -> tuple[Tensor, CoarseMap, Tensor, Tensor]:
    """Codebook (V, dim), clusters, and tokens (images, 256) of both sets."""
    sets = [TokenSet.open(name) for name in (train, tokens)]
    images, held_out = (each.gather(range(len(each))) for each in sets)
    return open_tokenizer("photos").codebook, CoarseMap.load(coarse_map), images, held_out


def learn(network: nn.Module, loss: Callable[[], Tensor]) -> None:
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, STEPS)
    for _ in range(STEPS):
        loss().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def perceptron(inputs: int, outputs: int, width: int = 384) -> nn.Module:
    """Two hidden layers."""
    pairs = pairwise((inputs, width, width, outputs))
    return nn.Sequential(*(part for pair in pairs for part in (nn.Linear(*pair), nn.GELU())))[:-1]


def context(train: str, tokens: str, coarse_map: str) -> None:
    codebook, given, images, held_out = read(train, tokens, coarse_map)
    cluster = given.fine_to_coarse
    cells = torch.tensor([(row, column) for row in range(3, 16) for column in range(3, 14)])  # all neighbours inside
    at = cells @ torch.tensor([16, 1])
    around = at[:, None] + torch.tensor(NEIGHBOURS) @ torch.tensor([16, 1])  # (cells, neighbours)

    def bits(table: Tensor) -> Tensor:
        """Of the clusters in each held-out image, predicted from rows of `table` (V, dim)."""
        torch.manual_seed(0)
        network = perceptron(len(NEIGHBOURS) * table.shape[1], given.num_coarse)

        def loss() -> Tensor:
            image, cell = torch.randint(len(images), (BATCH,)), torch.randint(len(at), (BATCH,))
            x = table[images[image[:, None], around[cell]]].flatten(1)
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(x)
            return F.cross_entropy(logits.float(), cluster[images[image, at[cell]]])

        learn(network, loss)
        with torch.inference_mode():
            each = [F.cross_entropy(network(table[image[around]].flatten(1)), cluster[image[at]]) for image in held_out]
        return torch.stack(each) / math.log(2)

    by_tokens, by_clusters = bits(codebook), bits(given.means(codebook)[cluster])
    print(f"given tokens {spread(by_tokens)}, given clusters {spread(by_clusters)}", end=", ")
    print(f"difference {spread(by_clusters - by_tokens)}")


class WithinCluster(nn.Module):
    """Logits of the members of a position's cluster, from the 24 positions around it: their clusters' means, and the
    codewords of those that are known."""

    def __init__(self, codebook: Tensor, given: CoarseMap) -> None:
        super().__init__()
        means = given.means(codebook)[given.fine_to_coarse]  # (V, dim)
        rest = codebook - means
        # The last row stands for what is outside the image.
        self.means, self.rest = (F.pad(x / x.std(), (0, 0, 0, 1)) for x in (means, rest))
        self.cluster, self.members = given.fine_to_coarse, ClusterMembers(given)
        self.network = perceptron(24 * (2 * codebook.shape[1] + 2) + codebook.shape[1], 64, 512)
        self.weight = nn.Parameter(0.1 * torch.randn(len(codebook), 64))

    def forward(self, images: Tensor, at: Tensor, known: Tensor) -> Tensor:
        """Tokens (B, 256), a position of each (B,), and which around it are known, bool (B, 24): errors (B,), in nats.

        A position outside the image counts as unknown.
        """
        own, tokens = images.gather(1, at[:, None])[:, 0], around(images, at, len(self.weight))
        outside = tokens == len(self.weight)
        known = known & ~outside
        around_it = (self.means[tokens], self.rest[tokens] * known[..., None], known[..., None], outside[..., None])
        x = torch.cat([*(part.flatten(1).float() for part in around_it), self.means[own]], 1)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.network(x)
        logits = member_logits(hidden.float(), self.weight, self.cluster[own], self.members)
        return F.cross_entropy(logits, self.members.index[own], reduction="none")


def around(grid: Tensor, at: Tensor, outside: int) -> Tensor:
    """Values (B, 24) of a grid (B, 256) at the positions around `at` (B,), nearest two rows and columns."""
    padded = F.pad(grid.view(-1, 16, 16), (2, 2, 2, 2), value=outside).flatten(1)
    window = torch.tensor([20 * row + column for row in range(5) for column in range(5) if (row, column) != (2, 2)])
    return padded.gather(1, (at // 16 * 20 + at % 16)[:, None] + window)


def rounds(train: str, tokens: str, coarse_map: str) -> None:
    codebook, given, images, held_out = read(train, tokens, coarse_map)
    torch.manual_seed(0)
    network = WithinCluster(codebook, given)

    def loss() -> Tensor:
        chosen, at = images[torch.randint(len(images), (BATCH,))], torch.randint(256, (BATCH,))
        known = torch.rand(BATCH, 24) < torch.rand(BATCH, 1)
        known[: BATCH // 8] = False  # the first round, which needs most bits
        return network(chosen, at, known).mean()

    learn(network, loss)
    each, bits = torch.arange(256), {}
    for count in (1, 2, 4, 8, 16, 256):
        groups = order_groups("halton", Layout.square(16), tuple(group_sizes(256, count, "uniform")))
        round_of = torch.empty(256, dtype=torch.int64)
        for number, at in enumerate(groups):
            round_of[at] = number
        known = around(round_of.expand(256, -1), each, count) < round_of[:, None]
        with torch.inference_mode():
            errors = [network(image.expand(256, -1), each, known).mean() for image in held_out]
        bits[count] = torch.stack(errors) / math.log(2)
        print(f"{count} rounds: {spread(bits[count])}, difference to one {spread(bits[count] - bits[1])}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for run, options in (
        (parts, ("model", "baseline", "tokens")),
        (context, ("train", "tokens", "map")),
        (rounds, ("train", "tokens", "map")),
    ):
        of_verb = verbs.add_parser(run.__name__)
        of_verb.set_defaults(run=run, options=options)
        for option in options:
            of_verb.add_argument(f"--{option}", required=True)
    given = parser.parse_args()
    given.run(*(getattr(given, option) for option in given.options))


if __name__ == "__main__":
    main()
