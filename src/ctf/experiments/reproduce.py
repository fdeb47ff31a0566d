"""`ctf reproduce`: plan an experiment, make what is missing, write its page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ctf.bench.gpus import UTILISATION
from ctf.bench.machine import measure_machine
from ctf.device import usable_device
from ctf.errors import InputError
from ctf.experiments.beyond import BEYOND
from ctf.experiments.experiment import Experiment
from ctf.experiments.page import write_report
from ctf.experiments.paper import EXPERIMENTS
from ctf.experiments.presets import Preset
from ctf.experiments.store import Artifact, Store, in_order
from ctf.files import check_writable
from ctf.reporting.page import PAGE


def find(name: str) -> Callable[[Preset], Experiment]:
    """The experiment called `name`. Raises InputError if there is none."""
    experiments = EXPERIMENTS | BEYOND
    if name not in experiments:
        raise InputError(f"experiment {name!r} does not exist: choose one of {', '.join(experiments)}")
    return experiments[name]


def reproduce(name: str, preset: Preset, out: str, device: str = "auto", command: str = "", make: bool = True) -> Path:
    """Make what an experiment needs and is not there yet, then its page; returns the page.

    Without `make` nothing is made, and the page shows what is there.

    Raises:
        InputError: no such experiment; as what makes the artifacts does.
    """
    experiment, store, folder = find(name)(preset), Store(Path(out), device), Path(out) / name
    check_writable(folder, "folder")
    usable_device(device)
    for artifact in experiment.artifacts(preset) if make else []:
        store.get(artifact)
    write_report(folder, experiment, preset, store, command)
    return folder / PAGE


def plan(name: str, preset: Preset, out: str) -> str:
    """What an experiment makes, what of it is there, and the operations and time of the rest, as text."""
    experiment, store = find(name)(preset), Store(Path(out))
    artifacts = in_order(experiment.artifacts(preset))
    machine, rate = preset.machine or _this_machine()
    lines = [experiment.title, "", f"{'':12}{'all':>6}{'missing':>9}{'operations':>13}{'time':>12}"]
    missing = [artifact for artifact in artifacts if not store.has(artifact)]
    for room in dict.fromkeys(artifact.room for artifact in artifacts):
        every = [artifact for artifact in artifacts if artifact.room == room]
        lines.append(_line(room, len(every), [a for a in every if a in missing], rate))
    lines += [
        _line("together", len(artifacts), missing, rate),
        "",
        f"Time of one {machine} at {rate:.3g} operations a second.",
        "",
    ]
    for artifact in artifacts:
        if artifact.room == "training":
            state = "missing" if artifact in missing else "made"
            lines.append(f"{state:9}{artifact.operations():10.2e}  {artifact.name}")
    return "\n".join(lines)


def _this_machine() -> tuple[str, float]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = measure_machine(device)
    return machine.name, UTILISATION * machine.matrix_rate


def _line(title: str, count: int, missing: Sequence[Artifact], rate: float) -> str:
    operations = sum(artifact.operations() for artifact in missing)
    return f"{title:12}{count:6}{len(missing):9}{operations:13.2e}{duration(operations / rate):>12}"


def duration(seconds: float) -> str:
    """In the unit that suits."""
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 3 * 86_400 else f"{seconds / 86_400:.1f} days"
