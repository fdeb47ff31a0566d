"""The README and docs/: blocks of commands and Python run in order, in one folder for each page.

Python that begins with the name of a file is written to that file first. A block with a comment such as
`<!-- needs: data -->` before it needs what is not here, and is only parsed.
"""

import io
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from ctf.commands.main import VERBS, main
from ctf.commands.parser import ALSO
from ctf.errors import ELSEWHERE
from ctf.stages import KINDS

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("small_examples")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MEASURED = sorted({*(ROOT / "benchmarks").glob("*.md")} - {ROOT / "benchmarks" / "README.md"})
MADE = re.compile(r"^\*Made \d{4}-\d\d-\d\d at [0-9a-f]{7}\b.* on .+\.\*$", re.M)
NEEDS = {"data", "gpu", "minutes", "network"}
BLOCK = re.compile(r"^(?:<!-- needs: (?P<needs>\w+) -->\n\s*)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)

#: Options that are added to a command, by its verb, to make it smaller.
STAGE = "--size nano --loop.steps 2 --loop.batch_size 4"
PHOTOS = "--reference photos --split null --cache cache"
SMALLER = {
    "fit": "--image_size 16 --time 1s",
    "train tokenizer": "--image_size 64 --loop.steps 2 --loop.batch_size 4 --model.base_channels 32 "
    "--model.z_channels 32 --model.channel_multipliers [1] --model.patch_size 8 --model.codebook_size 64",
    "train coarse": STAGE,
    "train fine": STAGE,
    "tokenize": "--images photos --split held-out --image_size 64",
    "cluster": "--num_clusters 8",
    "sample": "--num 4",
    "complete": "--num 2",
    "evaluate tokenizer": "--image_size 64",
    "evaluate samples": PHOTOS,
    "evaluate neighbours": f"{PHOTOS} --held_out runs/samples.npz --held_out_split null --num 2",
    "evaluate swap": "--num 2",
    "convert llamagen": "--num_heads 4 --layout 4x4",
    "convert codes": "--codebook_size 64",
}


class Block(NamedTuple):
    line: int
    needs: str | None
    language: str
    text: str


def blocks(page):
    text = page.read_text(encoding="utf-8")
    found = [
        Block(text[: match.start("text")].count("\n"), *match.group("needs", "language", "text"))
        for match in BLOCK.finditer(text)
    ]
    assert 2 * len(found) == len(re.findall(r"^\s*```", text, re.M)), "a block that BLOCK does not see"
    return found


def commands(text):
    """Each command of a shell block as its words."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def arguments(words):
    """The arguments of `ctf`, also under torchrun; None for another program."""
    if "ctf.cli" in words:
        return words[words.index("ctf.cli") + 1 :]
    return words[1:] if words[0] == "ctf" else None


def printed(*words):
    with redirect_stdout(io.StringIO()) as out:
        assert main(list(words)) == 0, shlex.join(words)
    return out.getvalue()


def run_command(words):
    given = arguments(words)
    assert given is not None, f"{words[0]} is not run here: mark the block"
    verb = " ".join(given[: 2 if VERBS[given[0]] else 1])
    # Two images of a class that the bundled model knows, in place of all emoji.
    emoji = verb == "tokenize" and any(word.startswith("emoji") for word in given)
    smaller = "--images few --split null" if emoji else SMALLER.get(verb, "")
    assert main([*given, *shlex.split(smaller)]) == 0, shlex.join(words)
    if "--out" in given and "--dry-run" not in given:
        assert Path(given[given.index("--out") + 1]).exists()


def parse_command(words):
    """Fails if an option does not exist or lacks a value, or if a script does not exist. Runs nothing."""
    given = arguments(words)
    if given is not None:
        printed(*given, "--print_config")
    elif words[0] == "python" and words[1] != "-m":
        assert (ROOT / words[1]).exists(), words[1]


@pytest.mark.filterwarnings("ignore:class 0 is", "ignore:only .* images for .* features")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_run(page, tmp_path, monkeypatch, fill_workplace):
    fill_workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ctf.stages.registry.KINDS", dict(KINDS))  # a page registers one of its own
    names = {}
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        assert block.needs is None or block.needs in NEEDS, f"{where}: needs what?"
        if block.language == "python":
            code = compile("\n" * block.line + block.text, str(page), "exec")
            if file := re.match(r"# (\w+\.py)\n", block.text):
                Path(file[1]).write_text(block.text)
            if block.needs is None:
                exec(code, names)
        elif block.language == "sh":
            for words in commands(block.text):
                (run_command if block.needs is None else parse_command)(words)
        else:
            assert block.language == "", f"{where}: {block.language!r} is not checked"


def test_options_in_sentences_and_tables_exist():
    verbs = [[verb, *word] for verb, group in VERBS.items() for word in ([[name] for name in group] or [[]])]
    helps = [printed(*words, option) for words in verbs for option in ("--help", "--help-all")]
    known = {name.replace("-", "_") for text in helps for name in re.findall(r"--([\w.-]+)", text)}
    known |= {name.split(".")[-1] for name in known} | {*ALSO}
    for page in PAGES:
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        code = [span for span in re.findall(r"`[^`\n]+`", text) if not span.startswith("`python")]
        options = re.findall(r"--([\w.-]+)", " ".join(code))
        asked = {name.replace("-", "_").removeprefix("fine_") for name in options}
        assert asked - known == set(), page.name


def test_messages_in_troubleshooting_are_in_the_source():
    """Code in the first column is a message that readers search for; "…" stands for what differs."""
    sources = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py")))
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)  # a message that is broken over lines
    rows = re.findall(
        r"^\| `([^`]+ [^`]+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), re.M
    )
    assert len(rows) > 20
    missing = [part for row in rows for part in row.split("…") if part.strip() not in sources]
    assert missing == []


def test_the_table_for_users_of_diffusers_has_every_name():
    text = (ROOT / "docs" / "sampling.md").read_text(encoding="utf-8")
    told = set(re.findall(r"\w+", " ".join(re.findall(r"^\|([^|]*)\|", text, re.M))))
    assert {*ELSEWHERE} - told == {"cfg"}  # which only the command line meets


def test_links_of_the_readme_exist():
    """Links of docs/ are checked when the site is built."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", MEASURED, ids=lambda page: page.stem)
def test_measured_tables_say_when_they_were_made(page):
    """A line such as "*Made 2026-11-24 at 5fa12d2 on one thread.*" stands above each table, except tables of claims."""
    *above, _ = re.split(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), flags=re.M)
    assert above
    undated = [text[-200:] for text in above if not (MADE.search(text) or text.endswith("\nExpectations:\n\n"))]
    assert undated == []


def output_types(cell):
    """Types of a cell's outputs, without what it prints: progress bars appear only in slow cells."""
    return [output.output_type for output in cell.outputs if output.output_type != "stream"]


def test_the_notebook_runs_and_holds_its_outputs(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="pip install -e '.[docs]'")
    nbformat = pytest.importorskip("nbformat")
    path = ROOT / "docs" / "tour.ipynb"
    assert path.stat().st_size < 500_000
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in cells), "a cell without output: `make notebook`"
    stored = [output_types(cell) for cell in cells]
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert [output_types(cell) for cell in cells] == stored
