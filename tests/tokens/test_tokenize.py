"""Tokenizing folders of small PNG files, some damaged, with a tiny random tokenizer."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from image_files import tar
from PIL import Image
from same import contents

from ctf.errors import InputError
from ctf.files import read_json, write_json
from ctf.images import ImageSet, open_images, ten_crop, ten_shift, to_tensor
from ctf.layout import Layout
from ctf.tokenizer import TokenizerConfig, VQTokenizer
from ctf.tokens import TokenSet, tokenize_images

SIZE = 16
CROPS = ["top-left", "top-right", "bottom-left", "bottom-right", "center"]
DAMAGED = (0, 5, 8, 9, 10, 11, 21, 22)  # a whole batch of four among them, and the last two images


@pytest.fixture(scope="module")
def tokenizer() -> VQTokenizer:
    torch.manual_seed(0)
    tiny = TokenizerConfig(
        base_channels=32,
        channel_multipliers=(1, 1),
        encoder_blocks=1,
        decoder_blocks=1,
        z_channels=8,
        codebook_size=64,
        codebook_dim=4,
        patch_size=4,
    )
    tokenizer = VQTokenizer(tiny)
    with torch.no_grad():  # codewords where features are, so that images have different tokens
        tokenizer.quantizer.weight.copy_(tokenizer.features(2 * torch.rand(16, 3, SIZE, SIZE) - 1).flatten(0, 1))
    return tokenizer.train()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(23):
        path = folder / f"{'ab'[i // 12]}" / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(256, size=(20, 25, 3), dtype=np.uint8)).save(path)
        if i in DAMAGED:
            path.write_bytes(path.read_bytes()[:100])
    return str(folder)


def tokenize(images: ImageSet, tokenizer: VQTokenizer, folder: Path, **changes) -> TokenSet:
    return tokenize_images(
        images, tokenizer, folder, **({"batch_size": 4, "shard_size": 4, "progress": False} | changes)
    )


def readable(source: str, size: int | None = None) -> list[np.ndarray]:
    images = open_images(source, size=SIZE)
    return [images.read(i, size) for i in range(23) if i not in DAMAGED]


def tokens_alone(tokenizer: VQTokenizer, view: np.ndarray) -> list[int]:
    return tokenizer.encode(to_tensor(view[None].copy()))[0].tolist()


@pytest.mark.parametrize(
    ("augmentation", "views", "batch_size", "names"),
    [
        ("none", lambda image: [image], 5, ["none"]),
        ("flip", lambda image: [image, image[:, ::-1]], 4, ["none", "flip"]),
        ("ten-shift", ten_shift, 4, [*CROPS, *(f"{crop}/flip" for crop in CROPS)]),
    ],
)
def test_views_are_encoded_as_if_alone(source, tokenizer, tmp_path, augmentation, views, batch_size, names):
    how = {"augmentation": augmentation, "batch_size": batch_size}
    found = tokenize(open_images(source, size=SIZE), tokenizer, tmp_path, **how)
    expected = [[tokens_alone(tokenizer, view) for view in views(image)] for image in readable(source)]
    assert len({str(tokens) for image in expected for tokens in image}) >= 15 * min(len(names), 2)
    assert torch.cat(list(found.blocks())).tolist() == expected
    assert found.augmentations == names
    assert found.layout == Layout.square(2)
    assert found.labels.tolist() == [0] * 6 + [1] * 9
    assert found.index.skipped == [f"{'ab'[i // 12]}/{i:02}.png" for i in DAMAGED]
    found.check_codebook(tokenizer.codebook)


def test_ten_crop_at_two_ranges(source, tokenizer, tmp_path):
    images = open_images(source, size=SIZE)
    found = tokenize(images, tokenizer, tmp_path, augmentation="ten-crop", crop_ranges=(1.25, 1.1))
    expected = [
        [tokens_alone(tokenizer, view) for wide in pair for view in ten_crop(wide, SIZE)]
        for pair in zip(readable(source, 20), readable(source, 17), strict=True)
    ]
    assert torch.cat(list(found.blocks())).tolist() == expected
    assert found.augmentations == [f"{r}/{crop}{flip}" for r in (1.25, 1.1) for flip in ("", "/flip") for crop in CROPS]


@pytest.mark.parametrize("world", [2, 3, 9])
def test_processes_share_the_images(source, tokenizer, tmp_path, world):
    tokenize(open_images(source, size=SIZE), tokenizer, tmp_path / "whole")
    for rank in reversed(range(world)):  # the first one would wait for the others
        images = open_images(source, size=SIZE)
        images.read = Mock(wraps=images.read)
        made = tokenize(images, tokenizer, tmp_path / "shared", rank=rank, world=world)
        assert (made is None) == (rank > 0)
        own = [i for shard in range(rank, 6, world) for i in range(4 * shard, min(4 * shard + 4, 23))]
        assert sorted(call.args[0] for call in images.read.call_args_list) == own
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


def test_processes_share_shards_at_a_url(source, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("CTF_CACHE", str(tmp_path / "cache"))
    for letter in "ab":
        paths = sorted((Path(source) / letter).iterdir())
        label = str("ab".index(letter)).encode()
        shard = tar([{"png": path.read_bytes(), "cls": label} for path in paths], letter)
        (tmp_path / f"{letter}.tar").write_bytes(shard)
    local = tokenize(open_images(source, size=SIZE), tokenizer, tmp_path / "local")
    url = f"file://{tmp_path}/*.tar"
    whole = tokenize(open_images(url, size=SIZE), tokenizer, tmp_path / "whole")
    assert torch.cat(list(whole.blocks())).tolist() == torch.cat(list(local.blocks())).tolist()
    assert (whole.labels.tolist(), len(whole.index.skipped)) == (local.labels.tolist(), len(DAMAGED))
    for rank in (2, 1, 0):
        tokenize(open_images(url, size=SIZE), tokenizer, tmp_path / "shared", rank=rank, world=3)
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


def test_bytes_that_do_not_come_end_the_work(source, tokenizer, tmp_path):
    """They are not left out like corrupt images, and the same command goes on from there."""
    tokenize(open_images(f"file://{source}", size=SIZE), tokenizer, tmp_path / "whole")
    images, away = open_images(f"file://{source}", size=SIZE), Path(source) / "b" / "14.png"
    away.rename(tmp_path / "14.png")
    with pytest.raises(InputError, match=r"14\.png cannot be read \(FileNotFoundError"):
        tokenize(images, tokenizer, tmp_path / "set")
    (tmp_path / "14.png").rename(away)
    with pytest.raises(InputError, match="incomplete"):
        TokenSet.open(tmp_path / "set")
    tokenize(images, tokenizer, tmp_path / "set")
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def test_torchrun(source, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.safetensors")
    whole = tokenize(open_images(source, size=SIZE), tokenizer, tmp_path / "whole", augmentation="ten-shift")
    line = f"tokenize --images {source} --image_size {SIZE} --tokenizer {tmp_path}/tokenizer.safetensors --device cpu"
    line += f" --augmentation ten-shift --batch_size 4 --shard_size 4 --out {tmp_path}/shared"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3", "-m", "ctf.cli"]
    done = subprocess.run([*torchrun, *line.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")
    said, left_out = done.stdout.splitlines()  # by one of the processes
    assert said.endswith(str(whole).removeprefix(str(tmp_path / "whole")))
    assert (
        left_out == "Left out 8 of 23 images as unreadable: a/00.png, a/05.png, a/08.png, a/09.png, a/10.png and 3 more"
    )


def test_a_kill_at_any_moment_and_another_number_of_processes(source, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.safetensors")
    whole = tokenize(open_images(source, size=SIZE), tokenizer, tmp_path / "whole")
    program = Path(__file__).parents[1] / "killed_processes.py"
    line = [sys.executable, program, "tokens", source, tmp_path / "tokenizer.safetensors", tmp_path / "tries"]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tries = list((tmp_path / "tries").iterdir())
    # Two indexes, three files for each shard, a record for that of which nothing is readable, and the last one's end.
    assert len(tries) == 2 + 3 * len(whole.index.shards) + 1 + 6 + 1
    assert all(contents(folder) == contents(tmp_path / "whole") for folder in tries)


def test_a_class_without_a_readable_image_is_named(tokenizer, tmp_path):
    for name, colour in (("cat", 0), ("dog", 99)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (SIZE, SIZE), (colour, 0, 0)).save(tmp_path / name / "0.png")
    (tmp_path / "dog" / "0.png").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="not one image is readable of the classes dog"):
        tokenize(open_images(str(tmp_path), size=SIZE), tokenizer, tmp_path / "tokens")


def test_class_names_of_older_sets_have_one_unicode_form(source, tokenizer, tmp_path):
    tokenize(open_images(source, size=SIZE), tokenizer, tmp_path / "set")
    index = read_json(tmp_path / "set" / "index.json")
    write_json(tmp_path / "set" / "index.json", index | {"class_names": ["cafe\u0301", "b"]})  # as macOS spells it
    assert TokenSet.open(tmp_path / "set").class_names == ["café", "b"]


def test_the_tokenizer_is_not_changed(source, tokenizer, tmp_path):
    tokenize(open_images(source, size=SIZE), tokenizer, tmp_path)
    assert tokenizer.training
    assert all(parameter.requires_grad for parameter in tokenizer.parameters())


def test_another_tokenizer_is_refused(source, tokenizer, tmp_path):
    tokenize(open_images(source, size=SIZE), tokenizer, tmp_path)
    torch.manual_seed(1)
    with pytest.raises(InputError, match=r"codebook is '.*' there and '.*' here"):
        tokenize(open_images(source, size=SIZE), VQTokenizer(tokenizer.config), tmp_path)


@pytest.mark.parametrize("ranges", [(), (1.1, 0.9), (5.0,), (float("nan"),)])
def test_crop_ranges(source, tokenizer, tmp_path, ranges):
    with pytest.raises(InputError, match="crop ranges"):
        tokenize(open_images(source, size=SIZE), tokenizer, tmp_path, augmentation="ten-crop", crop_ranges=ranges)


def test_an_augmentation_of_another_name_is_refused(source, tokenizer, tmp_path):
    with pytest.raises(
        InputError, match="augmentation 'ten_crop' does not exist: choose one of none, flip, ten-shift, ten-crop"
    ):
        tokenize(open_images(source, size=SIZE), tokenizer, tmp_path, augmentation="ten_crop")


# Files that change


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (SIZE, SIZE), (40 * i, 0, 0)).save(folder / f"{i}.bmp")  # all of one size
    (folder / "4.bmp").write_bytes(b"damaged")
    return folder


def replaced(path: Path) -> None:
    stat = path.stat()
    Image.new("RGB", (SIZE, SIZE), "blue").save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1000))


CHANGES = {
    "repaired": lambda folder: replaced(folder / "4.bmp"),
    "replaced": lambda folder: replaced(folder / "1.bmp"),
    "renamed": lambda folder: (folder / "0.bmp").rename(folder / "9.bmp"),
}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_images_that_changed_are_another_set(pictures, tokenizer, tmp_path, monkeypatch, change, finished):
    images = open_images(str(pictures), size=SIZE)
    if not finished:
        monkeypatch.setattr("ctf.tokens.tokenize.TokenWriter.close", Mock(side_effect=KeyboardInterrupt))
    with suppress(KeyboardInterrupt):
        tokenize(images, tokenizer, tmp_path / "tokens", augmentation="none")
    monkeypatch.undo()
    change(pictures)
    with pytest.raises(
        InputError, match=r"pictures as it was: .* Choose another folder, or delete .*tokens to tokenize"
    ):
        tokenize(open_images(str(pictures), size=SIZE), tokenizer, tmp_path / "tokens", augmentation="none")


def test_unchanged_images_are_not_read_again(pictures, tokenizer, tmp_path, monkeypatch):
    images = open_images(str(pictures), size=SIZE)
    first = tokenize(images, tokenizer, tmp_path / "tokens", augmentation="none")
    monkeypatch.setattr(images, "batches", Mock(side_effect=AssertionError))
    assert tokenize(images, tokenizer, tmp_path / "tokens", augmentation="none").index == first.index
    write_json(tmp_path / "tokens" / "index.json", read_json(tmp_path / "tokens" / "index.json") | {"files": None})
    assert len(tokenize(images, tokenizer, tmp_path / "tokens", augmentation="none")) == 5  # of an earlier version


def test_the_first_process_says_which_files_they_are(pictures, tokenizer, tmp_path, monkeypatch):
    """Others may read copies on other machines, whose dates differ."""
    images, how = open_images(str(pictures), size=SIZE), {"augmentation": "none", "world": 2, "shard_size": 2}
    tokenize(images, tokenizer, tmp_path / "tokens", rank=1, **how)
    assert read_json(tmp_path / "tokens" / "index.json")["files"] is None
    monkeypatch.setattr(images, "batches", Mock(side_effect=KeyboardInterrupt))  # killed before its first shard
    with pytest.raises(KeyboardInterrupt):
        tokenize(images, tokenizer, tmp_path / "tokens", rank=0, **how)
    assert read_json(tmp_path / "tokens" / "index.json")["files"] == images.fingerprint()
