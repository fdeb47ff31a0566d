"""The layout of the page, and which of its parts calls what."""

from __future__ import annotations

import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from importlib.resources import files
from typing import Any

import gradio as gr

from ctf.app.asked import LARGEST_SEED, MOST_IMAGES, Asked, Control
from ctf.app.pictures import MOST_BYTES
from ctf.app.studio import Studio, stage_in_words
from ctf.errors import InputError

#: Requests that wait, of all visitors; further ones are told that the queue is full.
LONGEST_QUEUE = 20
#: Visitors whose last inputs are kept.
SESSIONS = 200
LONGEST_MESSAGE = 300

CSS, BOARD = ((files("ctf.app") / name).read_text(encoding="utf-8") for name in ("page.css", "board.js"))
BOARD_HTML = """<div class="board" style="--columns:${columns}" hidden><img alt="the picture"><div class="cells"></div></div>
<label class="drop"><input type="file" accept="image/*" hidden><span>Drop a picture here, or click to choose one</span></label>
"""
#: A click on an image chooses it; the other tabs take the chosen one, or the first.
CHOOSE = """element.addEventListener("click", (event) => {
  if (event.target.tagName !== "IMG") return;
  element.querySelectorAll("img.chosen").forEach((image) => image.classList.remove("chosen"));
  event.target.classList.add("chosen");
});"""
TAKE = """() => {
  const image = document.querySelector("#made img.chosen") || document.querySelector("#made img");
  return image ? { src: image.src, keep: "" } : null;
}"""
POINT = """element.addEventListener("click", (event) => {
  if (event.target.tagName !== "IMG") return;
  const box = event.target.getBoundingClientRect();
  trigger("point", { x: (event.clientX - box.x) / box.width, y: (event.clientY - box.y) / box.height });
});"""
ADDRESS = """() => {
  const link = document.querySelector("#permalink");
  if (link) history.replaceState(null, "", link.getAttribute("href"));
}"""


@contextmanager
def one_line() -> Iterator[None]:
    """What went wrong as one line on the page; what is not the visitor's doing is told to the terminal in full."""
    try:
        yield
    except InputError as error:
        message = " ".join(str(error).split())
        message = message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]} …"
        raise gr.Error(escape(message), print_exception=False) from None
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        raise gr.Error(f"this did not work ({type(error).__name__}); the terminal says more", print_exception=False) from None


def told(work: Callable[..., Any]) -> Callable[..., Any]:
    """A function or generator function whose errors are told in one line."""
    if inspect.isgeneratorfunction(work):

        @functools.wraps(work)
        def steps(*arguments: Any) -> Iterator[Any]:
            with one_line():
                yield from work(*arguments)

        return steps

    @functools.wraps(work)
    def call(*arguments: Any) -> Any:
        with one_line():
            return work(*arguments)

    return call


def widget(control: Control) -> gr.components.Component:
    """The form's part for a setting."""
    label = control.setting.replace("_", " ")
    if control.choices:
        return gr.Dropdown(control.choices, value=control.value, label=label)
    if control.span:
        low, high, step = control.span
        return gr.Slider(low, high, value=control.value, step=step, label=label)
    return gr.Number(control.value, precision=0 if control.whole else None, minimum=0, label=label)


def board(studio: Studio, marked: bool = False, value: Any = None) -> gr.HTML:
    """A picture that a visitor gives; `marked`: and marks."""
    rows, columns = studio.pipeline.grid if marked else (0, 0)
    facts = {"rows": rows, "columns": columns, "most": MOST_BYTES}
    return gr.HTML(value, html_template=BOARD_HTML, js_on_load=BOARD, **facts)


def build(studio: Studio, first: tuple[str, str]) -> gr.Blocks:
    """The page. `first` is what `Studio.generate` gave last for its defaults: what a visitor sees before anything else."""
    pipeline, name = studio.pipeline, studio.model.name
    height, width = pipeline.image_size
    model = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "minimal"}
    with gr.Blocks(title=f"ctf · {name}", analytics_enabled=False) as page:
        page.state_session_capacity = SESSIONS
        stages = "; ".join(stage_in_words(stage) for stage in pipeline.stages)
        gr.Markdown(
            f"# {escape(name)}\n"
            f"Images of {width} × {height} pixels in {len(pipeline.class_names)} classes, drawn from coarse to fine. "
            "Choose a class, press Generate, and watch the images appear.\n\n"
            f"<small>{escape(stages)}.</small>",
            elem_id="title",
        )
        with gr.Tab("Generate"), gr.Row():
            with gr.Column(scale=1, min_width=280):
                label = gr.Dropdown(studio.classes(), value="", label="class (type to search)", elem_id="label")
                num = gr.Slider(1, MOST_IMAGES, value=Asked.num, step=1, label="images")
                seed = gr.Number(0, precision=0, minimum=0, maximum=LARGEST_SEED, label="seed of the first")
                beside = gr.Checkbox(False, label="baseline beside it, same seeds", visible=studio.baseline is not None)
                with gr.Row():
                    start = gr.Button("Generate", variant="primary", elem_id="generate")
                    stop = gr.Button("Stop", elem_id="stop", min_width=80)
                settings = []
                for stage in pipeline.stages:
                    with gr.Accordion(f"settings of {stage.name}", open=False):
                        settings += [widget(c) for c in studio.controls if c.stage == stage.name]
            with gr.Column(scale=3, min_width=480):
                made = gr.HTML(first[0], elem_id="made", elem_classes="shown", js_on_load=CHOOSE)
                links = gr.HTML(first[1], elem_id="links")
        with gr.Tab("Complete"), gr.Row():
            with gr.Column(scale=1, min_width=340):
                gr.Markdown(f"Mark what to keep; the rest is generated. {studio.keeps()}", elem_classes="say")
                picture = board(studio, marked=True)
                take = gr.Button("Take an image from Generate", elem_id="take")
                rest_label = gr.Dropdown(studio.classes(), value="", label="class (type to search)")
                rest_num = gr.Slider(1, MOST_IMAGES, value=4, step=1, label="completions")
                rest_seed = gr.Number(0, precision=0, minimum=0, maximum=LARGEST_SEED, label="seed of the first")
                with gr.Row():
                    rest_start = gr.Button("Complete", variant="primary", elem_id="complete")
                    rest_stop = gr.Button("Stop", min_width=80)
            with gr.Column(scale=3, min_width=480):
                rest = gr.HTML(elem_id="rest", elem_classes="shown")
                rest_links = gr.HTML()
        counts, count = studio.clusters.counts, studio.clusters.count
        with gr.Tab("Clusters"), gr.Row():
            with gr.Column(scale=1, min_width=340):
                gr.Markdown(
                    "Tokens of one cluster look alike. Swap some of a picture's tokens for others of their cluster: with "
                    "k-means clusters little is lost, with random ones of the same number nearly everything.",
                    elem_classes="say",
                )
                swap_picture = board(studio)
                swap_take = gr.Button("Take an image from Generate", elem_id="swap-take")
                share = gr.Slider(0, 100, value=50, step=1, label="share of tokens swapped, %", elem_id="share")
                swap_count = gr.Dropdown(counts, value=count, label="clusters")
            with gr.Column(scale=3, min_width=480):
                swapped = gr.HTML(elem_id="swapped", elem_classes="shown")
        with gr.Tab("Codebook") as tab, gr.Row():
            with gr.Column(scale=3, min_width=480):
                gr.Markdown(
                    f"The {pipeline.tokenizer.codebook_size:,} codewords as tiles, decoded among their like: a block for "
                    "each cluster, from dark to light, with up to 16 of its tokens. Click one to see all of them.",
                    elem_classes="say",
                )
                codebook = gr.HTML(elem_id="codebook", elem_classes="shown", js_on_load=POINT)
            with gr.Column(scale=2, min_width=340):
                book_count = gr.Dropdown(counts, value=count, label="clusters")
                cluster = gr.Number(0, precision=0, minimum=0, label="cluster", elem_id="cluster")
                members = gr.HTML(elem_id="members", elem_classes="shown")

        private = {"api_visibility": "private"}
        run = start.click(
            told(studio.generate), [label, num, seed, beside, *settings], [made, links], **model, **private
        )
        run.then(None, js=ADDRESS, **private)
        stop.click(None, cancels=[run], **private)
        rest_run = rest_start.click(
            told(studio.complete),
            [picture, rest_label, rest_num, rest_seed, *settings],
            [rest, rest_links],
            **model,
            **private,
        )
        rest_stop.click(None, cancels=[rest_run], **private)
        for button, where in ((take, picture), (swap_take, swap_picture)):
            button.click(None, js=TAKE, outputs=[where], **private)
            where.give(upload_of(studio), outputs=[where], **private)
        swap_inputs = [swap_picture, share, swap_count]
        gr.on(
            [swap_picture.change, share.release, swap_count.change],
            told(studio.swap),
            swap_inputs,
            [swapped],
            trigger_mode="always_last",
            show_progress="minimal",
            **private,
        )
        draw = {"fn": told(studio.codebook), "inputs": [book_count], "outputs": [codebook], **model, **private}
        tab.select(**draw)
        book_count.change(**draw)
        codebook.point(cluster_of(studio), [book_count], [cluster], show_progress="hidden", **private)
        gr.on(
            [tab.select, cluster.change, book_count.change],
            told(studio.members),
            [book_count, cluster],
            [members],
            show_progress="hidden",
            **private,
        )
        return page


def upload_of(studio: Studio) -> Callable[..., Any]:
    """The function that takes a picture from a board."""

    def upload(event: gr.EventData) -> Any:
        with one_line():
            return studio.upload(event._data.get("url"))

    return upload


def cluster_of(studio: Studio) -> Callable[..., Any]:
    """The function that takes a place in the picture of the codebook."""

    def cluster(count: Any, event: gr.EventData) -> int:
        with one_line():
            return studio.cluster_at(count, event._data.get("x"), event._data.get("y"))

    return cluster
