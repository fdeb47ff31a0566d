"""Fill docs/reproduction.md with the tables, claims and pictures of `ctf reproduce`, as far as they are made.

    mkdir -p runs/reproduce; cp benchmarks/reproduce/*.jsonl runs/reproduce/
    python scripts/write_reproduction.py [--steps 800] [--store runs/reproduce] [--page docs/reproduction.md]

Whatever stands between `<!-- NAME -->` and `<!-- end -->` is written anew: the table of the experiment NAME and
its pictures; of `directions`, the measured claims of all experiments. The prose around them is written by hand.

The results are also added to benchmarks/reproduce: one file per experiment, one line per measurement. Results copied
from there into the store are not made again, and the tables are complete; only the pictures need the sample sets.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ctf.experiments.beyond import BEYOND
from ctf.experiments.experiment import Measured, judge
from ctf.experiments.page import results, title
from ctf.experiments.paper import EXPERIMENTS
from ctf.experiments.presets import EMOJI, Preset
from ctf.experiments.reproduce import find
from ctf.experiments.store import Store
from ctf.files import write_text
from ctf.reporting.tables import markdown_table

DIRECTIONS = "directions"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--store", default="runs/reproduce")
    parser.add_argument("--page", type=Path, default=Path("docs/reproduction.md"))
    options = parser.parse_args()
    preset, store = EMOJI.changed(steps=options.steps), Store(Path(options.store))

    page = options.page.read_text(encoding="utf-8")

    def filled(match: re.Match[str]) -> str:
        name = match[1]
        text = directions(preset, store, page) if name == DIRECTIONS else section(name, preset, store, options.page)
        return f"<!-- {name} -->\n\n{text}\n\n<!-- end -->"

    write_text(options.page, re.sub(r"<!-- (\w+) -->.*?<!-- end -->", filled, page, flags=re.DOTALL))
    for name, make in (EXPERIMENTS | BEYOND).items():
        store.publish(make(preset).artifacts(preset), Path("benchmarks/reproduce") / f"{name}.jsonl")


def section(name: str, preset: Preset, store: Store, page: Path) -> str:
    """Heading and results of an experiment; the pictures are written beside `page`."""
    experiment, folder = find(name)(preset), page.with_suffix("") / name
    return "\n\n".join([f"## {experiment.title}", *results(folder, experiment, preset, store, f"{page.stem}/{name}/")])


def anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub and MkDocs make it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def directions(preset: Preset, store: Store, page: str) -> str:
    """All claims of the paper that are measured, in one table, and which experiments have others."""
    missing: dict[str, None] = {}
    rows = [["the paper claims", "here", "by", "evidence"]]
    for name, make in EXPERIMENTS.items():
        experiment = make(preset)
        measured = [Measured.read(row, preset, store) for row in experiment.rows]
        for verdict in (judge(claim, measured) for claim in experiment.claims):
            if not verdict.evidence:
                missing[experiment.title] = None
                continue
            says = verdict.claim.says
            if f"<!-- {name} -->" in page:
                says = f"[{says}](#{anchor(experiment.title)})"
            rows.append([says, f"**{verdict.word}**", title(verdict.claim.metric, preset), verdict.evidence])
    return markdown_table(rows, len(rows[0])) + (
        f"\n\nSome claims of these experiments were not measured: {'; '.join(missing)}." if missing else ""
    )


if __name__ == "__main__":
    main()
