"""`ctf demo`."""

from __future__ import annotations


def demo(out: str = "runs/demo", quick: bool = False, seed: int = 0) -> None:
    """Do the whole job on the bundled emoji: tokenize, cluster, train, sample, report.

    Example:
        ctf demo --quick --out runs/quick

    Args:
        out: folder for embedded.png, samples.png, swap.png, curves.png, metrics.json, report.md and fit/, where
            the model is. An interrupted command goes on where it stopped.
        quick: about a minute, at a size that only proves the path.
        seed: of clustering, training and sampling.
    """
    from ctf.experiments.demo import run_demo

    run_demo(out, quick, seed)
