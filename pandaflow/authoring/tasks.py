"""Tasks: templates of jobs, and how their calls are noted."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pandaflow.authoring.arguments import Arguments
from pandaflow.authoring.collections import After, Collection, Placed, Whole
from pandaflow.authoring.trace import ACTIVE, Trace, serialize
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import PayloadKind
from pandaflow.core.signature import code_token, hints
from pandaflow.core.template import Payload
from pandaflow.options import Options, change, name_of


class Task:
    """A job template; made by ``@pf.task`` or :func:`command`.

    Called inside a workflow it maps over the collections among its arguments. Called
    elsewhere with plain values it is the plain function, which makes it easy to test.
    """

    kind: PayloadKind = "function"

    def __init__(self, function: Callable[..., Any], options: Options) -> None:
        self.function, self._options = function, options
        functools.update_wrapper(self, function, updated=())

    @property
    def name(self) -> str:
        """The name under which its jobs appear."""
        return self._options.name

    def options(self, **changes: Any) -> Task:
        """Return a changed copy.

        Examples
        --------
        >>> import pandaflow as pf
        >>> @pf.task(retries=1)
        ... def double(x):
        ...     return 2 * x
        >>> double.options(memory="2 GiB", retries=3)
        <task double: memory=2147483648, retries=3>
        """
        return type(self)(self.function, change(self._options, changes))

    def _repr_html_(self) -> str:
        from html import escape

        lines = (self.__doc__ or "").strip().splitlines()
        first = f"<br><i>{escape(lines[0])}</i>" if lines else ""
        return f"<code>{escape(repr(self))}</code>{first}"

    def __repr__(self) -> str:
        o = self._options
        said = {
            **{
                k: getattr(o.split, k)
                for k in ("events_per_job", "items_per_job", "gb_per_job", "n_jobs")
            },
            "memory": o.resources.memory,
            "walltime": o.resources.walltime,
            "retries": o.retry.retries or None,
        }
        text = ", ".join(f"{k}={v}" for k, v in said.items() if v is not None)
        return f"<task {self.name}{': ' + text if text else ''}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Note a call in the workflow that is being written, or just call the function."""
        trace = ACTIVE.get()
        if trace is not None:
            return self._note(trace, args, kwargs)
        if any(
            isinstance(value, Collection | Whole | After) for value in (*args, *kwargs.values())
        ):
            raise WorkflowError(
                f"task {self.name!r} was called on a dataset outside of a workflow; call it in a "
                "function decorated with @pf.workflow"
            )
        return self.function(*args, **kwargs)

    def _note(self, trace: Trace, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Placed:
        call = Arguments(self, trace)
        call.read(args, kwargs)
        return call.place()

    def payload(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Return the pickled payload with ``args`` and ``kwargs`` as templates.

        Raises
        ------
        WorkflowError
            The function or an argument cannot be serialized.
        """
        return serialize(
            Payload(self.function, args, kwargs), self.name, (self.function, args, kwargs)
        )

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any] | None:
        """Return arguments by parameter name, None where there is no signature to check."""
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):
            return None
        try:
            return signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise WorkflowError(f"task {self.name!r}: {error}; it takes {signature}") from None

    def annotations(self) -> Mapping[str, Any]:
        """Return the types of parameters and of ``return``."""
        return hints(self.function)

    def token(self) -> str:
        """Return a hash of the code."""
        return code_token(self.function)


def task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a task of a function.

    Parameters
    ----------
    files_per_job, items_per_job, gb_per_job, events_per_job, n_jobs : optional
        The split rule. With one, the function gets the list of its job's items; without,
        there is one job per item and the function gets the item. Given together, events beat
        files/items beat GB beat n_jobs, as in PanDA.
    cores, memory, walltime, disk, gpus : optional
        What one job needs: ``memory="2 GiB"``, ``walltime="90 min"``.
    retries : int or pandaflow.Retry
        How often a failed job is tried again.
    priority : int
        Jobs of tasks with a higher priority go first.
    executor : str
        The name of the executor that runs its jobs.
    container : str
        An image for its jobs, on executors that have a container runtime.
    requirements : str or list of str
        Packages that its function needs besides, as pip takes them: ``["numpy>=2"]``. Pilots of
        the grid install them in an environment of their own; elsewhere they must be there.
    cache : bool or 'checksum'
        Skip jobs whose code and inputs are unchanged since an earlier run.
    goal : float
        The fraction of jobs that must finish; the rest may fail.
    scouts : int
        Run so many jobs first, alone, to measure what the others will need.
    max_failure_rate : float
        Stop the task (``exhausted``) when more than this fraction of its jobs fail.
    name : str
        The name under which its jobs appear; default: the function's.

    Examples
    --------
    >>> import pandaflow as pf
    >>> @pf.task(files_per_job=2, memory="1 GiB", retries=2)
    ... def count(files):
    ...     return len(files)
    """
    if function is not None and not callable(function):
        raise WorkflowError("@pf.task takes options by keyword: @pf.task(files_per_job=2)")

    def make(inner: Callable[..., Any]) -> Task:
        return Task(inner, change(Options(name=name_of(inner)), options))

    return make if function is None else make(function)
