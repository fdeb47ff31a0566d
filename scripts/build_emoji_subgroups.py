"""Build the second labelling of the bundled emoji, Unicode's subgroups, and the keywords that find a subgroup.

    npm pack emojibase-data@17.0.0
    for p in noto@1.2.9 twemoji@1.2.5 fluent-emoji-flat@1.2.6; do npm pack "@iconify-json/$p"; done
    git clone --bare https://github.com/mozilla/fxemoji fxemoji.git
    python scripts/build_emoji_subgroups.py . src/ctf/assets/emoji_subgroups.json src/ctf/assets/emoji_keywords.json

The second file maps each keyword of Unicode, and each word of an emoji's label, to the subgroups of its emoji and how
many they are, the one with most of them first: "dog" is an animal before it is food.

The first file maps each subgroup to the names of its icons. A name stands alone where it has the same subgroup in every
design, else after its design: "fxemoji/sunglasses" is a face, "noto/sunglasses" is clothing.

The rules, in order. No subgroup is guessed: an icon that none of them covers is in no list.
  - Noto, Twemoji, Fluent Emoji Flat and Firefox OS Emoji say which code points an icon stands for: its subgroup is that
    of the emoji with these code points.
  - An icon of the other designs is found by its concept: the label of an emoji, the name of an icon of the first three
    designs, or Unicode's name of a character. "flag-for-" is read as "flag-".
  - `ALIASES` names the emoji of some icons that are still unknown.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from emoji_packages import DESIGNS, concept, read_package

from ctf.files import write_text
from ctf.images.sources import EMOJI

EMOJIBASE = "emojibase-data@17.0.0"
FXEMOJI_COMMIT = "270af343bee346d8221f87806d2b1eee0438431a"
ALIASES = {  # icon → label of its emoji
    "a-button": "A button (blood type)",
    "ab-button": "AB button (blood type)",
    "b-button": "B button (blood type)",
    "o-button": "O button (blood type)",
    "up-text-button": "UP! button",
    "exclamation-mark": "red exclamation mark",
    "question-mark": "red question mark",
    "heavy-heart-exclamation": "heart exclamation",
    "blond-haired-person": "person: blond hair",
    "man-with-chinese-cap": "person with skullcap",
    "grinning-cat-face": "grinning cat",
    "kissing-cat-face": "kissing cat",
    "smiling-cat-face-with-heart-eyes": "smiling cat with heart-eyes",
    "laptop-computer": "laptop",
    "man-in-suit-levitating": "person in suit levitating",
    "woman-in-suit-levitating": "person in suit levitating",
    "flag-for-black-flag": "black flag",
    "flag-for-chequered-flag": "chequered flag",
    "flag-for-crossed-flags": "crossed flags",
    "flag-for-rainbow-flag": "rainbow flag",
    "flag-for-triangular-flag": "triangular flag",
    "flag-for-white-flag": "white flag",
    "flag-for-cocos-islands": "flag: Cocos (Keeling) Islands",
    "flag-for-heard-and-mcdonald-islands": "flag: Heard & McDonald Islands",
    "flag-for-macau-sar-china": "flag: Macao SAR China",
    "flag-for-macedonia": "flag: North Macedonia",
    "flag-for-myanmar": "flag: Myanmar (Burma)",
    "flag-for-swaziland": "flag: Eswatini",
    "flag-for-turkey": "flag: Türkiye",
    "chineseflag": "flag: China",
    "franceflag": "flag: France",
    "greatbritainflag": "flag: United Kingdom",
    "italianflag": "flag: Italy",
    "japanflag": "flag: Japan",
    "koreaflag": "flag: South Korea",
    "russianflag": "flag: Russia",
    "spanishflag": "flag: Spain",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="folder with the .tgz files of `npm pack` and fxemoji.git")
    parser.add_argument("output", type=Path, help="the JSON file of subgroups to write")
    parser.add_argument("keywords", type=Path, help="the JSON file of keywords to write")
    arguments = parser.parse_args()

    titles = read_package(arguments.packages, EMOJIBASE, "meta/groups.json")["subgroups"]
    emoji = [e for e in read_package(arguments.packages, EMOJIBASE, "en/data.json") if "subgroup" in e]
    lines = [f"{json.dumps(word)}: {json.dumps(found)}" for word, found in keywords(emoji, titles).items()]
    write_text(arguments.keywords, "{\n" + ",\n".join(lines) + "\n}\n")
    unicode_names = read_package(arguments.packages, EMOJIBASE, "meta/unicode-names.json")
    by_code = {code_points(e["hexcode"]): titles[str(e["subgroup"])] for e in emoji}
    by_label = {e["label"]: titles[str(e["subgroup"])] for e in emoji}

    coded = {
        design: {name: by_code.get(code) for name, code in package_codes(arguments.packages, design).items()}
        for design in ("noto", "twemoji", "fluent-emoji-flat")
    }
    by_concept = {concept(label): subgroup for label, subgroup in by_label.items()}
    for names in coded.values():
        for name, subgroup in names.items():
            by_concept.setdefault(name, subgroup)
    for code, name in unicode_names.items():
        by_concept.setdefault(concept(name), by_code.get(code_points(code)))
    fxemoji = fxemoji_codes(arguments.packages / "fxemoji.git")
    coded["fxemoji"] = {name: by_code.get(code) for name, code in fxemoji.items()}

    table = pq.read_table(EMOJI, columns=["style", "name"])
    subgroups_of: dict[str, dict[str, str | None]] = defaultdict(dict)  # icon → design → subgroup
    for design, name in zip(table["style"].to_pylist(), table["name"].to_pylist(), strict=True):
        own = coded.get(design, by_concept)
        subgroup = own.get(concept(name)) or own.get(concept(name.replace("flag-for-", "flag-")))
        subgroups_of[name][design] = subgroup or by_label.get(ALIASES.get(name, ""))

    listed: dict[str, list[str]] = {title: [] for title in titles.values()}
    for name, designs in sorted(subgroups_of.items()):
        alike = len(set(designs.values())) == 1
        for entry, subgroup in {name if alike else f"{d}/{name}": s for d, s in designs.items()}.items():
            if subgroup:
                listed[subgroup].append(entry)
    listed = {title: names for title, names in listed.items() if names}
    write_text(arguments.output, json.dumps(listed, indent=0) + "\n")
    known = sum(subgroup is not None for designs in subgroups_of.values() for subgroup in designs.values())
    print(f"{arguments.output}: {len(listed)} subgroups of {known} emoji, {len(table) - known} without one")


def keywords(emoji: list[dict[str, Any]], titles: dict[str, str]) -> dict[str, dict[str, int]]:
    """Keyword → how many emoji of each subgroup have it, the subgroup with most of them first."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for one in emoji:
        for word in {*one["tags"], *re.findall(r"[^\W_]+", one["label"])}:
            counts[word.lower()][titles[str(one["subgroup"])]] += 1
    return {word: dict(found.most_common()) for word, found in sorted(counts.items())}


def code_points(text: str) -> str:
    """Code points as emojibase writes them ("1F3F4-200D-2620"), without the selector of a picture's variant."""
    return text.upper().replace("-FE0F", "")


def package_codes(folder: Path, design: str) -> dict[str, str]:
    """Concept → code points, from a design's package."""
    return {concept(n): code_points(c) for c, n in read_package(folder, DESIGNS[design][0], "chars.json").items()}


def fxemoji_codes(repository: Path) -> dict[str, str]:
    """Concept → code point of Firefox OS Emoji, from the names of its drawings ("u1F30A-wave.svg")."""
    command = ["git", "-C", str(repository), "ls-tree", "--name-only", f"{FXEMOJI_COMMIT}:svgs/FirefoxEmoji"]
    listing = subprocess.run(command, capture_output=True, text=True)
    if listing.returncode:
        sys.exit(f"{repository} does not hold commit {FXEMOJI_COMMIT}: {listing.stderr.strip()}")
    drawings = re.findall(r"^u([0-9A-Fa-f]+)-(.+)\.svg$", listing.stdout, re.MULTILINE)
    return {concept(name): code_points(code) for code, name in drawings}


if __name__ == "__main__":
    main()
