import unicodedata

import numpy as np
import pytest

from ctf.classes import check_same, class_index, find_classes, renumbered, typed_index, typed_label
from ctf.errors import InputError

FOLDERS = ["1", "10", "2"]  # as sorting numbers by their letters orders them
BIRDS = ["crane", "owl", "crane"]
CAFE = unicodedata.normalize("NFC", "café")


@pytest.mark.parametrize(
    ("names", "label", "index"),
    [
        (FOLDERS, "1", 0),
        (FOLDERS, "10", 1),
        (FOLDERS, "2", 2),
        (FOLDERS, 1, 1),
        (FOLDERS, np.int64(2), 2),
        (BIRDS, "owl", 1),
        (BIRDS, "2", 2),
        (["no", "yes"], "no", 0),
        (["007", "1e3"], "1e3", 1),
        (["x", CAFE], unicodedata.normalize("NFD", CAFE), 1),
        (["x", unicodedata.normalize("NFD", CAFE)], CAFE, 1),
    ],
    ids=str,
)
def test_a_name_is_that_class_and_a_number_that_index(names, label, index):
    assert class_index(names, label) == index


@pytest.mark.parametrize(
    ("names", "label", "message"),
    [
        (FOLDERS, "0", "class '0' does not exist"),
        (BIRDS, "01", "class '01' does not exist"),
        (BIRDS, "crane", "'crane' is the name of several, 0, 2: give one's index"),
        (BIRDS, "3", "class 3: the model has the classes 0 … 2"),
        (BIRDS, -1, "class -1: the model has"),
        (BIRDS, 1.0, "class 1.0: give a name, or an index"),
        (BIRDS, True, "class True: the model has"),
    ],
    ids=str,
)
def test_no_other_class_than_the_one_asked_for(names, label, message):
    with pytest.raises(InputError, match=message):
        class_index(names, label)


def test_classes_are_found_by_words_in_any_case_and_order():
    names = ["noto heart", "twemoji heart", "noto face-smiling", CAFE]
    assert find_classes(names, "HEART noto") == [0]
    assert find_classes(names, "smil") == [2]
    assert find_classes(names, unicodedata.normalize("NFD", "CAFÉ")) == [3]
    assert find_classes(names, "") == [0, 1, 2, 3]
    assert find_classes(names, "dog") == []


def test_typed_numbers_may_be_meant_for_names():
    with pytest.raises(
        InputError, match=r"""label 1 is ambiguous: .* '\["1"\]' with the .* of this name, or '\["10"\]' with the one"""
    ):
        typed_index(FOLDERS, 1)
    assert [typed_index(FOLDERS, label) for label in (0, 2, "1", 10)] == [0, 2, 0, 1]  # 10 is no index
    for names in FOLDERS, BIRDS, list("0123"):
        assert [typed_index(names, typed_label(names, i)) for i in range(len(names))] == [*range(len(names))]


def test_labels_are_matched_by_the_names_of_classes():
    labels = np.array([0, 1, 1, 0])
    assert renumbered(labels, ["cat", "fox"], ["fox", "dog", "cat"], "val").tolist() == [2, 0, 0, 2]
    assert renumbered(labels, [unicodedata.normalize("NFD", CAFE), "b"], ["b", CAFE], "val").tolist() == [1, 0, 0, 1]
    assert renumbered(labels, ["cat", "fox", "empty"], ["fox", "cat"], "val").tolist() == [1, 0, 0, 1]
    assert renumbered(labels, BIRDS, BIRDS, "val") is labels
    with pytest.raises(
        InputError, match=r"val has images of the class 'fox', which is none of the model's classes \(dog, c"
    ):
        renumbered(labels, ["cat", "fox"], ["dog", "cat"], "val")
    with pytest.raises(InputError, match="'crane'"):
        renumbered(labels, ["crane", "owl"], BIRDS, "val")


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (["cat", "fox", "owl"], "class 2 is dog there, owl here"),
        (["cat", "fox"], "class 2 is dog there, none here"),
        (["cat", "fox", "dog", "owl"], "class 3 is none there, owl here"),
    ],
    ids=str,
)
def test_classes_that_differ_are_named(there, message):
    check_same(["cat", CAFE], ["cat", unicodedata.normalize("NFD", CAFE)], "old", "new")
    with pytest.raises(InputError, match=f"old and new have different classes: {message}"):
        check_same(["cat", "fox", "dog"], there, "old", "new")
