"""All that needs a GPU, in under ten minutes on an H200: benchmarks and tests, then a table of one screen.

    make gpu                                                  # benchmarks/gpu.sh does without an installation
    python benchmarks/gpu.py rehearse                         # every part at a tiny size, on a CPU

Each part has a time limit of its own, and what it had measured by then stays. The folder $OUT, by default
`benchmarks/gpu/`, gets a page and a JSON file, named after the GPU, and what the parts printed. Where there is no GPU,
one line says so, and the exit code is 2.
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
BENCH = "ctf bench sampling --batch_sizes '[64]' --decoder_dtype bfloat16"
PAPERS = f"{BENCH} --systems '[coarse-to-fine]' --sizes '[XL]'"


@dataclass(frozen=True)
class Part:
    """One command.

    Attributes:
        name: in the table.
        command: `pytest …`, or `ctf bench …`, which is asked for its rows.
        limit: seconds.
        rehearsal: settings that make it small enough for a CPU.
    """

    name: str
    command: str
    limit: int
    rehearsal: str = ""


#: pytest's exit code where no test is to be run, as of those for a GPU on a CPU.
NOTHING_COLLECTED = 5
#: What Python runs for a command, where it is called something else.
MODULES = {"ctf": "ctf.cli"}

#: Files with tests for a GPU; a bare machine could not import all others.
TESTS = " ".join(
    sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/**/test_*.py") if "mark.gpu" in path.read_text())
)
SCALES = ",".join(f"{side}x{side}" for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
TINY = "--device cpu --sizes '[nano]' --codebook_size 64 --num_clusters 8"
FAST = f"{TINY} --fine_size nano --batch_sizes '[2]' --runs 1 --layout"

#: In the order in which they matter.
PARTS = [
    Part("sampling", PAPERS, 160, f"{FAST} 4x4"),
    Part("tests", f"pytest -m gpu -n 8 --maxfail 5 {TESTS}", 150, "--collect-only -n 0"),
    Part(
        "training",
        "ctf bench training --sizes '[L]' --stages '[coarse]' --batch_size 128 --compile true",
        75,
        f"{TINY} --layout 4x4 --batch_size 2 --steps 1 --compile false",
    ),
    Part(
        "any order",
        f"{PAPERS} --kinds '[any_order]' --steps '[20]'",
        90,
        f"{FAST} 4x4 --steps '[4]'",
    ),
    Part(
        "next scale",
        f"{BENCH} --systems '[baseline]' --sizes '[d16]' --kinds '[next_scale]' --layout {SCALES}",
        90,
        f"{FAST} 1x1,2x2,4x4",
    ),
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


def run_part(part: Part, log: Path, rehearse: bool = False) -> Outcome:
    """Run one part; what it prints goes to `log`."""
    program, *words = shlex.split(f"{part.command} {part.rehearsal if rehearse else ''}")
    with tempfile.TemporaryDirectory() as folder, log.open("w") as output:
        results = Path(folder) / "rows.json"
        asked = ["--out", str(results)] if program == "ctf" else []
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
            outcome = "done" if process.wait(part.limit) in (0, NOTHING_COLLECTED if rehearse else 0) else "failed"
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
    lines = [f"# On one {gpu}", "", f"{date}, {software}. All of it: `benchmarks/gpu.sh`.", ""]
    lines += table_head(["part", "seconds", "limit", "outcome", "last line"])
    for one in outcomes:
        reported = one.outcome == "done" and one.rows  # below; a report's last line is its source
        last = "" if reported else one.last_line[:100].replace("|", "·")
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
    overlapped = row.get("overlapped_images_per_second")
    decoded = row["batch_size"] / row["seconds"]["decoding"]
    said = [f"{row['images_per_second']:.3g} images/s", f"{share:.0%} of the roofline"]
    said += [f"{overlapped:.3g} images/s overlapped"] if overlapped else []
    return ", ".join([*said, f"decoder {decoded:.3g} images/s", f"first call {row['first_call_seconds']:.0f} s"])


def main(out: Path, rehearse: bool = False) -> int:
    if not (rehearse or torch.cuda.is_available()):
        print("make gpu: there is no GPU here: run it on a machine with one", file=sys.stderr)
        return 2
    gpu, date = device_name(torch.device("cpu" if rehearse else "cuda")), time.strftime("%Y-%m-%d")
    name = re.sub(r"[^A-Za-z0-9]+", "-", gpu).strip("-")
    out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for part in PARTS:
        print(f"{part.name}: at most {part.limit} s", file=sys.stderr, flush=True)
        outcomes.append(run_part(part, out / f"{part.name.replace(' ', '-')}.log", rehearse))
        write_json(out / f"{name}.json", {"gpu": gpu, "date": date, "parts": [asdict(one) for one in outcomes]})
        write_text(out / f"{name}.md", page(gpu, date, outcomes))
    print(page(gpu, date, outcomes))
    return 0 if all(one.outcome == "done" for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(Path(os.environ.get("OUT", ROOT / "benchmarks" / "gpu")), sys.argv[1:] == ["rehearse"]))
