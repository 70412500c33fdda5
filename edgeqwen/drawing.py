"""Boxes, lines and texts -> an SVG or a PNG file; it knows nothing of what they mean."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import escape, quoteattr

from edgeqwen.errors import EngineMissingError, RequestError

SCALE = 2  # pixels of a PNG for each unit
FONT = "Helvetica, Arial, 'Noto Sans', 'Noto Sans CJK SC', sans-serif"
# Files with Chinese characters, by the names under which Linux, Windows and macOS have them.
CHINESE_FONTS = (
    "NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf", "msyh.ttc", "simhei.ttf", "PingFang.ttc", "STHeiti Light.ttc",
)  # fmt: skip
Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle; units from the left and from the top."""

    x: float
    y: float
    width: float
    height: float
    colour: str


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line."""

    x1: float
    y1: float
    x2: float
    y2: float
    colour: str
    width: float = 1


@dataclass(frozen=True, slots=True)
class Text:
    """One line of text; `y` is its middle."""

    x: float
    y: float
    text: str
    size: int = 12
    anchor: Anchor = "start"
    colour: str = "#222222"


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is drawn, in this order, on white."""

    width: float
    height: float
    shapes: Sequence[Box | Line | Text]


def check_picture(path: Path) -> None:
    """RequestError unless `path` is one that `write_picture` can write: found before the work, not after it."""
    if path.suffix.lower() not in {".svg", ".png"}:
        raise RequestError(f"{path}: a picture is .svg or .png, by the end of its name")
    if not path.absolute().parent.is_dir():
        raise RequestError(f"{path}: there is no folder {path.parent}")
    if path.suffix.lower() == ".png" and find_spec("PIL") is None:
        raise EngineMissingError(f"{path}: a PNG needs Pillow: pip install 'edgeqwen[plot]'; an .svg needs nothing")


def write_picture(drawing: Drawing, path: Path) -> None:
    """Write the file; its format is that of its name."""
    check_picture(path)
    path.write_bytes(svg(drawing).encode() if path.suffix.lower() == ".svg" else png(drawing))


def svg(drawing: Drawing) -> str:
    """The text of an SVG file."""
    width, height = f"{drawing.width:.0f}", f"{drawing.height:.0f}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f"font-family={quoteattr(FONT)}>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *(_element(shape) for shape in drawing.shapes),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _element(shape: Box | Line | Text) -> str:
    if isinstance(shape, Box):
        return (
            f'<rect x="{shape.x:.1f}" y="{shape.y:.1f}" width="{shape.width:.1f}" height="{shape.height:.1f}" '
            f'fill="{shape.colour}"/>'
        )
    if isinstance(shape, Line):
        return (
            f'<line x1="{shape.x1:.1f}" y1="{shape.y1:.1f}" x2="{shape.x2:.1f}" y2="{shape.y2:.1f}" '
            f'stroke="{shape.colour}" stroke-width="{shape.width:g}"/>'
        )
    return (
        f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size}" text-anchor="{shape.anchor}" '
        f'dominant-baseline="central" fill="{shape.colour}">{escape(shape.text)}</text>'
    )


def png(drawing: Drawing) -> bytes:
    """The bytes of a PNG file, by Pillow."""
    from PIL import Image, ImageDraw  # noqa: PLC0415 - an extra: an SVG goes without

    image = Image.new("RGB", (round(drawing.width * SCALE), round(drawing.height * SCALE)), "#ffffff")
    pen = ImageDraw.Draw(image)
    anchors = {"start": "lm", "middle": "mm", "end": "rm"}
    for shape in drawing.shapes:
        if isinstance(shape, Box):
            right, bottom = shape.x + shape.width, shape.y + shape.height
            pen.rectangle([SCALE * n for n in (shape.x, shape.y, right, bottom)], fill=shape.colour)
        elif isinstance(shape, Line):
            ends = [SCALE * n for n in (shape.x1, shape.y1, shape.x2, shape.y2)]
            pen.line(ends, fill=shape.colour, width=round(SCALE * shape.width))
        else:
            font = _font(SCALE * shape.size, chinese=not shape.text.isascii())
            place = (SCALE * shape.x, SCALE * shape.y)
            pen.text(place, shape.text, fill=shape.colour, font=font, anchor=anchors[shape.anchor])
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@cache
def _font(size: int, *, chinese: bool) -> Any:
    """Pillow's own font, which has Latin letters only; for others one of the system's, where there is one."""
    from PIL import ImageFont  # noqa: PLC0415

    for name in CHINESE_FONTS if chinese else ():
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)
