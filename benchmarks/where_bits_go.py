r"""Where coarse-to-fine needs more bits than a one-stage baseline: in the clusters, or in the tokens within them?

    python benchmarks/where_bits_go.py parts --model photos --baseline runs/photos-baseline-model \
        --tokens runs/photos-tokens/val
    python benchmarks/where_bits_go.py context --train runs/photos-tokens/train \
        --tokens runs/photos-tokens/val --map runs/photos-map.safetensors

`parts` splits the baseline's bits of a token into those of its cluster, whose probability is the sum of its members',
and those of the token given its cluster, beside the bits of stage 1 and stage 2 on the same images, one per class.
`context` asks what stage 1 misses by seeing clusters only: the same small network (two hidden layers of 384) predicts a
token's cluster from the twelve tokens nearest to it among those before, given as codewords or as their clusters' means.
"""

from __future__ import annotations

import argparse
import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctf.codebook.coarse_map import CoarseMap
from ctf.evaluation.likelihood import of_classes
from ctf.interop.tokenizers import open_tokenizer
from ctf.model_folder import Pipeline
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


def context(train: str, tokens: str, coarse_map: str) -> None:
    codebook, given = open_tokenizer("photos").codebook, CoarseMap.load(coarse_map)
    cluster, means = given.fine_to_coarse, given.means(codebook)
    sets = {name: TokenSet.open(name).gather(range(len(TokenSet.open(name)))) for name in (train, tokens)}
    cells = torch.tensor([(row, column) for row in range(3, 16) for column in range(3, 14)])  # all neighbours inside
    at = cells @ torch.tensor([16, 1])
    around = at[:, None] + torch.tensor(NEIGHBOURS) @ torch.tensor([16, 1])  # (cells, neighbours)

    def bits(table: Tensor) -> Tensor:
        """Of the clusters in each held-out image, predicted from rows of `table` (V, dim)."""
        torch.manual_seed(0)
        widths = (len(NEIGHBOURS) * table.shape[1], 384, 384, given.num_coarse)
        network = nn.Sequential(*(part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.GELU())))[:-1]
        optimizer = torch.optim.AdamW(network.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, STEPS)
        for _ in range(STEPS):
            image, cell = torch.randint(len(sets[train]), (BATCH,)), torch.randint(len(at), (BATCH,))
            x = table[sets[train][image[:, None], around[cell]]].flatten(1)
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(x)
            F.cross_entropy(logits.float(), cluster[sets[train][image, at[cell]]]).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        with torch.inference_mode():
            each = [
                F.cross_entropy(network(table[image[around]].flatten(1)), cluster[image[at]]) for image in sets[tokens]
            ]
        return torch.stack(each) / math.log(2)

    by_tokens, by_clusters = bits(codebook), bits(means[cluster])
    print(f"given tokens {spread(by_tokens)}, given clusters {spread(by_clusters)}", end=", ")
    print(f"difference {spread(by_clusters - by_tokens)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, options in (("parts", ("model", "baseline", "tokens")), ("context", ("train", "tokens", "map"))):
        of_verb = verbs.add_parser(verb)
        for option in options:
            of_verb.add_argument(f"--{option}", required=True)
    given = parser.parse_args()
    if given.verb == "parts":
        parts(given.model, given.baseline, given.tokens)
    else:
        context(given.train, given.tokens, given.map)


if __name__ == "__main__":
    main()
