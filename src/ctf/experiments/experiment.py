"""An experiment: rows of systems to compare, what is measured of each, and what the paper claims of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ctf.experiments.measurements import Likelihood, Metrics, Samples, Speed, Swap, System
from ctf.experiments.presets import Preset
from ctf.experiments.store import Artifact, Store

#: The metrics of a row, in the order of the table; features other than Inception's have longer titles for them.
METRICS: dict[str, tuple[str, ...]] = {
    "FID": ("FID", "Fréchet distance"),
    "IS": ("IS", "classifier score"),
    "precision": ("precision",),
    "recall": ("recall",),
}


@dataclass(frozen=True)
class Row:
    """A line of the table: one system, trained with each seed.

    Attributes:
        name: words for the leading columns.
        systems: one per seed.
        published: the paper's metrics.
        measured: "samples", "bits", or both.
    """

    name: tuple[str, ...]
    systems: tuple[System, ...]
    published: Mapping[str, float] = field(default_factory=dict)
    measured: tuple[str, ...] = ("samples", "bits")

    def parameters(self) -> str:
        """The parameters of each stage, in millions."""
        return " + ".join(f"{count / 1e6:.1f}" for count in self.systems[0].parameters()) + " M"

    def metrics(self, preset: Preset) -> list[Metrics]:
        if "samples" not in self.measured:
            return []
        to = preset.features, preset.reference, preset.reference_split
        return [Metrics(Samples(system, preset.num_samples), *to) for system in self.systems]

    def likelihoods(self) -> list[list[Likelihood]]:
        """The likelihoods of each system's stages."""
        return [Likelihood.of(system) for system in self.systems] if "bits" in self.measured else []


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, as a comparison of rows.

    Attributes:
        says: in words, with the paper's section or table.
        metric: a name of `METRICS`, or a number of `Likelihood`.
        better, worse: names of rows; each of `better` is expected to be better than each of `worse`.
    """

    says: str
    metric: str
    better: tuple[tuple[str, ...], ...]
    worse: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Experiment:
    """A table or figure.

    Attributes:
        title: of the page.
        columns: titles of the words in `Row.name`.
        rows: in the order of the table.
        claims: that the rows can confirm.
        curve: the place in `Row.name` of a number that the plot runs over; None plots bars.
        speed: measure the seconds per image of the first seed's systems.
        swaps: pictures of swapped tokens, with their PSNRs.
        note: what a reader must know.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    curve: int | None = None
    speed: bool = False
    swaps: tuple[Swap, ...] = ()
    note: str = ""

    def artifacts(self, preset: Preset) -> list[Artifact]:
        """All that is measured; what it is made from hangs on it."""
        found: list[Artifact] = list(self.swaps)
        seeds = max((len(row.systems) for row in self.rows), default=0)
        for seed in range(seeds):  # one after another: an early look is a fair one
            rows = [replace(row, systems=row.systems[seed : seed + 1]) for row in self.rows]
            found += [artifact for row in rows for stages in row.likelihoods() for artifact in stages]
            found += [artifact for row in rows for artifact in row.metrics(preset)]
        return found + ([self.timed()] if self.speed else [])

    def timed(self) -> Speed:
        """The first seed's systems, in turn."""
        return Speed(tuple(row.systems[0] for row in self.rows))


@dataclass(frozen=True)
class Measured:
    """The values of a row by metric, a list with one per seed.

    Attributes:
        row: the line of the table.
        values: by metric.
        bound: whether its bits are an upper bound: a stage has support "full".
    """

    row: Row
    values: dict[str, list[float]]
    bound: bool = False

    @classmethod
    def read(cls, row: Row, preset: Preset, store: Store) -> Measured:
        """Read what is in the store; nothing is made."""
        values: dict[str, list[float]] = {}
        bound = False
        for metrics in filter(store.has, row.metrics(preset)):
            result = store.result(metrics)["metrics"]
            for name, beginnings in METRICS.items():
                found = [v for title, v in result.items() if title.split(",")[0] in beginnings]
                values.setdefault(name, []).extend(found)
        for stages in row.likelihoods():
            if all(map(store.has, stages)):
                results = [store.result(stage) for stage in stages]
                bound |= not all(result["exact"] for result in results)
                values.setdefault("bits_per_token", []).append(sum(result["bits_per_token"] for result in results))
                for result in results:
                    values.setdefault(f"{result['name']}_accuracy", []).append(result["accuracy"])
                    if len(results) > 1:
                        values.setdefault(f"{result['name']}_bits_per_token", []).append(result["bits_per_token"])
        return cls(row, {name: each for name, each in values.items() if each}, bound)

    def mean(self, metric: str) -> float:
        return float(np.mean(self.values[metric]))

    def deviation(self, metric: str) -> float:
        """The standard deviation of a seed; NaN where there is one alone."""
        each = self.values[metric]
        return float(np.std(each, ddof=1)) if len(each) > 1 else math.nan


def error_of_difference(a: Measured, b: Measured, metric: str) -> float:
    """Standard error of the difference of two means; NaN if both are of a single seed.

    A row of a single seed is taken to spread as the other one does.
    """
    deviations = [a.deviation(metric), b.deviation(metric)]
    known = [deviation for deviation in deviations if not math.isnan(deviation)]
    if not known:
        return math.nan
    counts = (len(row.values[metric]) for row in (a, b))
    each = (known[0] if math.isnan(deviation) else deviation for deviation in deviations)
    return math.hypot(*(deviation / math.sqrt(count) for deviation, count in zip(each, counts, strict=True)))


@dataclass(frozen=True)
class Verdict:
    """A claim beside the evidence: one of `WORDS`, or "not measured", and values."""

    claim: Claim
    word: str
    evidence: str


def more_is_better(metric: str) -> bool:
    """Of a name of `METRICS`, or of a number of `Likelihood`."""
    return metric != "FID" and not metric.endswith("bits_per_token")


#: From the worst for a claim to the best.
WORDS = (
    *("not confirmed", "not as claimed, one seed", "undecided by an upper bound"),
    *("within the noise", "as claimed, one seed", "confirmed"),
)


def judge(claim: Claim, measured: list[Measured]) -> Verdict:
    """Confirmed if every better row beats every worse one by two standard errors of the difference.

    A difference of less is noise. With one seed on both sides nobody knows how large that is, and the verdict says so.
    An upper bound on bits decides only where it is below the other's bits.
    """
    by_name = {m.row.name: m for m in measured if claim.metric in m.values}
    if not by_name.keys() >= {*claim.better, *claim.worse}:
        return Verdict(claim, "not measured", "")
    sign = 1 if more_is_better(claim.metric) else -1
    words, evidence = [], []
    for good in (by_name[name] for name in claim.better):
        for bad in (by_name[name] for name in claim.worse):
            gain = sign * (good.mean(claim.metric) - bad.mean(claim.metric))
            error = error_of_difference(good, bad, claim.metric)
            bounds = ["≤ " * (m.bound and claim.metric == "bits_per_token") for m in (good, bad)]
            values = f"{bounds[0]}{good.mean(claim.metric):.4g} against {bounds[1]}{bad.mean(claim.metric):.4g}"
            if bounds[int(gain > 0)]:  # fewer bits may be the better one's, or the worse one's after all
                words.append("undecided by an upper bound")
                evidence.append(values)
            elif math.isnan(error):
                words.append("as claimed, one seed" if gain > 0 else "not as claimed, one seed")
                evidence.append(values)
            else:
                noise = 2 * error
                words.append("confirmed" if gain > noise else "not confirmed" if gain < -noise else "within the noise")
                evidence.append(f"{values}, difference ± {error:.2g}")
    return Verdict(claim, min(words, key=WORDS.index), "; ".join(evidence))
