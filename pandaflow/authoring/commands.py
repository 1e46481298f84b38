"""Tasks whose payload is a command line, with PanDA's placeholders."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from pandaflow.authoring.tasks import Task
from pandaflow.authoring.trace import ACTIVE, serialize
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import File, PayloadKind
from pandaflow.executors.command import CommandPayload, parse_command
from pandaflow.options import Options, change


class CommandTask(Task):
    """A task that runs a command line; made by :func:`command`."""

    kind: PayloadKind = "command"

    def __init__(self, function: Any, options: Options) -> None:
        self.function: Any = function
        self._options = options
        self.__name__ = options.name
        self.__doc__ = f"Run {function.text}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Note a call; outside of a workflow a command cannot be called."""
        if ACTIVE.get() is None:
            raise WorkflowError(
                f"command {self.name!r} runs as jobs: call it inside a @pf.workflow function"
            )
        return super().__call__(*args, **kwargs)

    def payload(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Return the pickled payload."""
        made = CommandPayload(self.function.text, args, kwargs, True, self.function.env)
        return serialize(made, self.name, (None, args, kwargs))

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any] | None:
        """Check that the placeholders fit the arguments."""
        try:
            parse_command(self.function.text).check(len(args), list(kwargs))
        except WorkflowError as error:
            raise WorkflowError(f"command {self.name!r}: {error}") from None
        return None

    def annotations(self) -> Mapping[str, Any]:
        """Return what a job's value is: a file, files by name, or text."""
        outputs = parse_command(self.function.text).outputs
        return {"return": {0: str, 1: File}.get(len(outputs), dict)}

    def token(self) -> str:
        """Return a hash of the command line."""
        text = repr((self.function.text, sorted((self.function.env or {}).items())))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class _Line:
    """A command line and its environment."""

    def __init__(self, text: str, env: Mapping[str, str] | None) -> None:
        self.text, self.env = text, env


def command(template: str, *, env: Mapping[str, str] | None = None, **options: Any) -> CommandTask:
    """Make a task of a command line.

    Parameters
    ----------
    template : str
        A shell command. ``%IN`` stands for the job's input files (``%IN2``, ... for further
        arguments), ``%OUT{hist.root}`` for a file that it writes, ``%RNDM:n`` for n + job
        number, ``%MAXEVENTS``, ``%SKIPEVENTS``, ``%FIRSTEVENT`` for the job's events,
        ``%CORE_NUMBER`` for its cores, ``%{name}`` for a keyword argument, ``%%`` for a
        percent sign.
    env : mapping of str to str, optional
        Variables added to the environment.
    **options
        As for ``@pf.task``.

    Returns
    -------
    task
        Its jobs give the output file (one ``%OUT``), a dict of files by name (several), or
        what the command printed (none).

    Examples
    --------
    >>> import pandaflow as pf
    >>> count = pf.command("wc -l < %IN", name="count")
    """
    if not isinstance(template, str) or not template.strip():
        raise WorkflowError("pf.command takes a command line as text")
    parse_command(template)
    first = template.split()[0].rsplit("/", 1)[-1]
    name = "".join(c for c in first if c.isalnum() or c in "-_.") or "command"
    return CommandTask(_Line(template, env), change(Options(name=name), options))
