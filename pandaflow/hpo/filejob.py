"""Objectives and steering as command lines that speak through JSON files, as PanDA's do.

Evaluation: the command finds the point in ``input.json`` in its work directory and leaves
``{"status": 0, "loss": 1.5, "message": "..."}`` in ``output.json``. Source: the iDDS manual,
"User-defined Evaluation Container".
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from pandaflow.core.errors import PandaflowError, WorkflowError
from pandaflow.core.model import Failure
from pandaflow.executors.payload import current_job
from pandaflow.executors.process import Ended, Limits, Process

#: What PanDA copies from the directory of submission to the work directory.
_LINKED, _COPIED = (".py", ".sh"), (".json", ".yaml")
_RESERVED = {"status", "loss", "message"}
_LEFT = Failure(kind="cancelled", message="stopped while it ran", charged=False)
#: Seconds after which an exception that stops the thread is seen at the latest.
_POLL = 0.05


class CommandFailed(PandaflowError, RuntimeError):
    """A command did not do its part of the file protocol; says what and shows its last words."""


@dataclass(frozen=True)
class Command:
    """An objective that is a command line.

    Parameters
    ----------
    command : str
        For the shell. ``%IN`` and ``%OUT`` stand for the names of the two files, both in the
        work directory in which it is run.
    input : str
        Name of the file that gets the point, a JSON object.
    output : str
        Name of the file that it must write, a JSON object: ``status`` (0 if absent; all else is
        a failure), ``loss`` (a finite number; a list of them for several objectives) and
        ``message`` (optional). What else is in it is kept with the trial.
    env : mapping, optional
        Added to the environment.
    timeout : float, optional
        Seconds.
    source : str, optional
        Directory whose ``*.py``, ``*.sh``, ``*.json`` and ``*.yaml`` files are brought to the
        work directory, as PanDA's client does it. Default: where this object was made.
    metadata : str, optional
        Name of a JSON file that the command may write; kept with the trial.

    Examples
    --------
    >>> from pandaflow import hpo
    >>> objective = hpo.Command("python train.py --in %IN --out %OUT", timeout=3600)
    """

    command: str
    input: str = "input.json"
    output: str = "output.json"
    env: Mapping[str, str] | None = None
    timeout: float | None = None
    source: str | None = None
    metadata: str | None = None

    def __post_init__(self) -> None:
        check_command("hpo.Command", self.command, self.timeout)
        names = [name for name in (self.input, self.output, self.metadata) if name is not None]
        for name in names:
            if not isinstance(name, str) or not name or os.path.basename(name) != name:
                raise WorkflowError(f"hpo.Command: {name!r} must be a file name, not a path")
        if len(set(names)) < len(names):
            raise WorkflowError(f"hpo.Command: the files need different names, not {names}")
        object.__setattr__(self, "source", os.path.abspath(self.source or os.getcwd()))

    @property
    def __name__(self) -> str:
        """What the job's task is called: the program, or the script that it runs."""
        words = self.command.split()
        scripts = [word for word in words if word.endswith((".py", ".sh"))]
        name = os.path.basename((scripts or words)[0]).split(".")[0]
        return re.sub(r"\W", "_", name) or "command"

    def describe(self) -> dict[str, Any]:
        """Return what decides about the result, as JSON-ready values."""
        return {"command": self.command, "input": self.input, "output": self.output}

    def __call__(self, **arguments: Any) -> Any:
        """Evaluate a point.

        Returns
        -------
        float, list of float or dict
            The loss; as ``{"value": loss, "attrs": {...}}`` if the command told more.

        Raises
        ------
        CommandFailed
            It exited with an error, took too long, or left no usable output.
        """
        with _workdir() as workdir:
            return self._evaluate(workdir, arguments)

    def _evaluate(self, workdir: str, arguments: Mapping[str, Any]) -> Any:
        mine = {self.input, self.output, self.metadata or ""}
        for name in mine - {""}:  # an earlier attempt's output must not count
            _remove(os.path.join(workdir, name))
        bring_files(self.source or "", workdir, without=mine)
        _write_point(os.path.join(workdir, self.input), arguments)
        text = fill(self.command, IN=self.input, OUT=self.output)
        ended = run_shell(text, workdir, env=self.env, timeout=self.timeout, write=_printer())
        said = f"{self.command!r}{_last(ended.last)}"
        check_end(ended, said)
        answer = _answer(workdir, self.output, said)
        attrs = {name: value for name, value in answer.items() if name not in _RESERVED}
        if answer.get("message"):
            attrs["message"] = str(answer["message"])
        attrs |= self._metadata(workdir, said)
        loss = _loss(answer, f"{self.output} of {said}")
        return {"value": loss, "attrs": attrs} if attrs else loss

    def _metadata(self, workdir: str, said: str) -> dict[str, Any]:
        if self.metadata is None or not os.path.exists(os.path.join(workdir, self.metadata)):
            return {}
        return {"metadata": read_json(workdir, self.metadata, said)}


# --- parts that steering commands need, too -----------------------------------------------


def check_command(what: str, command: Any, timeout: float | None) -> None:
    """Refuse what is no command line or no time-out.

    Raises
    ------
    WorkflowError
    """
    if not isinstance(command, str) or not command.strip():
        raise WorkflowError(f"{what} takes a command line as text, not {command!r}")
    if timeout is not None and (isinstance(timeout, bool) or not timeout > 0):
        raise WorkflowError(f"{what}: timeout={timeout!r} must be a positive number of seconds")


def fill(command: str, **values: str | int) -> str:
    """Replace ``%NAME`` by values; other words with a ``%`` stay as they are."""
    names = "|".join(sorted(values, key=len, reverse=True))
    return re.sub(rf"%({names})\b", lambda found: str(values[found[1]]), command)


def bring_files(source: str, workdir: str, *, without: set[str]) -> None:
    """Bring scripts and settings of a directory to a work directory, if it is there.

    Scripts are linked, so that Python finds packages beside them. Settings are copied: a command
    that writes a file of the same name must not write through a link.
    """
    if not os.path.isdir(source) or os.path.samefile(source, workdir):
        return
    for entry in os.scandir(source):
        target = os.path.join(workdir, entry.name)
        wanted = entry.name.endswith(_LINKED + _COPIED) and entry.name not in without
        if not wanted or not entry.is_file() or os.path.lexists(target):
            continue
        if entry.name.endswith(_LINKED):
            os.symlink(os.path.abspath(entry.path), target)
        else:
            shutil.copyfile(entry.path, target)


def run_shell(
    command: str,
    workdir: str,
    *,
    env: Mapping[str, str] | None,
    timeout: float | None,
    write: Callable[[bytes], None],
) -> Ended:
    """Run a command line in a session of its own; none of its processes is left afterwards.

    The calling thread may be stopped by an exception at any moment: the command belongs to
    another thread, which no such exception hits and which ends it when we leave.

    Raises
    ------
    CommandFailed
        It cannot be started.
    """
    leave, result = threading.Event(), Future[Ended]()

    def own() -> None:
        try:
            process = Process(
                ["/bin/sh", "-c", command],
                workdir=workdir,
                env={**os.environ, **(env or {}), "PWD": workdir},
                write=write,
                keep=0,
            )
            limits = Limits(walltime=timeout)
            result.set_result(process.wait(limits, lambda: _LEFT if leave.is_set() else None))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller must see it
            result.set_exception(error)

    thread = threading.Thread(target=copy_context().run, args=(own,), name="command")
    try:
        thread.start()
        while not result.done():
            wait([result], timeout=_POLL)
    finally:
        leave.set()
        if thread.ident is not None:
            thread.join()
    try:
        return result.result()
    except OSError as error:
        raise CommandFailed(f"{command!r} cannot be started: {error}") from None


def check_end(ended: Ended, said: str) -> None:
    """Raise unless a command ended well; ``said`` names it and shows its last words."""
    if ended.stopped is not None:
        text = ended.stopped.message.replace("walltime", "time-out")
        raise CommandFailed(f"{text}: {said}")
    if ended.code:
        how = f"exit code {ended.code}" if ended.code > 0 else f"ended by signal {-ended.code}"
        raise CommandFailed(f"{how}: {said}")


def read_json(workdir: str, name: str, said: str) -> Any:
    """Return the content of a JSON file that a command was to write.

    Raises
    ------
    CommandFailed
        It is missing, or no JSON; names it.
    """
    try:
        with open(os.path.join(workdir, name), "rb") as file:
            return json.load(file)
    except FileNotFoundError:
        raise CommandFailed(f"did not write {name}: {said}") from None
    except (ValueError, RecursionError, OSError) as error:
        raise CommandFailed(f"{name} is no JSON file ({error}): {said}") from None


def is_finite(number: float) -> bool:
    """Tell whether a number is finite as a float; JSON also has whole numbers of any length."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


@contextmanager
def _workdir() -> Iterator[str]:
    """Give the job's directory; outside a job one that goes away again."""
    try:
        workdir = current_job().workdir
    except WorkflowError:
        with tempfile.TemporaryDirectory(prefix="pandaflow-") as workdir:
            yield workdir
        return
    yield workdir


def _remove(path: str) -> None:
    if os.path.lexists(path):
        os.unlink(path)


def _write_point(path: str, arguments: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CommandFailed(
                f"parameter {name!r} cannot be written to {os.path.basename(path)}: {error}"
            ) from None
    with open(path, "w", encoding="utf-8") as file:
        json.dump(dict(arguments), file)


def _printer() -> Callable[[bytes], None]:
    """Return what passes output on to the job's log."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    # The job's log is whatever standard output is in a job.
    return lambda data: print(decoder.decode(data), end="", flush=True)  # noqa: T201


def _last(words: str) -> str:
    return f"; its last words: {words}" if words else "; it printed nothing"


def _answer(workdir: str, name: str, said: str) -> dict[str, Any]:
    answer = read_json(workdir, name, said)
    if not isinstance(answer, dict):
        raise CommandFailed(f"{name} holds {type(answer).__name__}, no JSON object: {said}")
    status = answer.get("status", 0)
    if type(status) is not int or status != 0:
        message = answer.get("message", "no message")
        raise CommandFailed(f"{name} has status {status!r} ({message}): {said}")
    return answer


def _loss(answer: Mapping[str, Any], where: str) -> float | list[float]:
    if "loss" not in answer:
        raise CommandFailed(f"no loss in {where}")
    loss = answer["loss"]
    if isinstance(loss, list) and loss:
        return [_number(value, where) for value in loss]
    return _number(loss, where)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_finite(value):
        raise CommandFailed(f"loss {value!r} is no finite number, in {where}")
    return float(value)
