"""The layout of the web app, and which of its parts calls what."""

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

from ctf.app.pictures import MOST_BYTES
from ctf.app.request import LARGEST_SEED, MOST_IMAGES, Control, ImageRequest
from ctf.app.studio import Studio, stage_in_words
from ctf.errors import InputError

#: Requests that wait, of all visitors; further ones are told that the queue is full.
LONGEST_QUEUE = 20
#: Visitors whose last inputs are kept.
SESSIONS = 200
#: Completions that a visitor sees first.
REST = 4
LONGEST_MESSAGE = 300

CSS, MASK_EDITOR = ((files("ctf.app") / name).read_text(encoding="utf-8") for name in ("page.css", "mask_editor.js"))
MASK_EDITOR_HTML = """
<div class="mask-editor" style="--columns:${columns}" hidden><img alt="the picture"><div class="cells"></div></div>
<label class="drop"><input type="file" accept="image/*" hidden><span>Drop a picture, or click to choose</span></label>
"""
#: A click on an image chooses it; the other tabs take the chosen one, or the first.
CHOOSE = """element.addEventListener("click", (event) => {
  if (event.target.tagName !== "IMG") return;
  element.querySelectorAll("img.chosen").forEach((image) => image.classList.remove("chosen"));
  event.target.classList.add("chosen");
});"""
TAKE = """() => {
  const image = document.querySelector("#made img.chosen") || document.querySelector("#made img");
  return { src: image.src, keep: "KEEP" };
}"""
POINT = """element.addEventListener("click", (event) => {
  if (event.target.tagName !== "IMG") return;
  const box = event.target.getBoundingClientRect();
  trigger("point", { x: (event.clientX - box.x) / box.width, y: (event.clientY - box.y) / box.height });
});"""
#: The address bar holds the link to what is shown; a visitor who comes by such a link sees it made.
ADDRESS = """() => {
  const link = document.querySelector("#permalink");
  if (link) history.replaceState(null, "", link.getAttribute("href"));
}"""
ARRIVE = """() => {
  if (new URLSearchParams(location.search).has("seed")) document.querySelector("#generate").click();
}"""


@contextmanager
def one_line() -> Iterator[None]:
    """What went wrong as one line on the page; what is not the visitor's doing is told to the terminal in full."""
    try:
        yield
    except InputError as error:
        message = " ".join(str(error).split())
        message = message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]} …"
        raise gr.Error(escape(message, quote=False), print_exception=False) from None
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        raise gr.Error(
            f"this did not work ({type(error).__name__}); the terminal says more", print_exception=False
        ) from None


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


def form(studio: Studio, what: str, num: int, action: str) -> list[gr.components.Component]:
    """Class, number and seed, a button to start and one to stop."""
    return [
        gr.Dropdown(studio.classes(), value="", label="class (type to search)"),
        gr.Slider(1, MOST_IMAGES, value=num, step=1, label=what),
        gr.Number(0, precision=0, minimum=0, maximum=LARGEST_SEED, label="seed of the first"),
        *buttons(action),
    ]


def buttons(action: str) -> list[gr.Button]:
    with gr.Row():
        return [
            gr.Button(action, variant="primary", elem_id=action.lower()),
            gr.Button("Stop", min_width=80, elem_id=f"stop-{action.lower()}"),
        ]


def mask_editor(studio: Studio, value: Any, marked: bool) -> tuple[gr.HTML, gr.Button]:
    """A picture that a visitor gives, `marked`: and marks; and a button that takes one of the images made before."""
    rows, columns = studio.pipeline.layout.finest if marked else (0, 0)
    facts = {"rows": rows, "columns": columns, "most": MOST_BYTES}
    picture = gr.HTML(value, elem_classes="given", html_template=MASK_EDITOR_HTML, js_on_load=MASK_EDITOR, **facts)
    return picture, gr.Button("Take the chosen image of Generate", size="sm")


def say(text: str) -> None:
    """What a tab is for."""
    gr.Markdown(text, elem_classes="say")


def results(html: str = "", links: str = "", name: str | None = None) -> list[gr.HTML]:
    """Images, and the links below them."""
    with gr.Column(scale=3, min_width=480, elem_classes="results"):
        return [gr.HTML(html, elem_id=name, elem_classes="shown", js_on_load=CHOOSE), gr.HTML(links)]


def build(studio: Studio) -> gr.Blocks:
    """The web app. What it shows first is made here, which also warms the model up."""
    pipeline, (height, width) = studio.pipeline, studio.pipeline.image_size
    values = [control.value for control in studio.controls]
    *_, first = studio.generate("", ImageRequest.num, 0, False, *values)
    example, counts, count = studio.example(first[0]), studio.clusters.counts, studio.clusters.count
    *_, completed = studio.complete(example, "", REST, 0, *values)
    with gr.Blocks(title=f"ctf · {studio.model.name}", analytics_enabled=False) as page:
        page.state_session_capacity = SESSIONS
        gr.Markdown(
            f"# ctf · {escape(studio.model.name)}\n"
            f"Images of {width} × {height} pixels in {len(pipeline.class_names)} classes, from coarse to fine. "
            "Choose a class, press Generate, and watch the images appear.\n\n"
            f"<small>{'; '.join(stage_in_words(stage) for stage in pipeline.stages)}.</small>",
            elem_id="title",
        )
        with gr.Tab("Generate"), gr.Row():
            with gr.Column(scale=1, min_width=280):
                *ask, start, stop = form(studio, "images", ImageRequest.num, "Generate")
                beside = gr.Checkbox(False, label="baseline beside it, same seeds", visible=studio.baseline is not None)
                settings = []
                for place, stage in enumerate(pipeline.stages, 1):
                    level = "tokens" if stage.predicts is None else "clusters"
                    with gr.Accordion(f"stage {place} · {level}", open=False):
                        settings += [widget(c) for c in studio.controls if c.stage == stage.name]
            made = results(*first, name="made")
        with gr.Tab("Complete"):
            say(f"Mark what to keep of a picture with the pointer; the rest is generated. {studio.keeps()}")
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    picture, take = mask_editor(studio, example, marked=True)
                    *rest_ask, rest_start, rest_stop = form(studio, "completions", REST, "Complete")
                rest = results(*completed, name="rest")
        with gr.Tab("Clusters"):
            say(
                "Tokens of one cluster look alike. Swap some of a picture's tokens for others of their cluster: within "
                "k-means clusters little is lost, within random ones of the same number nearly everything."
            )
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    swap_picture, swap_take = mask_editor(studio, example, marked=False)
                    share = gr.Slider(0, 100, value=50, step=1, label="tokens swapped, %", elem_id="share")
                    swap_count = gr.Dropdown(counts, value=count, label="clusters")
                with gr.Column(scale=3, min_width=480):
                    swapped = gr.HTML(studio.swap(example, 50, count), elem_id="swapped", elem_classes="shown")
        with gr.Tab("Codebook") as tab:
            say(
                f"The {pipeline.tokenizer.codebook_size:,} codewords as tiles, each decoded among its like: a block "
                "for each cluster, from dark to light, with up to 16 of its tokens. Click a block to see all of them."
            )
            with gr.Row():
                with gr.Column(scale=3, min_width=480):
                    codebook = gr.HTML(elem_id="codebook", elem_classes="shown", js_on_load=POINT)
                with gr.Column(scale=2, min_width=340):
                    with gr.Row():
                        book_count = gr.Dropdown(counts, value=count, label="clusters", min_width=120)
                        cluster = gr.Number(
                            0, precision=0, minimum=0, label="cluster", elem_id="cluster", min_width=120
                        )
                    members = gr.HTML(elem_id="members", elem_classes="shown")

        # What calls what. The model works for one visitor at a time, the rest is quick.
        @told
        def arrive(request: gr.Request) -> Any:
            query = {name: text for name, text in request.query_params.items() if not name.startswith("__")}
            if "seed" not in query:
                return gr.skip()
            wanted = studio.checked(ImageRequest.from_query(studio.controls, query))
            settings = [wanted.settings.get(control.key, control.value) for control in studio.controls]
            return [wanted.label, wanted.num, wanted.seed, *settings]

        @told
        def upload(event: gr.EventData) -> Any:
            return studio.upload(event._data.get("url"))

        @told
        def point(count: Any, event: gr.EventData) -> Any:
            return studio.cluster_at(count, event._data.get("x"), event._data.get("y"))

        # Without Gradio's own checks, whose messages are long: the studio takes what comes, and says what is wrong.
        own: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "preprocess": False}
        model = {**own, "concurrency_id": "model", "concurrency_limit": 1, "show_progress": "minimal"}
        for name, work in (("generate", studio.api_generate), ("complete", studio.api_complete)):
            gr.api(told(work), api_name=name, concurrency_id="model", concurrency_limit=1)
        page.load(arrive, None, [*ask, *settings], **own).success(None, js=ARRIVE, **own)
        run = start.click(told(studio.generate), [*ask, beside, *settings], made, **model)
        run.then(None, js=ADDRESS, **own)
        rest_run = rest_start.click(told(studio.complete), [picture, *rest_ask, *settings], rest, **model)
        for button, running in ((stop, run), (rest_stop, rest_run)):
            button.click(None, cancels=[running], **own)
        for button, where in ((take, picture), (swap_take, swap_picture)):
            button.click(None, js=TAKE.replace("KEEP", studio.half()), outputs=[where], **own)
            where.give(upload, None, [where], **own)
        changed = [swap_picture.change, share.release, swap_count.change]
        gr.on(changed, told(studio.swap), [swap_picture, share, swap_count], swapped, trigger_mode="always_last", **own)
        gr.on([tab.select, book_count.change], told(studio.codebook), book_count, codebook, **model)
        codebook.point(point, book_count, cluster, **own)
        seen = [tab.select, cluster.change, book_count.change]
        gr.on(seen, told(studio.members), [book_count, cluster], members, **own)
        return page
