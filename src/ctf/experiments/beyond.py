"""Comparisons that the paper does not make: types of stages, rounds, passes, clusterings, support, guidance, levels.

All sample at temperature 1 without guidance, unless that is what they compare: from the very distribution whose bits
per token stand beside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ctf.experiments.experiment import Claim, Experiment, Row
from ctf.experiments.measurements import System
from ctf.experiments.paper import every
from ctf.experiments.presets import Lab, Preset
from ctf.stages.settings import MaskedSettings

#: Systems of one seed by their names.
Systems = dict[str, Callable[[Lab], System]]

PLAIN = {"cfg_scale": 1.0, "temperature": 1.0}
PLAIN_FINE = {**PLAIN, "fine_temperature": 1.0}
#: Clusterings of 512, as arguments of `Lab.clusters`.
CLUSTERINGS: dict[str, dict[str, Any]] = {
    "k-means": {},
    "k-means, weighted": {"counted": True},
    "balanced": {"method": "balanced"},
    "Ward": {"method": "ward"},
    "random": {"method": "random"},
}


def steps_of(preset: Preset) -> tuple[int, ...]:
    """Numbers of steps of a parallel stage: one per position, and a quarter, an eighth and a sixteenth of that."""
    count = preset.data.layout.num_tokens
    return count, count // 4, count // 8, count // 16


def kinds(preset: Preset) -> Experiment:
    """Types of the first stage in fewer and fewer steps, over clusters and over all tokens."""

    def system(method: str, kind: str, way: dict[str, Any], lab: Lab) -> System:
        if method == "baseline":
            return lab.system(lab.baseline(kind=kind), **PLAIN, **way)
        return lab.system(lab.coarse(kind=kind), lab.fine(), **PLAIN_FINE, **way)

    count, *fewer = steps_of(preset)
    rows = []
    for method in ("baseline", "coarse-to-fine"):
        for kind in ("autoregressive", "any_order", "masked"):
            for steps in (count, *fewer) if kind != "autoregressive" else (count,):
                way = {} if kind == "autoregressive" else {"steps": steps, "order": "halton"}
                each = every(preset, partial(system, method, kind, way))
                rows.append(Row((method, kind, str(steps)), each))
    claims = tuple(
        Claim(
            f"{kind} in {steps} steps: coarse-to-fine is better than the baseline",
            metric,
            (("coarse-to-fine", kind, str(steps)),),
            (("baseline", kind, str(steps)),),
        )
        for kind in ("any_order", "masked")
        for steps in (count, fewer[-1])
        for metric in ("bits_per_token", "FID")
    )
    return Experiment("Types of the first stage", ("system", "type", "steps"), tuple(rows), claims, curve=2)


def orders(preset: Preset) -> Experiment:
    """Orders of an any-order stage 1."""
    lab = Lab(preset, preset.seeds[0])
    stages = lab.coarse(kind="any_order"), lab.fine()
    rows = tuple(
        Row((order, str(steps)), (lab.system(*stages, **PLAIN_FINE, steps=steps, order=order),), measured=("bits",))
        for order in ("raster", "random", "halton", "locality")
        for steps in steps_of(preset)
    )
    return Experiment("Orders of an any-order stage 1", ("order", "steps"), rows, curve=1)


def rounds(preset: Preset) -> Experiment:
    """Stage 2 in one round, as in the paper, and in several of one model trained for any number."""

    def system(trained: str, count: int, lab: Lab) -> System:
        way = {"fine_steps": count, "fine_order": "halton"} if trained == "any" else {}
        fine = lab.fine(kind_settings=MaskedSettings("any" if trained == "any" else None))
        return lab.system(lab.coarse(), fine, **PLAIN_FINE, **way)

    rows = tuple(
        Row((trained, str(count)), every(preset, partial(system, trained, count)))
        for trained, count in [("one", 1), *(("any", count) for count in (1, 2, 4, 8))]
    )
    claims = (
        Claim(
            "eight rounds of stage 2 are better than one round of the same model",
            "bits_per_token",
            (("any", "8"),),
            (("any", "1"),),
        ),
        Claim(
            "eight rounds of stage 2 are better than the paper's one",
            "FID",
            (("any", "8"),),
            (("one", "1"),),
        ),
    )
    return Experiment("Rounds of stage 2", ("trained for", "rounds"), rows, claims, speed=True)


def passes(preset: Preset) -> Experiment:
    """Both systems at one size over passes through the images, and after the last one other types of stages."""
    loop, num_images = preset.training["loop"], preset.data.num_images
    milestones, last = Lab(preset, preset.seeds[0]).milestones(), loop.total_steps(num_images)

    def baseline(lab: Lab) -> System:
        return lab.system(lab.baseline(), **PLAIN)

    def system(lab: Lab, coarse: Mapping[str, Any], fine: Mapping[str, Any], **way: Any) -> System:
        return lab.system(lab.coarse(**coarse), lab.fine(**fine), **PLAIN_FINE, **way)

    both: Systems = {"baseline": baseline, "coarse-to-fine": partial(system, coarse={}, fine={})}
    few: dict[str, Any] = {"steps": preset.data.layout.num_tokens // 8, "order": "halton"}
    others: Systems = {
        f"stage 2 for any rounds, in {count}": partial(
            system, coarse={}, fine={"kind_settings": MaskedSettings("any")}, fine_steps=count, fine_order="halton"
        )
        for count in (1, 2, 4, 8)
    }
    any_order = {"kind": "any_order"}
    others["any_order as stage 1"] = partial(system, coarse=any_order, fine={}, **few)
    others["any_order as stage 2"] = partial(system, coarse={}, fine=any_order, fine_steps=8, fine_order="halton")

    def row(name: str, of: Callable[[Lab], System], step: int) -> Row:
        systems = every(preset, lambda lab: of(lab).at(None if step == last else step))
        return Row((name, f"{step * loop.batch_size / num_images:.3g}"), systems)

    rows = [row(name, of, step) for name, of in both.items() for step in (*milestones, last)]
    ends = [row(name, of, last) for name, of in others.items()]
    pairs = list(zip(rows[len(rows) // 2 :], rows, strict=False)) + [(other, rows[len(milestones)]) for other in ends]
    claims = tuple(
        Claim(
            f"{better.name[0]} is better than the baseline after {better.name[1]} passes",
            metric,
            (better.name,),
            (worse.name,),
        )
        for better, worse in pairs
        for metric in ("bits_per_token", "FID")
    )
    return Experiment("Quality over passes", ("system", "passes"), (*rows, *ends), claims, curve=1)


def clusterings(preset: Preset) -> Experiment:
    """Methods of clustering, beside the baseline and IAR's loss, which uses clusters in another way."""

    def system(settings: dict[str, Any], lab: Lab) -> System:
        counted = {"counted": lab.tokens} if "counted" in settings else {}
        clusters = lab.clusters(**settings | counted)
        return lab.system(lab.coarse(clusters=clusters), lab.fine(clusters=clusters), **PLAIN_FINE)

    rows = [Row((name,), every(preset, partial(system, settings))) for name, settings in CLUSTERINGS.items()]
    rows.append(Row(("none: the baseline",), every(preset, lambda lab: lab.system(lab.baseline(), **PLAIN))))
    rows.append(Row(("none: IAR's loss",), every(preset, lambda lab: lab.system(lab.iar(), **PLAIN))))
    claims = (
        Claim("k-means is better than random clusters", "bits_per_token", (("k-means",),), (("random",),)),
        Claim("Ward's clusters are better than k-means'", "bits_per_token", (("Ward",),), (("k-means",),)),
        Claim("IAR's loss helps the baseline", "bits_per_token", (("none: IAR's loss",),), (("none: the baseline",),)),
        Claim("coarse-to-fine beats IAR's loss", "bits_per_token", (("k-means",),), (("none: IAR's loss",),)),
    )
    return Experiment("Clusterings, and IAR's loss", ("clusters",), tuple(rows), claims)


def support(preset: Preset) -> Experiment:
    """Stage 2 over the members of each cluster, or over all tokens, the paper's softmax."""

    def system(support: str, lab: Lab) -> System:
        return lab.system(lab.coarse(), lab.fine(support=support), **PLAIN_FINE)

    rows = tuple(Row((name,), every(preset, partial(system, name))) for name in ("cluster", "full"))
    claim = Claim("the members alone are better than all tokens", "FID", (("cluster",),), (("full",),))
    note = "With full support the bits are an upper bound: probability is spent outside the clusters too."
    return Experiment("Support of stage 2", ("support",), rows, (claim,), note=note)


def guidance(preset: Preset) -> Experiment:
    """Guidance in both stages; the paper does not say whether its scale is that of stage 2 too."""

    def system(scale: float, fine_scale: float, lab: Lab) -> System:
        return lab.system(lab.coarse(), lab.fine("L"), cfg_scale=scale, fine_cfg_scale=fine_scale)

    rows = tuple(
        Row((f"{a:g}", f"{b:g}"), every(preset, partial(system, a, b))[:1], measured=("samples",))
        for a in (1.0, 2.0, 3.0)
        for b in (1.0, 2.0)
    )
    note = "Stage 2 has the size that the paper takes, L, and both stages the temperature 1.1."
    return Experiment("Guidance in both stages", ("stage 1", "stage 2"), rows, note=note)


def levels(preset: Preset) -> Experiment:
    """Three levels, 64 clusters of 512 clusters of all tokens, beside the paper's two."""

    def system(lab: Lab) -> System:
        finer = lab.clusters()
        coarser = lab.clusters(64, finer=finer)
        stages = lab.coarse(clusters=coarser), lab.middle(coarser, finer), lab.fine()
        return lab.system(*stages, **PLAIN_FINE, middle_temperature=1.0)

    rows = (
        Row(("512",), every(preset, lambda lab: lab.system(lab.coarse(), lab.fine(), **PLAIN_FINE))),
        Row(("64, 512",), every(preset, system)),
    )
    claim = Claim("three levels are better than two", "bits_per_token", (("64, 512",),), (("512",),))
    return Experiment("Two levels and three", ("clusters",), rows, (claim,), speed=True)


BEYOND: dict[str, Callable[[Preset], Experiment]] = {
    make.__name__: make for make in (kinds, orders, rounds, passes, clusterings, support, guidance, levels)
}
