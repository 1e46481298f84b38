"""Workflows: traced, inspected, compiled to a Dask graph, computed or run."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pandaflow import client, places
from pandaflow.authoring.fragments import trace_fragment
from pandaflow.authoring.trace import ACTIVE, Trace, trace_workflow
from pandaflow.core.datasets import makers
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import Dataset, LoopEnd, Source, WorkflowSpec
from pandaflow.options import name_of

if TYPE_CHECKING:
    import networkx

    from pandaflow.client import Run
    from pandaflow.core.graph import Compiled
    from pandaflow.display.drawing import Picture
    from pandaflow.hooks import Transition
    from pandaflow.plan import DryRun, Plan

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
        import networkx

        graph: networkx.DiGraph[str] = networkx.DiGraph(name=self.name)
        sizes = self._sizes()
        for source in self._spec.sources:
            if self._used(source.id):
                n = None if source.kind == "stream" else source.n
                unit = "files" if source.kind == "files" else ""
                name = _source_name(self._spec, source.id)
                graph.add_node(name, jobs=n, kind="source", unit=unit)
        names = {task.id: task.name for task in self._spec.tasks}
        for task in self._spec.tasks:
            graph.add_node(task.name, jobs=sizes[task.id], kind=task.kind, token=task.token)
            for dataset in [slot.dataset for slot in task.inputs] + list(task.after):
                for number in makers(dataset):
                    if number in names:
                        graph.add_edge(names[number], task.name)
                for source_id in _sources_in(dataset):
                    if source_id >= 0:
                        graph.add_edge(_source_name(self._spec, source_id), task.name)
            for gate, _ in task.guards:
                graph.add_edge(names[gate], task.name)
        self._add_loops(graph, names)
        edges = [edge for steerer in self._spec.steerers for edge in steerer.edges]
        graph.add_edges_from(edge for edge in edges if edge[0] in graph and edge[1] in graph)
        frozen: networkx.DiGraph[str] = networkx.freeze(graph)
        return frozen

    def _add_loops(self, graph: Any, names: Mapping[int, str]) -> None:
        for loop in self._spec.loops:
            graph.add_node(loop.name, jobs=None, kind="loop")
            for number in makers(loop.state):
                graph.add_edge(names[number], loop.name)
            for task in self._spec.tasks:
                if any(_loops_in(slot.dataset, loop.id) for slot in task.inputs):
                    graph.add_edge(loop.name, task.name)

    def _used(self, source: int) -> bool:
        datasets = [slot.dataset for task in self._spec.tasks for slot in task.inputs]
        return any(source in _sources_in(dataset) for dataset in datasets)

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

    def submit(
        self,
        executor: Any = None,
        executors: Mapping[str, Any] | None = None,
        store: Any = None,
        name: str | None = None,
        callbacks: Callback | list[Callback] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> Run:
        """Start a durable run and return its handle at once; see :meth:`run`."""
        if params:
            return self._with(params).submit(executor, executors, store, name, callbacks)
        run = self._create(store, name, callbacks)
        self._connect(run)
        picked = places.pick_executors(executor, executors)
        run._drive(picked, here=_runs_in_caller(picked))
        return run

    def run(
        self,
        executor: Any = None,
        executors: Mapping[str, Any] | None = None,
        store: Any = None,
        name: str | None = None,
        callbacks: Callback | list[Callback] | None = None,
        progress: bool | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> Run:
        """Run durably, showing progress, and return when the run has ended.

        Parameters
        ----------
        executor : executor, 'processes', 'threads', 'sync' or address, optional
            Where jobs run that name no executor; default: worker processes of this machine.
        executors : mapping of str to executor, optional
            For tasks with ``executor="name"``.
        store : str, optional
            SQLAlchemy URL; default ``sqlite:///.pandaflow/pandaflow.db``.
        name : str, optional
            A name for the run.
        callbacks : callable or list of callables, optional
            Called with each committed :class:`Transition`.
        progress : bool, optional
            Show progress; default: in terminals and notebooks.
        params : mapping, optional
            Parameters of the workflow function to change for this run.

        Returns
        -------
        Run
            Ask ``run.result()``; failed jobs do not raise here.
        """
        from pandaflow.display.progress import watch

        if params:
            changed = self._with(params)
            return changed.run(executor, executors, store, name, callbacks, progress)
        picked = places.pick_executors(executor, executors)
        run = self._create(store, name, callbacks)
        mode = "off" if progress is False else "auto"
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

    def _create(self, store: Any, name: str | None, callbacks: Any) -> Run:
        from pandaflow.data.results import ResultStore

        opened = places.open_store(store)
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


def _source_name(spec: WorkflowSpec, source: int) -> str:
    label = spec.sources[source].name
    same = [s.id for s in spec.sources if s.name == label]
    return label if len(same) == 1 else f"{label} ({same.index(source) + 1})"


def _leaves(dataset: Dataset) -> Iterator[Dataset]:
    """Yield what a dataset is made of: sources, outputs, loops."""
    inner: list[Dataset] = []
    for name in ("parts", "then", "otherwise", "cross"):
        value = getattr(dataset, name, ())
        inner += value if isinstance(value, tuple) else (value,)
    if not inner:
        yield dataset
    for part in inner:
        yield from _leaves(part)


def _sources_in(dataset: Dataset) -> set[int]:
    return {leaf.id for leaf in _leaves(dataset) if isinstance(leaf, Source)}


def _loops_in(dataset: Dataset, loop: int) -> bool:
    return any(isinstance(leaf, LoopEnd) and leaf.loop == loop for leaf in _leaves(dataset))
