"""The layout of the web app, and which of its parts calls what."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from copy import copy
from html import escape
from importlib.resources import files
from typing import Any

import gradio as gr

from ctf.app.diagram import diagram
from ctf.app.pictures import MOST_BYTES
from ctf.app.request import LARGEST_SEED, MOST_IMAGES, Control, ImageRequest
from ctf.app.sampler import Run
from ctf.app.studio import Studio
from ctf.errors import InputError

#: Requests that wait, of all visitors; further ones are told that the queue is full.
LONGEST_QUEUE = 20
#: Visitors whose last images are kept, frame by frame, and for how many seconds.
SESSIONS, KEPT_FOR = 32, 3600
#: Completions that a visitor sees first.
COMPLETIONS = 4
LONGEST_MESSAGE = 300

CSS, MASK_EDITOR = ((files("ctf.app") / name).read_text(encoding="utf-8") for name in ("page.css", "mask_editor.js"))
MASK_EDITOR_HTML = """
<div class="mask-editor" style="--columns:${columns}" hidden><img alt="the picture"><div class="cells"></div></div>
<label class="drop"><input type="file" accept="image/*"><span>Drop a picture, or click to choose</span></label>
"""
#: The address bar holds the link to what is shown; a visitor who comes by such a link sees it made.
ADDRESS = """() => {
  const link = document.querySelector("#permalink");
  if (link) history.replaceState(null, "", link.getAttribute("href"));
}"""
PRESS = """() => document.querySelector("#generate").click()"""
ARRIVE = f"""() => {{ if (new URLSearchParams(location.search).has("seed")) ({PRESS})(); }}"""
RANDOM = f"() => Math.floor(Math.random() * {2**31})"
#: Rows that are kept → the marks on the picture.
ROWS = """(picture, rows) => ({
  ...picture, keep: (picture?.keep || "").replace(/./g, (_, i) => (i < rows * COLUMNS ? "1" : "0"))
})"""


class App(gr.Blocks):
    """Gradio's blocks, with errors as one line each."""

    async def call_function(self, *arguments: Any, **options: Any) -> Any:
        """Run the function of an event. An error that is no user error is printed in full to the terminal."""
        try:
            return await super().call_function(*arguments, **options)
        except InputError as error:
            message = " ".join(str(error).split())
            message = message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]} …"
            raise gr.Error(escape(message, quote=False), print_exception=False) from None
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            message = f"this did not work ({type(error).__name__}); the terminal says more"
            raise gr.Error(message, print_exception=False) from None


def widget(control: Control) -> gr.components.Component:
    """The form's part for a setting."""
    label = control.setting.replace("_", " ")
    if control.choices:
        return gr.Dropdown(control.choices, value=control.value, label=label)
    if control.span:
        low, high, step = control.span
        return gr.Slider(low, high, value=control.value, step=step, label=label)
    return gr.Number(control.value, precision=0 if control.whole else None, minimum=0, label=label)


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
        number = gr.Slider(1, MOST_IMAGES, value=num, step=1, label=what, buttons=[])
        random = gr.Button("random")
        seed = gr.Number(0, precision=0, minimum=0, maximum=LARGEST_SEED, label="seed of the first", buttons=[random])
        random.click(None, js=RANDOM, outputs=seed, api_visibility="private")
        return [self.subject, self.design, number, seed]


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


def picture_input(studio: Studio, columns: int) -> tuple[gr.HTML, gr.Button]:
    """A picture that a visitor gives, with `columns` of tokens to mark; and a button that takes one made before."""
    facts = {"count": columns * studio.rows, "columns": columns, "line": studio.continues, "most": MOST_BYTES}
    picture = gr.HTML(elem_classes="given", html_template=MASK_EDITOR_HTML, js_on_load=MASK_EDITOR, **facts)
    return picture, gr.Button("Take the chosen image of Generate", size="sm")


def say(text: str) -> gr.Markdown:
    """What a tab is for."""
    return gr.Markdown(text, elem_classes="say")


def build(studio: Studio) -> gr.Blocks:
    """The web app. What it shows first is made here, which also warms the model up."""
    pipeline, (height, width) = studio.pipeline, studio.pipeline.image_size
    counts, count, half = studio.clusters.counts, studio.clusters.count, (studio.rows + 1) // 2
    *_, first = studio.generate("", "", ImageRequest.num, 0, False, *(control.value for control in studio.controls))
    first[0].chosen = ImageRequest.num // 3
    example, subject, design = studio.take(first, half)
    *_, completed = studio.complete(example, subject, design, COMPLETIONS, 0)
    with App(title=f"ctf · {studio.model.name}", analytics_enabled=False) as page:
        page.state_session_capacity = SESSIONS
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
                beside = gr.Checkbox(False, label="baseline beside it, same seeds", visible=studio.baseline is not None)
                settings = []
                for stage in pipeline.stages:
                    with gr.Accordion(studio.model.stage_titles[stage.name], open=False):
                        settings += [widget(c) for c in studio.controls if c.stage == stage.name]
        with gr.Tab("Complete"):
            continues = "This model continues a picture from above: choose how many rows to keep."
            keeps_any = "Mark what to keep of a picture with the pointer."
            say(f"{continues if studio.continues else keeps_any} The rest is generated.")
            with gr.Row(elem_classes="studio"):
                with gr.Column(elem_classes="form"):
                    picture, take = picture_input(studio, studio.columns)
                    kept = gr.Slider(
                        *(1, max(2, studio.rows - 1)), value=half, step=1, label="rows kept", elem_id="rows",
                        visible=studio.continues, buttons=[],
                    )  # fmt: skip
                    rest_form = Form(studio, "Complete")
                with gr.Column(elem_classes="results"):
                    rest = Results("rest")
                with gr.Column(elem_classes="settings"):
                    rest_fields = rest_form.number_and_seed("completions", COMPLETIONS)
                    note = say("")
        with gr.Tab("Clusters", visible=bool(counts)):
            say(
                "Tokens of one cluster look alike. Swap some of a picture's tokens for others of their cluster: within "
                "k-means clusters little is lost, within random ones of the same number nearly everything."
            )
            with gr.Row(elem_classes="studio"):
                with gr.Column(elem_classes="form"):
                    swap_picture, swap_take = picture_input(studio, 0)
                    share = gr.Slider(0, 100, value=50, step=1, label="tokens swapped, %", buttons=[])
                    swap_count = gr.Dropdown(counts, value=count, label="clusters")
                with gr.Column(elem_classes="results"):
                    swapped = gallery("swapped", 3)
        with gr.Tab("Codebook", visible=bool(counts)) as tab:
            say(
                f"The {pipeline.tokenizer.codebook_size:,} codewords as tiles, each decoded among equal ones: a block "
                "for each cluster, from dark to light, with up to 16 of its tokens. Click a block to see all of them."
            )
            with gr.Row():
                with gr.Column(scale=3, min_width=320):
                    codebook = gr.Image(show_label=False, interactive=False, buttons=["fullscreen"], elem_id="codebook")
                with gr.Column(scale=2, min_width=320):
                    with gr.Row():
                        book_count = gr.Dropdown(counts, value=count, label="clusters", min_width=120)
                        cluster = gr.Number(0, precision=0, minimum=0, label="cluster", min_width=120)
                    members = gallery("members", 8, allow_preview=False)

        # What calls what. The model works for one visitor at a time, the rest is quick.
        def arrive(request: gr.Request) -> Any:
            query = {name: text for name, text in request.query_params.items() if not name.startswith("__")}
            if "seed" not in query:
                return gr.skip()
            wanted = studio.checked(ImageRequest.from_query(studio.controls, query))
            values = [wanted.settings.get(control.key, control.value) for control in studio.controls]
            return [*studio.classes.parted(wanted.label), wanted.num, wanted.seed, *values]

        def welcome() -> Any:
            views = [Results.shown(studio, [copy(run) for run in runs]) for runs in (first, completed)]
            return [*views[0], *views[1], example, example, subject, design]

        def generate(*values: Any) -> Iterator[Any]:
            yield from (Results.shown(studio, runs) for runs in studio.generate(*values))

        def complete(*values: Any) -> Iterator[Any]:
            yield from (Results.shown(studio, runs) for runs in studio.complete(*values))

        def stop(runs: Any) -> Any:
            if not runs or not runs[0].frames or all(run.done for run in runs):
                return gr.skip()
            for run in runs:
                run.stopped = not run.done
            return Results.shown(studio, runs)

        def scrub(runs: Any, number: Any) -> Any:
            run = studio.frame(runs, number)
            return run.gallery(int(number)), gr.update(label=run.when(int(number)))

        def choose(runs: Any, event: gr.EventData) -> Any:
            run = studio.frame(runs, 1)
            run.chosen = min(int(event._data["index"]), len(run.images) - 1)
            return run.stages()

        def example_chosen(place: int) -> Any:
            return studio.classes.parted(studio.classes.examples[place])

        def upload(rows: Any, event: gr.EventData) -> Any:
            return studio.upload(event._data.get("url"), rows)

        def point(count: Any, event: gr.EventData) -> Any:
            return studio.cluster_at(count, *event._data["index"])

        # Without Gradio's own checks, whose messages are long, and without its files: the studio checks what comes and
        # gives images as data URLs. Gradio would write them to the disk and serve them to whoever asks.
        own: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        own |= {"preprocess": False, "postprocess": False}
        model = {**own, "concurrency_id": "model", "concurrency_limit": 1, "show_progress": "minimal"}
        for name, work in {"generate": studio.api_generate, "complete": studio.api_complete}.items():
            gr.api(work, api_name=name, concurrency_id="model", concurrency_limit=1)
        shown_first = [*made.outputs, *rest.outputs, picture, swap_picture, rest_form.subject, rest_form.design]
        page.load(welcome, None, shown_first, **own)
        page.load(arrive, None, [*fields, *settings], **own).success(None, js=ARRIVE, **own)
        wired = (
            (form, made, generate, [*fields, beside, *settings]),
            (rest_form, rest, complete, [picture, *rest_fields]),
        )
        for asked, results, make, inputs in wired:
            run = asked.start.click(make, inputs, results.outputs, show_progress_on=[results.status], **model)
            run.then(None, js=ADDRESS, **own)
            stopped = asked.stop.click(None, cancels=[run], **own)  # and then: a frame that comes late would replace it
            stopped.then(stop, results.runs, results.outputs, **own)
            frame = [results.runs, results.frame]
            results.frame.input(scrub, frame, [results.images, results.frame], trigger_mode="always_last", **own)
            results.images.select(choose, results.runs, results.stages, **own)
        chips.click(example_chosen, chips, fields[:2], **own).then(None, js=PRESS, **own)
        take.click(studio.take, [made.runs, kept], [picture, *rest_fields[:2]], **own)
        swap_take.click(lambda *given: studio.take(*given)[0], [made.runs, kept], swap_picture, **own)
        for where in (picture, swap_picture):
            where.give(upload, kept, where, **own)
        picture.change(studio.settings_note, picture, note, **own)
        kept.input(None, [picture, kept], picture, js=ROWS.replace("COLUMNS", str(studio.columns)), **own)
        changed = [swap_picture.change, share.release, swap_count.change]
        gr.on(changed, studio.swap, [swap_picture, share, swap_count], swapped, trigger_mode="always_last", **own)
        gr.on([tab.select, book_count.change], studio.codebook, book_count, codebook, **model)
        codebook.select(point, book_count, cluster, **own)
        gr.on([tab.select, cluster.change, book_count.change], studio.members, [book_count, cluster], members, **own)
        return page
