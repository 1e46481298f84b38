"""What became of pilots: what a batch system says, matched with what the server has heard.

Everything here is a function of its arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Literal, NamedTuple

from pandaflow.harvester.sizing import Leave, Seat, Stage
from pandaflow.harvester.submitter import PilotState, Shape

#: Seconds after which a pilot that was told to go and is still there is told again.
AGAIN = 20.0
#: Seconds after its end for which a word of a pilot may have been on its way; seconds without one
#: after which a pilot without work has probably ended.
_AFTER, _LATELY = 5.0, 60.0
#: Seconds for which a pilot that lives may seem silent: it asks for work each 20 s, reports at
#: least each minute, and the server does not write down every word.
SILENT = 90.0
#: Seconds for which a system that has just taken a pilot may not know it yet.
FRESH = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A pilot of a queue, as the journal has it. Times are seconds since the epoch.

    Attributes
    ----------
    name : str
    shape : Shape
    ordered : float
    id : str
        In its system; empty: not known (yet).
    phase : {'ordered', 'waiting', 'running', 'gone'}
    began : float or None
        Seen running for the first time.
    first, heard : float or None
        The server has heard of it for the first and the last time.
    idle : float or None
        Without work since; None: it has some.
    free : int
        Cores.
    worked : bool
        It was seen with work.
    wish : {'', 'cancel', 'drain'}
        What it was told, at ``wished``.
    why : str
        Why it was told so, or how it ended.
    code : int or None
    ended : float or None
    """

    name: str
    shape: Shape
    ordered: float
    id: str = ""
    phase: Literal["ordered", "waiting", "running", "gone"] = "ordered"
    began: float | None = None
    first: float | None = None
    heard: float | None = None
    idle: float | None = None
    free: int = 0
    worked: bool = False
    wish: Literal["", "cancel", "drain"] = ""
    wished: float = 0.0
    why: str = ""
    code: int | None = None
    ended: float | None = None


class Heard(NamedTuple):
    """A pilot, as the server tells it; ``ago``: seconds since it was heard of."""

    ago: float
    free: int
    running: int
    command: str = ""


def parse_heard(rows: Iterable[Mapping[str, Any]]) -> dict[str, Heard]:
    """Return pilots by name from the server's rows; those that count as gone are left out."""
    return {
        str(row["pilot"]): Heard(
            float(row["ago"]), int(row["free"]), int(row["running"]), str(row["command"])
        )
        for row in rows
        if row.get("alive")
    }


@dataclass(frozen=True, slots=True)
class Looked:
    """What was seen in one look.

    Attributes
    ----------
    at : float
        By this machine's clock.
    states : mapping of str to PilotState
        By id.
    found : mapping of str to str
        Names by id, of what waits or runs there; empty where it was not asked.
    heard : mapping of str to Heard
        By name: pilots that the server knows at this queue.
    settles : float
        Seconds after which a pilot that was ordered, and of which nobody knows, was never begun.
    """

    at: float
    states: Mapping[str, PilotState] = field(default_factory=dict)
    found: Mapping[str, str] = field(default_factory=dict)
    heard: Mapping[str, Heard] = field(default_factory=dict)
    settles: float = 90.0


def matched(records: Iterable[Record], looked: Looked) -> dict[str, Record]:
    """Return the records, by name, as they are after a look.

    Pilots that are found and were not known are taken in: their notes were lost.
    """
    ids = {name: id for id, name in looked.found.items()}
    known = {each.name: _seen(_named(each, ids), looked) for each in records}
    for name, id in ids.items():
        if name not in known:
            known[name] = _seen(_adopted(name, id, looked.at), looked)
    return known


def _named(record: Record, ids: Mapping[str, str]) -> Record:
    return replace(record, id=ids[record.name]) if not record.id and record.name in ids else record


def _adopted(name: str, id: str, now: float) -> Record:
    return Record(name=name, shape=Shape(), ordered=now, id=id)


def _seen(record: Record, looked: Looked) -> Record:
    heard = looked.heard.get(record.name)
    if heard is not None:
        record = _listened(record, heard, looked.at)
    if record.id:
        return _polled(record, looked.states.get(record.id), looked.at)
    if looked.at - record.ordered > looked.settles and heard is None:
        return _over(record, PilotState(phase="gone", reason="it was never begun"), looked.at)
    return record


def _listened(record: Record, heard: Heard, now: float) -> Record:
    busy = heard.running > 0
    idle = None if busy else now if record.idle is None else record.idle
    return replace(
        record,
        first=record.first or now,
        heard=max(record.heard or 0.0, now - heard.ago),
        idle=idle,
        free=heard.free,
        worked=record.worked or busy,
    )


def _polled(record: Record, state: PilotState | None, now: float) -> Record:
    if state is None or record.phase == "gone":
        return record
    if state.phase == "gone":
        # Of one that has just been submitted a system may not know yet.
        fresh = state.code is None and now - record.ordered < FRESH and not record.first
        return record if fresh else _over(record, state, now)
    if state.phase == "waiting":
        return replace(record, phase="waiting", why=record.why or state.reason)
    return replace(record, phase="running", began=record.began or now)


def _over(record: Record, state: PilotState, now: float) -> Record:
    code = "" if state.code is None else f"exit code {state.code}"
    told = ", ".join(part for part in (code, state.reason) if part)
    if record.wish:
        told = f"{record.why} ({code or state.reason or 'gone'})"
    return replace(record, phase="gone", code=state.code, why=told, ended=now)


# --- judging ------------------------------------------------------------------------------


def stillborn(record: Record) -> str:
    """Say why a pilot that is gone never came to life; empty: it did, or was told to go."""
    if record.phase != "gone" or record.first is not None or record.wish:
        return ""
    return f"pilot {record.name} was never heard of: {record.why or 'it ended'}"


def ghosts(
    records: Iterable[Record], now: float, since: float, ghost: float, heartbeat: float
) -> Iterator[Leave]:
    """Yield pilots that run by what their system says, but not by what the server hears.

    Parameters
    ----------
    records : iterable of Record
    now : float
    since : float
        When the server began to answer, the last time that it did not.
    ghost : float
        Seconds without a word, since then and since they run, after which they are ghosts.
    heartbeat : float
        The same of those that were heard of before.
    """
    for each in records:
        if each.phase != "running" or each.wish == "cancel" or each.began is None:
            continue
        last = max(each.heard or each.began, since)
        patience = ghost if each.heard is None else max(ghost, heartbeat, SILENT)
        if now - last > patience:
            word = "never heard of" if each.heard is None else "silent"
            yield Leave(each.name, "cancel", f"a ghost: {word} for {now - last:.0f} s")


def seats(
    records: Iterable[Record],
    heard: Mapping[str, Heard],
    gone: Iterable[Record],
    label: str,
    now: float,
) -> list[Seat]:
    """Return the pilots of a queue as sizing sees them.

    Parameters
    ----------
    records : iterable of Record
        Pilots that are not gone.
    heard : mapping of str to Heard
        All that the server knows at the queue. Those with this harvester's label that no record
        has are counted as its own, and left alone; of others counts only what they have free.
    gone : iterable of Record
        Pilots that went lately: the server may not have noticed.
    label : str
    now : float
    """
    live = list(records)
    past = {each.name: each.ended or 0.0 for each in gone}
    strays = {
        name: other
        for name, other in heard.items()
        if name not in {each.name for each in live}
        and now - other.ago > past.get(name, 0.0) + _AFTER
        and (other.running or other.ago <= _LATELY)
    }
    return [
        *(_seat(each, now) for each in live),
        *(_stray(name, other, label) for name, other in strays.items()),
    ]


def _stray(name: str, other: Heard, label: str) -> Seat:
    return Seat(
        name,
        Shape(cores=max(1, other.free)),
        "busy" if other.running else "idle",
        other.free,
        ours=name.startswith(f"{label}-"),
        leaving=bool(other.command),
    )


def _seat(record: Record, now: float) -> Seat:
    stage, since = _stage(record)
    walltime = record.shape.walltime or inf
    left = inf if record.began is None else max(0.0, record.began + walltime - now)
    return Seat(
        record.name,
        record.shape,
        stage,
        cores=record.free,
        since=now - since,
        left=left,
        leaving=bool(record.wish),
    )


def _stage(record: Record) -> tuple[Stage, float]:
    if record.first is not None:
        return ("busy", record.first) if record.idle is None else ("idle", record.idle)
    if record.phase == "running":
        return "starting", record.began or record.ordered
    return ("waiting" if record.phase == "waiting" else "ordered"), record.ordered
