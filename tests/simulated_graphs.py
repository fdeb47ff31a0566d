"""CUDA graphs on a CPU: what was dispatched while a graph was captured is dispatched again, onto the same tensors."""

from contextlib import contextmanager, nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class SimulatedGraph(TorchDispatchMode):
    """Stands for `torch.cuda.CUDAGraph`. Like a real one it knows tensors only, not what the host computed."""

    captures = 0

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        for function, args, kwargs, result in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():  # neither in place nor a view
                    old.copy_(new)

    def pool(self):
        return "pool"

    def reset(self):
        self.calls = None


@contextmanager
def capture(graph, pool=None, stream=None, capture_error_mode="global"):
    SimulatedGraph.captures += 1
    with graph:
        yield


class Ordered:
    """Stands for a stream, and for an event: everything here happens in order."""

    def __init__(self, *_):
        pass

    def wait_stream(self, stream):
        pass

    def wait_event(self, event):
        pass

    def record(self, stream):
        pass

    def synchronize(self):
        pass


def simulate(monkeypatch):
    """Let loops be recorded on a CPU from now on."""
    here = Ordered()
    stand_ins = {"CUDAGraph": SimulatedGraph, "graph": capture, "Stream": Ordered, "Event": Ordered}
    stand_ins |= {"stream": nullcontext, "device": nullcontext, "empty_cache": lambda: None}
    for name, stand_in in {**stand_ins, "current_stream": lambda *_: here}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
