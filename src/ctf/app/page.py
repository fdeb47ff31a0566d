"""The layout of the web app, and which of its parts calls what."""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Iterator
from copy import copy
from html import escape
from importlib.resources import files
from inspect import Parameter, Signature
from textwrap import shorten
from typing import Any

import gradio as gr

from ctf.app.diagram import diagram
from ctf.app.request import LARGEST_SEED, MOST_IMAGES, ImageRequest
from ctf.app.sampler import Run
from ctf.app.studio import Given, Studio
from ctf.errors import InputError

#: Requests that wait, of all visitors; further ones are told that the queue is full.
LONGEST_QUEUE = 20
#: Visitors whose last images are kept, frame by frame, and for how many seconds.
SESSIONS, KEPT_FOR = 32, 3600
#: Completions that a visitor sees first.
COMPLETIONS = 4
LONGEST_MESSAGE = 300

CSS, MASK_EDITOR = ((files("ctf.app") / name).read_text(encoding="utf-8") for name in ("page.css", "mask_editor.js"))
#: A picture under a grid of its tokens, see `Studio.marked`.
MARKED = """<img alt="the picture" src="${value.src}"><div class="cells" style="--columns:${columns}">
${value.keep.replace(/./g, (mark) => "<i class='m" + mark + "'></i>")}</div>"""
#: The address bar holds the link to what is shown; a visitor who comes by such a link sees it made.
ADDRESS = """() => {
  const link = document.querySelector("#permalink");
  if (link) history.replaceState(null, "", link.getAttribute("href"));
}"""
PRESS = """() => document.querySelector("#generate").click()"""
ARRIVE = f"""() => {{ if (new URLSearchParams(location.search).has("seed")) ({PRESS})(); }}"""
RANDOM = f"() => Math.floor(Math.random() * {2**31})"


class App(gr.Blocks):
    """Gradio's blocks, with errors as one line each, and without its habit of fetching addresses for visitors."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *arguments: Any) -> Any:
        """Refuse files that are addresses; Gradio itself refuses those that were not uploaded."""
        if re.search('"path": "https?:', json.dumps(inputs), re.IGNORECASE):
            raise gr.Error("give a file, not an address", print_exception=False)
        return await super().preprocess_data(block_fn, inputs, *arguments)

    async def call_function(self, *arguments: Any, **options: Any) -> Any:
        """Run the function of an event. An error that is no user error is printed in full to the terminal."""
        try:
            return await super().call_function(*arguments, **options)
        except InputError as error:
            message = escape(shorten(str(error), LONGEST_MESSAGE, placeholder=" …"), quote=False)
            raise gr.Error(message, print_exception=False) from None
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            message = f"this did not work ({type(error).__name__}); the terminal says more"
            raise gr.Error(message, print_exception=False) from None


def gallery(name: str, columns: int, **settings: Any) -> gr.Gallery:
    """Images that a click enlarges; every pixel is a square."""
    settings = {"buttons": ["download", "fullscreen"], "show_label": False, "object_fit": "contain", **settings}
    return gr.Gallery(label=name, columns=columns, elem_id=name, elem_classes="shown", interactive=False, **settings)


class Form:
    """Class, number and seed, a button to start and one to stop."""

    def __init__(self, studio: Studio, action: str) -> None:
        classes, designs = studio.classes, [("all designs", ""), *studio.classes.designs]
        # What is typed is sent as it is: the studio searches, and says where there is no such class.
        label = "class (type to search)"
        self.subject = gr.Dropdown(classes.choices(), value="", label=label, allow_custom_value=True)
        self.design = gr.Dropdown(designs, value="", label="design", visible=bool(classes.designs))
        with gr.Row():
            self.start = gr.Button(action, variant="primary", elem_id=action.lower(), min_width=120)
            self.stop = gr.Button("Stop", min_width=70, elem_id=f"stop-{action.lower()}")

    def number_and_seed(self, what: str, num: int) -> list[Any]:
        """Further fields; all inputs of a request but its settings."""
        images = gr.Slider(1, MOST_IMAGES, value=num, step=1, label=what, buttons=[])
        random = gr.Button("random")
        seed = gr.Number(0, precision=0, minimum=0, maximum=LARGEST_SEED, label="seed of the first", buttons=[random])
        random.click(None, js=RANDOM, outputs=seed, api_visibility="private")
        return [self.subject, self.design, images, seed]


class Results:
    """Images, a slider over the frames in which they appeared, the chosen one stage by stage, and links."""

    def __init__(self, name: str) -> None:
        self.runs = gr.State(time_to_live=KEPT_FOR)
        self.status = gr.HTML(elem_id=f"{name}-status")
        self.images, self.beside = gallery(name, 4), gallery(f"{name}-beside", 4, visible=False)
        info = "drag to see how the images appeared, from coarse to fine"
        self.frame = gr.Slider(1, 2, value=1, step=1, label="", info=info, elem_id=f"{name}-frame", buttons=[])
        self.stages, self.links = gallery(f"{name}-stages", 3), gr.HTML()
        self.outputs = [self.runs, self.status, self.images, self.beside, self.frame, self.stages, self.links]

    @staticmethod
    def shown(studio: Studio, runs: list[Run]) -> list[Any]:
        """What the outputs show of runs."""
        (run, *others), ended = [run for run in runs if run.frames], all(run.done or run.stopped for run in runs)
        states = "".join(f"<p><b>{escape(each.sampler.name)}</b> {each.state}</p>" for each in (run, *others))
        stages, last = run.stages() if ended else [], len(run.frames)
        return [
            runs,
            f'<div class="status" data-ended="{int(ended)}">{states}</div>',
            run.gallery(),
            gr.update(value=others[0].gallery() if others else [], visible=bool(others)),
            gr.update(maximum=max(2, last), value=last, label=run.when(), interactive=ended),
            gr.update(value=stages, visible=bool(stages)),
            studio.links(runs) if ended else "",
        ]


def picture_input() -> tuple[gr.File, gr.Button]:
    """Where a visitor gives a picture: a file, or an image that was made before."""
    file = gr.File(type="binary", file_types=["image"], show_label=False, height=80, elem_classes="drop")
    return file, gr.Button("Take the image chosen in Generate", size="sm")


def build(studio: Studio) -> gr.Blocks:
    """The web app. What it shows first is made here, which also warms the model up."""
    pipeline, (height, width) = studio.pipeline, studio.pipeline.image_size
    other = studio.against.name if studio.against else ""
    counts, count, half = studio.clusters.counts, studio.clusters.count, (studio.rows + 1) // 2
    *_, first = studio.generate("", "", ImageRequest.num, 0, False, *(control.value for control in studio.controls))
    first[0].chosen = ImageRequest.num // 3
    example, subject, design = studio.take(first)
    shown = studio.marked(example, half)
    try:
        *_, completed = studio.complete(example, shown["keep"], subject, design, COMPLETIONS, 0)
    except InputError:  # as of an autoregressive stage over several scales, which can keep no part of a picture
        completed = []
    swaps = studio.swap(example, 50, count) if counts else []
    cache = (KEPT_FOR, KEPT_FOR)  # uploads: how often they are looked at, and how old they may be
    with App(title=f"ctf · {studio.model.name}", analytics_enabled=False, delete_cache=cache) as page:
        page.state_session_capacity, given = SESSIONS, gr.State(time_to_live=KEPT_FOR)
        facts = f"{width} × {height} pixels, {len(pipeline.class_names)} classes"
        title = f"<h1>ctf · {escape(studio.model.name)} <small>{facts}</small></h1>"
        gr.HTML(title + diagram(pipeline), elem_id="title")
        with gr.Tab("Generate"), gr.Row(elem_classes="studio"):
            with gr.Column(elem_classes="form"):
                form = Form(studio, "Generate")
                chips = gr.Dataset(
                    label="examples", components=["textbox"], samples=[[name] for name in studio.classes.examples],
                    layout="gallery", elem_id="examples",
                )  # fmt: skip
            with gr.Column(elem_classes="results"):
                made = Results("made")
            with gr.Column(elem_classes="settings"):
                fields = form.number_and_seed("images", ImageRequest.num)
                beside = gr.Checkbox(False, label=f"{other} beside it, same seeds", visible=bool(other))
                settings = []
                for stage in pipeline.stages:
                    with gr.Accordion(studio.model.stage_titles[stage.name], open=False):
                        settings += [
                            getattr(gr, c.component)(value=c.value, label=c.setting.replace("_", " "), **c.options)
                            for c in studio.controls
                            if c.stage == stage.name
                        ]
        with gr.Tab("Complete", visible=bool(completed)):
            continues = "This model continues a picture from above. Choose how many rows of tokens to keep."
            keeps_any = "Mark with the pointer what to keep of the picture. The rest is generated."
            gr.Markdown(continues if studio.continues else keeps_any)
            with gr.Row(elem_classes="studio"):
                with gr.Column(elem_classes="form"):
                    picture = gr.HTML(
                        shown, html_template=MARKED, js_on_load=MASK_EDITOR, columns=studio.columns,
                        elem_classes=["given", "rows-only" if studio.continues else "marked"],
                    )  # fmt: skip
                    sources = [picture_input()]
                    note = gr.Markdown()
                    kept = gr.Slider(
                        *(1, max(2, studio.rows - 1)), value=half, step=1, label="rows kept", elem_id="rows",
                        visible=studio.continues, buttons=[],
                    )  # fmt: skip
                    rest_form = Form(studio, "Complete")
                with gr.Column(elem_classes="results"):
                    rest = Results("rest")
                with gr.Column(elem_classes="settings"):
                    rest_fields = rest_form.number_and_seed("completions", COMPLETIONS)
        with gr.Tab("Clusters", visible=bool(counts)):
            gr.Markdown(
                "Tokens of one cluster look alike. Here some of a picture's tokens are swapped for others of the same "
                "cluster. Within k-means clusters the picture hardly changes, within random ones little of it is left."
            )
            with gr.Row(elem_classes="studio"):
                with gr.Column(elem_classes="form"):
                    sources.append(picture_input())
                    share = gr.Slider(0, 100, value=50, step=1, label="tokens swapped, %", buttons=[])
                    swap_count = gr.Dropdown(counts, value=count, label="clusters")
                with gr.Column(elem_classes="results"):
                    swapped = gallery("swapped", 3)
        with gr.Tab("Codebook", visible=bool(counts)) as tab:
            gr.Markdown(
                f"Each tile is one of the {pipeline.tokenizer.codebook_size:,} codewords, each block a cluster with up "
                "to 16 of its tokens, from dark to light. Click a block to see all tokens of the cluster."
            )
            with gr.Row():
                with gr.Column(scale=3, min_width=320):
                    codebook = gr.Image(show_label=False, interactive=False, buttons=["fullscreen"], elem_id="codebook")
                with gr.Column(scale=2, min_width=320):
                    with gr.Row():
                        book_count = gr.Dropdown(counts, value=count, label="clusters", min_width=120)
                        cluster = gr.Number(0, precision=0, minimum=0, label="cluster", min_width=120)
                    members = gallery("members", 6, allow_preview=False)

        # What calls what. The model works for one visitor at a time, the rest is quick.
        def arrive(request: gr.Request) -> Any:
            query = {name: text for name, text in request.query_params.items() if not name.startswith("__")}
            if "seed" not in query:
                return gr.skip()
            wanted = studio.checked(ImageRequest.from_query(studio.controls, query))
            values = [wanted.settings.get(control.key, control.value) for control in studio.controls]
            return [*studio.classes.parted(wanted.label), wanted.num, wanted.seed, *values]

        def welcome() -> Any:
            views = [Results.shown(studio, [copy(run) for run in runs]) for runs in (first, completed) if runs]
            views += [[gr.skip()] * len(rest.outputs)] * (2 - len(views))
            return [*views[0], *views[1], *show(example, half), subject, design, swaps]

        def generate(label: Any, design: Any, num: Any, seed: Any, beside: Any, *settings: Any) -> Iterator[Any]:
            runs = studio.generate(label, design, num, seed, beside, *settings)
            yield from (Results.shown(studio, seen) for seen in runs)

        names = ["label", "design", "num", "seed", "beside", *(control.key for control in studio.controls)]
        parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        generate.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # what programs call them by

        def complete(given: Any, marks: Any, label: Any, design: Any, num: Any, seed: Any) -> Iterator[Any]:
            runs = studio.complete(given, (marks or {}).get("keep"), label, design, num, seed)
            yield from (Results.shown(studio, seen) for seen in runs)

        def stop(runs: Any) -> Any:
            if not runs or not runs[0].frames or all(run.done for run in runs):
                return gr.skip()
            for run in runs:
                run.stopped = not run.done
            return Results.shown(studio, runs)

        def scrub(runs: Any, frame: Any) -> Any:
            run = studio.frame(runs, frame)
            return run.gallery(int(frame)), gr.update(label=run.when(int(frame)))

        def choose(runs: Any, event: gr.EventData) -> Any:
            run = studio.frame(runs, 1)
            run.chosen = min(int(event._data["index"]), len(run.images) - 1)
            return run.stages()

        def show(taken: Given, rows: int) -> list[Any]:
            return [taken, studio.marked(taken, rows), studio.settings_note(taken)]

        def upload(file: bytes | None, rows: int) -> Any:
            return show(studio.upload(file), rows)

        def take(runs: Any, rows: int) -> Any:
            taken, *label = studio.take(runs)
            return [*show(taken, rows), *label]

        def keep_rows(taken: Given | None, rows: Any) -> Any:
            return studio.marked(taken, rows) if taken and rows else gr.skip()

        def point(count: Any, event: gr.EventData) -> Any:
            return studio.clusters.cluster_at(count, *event._data["index"])

        # Without Gradio's own checks, whose messages are long, except of files. Images go out as data URLs, with names
        # and notes on how they were made: Gradio would write each to the disk, and serve it from there.
        own: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        own |= {"preprocess": False, "postprocess": False}
        model = {**own, "concurrency_id": "model", "concurrency_limit": 1, "show_progress": "minimal"}
        public = {"api_visibility": "public"}  # for programs, under the name of the function
        seen, label = [given, picture, note], [rest_form.subject, rest_form.design]
        page.load(welcome, None, [*made.outputs, *rest.outputs, *seen, *label, swapped], **own)
        page.load(arrive, None, [*fields, *settings], **own).success(None, js=ARRIVE, **own)
        wired = (
            (form, made, generate, [*fields, beside, *settings]),
            (rest_form, rest, complete, [given, picture, *rest_fields]),
        )
        for asked, results, make, inputs in wired:
            run = asked.start.click(make, inputs, results.outputs, show_progress_on=[results.status], **model | public)
            run.then(None, js=ADDRESS, **own)
            stopped = asked.stop.click(None, cancels=[run], **own)  # and then: a frame that comes late would replace it
            stopped.then(stop, results.runs, results.outputs, **own)
            frame = [results.runs, results.frame]
            results.frame.input(scrub, frame, [results.images, results.frame], trigger_mode="always_last", **own)
            results.images.select(choose, results.runs, results.stages, **own)
        chosen = chips.click(
            lambda place: studio.classes.parted(studio.classes.examples[place]), chips, fields[:2], **own
        )
        chosen.then(None, js=PRESS, **own)
        swap: dict[str, Any] = {"fn": studio.swap, "inputs": [given, share, swap_count], "outputs": swapped, **own}
        for (file, button), api in zip(sources, (public, {}), strict=True):
            given_file = file.upload(upload, [file, kept], seen, **own | api | {"preprocess": True})
            for ending in (given_file.success, given_file.failure):  # the place is free for another file
                ending(None, None, file, js="() => null", **own)
            for event in (given_file, button.click(take, [made.runs, kept], [*seen, *label], **own)):
                event.success(**swap)
        kept.input(keep_rows, [given, kept], picture, trigger_mode="always_last", **own)
        gr.on([share.release, swap_count.change], trigger_mode="always_last", **swap)
        gr.on([tab.select, book_count.change], studio.codebook, book_count, codebook, **model)
        codebook.select(point, book_count, cluster, **own)
        gr.on([tab.select, cluster.change, book_count.change], studio.members, [book_count, cluster], members, **own)
        return page
