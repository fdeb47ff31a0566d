"""All that needs a GPU, in under ten minutes on an H200: the tests, then the benchmarks, then a table.

    make gpu

Each part has a time limit of its own, and what it had measured by then stays. `benchmarks/gpu/` gets a page and a JSON
file, named after the GPU, and `runs/gpu/` what the parts printed. Where there is no GPU, one line says so, and the exit
code is 2.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ctf.device import device_name
from ctf.files import write_json, write_text
from ctf.reporting.tables import table_head, table_row

ROOT = Path(__file__).parents[1]
PAPERS = "--methods '[coarse-to-fine]' --batch_sizes '[64]' --decoder_dtype bfloat16"


@dataclass(frozen=True)
class Part:
    """One command.

    Attributes:
        name: in the table.
        command: `pytest …`, or `ctf bench …`, which is asked for its rows.
        limit: seconds.
    """

    name: str
    command: str
    limit: int


#: What Python runs for a command, where it is called something else.
MODULES = {"ctf": "ctf.cli"}

#: In the order in which they matter.
PARTS = [
    Part("tests", "pytest -m gpu --maxfail 5", 150),
    Part("sampling", f"ctf bench sampling {PAPERS} --sizes '[XL, L, B]'", 200),
    Part(
        "training",
        "ctf bench training --sizes '[L]' --stages '[coarse, fine-cluster]' --batch_size 128 --compile true",
        120,
    ),
    Part("any order", f"ctf bench sampling {PAPERS} --sizes '[XL]' --kinds '[any_order]' --steps '[20]'", 100),
]

#: The least that is aimed at on an H200, by part, size, and stage or kind.
AIMS = {("sampling", "XL", "autoregressive"): "100 images/s", ("training", "L", "coarse"): "MFU 45%"}


@dataclass(frozen=True)
class Outcome:
    """How a part ended: "done", "failed" or "out of time", its last line, and what it had measured."""

    part: Part
    seconds: float
    outcome: str
    last_line: str
    rows: list[dict[str, Any]]


def run_part(part: Part, log: Path) -> Outcome:
    """Run one part; what it prints goes to `log`."""
    program, *words = shlex.split(part.command)
    with tempfile.TemporaryDirectory() as folder, log.open("w") as output:
        results = Path(folder) / "rows.json"
        asked = ["--json", str(results)] if program == "ctf" else []
        module = MODULES.get(program, program)
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words, *asked],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            outcome = "done" if process.wait(part.limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            outcome = "out of time"
            os.killpg(process.pid, signal.SIGKILL)  # with all that it started
            process.wait()
        seconds = time.monotonic() - start
        rows = json.loads(results.read_text())["rows"] if results.exists() else []
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return Outcome(part, seconds, outcome, lines[-1] if lines else "", rows)


def page(gpu: str, date: str, outcomes: list[Outcome]) -> str:
    """Markdown: how each part ended, then every figure beside what is aimed at."""
    software = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    lines = [f"# On one {gpu}", "", f"{date}, {software}. All of it: `make gpu`.", ""]
    lines += table_head(["part", "seconds", "limit", "outcome", "last line"])
    for one in outcomes:
        last = one.last_line[:100].replace("|", "·")
        lines.append(table_row([one.part.name, f"{one.seconds:.0f}", str(one.part.limit), one.outcome, last]))
    measured = {
        (one.part.name, row["size"], row.get("stage", row["kind"])): row for one in outcomes for row in one.rows
    }
    lines += ["", *table_head(["what", "measured", "aim on an H200"])]
    for key in dict.fromkeys([*measured, *AIMS]):
        name, size, what = key
        lines.append(table_row([f"{name}: {size}, {what}", figures(measured.get(key)), AIMS.get(key, "")]))
    return "\n".join([*lines, "", *(f"    {one.part.command}" for one in outcomes), ""])


def figures(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not measured"
    if "utilisation" in row:
        return f"{row['tokens_per_second']:,.0f} tokens/s, MFU {row['utilisation']:.0%}"
    share = row["roofline_seconds"]["all"] / row["seconds"]["all"]
    return (
        f"{row['images_per_second']:.3g} images/s, {share:.0%} of the roofline, first call "
        f"{row['first_call_seconds']:.0f} s"
    )


def main(out: Path = ROOT / "benchmarks" / "gpu") -> int:
    if not torch.cuda.is_available():
        print("make gpu: there is no GPU here: run it on a machine with one", file=sys.stderr)
        return 2
    gpu, date, logs = device_name(torch.device("cuda")), time.strftime("%Y-%m-%d"), ROOT / "runs" / "gpu"
    name = re.sub(r"[^A-Za-z0-9]+", "-", gpu).strip("-")
    for folder in (out, logs):
        folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for part in PARTS:
        print(f"{part.name}: at most {part.limit} s", file=sys.stderr, flush=True)
        outcomes.append(run_part(part, logs / f"{part.name.replace(' ', '-')}.log"))
        write_json(out / f"{name}.json", {"gpu": gpu, "date": date, "parts": [asdict(one) for one in outcomes]})
        write_text(out / f"{name}.md", page(gpu, date, outcomes))
    print(page(gpu, date, outcomes))
    return 0 if all(one.outcome == "done" for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
