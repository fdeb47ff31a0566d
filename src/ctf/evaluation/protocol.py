"""The evaluation protocol: a set of samples against a reference, with everything that decides the metrics."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ctf.errors import InputError
from ctf.evaluation.extraction import extract
from ctf.evaluation.features import FeatureExtractor
from ctf.evaluation.metrics import frechet_distance, inception_score, kernel_distance, precision_recall
from ctf.evaluation.reference import Reference
from ctf.model_card import versions
from ctf.samples.sample_set import SampleSet

NEIGHBOURS = 3
SCORE_SPLIT = 5_000


@dataclass(frozen=True)
class Evaluation:
    """Metrics, and what they depend on. All of it is plain JSON.

    Attributes:
        metrics: title → value. "FID", "sFID", "IS", "KID", "precision" and "recall" are Inception's alone; those of
            other features have them in their title.
        features: name and fingerprint of the extractor, number of features.
        samples: source, count, image_size, and the manifest or None, without which nobody can make them again.
        reference: source, count, image_size, fingerprint, origin, resize and cached, as in `Reference`.
        settings: neighbours of precision and recall, reference images they used, splits of the score.
        warnings: what a reader of the metrics should know.
        versions: of what computed them.
        command: that was typed, if one was.
    """

    metrics: dict[str, float]
    features: dict[str, Any]
    samples: dict[str, Any]
    reference: dict[str, Any]
    settings: dict[str, Any]
    warnings: list[str]
    versions: dict[str, str]
    command: str | None = None


def check_samples(samples: SampleSet, source: str) -> None:
    """Find what makes an evaluation of the samples from `source` meaningless, before the work begins.

    Raises:
        InputError: one image alone, or nothing but black ones.
    """
    if samples.count < 2:
        raise InputError(f"{source} holds one image: sample more, 50,000 for a published FID")
    if not any(batch.max() > 1 for batch in samples.batches(64)):
        raise InputError(
            f"{source} holds no pixel above 1: all black, or values from 0 to 1 cast to uint8; scale them to 0 … 255"
        )


def evaluate_samples(
    samples: SampleSet,
    reference: Reference,
    extractor: FeatureExtractor,
    source: str = "samples",
    batch_size: int = 64,
    progress: bool = True,
    command: str | None = None,
) -> Evaluation:
    """Compare samples with a reference in the features of `extractor`, in one pass over the samples.

    ADM's protocol: Fréchet distances between all images; the score in splits of 5,000; precision and recall with 3
    nearest neighbours and at most 10,000 reference images. The kernel distance uses the features of these two. A
    reference of moments alone leaves these three out.

    Args:
        samples, reference, extractor: what to compare, with a reference that was opened with the same extractor.
        source, command: where the samples came from, and what was typed, for the report.
        batch_size: images at a time.
        progress: show a progress bar.

    Raises:
        InputError: see `check_samples`; or samples and reference differ in size or features.
    """
    check_samples(samples, source)
    reference.check(samples.image_size, extractor)
    known = reference.extracted
    seen = extract(extractor, samples.batches(batch_size), samples.count, name="samples", progress=progress)
    settings: dict[str, Any] = {"neighbours": NEIGHBOURS, "precision_reference_images": len(known.features)}
    metrics, notes = {}, []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metrics[extractor.distance] = frechet_distance(known.statistics, seen.statistics)
        if seen.spatial is not None and known.spatial is not None:
            metrics[title(extractor, "sFID", "spatial Fréchet distance")] = frechet_distance(
                known.spatial, seen.spatial
            )
        elif seen.spatial is not None:
            notes.append(f"{reference.source} has no moments of spatial features, so sFID is left out")
    notes += [str(warning.message) for warning in caught]
    if seen.probabilities is not None:
        metrics[title(extractor, "IS", "classifier score")] = inception_score(seen.probabilities, SCORE_SPLIT)
        settings["score_splits"] = _splits(samples.count)
        if samples.count > SCORE_SPLIT and (rest := samples.count % SCORE_SPLIT):
            notes.append(
                f"the score's last split has {rest:,} images, counts like the others, and lowers it: compare scores of "
                f"as many samples only, best a multiple of {SCORE_SPLIT:,}"
            )
    if reference.images is not None:
        if min(len(known.features), samples.count) > NEIGHBOURS:
            precision, recall = precision_recall(known.features, seen.features, NEIGHBOURS)
            metrics |= {title(extractor, "precision"): precision, title(extractor, "recall"): recall}
        else:
            notes.append(f"precision and recall need more than {NEIGHBOURS} images on either side")
        metrics[title(extractor, "KID", "kernel distance")] = kernel_distance(known.features, seen.features)
    if samples.manifest is None:
        notes.append("the samples have no manifest, so nobody can make them again")
    if reference.note:
        notes.append(reference.note)
    return Evaluation(
        metrics,
        {"name": extractor.name, "fingerprint": extractor.fingerprint, "dimensions": seen.features.shape[1]},
        sample_facts(samples, source),
        reference.facts(),
        settings,
        notes,
        versions(),
        command,
    )


def sample_facts(samples: SampleSet, source: str) -> dict[str, Any]:
    """The samples in a result, as plain JSON."""
    return {
        "source": source,
        "count": samples.count,
        "image_size": list(samples.image_size),
        "manifest": None if samples.manifest is None else asdict(samples.manifest),
    }


def title(extractor: FeatureExtractor, inception: str, other: str | None = None) -> str:
    """The title of a metric: the field's name if the features are Inception's, else one that names the features."""
    if extractor.name == "inception":
        return inception
    return f"{other or inception}, {Path(extractor.name).name} features"


def _splits(count: int) -> str:
    if count < SCORE_SPLIT:
        return f"one of all {count:,} images: fewer than the protocol's {SCORE_SPLIT:,}"
    whole, rest = divmod(count, SCORE_SPLIT)
    return f"{whole} of {SCORE_SPLIT:,}" + (f", one of {rest:,}" if rest else "")
