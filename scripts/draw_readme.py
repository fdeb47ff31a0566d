"""Draw the README's pictures: docs/filmstrip.png, how images appear, and docs/stream.webp, the same in motion.

    python scripts/draw_readme.py

The bundled model with its own settings. Classes, and seeds from 0 to 9, are chosen, as is said below the picture.
"""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from ctf.images.sheet import save_png
from ctf.model_folder import Pipeline

#: Class and seed.
SHOWN = [("fluent-emoji face-smiling", 6), ("twemoji heart", 2), ("noto cat-face", 0), ("noto plant-flower", 0)]
#: Steps of stage 1 that are shown, of 64.
STEPS = (16, 32, 48, 64)
SIDE, GAP, MARGIN, HEAD = 96, 10, 200, 62
INK, LINE, PAPER = (30, 30, 30), (150, 150, 150), (255, 255, 255)
font = ImageFont.load_default


def frames() -> dict[tuple[str, int], list[Image.Image]]:
    """Previews by stage and step: 16 of stage 1, and the finished images."""
    pipe = Pipeline.from_pretrained("emoji", "cpu")
    labels, seeds = zip(*SHOWN, strict=True)
    return {(p.stage, p.step): p.images for p in pipe.stream(list(labels), list(seeds), previews=16)}


def strip(seen: dict[tuple[str, int], list[Image.Image]]) -> Image.Image:
    """A row for each class: what is known after some steps of stage 1, and after stage 2."""
    columns = [*(("coarse", step) for step in STEPS), ("fine", 1)]
    titles = [*(f"{step} of 64" for step in STEPS), "all 64 tokens"]
    width = MARGIN + len(columns) * (SIDE + GAP) + 3 * GAP
    sheet = Image.new("RGB", (width, HEAD + len(SHOWN) * (SIDE + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)

    def left(column: int) -> int:
        return MARGIN + column * (SIDE + GAP) + (3 * GAP if column == len(STEPS) else 0)

    for text, first, last in (
        ("stage 1: one of 512 clusters, position by position", 0, len(STEPS) - 1),
        ("stage 2: one step", len(STEPS), len(STEPS)),
    ):
        start, end = left(first), left(last) + SIDE
        draw.text(((start + end) / 2, 14), text, INK, font(14 if first == 0 else 12), anchor="mm")
        draw.line([(start, 28), (end, 28)], LINE, 2)
    draw.text((GAP, 14), "class", INK, font(14), anchor="lm")
    for column, title in enumerate(titles):
        draw.text((left(column) + SIDE / 2, 46), title, INK, font(12), anchor="mm")
    for row, (name, _) in enumerate(SHOWN):
        top = HEAD + row * (SIDE + GAP)
        draw.text((GAP, top + SIDE / 2), name, INK, font(15), anchor="lm")
        for column, key in enumerate(columns):
            sheet.paste(enlarged(seen[key][row]), (left(column), top))
    return sheet


def enlarged(image: Image.Image) -> Image.Image:
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def motion(seen: dict[tuple[str, int], list[Image.Image]]) -> list[Image.Image]:
    """Each preview of all classes beside each other, with the step that it follows."""
    pictures = []
    for (stage, step), images in seen.items():
        sheet = Image.new("RGB", (len(SHOWN) * (SIDE + GAP) + GAP, SIDE + GAP + 28), PAPER)
        said = f"stage 1: {step} of 64 clusters" if stage == "coarse" else "stage 2: all 64 tokens"
        ImageDraw.Draw(sheet).text((GAP, 14), said, INK, font(14), anchor="lm")
        for place, image in enumerate(images):
            sheet.paste(enlarged(image), (GAP + place * (SIDE + GAP), 28))
        pictures.append(sheet)
    return pictures


def main() -> None:
    seen = frames()
    save_png("docs/filmstrip.png", strip(seen))
    first, *others = motion(seen)
    durations = [120] * len(others) + [2_000]
    first.save("docs/stream.webp", save_all=True, append_images=others, duration=durations, loop=0, quality=80)


if __name__ == "__main__":
    main()
