"""The processes that train one model together, under `torchrun`."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them. All must call the collective methods, in the same order.

    Attributes:
        rank: number of this process, from 0; the first one writes the files.
        world: number of processes.
        device: of this process.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.world > 1:
            values = values.to(self.device, copy=True)
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any process."""
        return bool(self.sum(torch.tensor(float(flag))))

    def gather(self, value: int) -> list[int]:
        """The values of all processes, by rank."""
        values = torch.zeros(self.world, dtype=torch.int64)
        values[self.rank] = value
        return self.sum(values).tolist()

    def wait(self) -> None:
        """Wait until all processes have called it (a barrier)."""
        self.any(False)


#: One process and no others.
ALONE = Processes()
