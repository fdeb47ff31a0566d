"""Two processes of a function, under the agent that torchrun runs, as forks of this one: what it imported is there."""

from collections.abc import Callable

from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def launch(work: Callable[..., object], *arguments: object) -> None:
    """Raises ChildFailedError: a process failed, and the agent has ended the other one."""
    settings = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "start_method": "fork", "max_restarts": 0}
    elastic_launch(LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, **settings), work)(*arguments)
