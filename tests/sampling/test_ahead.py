import torch

from ctf.sampling.ahead import one_ahead


def test_elsewhere_than_on_a_gpu_a_call_runs_when_it_is_asked_for():
    made = []

    def call(i):
        made.append(i)
        return torch.tensor(i)

    results = one_ahead(((lambda i=i: call(i)) for i in range(3)), torch.device("cpu"))
    assert made == []
    for i in range(3):
        assert next(results).item() == i
        assert made == list(range(i + 1))
    assert next(results, None) is None


class Stream:
    """Records what a GPU's stream is told, and runs nothing by itself."""

    def __init__(self, name, log):
        self.name, self.log, self.events = name, log, 0

    def __enter__(self):
        self.log.append(f"on {self.name}")

    def __exit__(self, *_):
        self.log.append("off")

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")

    def record_event(self):
        self.events += 1
        return f"event {self.events}"

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for {event}")


class Result:
    def __init__(self, log):
        self.log = log

    def record_stream(self, stream):
        self.log.append(f"kept for {stream.name}")


def test_on_a_gpu_the_next_call_begins_before_a_result_is_used(monkeypatch):
    """The order of what two streams are told; no GPU takes part."""
    log = []
    main, own = Stream("main", log), Stream("own", log)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: own)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)

    def call(i):
        log.append(f"call {i}")
        return Result(log)

    for _ in one_ahead(((lambda i=i: call(i)) for i in range(2)), torch.device("cuda")):
        log.append("use")
    begin = ["own waits for main", "on own"]
    first, second = ([*begin, f"call {i}", "off"] for i in range(2))
    used = [["main waits for event 1", "kept for main", "use"], ["main waits for event 2", "kept for main", "use"]]
    assert log == [*first, *second, *used[0], *used[1]]
