"""The tables and figures of the paper (sections 3 and 5) as experiments, with its metrics and what it claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from ctf.experiments.experiment import METRICS, Claim, Experiment, Row
from ctf.experiments.measurements import Swap, System
from ctf.experiments.presets import Lab, Preset

#: Columns of the experiments that show the systems of Table 1, and the two comparisons that it makes.
SYSTEMS = ("size", "system", "settings")
EQUAL, PAPER = "equal", "the paper's"


def published(*values: float) -> dict[str, float]:
    """The columns of the paper's tables."""
    return dict(zip(METRICS, values, strict=False))


def every(preset: Preset, system: Callable[[Lab], System]) -> tuple[System, ...]:
    """A system of each seed."""
    return tuple(system(Lab(preset, seed)) for seed in preset.seeds)


def table1(preset: Preset) -> Experiment:
    """Baseline and coarse-to-fine: of equal size at equal settings, then as in the paper, with stage 2 of size L."""
    values: dict[tuple[str, str, str], tuple[float, ...]] = {
        ("B", "baseline", EQUAL): (5.46, 193.61, 0.83, 0.45),
        ("B", "coarse-to-fine", EQUAL): (5.51, 273.45, 0.88, 0.44),  # Table 3a, 512 clusters
        ("B", "coarse-to-fine", PAPER): (4.15, 254.99, 0.86, 0.48),
        ("L", "baseline", EQUAL): (3.80, 248.28, 0.83, 0.52),
        ("L", "coarse-to-fine", EQUAL): (),
        ("L", "coarse-to-fine", PAPER): (2.97, 291.53, 0.84, 0.53),
        ("XL", "baseline", EQUAL): (3.39, 227.08, 0.81, 0.54),
        ("XL", "coarse-to-fine", EQUAL): (),
        ("XL", "coarse-to-fine", PAPER): (2.76, 299.69, 0.84, 0.55),
    }

    def system(size: str, method: str, settings: str, lab: Lab) -> System:
        if method == "baseline":
            return lab.system(lab.baseline(size), temperature=1.0)
        if settings == PAPER:
            return lab.system(lab.coarse(size), lab.paper_fine())
        return lab.system(lab.coarse(size), lab.paper_fine(size), temperature=1.0, fine_temperature=1.0)

    rows = tuple(
        Row(name, every(preset, partial(system, *name)), published(*metrics))
        for name, metrics in values.items()
        if name[0] in preset.table_sizes
    )
    claims = tuple(
        Claim(
            f"size {size}, {settings} settings: coarse-to-fine is better than the baseline (Table 1)",
            metric,
            ((size, "coarse-to-fine", settings),),
            ((size, "baseline", EQUAL),),
        )
        for size in preset.table_sizes
        for settings in (EQUAL, PAPER)
        for metric in (*METRICS, "bits_per_token")
    )
    note = (
        "Equal: stage 2 of the size of stage 1, temperature 1. The paper's: stage 2 of size L, temperature 1.1 in both "
        "stages. Guidance 2 in all rows."
    )
    return Experiment("Table 1: coarse-to-fine beside the baseline", SYSTEMS, rows, claims, note=note)


def table2(preset: Preset) -> Experiment:
    """Seconds per image of the systems of Table 1, decoding included."""
    return Experiment(
        "Table 2: sampling speed",
        SYSTEMS,
        tuple(Row(row.name, row.systems[:1], measured=()) for row in table1(preset).rows),
        speed=True,
        note="`ctf bench sampling` measures other sizes and devices, part by part.",
    )


def table3a(preset: Preset) -> Experiment:
    """Number of clusters, and random ones (section 5.5.2): fine model of stage 1's size, temperature 1."""
    values: dict[tuple[int, str], tuple[float, ...]] = {
        (128, "kmeans"): (11.23, 98.41, 0.68, 0.39),
        (512, "kmeans"): (5.51, 273.45, 0.88, 0.44),
        (1024, "kmeans"): (5.38, 269.10, 0.89, 0.44),
        (512, "random"): (),
    }

    def system(count: int, method: str, lab: Lab) -> System:
        clusters = lab.clusters(count, method=method)
        stages = lab.coarse("B", clusters), lab.paper_fine("B", clusters)
        return lab.system(*stages, temperature=1.0, fine_temperature=1.0)

    rows = tuple(
        Row((f"{count:,}", method), every(preset, partial(system, count, method)), published(*metrics))
        for (count, method), metrics in values.items()
    )
    few, enough, more, random = (row.name for row in rows)
    claims = (
        Claim("too few clusters hurt (Table 3a)", "FID", (enough, more), (few,)),
        Claim("too few clusters hurt", "bits_per_token", (enough, more), (few,)),
        Claim("random clusters fail (section 5.5.2)", "FID", (enough,), (random,)),
        Claim("random clusters fail", "bits_per_token", (enough,), (random,)),
    )
    return Experiment("Table 3a: number of clusters", ("clusters", "method"), rows, claims)


def table3b(preset: Preset) -> Experiment:
    """Size of stage 2."""
    values = {"B": (5.51, 273.45, 0.88, 0.44), "L": (5.33, 285.15, 0.89, 0.43), "XL": (5.27, 289.10, 0.89, 0.46)}

    def system(size: str, lab: Lab) -> System:
        return lab.system(lab.coarse("B"), lab.paper_fine(size), temperature=1.0, fine_temperature=1.0)

    rows = tuple(
        Row((size,), every(preset, partial(system, size))[:1], published(*metrics)) for size, metrics in values.items()
    )
    claims = (Claim("a larger stage 2 helps a little (Table 3b)", "FID", (("L",), ("XL",)), (("B",),)),)
    return Experiment("Table 3b: size of stage 2", ("size of stage 2",), rows, claims)


def sampled(
    preset: Preset, title: str, column: str, setting: str, values: Mapping[float, tuple[float, ...]], **shared: float
) -> tuple[str, tuple[str, ...], tuple[Row, ...]]:
    """Rows of one system, stage 1 of B and stage 2 of L, that differ in one sampling setting."""

    def system(value: float, lab: Lab) -> System:
        settings = {"temperature": 1.0, "fine_temperature": 1.0, **shared, setting: value}
        return lab.system(lab.coarse("B"), lab.paper_fine(), **settings)

    rows = tuple(
        Row((f"{value:g}",), every(preset, partial(system, value)), published(*metrics), ("samples",))
        for value, metrics in values.items()
    )
    return title, (column,), rows


def table3c(preset: Preset) -> Experiment:
    """Guidance of stage 1."""
    values = {1.75: (4.24, 247.02, 0.86, 0.48), 2.0: (5.33, 285.15, 0.89, 0.43), 2.25: (6.71, 313.06, 0.90, 0.41)}
    claims = (
        Claim("more guidance, higher precision (Table 3c)", "precision", (("2.25",),), (("1.75",),)),
        Claim("more guidance, lower recall (Table 3c)", "recall", (("1.75",),), (("2.25",),)),
        Claim("more guidance, higher score (Table 3c)", "IS", (("2.25",),), (("1.75",),)),
        Claim("more guidance, worse FID (Table 3c)", "FID", (("1.75",),), (("2.25",),)),
    )
    return Experiment(*sampled(preset, "Table 3c: guidance", "guidance", "cfg_scale", values), claims, curve=0)


def table3d(preset: Preset) -> Experiment:
    """Top-k of stage 2."""
    values: dict[float, tuple[float, ...]] = {
        1: (6.95, 210.21, 0.87, 0.39),
        32: (5.35, 286.73, 0.89, 0.43),
        0: (5.33, 285.15, 0.89, 0.43),
    }
    claims = (
        Claim("top-k = 1 in stage 2 hurts (Table 3d)", "FID", (("32",), ("0",)), (("1",),)),
        Claim("top-k = 1 in stage 2 lowers the score (Table 3d)", "IS", (("32",), ("0",)), (("1",),)),
    )
    note = "0 keeps all."
    return Experiment(*sampled(preset, "Table 3d: top-k of stage 2", "top-k", "fine_top_k", values), claims, note=note)


def table3e(preset: Preset) -> Experiment:
    """Temperature of stage 1."""
    values = {0.9: (7.30, 292.73, 0.90, 0.39), 1.0: (5.33, 285.15, 0.89, 0.43), 1.1: (4.16, 259.45, 0.86, 0.47)}
    claims = (
        Claim("a higher temperature of stage 1, higher recall (Table 3e)", "recall", (("1.1",),), (("0.9",),)),
        Claim("a higher temperature of stage 1, lower score (Table 3e)", "IS", (("0.9",),), (("1.1",),)),
        Claim("a higher temperature of stage 1, better FID (Table 3e)", "FID", (("1.1",),), (("0.9",),)),
    )
    return Experiment(
        *sampled(preset, "Table 3e: temperature of stage 1", "temperature", "temperature", values), claims, curve=0
    )


def table3f(preset: Preset) -> Experiment:
    """Temperature of stage 2, at 1.1 in stage 1."""
    values = {0.9: (5.55, 288.01, 0.89, 0.43), 1.0: (4.16, 259.45, 0.86, 0.47), 1.1: (4.15, 254.99, 0.86, 0.48)}
    claims = (Claim("temperature 1.1 in stage 2 gives the best FID (Table 3f)", "FID", (("1.1",),), (("0.9",),)),)
    name = "Table 3f: temperature of stage 2"
    note = "Stage 1 at temperature 1.1. The paper's row of 0.9 looks measured at temperature 1.0 of stage 1."
    rows = sampled(preset, name, "temperature", "fine_temperature", values, temperature=1.1)
    return Experiment(*rows, claims, curve=0, note=note)


def fig1b(preset: Preset) -> Experiment:
    """Tokens of generated images replaced by others of their cluster (section 3)."""
    lab = Lab(preset, preset.seeds[0])
    swap = Swap(lab.system(lab.coarse("B"), lab.paper_fine()), (2_048, 512))
    note = "The paper shows 2,048 clusters of 16,384 tokens; the images keep their structure, content and quality."
    return Experiment("Figure 1b: tokens swapped within their clusters", (), (), swaps=(swap,), note=note)


def fig2(preset: Preset) -> Experiment:
    """Both systems of size B at the milestones of their training and at its end."""
    lab = Lab(preset, preset.seeds[0])
    steps = preset.training["loop"].total_steps(preset.data.num_images)
    systems = {
        "baseline": lab.system(lab.baseline("B"), temperature=1.0),
        "coarse-to-fine": lab.system(lab.coarse("B"), lab.paper_fine()),
    }
    rows = []
    for name, system in systems.items():
        for step in (*lab.milestones(), steps):
            rows.append(Row((name, str(step)), (system.at(None if step == steps else step),)))
    third = [step for step in lab.milestones() if abs(step - steps / 3) < 0.05 * steps]
    as_good = "after a third of the training coarse-to-fine is as good as the baseline at its end (Fig. 2, section 5.4)"
    claims = (
        *(Claim(as_good, "FID", (("coarse-to-fine", str(step)),), (("baseline", str(steps)),)) for step in third),
        *(
            Claim(
                f"coarse-to-fine is better after {step} steps (Fig. 2)",
                "FID",
                (("coarse-to-fine", str(step)),),
                (("baseline", str(step)),),
            )
            for step in (*lab.milestones(), steps)
        ),
    )
    return Experiment("Figure 2: quality over training", ("system", "steps"), tuple(rows), claims, curve=1)


def fig3(preset: Preset) -> Experiment:
    """Images of the largest systems of Table 1, the same seeds in each row."""
    baseline, _, paper = table1(preset).rows[-3:]
    return Experiment("Figure 3: images", SYSTEMS, tuple(Row(r.name, r.systems[:1]) for r in (baseline, paper)))


def accuracy(preset: Preset) -> Experiment:
    """Accuracy of the most probable label, and the losses (sections 3 and 5.5.5)."""
    rows = tuple(Row(row.name, row.systems, measured=("bits",)) for row in table1(preset).rows)
    note = (
        "The paper: a VAR of two billion parameters predicts less than 7 % of ImageNet's test tokens (section 3); "
        "the training loss of the coarse model ends at about 5, the baseline's at about 7 nats (section 5.5.5)."
    )
    return Experiment("Accuracy and loss on held-out images", SYSTEMS, rows, note=note)


EXPERIMENTS: dict[str, Callable[[Preset], Experiment]] = {
    make.__name__: make
    for make in (table1, table2, table3a, table3b, table3c, table3d, table3e, table3f, fig1b, fig2, fig3, accuracy)
}
