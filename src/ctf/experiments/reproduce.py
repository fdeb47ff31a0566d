"""`ctf reproduce`: plan an experiment, make what is missing, write its page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ctf.bench.gpus import UTILISATION
from ctf.bench.machine import matrix_rate
from ctf.device import device_name, usable_device
from ctf.errors import InputError
from ctf.evaluation.features import open_features
from ctf.evaluation.reference import holds_moments_only, open_reference, open_reference_images
from ctf.experiments.artifacts import Training
from ctf.experiments.beyond import BEYOND
from ctf.experiments.experiment import Experiment
from ctf.experiments.measurements import Metrics
from ctf.experiments.page import write_report
from ctf.experiments.paper import EXPERIMENTS
from ctf.experiments.presets import Preset
from ctf.experiments.store import Artifact, Pace, Store, in_order
from ctf.files import check_writable
from ctf.models.config import Compute
from ctf.progress import duration
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
    artifacts = experiment.artifacts(preset) if make else []
    if any(isinstance(artifact, Metrics) and not store.has(artifact) for artifact in artifacts):
        # What is wrong with these is said before the work begins.
        extractor = open_features(preset.features, None, device)
        if holds_moments_only(preset.reference):
            open_reference(preset.reference, extractor, preset.reference_split)
        else:
            open_reference_images(preset.reference, preset.reference_split, (preset.data.image_size,) * 2)
    for artifact in artifacts:
        store.get(artifact)
    write_report(folder, experiment, preset, store, command)
    return folder / PAGE


def plan(name: str, preset: Preset, out: str, device: str = "auto") -> str:
    """The plan of an experiment as text: its artifacts, which are missing, and their operations and time."""
    experiment, store = find(name)(preset), Store(Path(out))
    artifacts, machine = in_order(experiment.artifacts(preset), store.has), usable_device(device)
    pace = preset.pace or Pace(device_name(machine), UTILISATION * matrix_rate(machine, Compute().on(machine).dtype))
    lines = [experiment.title, "", f"{'':12}{'all':>6}{'missing':>9}{'operations':>13}{'time':>12}"]
    missing = [artifact for artifact in artifacts if not store.has(artifact)]
    for room in dict.fromkeys(artifact.room for artifact in artifacts):
        every = [artifact for artifact in artifacts if artifact.room == room]
        lines.append(_line(room, len(every), [a for a in every if a in missing], pace))
    lines += [
        _line("together", len(artifacts), missing, pace),
        "",
        f"Time of one {pace.machine} at {pace.rate:.3g} operations a second.",
        *["Autoregressive sampling at its measured rates (the paper's Table 2)."] * bool(pace.images_per_second),
        "",
        f"{'':8}{'operations':>12}{'parameters':>12}",
    ]
    for artifact in artifacts:
        if isinstance(artifact, Training):
            state = "missing" if artifact in missing else "made"
            parameters = f"{artifact.stage().num_parameters() / 1e6:.1f} M"
            lines.append(f"{state:8}{artifact.operations():12.2e}{parameters:>12}  {artifact.name}")
    return "\n".join(lines)


def _line(title: str, count: int, missing: Sequence[Artifact], pace: Pace) -> str:
    operations = sum(artifact.operations() for artifact in missing)
    seconds = sum(artifact.seconds(pace) for artifact in missing)
    return f"{title:12}{count:6}{len(missing):9}{operations:13.2e}{duration(seconds):>12}"
