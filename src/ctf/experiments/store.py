"""Artifacts: what experiments make, each once, kept under the hash of its settings and shared between experiments."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from ctf.errors import InputError
from ctf.files import read_json, read_json_lines, write_json, write_text

#: Part of every hash: to be raised when the same settings no longer mean the same artifact.
FORMAT = 1


@dataclass(frozen=True)
class Pace:
    """The speed of a machine at making artifacts, for plans.

    Attributes:
        machine: its name.
        rate: operations per second that it sustains.
        images_per_second: measured sampling by the size of an autoregressive stage 1 and the system, "baseline" or
            "coarse-to-fine". Its steps wait for memory, which operations do not show.
    """

    machine: str
    rate: float
    images_per_second: Mapping[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact(ABC):
    """Something that is made once.

    Subclasses are frozen dataclasses. Their fields, some of them other artifacts, decide what comes out, and nothing
    else does.

    Attributes:
        room: the folder of all artifacts of its type.
        finished: the file that is written last, atomically.
    """

    room: ClassVar[str]
    finished: ClassVar[str]

    @property
    def title(self) -> str:
        """A few words for people, with which the name of its folder begins; those of its first field by default."""
        return getattr(self, dataclasses.fields(self)[0].name).title

    def is_made(self, folder: Path) -> bool:
        """Whether `folder` holds the finished artifact."""
        return (folder / self.finished).exists()

    @abstractmethod
    def make(self, folder: Path, store: Store) -> None:
        """Make it in `folder`, or go on where an interrupted call stopped. What it is made from is in `store`."""

    @abstractmethod
    def check(self, folder: Path) -> None:
        """Open the files of a finished artifact, without reading all of them. Raises InputError: one is damaged."""

    def operations(self) -> float:
        """Operations of making it, two per multiply-add; 0 where that takes no time worth planning."""
        return 0.0

    def seconds(self, pace: Pace) -> float:
        """The time of making it on a machine."""
        return self.operations() / pace.rate

    def decisive(self) -> dict[str, Any]:
        """The fields that decide what comes out, by name."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}

    @cached_property
    def key(self) -> str:
        """12 hexadecimal digits of everything that decides what comes out."""
        return hashlib.sha256(json.dumps([FORMAT, self.described()], sort_keys=True).encode()).hexdigest()[:12]

    def described(self) -> dict[str, Any]:
        """The settings as plain JSON, other artifacts by their folders' names."""
        return {"artifact": type(self).__name__, **{name: _plain(value) for name, value in self.decisive().items()}}

    @property
    def name(self) -> str:
        return f"{self.title}-{self.key}"

    def inputs(self) -> list[Artifact]:
        """The artifacts that it is directly made from."""
        return list(_artifacts(self.decisive().values()))


def decisive_settings(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, without those that are younger than published results and at their default."""
    settings = {each: getattr(value, each.name) for each in dataclasses.fields(value)}
    young = [each for each, own in settings.items() if each.metadata.get("young") and own == each.default]
    return {each.name: own for each, own in settings.items() if each not in young}


def _plain(value: Any) -> Any:
    if isinstance(value, Artifact):
        return value.name
    if dataclasses.is_dataclass(value):
        return {name: _plain(own) for name, own in decisive_settings(value).items()}
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    return value


def _artifacts(values: Iterable[Any]) -> Iterator[Artifact]:
    for value in values:
        if isinstance(value, Artifact):
            yield value
        elif dataclasses.is_dataclass(value):
            yield from _artifacts(getattr(value, each.name) for each in dataclasses.fields(value))
        elif isinstance(value, (tuple, list)):
            yield from _artifacts(value)


@dataclass(frozen=True)
class Store:
    """A folder of artifacts, each in `<root>/<room>/<title>-<hash>` with its settings beside it in `….json`.

    Results alone may also be lines of `<root>/*.jsonl`, as `publish` writes them.

    Attributes:
        root: the folder.
        device: where artifacts are made.
    """

    root: Path
    device: str = "auto"

    def folder(self, artifact: Artifact) -> Path:
        return self.root / artifact.room / artifact.name

    def has(self, artifact: Artifact) -> bool:
        """Whether an artifact is there, or its result. Raises InputError: it is there and damaged."""
        folder = self.folder(artifact)
        if not artifact.is_made(folder):
            return folder in self.published
        try:
            artifact.check(folder)
        except InputError as error:
            raise InputError(
                f"{error}. Or delete {folder}: what an experiment needs of it is then made again"
            ) from None
        return True

    def result(self, artifact: Artifact) -> Any:
        """The content of a measurement's JSON file, or else its published line; for artifacts that the store has."""
        folder = self.folder(artifact)
        return read_json(folder / artifact.finished) if artifact.is_made(folder) else self.published[folder]

    @cached_property
    def published(self) -> dict[Path, Any]:
        """The results in `<root>/*.jsonl`, by the folders in which `get` would make them.

        Raises:
            InputError: such a file is damaged, or holds something else.
        """
        paths = sorted(self.root.glob("*.jsonl"))
        return {self.root / name: result for path in paths for name, result in _published(path).items()}

    def publish(self, artifacts: Iterable[Artifact], path: Path) -> None:
        """Add the results that are there to a JSON Lines file, one artifact a line, sorted. Its other lines stay."""
        results = _published(path) if path.exists() else {}
        results |= {f"{a.room}/{a.name}": self.result(a) for a in artifacts if self.has(a)}
        lines = ({"artifact": name, "result": results[name]} for name in sorted(results))
        if results:
            write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def get(self, artifact: Artifact) -> Path:
        """The folder of an artifact, which is made first where it is not there, and before it what it is made from.

        Raises:
            InputError: as what makes it does.
        """
        folder = self.folder(artifact)
        if not self.has(artifact):
            for part in artifact.inputs():
                self.get(part)
            print(f"{artifact.room}: {artifact.name}", file=sys.stderr, flush=True)
            write_json(f"{folder}.json", artifact.described())
            artifact.make(folder, self)
        return folder


def _published(path: Path) -> dict[str, Any]:
    """Results by `<room>/<name>` of their artifacts."""
    lines = read_json_lines(path)
    if not all(line.keys() == {"artifact", "result"} for line in lines):
        raise InputError(f"{path} holds something else than results of experiments: move it to another folder")
    return {line["artifact"]: line["result"] for line in lines}


def in_order(
    artifacts: Iterable[Artifact], is_made: Callable[[Artifact], bool] = lambda artifact: False
) -> list[Artifact]:
    """The artifacts and all that they are made from, each once, after its inputs. Those of one that is made are not
    needed."""
    found: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> None:
        if artifact.key not in found:
            for part in () if is_made(artifact) else artifact.inputs():
                visit(part)
            found[artifact.key] = artifact

    for artifact in artifacts:
        visit(artifact)
    return list(found.values())
