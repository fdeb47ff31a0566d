"""`ctf info`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ctf.errors import InputError, did_you_mean, nearest
from ctf.sampling.settings import Sampling


def info(path: str, classes: str | None = None, json: bool = False) -> None:
    """Describe any artefact: token set, coarse map, tokenizer, stage, run or model folder.

    Example:
        ctf info emoji --classes heart

    Args:
        path: a file, folder or Hub id; "emoji" and "photos" are the bundled models, "sizes" the named model sizes.
        classes: list the classes of a model or token set with these words, or parts of words, in their names.
        json: print everything that is known as JSON.
    """
    from json import dumps

    from ctf.classes import find_classes
    from ctf.model_folder import describe

    facts = describe(path)
    if classes is not None:
        names = facts.get("class_names")
        if names is None:
            raise InputError(f"{path} has no names of classes: give a model folder or a token set")
        if not (found := find_classes(names, classes)):
            hint = did_you_mean(nearest(classes, names)) or ": try a part of the word"
            raise InputError(f"none of the {len(names):,} classes of {path} has {classes!r} in its name{hint}")
        facts = {str(index): names[index] for index in found}
    if json:
        print(dumps(facts, indent=2, ensure_ascii=False))
    elif "stages" in facts:
        print(_model(path, facts))
    elif all(isinstance(fact, Mapping) for fact in facts.values()):
        print(_table([{"": name, **row} for name, row in facts.items()]))
    else:
        print(_lines(facts))


def _model(path: str, facts: Mapping[str, Any]) -> str:
    """A model folder: its stages as a table, the rest below."""
    stages = [
        {
            "stage": stage["name"],
            "type": stage["kind_of_stage"],
            "given": stage["given"].split(" (")[0],
            "predicts": stage["predicts"].split(" (")[0],
            "sampling": _sampling(stage["sampling"]),
            "parameters": f"{stage['parameters'] / 1e6:.1f} M",
        }
        for stage in facts["stages"]
    ]
    names, codebook, tokenizer = facts["class_names"], facts["codebook"], facts["tokenizer"]
    rest = {
        "images": "{} × {} pixels".format(*facts["image_size"]),
        "tokens": facts["layout"].words,
        "tokenizer": f"{tokenizer['family']}, {tokenizer['parameters'] / 1e6:.1f} M parameters, "
        f"{codebook['size']:,} codewords of {codebook['dim']} numbers",
        "classes": f"{len(names):,}, such as {names[0]}: `ctf info {path} --classes WORD` searches them",
        "data": facts["data"] or "not stated",
        "licence": facts["licence"] or "not stated",
        **{name.replace("_", " "): f"{value:.6g}" for name, value in facts["metrics"].items()},
    }
    return f"{_table(stages, words=5)}\n\n{_lines(rest)}"


def _sampling(settings: Mapping[str, Any]) -> str:
    """The settings that differ from the plainest ones."""
    plain = asdict(Sampling())
    return ", ".join(f"{name} {value}" for name, value in settings.items() if value != plain[name])


def _lines(facts: Mapping[str, Any]) -> str:
    """A line for each fact; long values take up to three, and are cut then."""
    from textwrap import fill

    from ctf.files import flattened

    rows = [(name, str(value)) for name, value in flattened(facts)]
    width = max(len(name) for name, _ in rows)
    limits: dict[str, Any] = {"subsequent_indent": " " * (width + 2), "max_lines": 3, "placeholder": " …"}
    return "\n".join(fill(text, 120, initial_indent=f"{name:{width}}  ", **limits) or name for name, text in rows)


def _table(rows: list[dict[str, Any]], words: int = 1) -> str:
    from ctf.reporting.tables import text_table

    return text_table([[*rows[0]], *([str(value) for value in row.values()] for row in rows)], words)
