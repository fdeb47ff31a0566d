"""A small diagram of a model: from the class through its stages to the image."""

from __future__ import annotations

from html import escape

from ctf.pipeline import StagePipeline

#: Hues of the four clusters in the diagram, and which of them each of its 4 × 4 positions has.
HUES = (48, 205, 350, 140)
PATTERN = "0110122123320330"
SIDE, GAP, TOP = 56, 58, 4


def diagram(pipeline: StagePipeline) -> str:
    """Inline SVG, and a sentence that says what is seen."""
    step, across = SIDE + GAP, (len(pipeline.stages) + 2) * (SIDE + GAP) - GAP
    parts, says = [_text(0, TOP + SIDE / 2 + 4, "class")], []
    for place, stage in enumerate(pipeline.stages, 1):
        level = "tokens" if stage.predicts is None else "clusters"
        parts += [_arrow(place), _grid(place * step, stage.predicts is not None)]
        parts += [_text(place, TOP + SIDE + 15, f"stage {place}"), _text(place, TOP + SIDE + 30, level)]
        steps = stage.resolved().steps
        speed = "all at once" if steps == 1 else f"in {steps} steps"
        says.append(
            f"stage {place} ({escape(stage.kind)}) predicts {stage.num_tokens} {level} "
            f"out of {stage.vocabulary:,} {speed}" + ", given the labels before" * (stage.given is not None)
        )
    end = len(pipeline.stages) + 1
    parts += [_arrow(end), _face(end * step + SIDE / 2, TOP + SIDE / 2), _text(end, TOP + SIDE + 15, "image")]
    size = f'viewBox="0 0 {across} {TOP + SIDE + 36}" role="img" aria-label="from class to image"'
    sentence = f"{'; '.join(says)}; a decoder turns the tokens into pixels."
    return f'<div class="diagram"><svg {size}>{"".join(parts)}</svg><p>{sentence[0].upper()}{sentence[1:]}</p></div>'


def _grid(x: float, clusters: bool) -> str:
    """4 × 4 cells: of one colour per cluster, or of shades of it for its tokens."""
    cell = SIDE / 4
    return "".join(
        f'<rect x="{x + cell * (i % 4)}" y="{TOP + cell * (i // 4)}" width="{cell - 1}" height="{cell - 1}" '
        f'fill="hsl({HUES[int(hue)]} 75% {58 if clusters else 40 + i * 29 % 40}%)"/>'
        for i, hue in enumerate(PATTERN)
    )


def _face(x: float, y: float) -> str:
    eyes = "".join(f'<circle cx="{x + side}" cy="{y - 7}" r="3.5"/>' for side in (-10, 10))
    smile = f'<path d="M{x - 13} {y + 7}q13 14 26 0" fill="none" stroke="#222" stroke-width="3"/>'
    return f'<circle cx="{x}" cy="{y}" r="{SIDE / 2}" fill="hsl(48 90% 60%)"/>{eyes}{smile}'


def _arrow(place: int) -> str:
    x, y = place * (SIDE + GAP) - GAP, TOP + SIDE / 2
    return f'<path d="M{x + 10} {y}h{GAP - 22}m-6 -5l6 5l-6 5" fill="none" stroke="currentColor"/>'


def _text(place: int, y: float, text: str) -> str:
    x = place * (SIDE + GAP) + SIDE / 2
    return f'<text x="{x}" y="{y}" text-anchor="middle" font-size="13" fill="currentColor">{text}</text>'
