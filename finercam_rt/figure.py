"""One picture of one answer: the photograph and its maps side by side, with a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from finercam_rt import colormaps, ops
from finercam_rt.ops import Box

_MARGIN, _GAP = 16, 12
_TITLE, _TEXT = 17, 14
_LINE = 20
_COLUMNS = 6
_BACKGROUND, _INK, _FAINT = (255, 255, 255), (25, 25, 25), (110, 110, 110)


def figure(
    photograph: NDArray[np.uint8],
    maps: Sequence[tuple[str, NDArray[np.float32]]],
    legend: Sequence[str],
    colormap: str = "turbo",
    opacity: float = 0.5,
    box: Box | None = None,
    value_range: tuple[float, float] | None = None,
) -> Image.Image:
    """The photograph, then each map over it under its title, in rows, then the colour scale and the legend's lines.

    A map that explains nothing is not drawn: its panel says why.

    Args:
        photograph: (H,W,3) uint8, the crop that the model saw, or all of it with `box`.
        maps: title and raw map (h,w) float32, one for each panel after the photograph.
        legend: lines of text.
        colormap: "turbo", "jet" or "gray".
        opacity: the map's share, 0 to 1.
        box, value_range: where the maps lie in the photograph, and the values at the ends of the scale; see
            `ops.render`.
    """
    height, width = photograph.shape[:2]
    panels = [("photograph", Image.fromarray(photograph))]
    for title, raw_map in maps:
        rendered = ops.render(
            raw_map[None],
            (height, width),
            images=photograph[None],
            colormap=colormap,
            opacity=opacity,
            box=box,
            value_range=value_range,
        )
        label = ops.Status(int(rendered.status[0])).label
        panels.append(
            (title if label == "ok" else f"{title}: {label}", Image.fromarray(rendered.image[0]).convert("RGB"))
        )

    text_font, title_font = ImageFont.load_default(_TEXT), ImageFont.load_default(_TITLE)
    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    total = 2 * _MARGIN + columns * width + (columns - 1) * _GAP
    pitch = _LINE + 6 + height + _GAP
    below = _MARGIN + rows * pitch
    canvas = Image.new("RGB", (total, below + _LINE + len(legend) * _LINE + _MARGIN), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for index, (title, picture) in enumerate(panels):
        left, top = _MARGIN + index % columns * (width + _GAP), _MARGIN + index // columns * pitch
        draw.text((left, top), _shortened(title, width, draw, title_font), _INK, title_font)
        canvas.paste(picture, (left, top + _LINE + 6))

    scale_left = _MARGIN + width + _GAP if columns > 1 else _MARGIN
    _draw_scale(canvas, draw, colormap, (scale_left, below), total - _MARGIN - scale_left, text_font)
    for row, line in enumerate(legend):
        draw.text((_MARGIN, below + _LINE + row * _LINE), line, _INK, text_font)
    return canvas


def _shortened(
    text: str, width: int, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> str:
    """The text, cut with an ellipsis where it is wider than its panel."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(f"{text}...", font) > width:
        text = text[:-1]
    return f"{text.rstrip()}..."


def _draw_scale(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    colormap: str,
    corner: tuple[int, int],
    width: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """The colours from the least to the most evidence, with their ends named."""
    left, top = corner
    low, high = "less evidence", "more evidence"
    before, after = (int(draw.textlength(text, font)) + 8 for text in (low, high))
    draw.text((left, top), low, _FAINT, font)
    ramp = np.linspace(0, 255, max(1, width - before - after)).round().astype(np.intp)
    bar = np.broadcast_to(colormaps.table(colormap)[ramp], (12, len(ramp), 3))
    canvas.paste(Image.fromarray(np.ascontiguousarray(bar)), (left + before, top + 3))
    draw.text((left + width - after + 8, top), high, _FAINT, font)
