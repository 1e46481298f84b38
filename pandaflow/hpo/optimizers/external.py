"""Steering by an external command: ask and tell through two JSON files, as in PanDA and iDDS.

The command reads ``%IN``, ``{"points": [[{point}, loss or null], ...], "opt_space": {...}}``,
and writes ``%OUT``, a list of new points; ``[]`` ends the search. It keeps nothing between two
calls. Source: the iDDS manual, "User-defined Steering Container".

How losses are told: a loss is minimized, so the value of a maximized objective is sent with its
sign changed. 0.0 is a loss like any other. Null means "no loss (yet)": the trial is running, or
it failed. A failed point is thus told to be taken without inventing a loss for it; to teach the
command that failures are bad, let the study tell a penalty. A pruned trial's loss is its last
report. A point that the command gives twice is evaluated twice, and marked.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pandaflow.core.errors import WorkflowError
from pandaflow.hpo.dimensions import Choice, Float, Int
from pandaflow.hpo.filejob import (
    CommandFailed,
    bring_files,
    check_command,
    check_end,
    fill,
    read_json,
    run_shell,
)
from pandaflow.hpo.optimizers.designs import Exhausted
from pandaflow.hpo.port import (
    Asked,
    AskEntry,
    Brief,
    Entry,
    Memo,
    ReportEntry,
    TellEntry,
    Told,
)
from pandaflow.hpo.space import AnySpace, Point, Space

#: What %MAX_POINTS is if the study does not say how many trials it wants.
UNLIMITED = 10**6
_IN, _OUT, _STDERR = "idds_input.json", "idds_output.json", "steering_stderr.txt"


def space_to_phpo(space: Space) -> dict[str, Any]:
    """Return a space as PanDA writes it: a method and a dimension for each parameter.

    Fixed parameters are left out, as they are from points. Those of branches stand beside the
    others, because PanDA knows no conditions; in a point that names them in vain they are ignored.

    Parameters
    ----------
    space : Space

    Returns
    -------
    dict
        ``{"lr": {"method": "loguniform", "dimension": {"low": 1e-05, "high": 0.1}}}``
    """
    return {name: _written(dimension) for name, dimension in space.varied.items()}


def _written(dimension: Float | Int | Choice) -> dict[str, Any]:
    if isinstance(dimension, Choice):
        return {"method": "categorical", "dimension": {"categories": list(dimension.labels)}}
    bounds: dict[str, Any] = {"low": dimension.low, "high": dimension.high}
    if isinstance(dimension, Int):
        if dimension.step != 1:
            return {"method": "quniformint", "dimension": {**bounds, "q": dimension.step}}
        method = "loguniformint" if dimension.log else "uniformint"
        return {"method": method, "dimension": bounds}
    if dimension.step is not None:
        return {"method": "quniform", "dimension": {**bounds, "q": dimension.step}}
    return {"method": "loguniform" if dimension.log else "uniform", "dimension": bounds}


@dataclass(frozen=True, slots=True)
class ExternalSpec:
    """How to make an optimizer that is a command; see :func:`external`."""

    command: str
    points: int | None = None
    timeout: float = 60.0
    source: str = ""
    seed: int | None = None

    @property
    def isolated(self) -> bool:
        """A call may take long: nobody but its own process should wait for it."""
        return True

    def size(self, space: AnySpace) -> int | None:
        """Return None: the command decides when to stop."""
        del space
        return None

    def describe(self) -> dict[str, Any]:
        """Return kind, name and options."""
        options = {"points": self.points, "timeout": self.timeout}
        return {"kind": "external", "name": self.command, "options": options, "versions": {}}

    def check(self, space: AnySpace, brief: Brief) -> None:
        """Refuse several objectives, and commands that cannot answer.

        Raises
        ------
        WorkflowError
        """
        del space
        if "%OUT" not in self.command:
            raise WorkflowError(
                f"hpo.external({self.command!r}): no %OUT, so it cannot tell its points"
            )
        if len(brief.directions) > 1:
            raise WorkflowError("hpo.external: the steering protocol knows one loss only")

    def build(self, space: AnySpace, brief: Brief) -> External:
        """Make the optimizer."""
        return External(self, space, brief)


def external(
    command: str,
    *,
    points: int | None = None,
    timeout: float = 60.0,
    source: str | None = None,
) -> ExternalSpec:
    """Return an optimizer that is a command line.

    Parameters
    ----------
    command : str
        For the shell, run in a fresh directory into which the ``*.py``, ``*.sh``, ``*.json``
        and ``*.yaml`` files of ``source`` are brought. ``%IN`` and ``%OUT`` stand for file names
        in it, ``%NUM_POINTS`` for the points wanted now, ``%MAX_POINTS`` for those wanted in
        all (a million if the study has no number of trials). The study's seed is in the
        environment as ``PANDAFLOW_SEED``.
    points : int, optional
        Points wanted of each call. Default: half of the trials that run at the same time.
    timeout : float
        Seconds for a call.
    source : str, optional
        A directory. Default: the current one.

    Raises
    ------
    WorkflowError

    Examples
    --------
    >>> from pandaflow import hpo
    >>> steering = hpo.external("python opt.py %IN %OUT --n %NUM_POINTS --max %MAX_POINTS")
    """
    check_command("hpo.external", command, timeout)
    if points is not None and (type(points) is not int or points < 1):
        raise WorkflowError(f"hpo.external: points={points!r} must be a positive whole number")
    return ExternalSpec(command, points, float(timeout), os.path.abspath(source or os.getcwd()))


@dataclass(slots=True)
class _Row:
    """A line of the input file."""

    point: Point
    loss: float | None = None


class External:
    """Calls the command whenever the points of the last call are used up."""

    def __init__(self, spec: ExternalSpec, space: AnySpace, brief: Brief) -> None:
        self._spec, self._space, self._brief = spec, space, brief
        self._sign = -1.0 if brief.directions[0] == "maximize" else 1.0
        # Rows by trial, not by point: two trials with equal parameters are two trials.
        self._rows: dict[int, _Row] = {}
        self._last: dict[int, float] = {}
        self._ready: deque[Point] = deque()

    def ask(self, number: int) -> Asked:
        """Return the next point of the command.

        Raises
        ------
        Exhausted
            It has answered ``[]``.
        CommandFailed
            It failed, took too long, or wrote something else than points of the space.
        """
        memo: dict[str, Any] = {}
        if not self._ready:
            self._ready.extend(self._call())
            memo["batch"] = [dict(point) for point in self._ready]
        point = self._ready.popleft()
        twin = next((n for n, row in self._rows.items() if row.point == point), None)
        if twin is not None:
            memo["repeats"] = twin
        self._rows[number] = _Row(point)
        return Asked(dict(point), memo)

    def adopt(self, number: int, point: Point) -> Memo:
        """Show the command a point from elsewhere, without a loss as yet."""
        self._rows[number] = _Row(dict(point))
        return {}

    def tell(self, told: Told) -> Memo:
        """Keep the loss for the next call."""
        if told.point is not None:
            self._rows.setdefault(told.number, _Row(dict(told.point)))
        row = self._rows.get(told.number)
        value = told.values[0] if told.values else None
        if told.state == "pruned" and value is None:
            value = self._last.get(told.number)
        if row is not None and told.state != "failed" and value is not None:
            row.loss = self._sign * value + 0.0  # no negative zero
        return {}

    def report(self, number: int, step: int, value: float) -> bool:
        """Remember the value, should the trial be pruned; never prune."""
        del step
        self._last[number] = value
        return False

    def restore(self, entries: Sequence[Entry], snapshot: bytes | None = None) -> str:
        """Remember the entries, and the points that were ready."""
        del snapshot
        for entry in entries:
            self._replay(entry)
        return f"only {self._spec.command!r} knows whether it answers the same again"

    def snapshot(self) -> bytes | None:
        """The log is enough."""
        return None

    def _replay(self, entry: Entry) -> None:
        match entry:
            case AskEntry():
                self.adopt(entry.number, entry.point)
                if entry.own:
                    self._ready = deque(entry.memo.get("batch", self._ready))
                    if self._ready:
                        self._ready.popleft()
            case TellEntry():
                self.tell(entry.told)
            case ReportEntry():
                self.report(entry.number, entry.step, entry.value)

    # --- the call ---

    def _call(self) -> list[Point]:
        with tempfile.TemporaryDirectory(prefix="pandaflow-steering-") as workdir:
            bring_files(self._spec.source, workdir, without={_IN, _OUT, _STDERR})
            with open(os.path.join(workdir, _IN), "w", encoding="utf-8") as file:
                json.dump(self._document(), file)
            answer, said = self._run(workdir)
        if answer == []:
            raise Exhausted(f"{self._spec.command!r} has no further point")
        return self._parsed(answer, said)

    def _document(self) -> dict[str, Any]:
        space = space_to_phpo(self._space) if isinstance(self._space, Space) else None
        points = [[row.point, row.loss] for row in self._rows.values()]
        return {"points": points, "opt_space": space}

    def _run(self, workdir: str) -> tuple[Any, str]:
        # Errors go to a file of their own: what is printed must not push them out of sight.
        text = f"exec 2>{_STDERR}\n" + fill(
            self._spec.command,
            IN=_IN,
            OUT=_OUT,
            NUM_POINTS=self._wanted(),
            MAX_POINTS=self._brief.budget or UNLIMITED,
        )
        env = {"PANDAFLOW_SEED": str(self._brief.seed)}
        ended = run_shell(text, workdir, env=env, timeout=self._spec.timeout, write=_forget)
        said = f"steering command {self._spec.command!r}{_tail(os.path.join(workdir, _STDERR))}"
        check_end(ended, said)
        return read_json(workdir, _OUT, said), said

    def _wanted(self) -> int:
        wanted = self._spec.points or max(1, self._brief.outstanding // 2)
        if self._brief.budget is None:
            return wanted
        return max(1, min(wanted, self._brief.budget - len(self._rows)))

    def _parsed(self, answer: Any, said: str) -> list[Point]:
        if not isinstance(answer, list):
            raise CommandFailed(f"%OUT holds {type(answer).__name__}, no list of points: {said}")
        points = []
        for number, given in enumerate(answer):
            try:
                points.append(self._space.parse(given))
            except WorkflowError as error:
                raise CommandFailed(f"%OUT, point {number}: {error}: {said}") from None
        return points


def _forget(data: bytes) -> None:
    """What the command prints is of no interest."""


def _tail(path: str) -> str:
    """Return the last lines of what a command wrote to its standard error."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - 2_000))
            lines = file.read().decode(errors="replace").strip().splitlines()[-5:]
    except FileNotFoundError:
        return ""
    words = " | ".join(line.strip() for line in lines)[-1_000:]
    return f"; its last words: {words}" if words else "; it said nothing"
