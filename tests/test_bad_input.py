"""Bad input over all verbs: exit code 2, one line that names what is wrong, and nothing written.

Most cases are generated: each input of each verb is given every damage of its kind, each number, choice, name and flag
a value that it cannot have, each output a place that cannot take it. A table holds what else the line must say to help.
"""

import argparse
import dataclasses
import errno
import fcntl
import inspect
import json
import os
import re
import resource
import shlex
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import termios
import typing
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from code_files import write_codes
from image_files import empty_png
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save, save_file

from ctf.cli import main
from ctf.codebook import cluster_codebook
from ctf.commands.main import VERBS
from ctf.commands.parser import load_verb
from ctf.layout import Layout
from ctf.model_folder import Pipeline
from ctf.sampling.settings import Sampling
from ctf.tokens import write_token_set

GOLDEN = Path(__file__).parent / "golden" / "llamagen"
pytestmark = pytest.mark.usefixtures("tiny_nano", "quick_machine")

LOOP = "--loop.steps 1 --loop.batch_size 2 --loop.device cpu"
STAGE = f"--out x --tokens tokens --size nano {LOOP}"
#: Lines that work, in the folder `place` below. A bad one is such a line with one thing changed, in it or in a file;
#: later options override earlier ones.
WORKING = {
    "tokenize": "tokenize --device cpu --out x --images pictures --image_size 8 --tokenizer tokenizer.safetensors "
    "--augmentation ten-crop",
    "cluster": "cluster --out x --codebook codebook.npy --num_clusters 5",
    "cluster coarser": "cluster --out x --codebook tokenizer.safetensors --num_clusters 3 --finer map.safetensors "
    "--tokens tokens",
    "train tokenizer": f"train tokenizer --out x --images pictures --image_size 8 {LOOP} --model.base_channels 32 "
    "--model.z_channels 32 --model.channel_multipliers [1] --model.patch_size 4 --model.codebook_size 8",
    "train baseline": f"train baseline {STAGE}",
    "train coarse": f"train coarse {STAGE} --coarse_map map.safetensors",
    "train fine": f"train fine {STAGE} --coarse_map map.safetensors --held_out ./tokens "
    "--tokenizer tokenizer.safetensors",
    "train iar": f"train baseline {STAGE} --coarse_map map.safetensors --cluster_loss_weight 1",
    "train any_order": f"train coarse {STAGE} --coarse_map map.safetensors --kind any_order",
    "train rounds": f"train fine {STAGE} --coarse_map map.safetensors --rounds any --sampling.order confidence",
    "train stage": f"train stage {STAGE} --kind masked --given map.safetensors",
    "assemble": "assemble --out x --tokenizer tokenizer.safetensors --stages '[coarse.safetensors,fine.safetensors]' "
    "--tokens tokens",
    "push": "push --model model --to owner/name",
    "sample": "sample --device cpu --out x --model model --num 2",
    "complete": "complete --device cpu --out x --model any_order_model --image pictures/0.png --labels [1] "
    "--mask mask.png",
    "fit": "fit --device cpu --out x --images pictures --image_size 16 --time 1s --num_clusters 4 --dry-run",
    "evaluate tokenizer": "evaluate tokenizer --device cpu --tokenizer tokenizer.safetensors --images pictures "
    "--image_size 16",
    "evaluate likelihood": "evaluate likelihood --device cpu --tokens tokens --model model",
    "likelihood by steps": "evaluate likelihood --device cpu --tokens tokens --model any_order_model --steps [1,4] "
    "--out x",
    "evaluate samples": "evaluate samples --device cpu --out x --samples samples.npz --reference samples.npz "
    "--features emoji --cache cache",
    "evaluate neighbours": "evaluate neighbours --device cpu --out x --samples samples.npz --reference samples.npz "
    "--held_out pictures --num 2 --features emoji --cache cache",
    "evaluate swap": "evaluate swap --out x --tokenizer tokenizer.safetensors --images pictures "
    "--image_size 16 --num_clusters [5]",
    "bench sampling": "bench sampling --device cpu --out x --sizes [nano] --fine_size nano --batch_sizes [1] --runs 1 "
    "--layout 2x2 --codebook_size 24 --num_clusters 5 --tokenizer tokenizer.safetensors",
    "bench training": "bench training --device cpu --out x --sizes [nano] --batch_size 2 --steps 1 --layout 2x2 "
    "--codebook_size 24 --num_clusters 5",
    "plan": "plan plan.yaml --gpus 2 --num_clusters 5",
    "reproduce": "reproduce table3d --dry-run --out x",
    "convert llamagen": "convert llamagen --out x --tokenizer vq8.pt --gpt gpt.pt --num_heads 4 --layout 4x4",
    "convert codes": "convert codes --out x --source codes --codebook_size 24 --num_classes 4 --codebook codebook.npy",
    "convert tokens": "convert tokens --out x --tokens tokens.npy --labels labels.npy --codebook_size 24",
    "convert to-codes": "convert to-codes --out x --tokens tokens --image_size 8",
    "convert half": "convert half --out x --source tokenizer.safetensors",
    "info model": "info model",
    "info tokens": "info tokens",
    "info map": "info map.safetensors",
    "info tokenizer": "info tokenizer.safetensors",
    "info stage": "info fine.safetensors",
    "info run": "info run",
}
#: The app does not end by itself, and the demo takes its time.
LINES = {verb: line.replace(" --dry-run", "") for verb, line in WORKING.items()} | {
    "app": "app --device cpu --model model --port 0",
    "demo": "demo --quick --out x",
}


@pytest.fixture(scope="session")
def good(tmp_path_factory, make_tokenizer, make_stage):
    """A folder of tiny artefacts that belong together, and some of other codebooks, maps and sizes."""
    place = tmp_path_factory.mktemp("good") / "place"
    place.mkdir()
    generator = np.random.default_rng(0)
    tokenizer, other, small = make_tokenizer(), make_tokenizer(seed=1), make_tokenizer(16)
    for name, part in ("tokenizer", tokenizer), ("other_tokenizer", other), ("small_tokenizer", small):
        part.save(place / f"{name}.safetensors")
    codebook = tokenizer.codebook
    np.save(place / "codebook.npy", codebook.numpy())
    maps = {
        "map": cluster_codebook(codebook, 5),
        "reseeded_map": cluster_codebook(codebook, 5, "random", seed=1),
        "other_map": cluster_codebook(other.codebook, 5),
    }
    for name, coarse_map in maps.items():
        coarse_map.save(place / f"{name}.safetensors")
    stages = {
        "coarse": make_stage(name="coarse", predicts=maps["map"], layout=Layout((2, 2))),
        "fine": make_stage("masked", name="fine", given=maps["map"], layout=Layout((2, 2))),
    }
    for name, stage in stages.items():
        stage.save(place / f"{name}.safetensors")
    Pipeline(tokenizer, list("abcd"), [stages["coarse"], stages["fine"]]).save_pretrained(place / "model")
    any_order = make_stage("any_order", name="coarse", predicts=maps["map"], layout=Layout((2, 2)))
    rounds = make_stage("masked", name="fine", given=maps["map"], layout=Layout((2, 2)), rounds="any")
    Pipeline(tokenizer, list("abcd"), [any_order, rounds]).save_pretrained(place / "any_order_model")

    tokens, labels = generator.integers(0, 24, (8, 1, 4)), np.arange(8) % 4
    write_token_set(place / "tokens", tokens, labels, 24, codebook=codebook, class_names=list("abcd"), shard_size=4)
    np.save(place / "tokens.npy", tokens)
    np.save(place / "labels.npy", labels)
    (place / "pictures").mkdir()
    for i in range(2):
        Image.fromarray(generator.integers(0, 255, (16, 16, 3), np.uint8)).save(place / "pictures" / f"{i}.png")
    Image.fromarray(np.eye(16, dtype=np.uint8)[:1].repeat(16, 0) * 255).save(place / "mask.png")  # the left column
    np.savez(place / "samples.npz", arr_0=NOISE)
    write_codes(place / "codes", tokens[:2], labels[:2])
    (place / "plan.yaml").write_text("tokens: tokens\nsize: nano\nloop:\n  batch_size: 4\n  steps: 9\n")
    shutil.copy(GOLDEN / "vq8.pt", place / "vq8.pt")
    shutil.copy(GOLDEN / "gpt_mha.pt", place / "gpt.pt")
    (place / "run").mkdir()
    (place / "run" / "config.json").write_text('{"loop": {}}')
    (place / "run" / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (place / "empty").mkdir()
    return place


def states(folder):
    """Of every file what changes when it is written or replaced, without reading it."""
    paths = [os.path.join(top, name) for top, folders, files in os.walk(folder) for name in folders + files]
    files = ((os.path.relpath(path, folder), os.lstat(path)) for path in paths)
    return {
        name: (s.st_mode, s.st_ino, not stat.S_ISDIR(s.st_mode) and (s.st_size, s.st_mtime_ns)) for name, s in files
    }


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A folder for `place`, and the states of its files when it was filled."""
    return tmp_path_factory.mktemp("copy") / "place", {}


@pytest.fixture
def place(good, copy, monkeypatch):
    """A copy of `good`, where the command runs; a new one after a test that has changed it."""
    place, before = copy
    if not before or states(place) != before:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(good, place)
        before.clear()
        before |= states(place)
    monkeypatch.chdir(place)
    return place


def fails(capsys, arguments):
    """The one line that a command which ends with exit code 2 leaves on standard error."""
    with warnings.catch_warnings(record=True) as shown:  # else pytest would keep them
        for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", hidden)  # as Python does
        assert main(arguments) == 2
    lines = [str(warning.message) for warning in shown] + capsys.readouterr().err.splitlines()
    # A slow machine shows progress, and a cache on a full disk is a warning only.
    lines = [line for line in lines if line and not re.search(r"\d%\||^the cache at", line)]
    assert len(lines) == 1, lines
    assert lines[0].startswith("ctf: error: ")
    return lines[0]


def left(before, folder="."):
    """What a command has added, after making sure that nothing that was there has changed and no part is left over."""
    after = states(folder)
    assert {name: after.get(name) for name in before} == before
    added = sorted(after.keys() - before.keys())
    assert not [name for name in added if ".tmp" in name or ".old" in name]
    return added


def fails_and_writes_nothing(capsys, arguments, *folders):
    before = [states(folder) for folder in (".", *folders)]
    line = fails(capsys, arguments)
    for folder, state in zip((".", *folders), before, strict=True):
        assert left(state, folder) == []
    return line


@pytest.mark.parametrize("name", WORKING)
def test_lines_without_an_error_work(place, hub, name):
    assert main(shlex.split(WORKING[name])) == 0


# Damaged files and folders. They stand beside the folder where the command runs, made once; a line names them there.

NOISE = np.random.default_rng(0).integers(2, 255, (4, 64, 64, 3), np.uint8)
JUNK = bytes(range(256)) * 4


def tensors_of(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["ctf"])  # noqa: SIM118


def later(function):
    """The function called later; what it is given now comes first."""
    return lambda *given, **named: partial(function, *given, **named)


@later
def with_bytes(change, path):
    """Write what `change` makes of a file's bytes."""
    content = change(path.read_bytes())
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def delete(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def folder_instead(path):
    path.unlink()
    path.mkdir()


def file_instead(path):
    delete(path)
    path.write_bytes(JUNK)


def emptied(path):
    delete(path)
    path.mkdir()


def other_folder(path):
    delete(path)
    shutil.copytree(path.parent.parent / "place" / "codes", path)


def copy_of(source):
    """Another file, of another kind, under this name."""
    return lambda path: shutil.copy(path.parent.parent / "place" / source, path)


FILE = {
    "missing": delete,
    "empty": with_bytes(lambda old: b""),
    "cut in the header": with_bytes(lambda old: old[:20]),
    "cut in half": with_bytes(lambda old: old[: len(old) // 2]),
    "junk": with_bytes(lambda old: JUNK),
    "flipped": with_bytes(lambda old: bytes([old[0] ^ 1]) + old[1:]),
    "folder": folder_instead,
    "picture": copy_of("pictures/0.png"),
    "text": with_bytes(lambda old: "1 / 0\n"),
}
FOLDER = {"missing": delete, "empty": emptied, "file": file_instead, "other folder": other_folder}


def each_image(damage):
    return lambda path: [damage(file) for file in path.iterdir()]


#: Every damage of the kind of file or folder that a name in a line stands for.
BY_NAME = {
    "tokenizer.safetensors": FILE | {"map": copy_of("map.safetensors"), "stage": copy_of("fine.safetensors")},
    "map.safetensors": FILE | {"tokenizer": copy_of("tokenizer.safetensors"), "stage": copy_of("fine.safetensors")},
    "coarse.safetensors": FILE | {"map": copy_of("map.safetensors")},
    "fine.safetensors": FILE | {"tokenizer": copy_of("tokenizer.safetensors")},
    "codebook.npy": FILE | {"archive": copy_of("samples.npz"), "map": copy_of("map.safetensors")},
    "tokens.npy": FILE | {"map": copy_of("map.safetensors")},
    "labels.npy": FILE | {"map": copy_of("map.safetensors")},
    "samples.npz": FILE | {"array": copy_of("tokens.npy")},
    "vq8.pt": FILE | {"GPT": copy_of("gpt.pt")},
    "gpt.pt": FILE | {"tokenizer": copy_of("vq8.pt")},
    "plan.yaml": {name: damage for name, damage in FILE.items() if not name.startswith("cut")},
    "pictures/0.png": {name: damage for name, damage in FILE.items() if name != "picture"},
    "mask.png": {name: damage for name, damage in FILE.items() if name != "picture"},
    "model": FOLDER,
    "any_order_model": FOLDER,
    "tokens": FOLDER,
    "run": FOLDER,
    "codes": {name: damage for name, damage in FOLDER.items() if name != "other folder"},
    "pictures": {"missing": delete, "empty": emptied, "file": file_instead}
    | {f"images {name}": each_image(FILE[name]) for name in ("empty", "cut in half", "junk", "folder")},
}


def verb_of(line):
    words = line.split()[:2]
    return words if VERBS[words[0]] else words[:1]


def damaged_inputs():
    """Each name of an input in each line × each damage."""
    seen = set()
    for verb, line in LINES.items():
        words = " ".join(verb_of(line))
        for word in re.compile(r"(?<=[ ,\[])[\w./]+(?=[] ,]|$)").finditer(line, len(words)):
            place = words, line[: word.start()].split()[-1], word[0]
            for damage in BY_NAME.get(word[0], ()) if place not in seen else ():
                if line.startswith("info") and damage in ("map", "tokenizer", "stage"):
                    continue  # described as what it is
                yield pytest.param(line, word, damage, id=f"{verb}-{word[0]}-{damage}")
            seen.add(place)


@pytest.mark.parametrize(("line", "word", "damage"), [*damaged_inputs()])
def test_a_damaged_input_is_named(place, capsys, line, word, damage):
    path = place.parent / "bad" / re.sub("[ /]", "_", f"{damage}_{word[0]}")
    if not path.exists():
        copied(place / word[0], path)
        BY_NAME[word[0]][damage](path)
    line = f"{line[: word.start()]}../bad/{path.name}{line[word.end() :]}"
    before, damaged = states("."), states(path.parent)
    assert path.name in fails(capsys, shlex.split(line))
    assert left(damaged, path.parent) == []
    assert not [name for name in left(before) if not re.match(BEGUN, name)]


#: Of a run that fails in its first step, and features of a reference that was read.
BEGUN = r"x$|x/config.json$|x/log.jsonl$|cache"


def copied(source, target):
    """A file or folder under another name, in place of what is there."""
    target.parent.mkdir(exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


#: Where every file of a folder is damaged, and every entry of a JSON file and of a safetensors file's metadata.
DEEP = {
    "model": "sample",
    "tokens": "info tokens",
    "codes": "convert codes",
    "run": "info run",
    "tokenizer.safetensors": "tokenize",
    "map.safetensors": "cluster coarser",
    "fine.safetensors": "assemble",
}


#: What a file may lack, or hold: defaults of stages, settings of a run, where tokens are from, the oldest family.
HARMLESS = (
    r"generation_config.json (missing|no \w+)|config.json (loop .*|cut in the header)|.*safetensors no family|"
    r"index.json (no )?(codebook|source|split|image_size|inputs|files|skipped)( None)?|"
    r"index.json (no shard_size|shard_size 3|inputs 3|image_size 3|complete .*|(codebook|source|split|files) text)"
)


def members_damaged(path):
    """What was done, after doing it, for every file in a folder, or the file itself."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if not file.is_file() or file.name in ("README.md", "manifest.json", "log.jsonl"):  # of which little is read
            continue
        before = file.read_bytes()
        for name, damage in MEMBER.items():
            damage(file)
            yield f"{file.name} {name}"
            restore(file, before)
        for name, content in entries_damaged(file) if file == path or file.suffix == ".json" else ():
            file.write_bytes(content)
            yield f"{file.name} {name}"
        restore(file, before)


def restore(file, content):
    if file.is_dir():
        file.rmdir()
    file.write_bytes(content)


MEMBER = {name: damage for name, damage in FILE.items() if name not in ("picture", "text")}


def entries_damaged(file):
    """Content of a file with one entry of its JSON, or of its metadata, missing or of another type."""
    if file.suffix == ".json":
        values = json.loads(file.read_text())
        yield "UTF-16", json.dumps(values).encode("utf-16")
        yield "deep", b"[" * 100_000
        for other in [], "text", 3, None:
            yield f"{other}", json.dumps(other).encode()
        for key in values:
            yield f"no {key}", json.dumps({name: value for name, value in values.items() if name != key}).encode()
            for other in None, 3, "text", [3]:
                yield f"{key} {other}", json.dumps(values | {key: other}).encode()
    if file.suffix == ".safetensors":
        tensors, metadata = tensors_of(file)
        yield "metadata {", save(tensors, {"ctf": "{"})
        yield "metadata []", save(tensors, {"ctf": "[]"})
        yield "no metadata", save(tensors)
        for key in metadata:
            others = {name: value for name, value in metadata.items() if name != key}
            yield f"no {key}", save(tensors, {"ctf": json.dumps(others)})
            for other in "{", "[1]", "-1", '{"colour": 4}', "":
                yield f"{key} {other}", save(tensors, {"ctf": json.dumps(metadata | {key: other})})
        for key, tensor in [*tensors.items()][:1]:
            for other in (torch.nan, torch.inf) if tensor.is_floating_point() else (-1, 99):
                yield (
                    f"{key} {other}",
                    save(tensors | {key: torch.full_like(tensor, other)}, {"ctf": json.dumps(metadata)}),
                )


@pytest.mark.parametrize("name", DEEP)
def test_damage_within_an_input_is_named(place, capsys, name):
    path, line = place.parent / "deep" / name, LINES[DEEP[name]]
    copied(place / name, path)
    line = re.sub(rf"(?<=[ ,\[]){re.escape(name)}(?=[] ,]|$)", f"../deep/{name}", line)
    wrong = []
    for damage in members_damaged(path):
        before = states(".")
        try:
            code = main(shlex.split(line))
        except Exception as error:
            code = repr(error)
        said = capsys.readouterr().err
        refused = code == 2 and said.count("\n") == 1 and name in said and states(".") == before
        if not (refused or (code == 0 and re.fullmatch(HARMLESS, damage))):
            wrong.append((damage, code, said))
        shutil.rmtree("x", ignore_errors=True)
    assert not wrong


# Values that options cannot have


def options(words):
    """Of each option of a verb, or of the settings that it takes: who declares it, its name, its type."""
    verb = load_verb(words)
    hints = {name: p.annotation for name, p in inspect.signature(verb, eval_str=True).parameters.items()}
    if "config" in hints:
        yield from fields_of(hints["config"])
    elif hints.pop("sampling", None):
        yield from (("sampling", name, hint) for _, name, hint in fields_of(Sampling))
    yield from ((verb, name, hint) for name, hint in hints.items() if name != "config")


def fields_of(config, prefix=""):
    """The same of a dataclass, whose fields may be dataclasses."""
    for name, hint in typing.get_type_hints(config).items():
        if dataclasses.is_dataclass(hint):
            yield from fields_of(hint, f"{prefix}{name}.")
        else:
            declares = next(c for c in reversed(config.__mro__) if name in inspect.get_annotations(c))
            yield declares, prefix + name, hint


def leaves(hint):
    """The plain types that a type is made of."""
    if typing.get_origin(hint) is typing.Literal:
        return [typing.Literal]
    return [leaf for part in typing.get_args(hint) if part is not ... for leaf in leaves(part)] or [hint]


WRONG = {typing.Literal: ["sideways"], bool: ["3"], int: ["-7", "2.5"], float: ["-7", "many", ".nan", ".inf"]}
#: Of options that take a name: one that does not exist.
NAMES = {
    **dict.fromkeys(("size", "fine_size"), "huge"),
    **dict.fromkeys(("stage", "split"), "middle"),
    **{"device": "abacus", "sizes": "huge", "kind": "quantum", "kinds": "quantum", "features": "vgg", "gpu": "TPU"},
    **{
        "splits": "middle",
        "to": "nobody",
        "time": "soon",
        "labels": "fox",
        "filter": "best",
        "sampler": "best",
        "name": "9lives",
    },
}
#: Which the line does not use.
UNUSED = {("train tokenizer", "loop.patience", ".inf")}


def wrong_values(name, hint):
    kinds = [kind for kind in leaves(hint) if kind is not type(None)]
    by_name = [NAMES[name]] if name in NAMES else []
    values = by_name if str in kinds else WRONG.get(kinds[0], [])
    values = values + [f"{10**30}"] * name.endswith("seed")
    listed = [part for part in (hint, *typing.get_args(hint)) if typing.get_origin(part) in (list, tuple)]
    count = (
        1 if not listed or listed[0] is list or ... in typing.get_args(listed[0]) else len(typing.get_args(listed[0]))
    )
    return [f"[{', '.join([value] * count)}]" if listed else value for value in values]


def wrong_options():
    """Each option once for the verb, or the settings of several verbs, that declares it."""
    seen = set()
    for line in LINES.values():
        verb = " ".join(verb_of(line))
        for owner, option, hint in options(verb_of(line)):
            name = option.split(".")[-1]
            for value in wrong_values(name, hint) if (owner, name) not in seen else ():
                if (verb, option, value) not in UNUSED:
                    yield pytest.param(line, option, value, id=f"{verb}-{option}-{value}")
            seen.add((owner, name))


@pytest.mark.parametrize(("line", "option", "value"), [*wrong_options()])
def test_a_value_that_an_option_cannot_have_is_named(place, capsys, line, option, value):
    said = fails_and_writes_nothing(capsys, [*shlex.split(line), f"--{option}={value}"])
    assert option.split(".")[-1] in said or value.strip("[].") in said


# Places that cannot be written

#: Verbs that write a file; the others write a folder.
WRITES_A_FILE = ("cluster", "convert half", "bench", "evaluate swap")
WRITING = {verb: line for verb, line in LINES.items() if re.search("--(out|json) x", line)}


def wrong_outputs():
    for verb, line in WRITING.items():
        wrong_kind = "empty" if verb.startswith(WRITES_A_FILE) else "codebook.npy"
        for name, place in ("inside a file", "codebook.npy/x"), ("of wrong kind", wrong_kind), ("too long", "x" * 300):
            yield pytest.param(re.sub("--(out|json) x", rf"--\1 {place}", line), place, id=f"{verb}-{name}")


@pytest.mark.parametrize(("line", "output"), [*wrong_outputs()])
def test_an_output_that_cannot_be_is_named(place, capsys, line, output):
    said = fails_and_writes_nothing(capsys, shlex.split(line))
    assert output.split("/")[0] in said


# What else the line says to help. A verb's line with more options, words of the message, damage.


@later
def written(path, content):
    """A file of these bytes, in place of what is there."""
    if Path(path).is_dir():
        shutil.rmtree(path)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content.encode() if isinstance(content, str) else content)


@later
def folder(path):
    """A folder where a file belongs."""
    Path(path).unlink(missing_ok=True)
    Path(path).mkdir(parents=True)


@later
def edited(path, **changes):
    """Other values in a JSON object."""
    Path(path).write_text(json.dumps(json.loads(Path(path).read_text()) | changes))


@later
def retold(path, **changes):
    """Other metadata in a safetensors file of ours."""
    tensors, metadata = tensors_of(path)
    save_file(tensors, path, {"ctf": json.dumps(metadata | changes)})


@later
def map_of(labels):
    save_file({"fine_to_coarse": labels}, "map.safetensors", {"ctf": json.dumps(tensors_of("map.safetensors")[1])})


@later
def array(path, values, dtype=None):
    Path(path).parent.mkdir(exist_ok=True)
    np.save(path, np.asarray(values, dtype), allow_pickle=True)


@later
def pickled(path, value):
    torch.save(value, path)


class Runs:
    """What makes a file "ran" when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def npy_that_claims(shape, dtype="|u1"):
    """An .npy of no data whose header names any shape."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


@later
def zipped(path, **entries):
    """An .npz whose entries are these bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)


def no_images():
    for file in Path("pictures").iterdir():
        file.write_bytes(b"not an image")


@later
def copy_as(source, target):
    copied(Path(source), Path(target))


# fmt: off
SAYS = [
    ("", "smaple", "`ctf smaple` does not exist: did you mean sample?"),
    ("", "train corse", "`ctf train corse` does not exist: did you mean coarse?"),
    ("cluster", "--clusters 3", "has no option --clusters: did you mean --num_clusters?"),
    ("fit", "--held_out val", "`ctf fit` has no option --held_out: did you mean --held_out_split?"),
    ("assemble", "--size 8", "`ctf assemble` has no option --size (`ctf assemble --help-all` lists"),
    ("train coarse", "--loop.stesp 3", "did you mean --loop.steps?"),
    ("", "corse", "`ctf corse` does not exist: did you mean train coarse?"),
    ("", "tokenizer", "did you mean evaluate tokenizer or train tokenizer?"),
    ("train coarse", "--steps 3", "no option --steps: did you mean --loop.steps or --sampling.steps?"),
    ("train coarse", "--sead=3", "did you mean --loop.seed?"),
    ("", "sample --out x --guidance_scale 3", "no option --guidance_scale: did you mean --cfg_scale?"),
    ("", "sample --out x --cfg 3", "did you mean --cfg_scale?"),
    ("", "sample --out x --labels hart", "class 'hart' does not exist: did you mean 'emojione heart' or"),
    ("", "sample --out x --labels Heart", "class 'Heart' does not exist: did you mean 'emojione heart' or"),
    ("sample", "--labels fox", "class 'fox' does not exist: `ctf info MODEL --classes WORD` searches"),
    ("", "sample --out x --model emojii", "emojii: no such model folder: did you mean emoji?"),
    ("", "info emojii", "emojii: no such file or folder: did you mean emoji?"),
    ("", "info emoji --classes hart", "has 'hart' in its name: did you mean emojione heart or"),
    ("info map", "--classes heart", "map.safetensors has no names of classes"),
    ("sample", "--out x.jpg", "x.jpg: samples are a new folder, an .npz, or a .png"),
    ("sample", "--out x.PNG", "x.PNG: samples are a new folder, an .npz, or a .png"),
    ("complete", "--out x.webp", "x.webp: samples are a new folder, an .npz, or a .png"),
    ("train tokenizer", "--held_out_split test", "held_out_split has no effect without held_out"),
    ("train tokenizer", "--discriminator_start 9", "has no effect without discriminator_weight"),
    ("train stage", "--given null --support full", "support has no effect without given"),
    ("evaluate tokenizer", "--weights w", "weights has no effect without features"),
    ("evaluate tokenizer", "--network alex", "network has no effect without lpips"),
    ("evaluate swap", "--num 9", "num has no effect without model"),
    ("tokenize", "--augmentation flip --crop_ranges 1.2", "crop_ranges has no effect without augmentation ten-crop"),
    ("", "sample --lables 3", "no option --lables: did you mean --labels?"),
    ("", "info model tokens", "unrecognized arguments: tokens"),
    ("", "cluster", "needs --out"),
    ("", "info", "needs path"),
    ("", "train baseline --config c.yaml", "option 'stepz': did you mean loop.steps?",
     written("c.yaml", "out: x\ntokens: tokens\nloop:\n  stepz: 3\n")),
    ("", "sample --config c.yaml", "'lables' is not accepted: did you mean labels?",
     written("c.yaml", "out: x\nlables: [3]\n")),
    ("", "cluster --config c.yaml", "could not determine a constructor for the tag",
     written("c.yaml", "out: !!python/object/apply:os.mkdir [ran]\n")),
    ("", "cluster --config c.yaml", "Config file loop detected", written("c.yaml", "out: x\nconfig: c.yaml\n")),
    ("", "cluster --config c.json", "out holds a zero byte",
     written("c.json", '{"out": "x\\u0000y", "codebook": "codebook.npy", "num_clusters": 5}')),
    ("cluster", "--codebook fine.safetensors:weights", "no matrix named 'weights'"),
    ("cluster", "", "complex", array("codebook.npy", np.zeros((24, 4), complex))),
    ("cluster", "", "Object arrays cannot be loaded", array("codebook.npy", [[Runs()]], object)),
    ("cluster", "", "truncated", written("codebook.npy", npy_that_claims((10**18, 8), "<f4"))),
    ("cluster", "--codebook c.pt", "could run code", pickled("c.pt", {"x": Runs()})),
    ("cluster", "--codebook other_tokenizer.safetensors --tokens tokens", "tokens was made with another codebook"),
    ("tokenize", "", "not one image is readable", no_images),
    ("train tokenizer", "", "unreadable", no_images),
    ("tokenize", "--images p.parquet", "cannot be opened as a set of images", written("p.parquet", JUNK)),
    ("tokenize", "--image_size 9", "multiples of 4"),
    ("cluster", "--out pipe", "neither a file nor a folder", lambda: os.mkfifo("pipe")),
    ("tokenize", "", "tokenizer.safetensors", retold("tokenizer.safetensors", config='{"codebook_size": -1}')),
    ("tokenize", f"--tokenizer {GOLDEN}/gpt_mha.pt", "is a GPT, not a tokenizer"),
    ("evaluate tokenizer", "--image_size 8", "SSIM"),
    ("evaluate tokenizer", "--features emoji", "64 × 64"),
    ("", "reproduce table9 --dry-run", "experiment 'table9' does not exist"),
    ("train coarse", "", "has no images", edited("tokens/index.json", shards=[])),
    ("train coarse", "", "range from 24 to 24", array("tokens/tokens-00000.npy", np.full((4, 1, 4), 24, np.uint8))),
    ("convert codes", "", "0.npy", lambda: [path.unlink() for path in Path("codes").rglob("*.npy")]),
    ("convert codes", "", "1.npy is", array("codes/imagenet256_codes/1.npy", [Runs()], object)),
    ("convert codes", "", "not a square",
     *(array(f"codes/imagenet256_codes/{i}.npy", [[[1, 2, 3]]]) for i in range(2))),
    ("convert codes", "--second again", "not the same images",
     copy_as("codes", "again"), array("again/imagenet256_labels/0.npy", [3])),
    ("convert tokens", "--out tokens", "already holds a token set"),
    ("", "convert to-codes --out x --tokens tokens", "does not know its image size"),
    ("", "train coarse --out x --tokens tokens", "needs --coarse_map"),
    ("train coarse", "", "each one used", map_of(torch.full((24,), 3))),
    ("train coarse", "", "integer label per token", map_of(torch.rand(24))),
    ("train coarse", "--rounds any", "autoregressive have no setting rounds"),
    ("train baseline", "--cluster_loss_weight 1", "belong together"),
    ("train iar", "--coarse_map other_map.safetensors", "another codebook"),
    ("train coarse", "--loop.batch_size 2 --loop.accumulate 3", "not a multiple"),
    ("train coarse", "--loop.precision float16", "one of ['auto', 'float32', 'bfloat16']"),
    ("train coarse", "--out ended", "ended already holds a run",
     copy_as("coarse.safetensors", "empty/model.safetensors"), copy_as("empty", "ended")),
    ("train coarse", "--out model", "model holds something else than a run"),
    ("train coarse", "--out run --loop.resume", "is not a checkpoint",
     folder("run/checkpoints"), copy_as("map.safetensors", "run/checkpoints/step-00000001.safetensors")),
    ("train tokenizer", "--image_size 9", "multiples of 4"),
    ("train tokenizer", "--perceptual_weight 1", "perceptual_weight needs"),
    ("train tokenizer", "--perceptual_weight 1 --perceptual_source map.safetensors", "map.safetensors"),
    ("train tokenizer", "--perceptual_weight 1 --perceptual_source no/where/at/all.pt", "no/where/at/all.pt"),
    ("train tokenizer", "--discriminator_weight 1", "too small for the discrim"),
    ("", "plan nowhere.yaml", "nowhere.yaml"),
    ("plan", "--stages []", "stages are none"),
    ("plan", "", "plan.yaml is not for all stages (baseline: cluster_loss_weight",
     written("plan.yaml", "tokens: tokens\nsize: nano\ncoarse_map: map.safetensors\n")),
    ("train tokenizer", "--warmup_without_codebook 1", "below the 1 steps of the run, or the codebook is never used"),
    ("plan", "--gpus 3", "4 images is not a multiple of 3 GPUs"),
    ("push", "--model nowhere", "nowhere: no such model folder"),
    ("push", "--to 'owner/a b'", "that is no name on the Hub"),
    ("push", "--metrics [rows.json]", "rows.json holds figures in several numbers of steps",
     written("rows.json", '{"rows": [], "order_seed": 0}')),
    ("push", "--metrics [f.json]", "f.json holds no figures",
     written("f.json", '{"fid": "low", "good": true, "kid": NaN}')),
    ("push", "--sheet codebook.npy", "cannot be read as an image"),
    ("push", "--model emoji --licence mit", "the card of the bundled model is complete"),
    ("info model", "", "is not the manifest of a model", written("model/manifest.json", '{"ctf": "samples"}')),
    ("assemble", "--stages []", "at least one stage"),
    ("assemble", "--tokenizer other_tokenizer.safetensors", "another codebook"),
    ("assemble", "", "layout", edited("tokens/index.json", layout=[1, 4])),
    ("sample", "", "has no stage 'coarse'", edited("model/config.json", stages=[])),
    ("convert llamagen", f"--gpt {GOLDEN}/vq8.pt", "is a tokenizer, not a GPT"),
    ("convert llamagen", "--num_heads null", "give num_heads"),
    ("convert llamagen", "--num_heads 7", "7 heads"),
    ("convert llamagen", "--gpt g.pt", "--allow_namespace", pickled("g.pt", {"args": argparse.Namespace()})),
    ("convert llamagen", "--gpt g.pt", "holds a Tensor", pickled("g.pt", torch.ones(2))),
    ("", "info w.safetensors", "ctf did not write it", lambda: save_file({"w": torch.ones(2)}, "w.safetensors")),
    ("", "info tokenizer.safetensors", "tokenizer.safetensors", retold("tokenizer.safetensors", config="{")),
    ("", "info run", "log.jsonl is damaged",
     written("run/config.json", '{"loop": {}}'), written("run/log.jsonl", "{\n")),
    ("sample", "--labels [99]", "class 99: the model has the classes 0 … 3"),
    ("sample", "--labels [1]", "ambiguous: write a list of all labels, '[\"1\"]' with the class",
     edited("model/config.json", class_names=["1", "10", "2", "3"])),
    ("sample", "--labels [no]", "class 'no' does not exist"),
    ("sample", "--fine_temprature 0.7", "did you mean --fine_temperature?"),
    ("sample", "--medium_temperature 0.7", "'medium_temperature'"),
    ("sample", "--out .", ".: samples are a new folder"),
    ("sample", "--out samples.NPZ", "samples.NPZ: samples are"),
    ("cluster", "--out=~/map.safetensors", "~ is not expanded here"),
    ("cluster", "--out .", ". is there already and is not a file"),
    ("assemble", "--out ..", ".. is there already and is not a model folder"),
    ("sample", "--out set", "is not the manifest", copy_as("pictures", "set"), written("set/manifest.json", "[]")),
    ("complete", "", "a mask of 8 × 8 pixels for an image of 16 × 16: both must have one size",
     lambda: Image.new("L", (8, 8), 255).save("mask.png")),
    ("complete", "--out pictures/0.png", "out pictures/0.png is the image itself, which would be lost"),
    ("complete", "", "the mask asks for nothing", lambda: Image.new("L", (16, 16)).save("mask.png")),
    ("app", "--against emoji", "emoji and model have different classes"),
    ("app", "--host 203.0.113.1", "203.0.113.1:0 cannot be listened on"),
    ("app", f"--host {'a' * 80}", "cannot be listened on (encoding with 'idna' codec failed)"),
    ("evaluate likelihood", "--steps [1] --region [0,0,1,0.5]", "steps beside region"),
    ("evaluate likelihood", "--region 0 0.5 0.01 0.51", "holds no pixel of"),
    ("evaluate samples", "", "samples.npz",
     lambda: np.savez("samples.npz", arr_0=NOISE, labels=np.array([Runs()] * 4))),
    ("evaluate samples", "", "samples.npz", zipped("samples.npz", arr_0=npy_that_claims((4, 10**9, 10**9, 3)))),
    ("evaluate samples", "", "samples.npz",
     zipped("samples.npz", arr_0=npy_that_claims((4, 64, 64, 3)) + b"\7" * 10**7)),
    ("evaluate samples", "--samples pictures", "0.png cannot be read",
     written("pictures/0.png", empty_png(60_000, 60_000))),
    ("evaluate samples", "--features f.py:f", "return (",
     written("f.py", "def f(images): return images.mean((1, 2, 3))[:2]\n")),
    ("evaluate samples", "--features f.py:f", "return an array", written("f.py", "def f(images): return 'features'\n")),
    ("evaluate samples", "--features f.py:f", "hold NaN or infinity",
     written("f.py", "import numpy\ndef f(images): return numpy.full((len(images), 2), numpy.nan)\n")),
    ("evaluate samples", "--features f.py:f", "no colours",
     written("f.py", "def f(images): raise RuntimeError('no colours')\n")),
    ("evaluate neighbours", "--held_out samples.npz", "another held_out_split"),
    ("", "demo --quick --out pictures", "pictures is not empty"),
]

# fmt: on


@pytest.mark.parametrize(
    ("line", "words", "damage"),
    [pytest.param(f"{LINES.get(verb, '')} {more}", words, damage, id=more) for verb, more, words, *damage in SAYS],
)
def test_the_line_says_what_to_do(place, capsys, line, words, damage):
    for change in damage:
        change()
    before = states(".")
    assert words in fails(capsys, shlex.split(line))
    assert not [name for name in left(before) if not re.match(BEGUN, name)]


def test_a_batch_that_no_memory_holds(place, capsys):
    """A run writes its settings before its first step."""
    before = states(".")
    assert "memory" in fails(capsys, shlex.split(f"{WORKING['train coarse']} --loop.batch_size {10**15}"))
    assert left(before) == ["x", "x/config.json", "x/log.jsonl"]


def test_a_run_that_diverges_names_its_last_good_checkpoint(place, capsys):
    before = states(".")
    settings = "--loop.steps 60 --loop.log_every 1 --loop.checkpoint_every 1 --optimizer.clip 0"
    line = fails(capsys, shlex.split(f"{WORKING['train coarse']} {settings} --optimizer.learning_rate 1e18"))
    assert "is not finite at step" in line
    named = re.search(r"the last good checkpoint is (\S+):", line)[1]
    assert max(name for name in left(before) if name.startswith("x/checkpoints/")) == named
    assert all(tensor.isfinite().all() for tensor in tensors_of(named)[0].values())
    assert not Path("x/model.safetensors").exists()


def test_a_checkpoint_of_other_settings(place, capsys):
    assert main(shlex.split(WORKING["train coarse"])) == 0
    before = states(".")
    for setting, said in (
        ("--size micro", "was trained with size nano, not micro"),
        ("--loop.ema 0.9", "was trained with loop.ema 0.0, not 0.9"),
        ("--kind any_order", "was trained with kind autoregressive, not any_order"),
        ("--coarse_map reseeded_map.safetensors", "does not fit this run's settings"),
    ):
        line = fails(capsys, shlex.split(f"{WORKING['train coarse']} --loop.resume --loop.steps 3 {setting}"))
        assert said in line
        assert left(before) == []


def test_a_run_does_not_go_on_with_other_tokens_at_the_same_path(place, capsys):
    assert main(shlex.split(WORKING["train coarse"])) == 0
    array("tokens/tokens-00001.npy", np.zeros((4, 1, 4), int))()
    line = fails(capsys, shlex.split(f"{WORKING['train coarse']} --loop.resume --loop.steps 3"))
    assert "is of a run over other images or tokens, as many of them" in line


# Disks that take nothing

PARTS = ["x.npz.parts", *(f"x.npz.parts/{name}" for name in ("batch-000000.npz", "batch-000001.npz", "manifest.json"))]


WRITTEN = {verb: line for verb, line in WORKING.items() if verb in WRITING and "--dry-run" not in line} | {
    "cluster over a map": f"{WORKING['cluster']} --out map.safetensors",
    "assemble over a model": f"{WORKING['assemble']} --out model",
    "push with a licence": f"{WORKING['push']} --licence mit",
    "sample an .npz": f"{WORKING['sample']} --out x.npz",
    "sample a sheet": f"{WORKING['sample']} --out x.png",
    "convert half over a tokenizer": f"{WORKING['convert half']} --out small_tokenizer.safetensors",
}


@pytest.mark.parametrize("line", WRITTEN.values(), ids=WRITTEN)
def test_no_space_for_a_new_name(place, monkeypatch, capsys, line):
    """os.replace, the moment a whole file gets its name, fails."""

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source)

    monkeypatch.setattr(os, "replace", full)
    before = states(".")
    assert "cannot be written (No space left on device): free some space" in fails(capsys, shlex.split(line))
    assert left(before) == []


@pytest.mark.parametrize("line", WRITTEN.values(), ids=WRITTEN)
def test_no_space_for_a_byte(place, capsys, line):
    """The system refuses to write, whoever asks: Python, NumPy, Pillow or safetensors, which is Rust."""
    before = states(".")
    with largest_file(0):
        assert "cannot be written" in fails(capsys, shlex.split(line))
    assert left(before) == []


@pytest.mark.parametrize(
    ("line", "size", "kept"),
    [
        # Settings and log fit, but no checkpoint; a short log, but no long one.
        (f"{WORKING['train coarse']} --loop.checkpoint_every 1", 3000, ["x", "x/config.json", "x/log.jsonl"]),
        (f"{WORKING['train coarse']} --loop.steps 60 --loop.log_every 1", 3000, ["x", "x/config.json", "x/log.jsonl"]),
        # Stages fit, but no tokenizer; labels, but no codes.
        (WORKING["assemble"], 50_000, []),
        (f"{WORKING['assemble']} --out model", 50_000, []),
        (WORKING["convert to-codes"], 140, []),
        # Batches fit, but not all images; the batches are there to go on from.
        (f"{WORKING['sample']} --out x.npz --num 40 --batch_size 20", 5000, PARTS),
    ],
    ids=["a checkpoint", "a long log", "a tokenizer", "a tokenizer over a model", "a code", "all images"],
)
def test_space_that_runs_out(place, capsys, line, size, kept):
    """The same command does the rest once there is space."""
    before = states(".")
    with largest_file(size):
        assert "free some space" in fails(capsys, shlex.split(line))
    assert left(before) == kept
    assert main(shlex.split(line)) == 0


@contextmanager
def largest_file(size):
    """No file may grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Odd names


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "a\nb",
        "-x",
        "--out",
        "ünï ✓ 図",
        "'\"$(x)`;*?",
        "[1]",
        "null",
        "1e5",
        "x" * 200,
    ],
    ids=ascii,
)
def test_odd_names_are_names(place, capsys, name):
    shutil.copytree("pictures", f"{name}/{name}")
    assert main([*shlex.split(WORKING["tokenize"]), f"--images={name}", f"--out={name}/tokens"]) == 0
    assert main([*shlex.split(WORKING["cluster"]), f"--out={name}/map.safetensors"]) == 0
    assert main([*shlex.split(WORKING["train baseline"]), f"--tokens={name}/tokens", f"--out={name}/run"]) == 0
    assert main([*shlex.split(WORKING["assemble"]), f"--out={name}/model"]) == 0
    assert main([*shlex.split(WORKING["sample"]), f"--model={name}/model", f"--out={name}/samples"]) == 0
    for part in ("tokens", "map.safetensors", "run", "model"):
        assert main(["info", "--", f"{name}/{part}"]) == 0
    capsys.readouterr()
    assert "is no token set" in fails(capsys, ["info", "--", name])


def test_names_that_are_not_text(place):
    """As those of old archives: not UTF-8."""
    name = os.fsdecode(b"\xe4\xff")
    shutil.copytree("pictures", f"{name}/{name}")
    Path(name, name, f"{name}.png").write_bytes(JUNK)
    assert main([*shlex.split(WORKING["tokenize"]), "--images", name, "--out", f"{name}/tokens"]) == 0
    assert main(["info", f"{name}/tokens"]) == 0
    assert main([*shlex.split(WORKING["train baseline"]), "--tokens", f"{name}/tokens"]) == 0


#: Each has its own way to write what --out names.
WAYS_TO_WRITE = (
    *("tokenize", "cluster", "train coarse", "assemble", "sample", "evaluate samples", "evaluate swap"),
    *("convert llamagen", "convert codes", "convert tokens", "convert to-codes", "convert half"),
)


def test_names_beyond_what_the_system_takes(place, capsys):
    name, before = "x" * 300, states(".")
    for line in (
        f"{WORKING['tokenize']} --images",
        f"{WORKING['train coarse']} --tokens",
        f"{WORKING['sample']} --model",
        f"{WORKING['cluster']} --codebook",
        "info",
    ):
        assert "File name too long" in fails(capsys, [*shlex.split(line), name])
    assert states(".") == before


# Folders that may not be written


@contextmanager
def closed(*folders):
    """Nobody may write to these."""
    user = os.geteuid()
    for folder in folders:
        folder.chmod(0o555)
    try:
        if user == 0:  # who may write everywhere
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        for folder in folders:
            folder.chmod(0o755)


def test_a_folder_that_may_not_be_written(good, tmp_path, monkeypatch, capsys):
    lines = [WORKING[verb] for verb in WAYS_TO_WRITE]
    with tempfile.TemporaryDirectory() as temporary:  # whose way down is open to all, unlike that to tmp_path
        place = Path(temporary) / "place"
        shutil.copytree(good, place)
        (place / "closed").mkdir()
        monkeypatch.chdir(place)
        for line in lines:  # what they import may be as closed
            assert main([*shlex.split(line), "--out", str(tmp_path / line.split(" --")[0])]) == 0
        capsys.readouterr()
        with closed(Path(temporary), place, place / "closed"):
            before = states(".")
            for line in lines:
                for out in ("closed/x", "closed/deep/x"):
                    assert "cannot be written" in fails(capsys, [*shlex.split(line), "--out", out])
            assert states(".") == before
        monkeypatch.undo()


# A terminal

IN_A_PROCESS = """
import shlex, sys
from ctf.cli import main
for line in sys.argv[1:]:
    assert main(shlex.split(line)) == 2, line
"""
#: Fail once a progress bar is on the screen, which takes half a second, and before.
WITH_A_BAR = [
    f"{WORKING['evaluate samples']} --features slow.py:f --batch_size 1",
    f"{WORKING['train coarse']} --loop.steps 60 --loop.log_every 1 --optimizer.clip 0 --optimizer.learning_rate 1e18",
]
SLOW = """
import time
calls = 0
def f(images):
    global calls
    calls += 1
    time.sleep(0.2)
    if calls == 4:
        raise RuntimeError("no colours")
    return images.mean((1, 2))
"""


def test_an_error_behind_a_bar_has_its_own_line_on_a_terminal(place, monkeypatch):
    Path("slow.py").write_text(SLOW)
    terminal, inside = os.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def read():
        text = b""
        with suppress(OSError):  # how a terminal says that nobody writes to it any more
            while part := os.read(terminal, 1 << 16):
                text += part
        return text

    with ThreadPoolExecutor(1) as pool:
        text = pool.submit(read)
        with open(inside, "w") as stderr, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stderr)
            assert [main(shlex.split(line)) for line in WITH_A_BAR] == [2, 2]
    os.close(terminal)
    lines = text.result().decode().replace("\r\n", "\n").split("\n")
    assert any(line.startswith("fingerprint of the reference") or "image/s" in line for line in lines)
    assert len([line for line in lines if line.startswith("ctf: error: ")]) == len(WITH_A_BAR), lines


def test_nothing_else_is_written_to_a_pipe(place):
    """Neither by libraries in C++ nor by bars."""
    Path("slow.py").write_text(SLOW)
    bad = [
        *WITH_A_BAR,
        f"{WORKING['cluster']} --codebook c.pt",
        f"{WORKING['sample']} --model nowhere",
        f"{WORKING['tokenize']} --images p.parquet",
    ]
    Path("c.pt").write_bytes(JUNK)
    Path("p.parquet").write_bytes(JUNK)
    done = subprocess.run([sys.executable, "-c", IN_A_PROCESS, *bad], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(bad)
    assert all(line.startswith("ctf: error: ") for line in lines)


def test_exit_code_of_the_program():
    done = subprocess.run([sys.executable, "-m", "ctf.cli", "smaple"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ctf: error: `ctf smaple` does not exist")
    assert done.stderr.count("\n") == 1
