"""Output of the benchmarks: the command that repeats it, the machine, and a Markdown table row by row."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from ctf.bench.config import Benchmark
from ctf.bench.machine import Machine
from ctf.files import write_json
from ctf.layout import Layout
from ctf.progress import progress_bar
from ctf.reporting.tables import table_head, table_row


def report(
    verb: str,
    config: Benchmark,
    machines: Iterable[Machine],
    task: str,
    columns: list[str],
    cases: list[tuple[Any, ...]],
    measure: Callable[..., tuple[dict[str, Any], list[str]]],
    **more: Any,
) -> Iterator[str]:
    """The lines of the report. The file `config.out` is rewritten after each row.

    Args:
        verb: the command.
        config: its settings.
        machines: with which the rows are compared.
        task: a paragraph above the table.
        columns: titles of the table.
        cases: arguments of `measure`, one tuple for each row.
        measure: returns metrics for the file, and cells of the table.
        more: further entries of the file.
    """
    machines, rows = list(machines), list[dict[str, Any]]()
    yield from (f"    {command_line(verb, asdict(config))}", "", *map(str, machines), "", task, "")
    yield from table_head(columns)
    with progress_bar(len(cases), "bench", "row") as bar:
        for case in cases:
            metrics, cells = measure(*case)
            rows.append(metrics)
            if config.out:
                head = {"machines": [asdict(machine) for machine in machines], "settings": asdict(config)}
                write_json(config.out, {**head, "rows": rows, **more})
            bar.update()
            yield table_row(cells)


def command_line(verb: str, settings: Mapping[str, Any]) -> str:
    """The command that runs `verb` with these settings; it spells out all that are not None."""
    words = [f"ctf {verb}"]
    for name, value in settings.items():
        if value is not None:
            listed = isinstance(value, tuple) and not isinstance(value, Layout)  # a layout writes itself
            text = f"[{', '.join(map(str, value))}]" if listed else str(value)
            words.append(f"--{name} {shlex.quote(text)}")
    return " ".join(words)
