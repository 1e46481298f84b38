"""Wait for a run, show how it goes, and stop it decently when told to.

Progress goes to standard error, so that standard output holds results only. Ctrl-C cancels the
run; SIGTERM and a lost terminal only stop the driver, so that the run can be resumed.
"""

from __future__ import annotations

import signal
import sys
from pprint import pformat
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pandaflow.cli.output import json_text
from pandaflow.core.status import RunStatus

if TYPE_CHECKING:
    from pandaflow.client import Run

#: Seconds between two looks at a run.
GLANCE = 0.25
EXIT_FAILED, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 130, 143
#: More jobs than this: their results are not loaded just to be printed.
PRINTABLE = 10_000

GOOD = frozenset({RunStatus.DONE, RunStatus.FINISHED})


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived; like KeyboardInterrupt no ordinary error."""


class Ears:
    """Hears signals, also those whose exception somebody else swallowed.

    A handler's exception arises wherever the main thread happens to be; in a finalizer, say, it
    is lost. So it is also noted, and :meth:`check` raises it again.
    """

    def __init__(self) -> None:
        self._heard: BaseException | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Ears:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _frame: FrameType | None) -> NoReturn:
        self._heard = KeyboardInterrupt() if number == signal.SIGINT else Terminated()
        raise self._heard

    def check(self) -> None:
        """Raise what was heard and never reached anybody."""
        if self._heard is not None:
            raise self._heard


def follow(run: Run, *, quiet: bool) -> None:
    """Wait until ``run`` has ended; exits the process when a signal says so.

    Parameters
    ----------
    run : Run
        Driven by this process.
    quiet : bool
        Show no progress.
    """
    with Ears() as ears:
        try:
            _wait(run, quiet, ears)
        except KeyboardInterrupt:
            _cancel(run)
        except Terminated:
            run.stop()
            _say(f"stopped; go on with: pandaflow resume {run.id}")
            sys.exit(EXIT_TERMINATED)


def follow_left(run: Run, server: str, *, quiet: bool) -> None:
    """Wait until a run that was left with a server has ended; a signal only ends the watching.

    Parameters
    ----------
    run : Run
    server : str
        Its address.
    quiet : bool
        Show no progress.
    """
    with Ears() as ears:
        try:
            _wait(run, quiet, ears)
        except (KeyboardInterrupt, Terminated) as stopped:
            _say(f"{run.id} goes on; look again with: {_again(run, server)}")
            interrupted = isinstance(stopped, KeyboardInterrupt)
            sys.exit(EXIT_INTERRUPTED if interrupted else EXIT_TERMINATED)


def detached(run: Run, server: str, *, as_json: bool) -> NoReturn:
    """Tell the id of a run that was left with a server, how to look at it, and exit."""
    if as_json:
        click.echo(json_text(run.summary(), indent=2))
    else:
        click.echo(run.id)
        _say(f"left with {server}; look at it with: {_again(run, server)}")
    sys.exit(0)


def _again(run: Run, server: str) -> str:
    return f"pandaflow --store {server} status {run.id}"


def _wait(run: Run, quiet: bool, ears: Ears) -> None:
    from pandaflow.display.progress import watch

    with watch(run.summary, mode="off" if quiet else "auto") as progress:
        while not _over(run):
            ears.check()
            progress.update(run.summary())


def _over(run: Run) -> bool:
    try:
        run.wait(timeout=GLANCE)
    except TimeoutError:
        return False
    return True


def _cancel(run: Run) -> NoReturn:
    _say(f"cancelling {run.id}")
    run.cancel()
    run.stop()
    _say(f"{run.id} is {run.status}; 'pandaflow retry {run.id}' runs what is missing")
    sys.exit(EXIT_INTERRUPTED)


def interrupted() -> NoReturn:
    """Tell that Ctrl-C stopped a run in this very thread, and exit."""
    _say("stopped; go on with: pandaflow resume last")
    sys.exit(EXIT_INTERRUPTED)


def _say(text: str) -> None:
    click.echo(f"pandaflow: {text}", err=True)


def shown(result: object) -> str:
    """Return a result as people read it: containers over several lines."""
    if isinstance(result, dict | list | tuple):
        return pformat(result, width=100, sort_dicts=False, compact=True)
    return repr(result)


def conclude(run: Run, *, as_json: bool, show: Any = shown) -> NoReturn:
    """Tell what came of a run and exit with its code: 0 for done or finished, else 1.

    Parameters
    ----------
    run : Run
        Has ended.
    as_json : bool
        Write the summary with the result instead of the result alone.
    show : callable
        Makes text of a result.

    Raises
    ------
    RunFailed
        Names the jobs that failed, and their causes.
    """
    summary = run.summary()
    good = summary["status"] in GOOD
    result = _result(run, summary) if good else None
    if as_json:
        click.echo(json_text({**summary, "result": result}, indent=2))
    elif result is not None:
        click.echo(show(result))
    if summary["status"] == RunStatus.ABORTED:
        _say(f"{run.id} was cancelled; 'pandaflow retry {run.id}' runs what is missing")
    elif not good:
        run.result()
    sys.exit(0 if good else EXIT_FAILED)


def _result(run: Run, summary: dict[str, Any]) -> Any:
    if sum(sum(task["jobs"].values()) for task in summary["tasks"]) > PRINTABLE:
        _say(f"too many results to print: pandaflow.attach({run.id!r}).result()")
        return None
    return run.result()
