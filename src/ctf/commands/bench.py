"""`ctf bench …`."""

from __future__ import annotations

from ctf.bench.config import SamplingBenchmark, TrainingBenchmark


def sampling(config: SamplingBenchmark) -> None:
    """Measure images per second with random weights, part by part, beside the roofline and the paper's Table 2.

    Example:
        ctf bench sampling --sizes B L --batch_sizes 4 64 --dtype bfloat16 --out runs/sampling.json
    """
    from ctf.bench.sampling import sampling_report

    for line in sampling_report(config):
        print(line, flush=True)


def training(config: TrainingBenchmark) -> None:
    """Measure tokens per second of training steps on random tokens, and model-FLOPs utilisation.

    Example:
        ctf bench training --sizes B --stages coarse fine-cluster --out runs/training.json
    """
    from ctf.bench.training import training_report

    for line in training_report(config):
        print(line, flush=True)
