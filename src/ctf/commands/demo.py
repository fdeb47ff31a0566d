"""`ctf demo`."""

from __future__ import annotations


def demo(out: str = "runs/demo", quick: bool = False, seed: int = 0) -> None:
    """`ctf fit --baseline` on six kinds of the bundled emoji: tokenize, cluster, train, sample, compare.

    Example:
        ctf demo --quick --out runs/quick

    Args:
        out: folder for what `ctf fit` writes, the images that it learns from, bundled.png and swap.png. An interrupted
            command goes on where it stopped.
        quick: about a minute, at a size that only proves the path.
        seed: of clustering, training and sampling.
    """
    from ctf.experiments.demo import run_demo

    run_demo(out, quick, seed)
