"""A small diagram of a model: from the class through its stages to the image."""

from __future__ import annotations

from html import escape

from ctf.pipeline import StagePipeline

#: Hues of the four clusters in the diagram, and which of them each of its 4 × 4 positions has.
HUES, PATTERN = (48, 205, 350, 140), "0110122123320330"
FACE = """<circle cx="2" cy="2" r="2" fill="hsl(48 90% 60%)"/><circle cx="1.3" cy="1.5" r=".25"/>
<circle cx="2.7" cy="1.5" r=".25"/><path d="M1.1 2.5q.9 1 1.8 0" fill="none" stroke="#222" stroke-width=".2"/>"""


def diagram(pipeline: StagePipeline) -> str:
    """HTML of a figure for each stage, and a sentence that says what is seen."""
    figures, says = [], []
    for place, stage in enumerate(pipeline.stages, 1):
        clusters, steps = stage.predicts is not None, stage.resolved().steps
        level = "clusters" if clusters else "tokens"
        cells = "".join(
            f'<rect x="{i % 4}" y="{i // 4}" width=".94" height=".94" '
            f'fill="hsl({HUES[int(hue)]} 75% {58 if clusters else 40 + i * 29 % 40}%)"/>'
            for i, hue in enumerate(PATTERN)
        )
        figures.append((cells, f"stage {place}<br>{level}"))
        speed = "all at once" if steps == 1 else f"in {steps} steps"
        given = f", given the clusters of stage {place - 1}" * (stage.given is not None)
        says.append(
            f"Stage {place} ({escape(stage.kind)}) predicts {stage.num_tokens} {level} out of {stage.vocabulary:,} "
            f"{speed}{given}."
        )
    drawn = (
        f'<svg viewBox="0 0 4 4">{svg}</svg><figcaption>{name}</figcaption>'
        for svg, name in [*figures, (FACE, "image")]
    )
    shown = "".join(f"<b>→</b><figure>{figure}</figure>" for figure in drawn)
    sentences = " ".join([*says, "A decoder turns the tokens into pixels."])
    return f'<div class="diagram"><div>class {shown}</div><p>{sentences}</p></div>'
