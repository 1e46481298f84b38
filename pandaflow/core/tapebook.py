"""The books of a carousel: what is known of files, rules and tape systems, kept and read aloud."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from pandaflow.core.quantities import time_text, volume_text
from pandaflow.core.staging import CarouselSettings, FileStage, RuleState
from pandaflow.core.tapequeue import Entry, TapeQueue
from pandaflow.core.tapestate import (
    STEPS,
    FileRecord,
    Records,
    StagedFile,
    StagingRule,
    TapeSystem,
    Want,
)

_F = FileStage


class TapeBook:
    """Files, rules and tape systems, and how they change together."""

    def __init__(self, settings: CarouselSettings) -> None:
        self._settings = settings
        self._files: dict[str, StagedFile] = {}
        self._rules: dict[int, StagingRule] = {}
        self._tapes: dict[str, TapeSystem] = {}
        self._last_request = 0
        self._changed_files: dict[str, None] = {}
        self._changed_rules: dict[int, None] = {}

    # --- for people ---------------------------------------------------------------------

    def stage(self, name: str) -> FileStage | None:
        """Return where a file is; None if nobody wants it."""
        file = self._files.get(name)
        return None if file is None or file.stage is _F.DONE else file.stage

    def queue(self, tape: str) -> Iterator[str]:
        """Yield the files that wait for a tape system, in the order in which they are asked for."""
        system = self._tapes.get(tape)
        return system.queue.order(self._price) if system else iter(())

    def in_flight(self, tape: str) -> tuple[int, int]:
        """Return bytes and files that were requested of a tape system and are not on disk."""
        system = self._tapes.get(tape)
        return (system.size, system.files) if system else (0, 0)

    def rows(self, at: float) -> list[dict[str, float | str]]:
        """Return what has come how far by tape system: rows of ``pandaflow.display.staging``."""
        return [tape.totals.row(at, tape.name) for tape in self._tapes.values()]

    def why(self, name: str, now: float = 0.0) -> str:
        """Say in one line what a file waits for.

        Parameters
        ----------
        name : str
        now : float
            Seconds since the epoch.

        Notes
        -----
        Finding the position of a file takes time in proportion to it; for many files go through
        :meth:`queue` once.
        """
        file = self._files.get(name)
        if file is None or file.stage is _F.DONE:
            return "nobody wants it"
        rule = self._rules.get(file.rule or 0)
        match file.stage:
            case _F.WAITING:
                return self._why_waiting(file, now)
            case _F.LOST:
                return f"lost: {file.why}"
            case _F.STAGED:
                return "on disk"
            case _F.STUCK if rule is not None:
                return _why_stuck(file, rule, now)
        return _why_requested(file, rule)

    def _why_waiting(self, file: StagedFile, now: float) -> str:
        tape = self._tape(file.tape)
        place = next((k for k, name in enumerate(self.queue(file.tape), 1) if name == file.name), 0)
        said = f"position {place:,} in the queue of {file.tape}: "
        end = tape.down_until(now)
        if end is not None:
            return f"{said}announced to be down for another {time_text(end - now)}"
        if now < tape.not_before:
            return f"{said}asks again in {time_text(tape.not_before - now)}, since {file.why}"
        most = tape.budget
        return (
            f"{said}{volume_text(tape.size)} in flight of {volume_text(most.size)} allowed, "
            f"{tape.files:,} files of {most.files:,}"
        )

    # --- records ------------------------------------------------------------------------

    def records(self) -> Records:
        """Return all that a store needs to keep."""
        self._changed_files, self._changed_rules = {}, {}
        return Records(
            tuple(file.record() for file in self._files.values()),
            tuple(rule.record() for rule in self._rules.values()),
            tuple(tape.record() for tape in self._tapes.values()),
            last_request=self._last_request,
        )

    def changes(self) -> Records:
        """Return what has changed since this or :meth:`records` was called last."""
        files, self._changed_files = self._changed_files, {}
        rules, self._changed_rules = self._changed_rules, {}
        return Records(
            tuple(self._files[name].record() for name in files if name in self._files),
            tuple(self._rules[number].record() for number in rules if number in self._rules),
            tuple(tape.record() for tape in self._tapes.values()),
            tuple(name for name in files if name not in self._files),
            tuple(number for number in rules if number not in self._rules),
            self._last_request,
        )

    @classmethod
    def restore(cls, records: Records, settings: CarouselSettings | None = None) -> Self:
        """Return a carousel as it was; tell it :class:`~pandaflow.core.staging.Resumed` first.

        Budgets and other settings may differ from those before.
        """
        settings = settings or CarouselSettings()
        book = cls(settings)
        book._last_request = records.last_request
        for record in records.tapes:
            budget = settings.budget(record.name)
            book._tapes[record.name] = TapeSystem.restore(record, budget, settings.quantum)
        for kept in records.rules:
            rule = book._rules[kept.request] = StagingRule.restore(kept)
            for size in rule.pending.values():
                book._tape(rule.tape).add(size)
        for each in records.files:
            book._restore_file(each)
        return book

    def _restore_file(self, record: FileRecord) -> None:
        file = self._files[record.name] = StagedFile.restore(record)
        if file.stage is _F.WAITING:
            tape = self._tape(file.tape)
            tape.waiting += 1
            for want in file.wants.values():
                if want.entry is not None:
                    tape.queue.push(want.run, want.entry)

    # --- moves --------------------------------------------------------------------------

    def _move(self, file: StagedFile, stage: FileStage) -> None:
        tape = self._tape(file.tape)
        tape.waiting += (stage is _F.WAITING) - (file.stage is _F.WAITING)
        if stage is _F.STAGED and file.stage is not _F.DONE:
            self._count(file, "staged")
        file.move(stage)
        self._changed_files[file.name] = None

    def _turn(self, rule: StagingRule, state: RuleState) -> None:
        rule.move(state)
        self._changed_rules[rule.request] = None

    def _requeue(self, file: StagedFile, *, behind: bool = False) -> None:
        """Put a file back into the queues: to its old places, or behind all others."""
        self._move(file, _F.WAITING)
        file.rule = None
        for run, want in list(file.wants.items()):
            if want.entry is None or behind:
                self._enqueue(file, run)
            else:
                self._tape(file.tape).queue.push(run, want.entry)

    def _enqueue(self, file: StagedFile, run: str) -> None:
        queue, want = self._tape(file.tape).queue, file.wants[run]
        entry = queue.new_entry(run, file.dataset, want.priority, file.name)
        file.wants[run] = Want(run, want.priority, entry, want.told)
        queue.push(run, entry)
        self._changed_files[file.name] = None

    def _price(self, run: str, entry: Entry) -> int | None:
        file = self._files.get(entry.file)
        if file is None or file.stage is not _F.WAITING:
            return None
        want = file.wants.get(run)
        if want is None or want.entry != entry:
            return None
        return self._tape(file.tape).price(file.size)

    def _forget(self, file: StagedFile) -> None:
        del self._files[file.name]
        self._changed_files[file.name] = None

    def _tape(self, name: str) -> TapeSystem:
        tape = self._tapes.get(name)
        if tape is None:
            budget, queue = self._settings.budget(name), TapeQueue(self._settings.quantum)
            tape = self._tapes[name] = TapeSystem(name, budget, queue)
        return tape

    def _count(self, file: StagedFile, what: str) -> None:
        """Count a file that has come so far, once."""
        totals = self._tape(file.tape).totals
        if what == "lost":
            totals.add(what, file.size)
        elif STEPS.index(what) >= file.reached:
            file.reached = STEPS.index(what) + 1
            totals.add(what, file.size)


def _why_stuck(file: StagedFile, rule: StagingRule, now: float) -> str:
    said = f"stuck at {file.tape}: {file.why or 'no reason was given'}"
    again = max((rule.boost_at or now) - now, 0.0)
    return f"{said}; boosted {rule.boosts} times, again in {time_text(again)}"


def _why_requested(file: StagedFile, rule: StagingRule | None) -> str:
    if rule is None:
        return f"requested from {file.tape}"
    there, most = len(rule.files) - len(rule.pending), len(rule.files)
    return f"requested from {file.tape}: {there:,} of {most:,} files of its rule are on disk"
