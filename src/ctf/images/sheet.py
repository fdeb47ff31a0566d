"""Contact sheets: a labelled grid of images as one picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ctf.files import atomic_path

INK = (64, 64, 64)
LABEL_GAP = 8  # pixels between a label and its images
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    scale: int = 1,
    gap: int = 4,
) -> Image.Image:
    """Arrange images in a grid on white, row labels at the left, column labels on top.

    Every cell has the size of the largest image; smaller ones are centred in theirs. A label is broken at newlines
    and, where it is wider than its room, at spaces; what still does not fit is cut off with "…", so labels never
    overlap.

    Args:
        rows: uint8 (H, W, 3) each; rows may differ in length.
        row_labels: one per row.
        column_labels: one per column.
        scale: whole number of screen pixels per image pixel.
        gap: pixels between cells and around the sheet.
    """
    height = scale * max((image.shape[0] for row in rows for image in row), default=0)
    width = scale * max((image.shape[1] for row in rows for image in row), default=0)
    columns = max((len(row) for row in rows), default=0)
    points = 12 if width < 96 else 14
    font, line = ImageFont.load_default(points), round(points * 1.3)

    left_texts = [wrap(label, font, 160, max(1, height // line)) for label in row_labels or []]
    top_texts = [wrap(label, font, width, 3) for label in column_labels or []]
    widest = max((font.getlength(words) for text in left_texts for words in text), default=0)
    left = round(widest) + 1 + LABEL_GAP if left_texts else 0
    top = max((len(text) * line + LABEL_GAP for text in top_texts), default=0)
    left, top = left + gap, top + gap

    sheet = Image.new("RGB", (left + columns * (width + gap), top + len(rows) * (height + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, text in enumerate(left_texts):
        middle = top + y * (height + gap) + height // 2
        for i, words in enumerate(text):
            draw.text((left - LABEL_GAP, middle + line * (i - (len(text) - 1) / 2)), words, INK, font, anchor="rm")
    for x, text in enumerate(top_texts):
        middle = left + x * (width + gap) + width // 2
        for i, words in enumerate(text):  # the last line stands on the images
            draw.text((middle, top - LABEL_GAP - line * (len(text) - i - 0.5)), words, INK, font, anchor="mm")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            picture = Image.fromarray(image.repeat(scale, 0).repeat(scale, 1))
            corner_x = left + x * (width + gap) + (width - picture.width) // 2
            corner_y = top + y * (height + gap) + (height - picture.height) // 2
            sheet.paste(picture, (corner_x, corner_y))
    return sheet


def wrap(text: str, font: Font, width: int, lines: int) -> list[str]:
    """Break `text` at newlines and spaces into at most `lines` lines of at most `width` pixels; cut the rest ("…")."""
    wrapped: list[str] = []
    for paragraph in text.splitlines():
        for i, word in enumerate(paragraph.split()):
            if i and font.getlength(f"{wrapped[-1]} {word}") <= width:
                wrapped[-1] += f" {word}"
            else:
                wrapped.append(word)
    if len(wrapped) > lines:
        wrapped = [*wrapped[: lines - 1], " ".join(wrapped[lines - 1 :])]
    return [shorten(words, font, width) for words in wrapped]


def shorten(text: str, font: Font, width: int) -> str:
    """`text`, its end replaced by "…" as far as needed for `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def save_png(path: str | Path, image: Image.Image) -> None:
    """Write `image` as a PNG file, atomically."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def png_bytes(image: Image.Image, **notes: str) -> bytes:
    """The bytes of a PNG file of `image`, with `notes` in its text."""
    info, file = PngInfo(), io.BytesIO()
    for name, text in notes.items():
        info.add_itxt(name, text)
    image.save(file, "PNG", pnginfo=info)
    return file.getvalue()
