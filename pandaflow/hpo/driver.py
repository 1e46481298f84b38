"""The one writer of a study: log, book, engine and optimizer put together.

Everything happens in :meth:`StudyDriver.pump`, in one order: what the optimizer said and what
came of trials goes to the engine; its records are written in one transaction and then applied to
the book; only then is anything dispatched. Whatever kills this process, the log holds what
was decided.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pandaflow.core.errors import StoreError, WorkflowError
from pandaflow.hpo.asking import (
    Asker,
    Broken,
    InPlace,
    Ready,
    Said,
    Snapshot,
    entries_to_adopt,
    open_asker,
)
from pandaflow.hpo.book import Book, entry_of
from pandaflow.hpo.engine import (
    Adopt,
    Answer,
    Ask,
    Command,
    Dispatch,
    Finish,
    Log,
    Report,
    StudyEngine,
    Tell,
    Terms,
)
from pandaflow.hpo.optimizers.designs import random as random_design
from pandaflow.hpo.port import AskEntry, Brief, Entry, OptimizerSpec
from pandaflow.hpo.space import AnySpace
from pandaflow.store.sql import SqlStore, this_process

logger = logging.getLogger("pandaflow.hpo")

FORMAT = 1
#: Seconds for which the lease on a study holds when its driver falls silent.
_LEASE_S = 20.0
#: Optimizers started again after a failure before points become random.
_RESTARTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan:
    """A study, and how to go on with it.

    Attributes
    ----------
    patience : float
        Seconds that the optimizer may take for an answer.
    extend : bool
        Accept a search space that differs from the study's so far.
    """

    name: str
    directions: tuple[str, ...]
    space: AnySpace
    optimizer: OptimizerSpec
    pruner: Any = None
    terms: Terms = field(default_factory=Terms)
    patience: float = 60.0
    extend: bool = False


def identity(spec: OptimizerSpec) -> dict[str, Any]:
    """Return what an optimizer is, whatever the versions of its libraries."""
    return {key: value for key, value in spec.describe().items() if key != "versions"}


def versions_of(spec: OptimizerSpec) -> dict[str, str]:
    """Return the versions of the libraries behind an optimizer."""
    return dict(spec.describe().get("versions", {}))


def head_of(plan: StudyPlan, seed: int) -> dict[str, Any]:
    """Return the definition that is kept with a study."""
    return {
        "format": FORMAT,
        "directions": list(plan.directions),
        "space": plan.space.describe(),
        "digest": plan.space.digest,
        "optimizer": identity(plan.optimizer),
        "pruner": _text_of(plan.pruner),
        "seed": seed,
    }


def _text_of(pruner: Any) -> str | None:
    return None if pruner is None else pruner if isinstance(pruner, str) else repr(pruner)


class StudyDriver:
    """Drives one study; used from one thread.

    Parameters
    ----------
    store : SqlStore
    plan : StudyPlan
    folder : str
        Where snapshots of optimizers are kept.
    run : str, optional
        The run that carries the trials.

    Raises
    ------
    RunLocked
        Another process drives it.
    WorkflowError
        The study was something else so far; the message says what, and how to go on.
    """

    def __init__(
        self, store: SqlStore, plan: StudyPlan, folder: str, run: str | None = None
    ) -> None:
        self.store, self.plan, self._folder = store, plan, Path(folder)
        self.inbox: queue.SimpleQueue[tuple[int, Sequence[Said]]] = queue.SimpleQueue()
        #: Called after something came into the inbox, in the thread that brought it.
        self.wake: Callable[[], None] = _nothing
        self.inexact = ""
        self._generation = self._failures = 0
        self._began = time.monotonic()
        self._asker: Asker | None = None
        self._snapshot: Path | None = None
        seed = self._ensure()
        self._writer = store.write_study(plan.name, this_process(), _LEASE_S)
        self._renewed = time.monotonic()
        try:
            self.book = Book(plan.directions)
            terms = plan.terms
            self.brief = Brief(
                plan.directions,  # type: ignore[arg-type]
                seed,
                terms.outstanding + terms.ahead,
                terms.n_trials,
                plan.pruner,
            )
            entries = self._read(self.book)
            self._begin_session(run)
            self.engine = StudyEngine(self.book, terms)
            self._start(entries)
        except BaseException:
            self._writer.release()
            raise

    # --- beginning ----------------------------------------------------------------------

    def _ensure(self) -> int:
        """Create the study, or see that it is what it was; return its seed."""
        plan = self.plan
        known = self.store.study(plan.name)
        if known is None:
            given = plan.optimizer.seed
            seed = secrets.randbits(63) if given is None else int(given)
            plan.optimizer.check(plan.space, self._first_brief(seed))
            with suppress(StoreError):  # somebody else has just created it
                self.store.create_study(plan.name, head_of(plan, seed), time.time())
            known = self.store.study(plan.name)
            assert known is not None
        head = known.head
        self._check_head(head)
        self._known = head
        seed = plan.optimizer.seed if plan.optimizer.seed is not None else head["seed"]
        plan.optimizer.check(plan.space, self._first_brief(int(seed)))
        return int(seed)

    def _first_brief(self, seed: int) -> Brief:
        plan = self.plan
        return Brief(
            plan.directions,  # type: ignore[arg-type]
            seed,
            plan.terms.outstanding + plan.terms.ahead,
            plan.terms.n_trials,
            plan.pruner,
        )

    def _check_head(self, head: Mapping[str, Any]) -> None:
        plan, name = self.plan, self.plan.name
        if head.get("format") != FORMAT:
            raise StoreError(f"study {name!r} was made by a newer PandaFlow; upgrade this one")
        if tuple(head["directions"]) != plan.directions:
            raise WorkflowError(
                f"study {name!r} has the directions {', '.join(head['directions'])}, not "
                f"{', '.join(plan.directions)}; give the new study another name"
            )
        changed = head["digest"] != plan.space.digest
        if changed and not plan.extend and self._has_points():
            changes = _changes(head["space"], plan.space.describe())
            raise WorkflowError(
                f"the search space of study {name!r} was changed ({changes}); pass extend=True to "
                "go on with the new space, or give the new study another name"
            )

    def _has_points(self) -> bool:
        """Whether the log has points; a study that was refused before its first has none."""
        kinds = ("ask", "add", "queue")
        return any(record.kind in kinds for record in self.store.study_log(self.plan.name))

    def _read(self, book: Book | None = None) -> list[Entry]:
        """Read the log (into ``book``); return what the optimizer must be brought back from."""
        mine, own = self._me(), True
        entries: list[Entry] = []
        start, self._snapshot = 0, None
        for record in self.store.study_log(self.plan.name):
            if book is not None:
                book.apply(record.seq, record.at, record.kind, record.trial, record.body)
            if record.kind == "session":
                own = record.body["optimizer"] == mine
            if record.kind == "space" or not own:
                start, self._snapshot = 0, None
            elif record.kind == "snapshot" and self._is_usable(record.body["file"]):
                start, self._snapshot = len(entries), Path(record.body["file"])
            entry = entry_of(record.kind, record.trial, record.body)
            if entry is not None:
                entries.append(entry if own else _foreign(entry))
        return entries[start:]

    def _is_usable(self, snapshot: str) -> bool:
        """Whether to restore from a file; not after a failure, which it may be the reason of."""
        return not self._failures and Path(snapshot).is_file()

    def _me(self) -> dict[str, Any]:
        return {**identity(self.plan.optimizer), "seed": self.brief.seed}

    def _begin_session(self, run: str | None) -> None:
        plan, records = self.plan, []
        changed = self._known["digest"] != plan.space.digest
        if changed:
            records.append(Log("space", None, {"space": plan.space.describe()}))
        body = {
            "optimizer": self._me(),
            "versions": versions_of(plan.optimizer),
            "outstanding": plan.terms.outstanding + plan.terms.ahead,
            "n_trials": plan.terms.n_trials,
            "pid": os.getpid(),
        }
        last = self.book.sessions[-1]["optimizer"] if self.book.sessions else None
        if last not in (None, self._me()):
            text = f"the optimizer was changed to {plan.optimizer.describe().get('name')}"
            records.append(Log("note", None, {"text": text}))
            self._snapshot = None
        self._commit([*records, Log("session", None, body)], status="running", run=run)
        head = head_of(plan, self.brief.seed)
        if head != self._known:
            self._writer.append([], head=head)

    def _start(self, entries: Sequence[Entry]) -> None:
        """Start the optimizer where the log ends."""
        self._generation += 1
        plan, generation = self.plan, self._generation

        def hear(said: Sequence[Said]) -> None:
            self.inbox.put((generation, said))
            self.wake()

        state = self._snapshot.read_bytes() if self._snapshot is not None else None
        self._asker = open_asker(
            plan.optimizer, plan.space, self.brief, entries, state, hear, patience=plan.patience
        )

    # --- going on -----------------------------------------------------------------------

    @property
    def elapsed(self) -> float:
        """Seconds since this session began."""
        return time.monotonic() - self._began

    def begin(self) -> list[Command]:
        """Ask for the first points; return what is to be done outside."""
        resumed = [Dispatch(record.number) for record in self.book.outstanding]
        return [*resumed, *self.work([*self.engine.begin(), *self.engine.settled(self.elapsed)])]

    def pump(self, timeout: float | None = 0.0) -> list[Command]:
        """Take in what the optimizer has said; return what is to be done outside.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait for something; None: as long as it takes.
        """
        out: list[Command] = []
        wait = timeout
        while True:
            try:
                messages = [self.inbox.get(timeout=wait) if wait != 0.0 else self.inbox.get(False)]
            except queue.Empty:
                return out
            wait = 0.0
            with suppress(queue.Empty):
                while True:
                    messages.append(self.inbox.get(False))
            out += self._take(
                [one for g, said in messages if g == self._generation for one in said]
            )

    def work(self, commands: Sequence[Command]) -> list[Command]:
        """Send requests, write and apply records; return what is to be done outside."""
        out: list[Command] = []
        while commands:
            requests = [c for c in commands if isinstance(c, Ask | Adopt | Tell | Report)]
            records = [c for c in commands if isinstance(c, Log)]
            if requests and self._asker is not None:
                self._asker.send(requests)
            if records:
                self._commit(records)
            out += [c for c in commands if not isinstance(c, Log | Ask | Adopt | Tell | Report)]
            settled = bool(records) or bool(requests)
            commands = self.engine.settled(self.elapsed) if settled else []
        return out

    def tick(self) -> list[Command]:
        """Look at the clock: time-outs of the study, of the optimizer, and of the lease."""
        late = self._asker.overdue(time.monotonic()) if self._asker is not None else ""
        if late:
            self._broken(late)
        if time.monotonic() - self._renewed > _LEASE_S / 4:
            self._writer.renew()
            self._renewed = time.monotonic()
        return self.work(self.engine.settled(self.elapsed))

    def note(self, text: str) -> None:
        """Write something that a person should know into the log."""
        logger.warning("study %s: %s", self.plan.name, text)
        self._commit([Log("note", None, {"text": text})])

    def close(self, status: str = "stopped") -> None:
        """End the optimizer and give the study back."""
        if self._asker is not None:
            self._asker.close()
            self._asker = None
        try:
            self._writer.append([], status=status, summary=self._last_summary())
        finally:
            self._writer.release()

    # --- inside -------------------------------------------------------------------------

    def _last_summary(self) -> dict[str, Any]:
        ending = self.engine.ending
        return {**self.book.summary(), **({"reason": ending} if ending else {})}

    def _take(self, said: Sequence[Said]) -> list[Command]:
        commands: list[Command] = []
        out: list[Command] = []
        for one in said:
            match one:
                case Answer():
                    self._failures = 0
                    commands += self.engine.answered(one)
                case Snapshot() if self.engine.ending:
                    pass  # it may hold points that the study has left out
                case Snapshot(state=state):
                    out += self.work(commands)
                    commands = [Log("snapshot", None, {"file": self._save_snapshot(state)})]
                case Ready(inexact=inexact):
                    self._ready(inexact)
                case Broken(why=why):
                    out += self.work(commands)
                    commands = []
                    self._broken(why)
                    break  # what follows is of the process that is gone
        # A point that comes too late leaves no record, and may be all that the end waited for.
        return [*out, *self.work(commands or self.engine.settled(self.elapsed))]

    def _ready(self, inexact: str) -> None:
        if inexact and self.book.asked:
            self.inexact = inexact
            self.note(f"resumed, not exactly: {inexact}")

    def _broken(self, why: str) -> None:
        """Go on from the log with another process of the optimizer, or with random points."""
        assert self._asker is not None
        self._asker.close()
        self._failures += 1
        if self._failures <= _RESTARTS:
            self.note(f"the optimizer failed: {why}; it is started again from the log")
            self._start(self._read())
        elif self._failures > _RESTARTS + 1:
            raise WorkflowError(f"study {self.plan.name!r}: no point can be drawn: {why}")
        else:
            self.note(
                f"the optimizer failed {self._failures} times: {why}; points are random from here "
                "on. Run the study again with another optimizer (hpo.optuna('tpe') is a safe one)"
            )
            self._emergency()
        assert self._asker is not None
        self._asker.send(list(self.engine.requests))

    def _emergency(self) -> None:
        self._generation += 1
        generation = self._generation
        spec = random_design(seed=self.brief.seed)
        optimizer = spec.build(self.plan.space, replace(self.brief, pruner=None))

        def hear(said: Sequence[Said]) -> None:
            self.inbox.put((generation, said))
            self.wake()

        self._asker = InPlace(optimizer, [], hear, by="random")

    def _commit(
        self, records: Sequence[Log], *, status: str | None = None, run: str | None = None
    ) -> None:
        now = time.time()
        rows = [(now, r.kind, r.trial, _plain(r.body)) for r in records]
        seq = self._writer.next_seq
        summary = self._summary_after(records)
        self._writer.append(rows, summary=summary, status=status, run=run)
        for number, (at, kind, trial, body) in enumerate(rows, start=seq):
            self.book.apply(number, at, kind, trial, body)
            if kind == "tell" and trial is not None:
                self.engine.written(trial)
        self._renewed = time.monotonic()

    def _summary_after(self, records: Sequence[Log]) -> dict[str, Any] | None:
        """The summary lags by one append: lists of studies need no more."""
        return self.book.summary() if any(r.kind in ("tell", "add") for r in records) else None

    def _save_snapshot(self, state: bytes) -> str:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{_file_name(self.plan.name)}-{self.book.seq}.optimizer"
        scratch = path.with_suffix(".part")
        with open(scratch, "wb") as file:
            file.write(state)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        if self._snapshot is not None and self._snapshot != path:
            self._snapshot.unlink(missing_ok=True)
        self._snapshot = path
        return str(path)


def _foreign(entry: Entry) -> Entry:
    return entries_to_adopt([entry])[0] if isinstance(entry, AskEntry) else entry


def _plain(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's body as JSON can keep it; what it cannot keep becomes text."""
    try:
        json.dumps(body, allow_nan=False)
    except (TypeError, ValueError):
        kept = json.loads(json.dumps(body, default=repr))
        return {**kept, **({"a": _texts(kept["a"])} if "a" in kept else {})}
    return dict(body)


def _texts(attrs: Mapping[str, Any]) -> dict[str, Any]:
    def fits(value: Any) -> bool:
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            return False
        return True

    return {key: value if fits(value) else repr(value) for key, value in attrs.items()}


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Say what differs between two descriptions of spaces."""
    if "function" in old or "function" in new:
        return "its function has another code"
    said = [f"{name} is gone" for name in old if name not in new]
    said += [f"{name} is new" for name in new if name not in old]
    said += [f"{name} differs" for name in new if name in old and old[name] != new[name]]
    return ", ".join(said) or "the order of its parameters"


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def _nothing() -> None:
    return None


def finished(commands: Sequence[Command]) -> Finish | None:
    """Return the command that ends the session, if it is among these."""
    return next((c for c in commands if isinstance(c, Finish)), None)
