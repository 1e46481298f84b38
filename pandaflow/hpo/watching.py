"""Waiting for a study while showing how it goes."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pandaflow.display import units
from pandaflow.display.html import run_html
from pandaflow.display.progress import Progress, in_notebook, watch
from pandaflow.display.progress_table import WINDOW, ProgressView
from pandaflow.display.style import state_colour, status_colour
from pandaflow.hpo.book import Book, TrialRecord

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from pandaflow.client import Run
    from pandaflow.hpo.looking import Looking
    from pandaflow.hpo.study import Study

#: Seconds between refreshes at least; slow ones get rarer by themselves.
_EVERY_S = 0.5
#: Seconds between two looks for what callbacks want to hear.
_GLANCE_S = 0.25


def study_line(study: Looking) -> str:
    """Write a study as one line: name, state, trials, the best."""
    return summary_line(study.name, study.status, study.book.summary())


def summary_line(name: str, status: str, summary: Mapping[str, Any]) -> str:
    """Write a study as one line, from the summary that the store has of it."""
    counts = (f"{n:,} {state}" for state, n in summary.get("trials", {}).items() if n)
    best = best_text(summary)
    return f"{name} {status}: {', '.join(counts) or 'no trials'}{'; ' if best else ''}{best}"


def best_text(summary: Mapping[str, Any]) -> str:
    """Write the best trial in a few words, or how many are in the Pareto set; empty for none."""
    best = summary.get("best")
    if best is None:
        return ""
    if len(best) > 1:
        return f"{units.plural(summary['front'], 'trials')} in the Pareto set"
    return f"best {best[0]:.6g} (trial {summary['best_trial']})"


def params_text(params: dict[str, Any]) -> str:
    """Write parameters in a line: ``lr=0.00123, kind=bdt``."""
    return ", ".join(f"{name}={value_text(value)}" for name, value in params.items())


def value_text(value: Any) -> str:
    """Write a value of a parameter, briefly."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return units.clip(value if isinstance(value, str) else repr(value), 40)


class StudyView(ProgressView):
    """A study while it runs: its run's table and a line, or its HTML view.

    The log's new records are read when something is drawn, and only then.

    Parameters
    ----------
    study : Study
    n_trials : int, optional
        Trials that there are to be in all.
    """

    below = 2

    def __init__(self, study: Study, n_trials: int | None = None) -> None:
        super().__init__()
        self._study, self._n_trials = study, n_trials
        self._known = study.book.told
        self._told: deque[tuple[float, int]] = deque()

    def _look(self) -> Book:
        """Read what is new, and note how many trials have ended by now."""
        book = self._study.book
        self._told.append((self.now, book.told))
        while len(self._told) > 2 and self._told[1][0] < self.now - WINDOW:
            self._told.popleft()
        return book

    @property
    def trial_rate(self) -> float | None:
        """Trials per second over the last seconds; None while it is not known."""
        if len(self._told) < 2:
            return None
        (start, before), (end, after) = self._told[0], self._told[-1]
        return (after - before) / (end - start) if end > start and after > before else None

    def _speed(self, book: Book) -> str:
        rate = self.trial_rate
        if rate is None or self.run is None or self.run.ended:
            return ""
        text = f"{units.rate(rate).replace('/', ' trials/', 1)}"
        if self._n_trials is not None and self._n_trials > book.told:
            text += f"  ETA {units.duration((self._n_trials - book.told) / rate)}"
        return text

    # --- a log --------------------------------------------------------------------------

    def first_line(self) -> str:
        """Return what a log says when the study starts."""
        if self.run is None:
            return ""
        known = f"{units.plural(self._known, 'trials')} known, " if self._known else ""
        wanted = f"{units.plural(self._n_trials, 'trials')} wanted, " if self._n_trials else ""
        return f"study {self._study.name} started: {known}{wanted}run {self.run.id}"

    def last_line(self) -> str:
        """Return what a log says when the study has ended."""
        return f"study {study_line(self._study)}"

    # --- a notebook ---------------------------------------------------------------------

    def html(self) -> str:
        """Return the study's view, and the table of a run that has several tasks."""
        from pandaflow.hpo.plots import study_html

        speed = self._speed(self._look())
        table = ""
        if self.run is not None and len(self.run.shown) > 1:
            table = run_html(self.run, self.now)
        return study_html(self._study, self._n_trials, speed) + table

    # --- a terminal ---------------------------------------------------------------------

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the run's lines and those of the study."""
        from rich.segment import Segment
        from rich.style import Style

        if self.run is None:
            return
        yield from super().__rich_console__(console, options)
        for parts in self._study_lines():
            left = options.max_width - 1
            for text, style in parts:
                yield Segment(units.clip(text, left), Style.parse(style) if style else None)
                left = max(left - len(text), 0)
            yield Segment.line()

    def _study_lines(self) -> Iterator[list[tuple[str, str]]]:
        """Yield texts with their styles, line by line."""
        book = self._look()
        running = self.run is not None and not self.run.ended
        yield [
            (f"◆ {self._study.name}  ", f"bold {status_colour('running' if running else 'done')}"),
            *self._counts(book),
            (f"  {best_text(book.summary())}" if book.best else "", "bold"),
            (f"  {self._speed(book)}", "dim"),
        ]
        if book.best is not None and len(book.directions) == 1:
            yield [(f"  {params_text(self._study.params_of(book.best))}", "dim")]

    def _counts(self, book: Book) -> Iterator[tuple[str, str]]:
        wanted = f"/{self._n_trials:,}" if self._n_trials else ""
        yield f"{book.told:,}{wanted} trials", ""
        for state, colour in (("running", ""), ("failed", state_colour("failed")), ("pruned", "")):
            if book.counts[state]:
                yield f", {book.counts[state]:,} {state}", colour


# --- waiting ----------------------------------------------------------------------------


class _Callbacks:
    """Calls a function for each trial that ends, in the order in which they end."""

    def __init__(self, study: Study, function: Callable[..., None] | None) -> None:
        self._study, self._function = study, function
        self._next, self._open = 0, dict[int, TrialRecord]()
        if function is not None:
            self._ended()  # those of earlier sessions

    def tell(self) -> None:
        """Call the function for those that have ended since the last time."""
        if self._function is not None:
            for trial in self._ended():
                self._function(self._study, trial)

    def _ended(self) -> list[TrialRecord]:
        trials = self._study.book.trials
        self._open |= {trial.number: trial for trial in trials[self._next :]}
        self._next = len(trials)
        ended = [trial for trial in self._open.values() if trial.state != "running"]
        for trial in ended:
            del self._open[trial.number]
        return sorted(ended, key=lambda trial: trial.ended)


class Audience:
    """Those who watch a study: displays and callbacks. Made before its run begins.

    Parameters
    ----------
    study : Study
    progress : bool, optional
        False: show nothing.
    callbacks : callable, optional
        Called with the study and each trial that ends.
    n_trials : int, optional
        Trials that there are to be in all, to tell how long it will take.
    """

    def __init__(
        self,
        study: Study,
        progress: bool | None = None,
        callbacks: Callable[..., None] | None = None,
        n_trials: int | None = None,
    ) -> None:
        self._study, self._mode = study, "off" if progress is False else "auto"
        self._calls = _Callbacks(study, callbacks)
        self._view = StudyView(study, n_trials)

    def attend(self, run: Run) -> None:
        """Wait until the run has ended; ctrl-C cancels it and leaves the study to be resumed."""
        with watch(run.summary, mode=self._mode, every=_EVERY_S, view=self._view) as display:
            try:
                self._follow(run, display)
            except KeyboardInterrupt:
                run.cancel()
                raise
            except BaseException:  # whatever a callback raises: nobody would look after the run
                run.stop()
                raise
        if self._mode == "auto" and in_notebook():
            self._study._shown_in = cell()
        run._raise_error()

    def _follow(self, run: Run, display: Progress) -> None:
        thread = run._thread  # None: jobs ran in the caller, and have ended
        while thread is not None and thread.is_alive():
            thread.join(_GLANCE_S)
            display.refresh()
            self._calls.tell()
        self._calls.tell()


def cell() -> int | None:
    """Return the number of the notebook's cell that is executed; None outside notebooks."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return None if shell is None else int(shell.execution_count)
