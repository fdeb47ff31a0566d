"""The class of each image of a sample set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ctf.errors import InputError
from ctf.sampling.random import LABELS, uniforms

#: More labels than this are a slip of the hand.
LARGEST_SET = 10**8

LabelPolicy = Literal["balanced", "uniform"]


def choose_labels(
    num_classes: int, policy: LabelPolicy | None, given: Sequence[int] | None, num: int | None, seed: int
) -> tuple[str, list[int]]:
    """The policy, "balanced", "uniform" or "given", and a label per image.

    Args:
        num_classes: labels are below this.
        policy: "balanced", all classes in turn, equally often up to one; or "uniform", drawn with the seed.
            Balanced when None and no labels are given.
        given: instead of a policy: repeated or cut to `num`.
        num: images; as many as classes or given labels when None.
        seed: of the first image, and of what is drawn. More images begin with the labels of fewer.

    Raises:
        InputError: no images, a seed out of range, or both labels and a policy.
    """
    if given and policy:
        raise InputError(f"label_policy {policy!r} beside labels: give one of them")
    count = num if num is not None else len(given or range(num_classes))
    if not 1 <= count <= LARGEST_SET:
        raise InputError(f"num {count}: ask for 1 to {LARGEST_SET:,} images")
    if not 0 <= seed <= 2**64 - count:
        raise InputError(f"seed {seed}: the seeds of {count} images are integers from 0 to 2^64 − 1")
    if policy == "uniform":
        return policy, (uniforms([seed], count, LABELS)[0] * num_classes).long().tolist()
    turn = given or range(num_classes)
    return "given" if given else "balanced", [turn[i % len(turn)] for i in range(count)]
