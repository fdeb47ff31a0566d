"""Bad input over all verbs: exit code 2, one line that says what is wrong and what to do, and nothing else changed."""

import argparse
import errno
import fcntl
import json
import os
import pickle
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
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from ctf.cli import main
from ctf.codebook import cluster_codebook
from ctf.layout import Layout
from ctf.model_folder import Pipeline
from ctf.tokens import write_token_set

GOLDEN = Path(__file__).parent / "golden" / "llamagen"
pytestmark = pytest.mark.usefixtures("tiny_nano", "quick_machine")

# Lines that work, in the folder `place` below. A bad one is such a line with one thing changed, in it or in a file.
# Later options override earlier ones.

TOKENIZE = "tokenize --device cpu --out x --images pictures --image_size 8 --tokenizer tokenizer.safetensors "
TOKENIZE += "--augmentation none"
CLUSTER = "cluster --out x --codebook codebook.npy --num_clusters 5"
LOOP = "--loop.steps 1 --loop.batch_size 2 --loop.device cpu"
TRAIN_TOKENIZER = (
    f"train tokenizer --out x --images pictures --image_size 8 {LOOP} --model.base_channels 32 --model.z_channels 32 "
    "--model.channel_multipliers [1] --model.patch_size 4 --model.codebook_size 8"
)
BASELINE = f"train baseline --out x --tokens tokens --size nano {LOOP}"
COARSE = f"train coarse --out x --tokens tokens --coarse_map map.safetensors --size nano {LOOP}"
FINE = f"train fine --out x --tokens tokens --coarse_map map.safetensors --size nano {LOOP}"
IAR = f"{BASELINE} --coarse_map map.safetensors --cluster_loss_weight 1"
ANY_ORDER = f"{COARSE} --kind any_order"
ROUNDS = f"{FINE} --rounds any --sampling.order confidence"
STAGE = f"train stage --out x --tokens tokens --kind masked --given map.safetensors --size nano {LOOP}"
ASSEMBLE = "assemble --out x --tokenizer tokenizer.safetensors --stages '[coarse.safetensors, fine.safetensors]' "
ASSEMBLE += "--classes tokens"
PUSH = "push --model model --to owner/name"
SAMPLE = "sample --device cpu --out x --model model --num 2"
FIT = "fit --device cpu --out x --images pictures --image_size 16 --time 1s --num_clusters 4 --dry-run"
COMPLETE = "complete --device cpu --out x --model any_order_model --image pictures/0.png --labels [1] "
COMPLETE += "--mask mask.png"
EVALUATE_TOKENIZER = "evaluate tokenizer --device cpu --tokenizer tokenizer.safetensors --images pictures "
EVALUATE_TOKENIZER += "--image_size 16"
LIKELIHOOD = "evaluate likelihood --device cpu --tokens tokens --model model"
BY_STEPS = "evaluate likelihood --device cpu --tokens tokens --model any_order_model --steps [1,4] --out x"
EVALUATE_SAMPLES = "evaluate samples --device cpu --out x --samples samples.npz --reference samples.npz "
EVALUATE_SAMPLES += "--features emoji --cache cache"
NEIGHBOURS = "evaluate neighbours --device cpu --out x --samples samples.npz --reference samples.npz "
NEIGHBOURS += "--held_out pictures --num 2 --features emoji --cache cache"
BENCH_SAMPLING = "bench sampling --device cpu --json x --sizes [nano] --fine_size nano --batch_sizes [1] --runs 1 "
BENCH_SAMPLING += "--layout 2x2 --vocabulary 24 --clusters 5 --tokenizer tokenizer.safetensors"
BENCH_TRAINING = "bench training --device cpu --json x --sizes [nano] --batch_size 2 --steps 1 --layout 2x2 "
BENCH_TRAINING += "--vocabulary 24 --clusters 5"
SWAP = "evaluate swap --out x --tokenizer tokenizer.safetensors --images pictures --split null --image_size 16 "
SWAP += "--cluster_counts [5]"
PLAN = "plan plan.yaml --gpus 2 --num_clusters 5"
REPRODUCE = "reproduce table3d --dry-run --out x"
LLAMAGEN = f"convert llamagen --out x --tokenizer {GOLDEN}/vq8.pt --gpt {GOLDEN}/gpt_mha.pt --num_heads 4 --layout 4x4"
CODES = "convert codes --out x --source codes --codebook_size 24 --num_classes 4"
TOKENS = "convert tokens --out x --tokens tokens.npy --labels labels.npy --codebook_size 24"
TO_CODES = "convert to-codes --out x --tokens tokens --size 8"
HALF = "convert half --out x --source tokenizer.safetensors"
APP = "app --device cpu --model model --port 0"
INFO = "info model"

WORKING = [
    TOKENIZE,
    CLUSTER,
    TRAIN_TOKENIZER,
    BASELINE,
    COARSE,
    FINE,
    IAR,
    ANY_ORDER,
    ROUNDS,
    STAGE,
    ASSEMBLE,
    PUSH,
    SAMPLE,
    COMPLETE,
    FIT,
    EVALUATE_TOKENIZER,
    LIKELIHOOD,
    BY_STEPS,
    EVALUATE_SAMPLES,
    NEIGHBOURS,
    BENCH_SAMPLING,
    BENCH_TRAINING,
    SWAP,
    PLAN,
    REPRODUCE,
    LLAMAGEN,
    CODES,
    TOKENS,
    TO_CODES,
    HALF,
    INFO,
]


@pytest.fixture(scope="session")
def good(tmp_path_factory, make_tokenizer, make_stage):
    """A folder of tiny artefacts that belong together, and some of other codebooks, maps and sizes."""
    place = tmp_path_factory.mktemp("good")
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
        "small_map": cluster_codebook(small.codebook, 5),
    }
    for name, coarse_map in maps.items():
        coarse_map.save(place / f"{name}.safetensors")
    stages = {
        "coarse": make_stage(name="coarse", predicts=maps["map"], layout=Layout.square(2)),
        "fine": make_stage("masked", name="fine", given=maps["map"], layout=Layout.square(2)),
        "reseeded_fine": make_stage("masked", name="fine", given=maps["reseeded_map"], layout=Layout.square(2)),
        "other_fine": make_stage("masked", name="fine", given=maps["other_map"], layout=Layout.square(2)),
        "wide_fine": make_stage("masked", name="fine", given=maps["map"], layout=Layout((2, 3))),
        "baseline": make_stage(name="baseline", layout=Layout.square(2)),
    }
    for name, stage in stages.items():
        stage.save(place / f"{name}.safetensors")
    Pipeline(tokenizer, list("abcd"), [stages["coarse"], stages["fine"]]).save_pretrained(place / "model")
    any_order = make_stage("any_order", name="coarse", predicts=maps["map"], layout=Layout.square(2))
    rounds = make_stage("masked", name="fine", given=maps["map"], layout=Layout.square(2), rounds="any")
    Pipeline(tokenizer, list("abcd"), [any_order, rounds]).save_pretrained(place / "any_order_model")

    tokens, labels = generator.integers(0, 24, (8, 1, 4)), np.arange(8) % 4
    write_token_set(place / "tokens", tokens, labels, 24, codebook=codebook, class_names=list("abcd"), shard_size=4)
    np.save(place / "tokens.npy", tokens)
    np.save(place / "labels.npy", labels)
    (place / "pictures").mkdir()
    for i in range(2):
        Image.fromarray(generator.integers(0, 255, (16, 16, 3), np.uint8)).save(place / "pictures" / f"{i}.png")
    Image.fromarray(np.eye(16, dtype=np.uint8)[:1].repeat(16, 0) * 255).save(place / "mask.png")  # the left column
    np.savez(place / "samples.npz", arr_0=generator.integers(0, 255, (4, 64, 64, 3), np.uint8))
    for kind, array in ("codes", tokens), ("labels", labels):
        (place / "codes" / f"imagenet256_{kind}").mkdir(parents=True)
        for i in range(2):
            np.save(place / "codes" / f"imagenet256_{kind}" / f"{i}.npy", array[i : i + 1])
    (place / "plan.yaml").write_text("tokens: tokens\nsize: nano\nloop:\n  batch_size: 4\n  steps: 9\n")
    (place / "empty").mkdir()
    return place


def states(folder):
    """Of every file what changes when it is written or replaced, without reading it."""
    files = ((path.relative_to(folder), path.lstat()) for path in folder.rglob("*"))
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


def contents(folder="."):
    """Every file with its bytes, and every folder."""
    return {path: path.is_file() and path.read_bytes() for path in sorted(Path(folder).rglob("*"))}


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


@pytest.mark.parametrize("line", WORKING, ids=lambda line: " ".join(line.split(" --")[0].split()[:2]))
def test_lines_without_an_error_work(place, hub, line):
    assert main(shlex.split(line)) == 0


# Ways to damage a file; each returns a function that does it in the folder where the command runs.


def written(path, content):
    """A file of these bytes, in place of what is there."""

    def damage():
        if Path(path).is_dir():
            shutil.rmtree(path)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def cut(path, size):
    """Its first bytes only."""
    return lambda: Path(path).write_bytes(Path(path).read_bytes()[:size])


def removed(path):
    return lambda: Path(path).unlink()


def copied(source, target):
    """A file or folder under another name, in place of what is there."""

    def damage():
        if Path(source).is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)

    return damage


def swapped(one, other):
    def damage():
        os.replace(one, "between")
        os.replace(other, one)
        os.replace("between", other)

    return damage


def folder(path):
    """A folder where a file belongs."""

    def damage():
        Path(path).unlink(missing_ok=True)
        Path(path).mkdir(parents=True)

    return damage


def edited(path, **changes):
    """Other values in a JSON object."""
    return lambda: Path(path).write_text(json.dumps(json.loads(Path(path).read_text()) | changes))


def retold(path, drop=(), **changes):
    """Other metadata in a safetensors file of ours."""

    def damage():
        tensors, metadata = tensors_of(path)
        metadata = {name: value for name, value in (metadata | changes).items() if name not in drop}
        save_file(tensors, path, {"ctf": json.dumps(metadata)})

    return damage


def map_of(labels):
    return lambda: save_file(
        {"fine_to_coarse": labels}, "map.safetensors", {"ctf": json.dumps(tensors_of("map.safetensors")[1])}
    )


def poisoned(path, value=torch.nan):
    """Not a number in the first of its floating tensors."""

    def damage():
        tensors, metadata = tensors_of(path)
        next(tensor for tensor in tensors.values() if tensor.is_floating_point()).flatten()[0] = value
        save_file(tensors, path, {"ctf": json.dumps(metadata)})

    return damage


def tensors_of(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["ctf"])  # noqa: SIM118


def array(path, values, dtype=None):
    def damage():
        Path(path).parent.mkdir(exist_ok=True)
        np.save(path, np.asarray(values, dtype), allow_pickle=True)

    return damage


def images(path="samples.npz", **arrays):
    """An .npz with these arrays."""
    return lambda: np.savez(path, **arrays)


def pickled(path, value):
    return lambda: torch.save(value, path)


class Runs:
    """What makes a file "ran" when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def png_that_claims(width, height):
    """A PNG of 100 bytes whose header names any size."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


def npy_that_claims(shape, dtype="|u1"):
    """An .npy of no data whose header names any shape."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def zipped(path, **entries):
    """An .npz whose entries are these bytes."""

    def damage():
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in entries.items():
                archive.writestr(f"{name}.npy", content)

    return damage


def no_images():
    for file in Path("pictures").iterdir():
        file.write_bytes(b"not an image")


NOISE = np.random.default_rng(0).integers(2, 255, (4, 64, 64, 3), np.uint8)
JUNK = bytes(range(256)) * 4


def case(name, line, message, *damage):
    return pytest.param(line, message, damage, id=name)


# fmt: off
COMMAND = [
    case("an unknown verb", "smaple", "`ctf smaple` does not exist: did you mean sample?"),
    case("a verb like none", "xyz", "`ctf xyz` does not exist: choose one of demo"),
    case("an unknown second word", "train corse", "`ctf train corse` does not exist: did you mean coarse?"),
    case("an option for a verb", "--verbose", "`ctf --verbose` does not exist"),
    case("an empty verb", "''", "`ctf ` does not exist"),
    case("a verb of newlines", "'sam\nple'", "`ctf sam ple` does not exist"),
    case("an unknown option", f"{CLUSTER} --clusters 3", "has no option --clusters: did you mean --num_clusters?"),
    case("an option like none", f"{CLUSTER} --quiet", "no option --quiet (`ctf cluster --help` lists the options)"),
    case("an option of one dash", f"{CLUSTER} -seed 3", "has no option -seed: did you mean --seed?"),
    case("an unknown nested option", f"{COARSE} --loop.stesp 3", "did you mean --loop.steps?"),
    case("a nested option without its group", f"{COARSE} --batch_size=3", "did you mean --loop.batch_size?"),
    case("an unknown option beside settings", "sample --lables 3", "no option --lables: did you mean --labels?"),
    case("an unknown setting by its group", "sample --sampling.topk 1", "did you mean --top_k?"),
    case("a word too many", "info model tokens", "unrecognized arguments: tokens"),
    case("a missing option", "cluster", "arguments are required: out"),
    case("a missing argument", "info", "arguments are required: path"),
    case("an option without its value", "cluster --out", "expected one argument"),
    case("text for a whole number", f"{CLUSTER} --num_clusters many", "expected int, got many"),
    case("a fraction for a whole number", f"{CLUSTER} --num_clusters 2.5", "expected int, got 2.5"),
    case("nan for a whole number", f"{CLUSTER} --seed nan", "expected int, got nan"),
    case("nothing for a whole number", f"{CLUSTER} --num_clusters ''", "num_clusters: expected int, got"),
    case("a list for a whole number", f"{CLUSTER} --num_clusters [5]", "num_clusters: expected int, got [5]"),
    case("a choice that is none", f"{CLUSTER} --method best",
         "expected one of ['kmeans', 'balanced', 'ward', 'random'], got best"),
    case("a number for a flag", f"{SAMPLE} --compile 3", "compile: expected bool, got 3"),
    case("one number for a layout", f"{LLAMAGEN} --layout 16", "write rows x columns, such as 16x16"),
    case("text in a list of numbers", f"{REPRODUCE} --seeds 0 x", "seeds: expected int, got x or null, got [0, 'x']"),
    case("nothing in a list of numbers", f"{BENCH_SAMPLING} --batch_sizes ''", "batch_sizes: expected int, got"),
    case("a list without its values", f"{SWAP} --cluster_counts --seed 1", "--cluster_counts: expected one argument"),
    case("a list but no name", "reproduce --dry-run --seeds 0 1", "arguments are required: name"),
    case("three numbers for a layout", f"{LLAMAGEN} --layout [4,4,4]", "every scale is a pair (rows, columns)"),
    case("a settings file that is missing", "cluster --config nowhere.yaml", "nowhere.yaml"),
    case("a settings file that is a folder", "cluster --config empty", "empty"),
    case("a settings file that is empty", "cluster --config c.yaml", "Unexpected config: (with the settings in c.yaml",
         written("c.yaml", "")),
    case("broken YAML", "cluster --config c.yaml", "Problems parsing config", written("c.yaml", "out: [x\n")),
    case("broken JSON", "cluster --config c.json", "Problems parsing config", written("c.json", '{"out": "x",')),
    case("a list for settings", "cluster --config c.yaml", "Unexpected config: - out - x (with the settings in c.yaml",
         written("c.yaml", "- out\n- x\n")),
    case("a text for settings", "cluster --config c.yaml", "Unexpected config: just words (with",
         written("c.yaml", "just words\n")),
    case("binary settings", "cluster --config c.yaml",
         "can't decode byte 0x80 in position 128: invalid start byte (with the settings in c.yaml",
         written("c.yaml", JUNK)),
    case("settings in UTF-16", "cluster --config c.yaml",
         "can't decode byte 0xff in position 0: invalid start byte (with the settings in c.yaml",
         written("c.yaml", "out: x\n".encode("utf-16"))),
    case("settings with tabs", "cluster --config c.yaml", "found character that cannot start any token",
         written("c.yaml", "out:\n\tx: 3\n")),
    case("an unknown setting", "train baseline --config c.yaml", "option 'stepz': did you mean loop.steps?",
         written("c.yaml", "out: x\ntokens: tokens\nloop:\n  stepz: 3\n")),
    case("an unknown setting of the verb", "sample --config c.yaml", "'lables' is not accepted: did you mean labels?",
         written("c.yaml", "out: x\nlables: [3]\n")),
    case("a number for a group of settings", "train baseline --config c.yaml",
         "loop is 3: give its settings one by one", written("c.yaml", "out: x\ntokens: tokens\nloop: 3\n")),
    case("a list for a text", "cluster --config c.yaml", "out: expected str, got ['x']",
         written("c.yaml", "out: [x]\n")),
    case("settings that would run code", "cluster --config c.yaml", "could not determine a constructor for the tag",
         written("c.yaml", "out: !!python/object/apply:os.mkdir [ran]\n")),
    case("settings that include themselves", "cluster --config c.yaml", "Config file loop detected",
         written("c.yaml", "out: x\nconfig: c.yaml\n")),
    case("settings nested too deep", "cluster --config c.yaml", "c.yaml", written("c.yaml", "out: " + "[" * 3000)),
    case("a zero byte in a name", "cluster --config c.json", "out holds a zero byte",
         written("c.json", '{"out": "x\\u0000y", "codebook": "codebook.npy", "num_clusters": 5}')),
]

CODEBOOKS = [
    case("as many clusters as codewords", f"{CLUSTER} --num_clusters 24", "24 clusters of 24 codewords"),
    case("no clusters", f"{CLUSTER} --num_clusters 0", "0 clusters of 24 codewords"),
    case("less than no clusters", f"{CLUSTER} --num_clusters -3", "-3 clusters"),
    case("a negative seed", f"{CLUSTER} --seed -1", "seed -1"),
    case("a seed too large", f"{CLUSTER} --seed 4294967296", "seed 4294967296"),
    case("a codebook that is missing", f"{CLUSTER} --codebook nowhere.npy", "nowhere.npy: no such"),
    case("a folder for a codebook", f"{CLUSTER} --codebook empty", "empty/tokenizer.safetensors: no such"),
    case("a map for a codebook", f"{CLUSTER} --codebook map.safetensors", "not a ctf tokenizer (it says 'coarse_map')"),
    case("a stage for a codebook", f"{CLUSTER} --codebook fine.safetensors", "not a ctf tokenizer (it says 'stage')"),
    case("a picture for a codebook", f"{CLUSTER} --codebook pictures/0.png", "0.png is neither a safetensors"),
    case("a key that is not there", f"{CLUSTER} --codebook fine.safetensors:weights", "no matrix named 'weights'"),
    case("a truncated tokenizer", f"{CLUSTER} --codebook t.safetensors", "t.safetensors is truncated",
         copied("tokenizer.safetensors", "t.safetensors"), cut("t.safetensors", 1000)),
    case("a codebook of another family", f"{CLUSTER} --codebook tokenizer.safetensors", "family 'rq'",
         retold("tokenizer.safetensors", family="rq")),
    case("no bits", f"{CLUSTER} --codebook lfq:0", "0 bits"),
    case("too many bits", f"{CLUSTER} --codebook lfq:99", "99 bits"),
    case("too many levels", f"{CLUSTER} --codebook fsq:99,99,99,99,99", "levels"),
    case("a level of one", f"{CLUSTER} --codebook fsq:8,1", "levels"),
    case("a codebook with nan", CLUSTER, "hold NaN or infinity", array("codebook.npy", [[0, 1], [np.nan, 2]])),
    case("a codebook with infinity", CLUSTER, "hold NaN or infinity", array("codebook.npy", [[0, 1], [np.inf, 2]])),
    case("a codebook of one axis", CLUSTER, "matri", array("codebook.npy", np.zeros(24))),
    case("a codebook of three axes", CLUSTER, "matri", array("codebook.npy", np.zeros((4, 3, 2)))),
    case("a codebook without codewords", CLUSTER, "one codeword per row, not (0, 4)",
         array("codebook.npy", np.zeros((0, 4)))),
    case("a codebook of no dimensions", CLUSTER, "one codeword per row, not (24, 0)",
         array("codebook.npy", np.zeros((24, 0)))),
    case("a complex codebook", CLUSTER, "complex", array("codebook.npy", np.zeros((24, 4), complex))),
    case("a codebook of words", CLUSTER, "holds <U1: a codebook is a matrix of numbers",
         array("codebook.npy", [["a", "b"]] * 24)),
    case("a codebook that would run code", CLUSTER, "Object arrays cannot be loaded",
         array("codebook.npy", [[Runs()]], object)),
    case("an empty .npy", CLUSTER, "codebook.npy is truncated", written("codebook.npy", b"")),
    case("text for an .npy", CLUSTER, "codebook.npy is neither a", written("codebook.npy", "0 1\n2 3\n")),
    case("a truncated .npy", CLUSTER, "codebook.npy is truncated", cut("codebook.npy", 200)),
    case("an .npz called .npy", CLUSTER, "codebook.npy is neither a", copied("samples.npz", "codebook.npy")),
    case("an .npy that claims 10¹⁸ rows", CLUSTER, "truncated",
         written("codebook.npy", npy_that_claims((10**18, 8), "<f4"))),
    case("a .pt that would run code", f"{CLUSTER} --codebook c.pt", "could run code", pickled("c.pt", {"x": Runs()})),
    case("a .pt with settings", f"{CLUSTER} --codebook c.pt", "--allow_namespace",
         pickled("c.pt", {"args": argparse.Namespace(lr=1), "model": {"w": torch.zeros(24, 4)}})),
    case("an allowed Namespace with more in it", f"{CLUSTER} --codebook c.pt --allow_namespace", "could run code",
         pickled("c.pt", {"args": argparse.Namespace(lr=Runs()), "model": {"w": torch.zeros(24, 4)}})),
    case("a .pt of a list", f"{CLUSTER} --codebook c.pt", "c.pt holds no matrix", pickled("c.pt", [1, 2])),
    case("a .pt of junk", f"{CLUSTER} --codebook c.pt", "c.pt is", written("c.pt", JUNK)),
    case("a truncated .pt", f"{CLUSTER} --codebook c.pt", "c.pt is", pickled("c.pt", torch.eye(9)), cut("c.pt", 500)),
    case("an empty .pt", f"{CLUSTER} --codebook c.pt", "c.pt is", written("c.pt", b"")),
    case("a plain pickle", f"{CLUSTER} --codebook c.pt", "c.pt", written("c.pt", pickle.dumps(Runs()))),
    case("a finer map that is missing", f"{CLUSTER} --finer nowhere.safetensors", "nowhere.safetensors: no such"),
    case("a finer map of another codebook", f"{CLUSTER} --num_clusters 3 --finer other_map.safetensors",
         "another codebook"),
    case("a finer map of a smaller codebook", f"{CLUSTER} --num_clusters 3 --finer small_map.safetensors",
         "for 16 codewords, this codebook has 24"),
    case("more clusters than the finer map", f"{CLUSTER} --num_clusters 5 --finer map.safetensors",
         "5 clusters of 5 finer clusters"),
    case("a tokenizer for a finer map", f"{CLUSTER} --num_clusters 3 --finer tokenizer.safetensors",
         "not a coarse map (it says 'tokenizer')"),
    case("weights that are missing", f"{CLUSTER} --weights nowhere", "nowhere: no such token set"),
    case("weights that are no tokens", f"{CLUSTER} --weights empty", "empty is not a token set"),
    case("weights of another codebook", f"{CLUSTER} --codebook other_tokenizer.safetensors --weights tokens",
         "tokens was made with another codebook"),
    case("weights of a larger codebook", f"{CLUSTER} --codebook small_tokenizer.safetensors --weights tokens",
         "tokens holds tokens of a codebook of 24, this codebook has 16"),
    case("weights with tokens out of range", f"{CLUSTER} --weights tokens", "the codebook size is 24",
         array("tokens/tokens-00000.npy", np.full((4, 1, 4), 24))),
    case("weights for balanced clusters", f"{CLUSTER} --method balanced --weights tokens",
         "balanced clusters take no weights: leave them out, or choose kmeans or ward"),
    case("weights for random clusters", f"{CLUSTER} --method random --weights tokens",
         "random clusters take no weights"),
]

PICTURES = [
    case("images that are missing", f"{TOKENIZE} --images nowhere", "nowhere: no such folder"),
    case("a folder without images", f"{TOKENIZE} --images empty", "empty holds no images"),
    case("a map for images", f"{TOKENIZE} --images map.safetensors", "not a set of images"),
    case("one image for a folder", f"{TOKENIZE} --images pictures/0.png", "not a set of images"),
    case("a split that is not there", f"{TOKENIZE} --images emoji --split validation", "it has test, train"),
    case("a split of a folder without any", f"{TOKENIZE} --split train", "pictures has no split 'train'"),
    case("images beside classes", TOKENIZE, "holds both images and sub-folders", written("pictures/cat/0.png", b"")),
    case("splits for classes", f"{TOKENIZE} --images p", "holds splits, not classes", copied("pictures", "p/train"),
         copied("pictures", "p/test")),
    case("files that are no images", TOKENIZE, "not one image is readable", no_images),
    case("an image bomb", TOKENIZE, "not one image is readable",
         *(written(f"pictures/{i}.png", png_that_claims(60_000, 60_000)) for i in range(2))),
    case("truncated images", TOKENIZE, "not one image is readable", *(cut(f"pictures/{i}.png", 60) for i in range(2))),
    case("a folder called .png", TOKENIZE, "pictures holds no images",
         *(folder(f"pictures/{i}.png") for i in range(2))),
    case("broken Parquet", f"{TOKENIZE} --images p.parquet", "cannot be opened as a set of images",
         written("p.parquet", JUNK)),
    case("an empty .tar", f"{TOKENIZE} --images p.tar", "p.tar", written("p.tar", b"")),
    case("a .tar of junk", f"{TOKENIZE} --images p.tar", "cannot be opened as a set of images", written("p.tar", JUNK)),
    case("Parquet that is missing", f"{TOKENIZE} --images nowhere.parquet", "nowhere.parquet: no such"),
    case("a URL of no storage", f"{TOKENIZE} --images nope://x", "nope://x cannot be read (ValueError: Protocol not"),
    case("a URL with nothing there", f"{TOKENIZE} --images file://nowhere", "file://nowhere cannot be read (FileNot"),
    case("a .tar of junk at a URL", f"{TOKENIZE} --images file://p.tar", "p.tar cannot be read (ReadError",
         written("p.tar", JUNK)),
    case("broken Parquet at a URL", f"{TOKENIZE} --images file://p.parquet", "p.parquet cannot be read (ArrowInvalid",
         written("p.parquet", JUNK)),
    case("no pixels", f"{TOKENIZE} --image_size 0", "size=0: images have 1 to 8192 pixels"),
    case("less than no pixels", f"{TOKENIZE} --image_size -8", "size=-8: images have 1 to 8192 pixels"),
    case("pixels that the tokenizer does not take", f"{TOKENIZE} --image_size 9", "multiples of 4"),
    case("a batch of none", f"{TOKENIZE} --batch_size 0", "batch size 0"),
    case("a batch of less than none", f"{TOKENIZE} --batch_size -1", "batch size -1"),
    case("shards of none", f"{TOKENIZE} --shard_size 0", "shard"),
    case("a crop range below one", f"{TOKENIZE} --augmentation ten-crop --crop_ranges [0.9]", "crop range"),
    case("a crop range that is no number", f"{TOKENIZE} --augmentation ten-crop --crop_ranges [.nan]", "crop range"),
    case("an infinite crop range", f"{TOKENIZE} --augmentation ten-crop --crop_ranges [.inf]", "crop range"),
    case("no crop range", f"{TOKENIZE} --augmentation ten-crop --crop_ranges []", "crop range"),
    case("an augmentation that is none", f"{TOKENIZE} --augmentation rotate", "rotate"),
    case("a truncated header", f"{TOKENIZE} --tokenizer tokenizer.safetensors", "tokenizer.safetensors is truncated",
         cut("tokenizer.safetensors", 100)),
    case("truncated weights", TOKENIZE, "tokenizer.safetensors is truncated", cut("tokenizer.safetensors", 20_000)),
    case("a device for an output", f"{CLUSTER} --out pipe", "neither a file nor a folder", lambda: os.mkfifo("pipe")),
    case("an empty tokenizer", TOKENIZE, "tokenizer.safetensors is truncated", written("tokenizer.safetensors", b"")),
    case("junk for a tokenizer", TOKENIZE, "tokenizer.safetensors is neither a safetensors file nor",
         written("tokenizer.safetensors", JUNK)),
    case("a tokenizer that is missing", f"{TOKENIZE} --tokenizer nowhere", "nowhere: no such"),
    case("a folder without a tokenizer", f"{TOKENIZE} --tokenizer empty", "empty/tokenizer.safetensors: no such"),
    case("a map for a tokenizer", f"{TOKENIZE} --tokenizer map.safetensors", "not a ctf tokenizer"),
    case("a stage for a tokenizer", f"{TOKENIZE} --tokenizer fine.safetensors", "not a ctf tokenizer"),
    case("a text for a tokenizer", f"{TOKENIZE} --tokenizer tokens/index.json", "index.json is neither a safetensors"),
    case("a tokenizer of an unknown family", TOKENIZE, "family 'rq'", retold("tokenizer.safetensors", family="rq")),
    case("a tokenizer of no settings", TOKENIZE, "cannot read this tokenizer",
         retold("tokenizer.safetensors", drop=["config"])),
    case("a tokenizer of a later version", TOKENIZE, "cannot read this tokenizer",
         retold("tokenizer.safetensors", config='{"colours": 4}')),
    case("a tokenizer whose settings are a list", TOKENIZE, "cannot read this tokenizer",
         retold("tokenizer.safetensors", config="[1]")),
    case("a tokenizer of senseless settings", TOKENIZE, "tokenizer.safetensors",
         retold("tokenizer.safetensors", config='{"codebook_size": -1}')),
    case("a tokenizer of other settings", TOKENIZE, "cannot read this tokenizer",
         retold("tokenizer.safetensors", config='{"codebook_size": 25}')),
    case("a tokenizer without metadata", TOKENIZE, "is not a LlamaGen tokenizer: it has no quantize.embedding.weight",
         lambda: save_file({"weight": torch.zeros(3)}, "tokenizer.safetensors")),
    case("metadata that is not JSON", TOKENIZE, "tokenizer.safetensors",
         lambda: save_file({"weight": torch.zeros(3)}, "tokenizer.safetensors", {"ctf": "{"})),
    case("metadata that is a list", TOKENIZE, "tokenizer.safetensors",
         lambda: save_file({"weight": torch.zeros(3)}, "tokenizer.safetensors", {"ctf": "[]"})),
    case("a tokenizer with nan", TOKENIZE, "tokenizer.safetensors: decoder.conv_in.bias holds NaN or infinity",
         poisoned("tokenizer.safetensors")),
    case("a tokenizer with infinity", TOKENIZE, "holds NaN or infinity", poisoned("tokenizer.safetensors", torch.inf)),
    case("a GPT for a tokenizer", f"{TOKENIZE} --tokenizer {GOLDEN}/gpt_mha.pt", "is a GPT, not a tokenizer"),
    case("an unknown device", f"{TOKENIZE} --device abacus", "device 'abacus' cannot be used here"),
    case("a device without a name", f"{TOKENIZE} --device ''", "device '' cannot be used here"),
    case("a device that computes nothing", f"{TOKENIZE} --device meta", "device 'meta' cannot be used here"),
    case("a GPU that is not there", f"{TOKENIZE} --device cuda:77", "device 'cuda:77' cannot be used here"),
    case("other settings than the set that is there", f"{TOKENIZE} --out tokens",
         "tokens holds a token set with other"),
    case("an output that holds something else", f"{TOKENIZE} --out empty", "empty/index.json",
         written("empty/index.json", "{}")),
    case("a file for an output folder", f"{TOKENIZE} --out codebook.npy", "is there already and is not a folder"),
    case("an output inside a file", f"{TOKENIZE} --out codebook.npy/tokens", "codebook.npy"),
    case("metrics of images too small", f"{EVALUATE_TOKENIZER} --image_size 8", "SSIM"),
    case("metrics of images that are missing", f"{EVALUATE_TOKENIZER} --images nowhere", "nowhere: no such"),
    case("metrics of a split that is not there", f"{EVALUATE_TOKENIZER} --splits [test]", "no split 'test'"),
    case("metrics of a tokenizer that is a map", f"{EVALUATE_TOKENIZER} --tokenizer map.safetensors", "not a ctf tok"),
    case("metrics with unknown features", f"{EVALUATE_TOKENIZER} --features vgg", "no features 'vgg'"),
    case("metrics with features of another size", f"{EVALUATE_TOKENIZER} --features emoji", "64 × 64"),
    case("metrics on no device", f"{EVALUATE_TOKENIZER} --device abacus", "'abacus' cannot be used here"),
    case("swaps of too many clusters", f"{SWAP} --cluster_counts [24]", "24 clusters of 24 codewords"),
    case("swaps of no clusters", f"{SWAP} --cluster_counts [0]", "0 clusters"),
    case("swaps with a negative seed", f"{SWAP} --seed -1", "seed -1"),
    case("swaps of images that are missing", f"{SWAP} --images nowhere", "nowhere: no such"),
    case("swaps of a tokenizer that is a stage", f"{SWAP} --tokenizer fine.safetensors", "not a ctf tokenizer"),
    case("swaps written to a folder", f"{SWAP} --out empty", "empty is there already and is not a file"),
    case("swaps by a model that is missing", f"{SWAP} --model nowhere", "nowhere: no such model folder"),
    case("an experiment that does not exist", "reproduce table9 --dry-run", "experiment 'table9' does not exist"),
    case("no experiment", "reproduce --dry-run", "name"),
    case("a preset that does not exist", f"{REPRODUCE} --preset cifar", "preset"),
    case("an experiment without seeds", f"{REPRODUCE} --seeds []", "one or more different ones"),
    case("an experiment with a seed twice", f"{REPRODUCE} --seeds [1,1]", "one or more different ones"),
    case("an experiment of no steps", f"{REPRODUCE} --steps 0", "steps is 0"),
    case("an experiment with no samples", f"{REPRODUCE} --num_samples 0", "num_samples 0"),
    case("an experiment written to a file", "reproduce table3d --out codebook.npy", "codebook.npy"),
    case("an experiment on a device that is not there", "reproduce table3d --out x --device cuda:9", "cuda:9"),
    case("swaps of no generated images", f"{SWAP} --model model --num 0", "num 0"),
    case("swaps of too many clusters for a model", f"{SWAP} --model model --cluster_counts [24]", "24 clusters of 24"),
    case("rounding what is missing", f"{HALF} --source nowhere", "nowhere: no such"),
    case("rounding a map", f"{HALF} --source map.safetensors", "not a ctf tokenizer"),
    case("rounding into a folder", f"{HALF} --out empty", "empty"),
    case("rounding into a file's inside", f"{HALF} --out codebook.npy/x", "codebook.npy"),
]

TOKEN_SETS = [
    case("tokens that are missing", f"{COARSE} --tokens nowhere", "nowhere: no such token set"),
    case("a folder without an index", f"{COARSE} --tokens empty", "empty is not a token set"),
    case("a file for a token set", f"{COARSE} --tokens tokens.npy", "tokens.npy"),
    case("an index of broken JSON", COARSE, "tokens/index.json is not valid JSON", cut("tokens/index.json", 50)),
    case("an empty index", COARSE, "tokens/index.json is not valid JSON", written("tokens/index.json", "")),
    case("a binary index", COARSE, "tokens/index.json is not valid JSON", written("tokens/index.json", JUNK)),
    case("an index in UTF-16", COARSE, "not valid JSON", written("tokens/index.json", "{}".encode("utf-16"))),
    case("an index that is a list", COARSE, "not the index of a token set", written("tokens/index.json", "[]")),
    case("an index nested too deep", COARSE, "index.json", written("tokens/index.json", "[" * 100_000)),
    case("an index of another version", COARSE, "version 9", edited("tokens/index.json", version=9)),
    case("an index of an unknown field", COARSE, "damaged", edited("tokens/index.json", colour=1)),
    case("a layout that is a number", COARSE, "damaged", edited("tokens/index.json", layout=4)),
    case("a layout of texts", COARSE, "damaged", edited("tokens/index.json", layout=["2", "2"])),
    case("a layout of three sides", COARSE, "damaged", edited("tokens/index.json", layout=[2, 2, 1])),
    case("a layout of other tokens", COARSE, "tokens-00000.npy", edited("tokens/index.json", layout=[3, 3])),
    case("shards that are a number", COARSE, "damaged", edited("tokens/index.json", shards=3)),
    case("shards without a name", COARSE, "damaged", edited("tokens/index.json", shards=[{"count": 4}])),
    case("a set without shards", COARSE, "has no images", edited("tokens/index.json", shards=[])),
    case("a shard of another length", COARSE, "tokens-00000.npy",
         edited("tokens/index.json", shards=[{"stem": "00000", "count": 3}])),
    case("no codewords", COARSE, "damaged", edited("tokens/index.json", codebook_size=0)),
    case("10¹⁸ codewords", "info tokens", "tokens/index.json is damaged",
         edited("tokens/index.json", codebook_size=10**18)),
    case("no class names", COARSE, "number of classes is 0", edited("tokens/index.json", class_names=[])),
    case("class names that are a number", COARSE, "damaged", edited("tokens/index.json", class_names=4)),
    case("an incomplete set", COARSE, "tokens is incomplete", edited("tokens/index.json", complete=False)),
    case("a shard that is missing", COARSE, "tokens-00001.npy is missing", removed("tokens/tokens-00001.npy")),
    case("labels that are missing", COARSE, "labels-00000.npy is missing", removed("tokens/labels-00000.npy")),
    case("a truncated shard", COARSE, "tokens-00000.npy is truncated", cut("tokens/tokens-00000.npy", 130)),
    case("an empty shard", COARSE, "tokens-00000.npy is truncated", written("tokens/tokens-00000.npy", b"")),
    case("a folder for a shard", COARSE, "tokens-00000.npy", folder("tokens/tokens-00000.npy")),
    case("a shard that would run code", COARSE, "tokens-00000.npy",
         array("tokens/tokens-00000.npy", [[[Runs()]]], object)),
    case("float tokens", COARSE, "holds float32", array("tokens/tokens-00000.npy", np.zeros((4, 1, 4), np.float32))),
    case("labels beyond the classes", COARSE, "range from 0 to 4", array("tokens/labels-00000.npy", [0, 1, 2, 4])),
    case("negative labels", COARSE, "range from -1 to", array("tokens/labels-00000.npy", [0, 1, 2, -1])),
    case("labels and tokens swapped", COARSE, "tokens/", swapped("tokens/labels-00000.npy", "tokens/tokens-00000.npy")),
    case("a description of tokens beyond the codebook", "info tokens", "range from",
         array("tokens/tokens-00001.npy", np.full((4, 1, 4), 99, np.uint8))),
    case("likelihood of tokens beyond the codebook", LIKELIHOOD, "range from",
         array("tokens/tokens-00001.npy", np.full((4, 1, 4), 99, np.uint8))),
    case("likelihood of tokens that are missing", f"{LIKELIHOOD} --tokens nowhere", "nowhere: no such token set"),
    case("likelihood of another codebook", LIKELIHOOD, "another codebook", edited("tokens/index.json", codebook="ab")),
    case("likelihood of a codebook of another size", LIKELIHOOD, "codebook of 23",
         edited("tokens/index.json", codebook_size=23)),
    case("likelihood on another layout", LIKELIHOOD, "layout or classes", edited("tokens/index.json", layout=[1, 4])),
    case("likelihood of a class that the model lacks", LIKELIHOOD, "of the class 'e', which is none",
         edited("tokens/index.json", class_names=list("abce"))),
    case("likelihood under a model that is missing", f"{LIKELIHOOD} --model nowhere", "nowhere: no such model"),
    case("likelihood on no device", f"{LIKELIHOOD} --device abacus", "'abacus' cannot be used here"),
    case("likelihood in more steps than positions", f"{BY_STEPS} --steps [1,5]",
         "stage coarse cannot draw in 5 steps"),
    case("likelihood in no steps", f"{BY_STEPS} --steps [0]", "steps 0 must be at least 1"),
    case("likelihood without a number of steps", f"{BY_STEPS} --steps []", "give at least one number of steps"),
    case("likelihood in half a step", f"{BY_STEPS} --steps [0.5]", "expected int, got 0.5"),
    case("likelihood in steps of an autoregressive stage", f"{BY_STEPS} --model model",
         "stage coarse cannot draw in 1 steps"),
    case("likelihood in steps of a stage for one round", f"{BY_STEPS} --model model --stage fine",
         "stage fine cannot draw in 4 steps"),
    case("likelihood of a stage that is missing", f"{BY_STEPS} --stage middle", "no stage 'middle'"),
    case("likelihood in no order", f"{BY_STEPS} --order sideways", "sideways"),
    case("likelihood in an order that the stage cannot take", f"{LIKELIHOOD} --order halton",
         "stage coarse cannot draw in the order halton"),
    case("likelihood in the order of confidence", f"{BY_STEPS} --stage fine --order confidence",
         "stage fine: the order confidence depends on what is drawn"),
    case("likelihood in no schedule", f"{BY_STEPS} --schedule linear", "linear"),
    case("likelihood with a negative seed of the order", f"{BY_STEPS} --order_seed -1", "order_seed -1"),
    case("likelihood into a file", f"{BY_STEPS} --out codebook.npy", "is there already and is not a folder"),
    case("likelihood into a file's inside", f"{LIKELIHOOD} --out codebook.npy/x", "codebook.npy/x cannot be written"),
    case("codes that are missing", f"{CODES} --source nowhere", "imagenet256_codes: no such folder"),
    case("codes of another size", f"{CODES} --size 384", "imagenet384_codes: no such folder"),
    case("no codes", CODES, "0.npy", lambda: [path.unlink() for path in Path("codes").rglob("*.npy")]),
    case("a code that is missing", CODES, "lacks 0.npy", removed("codes/imagenet256_codes/0.npy")),
    case("a label that is missing", CODES, "lacks 1.npy", removed("codes/imagenet256_labels/1.npy")),
    case("codes beyond the codebook", f"{CODES} --codebook_size 3", "the codebook size is 3"),
    case("codes of no codebook", f"{CODES} --codebook_size 0", "codebook size 0"),
    case("codes of labels beyond the classes", f"{CODES} --num_classes 1", "number of classes is 1"),
    case("codes of no classes", f"{CODES} --num_classes 0", "number of classes is 0"),
    case("more codes than files", f"{CODES} --count 9", "lacks"),
    case("less than no codes", f"{CODES} --count -1", "count"),
    case("no codes asked for", f"{CODES} --count 0", "count"),
    case("a code of another shape", CODES, "1.npy holds", array("codes/imagenet256_codes/1.npy", [[[1, 2]]])),
    case("a code of no axes", CODES, "0.npy has the shape []", array("codes/imagenet256_codes/0.npy", 3)),
    case("a float code", CODES, "1.npy holds float64", array("codes/imagenet256_codes/1.npy", [[[1.0] * 4]])),
    case("a truncated code", CODES, "1.npy is truncated", cut("codes/imagenet256_codes/1.npy", 130)),
    case("a code that would run code", CODES, "1.npy is", array("codes/imagenet256_codes/1.npy", [Runs()], object)),
    case("a code with tokens for no square", CODES, "not a square",
         *(array(f"codes/imagenet256_codes/{i}.npy", [[[1, 2, 3]]]) for i in range(2))),
    case("a second folder of other labels", f"{CODES} --second again", "not the same images", copied("codes", "again"),
         array("again/imagenet256_labels/0.npy", [3])),
    case("codes with the codebook of others", f"{CODES} --codebook nowhere.npy", "nowhere.npy: no such"),
    case("arrays that are missing", f"{TOKENS} --tokens nowhere.npy", "nowhere.npy is missing"),
    case("arrays that do not fit", TOKENS, "give [n, A, N] or [n, N], and integers [n]", array("labels.npy", [0, 1])),
    case("arrays of no square", TOKENS, "not a square", array("tokens.npy", np.zeros((8, 3), int))),
    case("arrays on another layout", f"{TOKENS} --layout 3x3", "takes integer tokens [b, 1, 9]"),
    case("arrays on a layout of nothing", f"{TOKENS} --layout 0x4", "one row and column in each"),
    case("an array of floats", TOKENS, "integer", array("tokens.npy", np.zeros((8, 4)))),
    case("an array of one axis", TOKENS, "give [n, A, N] or [n, N]", array("tokens.npy", np.zeros(8, int))),
    case("an array of no images", TOKENS, "no images", array("tokens.npy", np.zeros((0, 4), int)),
         array("labels.npy", np.zeros(0, int))),
    case("arrays beyond the codebook", f"{TOKENS} --codebook_size 3", "codebook size is 3"),
    case("arrays of no codebook", f"{TOKENS} --codebook_size -1", "codebook size -1"),
    case("negative labels in an array", TOKENS, "range from -1", array("labels.npy", [-1, *range(7)])),
    case("float labels in an array", TOKENS, "labels", array("labels.npy", np.zeros(8))),
    case("labels of two axes", TOKENS, "give [n, A, N] or [n, N], and integers [n]",
         array("labels.npy", np.zeros((8, 1), int))),
    case("arrays of pickles", TOKENS, "tokens.npy", array("tokens.npy", [[Runs()]] * 8, object)),
    case("arrays into a set that is there", f"{TOKENS} --out tokens", "already holds a token set"),
    case("arrays with a codebook of another size", f"{TOKENS} --codebook small_tokenizer.safetensors", "16"),
    case("codes into a folder that is there", f"{TO_CODES} --out codes --size 256", "already exists"),
    case("codes of an unknown size", "convert to-codes --out x --tokens tokens", "does not know its image size"),
    case("codes of less than no pixels", f"{TO_CODES} --size -1", "size"),
    case("codes that cannot be halved", f"{TO_CODES} --second y", "cannot be halved"),
    case("codes of tokens that are missing", f"{TO_CODES} --tokens nowhere", "nowhere: no such token set"),
    case("codes into a file", f"{TO_CODES} --out codebook.npy", "codebook.npy"),
    case("codes of tokens beyond the codebook", TO_CODES, "range from",
         array("tokens/tokens-00001.npy", np.full((4, 1, 4), 99, np.uint8))),
]

TRAINING = [
    case("no coarse map", "train coarse --out x --tokens tokens", "needs --coarse_map"),
    case("a map that is missing", f"{COARSE} --coarse_map nowhere", "nowhere: no such safetensors file"),
    case("a truncated map", COARSE, "map.safetensors is truncated", cut("map.safetensors", 100)),
    case("a tokenizer for a map", f"{COARSE} --coarse_map tokenizer.safetensors", "not a coarse map (it says 'token"),
    case("a stage for a map", f"{FINE} --coarse_map coarse.safetensors", "not a coarse map (it says 'stage')"),
    case("a map of another format", COARSE, "format 9", retold("map.safetensors", format="9")),
    case("a map of no seed", COARSE, "lacks 'seed'", retold("map.safetensors", drop=["seed"])),
    case("a map whose seed is a word", COARSE, "map.safetensors", retold("map.safetensors", seed="none")),
    case("a map of other sizes than it says", COARSE, "do not agree", retold("map.safetensors", num_coarse="6")),
    case("a map with an empty cluster", COARSE, "each one used", map_of(torch.full((24,), 3))),
    case("a map with clusters beyond the tokens", COARSE, "each one used", map_of(torch.full((24,), 99))),
    case("a map of floats", COARSE, "integer label per token", map_of(torch.rand(24))),
    case("a map of another codebook of equal size", f"{FINE} --coarse_map other_map.safetensors",
         "belong to different codebooks"),
    case("a map of a smaller codebook", f"{FINE} --coarse_map small_map.safetensors", "the coarse map is for 16"),
    case("a size that does not exist", f"{BASELINE} --size huge", "model size 'huge' does not exist"),
    case("a kind that does not exist", f"{BASELINE} --kind quantum", "kind 'quantum' of stage does not exist"),
    case("a number of rounds to train for", f"{FINE} --rounds 4", "rounds"),
    case("rounds of a kind without any", f"{COARSE} --rounds any", "autoregressive have no setting rounds"),
    case("a loss on clusters without clusters", f"{BASELINE} --cluster_loss_weight 1", "belong together"),
    case("clusters without a loss on them", f"{BASELINE} --coarse_map map.safetensors", "belong together"),
    case("a negative loss on clusters", f"{IAR} --cluster_loss_weight -1", "cluster_loss_weight is -1.0"),
    case("a loss on clusters of nan", f"{IAR} --cluster_loss_weight .nan", "cluster_loss_weight is nan"),
    case("a loss on clusters of another codebook", f"{IAR} --coarse_map other_map.safetensors", "another codebook"),
    case("a loss on clusters that are missing", f"{IAR} --coarse_map nowhere", "nowhere: no such safetensors file"),
    case("a run to sample in fewer steps than it can", f"{COARSE} --sampling.steps 3", "cannot draw in 3 steps"),
    case("a run to sample in an order that it cannot", f"{ANY_ORDER} --sampling.order confidence", "in the order conf"),
    case("a run to sample in more steps than positions", f"{ANY_ORDER} --sampling.steps 5", "cannot draw in 5 steps"),
    case("a stage of an impossible name", f"{STAGE} --name '9 lives'", "cannot be called '9 lives'"),
    case("a stage without a name", f"{STAGE} --name ''", "cannot be called ''"),
    case("a stage called tokenizer", f"{STAGE} --name tokenizer", "tokenizer"),
    case("a stage given what is no coarsening", f"{STAGE} --predicts reseeded_map.safetensors", "no coarsening"),
    case("a support that does not exist", f"{FINE} --support half", "expected one of ['cluster', 'full'], got half"),
    case("held-out tokens that are missing", f"{COARSE} --held_out nowhere", "nowhere: no such token set"),
    case("held-out tokens of other classes", f"{COARSE} --held_out again", "of the class 'x', which is none",
         copied("tokens", "again"),
         edited("again/index.json", class_names=list("abcx"))),
    case("held-out tokens of another codebook", f"{COARSE} --held_out again", "different codebooks",
         copied("tokens", "again"), edited("again/index.json", codebook="ab")),
    case("a tokenizer of another codebook", f"{COARSE} --tokenizer other_tokenizer.safetensors", "another codebook"),
    case("images of a negative learning rate", f"{TRAIN_TOKENIZER} --optimizer.learning_rate -1",
         "optimizer.learning_rate is -1.0: it must be at least 0"),
    case("a negative learning rate", f"{COARSE} --optimizer.learning_rate -1", "learning_rate is -1.0"),
    case("a learning rate that is no number", f"{COARSE} --optimizer.learning_rate .nan", "learning_rate is nan"),
    case("an infinite learning rate", f"{COARSE} --optimizer.learning_rate .inf", "learning_rate is inf"),
    case("a negative final learning rate", f"{COARSE} --optimizer.final_learning_rate -1", "final_learning_rate is -1"),
    case("negative weight decay", f"{COARSE} --optimizer.weight_decay -1", "weight_decay is -1.0"),
    case("negative clipping", f"{COARSE} --optimizer.clip -1", "clip is -1.0"),
    case("negative warm-up", f"{COARSE} --optimizer.warmup_steps -1", "warmup_steps is -1"),
    case("betas of one", f"{COARSE} --optimizer.betas [0.9,1]", "betas is (0.9, 1.0): it must be at least 0 and below"),
    case("negative betas", f"{COARSE} --optimizer.betas [-0.1,0.9]", "betas is (-0.1, 0.9)"),
    case("betas that are no numbers", f"{COARSE} --optimizer.betas [.nan,0.9]", "betas is (nan, 0.9)"),
    case("one beta", f"{COARSE} --optimizer.betas [0.9]", "betas"),
    case("dropout above one", f"{COARSE} --dropout 1.5", "dropout 1.5"),
    case("dropout that is no number", f"{COARSE} --dropout .nan", "dropout nan"),
    case("negative dropout of classes", f"{COARSE} --class_dropout -0.1", "class_dropout -0.1"),
    case("no steps", f"{COARSE} --loop.steps 0", "loop.steps is 0"),
    case("no epochs", f"{COARSE} --loop.epochs 0", "loop.epochs is 0"),
    case("a batch of nothing", f"{COARSE} --loop.batch_size 0", "loop.batch_size is 0"),
    case("a batch in unequal parts", f"{COARSE} --loop.batch_size 2 --loop.accumulate 3", "not a multiple"),
    case("no accumulation", f"{COARSE} --loop.accumulate 0", "loop.accumulate is 0"),
    case("an average that never moves", f"{COARSE} --loop.ema 1", "loop.ema is 1.0"),
    case("an average of nan", f"{COARSE} --loop.ema .nan", "loop.ema is nan"),
    case("a log of no steps", f"{COARSE} --loop.log_every 0", "loop.log_every is 0"),
    case("checkpoints every less than no steps", f"{COARSE} --loop.checkpoint_every -1", "loop.checkpoint_every is -1"),
    case("no checkpoints kept", f"{COARSE} --loop.keep_checkpoints 0", "loop.keep_checkpoints is 0"),
    case("a negative seed of a run", f"{COARSE} --loop.seed -1", "loop.seed is -1"),
    case("a seed of a run beyond all", f"{COARSE} --loop.seed {10**30}", "loop.seed is 1000000"),
    case("a run on no device", f"{COARSE} --loop.device abacus", "loop.device 'abacus' does not exist here"),
    case("a run in a precision that is not there", f"{COARSE} --loop.precision float16", "'float16' does not work"),
    case("a run of an unknown precision", f"{COARSE} --loop.precision float8", "float8"),
    case("sampling defaults out of range", f"{COARSE} --sampling.top_p 2", "top_p 2.0 must be in (0, 1]"),
    case("sampling defaults of nan", f"{COARSE} --sampling.temperature .nan", "temperature nan must be"),
    case("a run where one has ended", f"{COARSE} --out ended", "ended already holds a run",
         copied("coarse.safetensors", "empty/model.safetensors"), copied("empty", "ended")),
    case("a run in a model folder", f"{COARSE} --out model", "model holds something else than a run"),
    case("a resumed run in a model folder", f"{COARSE} --out model --loop.resume",
         "model holds something else than a run"),
    case("a run in a file", f"{COARSE} --out codebook.npy", "codebook.npy"),
    case("a run inside a file", f"{COARSE} --out codebook.npy/run", "codebook.npy"),
    case("a damaged checkpoint", f"{COARSE} --out run --loop.resume", "step-00000001.safetensors is truncated",
         written("run/checkpoints/step-00000001.safetensors", JUNK)),
    case("a map for a checkpoint", f"{COARSE} --out run --loop.resume", "is not a checkpoint",
         folder("run/checkpoints"), copied("map.safetensors", "run/checkpoints/step-00000001.safetensors")),
    case("a checkpoint of no step", f"{COARSE} --out run --loop.resume", "is not a checkpoint",
         folder("run/checkpoints"),
         lambda: save_file({}, "run/checkpoints/step-00000001.safetensors", {"ctf": '{"ctf": "checkpoint"}'})),
    case("a seed beyond k-means", f"{TRAIN_TOKENIZER} --loop.seed {2**32}", "loop.seed is 4294967296"),
    case("a tokenizer of no channels", f"{TRAIN_TOKENIZER} --model.base_channels 0", "sizes are positive integers"),
    case("a tokenizer of odd channels", f"{TRAIN_TOKENIZER} --model.base_channels 20", "not a multiple of 32"),
    case("a tokenizer of no levels", f"{TRAIN_TOKENIZER} --model.channel_multipliers []", "channel_multipliers"),
    case("a codebook of one", f"{TRAIN_TOKENIZER} --model.codebook_size 1", "codebook_size at least 2"),
    case("images that do not fit the tokenizer", f"{TRAIN_TOKENIZER} --image_size 9", "9 is not a multiple"),
    case("training images that are missing", f"{TRAIN_TOKENIZER} --images nowhere", "nowhere: no such folder"),
    case("held-out images that are missing", f"{TRAIN_TOKENIZER} --held_out nowhere", "nowhere: no such folder"),
    case("a negative weight of a loss", f"{TRAIN_TOKENIZER} --commitment_weight -1", "commitment_weight is -1.0"),
    case("a weight of nan", f"{TRAIN_TOKENIZER} --codebook_weight .nan", "codebook_weight is nan"),
    case("a crop of more than all", f"{TRAIN_TOKENIZER} --random_crop 1.5", "random_crop is 1.5"),
    case("restarts beyond the end", f"{TRAIN_TOKENIZER} --restart_until 2", "restart_until is 2.0"),
    case("LPIPS without weights", f"{TRAIN_TOKENIZER} --perceptual_weight 1", "perceptual_weight needs"),
    case("LPIPS with weights of something else",
         f"{TRAIN_TOKENIZER} --perceptual_weight 1 --perceptual_source map.safetensors", "map.safetensors"),
    case("LPIPS with weights that are missing",
         f"{TRAIN_TOKENIZER} --perceptual_weight 1 --perceptual_source no/where/at/all.pt", "no/where/at/all.pt"),
    case("a discriminator of small images", f"{TRAIN_TOKENIZER} --discriminator_weight 1", "too small for the discrim"),
]

PLANS = [
    case("a plan of settings that are missing", "plan nowhere.yaml", "nowhere.yaml"),
    case("a plan of no settings", f"{PLAN} --stages []", "stages are none"),
    case("a plan of settings of something else", PLAN, "option 'stepz': did you mean loop.steps? (with the settings in",
         written("plan.yaml", "size: B\nloop:\n  stepz: 3\n")),
    case("a plan of broken YAML", PLAN, "Problems parsing config", written("plan.yaml", "size: [B\n")),
    case("a plan of an unknown size", PLAN, "model size 'huge' does not exist", written("plan.yaml", "size: huge\n")),
    case("a plan of an unknown kind", f"{PLAN} --stages [coarse]", "kind 'best'", written("plan.yaml", "kind: best\n")),
    case("a plan for an unknown GPU", f"{PLAN} --gpu TPU", "GPU 'TPU' is not in the list: choose one of A100-40GB"),
    case("a plan for no GPU", f"{PLAN} --gpus 0", "gpus 0 must be at least 1"),
    case("a plan for GPUs that cannot share a batch", f"{PLAN} --gpus 3", "4 images is not a multiple of 3 GPUs"),
    case("a plan of an unknown stage", f"{PLAN} --stages [medium]", "medium"),
    case("a plan of as many clusters as codewords", f"{PLAN} --num_clusters 24", "24 clusters of 24 codewords"),
    case("a plan with more than all of the rate", f"{PLAN} --mfu 1.2", "mfu 1.2 must be above 0 and at most 1"),
    case("a plan for a negative price", f"{PLAN} --price -1", "price -1.0 must be at least 0"),
    case("a plan over tokens that are damaged", PLAN, "tokens", cut("tokens/index.json", 30)),
]

MODELS = [
    case("publishing nothing", f"{PUSH} --model nowhere", "nowhere: no such model folder"),
    case("publishing what is no model", f"{PUSH} --model pictures", "pictures is not a model folder"),
    case("publishing half a model", PUSH, "fine.safetensors: no such safetensors file",
         removed("model/fine.safetensors")),
    case("publishing a cut model", PUSH, "coarse.safetensors is truncated", cut("model/coarse.safetensors", 900)),
    case("publishing under no name", f"{PUSH} --to ''", "'' is no name on the Hub: give owner/name"),
    case("publishing without an owner", f"{PUSH} --to name", "'name' is no name on the Hub: give owner/name"),
    case("publishing under a name that none can have", f"{PUSH} --to 'owner/a b'", "that is no name on the Hub"),
    case("publishing with figures that are missing", f"{PUSH} --metrics [nowhere.json]", "nowhere.json: no such"),
    case("publishing with figures that are none", f"{PUSH} --metrics [f.json]", "f.json holds no figures",
         written("f.json", '{"fid": "low", "good": true, "kid": NaN}')),
    case("publishing with figures in a list", f"{PUSH} --metrics [f.json]", "f.json holds no figures",
         written("f.json", "[1, 2]")),
    case("publishing with a sheet that is none", f"{PUSH} --samples codebook.npy", "cannot be read as an image"),
    case("publishing the bundled model with another card", f"{PUSH} --model emoji --licence mit",
         "the card of the bundled model is complete"),
    case("a manifest of a model that is damaged", INFO, "manifest.json is not valid JSON",
         cut("model/manifest.json", 40)),
    case("a manifest of something else", INFO, "is not the manifest of a model",
         written("model/manifest.json", '{"ctf": "samples"}')),
    case("no stages", f"{ASSEMBLE} --stages []", "at least one stage"),
    case("stages in the wrong order", f"{ASSEMBLE} --stages '[fine.safetensors, coarse.safetensors]'",
         "stage fine must be given nothing but the class label"),
    case("the last stage missing", f"{ASSEMBLE} --stages [coarse.safetensors]", "a finer stage is missing"),
    case("the first stage missing", f"{ASSEMBLE} --stages [fine.safetensors]", "stage fine must be given nothing"),
    case("a stage twice", f"{ASSEMBLE} --stages '[coarse.safetensors, coarse.safetensors]'", "stage coarse must be"),
    case("a baseline and a fine stage", f"{ASSEMBLE} --stages '[baseline.safetensors, fine.safetensors]'", "fine"),
    case("another map of equal size", f"{ASSEMBLE} --stages '[coarse.safetensors, reseeded_fine.safetensors]'",
         "stage fine must be given what coarse predicts"),
    case("a map of another codebook", f"{ASSEMBLE} --stages '[coarse.safetensors, other_fine.safetensors]'",
         "stage fine must be given what coarse predicts"),
    case("stages of different layouts", f"{ASSEMBLE} --stages '[coarse.safetensors, wide_fine.safetensors]'",
         "differ in layout"),
    case("a tokenizer of equal size", f"{ASSEMBLE} --tokenizer other_tokenizer.safetensors", "another codebook"),
    case("a tokenizer of another size", f"{ASSEMBLE} --tokenizer small_tokenizer.safetensors", "the tokenizer has 16"),
    case("a stage for the tokenizer", f"{ASSEMBLE} --tokenizer coarse.safetensors", "not a ctf tokenizer"),
    case("a map for a stage", f"{ASSEMBLE} --stages [map.safetensors]", "not a ctf stage (it says 'coarse_map')"),
    case("a tokenizer for a stage", f"{ASSEMBLE} --stages [tokenizer.safetensors]", "not a ctf stage (it says 'token"),
    case("a picture for a stage", f"{ASSEMBLE} --stages [pictures/0.png]", "truncated or not a safetensors file"),
    case("a stage that is missing", f"{ASSEMBLE} --stages [nowhere]", "nowhere: no such safetensors file"),
    case("a folder without a stage", f"{ASSEMBLE} --stages [empty]", "empty/model.safetensors: no such"),
    case("a run that has not ended", f"{ASSEMBLE} --stages [empty]", "has not finished", folder("empty/checkpoints")),
    case("classes that are missing", f"{ASSEMBLE} --classes nowhere", "nowhere: no such token set"),
    case("a model for the classes", f"{ASSEMBLE} --classes model", "not a token set"),
    case("other classes", ASSEMBLE, "5 class names for a model of 4",
         edited("tokens/index.json", class_names=[*"abcde"])),
    case("classes of another layout", ASSEMBLE, "layout", edited("tokens/index.json", layout=[1, 4])),
    case("an output that is no model", f"{ASSEMBLE} --out pictures", "is there already and is not a model folder"),
    case("an output that is a file", f"{ASSEMBLE} --out codebook.npy", "is there already and is not a model folder"),
    case("a stage of an unknown kind", ASSEMBLE, "kind 'quantum' of stage", retold("fine.safetensors", kind="quantum")),
    case("a stage of no kind", ASSEMBLE, "cannot read this stage", retold("fine.safetensors", drop=["kind"])),
    case("a stage of a later version", ASSEMBLE, "cannot read this stage",
         retold("fine.safetensors", config='{"q": 1}')),
    case("a stage of broken settings", ASSEMBLE, "fine.safetensors", retold("fine.safetensors", config="{")),
    case("a stage whose settings are a list", ASSEMBLE, "cannot read this stage",
         retold("fine.safetensors", config="[]")),
    case("a stage of an unknown support", ASSEMBLE, "support 'some'", retold("fine.safetensors", support="some")),
    case("a stage of senseless sampling", ASSEMBLE, "top_k -1", retold("fine.safetensors", sampling='{"top_k": -1}')),
    case("a stage whose sampling is a list", ASSEMBLE, "fine.safetensors", retold("fine.safetensors", sampling="[1]")),
    case("a stage of another codebook", ASSEMBLE, "stage fine must be given what coarse predicts",
         retold("fine.safetensors", codebook="ab")),
    case("a stage without its map", ASSEMBLE, "fine.safetensors", retold("fine.safetensors", drop=["given"])),
    case("a stage with nan", ASSEMBLE, "holds NaN or infinity", poisoned("fine.safetensors")),
    case("a stage with infinity", ASSEMBLE, "holds NaN or infinity", poisoned("coarse.safetensors", -torch.inf)),
    case("a truncated stage", ASSEMBLE, "fine.safetensors is truncated", cut("fine.safetensors", 5000)),
    case("a model that is missing", f"{SAMPLE} --model nowhere", "nowhere: no such model folder"),
    case("an empty model folder", f"{SAMPLE} --model empty", "empty is not a model folder"),
    case("a run for a model", f"{SAMPLE} --model tokens", "tokens is not a model folder"),
    case("a file for a model", f"{SAMPLE} --model fine.safetensors", "fine.safetensors is not a model folder"),
    case("a model of broken JSON", SAMPLE, "model/config.json is not valid JSON", cut("model/config.json", 30)),
    case("a model whose config is a list", SAMPLE, "model is not a model folder", written("model/config.json", "[]")),
    case("a model whose config is binary", SAMPLE, "not valid JSON", written("model/config.json", JUNK)),
    case("a model whose config is a folder", SAMPLE, "not valid JSON", folder("model/config.json")),
    case("a model of another format", SAMPLE, "format 2", edited("model/config.json", format=1)),
    case("a model of no stages", SAMPLE, "has no stage 'coarse'", edited("model/config.json", stages=[])),
    case("a model whose stages are a number", SAMPLE, "model", edited("model/config.json", stages=3)),
    case("a model whose stages are a text", SAMPLE, "model", edited("model/config.json", stages="fine")),
    case("a model whose stages are nothing", SAMPLE, "model", edited("model/config.json", stages=None)),
    case("a model of a stage that is missing", SAMPLE, "model/middle.safetensors: no such",
         edited("model/config.json", stages=["coarse", "middle"])),
    case("a model of stages in the wrong order", SAMPLE, "stage fine must be",
         edited("model/config.json", stages=["fine", "coarse"])),
    case("a model whose class names are a number", SAMPLE, "class", edited("model/config.json", class_names=4)),
    case("a model whose class names are numbers", SAMPLE, "class",
         edited("model/config.json", class_names=[1, 2, 3, 4])),
    case("a model whose class names are a text", SAMPLE, "class", edited("model/config.json", class_names="abcd")),
    case("a model of too few classes", SAMPLE, "3 class names", edited("model/config.json", class_names=list("abc"))),
    case("a model without its tokenizer", SAMPLE, "model/tokenizer.safetensors: no such",
         removed("model/tokenizer.safetensors")),
    case("a model with another tokenizer", SAMPLE, "another codebook",
         copied("other_tokenizer.safetensors", "model/tokenizer.safetensors")),
    case("a model with its stages swapped", SAMPLE, "stage",
         swapped("model/fine.safetensors", "model/coarse.safetensors")),
    case("a model with a map for a stage", SAMPLE, "not a ctf stage",
         copied("map.safetensors", "model/fine.safetensors")),
    case("a model with a stage of another map", SAMPLE, "must be given what coarse predicts",
         copied("reseeded_fine.safetensors", "model/fine.safetensors")),
    case("a model with a truncated stage", SAMPLE, "model/fine.safetensors is truncated",
         cut("model/fine.safetensors", 1000)),
    case("a model with nan", SAMPLE, "holds NaN or infinity", poisoned("model/coarse.safetensors")),
    case("a model with nan in its tokenizer", SAMPLE, "holds NaN or infinity", poisoned("model/tokenizer.safetensors")),
    case("broken defaults", SAMPLE, "generation_config.json is not valid JSON",
         written("model/generation_config.json", "{")),
    case("defaults that are a list", SAMPLE, "does not hold settings by stage",
         written("model/generation_config.json", "[]")),
    case("defaults without stages", SAMPLE, "does not hold settings by stage",
         written("model/generation_config.json", '{"temperature": 1}')),
    case("defaults of an unknown setting", SAMPLE, "no sampling setting 'temprature'",
         written("model/generation_config.json", '{"coarse": {"temprature": 1}}')),
    case("defaults of an unknown stage", SAMPLE, "'middle'",
         written("model/generation_config.json", '{"middle": {"temperature": 1}}')),
    case("defaults of wrong type", SAMPLE, "top_k 'many' must be a whole number",
         written("model/generation_config.json", '{"fine": {"top_k": "many"}}')),
    case("defaults out of range", SAMPLE, "top_p 0 must be",
         written("model/generation_config.json", '{"fine": {"top_p": 0}}')),
    case("defaults of nan", SAMPLE, "temperature nan must be",
         written("model/generation_config.json", '{"fine": {"temperature": NaN}}')),
    case("a GPT that is missing", f"{LLAMAGEN} --gpt nowhere.pt", "nowhere.pt: no such checkpoint"),
    case("a tokenizer for a GPT", f"{LLAMAGEN} --gpt {GOLDEN}/vq8.pt", "is a tokenizer, not a GPT"),
    case("GPT and tokenizer swapped", f"{LLAMAGEN} --tokenizer {GOLDEN}/gpt_mha.pt --gpt {GOLDEN}/vq8.pt", "is a GPT"),
    case("heads that are unknown", f"{LLAMAGEN} --num_heads null", "give num_heads"),
    case("heads that do not fit", f"{LLAMAGEN} --num_heads 7", "7 heads"),
    case("less than no heads", f"{LLAMAGEN} --num_heads -4", "heads"),
    case("a GPT of no tokens", f"{LLAMAGEN} --layout 0x4", "one row and column in each"),
    case("a GPT that would run code", f"{LLAMAGEN} --gpt g.pt", "could run code", pickled("g.pt", {"model": Runs()})),
    case("a GPT with settings", f"{LLAMAGEN} --gpt g.pt", "--allow_namespace",
         pickled("g.pt", {"args": argparse.Namespace()})),
    case("a GPT of no weights", f"{LLAMAGEN} --gpt g.pt", "holds no weights", pickled("g.pt", {"model": {}})),
    case("a GPT of other weights", f"{LLAMAGEN} --gpt g.pt", "not a LlamaGen GPT",
         pickled("g.pt", {"w": torch.ones(2)})),
    case("a GPT of a tensor", f"{LLAMAGEN} --gpt g.pt", "holds a Tensor", pickled("g.pt", torch.ones(2))),
    case("a GPT of junk", f"{LLAMAGEN} --gpt g.pt", "g.pt is", written("g.pt", JUNK)),
    case("a GPT with nan", f"{LLAMAGEN} --gpt g.pt", "norm.weight holds NaN or infinity",
         lambda: torch.save(nan_gpt(), "g.pt")),
    case("a GPT with half its layers", f"{LLAMAGEN} --gpt g.pt", "lacks", lambda: torch.save(half_gpt(), "g.pt")),
    case("LlamaGen into what is no model", f"{LLAMAGEN} --out pictures", "is not a model folder"),
    case("a description of nothing", "info nowhere", "nowhere: no such file or folder"),
    case("a description of an empty folder", "info empty", "is no token set"),
    case("a description of a picture", "info pictures/0.png", "is no token set"),
    case("a description of foreign weights", "info w.safetensors", "ctf did not write it",
         lambda: save_file({"w": torch.ones(2)}, "w.safetensors")),
    case("a description of a truncated map", "info map.safetensors", "is truncated", cut("map.safetensors", 90)),
    case("a description of a truncated tokenizer", "info tokenizer.safetensors", "is truncated",
         cut("tokenizer.safetensors", 9000)),
    case("a description of a broken tokenizer", "info tokenizer.safetensors", "tokenizer.safetensors",
         retold("tokenizer.safetensors", config="{")),
    case("a description of a run with a broken log", "info run", "log.jsonl is damaged",
         written("run/config.json", '{"loop": {}}'), written("run/log.jsonl", "{\n")),
    case("a description of a run whose log is a list", "info run", "log.jsonl",
         written("run/config.json", '{"loop": {}}'), written("run/log.jsonl", "[1]\n3\n")),
    case("a description of a broken run", "info run", "not valid JSON", written("run/config.json", '{"loop": ')),
    case("a description of a broken model", "info model", "model/fine.safetensors", cut("model/fine.safetensors", 9)),
]

SAMPLES = [
    case("a label beyond the classes", f"{SAMPLE} --labels [99]", "class 99: the model has the classes 0 … 3"),
    case("a negative label", f"{SAMPLE} --labels [-1]", "class -1: the model has the classes 0 … 3"),
    case("a label that is no class", f"{SAMPLE} --labels [fox]", "'fox' does not exist"),
    case("a label of a fraction", f"{SAMPLE} --labels [1.5]", "class '1.5' does not exist"),
    case("a number that is a name and an index", f"{SAMPLE} --labels [1]", "ambiguous: write '[\"1\"]' for the class",
         edited("model/config.json", class_names=["1", "10", "2", "3"])),
    case("a label that YAML reads as false", f"{SAMPLE} --labels [no]", "class 'no' does not exist"),
    case("labels of labels", f"{SAMPLE} --labels [[1]]", "class '[[1]]' does not exist"),
    case("labels of a mapping", f"{SAMPLE} --labels '{{a: 1}}'", "class '{a: 1}' does not exist"),
    case("labels and a policy", f"{SAMPLE} --labels [1] --label_policy uniform", "give one of them"),
    case("an unknown policy", f"{SAMPLE} --label_policy random",
         "expected one of ['balanced', 'uniform'] or null, got random"),
    case("no images", f"{SAMPLE} --num 0", "num 0"),
    case("less than no images", f"{SAMPLE} --num -3", "num -3"),
    case("more images than anyone samples", f"{SAMPLE} --num {10**15}", "ask for 1 to 100,000,000 images"),
    case("a negative seed of samples", f"{SAMPLE} --seed -1", "seed -1"),
    case("a seed beyond 64 bits", f"{SAMPLE} --seed {2**64}", "seed 18446744073709551616"),
    case("seeds that run beyond 64 bits", f"{SAMPLE} --seed {2**64 - 1} --num 2", "seed"),
    case("batches of nothing", f"{SAMPLE} --batch_size 0", "batch_size 0"),
    case("batches of words", f"{SAMPLE} --batch_size many", "expected int or one of ['auto'], got many"),
    case("an unknown setting of a stage", f"{SAMPLE} --fine_temprature 0.7", "did you mean --fine_temperature?"),
    case("an unknown setting of the first stage", f"{SAMPLE} --temprature=0.7", "did you mean --temperature?"),
    case("a stage that does not exist", f"{SAMPLE} --medium_temperature 0.7", "'medium_temperature'"),
    case("a setting of wrong type", f"{SAMPLE} --top_k many", "top_k 'many' must be a whole number"),
    case("a setting of a fraction", f"{SAMPLE} --top_k 1.5", "top_k 1.5 must be a whole number"),
    case("a setting of a flag", f"{SAMPLE} --temperature true", "temperature True must be a number"),
    case("a setting of a list", f"{SAMPLE} --temperature [1]", "temperature [1] must be a number"),
    case("fewer steps than the stage can take", f"{SAMPLE} --steps 3", "stage coarse cannot draw in 3 steps"),
    case("more steps than positions", f"{SAMPLE} --model any_order_model --steps 5", "cannot draw in 5 steps"),
    case("no steps", f"{SAMPLE} --model any_order_model --steps 0", "steps 0 must be at least 1"),
    case("half a step", f"{SAMPLE} --fine_steps 0.5", "fine_steps 0.5 must be a whole number"),
    case("an order that does not exist", f"{SAMPLE} --order spiral", "order 'spiral' does not exist"),
    case("an order that the stage cannot take", f"{SAMPLE} --order halton", "cannot draw in the order halton"),
    case("a schedule that does not exist", f"{SAMPLE} --schedule linear", "schedule 'linear' does not exist"),
    case("guidance by no schedule", f"{SAMPLE} --cfg_schedule cosine", "cfg_schedule 'cosine' does not exist"),
    case("a negative seed of an order", f"{SAMPLE} --order_seed -1", "order_seed -1 must be from 0"),
    case("a seed of an order that is a word", f"{SAMPLE} --order_seed one", "order_seed 'one' must be a whole number"),
    case("a list of orders", f"{SAMPLE} --order [halton]", "order ['halton'] does not exist"),
    case("default steps that the stage cannot take", SAMPLE, "cannot draw in 3 steps",
         written("model/generation_config.json", '{"coarse": {"steps": 3}}')),
    case("a negative temperature", f"{SAMPLE} --temperature -1", "temperature -1"),
    case("a temperature that is no number", f"{SAMPLE} --temperature .nan", "temperature nan"),
    case("an infinite temperature", f"{SAMPLE} --temperature .inf", "temperature inf"),
    case("a word for nan", f"{SAMPLE} --temperature nan", "temperature"),
    case("negative guidance", f"{SAMPLE} --cfg_scale -2", "cfg_scale -2"),
    case("endless guidance", f"{SAMPLE} --cfg_scale .inf", "cfg_scale inf"),
    case("a negative top-k of a stage", f"{SAMPLE} --fine_top_k -1", "fine_top_k -1"),
    case("a top-p of none", f"{SAMPLE} --top_p 0", "top_p 0"),
    case("a top-p of more than all", f"{SAMPLE} --fine_top_p 1.1", "fine_top_p 1.1"),
    case("settings that are a number", f"{SAMPLE} --sampling 3", "sampling"),
    case("a setting without its value", f"{SAMPLE} --top_k", "expected one argument"),
    case("an unknown dtype", f"{SAMPLE} --dtype float16", "float16"),
    case("an unknown decoder dtype", f"{SAMPLE} --decoder_dtype int8", "int8"),
    case("an unknown quantization", f"{SAMPLE} --quantize int4", "int4"),
    case("sampling on no device", f"{SAMPLE} --device abacus", "device 'abacus' cannot be used here"),
    case("samples where something else is", f"{SAMPLE} --out pictures", "has no manifest"),
    case("samples into a file that is there", f"{SAMPLE} --out samples.npz", "has no manifest"),
    case("samples into what is a file", f"{SAMPLE} --out codebook.npy", "codebook.npy"),
    case("samples inside a file", f"{SAMPLE} --out codebook.npy/x", "codebook.npy"),
    case("a sheet into a folder", f"{SAMPLE} --out empty.png", "empty.png", folder("empty.png")),
    case("a manifest of junk", f"{SAMPLE} --out set", "manifest.json is not valid JSON", copied("pictures", "set"),
         written("set/manifest.json", JUNK)),
    case("a manifest that is a list", f"{SAMPLE} --out set", "is not the manifest", copied("pictures", "set"),
         written("set/manifest.json", "[]")),
    case("a manifest of another format", f"{SAMPLE} --out set", "format 2", copied("pictures", "set"),
         written("set/manifest.json", '{"ctf": "samples", "format": 1}')),
    case("parts of junk", SAMPLE, "manifest.json is not valid JSON", written("x.parts/manifest.json", "{")),
    case("fit of no images", f"{FIT} --images empty", "empty holds no images"),
    case("fit that would train on what it holds out", f"{FIT} --held_out val", "held_out val: name another split"),
    case("fit of a missing folder", f"{FIT} --images nowhere", "nowhere"),
    case("fit in no time", f"{FIT} --time 0s", "time '0s': give seconds, minutes or hours"),
    case("fit in a word", f"{FIT} --time soon", "time 'soon': give seconds, minutes or hours"),
    case("fit of a size that no tokenizer takes", f"{FIT} --image_size 20", "not a multiple of the tokenizer's"),
    case("fit of no size", f"{FIT} --size huge", "huge"),
    case("fit of no batch", f"{FIT} --batch_size 0", "batch_size 0 must be at least 1"),
    case("fit of no cluster", f"{FIT} --num_clusters 0", "num_clusters 0 must be at least 1"),
    case("fit of more clusters than codewords", f"{FIT} --num_clusters 99", "clusters"),
    case("fit with another seed than before", f"{FIT} --seed 3", "is no plan", written("x/plan.json", "{}")),
    case("fit where something else is", f"{FIT} --dry-run false --out pictures", "holds something else"),
    case("fit with a tokenizer of junk", f"{FIT} --tokenizer junk.pt", "junk.pt", written("junk.pt", JUNK)),
    case("a picture that is missing", f"{COMPLETE} --image nowhere.png", "nowhere.png"),
    case("a folder as a picture", f"{COMPLETE} --image pictures", "pictures"),
    case("a picture of junk", COMPLETE, "0.png cannot be read as an image", written("pictures/0.png", JUNK)),
    case("a truncated picture", COMPLETE, "0.png cannot be read as an image", cut("pictures/0.png", 100)),
    case("a mask of junk", COMPLETE, "mask.png cannot be read as an image", written("mask.png", JUNK)),
    case("a mask of another size", COMPLETE, "a mask of 8 × 8 pixels for an image of 16 × 16: both must have one size",
         lambda: Image.new("L", (8, 8), 255).save("mask.png")),
    case("a mask that keeps all", COMPLETE, "the mask asks for nothing",
         lambda: Image.new("L", (16, 16)).save("mask.png")),
    case("a mask that keeps nothing", COMPLETE, "the mask asks for every token",
         lambda: Image.new("L", (16, 16), 255).save("mask.png")),
    case("a mask and a region", f"{COMPLETE} --region [0,0,1,0.5]", "give either mask or region"),
    case("a region outside", f"{COMPLETE} --mask null --region [0,0,1,1.5]", "give left, top, right and bottom edge"),
    case("an empty region", f"{COMPLETE} --mask null --region [0.5,0,0.5,1]", "give left, top, right and bottom edge"),
    case("half a region", f"{COMPLETE} --mask null --region [0.5,0]", "region"),
    case("the left column of an autoregressive model", f"{COMPLETE} --model model", "stage coarse is autoregressive"),
    case("a completion of no class", f"{COMPLETE} --labels [9]", "class 9"),
    case("a completion without labels", f"{COMPLETE} --labels null", "labels"),
    case("a page of no model", f"{APP} --model nowhere", "nowhere: no such model folder"),
    case("a page of a tokenizer", f"{APP} --model tokenizer.safetensors", "tokenizer.safetensors"),
    case("a page with a baseline of other classes", f"{APP} --baseline emoji",
         "emoji and model have different classes"),
    case("a page at no port", f"{APP} --port 70000", "port 70000: give one from 0"),
    case("a page at another machine's address", f"{APP} --host 203.0.113.1", "203.0.113.1:0 cannot be listened on"),
    case("bits of a region beside steps", f"{LIKELIHOOD} --steps [1] --region [0,0,1,0.5]", "steps beside region"),
    case("bits of a region outside", f"{LIKELIHOOD} --region [0,0,2,1]", "give left, top, right and bottom edge"),
    case("bits of a region that the model cannot fill", f"{LIKELIHOOD} --region [0,0,0.5,1]", "is autoregressive"),
    case("samples that are missing", f"{EVALUATE_SAMPLES} --samples nowhere.npz", "nowhere.npz: no such file"),
    case("a folder without samples", f"{EVALUATE_SAMPLES} --samples empty", "empty holds no PNG images"),
    case("one image", EVALUATE_SAMPLES, "holds one image", images(arr_0=NOISE[:1])),
    case("float images", EVALUATE_SAMPLES, "float32 values", images(arr_0=NOISE.astype(np.float32))),
    case("signed images", EVALUATE_SAMPLES, "int8 values", images(arr_0=NOISE.astype(np.int8))),
    case("black images", EVALUATE_SAMPLES, "no pixel above 1", images(arr_0=0 * NOISE)),
    case("grey images", EVALUATE_SAMPLES, "[n, height, width, 3]", images(arr_0=NOISE[..., :1])),
    case("images of no axes", EVALUATE_SAMPLES, "shape", images(arr_0=np.uint8(3))),
    case("no images in the file", EVALUATE_SAMPLES, "n positive", images(arr_0=NOISE[:0])),
    case("images in Fortran order", EVALUATE_SAMPLES, "Fortran", images(arr_0=np.asfortranarray(NOISE))),
    case("images of another name", EVALUATE_SAMPLES, "must be called arr_0", images(images=NOISE)),
    case("an archive of nothing", EVALUATE_SAMPLES, "holds nothing", images()),
    case("pickled images", EVALUATE_SAMPLES, "object values", images(arr_0=np.array([Runs()]))),
    case("pickled labels", EVALUATE_SAMPLES, "samples.npz", images(arr_0=NOISE, labels=np.array([Runs()] * 4))),
    case("too few labels", EVALUATE_SAMPLES, "one integer per image", images(arr_0=NOISE, labels=np.arange(3))),
    case("no .npz", EVALUATE_SAMPLES, "not an .npz", written("samples.npz", JUNK)),
    case("an empty .npz", EVALUATE_SAMPLES, "not an .npz", written("samples.npz", b"")),
    case("a truncated .npz", EVALUATE_SAMPLES, "truncated or not an .npz", cut("samples.npz", 3000)),
    case("an .npy called .npz", EVALUATE_SAMPLES, "not an .npz", copied("tokens.npy", "samples.npz")),
    case("a folder called .npz", EVALUATE_SAMPLES, "samples.npz", folder("samples.npz")),
    case("fewer images than the file says", EVALUATE_SAMPLES, "samples.npz",
         zipped("samples.npz", arr_0=npy_that_claims((50_000, 64, 64, 3)))),
    case("images of 10⁹ × 10⁹ pixels", EVALUATE_SAMPLES, "samples.npz",
         zipped("samples.npz", arr_0=npy_that_claims((4, 10**9, 10**9, 3)))),
    case("more images than the file says", EVALUATE_SAMPLES, "samples.npz",
         zipped("samples.npz", arr_0=npy_that_claims((4, 64, 64, 3)) + b"\7" * 10**7)),
    case("text in an .npz", EVALUATE_SAMPLES, "not an .npz", zipped("samples.npz", arr_0=b"not an array")),
    case("images of several sizes", f"{EVALUATE_SAMPLES} --samples pictures", "several sizes",
         lambda: Image.new("RGB", (8, 8)).save("pictures/2.png")),
    case("a PNG of palettes", f"{EVALUATE_SAMPLES} --samples pictures", "mode P",
         lambda: Image.new("P", (16, 16)).save("pictures/2.png")),
    case("a PNG bomb among samples", f"{EVALUATE_SAMPLES} --samples pictures", "0.png cannot be read",
         written("pictures/0.png", png_that_claims(60_000, 60_000))),
    case("a text among samples", f"{EVALUATE_SAMPLES} --samples pictures", "0.png cannot be read",
         written("pictures/0.png", "text")),
    case("a truncated PNG among samples", f"{EVALUATE_SAMPLES} --samples pictures", "0.png cannot be read",
         cut("pictures/0.png", 60)),
    case("a list of other samples", f"{EVALUATE_SAMPLES} --samples pictures", "lacks the label",
         written("pictures/samples.json", "[]")),
    case("a manifest of other samples", EVALUATE_SAMPLES, "samples.manifest.json",
         written("samples.manifest.json", '{"ctf": "samples"}')),
    case("a reference that is missing", f"{EVALUATE_SAMPLES} --reference nowhere", "nowhere: no such"),
    case("a reference of another size", f"{EVALUATE_SAMPLES} --reference r.npz", "sizes must be equal",
         images("r.npz", arr_0=NOISE[:, :32, :32])),
    case("a reference of floats", f"{EVALUATE_SAMPLES} --reference r.npz", "float64 values",
         images("r.npz", arr_0=NOISE * 1.0)),
    case("a reference of no images", f"{EVALUATE_SAMPLES} --reference r.npz", "arr_0", images("r.npz", mu=np.zeros(8))),
    case("a split of a reference without any", f"{EVALUATE_SAMPLES} --split test", "has no splits"),
    case("a reference of pictures of another size", f"{EVALUATE_SAMPLES} --reference pictures --split test",
         "no split"),
    case("unknown features", f"{EVALUATE_SAMPLES} --features vgg", "no features 'vgg'"),
    case("features with a map for weights", f"{EVALUATE_SAMPLES} --weights map.safetensors",
         "not a ctf emoji features"),
    case("features with weights that are missing", f"{EVALUATE_SAMPLES} --weights nowhere", "nowhere: no such"),
    case("features for another size", EVALUATE_SAMPLES, "64 × 64", images(arr_0=NOISE[:, :32, :32])),
    case("features in a file that is missing", f"{EVALUATE_SAMPLES} --features nowhere.py:f", "nowhere.py: no such"),
    case("features in a file that is broken", f"{EVALUATE_SAMPLES} --features f.py:f", "f.py cannot be imported",
         written("f.py", "def f(:\n")),
    case("features in a file that fails", f"{EVALUATE_SAMPLES} --features f.py:f", "f.py cannot be imported",
         written("f.py", "1 / 0\n")),
    case("features of no function", f"{EVALUATE_SAMPLES} --features f.py:g", "no function or class 'g'",
         written("f.py", "f = 1")),
    case("features of another shape", f"{EVALUATE_SAMPLES} --features f.py:f", "return (",
         written("f.py", "def f(images): return images.mean((1, 2, 3))[:2]\n")),
    case("features of words", f"{EVALUATE_SAMPLES} --features f.py:f", "return an array",
         written("f.py", "def f(images): return 'features'\n")),
    case("features of nan", f"{EVALUATE_SAMPLES} --features f.py:f", "hold NaN or infinity",
         written("f.py", "import numpy\ndef f(images): return numpy.full((len(images), 2), numpy.nan)\n")),
    case("features that fail", f"{EVALUATE_SAMPLES} --features f.py:f", "no colours",
         written("f.py", "def f(images): raise RuntimeError('no colours')\n")),
    case("evaluating nothing at a time", f"{EVALUATE_SAMPLES} --batch_size 0", "batch_size 0"),
    case("evaluating on no device", f"{EVALUATE_SAMPLES} --device abacus", "'abacus' cannot be used here"),
    case("an evaluation in a file", f"{EVALUATE_SAMPLES} --out codebook.npy", "is there already and is not a folder"),
    case("neighbours of samples that are missing", f"{NEIGHBOURS} --samples nowhere.npz", "nowhere.npz: no such file"),
    case("neighbours of one image", f"{NEIGHBOURS} --samples s.npz --num 1", "holds one image",
         images("s.npz", arr_0=NOISE[:1])),
    case("neighbours in images of another size", f"{NEIGHBOURS} --reference r.npz", "sizes must be equal",
         images("r.npz", arr_0=NOISE[:, :32, :32])),
    case("neighbours in images that are missing", f"{NEIGHBOURS} --reference nowhere", "nowhere: no such"),
    case("held-out images that are missing", f"{NEIGHBOURS} --held_out nowhere", "nowhere: no such"),
    case("held-out images of another size", f"{NEIGHBOURS} --held_out h.npz", "sizes must be equal",
         images("h.npz", arr_0=NOISE[:, :32, :32])),
    case("held-out images of a split without any", f"{NEIGHBOURS} --held_out_split test", "no split 'test'"),
    case("held-out images that are the reference", f"{NEIGHBOURS} --held_out samples.npz", "another held_out_split"),
    case("no samples to show", f"{NEIGHBOURS} --num 0", "show 1 to 4"),
    case("more samples to show than there are", f"{NEIGHBOURS} --num 5", "num 5: samples.npz holds 4 images"),
    case("finding nothing at a time", f"{NEIGHBOURS} --batch_size 0", "batch_size 0"),
    case("neighbours in a file", f"{NEIGHBOURS} --out codebook.npy", "is there already and is not a folder"),
    case("an unknown size to measure", f"{BENCH_SAMPLING} --sizes [huge]", "model size 'huge' does not exist"),
    case("no batch to measure", f"{BENCH_SAMPLING} --batch_sizes [0]", "batch_sizes 0 must be at least 1"),
    case("no runs", f"{BENCH_SAMPLING} --runs 0", "runs 0 must be at least 1"),
    case("an unknown method", f"{BENCH_SAMPLING} --methods [diffusion]", "diffusion"),
    case("an unknown tokenizer to measure", f"{BENCH_SAMPLING} --tokenizer vq99", "vq99"),
    case("an unknown kind to measure", f"{BENCH_SAMPLING} --kinds [gan]", "kind 'gan' of stage does not exist"),
    case("no steps to measure sampling in", f"{BENCH_SAMPLING} --steps [0]", "steps 0 must be at least 1"),
    case("sampling in more steps than positions", f"{BENCH_SAMPLING} --kinds [any_order] --steps [5]",
         "cannot draw in 5 steps"),
    case("an order that the kind to measure cannot take", f"{BENCH_SAMPLING} --kinds [any_order] --order confidence",
         "cannot draw in the order confidence"),
    case("an unknown order to measure", f"{BENCH_SAMPLING} --order sideways", "sideways"),
    case("negative guidance to measure", f"{BENCH_SAMPLING} --cfg_scale -1", "cfg_scale -1.0"),
    case("guidance of nan to measure", f"{BENCH_SAMPLING} --cfg_scale .nan", "cfg_scale nan"),
    case("as many clusters as tokens to measure", f"{BENCH_SAMPLING} --clusters 24", "24 clusters of 24"),
    case("no clusters to measure", f"{BENCH_SAMPLING} --clusters 0", "0 clusters of 24 codewords"),
    case("no vocabulary to measure", f"{BENCH_SAMPLING} --vocabulary 0", "set vocabulary to that"),
    case("measuring on no device", f"{BENCH_SAMPLING} --device abacus", "'abacus' cannot be used here"),
    case("measuring with an unknown dtype", f"{BENCH_SAMPLING} --dtype float16", "float16"),
    case("measuring no tokens", f"{BENCH_SAMPLING} --layout 0x2", "one row and column in each"),
    case("measuring into a folder", f"{BENCH_SAMPLING} --json empty", "empty is there already and is not a file"),
    case("measuring no steps", f"{BENCH_TRAINING} --steps 0", "steps 0 must be at least 1"),
    case("measuring an unknown stage", f"{BENCH_TRAINING} --stages [medium]", "medium"),
    case("training batches of nothing", f"{BENCH_TRAINING} --batch_size 0", "batch_size 0 must be at least 1"),
    case("training on no device", f"{BENCH_TRAINING} --device abacus", "'abacus'"),
    case("training into a file's inside", f"{BENCH_TRAINING} --json codebook.npy/x", "codebook.npy"),
    case("training of no vocabulary", f"{BENCH_TRAINING} --vocabulary 0", "one codeword per row, not (0, 1)"),
    case("training of less than no clusters", f"{BENCH_TRAINING} --clusters -1", "-1 clusters of 24 codewords"),
    case("a demo where something is", "demo --quick --out pictures", "pictures is not empty"),
    case("a demo in a file", "demo --quick --out codebook.npy", "is there already and is not a folder"),
    case("a demo with a negative seed", "demo --quick --out x --seed -1", "seed -1"),
    case("a demo with a word for a seed", "demo --quick --out x --seed x", "expected int, got x"),
]

# A run writes its settings before its first step.
UNDER_WAY = [
    case("tokens beyond the codebook", COARSE, "range from 24 to 24",
         *(array(f"tokens/tokens-0000{i}.npy", np.full((4, 1, 4), 24, np.uint8)) for i in range(2))),
    case("negative tokens", COARSE, "range from -1 to",
         *(array(f"tokens/tokens-0000{i}.npy", np.full((4, 1, 4), -1, np.int8)) for i in range(2))),
    case("a batch that no memory holds", f"{COARSE} --loop.batch_size {10**15}", "memory"),
    case("training images that are none", TRAIN_TOKENIZER, "unreadable", no_images),
]
# fmt: on


def nan_gpt():
    state = torch.load(GOLDEN / "gpt_mha.pt", weights_only=True)
    state["model"]["norm.weight"][0] = torch.nan
    return state


def half_gpt():
    state = torch.load(GOLDEN / "gpt_mha.pt", weights_only=True)
    return {name: tensor for name, tensor in state["model"].items() if "feed_forward" not in name}


CASES = [*COMMAND, *PLANS, *CODEBOOKS, *PICTURES, *TOKEN_SETS, *TRAINING, *MODELS, *SAMPLES]


@pytest.mark.parametrize(("line", "message", "damage"), CASES)
def test_bad_input_gets_one_line(place, capsys, line, message, damage):
    for change in damage:
        change()
    before = contents()
    assert message in fails(capsys, shlex.split(line))
    after = contents()
    begun = {Path("x"), Path("x/config.json"), Path("x/log.jsonl")}  # of a run that fails in its first step
    assert {path: after.get(path) for path in before} == before
    assert after.keys() - before.keys() <= (begun if line.startswith("train") else set())


def left(before):
    """What a command has added, after making sure that nothing that was there has changed and no part is left over."""
    after = contents()
    assert before.items() <= after.items()
    added = sorted(map(str, after.keys() - before.keys()))
    assert not [name for name in added if ".tmp" in name or ".old" in name]
    return added


@pytest.mark.parametrize(("line", "message", "damage"), UNDER_WAY)
def test_bad_input_met_under_way(place, capsys, line, message, damage):
    for change in damage:
        change()
    before = contents()
    assert message in fails(capsys, shlex.split(line))
    assert left(before) == ["x", "x/config.json", "x/log.jsonl"]


def test_a_run_that_diverges_names_its_last_good_checkpoint(place, capsys):
    before = contents()
    settings = "--loop.steps 60 --loop.log_every 1 --loop.checkpoint_every 1 --optimizer.clip 0"
    line = fails(capsys, shlex.split(f"{COARSE} {settings} --optimizer.learning_rate 1e18"))
    assert "is not finite at step" in line
    named = re.search(r"the last good checkpoint is (\S+):", line)[1]
    assert max(name for name in left(before) if name.startswith("x/checkpoints/")) == named
    assert all(tensor.isfinite().all() for tensor in tensors_of(named)[0].values())
    assert not Path("x/model.safetensors").exists()


def test_a_checkpoint_of_other_settings(place, capsys):
    assert main(shlex.split(COARSE)) == 0
    before = contents()
    for setting, said in (
        ("--size micro", "was trained with size nano, not micro"),
        ("--loop.ema 0.9", "was trained with loop.ema 0.0, not 0.9"),
        ("--kind any_order", "was trained with kind autoregressive, not any_order"),
        ("--coarse_map reseeded_map.safetensors", "does not fit this run's settings"),
    ):
        line = fails(capsys, shlex.split(f"{COARSE} --loop.resume --loop.steps 3 {setting}"))
        assert said in line
        assert left(before) == []


# Disks that take nothing

PARTS = ["x.npz.parts", *(f"x.npz.parts/{name}" for name in ("batch-000000.npz", "batch-000001.npz", "manifest.json"))]

WRITING = {
    "tokenize": TOKENIZE,
    "cluster": CLUSTER,
    "cluster over a map": f"{CLUSTER} --out map.safetensors",
    "train tokenizer": TRAIN_TOKENIZER,
    "train coarse": COARSE,
    "assemble": ASSEMBLE,
    "assemble over a model": f"{ASSEMBLE} --out model",
    "push with a licence": f"{PUSH} --licence mit",
    "sample a folder": SAMPLE,
    "sample an .npz": f"{SAMPLE} --out x.npz",
    "sample a sheet": f"{SAMPLE} --out x.png",
    "complete": COMPLETE,
    "evaluate likelihood": BY_STEPS,
    "evaluate samples": EVALUATE_SAMPLES,
    "evaluate neighbours": NEIGHBOURS,
    "bench sampling": BENCH_SAMPLING,
    "evaluate swap": SWAP,
    "convert llamagen": LLAMAGEN,
    "convert codes": CODES,
    "convert tokens": TOKENS,
    "convert to-codes": TO_CODES,
    "convert half": HALF,
    "convert half over a tokenizer": f"{HALF} --out small_tokenizer.safetensors",
}


@pytest.mark.parametrize("line", WRITING.values(), ids=WRITING)
def test_no_space_for_a_new_name(place, monkeypatch, capsys, line):
    """os.replace, the moment a whole file gets its name, fails."""

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), source)

    monkeypatch.setattr(os, "replace", full)
    before = contents()
    assert "cannot be written (No space left on device): free some space" in fails(capsys, shlex.split(line))
    assert left(before) == []


@pytest.mark.parametrize("line", WRITING.values(), ids=WRITING)
def test_no_space_for_a_byte(place, capsys, line):
    """The system refuses to write, whoever asks: Python, NumPy, Pillow or safetensors, which is Rust."""
    before = contents()
    with largest_file(0):
        assert "cannot be written" in fails(capsys, shlex.split(line))
    assert left(before) == []


@pytest.mark.parametrize(
    ("line", "size", "kept"),
    [
        # Settings and log fit, but no checkpoint; a short log, but no long one.
        (f"{COARSE} --loop.checkpoint_every 1", 3000, ["x", "x/config.json", "x/log.jsonl"]),
        (f"{COARSE} --loop.steps 60 --loop.log_every 1", 3000, ["x", "x/config.json", "x/log.jsonl"]),
        # Stages fit, but no tokenizer; labels, but no codes.
        (ASSEMBLE, 50_000, []),
        (f"{ASSEMBLE} --out model", 50_000, []),
        (TO_CODES, 140, []),
        # Batches fit, but not all images; the batches are there to go on from.
        (f"{SAMPLE} --out x.npz --num 40 --batch_size 20", 5000, PARTS),
    ],
    ids=["a checkpoint", "a long log", "a tokenizer", "a tokenizer over a model", "a code", "all images"],
)
def test_space_that_runs_out(place, capsys, line, size, kept):
    """The same command does the rest once there is space."""
    before = contents()
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
    assert main([*shlex.split(TOKENIZE), f"--images={name}", f"--out={name}/tokens"]) == 0
    assert main([*shlex.split(CLUSTER), f"--out={name}/map.safetensors"]) == 0
    assert main([*shlex.split(BASELINE), f"--tokens={name}/tokens", f"--out={name}/run"]) == 0
    assert main([*shlex.split(ASSEMBLE), f"--out={name}/model"]) == 0
    assert main([*shlex.split(SAMPLE), f"--model={name}/model", f"--out={name}/samples"]) == 0
    for part in ("tokens", "map.safetensors", "run", "model"):
        assert main(["info", "--", f"{name}/{part}"]) == 0
    capsys.readouterr()
    assert "is no token set" in fails(capsys, ["info", "--", name])


def test_names_that_are_not_text(place, capsys):
    """As those of old archives: not UTF-8."""
    name = os.fsdecode(b"\xe4\xff")
    shutil.copytree("pictures", f"{name}/{name}")
    Path(name, name, f"{name}.png").write_bytes(JUNK)
    assert main([*shlex.split(TOKENIZE), "--images", name, "--out", f"{name}/tokens"]) == 0
    assert main(["info", f"{name}/tokens"]) == 0
    assert main([*shlex.split(BASELINE), "--tokens", f"{name}/tokens"]) == 0


def test_names_beyond_what_the_system_takes(place, capsys):
    name, before = "x" * 300, contents()
    for line in (CLUSTER, TOKENIZE, COARSE, ASSEMBLE, SAMPLE, EVALUATE_SAMPLES, SWAP, TOKENS, HALF):
        assert "File name too long" in fails(capsys, [*shlex.split(line), "--out", name])
    for line in (f"{TOKENIZE} --images", f"{COARSE} --tokens", f"{SAMPLE} --model", f"{CLUSTER} --codebook", "info"):
        assert "File name too long" in fails(capsys, [*shlex.split(line), name])
    assert contents() == before


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
    lines = [TOKENIZE, CLUSTER, COARSE, ASSEMBLE, SAMPLE, EVALUATE_SAMPLES, SWAP, LLAMAGEN, CODES, TO_CODES, HALF]
    with tempfile.TemporaryDirectory() as temporary:  # whose way down is open to all, unlike that to tmp_path
        place = Path(temporary) / "place"
        shutil.copytree(good, place)
        (place / "closed").mkdir()
        monkeypatch.chdir(place)
        for line in lines:  # what they import may be as closed
            assert main([*shlex.split(line), "--out", str(tmp_path / line.split(" --")[0])]) == 0
        capsys.readouterr()
        with closed(Path(temporary), place, place / "closed"):
            before = contents()
            for line in lines:
                for out in ("closed/x", "closed/deep/x"):
                    assert "cannot be written" in fails(capsys, [*shlex.split(line), "--out", out])
            assert contents() == before
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
    f"{EVALUATE_SAMPLES} --features slow.py:f --batch_size 1",
    f"{COARSE} --loop.steps 60 --loop.log_every 1 --optimizer.clip 0 --optimizer.learning_rate 1e18",
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
    bad = [*WITH_A_BAR, f"{CLUSTER} --codebook c.pt", f"{SAMPLE} --model nowhere", f"{TOKENIZE} --images p.parquet"]
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
