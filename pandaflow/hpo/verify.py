"""Checks whether a study is exact: would go on, resumed, as if it had never stopped.

The last points of the log are asked for again, from the state that the log gives before them.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pandaflow.core.errors import WorkflowError
from pandaflow.hpo.asking import Broken, Ready, Said, open_asker
from pandaflow.hpo.book import entry_of
from pandaflow.hpo.driver import StudyPlan, identity, versions_of
from pandaflow.hpo.engine import Adopt, Answer, Ask, Report, Request, Tell
from pandaflow.hpo.port import AskEntry, Brief, Entry, ReportEntry
from pandaflow.hpo.searching import SETTINGS, Settings, study_plan
from pandaflow.hpo.space import AnySpace
from pandaflow.ports import LogRecord
from pandaflow.store.sql import SqlStore


@dataclass(frozen=True, slots=True)
class Verification:
    """What :meth:`Study.verify` found; true where the study is exact.

    Attributes
    ----------
    exact : bool
    compared : int
        Points that were asked for again.
    reason : str
        Why not, or what the answer rests on.
    """

    exact: bool
    compared: int
    reason: str

    def __bool__(self) -> bool:
        return self.exact

    def __repr__(self) -> str:
        return f"<{'exact' if self.exact else 'not exact'}: {self.reason}>"


def verify(
    store: SqlStore,
    name: str,
    space: AnySpace | None,
    settings: Mapping[str, Any],
    last: int,
) -> Verification:
    """Compare the last points of a study with what its optimizer says to them now.

    Raises
    ------
    WorkflowError
        The study's optimizer and space are not known in this process.
    """
    state = store.study(name)
    if state is None:
        raise WorkflowError(f"study {name!r} has not begun: there is nothing to verify")
    if space is None or "optimizer" not in settings:
        raise WorkflowError(
            f"study {name!r}: make it as its script does, hpo.Study(name, optimizer=..., "
            "space=...), so that its optimizer can be asked again"
        )
    own = {key: value for key, value in settings.items() if key in SETTINGS}
    plan = study_plan(name, space, Settings(**{"n_trials": 1, **own}))
    records = list(store.study_log(name))
    session, why = _session(records, plan)
    if session is None:
        return Verification(False, 0, why)
    return _compare(plan, session, records, last)


def _session(records: Sequence[LogRecord], plan: StudyPlan) -> tuple[Mapping[str, Any] | None, str]:
    """Return the body of the last session, if its points can be asked for again."""
    sessions = [record.body for record in records if record.kind == "session"]
    if not sessions:
        return None, "the study has no points of an optimizer yet"
    mine, theirs = identity(plan.optimizer), dict(sessions[-1]["optimizer"])
    seed = theirs.pop("seed", None)
    if mine != theirs:
        return None, f"its points are of another optimizer: {theirs.get('name')}"
    if plan.optimizer.seed is not None and plan.optimizer.seed != seed:
        return None, f"its seed was {seed}, not {plan.optimizer.seed}"
    if any(record.kind == "ask" and record.body["by"] == "random" for record in records):
        return None, "some of its points are random, because the optimizer failed"
    return sessions[-1], ""


def _compare(
    plan: StudyPlan, session: Mapping[str, Any], records: Sequence[LogRecord], last: int
) -> Verification:
    brief = Brief(
        plan.directions,  # type: ignore[arg-type]
        session["optimizer"]["seed"],
        session["outstanding"],
        session["n_trials"],
        plan.pruner,
    )
    entries = [entry_of(record.kind, record.trial, record.body) for record in records]
    known = [entry for entry in entries if entry is not None]
    begin = _window(known, last)
    window = known[begin:]
    answers, trouble = _asked_again(plan, brief, known[:begin], window)
    versions = _versions(session, plan)
    if trouble:
        return Verification(False, 0, trouble + versions)
    compared = 0
    for entry, answer in zip(window, answers, strict=True):
        if isinstance(entry, AskEntry) and entry.own:
            if answer.point != entry.point:
                text = f"trial {entry.number} would be {answer.point} and was {entry.point}"
                return Verification(False, compared, text + versions)
            compared += 1
    return Verification(True, compared, f"its last {compared} points come again")


def _window(entries: Sequence[Entry], last: int) -> int:
    asks = [k for k, entry in enumerate(entries) if isinstance(entry, AskEntry) and entry.own]
    return asks[-min(last, len(asks))] if asks else len(entries)


def _versions(session: Mapping[str, Any], plan: StudyPlan) -> str:
    now, then = versions_of(plan.optimizer), session.get("versions", {})
    changed = [f"{k} {then[k]} -> {now[k]}" for k in now if k in then and then[k] != now[k]]
    return f" (versions changed: {', '.join(changed)})" if changed else ""


def _asked_again(
    plan: StudyPlan, brief: Brief, before: Sequence[Entry], window: Sequence[Entry]
) -> tuple[list[Answer], str]:
    """Replay a stretch of the log; return the answers, and what went wrong."""
    heard: queue.SimpleQueue[Sequence[Said]] = queue.SimpleQueue()
    asker = open_asker(
        plan.optimizer, plan.space, brief, before, None, heard.put, patience=plan.patience
    )
    answers: list[Answer] = []
    trouble = ""
    try:
        asker.send([_request(entry) for entry in window])
        while len(answers) < len(window) and not trouble:
            trouble = asker.overdue(time.monotonic())
            for one in _next(heard):
                if isinstance(one, Answer):
                    answers.append(one)
                elif isinstance(one, Broken):
                    trouble = one.why
                elif isinstance(one, Ready) and one.inexact:
                    trouble = one.inexact
    finally:
        asker.close()
    return answers, trouble


def _next(heard: queue.SimpleQueue[Sequence[Said]]) -> Sequence[Said]:
    try:
        return heard.get(timeout=0.5)
    except queue.Empty:
        return ()


def _request(entry: Entry) -> Request:
    match entry:
        case AskEntry(own=True):
            return Ask(entry.number)
        case AskEntry():
            return Adopt(entry.number, entry.point)
        case ReportEntry():
            return Report(entry.number, entry.step, entry.value)
    return Tell(entry.told)
