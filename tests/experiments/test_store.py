import shutil
from dataclasses import dataclass
from typing import ClassVar

import pytest

from ctf.errors import InputError
from ctf.experiments.store import Artifact, Store, in_order
from ctf.files import read_json, read_json_lines, write_text


@dataclass(frozen=True)
class Settings:
    rate: float = 0.1
    parts: tuple = ()


@dataclass(frozen=True)
class Sum(Artifact):
    """The sum of numbers and of other sums; `made` counts how often it was made."""

    room: ClassVar[str] = "sums"
    finished: ClassVar[str] = "sum"
    made: ClassVar[list] = []
    numbers: tuple = ()
    terms: tuple = ()
    settings: Settings = Settings()

    @property
    def title(self):
        return "sum"

    def check(self, folder):
        if not (folder / "sum").read_text().replace(".", "").isdigit():
            raise InputError(f"{folder / 'sum'} is not a number")

    def make(self, folder, store):
        if 13 in self.numbers:
            raise KeyboardInterrupt
        terms = [float((store.get(term) / "sum").read_text()) for term in self.terms]
        write_text(folder / "sum", str(sum(self.numbers) + sum(terms)))
        self.made.append(self)


@pytest.fixture
def store(tmp_path):
    Sum.made.clear()
    return Store(tmp_path)


def test_the_key_is_that_of_everything_that_decides():
    one = Sum((1, 2))
    different = [one, Sum((2, 1)), Sum((1, 2), (Sum((1,)),)), Sum((1, 2), (Sum((2,)),)), Sum((1, 2), (), Settings(0.2))]
    assert len({artifact.key for artifact in different}) == len(different)
    assert Sum((1, 2)).key == one.key
    assert len(one.key) == 12


def test_inputs_are_found_in_tuples_and_settings():
    a, b = Sum((1,)), Sum((2,))
    assert Sum((), (a,), Settings(parts=(("name", b),))).inputs() == [a, b]


def test_each_is_made_once_after_what_it_is_made_from(store):
    a = Sum((1,))
    b, c = Sum((2,), (a,)), Sum((3,), (a,))
    top = Sum((), (b, c))
    assert (store.get(top) / "sum").read_text() == "7.0"
    assert Sum.made == [a, b, c, top] == in_order([top])
    store.get(top)
    store.get(Sum((4,), (b,)))  # another experiment
    assert Sum.made == [a, b, c, top, Sum((4,), (b,))]


def test_an_interrupted_artifact_leaves_what_is_finished(store):
    a = Sum((1,))
    with pytest.raises(KeyboardInterrupt):
        store.get(Sum((13,), (a,)))
    assert Sum.made == [a]
    assert not store.has(Sum((13,), (a,)))
    assert store.has(a)


def test_a_damaged_artifact_is_refused_with_what_to_delete(store):
    folder = store.get(Sum((1,)))
    (folder / "sum").write_text("one")
    with pytest.raises(InputError, match=rf"not a number\. Or delete {folder}: what"):
        store.get(Sum((2,), (Sum((1,)),)))
    shutil.rmtree(folder)
    assert (store.get(Sum((2,), (Sum((1,)),))) / "sum").read_text() == "3.0"


def test_published_results_are_added_sorted_and_need_not_be_made(store, tmp_path):
    b, a = Sum((1,)), Sum((2,))
    path = tmp_path / "published" / "sums.jsonl"
    store.get(b)
    store.publish([a, b], path)  # a is not there
    store.get(a)
    store.publish([a], path)
    lines = [{"artifact": f"sums/{s.name}", "result": float(sum(s.numbers))} for s in (a, b)]
    assert read_json_lines(path) == sorted(lines, key=lambda line: line["artifact"])

    copy = Store(path.parent)
    copy.get(a)
    assert Sum.made == [b, a]
    assert (copy.result(a), copy.result(b)) == (2.0, 1.0)


def test_a_file_of_something_else_among_the_results(store, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"loss": 3.5}\n')
    with pytest.raises(InputError, match=r"log\.jsonl holds something else than results"):
        store.has(Sum((1,)))


def test_settings_lie_beside_the_artifact(store):
    a = Sum((1,))
    folder = store.get(Sum((2,), (a,)))
    described = read_json(f"{folder}.json")
    assert described == {
        "artifact": "Sum",
        "numbers": [2],
        "terms": [a.name],
        "settings": {"rate": 0.1, "parts": []},
    }
