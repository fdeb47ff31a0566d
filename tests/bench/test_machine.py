import time

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ctf.bench import Machine, machine, measure_machine
from ctf.bench.machine import seconds_in_turns
from ctf.models.linear import Linear
from ctf.stages.cost import Work

pytestmark = pytest.mark.usefixtures("quick_machine")


class ReadBytes(TorchDispatchMode):
    """Adds up the tensors that go into operations."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.total += sum(value.nbytes for value in args if isinstance(value, torch.Tensor))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rates_are_bytes_and_operations_as_pytorch_counts_them(monkeypatch, dtype):
    """Every call takes half a second, and the product is one that the counter knows."""
    counts = []

    def half_a_second(call, device):
        with FlopCounterMode(display=False) as operations, ReadBytes() as read:
            call()
        counts.append((operations.get_total_flops(), read.total))
        return 0.5

    monkeypatch.setattr(machine, "seconds", half_a_second)
    monkeypatch.setattr(machine, "pack_linear", lambda weight, quantize: Linear(weight))
    measured = measure_machine("cpu", dtype)
    operations, _ = counts[-1]
    none, read = counts[0]
    assert none == 0
    assert (measured.memory_bandwidth, measured.matrix_rate) == (2 * read, 2 * operations)


@pytest.mark.parametrize(("how", "products"), [(("bfloat16",), "bfloat16"), (("float32", "int8"), "int8")])
def test_rates_are_plausible(how, products):
    measured = measure_machine("cpu", *how)
    assert 1e8 < measured.memory_bandwidth < 1e14
    assert 1e8 < measured.matrix_rate < 1e16
    assert measured.products == products
    assert measured.threads == torch.get_num_threads()


@pytest.mark.parametrize(("products", "unit"), [("float32", "GFLOP/s"), ("int8", "GOP/s")])
def test_text_names_all_that_a_result_depends_on(products, unit):
    measured = Machine("EPYC", 2, 20e9, 150e9, products, "torch 2.13.0", "2026-11-23")
    assert str(measured) == (
        f"EPYC, 2 CPU thread(s), torch 2.13.0, 2026-11-23: reads 20.0 GB/s, multiplies at 150 {unit} in {products}"
    )


def test_roofline_takes_the_slower_of_both_at_each_step():
    measured = Machine("", 1, memory_bandwidth=10.0, matrix_rate=100.0, products="", software="", date="")
    assert measured.roofline([Work(20, 100), Work(20, 500)]) == 2 + 5


def test_calls_take_turns_after_a_first_round():
    made, start = [], time.monotonic()
    calls = [lambda: made.append("a"), lambda: (made.append("b"), time.sleep(0.01))]
    times = seconds_in_turns(calls, torch.device("cpu"), 3)
    assert sum(map(sum, times)) <= time.monotonic() - start
    assert made == ["a", "b"] * 4
    assert [len(taken) for taken in times] == [3, 3]
    assert min(times[1]) >= 0.01
