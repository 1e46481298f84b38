"""Workflows: traced, inspected, compiled to a Dask graph, computed or run."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pandaflow import client, places
from pandaflow.authoring.fragments import trace_fragment
from pandaflow.authoring.trace import ACTIVE, Trace, trace_workflow
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import WorkflowSpec
from pandaflow.options import name_of
from pandaflow.store.port import Serving

if TYPE_CHECKING:
    import networkx

    from pandaflow.client import Run
    from pandaflow.core.graph import Compiled
    from pandaflow.display.drawing import Picture
    from pandaflow.hooks import Transition
    from pandaflow.plan import DryRun, Plan
    from pandaflow.store.port import RunStore
    from pandaflow.store.sql import SqlStore

Callback = Callable[["Transition"], None]


def workflow(function: Callable[..., Any] | None = None, /, *, name: str | None = None) -> Any:
    """Make a workflow of a function that calls tasks.

    Calling it runs nothing: it returns a :class:`Workflow`. Called inside another workflow
    it becomes part of that one.

    Examples
    --------
    >>> import pandaflow as pf
    >>> @pf.task
    ... def double(x):
    ...     return 2 * x
    >>> @pf.workflow
    ... def doubles(n: int = 3):
    ...     return double(pf.items(range(n)))
    >>> doubles(n=4).compute(scheduler="sync")
    [0, 2, 4, 6]
    """
    if function is None:
        return lambda inner: WorkflowFunction(inner, name)
    return WorkflowFunction(function, name)


class WorkflowFunction:
    """What ``@pf.workflow`` makes of a function."""

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        if not callable(function):
            raise WorkflowError("@pf.workflow decorates a function")
        self.function = function
        self.name = name or name_of(function)
        functools.update_wrapper(self, function)

    @property
    def signature(self) -> inspect.Signature:
        """The parameters."""
        return inspect.signature(self.function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Describe the workflow with these arguments; nothing runs yet."""
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise WorkflowError(f"workflow {self.name}{self.signature}: {error}") from None
        outer = ACTIVE.get()
        if outer is not None:
            return self._inline(outer, args, kwargs)
        spec, trace = trace_workflow(self.name, self.function, args, kwargs)
        return Workflow(spec, trace, functools.partial(self._again, args, kwargs))

    def _again(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], params: Mapping[str, Any]
    ) -> Workflow:
        """Call the workflow function with some parameters changed."""
        arguments = dict(self.signature.bind(*args, **kwargs).arguments)
        unknown = sorted(set(params) - set(self.signature.parameters))
        if unknown:
            raise WorkflowError(f"workflow {self.name}{self.signature} has no {unknown[0]!r}")
        made: Workflow = self(**{**arguments, **params})
        return made

    def _inline(self, trace: Trace, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        prefix = trace.prefix
        trace.prefix = f"{prefix}{self.name}/"
        try:
            return self.function(*args, **kwargs)
        finally:
            trace.prefix = prefix

    def __repr__(self) -> str:
        return f"<workflow {self.name}{self.signature}>"


class Workflow:
    """A workflow with its arguments: a Dask collection that can also be run durably."""

    def __init__(
        self,
        spec: WorkflowSpec,
        trace: Trace,
        again: Callable[[Mapping[str, Any]], Workflow] | None = None,
    ) -> None:
        self._spec, self._trace, self._again = spec, trace, again

    @property
    def name(self) -> str:
        """The workflow function's name."""
        return self._spec.name

    # --- looking ------------------------------------------------------------------------

    @property
    def graph(self) -> networkx.DiGraph[str]:
        """The tasks as a read-only ``networkx.DiGraph``.

        Nodes are task names with attributes ``jobs`` (None: not known before the run), ``kind``
        and ``token``; sources of items are nodes of kind ``source``.
        """
        from pandaflow.authoring.outline import task_graph

        return task_graph(self._spec, self._sizes())

    def _sizes(self) -> dict[int, int | None]:
        engine = self._bound()
        return {
            number: run.n if run.closed and run.chunks is not None else None
            for number, run in engine.tasks.items()
        }

    def _bound(self) -> Any:
        from pandaflow.core.graph import bound

        return bound(self._spec)

    def svg(self) -> Picture:
        """Draw the tasks with their numbers of jobs."""
        from pandaflow.display.dag import Node, dag_picture

        graph = self.graph
        nodes = [
            Node(
                id=name,
                label=name,
                jobs=data["jobs"],
                kind=data["kind"],
                unit=data.get("unit", ""),
            )
            for name, data in graph.nodes(data=True)
        ]
        return dag_picture(nodes, list(graph.edges), title=self.name)

    def plan(self, store: Any = None) -> Plan:
        """Tell what a run would do: jobs of each task, what is cached, and why."""
        from pandaflow.plan import plan

        return plan(self._spec, self._trace.blobs, places.results_root(places.open_store(store)))

    def dry_run(
        self, executor: Any = None, executors: Mapping[str, Any] | None = None, store: Any = None
    ) -> DryRun:
        """Tell what :meth:`run` would do and which batch scripts it would submit.

        Nothing is submitted or written. Arguments are those of :meth:`run`; the result shows
        itself in terminals and notebooks and has ``rows``, ``drafts`` and ``homeless``.
        """
        from pandaflow.plan import dry_run

        picked = places.pick_executors(executor, executors)
        return dry_run(self._spec, self._trace.blobs, picked, store)

    def __repr__(self) -> str:
        known = [n for n in self._sizes().values()]
        total = sum(n for n in known if n is not None)
        more = " or more" if None in known else ""
        return f"<workflow {self.name}: {len(known)} tasks, {total}{more} jobs>"

    def _repr_html_(self) -> str:
        from pandaflow.display.html import workflow_html

        rows = [
            {"task": name, "jobs": data["jobs"], "kind": data["kind"]}
            for name, data in self.graph.nodes(data=True)
        ]
        return workflow_html(self.name, self.svg()._repr_svg_(), rows)

    # --- Dask's collection protocol -------------------------------------------------------

    def dask_graph(self) -> Any:
        """Return the compiled Dask graph; keys are ``("<task>-<token>", job index)``.

        The graph is a ``HighLevelGraph`` with one lazy layer a task: asking for it costs
        nothing per job.

        Raises
        ------
        WorkflowError
            The workflow grows while it runs (streams, scatter, when, loop): use :meth:`run`.
        """
        return self._compiled().graph

    @functools.cached_property
    def _compiled_once(self) -> Compiled:
        from pandaflow.core.graph import compile_graph

        return compile_graph(self._spec, self._trace.blobs)

    def _compiled(self) -> Compiled:
        return self._compiled_once

    def __dask_graph__(self) -> Any:
        return self._compiled().graph

    def __dask_keys__(self) -> list[Any]:
        return self._compiled().keys

    def __dask_layers__(self) -> tuple[str, ...]:
        return tuple(self._compiled().graph.layers)

    def __dask_postcompute__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._compiled().finish, ()

    def __dask_postpersist__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._compiled().finish_persist, ()

    def __dask_tokenize__(self) -> Any:
        return (self.name, [(task.name, task.token) for task in self._spec.tasks])

    __dask_optimize__ = None

    @property
    def __dask_scheduler__(self) -> Any:
        from pandaflow.core.graph import default_scheduler

        return default_scheduler()

    def compute(self, scheduler: Any = None, **options: Any) -> Any:
        """Compute the values with a plain Dask scheduler: nothing is kept, nothing retried.

        Parameters
        ----------
        scheduler : 'threads', 'sync', 'processes' or distributed.Client
        """
        from pandaflow.core.graph import compute

        return compute(self, scheduler, options)

    def visualize(self, filename: str | None = None, **options: Any) -> Any:
        """Draw the Dask graph of jobs with ``dask.visualize`` (needs graphviz)."""
        from pandaflow.core.graph import visualize

        return visualize(self, filename, options)

    # --- running ------------------------------------------------------------------------

    def submit(  # noqa: PLR0913 - one call says all about a run, most by name
        self,
        executor: Any = None,
        executors: Mapping[str, Any] | None = None,
        store: Any = None,
        name: str | None = None,
        callbacks: Callback | list[Callback] | None = None,
        params: Mapping[str, Any] | None = None,
        *,
        server: str | None = None,
        vo: str | None = None,
        ca: str | Path | None = None,
    ) -> Run:
        """Start a durable run and return its handle at once; see :meth:`run`.

        With ``server`` the run is left there: runners of the server drive it, and this process
        may end.
        """
        if params:
            changed = self._with(params)
            return changed.submit(
                executor, executors, store, name, callbacks, server=server, vo=vo, ca=ca
            )
        opened = places.place_of_run(store, server, vo, ca)
        if isinstance(opened, Serving):
            places.check_left(executor, executors, callbacks)
            return self._leave(opened, name)
        run = self._create(opened, name, callbacks)
        self._connect(run)
        picked = places.pick_executors(executor, executors)
        run._drive(picked, here=_runs_in_caller(picked))
        return run

    def run(  # noqa: PLR0913 - as submit
        self,
        executor: Any = None,
        executors: Mapping[str, Any] | None = None,
        store: Any = None,
        name: str | None = None,
        callbacks: Callback | list[Callback] | None = None,
        progress: bool | None = None,
        params: Mapping[str, Any] | None = None,
        *,
        server: str | None = None,
        vo: str | None = None,
        ca: str | Path | None = None,
    ) -> Run:
        """Run durably, showing progress, and return when the run has ended.

        Parameters
        ----------
        executor : executor, 'processes', 'threads', 'sync' or address, optional
            Where jobs run that name no executor; default: worker processes of this machine.
        executors : mapping of str to executor, optional
            For tasks with ``executor="name"``.
        store : str, optional
            SQLAlchemy URL; default ``sqlite:///.pandaflow/pandaflow.db``. The address of a server
            means the same as ``server``.
        name : str, optional
            A name for the run.
        callbacks : callable or list of callables, optional
            Called with each committed :class:`Transition`.
        progress : bool, optional
            Show progress; default: in terminals and notebooks.
        params : mapping, optional
            Parameters of the workflow function to change for this run.
        server : str, optional
            Address of a server (``https://...``) to leave the run with. Its runners drive the
            run, on executors of theirs.
        vo : str, optional
            Virtual organisation to act for there; default: the only one.
        ca : str or Path, optional
            Certificates that the server's is checked with; default: the system's.

        Returns
        -------
        Run
            Ask ``run.result()``; failed jobs do not raise here.
        """
        from pandaflow.display.progress import watch

        if params:
            changed, shared = self._with(params), (executor, executors, store, name, callbacks)
            return changed.run(*shared, progress, server=server, vo=vo, ca=ca)
        mode = "off" if progress is False else "auto"
        opened = places.place_of_run(store, server, vo, ca)
        if isinstance(opened, Serving):
            places.check_left(executor, executors, callbacks)
            return self._leave(opened, name)._watched(mode)
        picked = places.pick_executors(executor, executors)
        run = self._create(opened, name, callbacks)
        self._connect(run)
        with watch(run.summary, mode=mode) as view:
            if _runs_in_caller(picked):
                run._drive(picked, here=True)
            else:
                run._drive(picked)
                _attend(run, view)
        return run

    def _with(self, params: Mapping[str, Any]) -> Workflow:
        if self._again is None:
            raise WorkflowError(f"workflow {self.name!r} takes no parameters any more")
        return self._again(params)

    def _leave(self, server: Serving, name: str | None) -> Run:
        """Leave the run with a server; streams feed it from here for as long as this lives."""
        run_id = places.new_run_id(name or self.name)
        spec = self._spec if name is None else _renamed(self._spec, name)
        server.leave(spec, self._trace.blobs | self._versions(), run_id)
        run = client.Run(run_id, cast("RunStore", server))
        self._connect(run)
        return run

    def _versions(self) -> dict[str, bytes]:
        """Return which versions the functions were written with."""
        from pandaflow.core.growth import all_tasks
        from pandaflow.executors.remote import versions

        bodies = [task for loop in self._spec.loops for task in all_tasks(loop)]
        payloads = {task.payload for task in (*self._spec.tasks, *bodies)}
        codes = (self._trace.blobs[name] for name in sorted(payloads))
        return {versions.BLOB: versions.blob_of(codes)}

    def _create(self, opened: SqlStore, name: str | None, callbacks: Any) -> Run:
        from pandaflow.data.results import ResultStore

        run_id = places.new_run_id(name or self.name)
        results = f"{places.results_root(opened)}/{run_id}"
        kept = ResultStore(results)
        for blob, data in self._trace.blobs.items():
            kept.put(blob, data)
        spec = self._spec if name is None else _renamed(self._spec, name)
        opened.create_run(spec, run_id=run_id, created=time.time(), results=results)
        run = client.Run(run_id, opened)
        listed = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
        run._callbacks = list(listed)
        return run

    def _connect(self, run: Run) -> None:
        """Let open streams feed the run."""
        from pandaflow.data.feed import feeder

        for source, stream in self._trace.streams.items():
            stream.connect(feeder(run._results(), run._request, source, stream.sent), stream.sent)


def grow(
    run: Run,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    prefix: str,
) -> str:
    """Add a sub-workflow to a run that goes on; it is durable when this returns.

    The run must be kept open meanwhile (a task of it reads an open stream): what comes to a run
    that has ended is refused. So is a sub-workflow with the name of one that is there already,
    so that asking twice does no harm. Its tasks do not touch the run's verdict and result.

    Parameters
    ----------
    run : Run
    function : callable
        A workflow, a task or a function that calls tasks; traced anew with these arguments. It
        returns one value of a task, or a tuple, list or dict of such values.
    args, kwargs
        Plain values, and collections placed on datasets of the run.
    prefix : str
        Begins the names of all its tasks, for example ``"trial-17/"``.

    Returns
    -------
    str
        The name of the task whose one job returns the result.

    Raises
    ------
    WorkflowError
        The result is not one value, or the function is at fault otherwise.
    """
    inner = function.function if isinstance(function, WorkflowFunction) else function
    fragment, blobs, result = trace_fragment(inner, args, kwargs, prefix)
    run._grow(fragment, blobs)
    return result


def _attend(run: Run, view: Any) -> None:
    """Wait for the run's thread; the first ctrl-C cancels the run, the second leaves it."""
    assert run._thread is not None
    try:
        while run._thread.is_alive():
            run._thread.join(0.25)
            view.refresh()
    except KeyboardInterrupt:
        run.cancel()
        raise
    run._raise_error()


def _runs_in_caller(executors: Mapping[str, Any]) -> bool:
    return getattr(next(iter(executors.values())), "workers", None) == 0


def _renamed(spec: WorkflowSpec, name: str) -> WorkflowSpec:
    from dataclasses import replace

    return replace(spec, name=name)
