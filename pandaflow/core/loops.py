"""Loops: the body as a template, and its turning into tasks, iteration by iteration."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pandaflow.core.model import (
    Choice,
    Concat,
    Cross,
    CrossPart,
    Dataset,
    LoopEnd,
    LoopSpec,
    Output,
    Scattered,
    Source,
    TaskSpec,
)


@dataclass(slots=True, eq=False)
class LoopRun:
    """A loop while it runs."""

    spec: LoopSpec
    iteration: int = -1
    gate: int | None = None
    tasks: tuple[int, ...] = ()
    current: Dataset | None = None
    result: Dataset | None = None
    dead: bool = False

    @property
    def reads(self) -> list[Dataset]:
        """What its next iteration reads: its state, and what its body takes from outside."""
        return [self.current or self.spec.state, *body_reads(self.spec)]


def read_by(spec: TaskSpec) -> list[Dataset]:
    """Return all datasets that a task reads or waits for."""
    return [*(slot.dataset for slot in spec.inputs), *spec.after]


def body_reads(loop: LoopSpec) -> list[Dataset]:
    """Return all datasets that the tasks of a loop's body read, inner loops included."""
    inner = [dataset for one in loop.loops for dataset in (one.state, *body_reads(one))]
    return [*(dataset for spec in loop.body for dataset in read_by(spec)), *inner]


@dataclass(frozen=True, slots=True)
class Renaming:
    """From the ids of a template or a fragment to those of the run."""

    tasks: dict[int, int]
    loops: dict[int, int]
    states: dict[int, Dataset]

    def dataset(self, dataset: Dataset) -> Dataset:
        """Rename what a dataset is made of."""
        match dataset:
            case Source(id=source):
                return self.states.get(source, dataset)
            case Output(task=task):
                return Output(self.tasks.get(task, task))
            case Scattered(task=task):
                return Scattered(self.tasks.get(task, task))
            case Cross(parts=parts):
                return Cross(tuple(self.dataset(part) for part in parts))
            case CrossPart(cross=cross, part=part):
                inner = self.dataset(cross)
                assert isinstance(inner, Cross)
                return CrossPart(inner, part)
            case Concat(parts=parts):
                return Concat(tuple(self.dataset(part) for part in parts))
            case Choice(gate=gate, then=then, otherwise=otherwise):
                new = self.tasks.get(gate, gate)
                return Choice(new, self.dataset(then), self.dataset(otherwise))
            case LoopEnd(loop=loop):
                return LoopEnd(self.loops.get(loop, loop))

    def _guards(self, guards: tuple[tuple[int, bool], ...]) -> tuple[tuple[int, bool], ...]:
        return tuple((self.tasks.get(gate, gate), wanted) for gate, wanted in guards)

    def iterated(self, spec: TaskSpec, iteration: tuple[int, int]) -> TaskSpec:
        """Make a task of a loop's template."""
        return replace(self.task(spec, f"@{iteration[1]}"), iteration=iteration)

    def task(self, spec: TaskSpec, suffix: str = "") -> TaskSpec:
        """Rename a task and what it reads."""
        return replace(
            spec,
            id=self.tasks.get(spec.id, spec.id),
            name=f"{spec.name}{suffix}",
            inputs=tuple(replace(s, dataset=self.dataset(s.dataset)) for s in spec.inputs),
            after=tuple(self.dataset(barrier) for barrier in spec.after),
            guards=self._guards(spec.guards),
        )

    def loop(self, spec: LoopSpec, suffix: str = "") -> LoopSpec:
        """Rename what a loop reads from outside; its own template stays."""
        return replace(
            spec,
            id=self.loops.get(spec.id, spec.id),
            name=f"{spec.name}{suffix}",
            state=self.dataset(spec.state),
            result=self.dataset(spec.result),
            loops=tuple(self.loop(inner, suffix) for inner in spec.loops),
            body=tuple(self.task(inner, suffix) for inner in spec.body),
            guards=self._guards(spec.guards),
        )
