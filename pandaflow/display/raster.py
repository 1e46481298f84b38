"""Drawings as PNG, through matplotlib (extra ``plot``)."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Literal

from pandaflow.display.drawing import Bars, Box, Drawing, Label, Line, Polygon, Shape
from pandaflow.display.style import CANVAS, RED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ALIGN: dict[str, Literal["left", "center", "right"]] = {
    "start": "left",
    "middle": "center",
    "end": "right",
}
#: Agg refuses images of 2**16 pixels or more a side.
_LARGEST = 60_000


def save_png(drawing: Drawing, path: FilePath, *, scale: float = 2.0) -> None:
    """Write ``drawing`` as PNG.

    Parameters
    ----------
    drawing : Drawing
    path : pathlib.Path
        Its folder is made when it is missing.
    scale : float
        Image pixels per drawing pixel; less for drawings too large for one image.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "PNG pictures need matplotlib: pip install 'pandaflow[plot]' (or save as .svg)"
        ) from error
    scale = min(scale, _LARGEST / max(drawing.width, drawing.height))
    # at 72 dots an inch a point is a pixel, so sizes need no conversion
    figure = Figure(figsize=(drawing.width / 72, drawing.height / 72), facecolor=CANVAS)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0, drawing.width)
    axes.set_ylim(drawing.height, 0)
    for order, shape in enumerate(drawing.shapes):
        _paint(axes, shape, order)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=72 * scale)


def _paint(axes: Axes, shape: Shape, order: int) -> None:
    match shape:
        case Box():
            _box(axes, shape, order)
        case Line():
            _line(axes, shape, order)
        case Polygon():
            axes.fill(*zip(*shape.points, strict=True), color=shape.fill, lw=0, zorder=order)
        case Label():
            _label(axes, shape, order)
        case Bars():
            _bars(axes, shape, order)


def _look(fill: str, stroke: str, line: float, hatched: bool) -> dict[str, Any]:
    look: dict[str, Any] = {"facecolor": fill, "edgecolor": stroke or "none"}
    look["linewidth"] = line if stroke else 0
    if hatched:
        look |= {"hatch": "////", "edgecolor": RED}
    return look


def _box(axes: Axes, box: Box, order: int) -> None:
    from matplotlib.patches import FancyBboxPatch

    look = _look(box.fill, box.stroke, box.line, box.hatched)
    # matplotlib's rounding pads the box; a radius of zero leaves it square
    style = f"round,pad=0,rounding_size={min(box.radius, box.height / 2, box.width / 2)}"
    axes.add_patch(
        FancyBboxPatch(
            (box.x, box.y),
            box.width,
            box.height,
            boxstyle=style if box.radius else "square,pad=0",
            linestyle="--" if box.dashed else "-",
            zorder=order,
            **look,
        )
    )


def _line(axes: Axes, line: Line, order: int) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    step = Path.CURVE4 if line.curved else Path.LINETO
    codes = [Path.MOVETO] + [step] * (len(line.points) - 1)
    axes.add_patch(
        PathPatch(
            Path(list(line.points), codes),
            facecolor="none",
            edgecolor=line.stroke,
            linewidth=line.line,
            linestyle="--" if line.dashed else "-",
            zorder=order,
        )
    )


def _label(axes: Axes, label: Label, order: int) -> None:
    axes.text(
        label.x,
        label.y,
        label.text,
        # matplotlib's own face is wider than the ones browsers choose
        fontsize=label.size * 0.92,
        color=label.fill,
        ha=_ALIGN[label.anchor],
        va="baseline",
        fontweight="bold" if label.bold else "normal",
        parse_math=False,
        zorder=order,
    )


def _bars(axes: Axes, bars: Bars, order: int) -> None:
    from matplotlib.collections import PolyCollection

    corners = [
        [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
        for x, y, width, height in bars.boxes
    ]
    look = _look(bars.fill, bars.stroke, 0.8, bars.hatched)
    axes.add_collection(PolyCollection(corners, zorder=order, **look), autolim=False)
