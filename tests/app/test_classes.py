"""Classes are found by design and subject, by name, and by Unicode's keywords."""

import pytest

from ctf.app.classes import EXAMPLES, Classes
from ctf.errors import InputError
from ctf.model_folder import Pipeline

PAIRS = ["noto animal-mammal", "noto face-smiling", "noto food-prepared", "twemoji animal-mammal", "twemoji cat-face"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", [0, 1, 2, 3, 4]),
        ("noto", [0, 1, 2]),
        ("noto face-smiling", [1]),
        ("face-smiling", [1]),
        ("dog", [0, 3]),  # most of its emoji are animals, though a hot dog is food
        ("Noto Dog", []),
        ("twemoji DOG", [3]),
        ("smile", [1]),
        ("twemoji smile", [4]),  # the next subject with a smile, as Twemoji's faces are not here
        ("pupp", [0, 3]),
        ("smiling", [1]),
        ("mamm", [0, 3]),
        ("4", [4]),
    ],
)
def test_words_find_classes(text, found):
    classes = Classes(PAIRS)
    if found:
        assert classes.find(text) == found
    else:
        with pytest.raises(InputError, match="no such class"):
            classes.find(text)


def test_names_that_are_not_pairs_are_found_by_their_parts():
    classes = Classes(["cat", "red fox", "grey fox", "3"])
    assert classes.designs == []
    assert [classes.find(text) for text in ("fox", "FOX grey", "3", "0")] == [[1, 2], [2], [3], [0]]
    with pytest.raises(InputError, match=r"no such class: 'red foks'; did you mean 'red fox'\?"):
        classes.find("red foks")


def test_a_name_that_occurs_twice_is_said_by_its_index():
    choices = Classes(["crane", "owl", "crane", "3"]).choices()
    assert choices[1:] == [("crane (0)", "0"), ("owl", "owl"), ("crane (2)", "2"), ("3", "3")]


def test_a_list_shows_each_subject_once_with_its_keywords():
    classes = Classes(PAIRS)
    assert classes.designs == ["noto", "twemoji"]
    shown = {value: label for label, value in classes.choices()}
    assert list(shown) == ["", "animal-mammal", "cat-face", "face-smiling", "food-prepared"]
    assert shown["animal-mammal"].startswith("animal-mammal · animal, face,")  # those of most emoji first
    assert ", dog," in shown["animal-mammal"]
    assert ", smile," in shown["face-smiling"]


def test_a_class_has_a_subject_and_a_design():
    classes = Classes(PAIRS)
    assert [classes.parted(name) for name in (PAIRS[0], "dog", "noto")] == [
        ("animal-mammal", "noto"),
        ("dog", ""),
        ("", "noto"),
    ]


def test_the_bundled_model_has_the_examples():
    assert Classes(Pipeline.from_pretrained("emoji").class_names).examples == list(EXAMPLES)
