"""Live progress of a run: a table on a terminal, HTML in a notebook, two lines in a log.

A display is fed with snapshots of the run (:func:`pandaflow.display.snapshot.parse_run` tells
their form). It is a spectator: nothing that goes wrong here may reach the run, and refreshes
get rarer when they are slow.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from pandaflow.core.errors import PandaflowError
from pandaflow.display.progress_table import ProgressView
from pandaflow.display.snapshot import parse_run

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

Snapshot = Mapping[str, Any]

_log = logging.getLogger(__name__)

#: After a refresh that took t seconds, the next waits at least this times t (4 s at most): on a
#: slow terminal the picture gets rarer instead of the run slower.
_REST = 250.0


class _Screen(Protocol):
    """What a display draws on."""

    def draw(self, view: ProgressView) -> None: ...

    def finish(self, view: ProgressView) -> None: ...


class _Terminal:
    """Lines redrawn in place, by ``rich.live``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live: Live | None = None

    def draw(self, view: ProgressView) -> None:
        if self._live is None:
            from rich.live import Live

            console = _console(self._stream)
            self._live = Live(
                view,
                console=console,
                # drawn when told to, so no thread of its own competes with the run
                auto_refresh=False,
                # what is piped must not end up among the lines redrawn
                redirect_stdout=_is_tty(sys.stdout),
            )
            self._live.start()
        self._live.refresh()

    def finish(self, view: ProgressView) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    class Harmless(Console):
        """Falls silent on a broken pipe, where rich would end the program."""

        def on_broken_pipe(self) -> None:
            self.quiet = True

    return Harmless(file=stream, force_terminal=True, highlight=False)


class _Notebook:
    """HTML in one output cell, replaced in place."""

    def __init__(self) -> None:
        self._handle: Any = None

    def draw(self, view: ProgressView) -> None:
        # IPython has no complete types
        from IPython import display as ipython

        shown = ipython.HTML(view.html())  # type: ignore[no-untyped-call]
        if self._handle is None:
            self._handle = ipython.display(  # type: ignore[no-untyped-call]
                shown, display_id=True
            )
        elif self._handle:
            self._handle.update(shown)

    def finish(self, view: ProgressView) -> None:
        self.draw(view)


class _Lines:
    """One line when the run starts and one when it ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._begun = stream, False

    def draw(self, view: ProgressView) -> None:
        if not self._begun:
            self._begun = self._write(view.first_line())

    def finish(self, view: ProgressView) -> None:
        self._write(view.last_line())

    def _write(self, line: str) -> bool:
        if line:
            self._stream.write(f"pandaflow: {line}\n")
            self._stream.flush()
        return bool(line)


def _display_errors() -> tuple[type[Exception], ...]:
    """Name what drawing can raise: broken pipes, odd encodings, closed streams, bad snapshots."""
    errors: tuple[type[Exception], ...] = (OSError, ValueError, RuntimeError, LookupError)
    errors += (TypeError, AttributeError, ImportError, PandaflowError)
    with suppress(ImportError):
        from rich.errors import ConsoleError

        errors += (ConsoleError,)
    return errors


class Progress:
    """A display that cannot harm the run: after its first error it falls silent.

    Parameters
    ----------
    screen : object or None
        Draws; None shows nothing.
    fetch : callable, optional
        Returns the newest snapshot.
    clock : callable
        Returns seconds since the epoch.
    every : float
        Seconds between refreshes at least.
    view : ProgressView, optional
        What is shown; default: the run.
    """

    def __init__(
        self,
        screen: _Screen | None,
        *,
        fetch: Callable[[], Snapshot] | None = None,
        clock: Callable[[], float] = time.time,
        every: float = 0.2,
        view: ProgressView | None = None,
    ) -> None:
        self._screen, self._fetch, self._clock, self._every = screen, fetch, clock, every
        self._view = ProgressView() if view is None else view
        self._next, self._closed = float("-inf"), False
        self._errors = _display_errors() if screen is not None else ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def update(self, snapshot: Snapshot) -> None:
        """Show ``snapshot`` unless the last refresh was a moment ago; never raises."""
        now = self._clock()
        if self._is_due(now):
            self._show(snapshot, now, time.perf_counter())

    def refresh(self) -> None:
        """Ask ``fetch`` for a snapshot and show it, if a refresh is due."""
        now = self._clock()
        if self._fetch is not None and self._is_due(now):
            begun = time.perf_counter()
            self._show(self._fetch(), now, begun)

    def _is_due(self, now: float) -> bool:
        return self._screen is not None and not self._closed and now >= self._next

    def _show(self, snapshot: Snapshot, now: float, begun: float) -> None:
        assert self._screen is not None
        first = self._next == float("-inf")
        try:
            self._view.update(snapshot, now)
            self._screen.draw(self._view)
        except self._errors as error:
            self._silence(error)
        # the first time imports what draws, which says nothing of the next
        rest = 0.0 if first else min(_REST * (time.perf_counter() - begun), 4.0)
        self._next = now + max(self._every, rest)

    def close(self, snapshot: Snapshot | None = None) -> None:
        """Show the last ``snapshot`` and leave the screen in order; may be called twice.

        Without a snapshot, ``fetch`` is asked for it.
        """
        if self._screen is None or self._closed:
            return
        self._closed = True
        try:
            if snapshot is None and self._fetch is not None:
                snapshot = self._fetch()
            if snapshot is not None:
                self._view.update(snapshot, self._clock())
                self._screen.draw(self._view)
            self._screen.finish(self._view)
        except self._errors as error:
            self._silence(error)

    def follow(self, done: threading.Event, every: float = 0.25) -> None:
        """Show what ``fetch`` returns until ``done`` is set or the run has ended.

        Errors of ``fetch`` reach the caller: here the display is all there is.
        """
        if self._fetch is None:
            raise ValueError("nothing to follow: watch() was given no fetch")
        snapshot = self._fetch()
        while not parse_run(snapshot).ended and not done.is_set():
            self.update(snapshot)
            done.wait(every)
            snapshot = self._fetch()
        self.close(snapshot)

    def _silence(self, error: Exception) -> None:
        _log.warning("progress is not shown any more: %r", error)
        screen, self._screen = self._screen, None
        if screen is not None:
            with suppress(*self._errors):
                screen.finish(self._view)


_SCREENS: Mapping[str, Callable[[TextIO], _Screen]] = {"tty": _Terminal, "quiet": _Lines}


def in_notebook() -> bool:
    """Return whether this process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


def watch(
    fetch: Callable[[], Snapshot] | None = None,
    *,
    mode: str = "auto",
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.time,
    every: float = 0.2,
    view: ProgressView | None = None,
) -> Progress:
    """Return a display for a run, a context manager.

    Parameters
    ----------
    fetch : callable, optional
        Returns the run's snapshot; asked by ``follow``, and by ``close`` for the last one.
    mode : {'auto', 'tty', 'notebook', 'quiet', 'off'}
        ``auto`` looks where it is: a notebook's kernel, a terminal, else quiet.
    stream : text file, optional
        Default: standard error, so that standard output stays clean for pipes.
    clock : callable
        Returns seconds since the epoch.
    every : float
        Seconds between refreshes at least.
    view : ProgressView, optional
        What is shown; default: the run.

    Raises
    ------
    ValueError
        There is no such mode.
    """
    stream = sys.stderr if stream is None else stream
    if mode == "auto":
        mode = "notebook" if in_notebook() else "tty" if _is_tty(stream) else "quiet"
    if mode not in ("tty", "notebook", "quiet", "off"):
        raise ValueError(f"progress mode {mode!r}: use auto, tty, notebook, quiet or off")
    screen: _Screen | None = None
    if mode != "off":
        screen = _Notebook() if mode == "notebook" else _SCREENS[mode](stream)
    return Progress(screen, fetch=fetch, clock=clock, every=every, view=view)


def _is_tty(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # a closed stream
        return False
