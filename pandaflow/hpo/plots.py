"""Pictures of studies: Optuna's plots, and a view for notebooks that needs no plotting library."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pandaflow.core.errors import WorkflowError
from pandaflow.display import units
from pandaflow.display.drawing import Bars, Drawing, Label, Line, Point, escape
from pandaflow.display.html import CARD, DIM, NUMBER, bar_html, pill_html, table_html
from pandaflow.display.style import FAINT, MUTED, RULE, STATE_COLOURS, tint
from pandaflow.hpo.book import Book, TrialRecord
from pandaflow.hpo.watching import best_text, params_text, value_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pandaflow.hpo.looking import Looking


# --- Optuna's plots ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Kind:
    """A plot of Optuna's: title, inches, complete trials it needs, whether of one objective."""

    title: str
    size: tuple[float, float] = (8.0, 4.5)
    least: int = 1
    single: bool = True


_KINDS: Mapping[str, _Kind] = {
    "optimization_history": _Kind("history"),
    "parallel_coordinate": _Kind("parameters of each trial", (10.0, 5.0)),
    "param_importances": _Kind("importance of parameters", (8.0, 3.6), 2, single=False),
    "slice": _Kind("value by parameter"),
    "contour": _Kind("value over pairs of parameters", (7.0, 5.5), 2),
    "pareto_front": _Kind("Pareto front", (6.5, 5.0), single=False),
    "intermediate_values": _Kind("reports of each trial", least=0, single=False),
    "timeline": _Kind("trials over time", (9.0, 4.5), 0, single=False),
}
#: The kinds of :func:`plot`.
KINDS: tuple[str, ...] = tuple(_KINDS)
#: Names in a legend at most.
_LEGEND = 12


def plot(study: Looking, kind: str, *, objective: int = 0, **options: Any) -> Figure:
    """Draw a study with Optuna's plots for matplotlib.

    Parameters
    ----------
    study : Study
    kind : str
        One of :data:`KINDS`.
    objective : int
        Which of several objectives, for plots that show one.
    **options
        Of Optuna's function, such as ``params``; None counts as not given.

    Returns
    -------
    matplotlib.figure.Figure
        Shown by notebooks when it is a cell's last value; ``savefig`` keeps it.

    Raises
    ------
    WorkflowError
        There is no such plot, the study has too few trials for it, or Optuna or matplotlib is
        missing.
    """
    if kind not in _KINDS:
        raise WorkflowError(f"no plot {kind!r}; there are {', '.join(KINDS)}")
    _check(study, kind, objective)
    found = {name: value for name, value in options.items() if value is not None}
    if len(study.directions) > 1 and _KINDS[kind].single:
        found |= {"target": lambda t: t.values[objective], "target_name": f"value {objective}"}
    with _quiet(kind) as pyplot:
        figure: Figure = _drawn(study, kind, found)
        pyplot.close(figure)  # or notebooks would show it a second time
    return figure


def _check(study: Looking, kind: str, objective: int) -> None:
    book, several = study.book, len(study.directions)
    complete, least = book.counts["complete"], _KINDS[kind].least
    what = f"{kind} of study {study.name!r}"
    if not book.trials:
        raise WorkflowError(f"{what}: there are no trials yet")
    if complete < least:
        raise WorkflowError(
            f"{what} needs {units.plural(least, 'complete trials')}; there are {complete}"
        )
    if kind == "pareto_front" and several not in (2, 3):
        raise WorkflowError(f"{what} needs two or three objectives, not {several}")
    if kind == "intermediate_values" and not any(trial.reports for trial in book.trials):
        raise WorkflowError(f"{what}: no trial has reported (trial.report(value, step=...))")
    if not 0 <= objective < several:
        raise WorkflowError(f"{what}: objective={objective!r}, there are {several}")


@contextmanager
def _quiet(kind: str) -> Iterator[Any]:
    """Yield pyplot; leaves no style and no filter of warnings behind."""
    try:
        import matplotlib
        from matplotlib import pyplot
        from optuna.exceptions import ExperimentalWarning
    except ImportError as error:
        raise WorkflowError(
            f'plots need Optuna and matplotlib ({error}): pip install "pandaflow[hpo]"'
        ) from None
    # the engine must be there before colour bars are; the timeline brings its own
    drawing = matplotlib.rc_context({"figure.constrained_layout.use": kind != "timeline"})
    with drawing, warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield pyplot


def _drawn(study: Looking, kind: str, options: Mapping[str, Any]) -> Any:
    from optuna.visualization import matplotlib as optunas

    shown = study.to_optuna()
    try:
        axes = getattr(optunas, f"plot_{kind}")(shown, **options)
    except ImportError as error:
        raise WorkflowError(f"{kind}: {error}") from error
    except (ValueError, RuntimeError) as error:
        raise WorkflowError(f"{kind} of study {study.name!r}: {error}") from error
    every = list(axes.flat) if hasattr(axes, "flat") else [axes]
    return _presentable(every, study.name, kind)


def _presentable(axes: Sequence[Any], name: str, kind: str) -> Any:
    figure = axes[0].figure
    figure.set_size_inches(*_size(len(axes), kind))
    for one in figure.axes:  # colour bars too
        for place in ("left", "center", "right"):
            one.set_title("", loc=place)
        _drop_long_legend(one)
        if kind == "parallel_coordinate":
            _clear_labels(one)
        else:
            _turn_words(one)
    if kind == "contour" and len(axes) > 1:
        for one in axes:
            one.label_outer()
    figure.suptitle(f"{name}: {_KINDS[kind].title}", fontsize=12)
    return figure


def _turn_words(axes: Any) -> None:
    """Write options below an axis aslant and without quotes, so that they do not overlap."""
    texts = [label.get_text().strip("'") for label in axes.get_xticklabels()]
    if not any(text[:1].isalpha() for text in texts):
        return
    axes.set_xticks(axes.get_xticks(), [units.clip(text, 16) for text in texts])
    axes.tick_params(axis="x", rotation=35, labelsize=8)
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("right")


def _clear_labels(axes: Any) -> None:
    """Give texts that stand among lines a ground of their own."""
    for label in axes.get_yticklabels():
        label.set_bbox({"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1})


def _drop_long_legend(axes: Any) -> None:
    """Remove a legend that names so many trials that it would be all there is to see."""
    legend = axes.get_legend()
    if legend is not None and len(legend.get_texts()) > _LEGEND:
        legend.remove()


def _size(axes: int, kind: str) -> tuple[float, float]:
    width, height = _KINDS[kind].size
    if kind == "slice":
        return max(2.6 * axes + 1.5, 5.0), height
    if kind == "contour" and axes > 1:
        side = 2.6 * math.sqrt(axes)
        return side + 1.5, side
    return width, height


# --- a study in a notebook ----------------------------------------------------------------

_WIDTH, _HEIGHT = 880.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 74.0, 16.0, 14.0, 34.0
_BEST = STATE_COLOURS["finished"]
_POINT = tint(STATE_COLOURS["running"], 0.55)
#: Trials in the table.
_MOST = 10
#: Parameters that get a column each; more are written into one.
_COLUMNS = 7
#: Up to so many trials each is a point of its own.
_FEW = 2000
#: Job states whose colours stand for states of trials.
_AS_JOBS = {"complete": "finished", "failed": "failed", "pruned": "closed", "running": "running"}


def study_html(study: Looking, n_trials: int | None = None, speed: str = "") -> str:
    """Return a study as HTML: how it stands, its history or Pareto front, and the best trials.

    Parameters
    ----------
    study : Study
    n_trials : int, optional
        Trials that there are to be in all.
    speed : str
        How fast it goes, while it runs.
    """
    book = study.book
    svg = study_svg(study)
    return "".join(
        [
            CARD,
            _headline(study, book, n_trials, speed),
            _best(study, book),
            f'<div style="overflow:auto;margin:8px 0">{svg}</div>' if svg else "",
            _table(study, book),
            "".join(f'<div style="{DIM}">note: {escape(note)}</div>' for note in study.notes[-3:]),
            "</div>",
        ]
    )


def _headline(study: Looking, book: Book, n_trials: int | None, speed: str) -> str:
    counts = ", ".join(f"{n:,} {state}" for state, n in book.counts.items() if n)
    wanted = f" of {n_trials:,}" if n_trials else ""
    text = f"{book.told:,}{wanted} trials" + (f": {counts}" if counts else "")
    parts = [text, speed] if speed else [text]
    jobs = {_AS_JOBS[state]: n for state, n in book.counts.items() if n}
    bar = bar_html(jobs, max(n_trials or 0, len(book.trials)), counts)
    return (
        f'<div><span style="font-size:15px;font-weight:600">{escape(study.name)}</span> '
        f'&nbsp;{pill_html(study.status)}&nbsp; <span style="{DIM}">'
        f'{escape(" · ".join(parts))}</span></div><div style="margin:6px 0">{bar}</div>'
    )


def _best(study: Looking, book: Book) -> str:
    if book.best is None:
        return ""
    params = params_text(study.params_of(book.best)) if len(book.directions) == 1 else ""
    code = f" &nbsp;<code>{escape(units.clip(params, 300))}</code>" if params else ""
    return f"<div><b>{escape(best_text(book.summary()))}</b>{code}</div>"


def _table(study: Looking, book: Book) -> str:
    best = book.top()
    if not best:
        return ""
    rows = [(trial, study.params_of(trial)) for trial in best]
    names = list(dict.fromkeys(name for _, params in rows for name in params))
    several = len(book.directions) > 1
    values = [f"value {k}" for k in range(len(book.directions))] if several else ["value"]
    wide = len(names) > _COLUMNS
    titles = ["parameters"] if wide else names
    head = [("trial", NUMBER), *((v, NUMBER) for v in values), *((t, NUMBER) for t in titles)]
    cells = [
        [
            str(trial.number),
            *(f"{value:.6g}" for value in trial.values),
            *(_cells(params, names, wide)),
            units.duration(trial.seconds) if trial.ended else "\N{EN DASH}",
        ]
        for trial, params in rows
    ]
    return table_html([*head, ("time", NUMBER)], cells)


def _cells(params: dict[str, Any], names: Sequence[str], wide: bool) -> list[str]:
    if wide:
        return [escape(units.clip(params_text(params), 120))]
    return [escape(value_text(params[name])) if name in params else "\N{EN DASH}" for name in names]


# --- its picture ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps numbers to pixels; what lies beyond an end is drawn there.

    Attributes
    ----------
    low, high : float
        Ends, of the logarithm if ``log``.
    start, stop : float
        Where they are, pixels.
    log : bool
        Base ten.
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of a number."""
        number = math.log10(value) if self.log else value
        share = (number - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.stop - self.start)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Return places and texts of at most about ``most`` round numbers."""
        step = _round_step((self.high - self.low) / most)
        if self.log:
            step = max(math.ceil(step), 1)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        numbers = [k * step for k in range(first, last + 1)]
        texts = [f"{10.0**n:.3g}" if self.log else _number(n, step) for n in numbers]
        scale = (self.stop - self.start) / (self.high - self.low)
        return [
            (self.start + (n - self.low) * scale, t) for n, t in zip(numbers, texts, strict=True)
        ]


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return float(next(power * k for k in (1, 2, 5, 10) if power * k >= least * (1 - 1e-9)))


def _number(value: float, step: float) -> str:
    if max(abs(value), step) >= 1e6 or step < 1e-5:
        return f"{value:.3g}"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value + 0.0:,.{digits}f}"


def value_axis(values: Sequence[float], direction: str, start: float, stop: float) -> Axis:
    """Return an axis on which the better values can be told apart.

    The worst twentieth may lie beyond its end, where one wild value would hide all others; over
    more than two powers of ten it is logarithmic.
    """
    ranked = sorted(values, reverse=direction == "maximize")
    best, worst = ranked[0], ranked[min(int(0.95 * len(ranked)), len(ranked) - 1)]
    low, high = min(best, worst), max(best, worst)
    log = low > 0 and high > 100 * low
    if log:
        low, high = math.log10(low), math.log10(high)
    room = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
    return Axis(low - room, high + room, start, stop, log)


def study_svg(study: Looking) -> str:
    """Return a study's history as SVG; of several objectives the first two and their front.

    Empty as long as no trial is complete.
    """
    book = study.book
    complete = list(book.complete())
    if not complete:
        return ""
    drawing = Drawing(_WIDTH, _HEIGHT, f"trials of study {study.name}")
    if len(book.directions) > 1:
        _draw_front(drawing, book, complete)
    else:
        _draw_history(drawing, book, complete)
    return drawing.svg()


def _vertical(values: Sequence[float], direction: str) -> Axis:
    return value_axis(values, direction, _HEIGHT - _BOTTOM, _TOP)


def _draw_history(drawing: Drawing, book: Book, complete: Sequence[TrialRecord]) -> None:
    y = _vertical([trial.values[0] for trial in complete], book.directions[0])
    x = Axis(-0.5, max(len(book.trials), 2) - 0.5, _LEFT, _WIDTH - _RIGHT)
    _frame(drawing, x, y, "trial", "value")
    _points(drawing, [(x(t.number), y(t.values[0])) for t in complete], _POINT)
    steps = list(_steps(complete, book.directions[0]))
    if steps:
        ends = [*steps, (book.trials[-1].number, steps[-1][1])]
        places: list[tuple[float, float]] = []
        for number, value in ends:
            if places:
                places.append((x(number), places[-1][1]))
            places.append((x(number), y(value)))
        drawing.add(Line(points=tuple(places), stroke=_BEST, line=2.0))
        _points(drawing, [(x(n), y(v)) for n, v in steps], _BEST, 5.0)


def _steps(complete: Sequence[TrialRecord], direction: str) -> Iterator[tuple[int, float]]:
    """Yield the trials that were better than all before them."""
    sign, best = (1.0 if direction == "minimize" else -1.0), math.inf
    for trial in complete:
        if trial.feasible and sign * trial.values[0] < best:
            best = sign * trial.values[0]
            yield trial.number, trial.values[0]


def _draw_front(drawing: Drawing, book: Book, complete: Sequence[TrialRecord]) -> None:
    one, other = book.directions[:2]
    x = value_axis([t.values[0] for t in complete], one, _LEFT, _WIDTH - _RIGHT)
    y = _vertical([t.values[1] for t in complete], other)
    _frame(drawing, x, y, "value 0", "value 1")
    _points(drawing, [(x(t.values[0]), y(t.values[1])) for t in complete], _POINT)
    front = sorted((x(t.values[0]), y(t.values[1])) for t in book.front())
    if len(book.directions) == 2 and len(front) > 1:
        drawing.add(Line(points=_stairs(front, one), stroke=_BEST, line=1.5, dashed=True))
    _points(drawing, front, _BEST, 6.0)


def _stairs(front: Sequence[tuple[float, float]], direction: str) -> tuple[Point, ...]:
    """Return the border of what the front dominates; ``front`` goes from left to right."""
    corners = [front[0]]
    for (x, y), (left, before) in zip(front[1:], front[:-1], strict=True):
        corners += [(x, before) if direction == "minimize" else (left, y), (x, y)]
    return tuple(corners)


def _points(
    drawing: Drawing, places: Sequence[tuple[float, float]], fill: str, size: float = 3.5
) -> None:
    """Draw squares, of those at about the same place one: many trials stay a small picture."""
    cell = 1 if len(places) <= _FEW else 5
    grid = {(int(x) // cell, int(y) // cell) for x, y in places}
    shift, size = (cell - size) / 2, max(size, cell - 1.0)
    boxes = [(x * cell + shift, y * cell + shift, size, size) for x, y in sorted(grid)]
    if boxes:
        drawing.add(Bars(boxes=boxes, fill=fill))


def _frame(drawing: Drawing, x: Axis, y: Axis, below: str, beside: str) -> None:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for place, text in y.ticks(5):
        drawing.add(Line(points=((_LEFT, place), (right, place)), stroke=RULE))
        drawing.add(_label(_LEFT - 8, place + 4, text, "end"))
    for place, text in x.ticks(10):
        drawing.add(Line(points=((place, bottom), (place, bottom + 4)), stroke=FAINT))
        drawing.add(_label(place, bottom + 16, text, "middle"))
    drawing.add(Line(points=((_LEFT, bottom), (right, bottom)), stroke=FAINT))
    drawing.add(_label(right, bottom + 30, below, "end"))
    drawing.add(_label(8, _TOP + 4, beside, "start"))


def _label(x: float, y: float, text: str, anchor: Any) -> Label:
    return Label(x=x, y=y, text=text, size=11.0, fill=MUTED, anchor=anchor)
