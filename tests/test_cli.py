import io
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ctf.codebook import cluster_codebook
from ctf.commands.main import ESSENTIALS, VERBS, main
from ctf.commands.parser import NEEDS
from ctf.tokenizer.registry import BUNDLED
from ctf.tokens import write_token_set

pytestmark = pytest.mark.usefixtures("small_examples")

#: Every verb as its words: ("demo",), ("train", "coarse"), …
ALL = [(verb, *word) for verb, group in VERBS.items() for word in ([(name,) for name in group] or [()])]


def printed(*arguments):
    """What a command that ends well prints."""
    with redirect_stdout(io.StringIO()) as out:
        assert main(list(arguments)) == 0
    return out.getvalue()


def example(words):
    """The example of a verb's help, as a shell splits it, without "ctf"."""
    text = printed(*words, "--help").split("example:\n", 1)[1]
    program, *arguments = shlex.split(text.replace("\\\n", " "))
    assert program == "ctf"
    return arguments


# Help


@pytest.mark.parametrize("words", [[], ["train"], ["evaluate"], ["bench"], ["convert"]], ids=str)
def test_groups_list_their_verbs(words):
    text = printed(*words, "--help")
    assert text == printed(*words, "-h") == printed(*words) == printed(*words, "--help-all")
    assert "example:\n  ctf" in text
    assert all(f"\n  {name}" in text for name in (VERBS[words[0]] if words else VERBS))


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_verb_has_help_with_an_example_of_itself(words):
    assert example(words)[: len(words)] == list(words)


@pytest.mark.parametrize("words", [words for words in ALL if words[0] in ESSENTIALS], ids=" ".join)
def test_help_shows_essential_options_and_help_all_shows_all(words):
    short, full = (options_in(printed(*words, option)) for option in ("--help", "--help-all"))
    essential = {*ESSENTIALS[words[0]].split(), "help", "help_all"}
    required = set(re.findall(r"--(\w+) …", printed(*words, "--help").splitlines()[0]))
    assert short == (full | {"help_all"}) & (essential | required)
    assert printed("help", *words) == printed(*words, "-h") == printed(*words, "--help")


def options_in(text):
    """The options that a help lists, each at the start of its line."""
    return {name for line in text.splitlines() for name in re.findall(r"^  (?:-h, )?--([\w.]+)", line)}


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_option_is_explained(words):
    """A description stands before the type that argparse adds: `--steps STEPS  (type: int)` says nothing."""
    options = re.split(r"^(?=  -)", printed(*words, "--help-all").partition("\noptions:")[0], flags=re.M)[1:]
    said = [re.sub(r"^  \S+(?: \S+)*(?:\n +|  +)", "", option) for option in options]
    assert [option for option, text in zip(options, said, strict=True) if text.startswith("(")] == []


def test_every_essential_option_exists():
    for group, names in ESSENTIALS.items():
        known = {name for words in ALL if words[0] == group for name in options_in(printed(*words, "--help-all"))}
        assert {*names.split()} - known - {"path", "name"} == set(), group


def test_options_that_need_another_exist_beside_it():
    helps = [options_in(printed(*words, "--help-all")) for words in ALL]
    for name, condition in NEEDS.items():
        assert any({name, condition.partition("=")[0]} <= known for known in helps), name


def test_help_imports_nothing_heavy():
    program = f"""
import sys
from ctf.cli import main
for words in {[["--help"], ["train", "--help"], ["--version"], *([*words, "--help"] for words in ALL)]}:
    assert main(words) == 0
print(sorted({{"torch", "numpy", "sklearn", "datasets", "PIL"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_version():
    import ctf

    assert printed("--version") == f"ctf {ctf.__version__}\n"


# Examples

TINY = ["--sizes", "[nano]", "--layout", "2x2"]
#: Changes that only make the example smaller, or name files that stand in for LlamaGen's.
SMALLER = {
    ("tokenize",): ["--split", "test", "--augmentation", "none"],
    ("evaluate", "likelihood"): ["--tokens", "runs/tokens/train"],
    ("info",): ["--json"],
    ("fit",): ["--image_size", "16", "--time", "1s"],
    ("evaluate", "tokenizer"): ["--images", "pictures", "--splits", "null"],
    ("evaluate", "samples"): ["--reference", "pictures", "--split", "null", "--cache", "cache"],
    ("evaluate", "neighbours"): [
        *["--reference", "pictures", "--split", "null", "--held_out", "runs/samples", "--held_out_split", "null"],
        *["--num", "2", "--cache", "cache"],
    ],
    ("train", "tokenizer"): ["--split", "test", "--loop.steps", "2"],
    ("bench", "sampling"): [*TINY, *shlex.split("--batch_sizes [1] --fine_size nano --tokenizer emoji --runs 1")],
    ("bench", "training"): [*TINY, "--batch_size", "2", "--steps", "1"],
    ("evaluate", "swap"): ["--num_clusters", "[32]", "--num", "2"],
    ("convert", "llamagen"): ["--num_heads", "4", "--layout", "4x4"],
}
#: Each after those whose output it reads, so push comes last. CI runs the demo, tests/app the page.
ORDER = sorted((" ".join(words) for words in ALL if words[0] not in ("demo", "app")), key=lambda verb: verb == "push")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, fill_workplace):
    folder = tmp_path_factory.mktemp("examples")
    fill_workplace(folder)
    return folder


@pytest.mark.parametrize("verb", ORDER)
def test_examples_run(workplace, hub, monkeypatch, verb):
    """In order: an example reads what an earlier one wrote, as the reader who types them in does."""
    monkeypatch.chdir(workplace)
    words = tuple(verb.split())
    arguments = example(words) + SMALLER.get(words, [])
    text = printed(*arguments)
    if "--out" in arguments:
        assert Path(arguments[arguments.index("--out") + 1]).exists()
    elif words[0] in ("evaluate", "info"):
        assert json.loads(text)


# ctf info


def test_info_shows_a_model_as_a_table():
    text = printed("info", "emoji")
    assert re.search(r"^coarse +autoregressive +class label +512 clusters +cfg_scale 2.5, .* 2\.9 M$", text, re.M)
    assert re.search(r"^images +64 × 64 pixels$", text, re.M)
    assert "`ctf info emoji --classes WORD` searches them" in text
    assert max(map(len, text.splitlines())) <= 120
    assert json.loads(printed("info", "emoji", "--json"))["metrics"]


def test_info_searches_classes():
    assert printed("info", "emoji", "--classes", "NOTO hear") == "351  noto heart\n"
    assert json.loads(printed("info", "emoji", "--classes", "noto heart", "--json")) == {"351": "noto heart"}


def test_info_shows_sizes_and_files(tokens):
    assert re.search(r"^B +12 +12 +768$", printed("info", "sizes"), re.M)
    assert re.search(r"^images_per_class.min +4$", printed("info", tokens), re.M)
    assert "config.codebook_size" in printed("info", str(BUNDLED["photos"] / "tokenizer.safetensors"))


# Settings


def settings(*arguments):
    return yaml.safe_load(printed(*arguments, "--print_config"))


def test_the_command_line_overrides_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("out: there\ntokens: t\nsize: micro\nloop:\n  batch_size: 3\n  steps: 7\n")
    values = settings("train", "baseline", "--config", str(file), "--size", "mini", "--loop.steps", "9")
    assert (values["out"], values["size"], values["loop"]["batch_size"], values["loop"]["steps"]) == (
        "there",
        "mini",
        3,
        9,
    )
    assert values["loop"]["epochs"] == 300  # the default of what neither says


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_printed_settings_read_back_are_the_same(tmp_path, words):
    arguments = example(words)
    text = printed(*arguments, "--print_config")
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    assert printed(*words, "--config", str(file), "--print_config") == text


def test_a_run_keeps_settings_that_make_it_again(tmp_path, tokens):
    common = ["--tokens", tokens, "--size", "nano", "--loop.steps", "1", "--loop.batch_size", "2"]
    printed("train", "baseline", *common, "--out", str(tmp_path / "run"))
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    said = settings("train", "baseline", *common, "--out", str(tmp_path / "run"))
    assert kept == {name: said[name] for name in kept}
    assert said.keys() - kept.keys() == {"rounds", "drop_path"}  # of other kinds
    assert settings("train", "baseline", "--config", str(tmp_path / "run" / "config.json"), "--rounds", "null") == said
    printed("train", "baseline", "--config", str(tmp_path / "run" / "config.json"), "--out", str(tmp_path / "again"))
    first, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "again"))
    assert first == again


def test_a_run_that_started_from_weights_keeps_settings_that_make_it_again(tmp_path, tokens):
    run, begun, again = (str(tmp_path / name) for name in ("run", "begun", "again"))
    common = ["--tokens", tokens, "--size", "nano", "--loop.steps", "1", "--loop.batch_size", "2"]
    printed("train", "baseline", *common, "--out", run)
    printed("train", "baseline", *common, "--start_from", run, "--out", begun)
    assert "started" in json.loads(Path(begun, "config.json").read_text())
    printed("train", "baseline", "--config", f"{begun}/config.json", "--out", again)
    assert Path(begun, "model.safetensors").read_bytes() == Path(again, "model.safetensors").read_bytes()
    assert "baseline" in printed(
        "plan", f"{begun}/config.json", "--stages", "baseline", "--num_clusters", "4", "--gpus", "1"
    )
    assert "started" not in printed("train", "baseline", "--help-all")


@pytest.mark.parametrize(
    ("given", "value"),
    [([], False), (["--quick"], True), (["--quick", "true"], True), (["--quick=false"], False)],
    ids=str,
)
def test_flags_need_no_value(given, value):
    assert settings("demo", *given, "--seed", "3") == {"out": "runs/demo", "quick": value, "seed": 3}


@pytest.mark.parametrize(
    ("given", "group", "name", "value"),
    [
        ("--seed 3", "loop", "seed", 3),
        ("--dtype bfloat16", "loop", "precision", "bfloat16"),
        ("--batch-size=3", "loop", "batch_size", 3),
        ("--resume", "loop", "resume", True),
        ("--lr 0.1", "optimizer", "learning_rate", 0.1),
        ("--betas 0.9 0.99", "optimizer", "betas", [0.9, 0.99]),
        ("--optimizer.betas 0.9 0.95 --loop.milestones 10 20", "loop", "milestones", [10, 20]),
        ("--loop.resume --size nano", "loop", "resume", True),
    ],
)
def test_an_option_may_leave_out_its_group(given, group, name, value):
    assert settings("train", "coarse", "--out", "x", "--tokens", "t", *given.split())[group][name] == value


def test_precision_is_dtype_where_a_verb_says_so():
    assert settings("sample", "--out", "x", "--precision", "bfloat16")["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("given", "sampling"),
    [
        ([], None),
        (["--temperature", "0.9"], {"temperature": 0.9}),
        (["--fine_top_k", "5", "--cfg_scale=3"], {"fine_top_k": 5, "cfg_scale": 3}),
        (["--sampling.top_p", "0.8", "--middle_temperature", "1"], {"top_p": 0.8, "middle_temperature": 1}),
    ],
    ids=str,
)
def test_sampling_settings_are_options_by_their_names(given, sampling):
    assert settings("sample", "--out", "x", "--seed", "3", *given)["sampling"] == sampling


@pytest.mark.parametrize("labels", ["[3, 7, noto face-smiling]", "[3]", "[noto animals]"])
def test_labels_are_numbers_or_names(labels):
    assert settings("sample", "--out", "x", "--labels", labels)["labels"] == yaml.safe_load(labels)


@pytest.mark.parametrize("option", [["--labels", "{}"], ["--labels={}"]], ids=len)
def test_labels_are_as_they_are_typed(option):
    """YAML would read False, None, 1000.0, 7, 1000, a date, and the name 1 as a number."""
    text = """[no, ~, 1e3, 007, 1_000, 2024-01-01, "1", '2', 3, "é, 😀"]"""
    labels = ["no", "~", "1e3", "007", "1_000", "2024-01-01", "1", "2", 3, "é, 😀"]
    assert settings("sample", "--out", "x", *(word.format(text) for word in option))["labels"] == labels


@pytest.mark.parametrize(
    ("given", "option", "value"),
    [
        ("sample --out x --labels 3 7", "labels", [3, 7]),
        ("sample --out x --labels 'noto heart'", "labels", ["noto heart"]),
        ("sample --out x --labels=no", "labels", ["no"]),
        ("sample --labels 3 no ~ 1e3 007 1_000 -1 '' --out x", "labels", [3, "no", "~", "1e3", "007", "1_000", -1, ""]),
        ("sample --out x --labels [3, noto heart]", "labels", [3, "noto heart"]),
        ("sample --out x --labels '[a] b'", "labels", ["[a] b"]),
        ("sample --out x --labels null", "labels", None),
        ("assemble --out x --tokens c --stages runs/coarse 1 --tokenizer t", "stages", ["runs/coarse", "1"]),
        ("evaluate tokenizer --splits train test", "splits", ["train", "test"]),
        ("evaluate likelihood --tokens t --steps 1 4 16 --order halton", "steps", [1, 4, 16]),
        ("evaluate likelihood --tokens t --steps 4", "steps", [4]),
        ("complete --out x --image i --labels 1 --region 0 .5 1 1e0", "region", [0.0, 0.5, 1.0, 1.0]),
        ("bench sampling --systems baseline coarse --sizes B", "systems", ["baseline", "coarse"]),
        ("reproduce table1 --seeds -1 2", "seeds", [-1, 2]),
        ("plan x --stages coarse fine", "stages", ["coarse", "fine"]),
    ],
    ids=str,
)
def test_lists_are_words(given, option, value):
    assert settings(*shlex.split(given))[option] == value


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ("plan --stages coarse fine c.yaml", {"stages": ["coarse", "fine"], "path": "c.yaml"}),
        ("plan --stages coarse fine c.yaml --gpus 8", {"stages": ["coarse", "fine"], "path": "c.yaml", "gpus": 8}),
        ("plan --stages '[coarse]' c.yaml", {"stages": ["coarse"], "path": "c.yaml"}),
        ("reproduce --seeds 0 1 table1 --steps 3", {"seeds": [0, 1], "name": "table1", "steps": 3}),
        ("reproduce --dry-run table1", {"dry_run": True, "name": "table1"}),
        ("reproduce --dry-run false table1", {"dry_run": False, "name": "table1"}),
        ("plan c.yaml --shard", {"path": "c.yaml", "shard": True}),
        ("plan --shard c.yaml", {"path": "c.yaml", "shard": True}),
        ("plan --shard null c.yaml", {"path": "c.yaml", "shard": None}),
    ],
    ids=str,
)
def test_a_list_or_a_flag_leaves_the_verb_its_positional_argument(given, values):
    assert values.items() <= settings(*shlex.split(given)).items()


@pytest.mark.parametrize("text", ["2x3", "[2, 3]", "[[2, 3]]", "2×3"])
def test_a_layout_is_text_or_a_list(text, tmp_path):
    assert settings("bench", "sampling", "--layout", text)["layout"] == "2x3"
    (tmp_path / "c.yaml").write_text(f"layout: {text}\ncodebook_size: 99\n", encoding="utf-8")
    read = settings("bench", "sampling", "--config", str(tmp_path / "c.yaml"))
    assert (read["layout"], read["codebook_size"]) == ("2x3", 99)


def test_help_shows_lists_as_words():
    assert "--loop.milestones MILESTONES ..." in printed("train", "baseline", "--help-all")


def test_paths_are_as_they_are_typed():
    words = ["--tokenizer", "emoji", "--stages", "[1, no]", "--tokens", "007", "--out", "1e3"]
    values = settings("assemble", *words)
    assert (values["stages"], values["tokens"], values["out"]) == (["1", "no"], "007", "1e3")


# Under way


@pytest.fixture
def tokens(tmp_path):
    """A token set of K = 16 with a codebook of its own."""
    drawn = np.random.default_rng(0).integers(0, 16, (8, 1, 4))
    codebook = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "codebook.npy", codebook.numpy())
    cluster_codebook(codebook, 4).save(tmp_path / "map.safetensors")
    write_token_set(tmp_path / "tokens", drawn, np.arange(8) % 2, 16, codebook=codebook)
    return str(tmp_path / "tokens")


def test_a_corrupt_image_is_left_out_and_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for i in range(3):
        Image.new("RGB", (64, 64), (80 * i, 0, 0)).save(f"pictures/{i}.png")
    Path("pictures/1.png").write_bytes(Path("pictures/1.png").read_bytes()[:60])
    note = "Left out 1 of 3 images as unreadable: 1.png"
    assert note in printed("tokenize", "--images", "pictures", "--out", "tokens")
    assert json.loads(printed("evaluate", "tokenizer", "--images", "pictures"))["images"] == 2
    assert capsys.readouterr().err.splitlines()[-1] == note


def test_a_reader_that_has_seen_enough():
    program = [sys.executable, "-m", "ctf.cli", "info", "emoji"]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()  # as `head` does
    assert process.stderr.read() == ""
    assert process.wait() == 128 + signal.SIGPIPE


# Ctrl-C


def test_ctrl_c_leaves_a_checkpoint_to_continue_from(tmp_path, tokens):
    run = tmp_path / "run"
    arguments = ["train", "coarse", "--tokens", tokens, "--coarse_map", str(tmp_path / "map.safetensors")]
    arguments += ["--size", "micro", "--out", str(run), "--loop.batch_size", "2", "--loop.log_every", "1"]
    program = [sys.executable, "-m", "ctf.cli", *arguments, "--loop.steps", "1000000"]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = run / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert str(checkpoint) in err
    assert not (run / "model.safetensors").exists()

    done = int(checkpoint.stem.removeprefix("step-"))
    printed(*arguments, "--loop.steps", str(done + 2), "--loop.resume")
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(1, done + 3))
    assert (run / "model.safetensors").exists()
