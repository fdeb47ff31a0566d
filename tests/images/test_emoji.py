import json
from collections import Counter, defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest

from ctf.errors import InputError
from ctf.images import open_images
from ctf.images.sources import EMOJI, EMOJI_LABELLINGS, EMOJI_SUBGROUPS

SUBGROUPS, BY_DESIGN = "emoji-subgroups", "emoji-subgroups-by-design"
EVERY = pytest.mark.parametrize("source", EMOJI_LABELLINGS)


def classes(source, split=None):
    """Image ("noto/fire-engine") → name of its class."""
    images = open_images(source, split)
    names = [images.name(i).removesuffix(".webp") for i in range(len(images))]
    return dict(zip(names, [images.class_names[label] for label in images.labels], strict=True))


@pytest.fixture(scope="module")
def rows():
    """Image → its row of the Parquet file, without the pixels."""
    table = pq.read_table(EMOJI, columns=["style", "name", "category", "split"])
    return {f"{row['style']}/{row['name']}": row for row in table.to_pylist()}


@pytest.mark.parametrize(
    ("source", "num_classes", "counts"),
    [
        ("emoji", 54, [9153, 8367, 786]),
        (SUBGROUPS, 98, [8915, 8156, 759]),
        (BY_DESIGN, 483, [8647, 7922, 725]),
    ],
)
def test_counts(source, num_classes, counts):
    for split, count in zip((None, "train", "test"), counts, strict=True):
        images = open_images(source, split)
        assert len(images) == len(images.labels) == count
        assert images.labels.dtype == np.int64
        assert len(images.class_names) == num_classes


@EVERY
def test_splits_share_labels(source, rows):
    everything, train, test = (open_images(source, split) for split in (None, "train", "test"))
    assert everything.class_names == train.class_names == test.class_names
    assert classes(source) == classes(source, "train") | classes(source, "test")
    assert {rows[image]["split"] for image in classes(source, "test")} == {"test"}
    assert {rows[image]["split"] for image in classes(source, "train")} == {"train"}


@pytest.mark.parametrize("source", [SUBGROUPS, BY_DESIGN])
def test_every_class_has_training_images(source):
    train = open_images(source, "train")
    assert np.bincount(train.labels, minlength=len(train.class_names)).min() == 5


def test_subgroups_are_those_of_the_file(rows):
    by_entry = defaultdict(set)  # an entry of the file is the name of an icon, or design and name
    for image, row in rows.items():
        by_entry[image].add(image)
        by_entry[row["name"]].add(image)
    found = classes(SUBGROUPS)
    for subgroup, entries in json.loads(EMOJI_SUBGROUPS.read_text()).items():
        images = [image for entry in entries for image in by_entry[entry]]
        assert sorted(images) == sorted(image for image in found if found[image] == subgroup)


@pytest.mark.parametrize(
    ("image", "subgroup"),
    [
        ("noto/fire-engine", "transport-ground"),
        ("twemoji/red-heart", "heart"),
        ("fluent-emoji/owl", "animal-bird"),
        ("fluent-emoji-flat/person-elf", "person-fantasy"),
        ("emojione/flag-for-turkey", "country-flag"),
        ("emojione/turkey", "animal-bird"),
        ("fxemoji/clock1thirty", "time"),
        ("fxemoji/wave", "sky-weather"),  # of water: elsewhere it is the shortcode of a hand
        ("fxemoji/sunglasses", "face-glasses"),
        ("noto/sunglasses", "clothing"),
        ("noto/letter-a", None),
        ("fxemoji/window", None),  # of a screen
    ],
)
def test_known_images(image, subgroup, rows):
    assert image in rows
    assert classes(SUBGROUPS).get(image) == subgroup


def test_a_subgroup_lies_within_one_category(rows):
    """Unicode's groups hold whole subgroups; they are the categories of all designs but the two oldest."""
    categories = defaultdict(set)
    for image, subgroup in classes(SUBGROUPS).items():
        if rows[image]["style"] not in ("emojione", "fxemoji"):
            categories[subgroup].add(rows[image]["category"])
    assert [subgroup for subgroup, found in categories.items() if len(found) > 1] == []


def test_classes_by_design_are_the_pairs_with_five_training_images(rows):
    pairs = {image: f"{rows[image]['style']} {subgroup}" for image, subgroup in classes(SUBGROUPS).items()}
    train = Counter(pair for image, pair in pairs.items() if rows[image]["split"] == "train")
    assert classes(BY_DESIGN) == {image: pair for image, pair in pairs.items() if train[pair] >= 5}


@EVERY
def test_pixels_are_those_of_the_emoji(source):
    images, emoji = open_images(source, "test"), open_images("emoji")
    last = len(images) - 1
    row = [emoji.name(i) for i in range(len(emoji))].index(images.name(last))
    np.testing.assert_array_equal(images.read(last), emoji.read(row))


def test_emoji_are_pictures_on_white_with_their_labels(rows):
    assert all(name == f"{rows[image]['style']} {rows[image]['category']}" for image, name in classes("emoji").items())
    emoji = open_images("emoji", "test")
    assert emoji.class_names[:2] + emoji.class_names[-1:] == ["noto smileys", "noto people", "fxemoji flags"]
    image = emoji.read([emoji.class_names[label].split()[0] for label in emoji.labels].index("noto"))
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert (image == 255).mean() > 0.1
    assert image.std() > 10


@EVERY
def test_unknown_split(source):
    with pytest.raises(InputError, match=f"{source} has no split 'validation': it has test, train"):
        open_images(source, "validation")


def test_a_misspelt_labelling_is_told_the_right_ones():
    with pytest.raises(InputError, match="'emoji', 'emoji-subgroups', 'emoji-subgroups-by-design'"):
        open_images("emoji-subgroup")
