"""Growth: tasks that come into being while a run goes on.

The next iteration of a loop is made from the loop's template. A sub-workflow from outside (a
fragment) arrives with ids of its own, which become the run's next free ones; all that it refers to
is looked up first, so that nothing of it joins unless all of it can.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

from pandaflow.core import commands as cmd
from pandaflow.core import events as ev
from pandaflow.core.binding import Binding, urgency
from pandaflow.core.datasets import Size, atoms, loops_in, resolve
from pandaflow.core.errors import WorkflowError
from pandaflow.core.loops import LoopRun, Renaming, body_reads, read_by
from pandaflow.core.model import (
    Brought,
    Choice,
    Dataset,
    Fragment,
    LoopEnd,
    LoopSpec,
    Output,
    Scattered,
    Source,
    SourceSpec,
    TaskSpec,
)
from pandaflow.core.status import RUN_TERMINAL
from pandaflow.core.taskrun import TaskRun


class Growth(Binding):
    """Brings tasks into being: iterations of loops, and sub-workflows that join the run."""

    # --- fragments ----------------------------------------------------------------------

    def _append(self, event: ev.FragmentAppended) -> None:
        if self.status in RUN_TERMINAL or self._cancelled:
            raise WorkflowError(f"nothing can join the run: it is {self._cancelled or self.status}")
        for spec in placed(event.fragment, self):
            self._enter(spec)
            self._out.append(cmd.TaskAdded(event.at, spec))

    def _enter(self, spec: TaskSpec) -> None:
        """Take in a task of a fragment; the first of them brings its sources and loops.

        The cost does not depend on how many tasks there are: a run may take in thousands.
        """
        if spec.brings is not None:
            sources = spec.brings.sources
            self.spec = replace(self.spec, sources=(*self.spec.sources, *sources))
            self._sources |= {source.id: Size(source.n, closed=True) for source in sources}
            self._files |= {s.id: s.files for s in sources if s.kind == "files"}
            for loop in spec.brings.loops:
                self._add_loop(loop)
        run = self._add(spec)
        self._active.append(run)
        insort(self._order, run, key=urgency)

    def _add_loop(self, spec: LoopSpec) -> None:
        loop = self._loops[spec.id] = LoopRun(spec)
        self._open_loops.append(loop)

    # --- loops --------------------------------------------------------------------------

    def _advance_loops(self) -> bool:
        self._open_loops = [loop for loop in self._open_loops if loop.result is None]
        return any([self._advance(loop) for loop in list(self._open_loops)])

    def _advance(self, loop: LoopRun) -> bool:
        if loop.result is not None or loop.dead:
            return False
        guards = loop.spec.guards
        if any(self.tasks[gate].truth is not wanted for gate, wanted in guards):
            return False
        if loop.iteration < 0:
            self._iterate(loop, loop.spec.state)
            return True
        if loop.gate is None:
            return self._advance_unjudged(loop)
        gate = self.tasks[loop.gate]
        if not gate.terminal:
            return False
        if gate.truth is None:
            loop.dead = True
        elif gate.truth or loop.iteration + 1 >= loop.spec.max_iterations:
            loop.result = loop.current
        else:
            assert loop.current is not None
            self._iterate(loop, loop.current)
        return True

    def _advance_unjudged(self, loop: LoopRun) -> bool:
        if loop.iteration + 1 >= loop.spec.max_iterations:
            loop.result = loop.current
            return True
        assert loop.current is not None
        if loop.tasks:
            goes_on = any(self.tasks[number].table.terminal() for number in loop.tasks)
        else:  # its body is another loop
            goes_on = resolve(self, loop.current) is not None
        if goes_on:
            self._iterate(loop, loop.current)
            return True
        failed = any(self.tasks[n].terminal and not self.tasks[n].n for n in loop.tasks)
        if failed or self._dead_dataset(loop.current):
            loop.dead = True
            return True
        return False

    def _iterate(self, loop: LoopRun, state: Dataset) -> None:
        """Turn the template into the tasks of the next iteration."""
        loop.iteration += 1
        first = len(self.tasks)
        number = {spec.id: first + k for k, spec in enumerate(loop.spec.body)}
        inner = {spec.id: len(self._loops) + k for k, spec in enumerate(loop.spec.loops)}
        names = Renaming(number, inner, {loop.spec.state_id: state})
        for nested in loop.spec.loops:
            self._add_loop(names.loop(nested, f"@{loop.iteration}"))
        for spec in loop.spec.body:
            made = names.iterated(spec, (loop.spec.id, loop.iteration))
            self._add(made)
            self._out.append(cmd.TaskAdded(self._now, made))
        loop.tasks = tuple(number.values())
        loop.gate = None if loop.spec.gate is None else number[loop.spec.gate]
        loop.current = names.dataset(loop.spec.result)
        # Who reads a loop's end reads, by way of it, whatever its last iteration made.
        self._after_loops = [task for task in self._after_loops if self._may_grow(task)]
        for task in self._after_loops:
            self._subscribe(task)
        self._active += [self.tasks[task] for task in loop.tasks]
        self._order = sorted(self._active, key=urgency)

    def _may_grow(self, task: TaskRun) -> bool:
        """Whether a loop that a task reads may still bring forth tasks."""
        return any(self._unsettled(dataset) for dataset in read_by(task.spec))

    def _unsettled(self, dataset: Dataset) -> bool:
        for number in loops_in(dataset):
            result = self._loops[number].result
            if result is None or self._unsettled(result):
                return True
        return False

    def _looping(self) -> set[int]:
        """Return the tasks whose outputs a loop's next iteration reads."""
        open_loops = [loop for loop in self._open_loops if loop.result is None]
        read = [dataset for loop in open_loops for dataset in loop.reads]
        return {maker for dataset in read for maker in self._makers(dataset)}

    def _loops_go_on(self) -> bool:
        return not self._cancelled and any(
            loop.result is None and not loop.dead and not self._loop_skipped(loop)
            for loop in self._open_loops
        )


def placed(fragment: Fragment, run: Binding) -> tuple[TaskSpec, ...]:
    """Return the tasks of a fragment as they join ``run``; the first brings all the rest.

    Raises
    ------
    WorkflowError
        A task of the fragment is in the run already, or it refers to what is not there. Nothing
        has changed.
    """
    _check_names(fragment, run)
    names, sources = _renaming(fragment, run)
    tasks = tuple(names.task(spec) for spec in fragment.tasks)
    loops = tuple(names.loop(spec) for spec in fragment.loops)
    known = _References(run, tasks, {s.id for s in sources}, {loop.id for loop in loops})
    for spec in tasks:
        known.check_task(spec)
    for loop in loops:
        known.check_loop(loop)
    if sources or loops:
        first = replace(tasks[0], brings=Brought(sources=sources, loops=loops))
        tasks = (first, *tasks[1:])
    return tasks


def all_tasks(of: Fragment | LoopSpec) -> Iterator[TaskSpec]:
    """Yield the tasks of a fragment or a loop, those of loop bodies included."""
    yield from of.tasks if isinstance(of, Fragment) else of.body
    for loop in of.loops:
        yield from all_tasks(loop)


def _check_names(fragment: Fragment, run: Binding) -> None:
    if not fragment.tasks:
        raise WorkflowError("a fragment without tasks cannot join the run")
    if any(source.kind == "stream" for source in fragment.sources):
        raise WorkflowError("a fragment with a stream cannot join the run")
    known: set[str] = set()
    for spec in fragment.tasks:
        if spec.name in run._names or spec.name in known:
            raise WorkflowError(f"a fragment cannot join the run: it has {spec.name!r} already")
        known.add(spec.name)


def _renaming(fragment: Fragment, run: Binding) -> tuple[Renaming, tuple[SourceSpec, ...]]:
    first = len(run.spec.sources)
    sources = tuple(replace(spec, id=first + k) for k, spec in enumerate(fragment.sources))
    tasks = {spec.id: len(run.tasks) + k for k, spec in enumerate(fragment.tasks)}
    loops = {spec.id: len(run._loops) + k for k, spec in enumerate(fragment.loops)}
    given = [*tasks, *(spec.id for spec in fragment.sources), *loops]
    count = len(fragment.tasks) + len(fragment.sources) + len(fragment.loops)
    if len(set(given)) < count or max(given) >= 0:
        raise WorkflowError("a fragment's own ids must be negative, and each used once")
    local = zip(fragment.sources, sources, strict=True)
    return Renaming(tasks, loops, {old.id: Source(new.id) for old, new in local}), sources


def _atoms(datasets: Iterable[Dataset]) -> Iterator[Dataset]:
    for atom in chain.from_iterable(map(atoms, datasets)):
        yield atom
        if isinstance(atom, Choice):
            yield from _atoms((atom.then, atom.otherwise))


class _References:
    """Looks up what the tasks and loops of a fragment refer to, in the run and among themselves."""

    def __init__(
        self, run: Binding, tasks: Sequence[TaskSpec], sources: set[int], loops: set[int]
    ) -> None:
        self._run, self._new = run, {spec.id: spec for spec in tasks}
        self._sources, self._loops = sources, loops

    def check_task(self, spec: TaskSpec) -> None:
        """Refuse a task that reads what is not there before it."""
        self._check(spec.name, _atoms(read_by(spec)), spec.guards, spec.id)

    def check_loop(self, spec: LoopSpec) -> None:
        """Refuse a loop that reads what is not there; negative ids are its template's own."""
        before = len(self._run.tasks) + len(self._new)
        found = (a for a in _atoms([spec.state, *body_reads(spec)]) if not _templated(a))
        self._check(spec.name, found, spec.guards, before)

    def _check(
        self,
        owner: str,
        found: Iterable[Dataset],
        guards: tuple[tuple[int, bool], ...],
        before: int,
    ) -> None:
        for atom in found:
            if not self._knows(atom, before):
                raise WorkflowError(f"{owner!r} cannot join the run: there is no {atom}")
        for gate, _ in guards:
            if not (0 <= gate < before and self._spec(gate).gate):
                raise WorkflowError(f"{owner!r} cannot join the run: no gate {gate}")

    def _knows(self, atom: Dataset, before: int) -> bool:
        match atom:
            case Source(id=source):
                return source in self._run._sources or source in self._sources
            case LoopEnd(loop=loop):
                return loop in self._run._loops or loop in self._loops
            case Output(task=task):
                return 0 <= task < before
            case Scattered(task=task):
                return 0 <= task < before and self._spec(task).scatters
            case Choice(gate=gate):
                return 0 <= gate < before and self._spec(gate).gate
        return False

    def _spec(self, number: int) -> TaskSpec:
        return self._new[number] if number in self._new else self._run.tasks[number].spec


def _templated(atom: Dataset) -> bool:
    match atom:
        case Source(id=number) | LoopEnd(loop=number) | Choice(gate=number):
            return number < 0
        case Output(task=number) | Scattered(task=number):
            return number < 0
    return False
