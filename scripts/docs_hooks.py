"""Hooks of `mkdocs.yml`: they add the pages of benchmarks/, the notebook and the help of all commands to the site."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

from ctf.commands.main import VERBS

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NOTEBOOK, NOTEBOOK_PAGE, COMMAND = "tour.ipynb", "tour.md", "api/command.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav.append({"Benchmarks": [f"benchmarks/{path.name}" for path in benchmarks()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in benchmarks():
        files.append(File.generated(config, f"benchmarks/{path.name}", abs_src_path=str(path)))
    for name, content in notebook_pages(Path(config.docs_dir) / NOTEBOOK):
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Adapt links of the repository to the site, where benchmarks/ lies within docs/."""
    place = page.file.src_uri
    if place == COMMAND:
        markdown += "".join(verb_sections())
    if place == NOTEBOOK_PAGE:
        return f"{markdown}\n[Download this notebook]({NOTEBOOK})\n"
    if place.startswith("benchmarks/"):
        return markdown.replace("](../docs/", "](../")
    markdown = markdown.replace(f"]({NOTEBOOK})", f"]({NOTEBOOK_PAGE})")
    return re.sub(r"\]\((\.\./)+benchmarks/", lambda found: found[0].replace("../", "", 1), markdown)


def benchmarks() -> list[Path]:
    """The pages of benchmarks/, its README.md first."""
    return sorted(BENCHMARKS.glob("*.md"), key=lambda path: (path.name != "README.md", path.name))


def notebook_pages(path: Path) -> Iterator[tuple[str, str | bytes]]:
    """The notebook as a Markdown page, and its pictures."""
    notebook = nbformat.read(path, as_version=4)
    names = {"unique_key": path.stem, "output_files_dir": f"{path.stem}_files"}
    body, resources = MarkdownExporter().from_notebook_node(notebook, resources=names)
    yield NOTEBOOK_PAGE, body
    yield from resources["outputs"].items()


def verb_sections() -> Iterator[str]:
    """The help of each verb, which is the docstring of a function of `ctf.commands`."""
    for verb, group in VERBS.items():
        for name in group or [verb]:
            title = f"ctf {verb} {name}" if group else f"ctf {verb}"
            options = f'{{heading: "{title}", toc_label: "{title}", separate_signature: false, show_signature: false}}'
            yield f"\n::: ctf.commands.{verb}.{name.replace('-', '_')}\n    options: {options}\n"
