"""Pictures: a list of plain shapes that becomes SVG here and PNG in ``raster``.

Coordinates are pixels from the top left corner. A :class:`Picture` is what users get: it shows
itself in notebooks and saves itself.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias
from xml.sax.saxutils import escape as _escape

from pandaflow.core.errors import WorkflowError
from pandaflow.display.style import CANVAS, FONT, INK, RED

Point: TypeAlias = tuple[float, float]

#: Characters that XML 1.0 forbids even when escaped.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def escape(text: str) -> str:
    """Make ``text`` safe inside XML and HTML, as content and in quoted attributes."""
    return _escape(_FORBIDDEN.sub("\ufffd", text), {'"': "&quot;", "'": "&#39;"})


def _n(value: float) -> str:
    """Write a coordinate with at most one decimal: pictures of many shapes stay small."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle, perhaps with rounded corners and a tooltip."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    stroke: str = ""
    line: float = 1.0
    radius: float = 0.0
    dashed: bool = False
    hatched: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line through ``points``; ``curved``: a start, then triples of cubic Bézier points."""

    points: tuple[Point, ...]
    stroke: str
    line: float = 1.0
    curved: bool = False
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Polygon:
    """A filled shape with straight sides."""

    points: tuple[Point, ...]
    fill: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A line of text; ``y`` is its base line."""

    x: float
    y: float
    text: str
    size: float = 12.0
    fill: str = INK
    anchor: Literal["start", "middle", "end"] = "start"
    bold: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Many rectangles ``(x, y, width, height)`` of one look, written as one path."""

    boxes: Sequence[tuple[float, float, float, float]]
    fill: str
    stroke: str = ""
    hatched: bool = False


Shape: TypeAlias = Box | Line | Polygon | Label | Bars


@dataclass(slots=True)
class Drawing:
    """Shapes in the order in which they are painted.

    Attributes
    ----------
    width, height : float
        Pixels.
    name : str
        What the picture shows, for screen readers.
    shapes : list of Shape
    """

    width: float
    height: float
    name: str
    shapes: list[Shape] = field(default_factory=list)

    def add(self, *shapes: Shape) -> None:
        """Paint ``shapes`` on top of what is there."""
        self.shapes.extend(shapes)

    def svg(self) -> str:
        """Return the drawing as one SVG element with its own background."""
        # one page may hold several pictures: ids of definitions must not clash
        key = f"pf{zlib.crc32(repr(self.shapes).encode('utf-8', 'replace')):08x}"
        width, height = _n(self.width), _n(self.height)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(self.name)}" '
            f'font-family="{escape(FONT)}">',
            *self._definitions(key),
            f'<rect width="{width}" height="{height}" rx="8" fill="{CANVAS}"/>',
        ]
        for shape in self.shapes:
            parts.extend(_svg(shape, key))
        parts.append("</svg>")
        return "\n".join(parts)

    def _definitions(self, key: str) -> Iterator[str]:
        if any(isinstance(shape, Box | Bars) and shape.hatched for shape in self.shapes):
            yield (
                f'<defs><pattern id="{key}" width="5" height="5" '
                'patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
                f'<path d="M0 0v5" stroke="{RED}" stroke-width="2.4"/></pattern></defs>'
            )


def _svg(shape: Shape, key: str) -> Iterator[str]:
    match shape:
        case Box():
            yield from _svg_box(shape, key)
        case Line():
            yield _svg_line(shape)
        case Polygon():
            corners = " ".join(f"{_n(x)},{_n(y)}" for x, y in shape.points)
            yield f'<polygon points="{corners}" fill="{shape.fill}"/>'
        case Label():
            yield _svg_label(shape)
        case Bars():
            yield from _svg_bars(shape, key)


def _outline(stroke: str, line: float, dashed: bool) -> str:
    if not stroke:
        return ""
    dash = ' stroke-dasharray="5 3"' if dashed else ""
    return f' stroke="{stroke}" stroke-width="{_n(line)}"{dash}'


def _svg_box(box: Box, key: str) -> Iterator[str]:
    radius = f' rx="{_n(box.radius)}"' if box.radius else ""
    place = f'x="{_n(box.x)}" y="{_n(box.y)}" width="{_n(box.width)}" height="{_n(box.height)}"'
    look = f'fill="{box.fill}"{_outline(box.stroke, box.line, box.dashed)}'
    if box.title:
        yield f"<rect {place}{radius} {look}><title>{escape(box.title)}</title></rect>"
    else:
        yield f"<rect {place}{radius} {look}/>"
    if box.hatched:
        yield f'<rect {place}{radius} fill="url(#{key})" pointer-events="none"/>'


def _svg_line(line: Line) -> str:
    (x, y), *rest = line.points
    step = "C" if line.curved else "L"
    path = f"M{_n(x)} {_n(y)}{step}" + " ".join(f"{_n(x)} {_n(y)}" for x, y in rest)
    return f'<path d="{path}" fill="none"{_outline(line.stroke, line.line, line.dashed)}/>'


def _svg_label(label: Label) -> str:
    anchor = "" if label.anchor == "start" else f' text-anchor="{label.anchor}"'
    weight = ' font-weight="600"' if label.bold else ""
    title = f"<title>{escape(label.title)}</title>" if label.title else ""
    return (
        f'<text x="{_n(label.x)}" y="{_n(label.y)}" font-size="{_n(label.size)}"{anchor}{weight} '
        f'fill="{label.fill}">{title}{escape(label.text)}</text>'
    )


def _svg_bars(bars: Bars, key: str) -> Iterator[str]:
    path = "".join(
        f"M{_n(x)} {_n(y)}h{_n(width)}v{_n(height)}h-{_n(width)}z"
        for x, y, width, height in bars.boxes
    )
    yield f'<path d="{path}" fill="{bars.fill}"{_outline(bars.stroke, 0.8, False)}/>'
    if bars.hatched:
        yield f'<path d="{path}" fill="url(#{key})"/>'


class Picture:
    """A picture that shows itself in notebooks and saves itself.

    Parameters
    ----------
    drawing : Drawing or str
        Shapes, or finished SVG (which cannot be saved as PNG).
    """

    def __init__(self, drawing: Drawing | str) -> None:
        self._drawing = drawing if isinstance(drawing, Drawing) else None
        self.svg = drawing.svg() if isinstance(drawing, Drawing) else drawing

    def __repr__(self) -> str:
        name = self._drawing.name if self._drawing else "picture"
        return f"<{name}; .save('picture.svg') keeps it>"

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_html_(self) -> str:
        # a wide picture scrolls instead of shrinking until nobody can read it
        return f'<div style="overflow:auto;max-height:900px">{self.svg}</div>'

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture to ``path``: SVG, or PNG when the name ends so.

        Returns
        -------
        pathlib.Path
            Where it is.

        Raises
        ------
        WorkflowError
            The name ends in something else, or the picture has no shapes to make a PNG of.
        ImportError
            PNG needs matplotlib, which ``pandaflow[plot]`` brings.
        """
        target = Path(path)
        suffix = target.suffix.lower()
        if suffix not in {".svg", ".png"}:
            raise WorkflowError(f"{target}: a picture is saved as .svg or .png")
        if suffix == ".png":
            self._save_png(target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(self.svg, encoding="utf-8")
        return target

    def _save_png(self, target: Path) -> None:
        if self._drawing is None:
            raise WorkflowError(f"{target}: this picture was made from SVG; save it as .svg")
        from pandaflow.display.raster import save_png  # matplotlib loads only when asked for

        save_png(self._drawing, target)
