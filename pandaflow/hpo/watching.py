"""Waiting for a study while showing how it goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandaflow.client import Run
    from pandaflow.hpo.study import Study


def study_line(study: Study) -> str:
    """Write a study as one line: name, state, trials, the best."""
    book, status = study.book, study.status
    counts = ", ".join(f"{n:,} {state}" for state, n in book.counts.items() if n) or "no trials"
    best = ""
    if book.best is not None:
        values = ", ".join(f"{value:.6g}" for value in book.best.values)
        best = f"; best {values} (trial {book.best.number})"
        if len(book.directions) > 1:
            best = f"; {len(book.front())} trials in the Pareto set"
    return f"{study.name} {status}: {counts}{best}"


def attend(
    study: Study, run: Run, progress: bool | None, callbacks: Callable[..., None] | None
) -> None:
    """Wait for the run of a study; ctrl-C cancels it and leaves the study to be resumed."""
    from pandaflow.display.progress import watch

    seen = len([trial for trial in study.trials if trial.state != "running"]) if callbacks else 0
    told: set[int] = {t.number for t in study.trials if t.state != "running"} if callbacks else set()
    del seen
    thread = run._thread
    assert thread is not None
    with watch(run.summary, mode="off" if progress is False else "auto") as view:
        try:
            while thread.is_alive():
                thread.join(0.25)
                view.refresh()
                _tell(study, told, callbacks)
        except KeyboardInterrupt:
            run.cancel()
            raise
    _tell(study, told, callbacks)
    run._raise_error()


def _tell(study: Study, told: set[int], callbacks: Any) -> None:
    if callbacks is None:
        return
    for trial in study.trials:
        if trial.state != "running" and trial.number not in told:
            told.add(trial.number)
            callbacks(study, trial)
