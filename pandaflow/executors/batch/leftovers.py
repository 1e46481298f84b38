"""Batch jobs of drivers that died: the next session of the run takes over what it can.

One file says who is in charge (``element.OWNER``): the session's token, and under it the arrays of
earlier sessions that it has adopted. It is replaced in one go, so every element finds itself
either wanted or not, and so does a session before it cancels or submits anything: a driver that
was only frozen and wakes up when another has taken the run over leaves everything alone.

Arrays that cannot be adopted are ended first. What they had finished is in the result store, and
counts. Folders of executors that the run no longer has are taken over as well (``orphans.py``).
"""

from __future__ import annotations

import itertools
import pickle
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pandaflow.core.bundle import BundleSpec
from pandaflow.core.commands import EmitBundle
from pandaflow.core.errors import SiteError
from pandaflow.executors.batch.control import Control
from pandaflow.executors.batch.element import OWNER, VOID, Todo, Work, read_reports, write_whole
from pandaflow.ports import Assignment

#: Seconds that cancelled batch jobs are given to be gone.
GONE_S = 90.0
#: In the folder of an array: none of its elements is left.
_OVER = "over"
#: A folder for a session's arrays: see ``reserve``.
_NAME = re.compile(r"batch(-\d+)?")
#: Folders of the sessions of this process: two executors of a run must not share one.
_reserved: set[Path] = set()
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Leftover:
    """An array of an earlier session.

    Attributes
    ----------
    id : str
        What the batch system calls it.
    folder : Path
    todos : mapping of int to Todo
        By element; those that were cancelled are left out.
    size : int
        Elements that it was submitted with.
    """

    id: str
    folder: Path
    todos: Mapping[int, Todo]
    size: int

    def dropped(self, bundle: int) -> bool:
        """Tell whether an earlier session has taken a bundle back."""
        return (self.folder / f"{bundle}.drop").exists()


def take_over(control: Control, folder: Path, token: str, pause: float) -> list[Leftover]:
    """Make ``token`` the owner of all arrays in ``folder``; return those that may be adopted.

    Others are ended.

    Parameters
    ----------
    control : Control
    folder : Path
        Of the run's arrays; made if there is none.
    token : str
        Elements of other owners begin nothing from now on, unless they may be adopted.
    pause : float
        Seconds between two looks at the queue.

    Returns
    -------
    list of Leftover
        The newest first.

    Raises
    ------
    SiteError
        The batch system does not answer, or batch jobs do not go away.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = [_leftover(path, control.backend.name) for path in sorted(in_use(folder))[::-1]]
    kept = [left for left in found if left is not None]
    own(folder, token, [left.folder for left in kept])
    others = [path for path in in_use(folder) if path not in {left.folder for left in kept}]
    _end(control, [path for path in others if _system(path) in ("", control.backend.name)], pause)
    for path in others:
        retire(path)
    return kept


def reserve(results: Path) -> Path:
    """Return the folder for a session's arrays: ``batch``, or ``batch-2`` for a run's second.

    A run that is resumed opens its executors in the same order.
    """
    with _lock:
        names = itertools.chain(["batch"], (f"batch-{n}" for n in itertools.count(2)))
        folder = next(results / name for name in names if results / name not in _reserved)
        _reserved.add(folder)
    return folder


def reserve_rest(results: Path) -> list[Path]:
    """Return, and reserve, the other folders of arrays that the run has, and no session."""
    with _lock:
        folders = [path for path in sorted(results.glob("batch*")) if _NAME.fullmatch(path.name)]
        rest = [folder for folder in folders if folder.is_dir() and folder not in _reserved]
        _reserved.update(rest)
    return rest


def release(folder: Path) -> None:
    """Give a folder back. May be called twice."""
    with _lock:
        _reserved.discard(folder)


def own(folder: Path, token: str, adopted: Iterable[Path]) -> None:
    """Say who is in charge of the arrays in a folder, and which of others' it has adopted."""
    lines = [token, *(path.name for path in adopted)]
    write_whole(folder / OWNER, "\n".join(lines).encode())


def owns(folder: Path, token: str) -> bool:
    """Tell whether a session is still in charge; a file server that is silent changes nothing."""
    try:
        return (folder / OWNER).read_text().partition("\n")[0] == token
    except FileNotFoundError:
        return False
    except OSError:
        return True


def settle(left: Sequence[Leftover], token: str, wanted: Set[int]) -> None:
    """Say in the folders of arrays that those with a bundle that is wanted are adopted."""
    for root in {each.folder.parent for each in left}:
        there = [each for each in left if each.folder.parent == root]
        adopted = [each for each in there if any(s.bundle in wanted for s in specs(each))]
        own(root, token, [each.folder for each in adopted])


def assignment(work: Work, code: bytes) -> Assignment:
    """Return what a bundle of an earlier session was, as far as an element needs to know."""
    spec = work.spec
    emit = EmitBundle(
        bundle=spec.bundle,
        task=spec.task,
        jobs=spec.jobs,
        attempt=spec.attempt,
        executor="",
        resources=spec.resources,
        needs=(),
        priority=(0, 0, 0),
    )
    # Places stand for what it reads: nobody asks for the bundles any more.
    return Assignment(emit, spec, "", code, tuple((-1, place) for place in work.deps))


def specs(left: Leftover) -> Iterable[BundleSpec]:
    """Return the bundles of an array."""
    return (work.spec for todo in left.todos.values() for work in todo.works)


def in_use(folder: Path) -> list[Path]:
    """Return the folders of arrays of which elements may be left."""
    return [path for path in folder.iterdir() if path.is_dir() and not (path / _OVER).exists()]


# --- reading what they left -------------------------------------------------------------


def _leftover(path: Path, system: str) -> Leftover | None:
    """Read an array of another session; None if it cannot be adopted."""
    known, names = ids(path), [file for file in path.glob("*.todo") if file.stem.isdigit()]
    if len(known) != 1 or (path / VOID).exists():
        return None
    todos: dict[int, Todo] = {}
    for name in names:
        todo = read_todo(name)
        if todo is None or todo.system != system:
            return None
        if not (path / f"{name.stem}.{VOID}").exists():
            todos[int(name.stem)] = todo
    return Leftover(min(known), path, todos, len(names))


def read_todo(path: Path) -> Todo | None:
    """Return what an element was to do; None if nobody can tell here."""
    try:
        todo = pickle.loads(path.read_bytes())
    except BaseException as error:  # items of the user's own types: unpickling may raise anything
        if isinstance(error, KeyboardInterrupt):
            raise
        return None
    return todo if isinstance(todo, Todo) else None


def code_of(work: Work) -> bytes:
    """Return the payload of a bundle; empty if it is gone."""
    if isinstance(work.code, bytes):
        return work.code
    try:
        return Path(work.code).read_bytes()
    except OSError:
        return b""


def ids(folder: Path) -> set[str]:
    """Return the id of an array, from its submitter or, if that died too soon, its elements."""
    try:
        return {(folder / "id").read_text()}
    except OSError:
        messages = [m for path in folder.glob("*.report") for m in read_reports(path, 0)[0]]
        return {str(m["id"]) for m in messages if m["op"] == "here" and m.get("id")}


def _system(path: Path) -> str:
    """Return the batch system that an array was sent to; empty if nobody can tell."""
    todo = read_todo(path / "0.todo")
    return "" if todo is None else todo.system


# --- ending -----------------------------------------------------------------------------


def _end(control: Control, folders: Sequence[Path], pause: float) -> None:
    """Cancel arrays, and wait until they are gone."""
    wanted = sorted(set().union(*map(ids, folders)))
    deadline = time.monotonic() + GONE_S
    while wanted and _cancelled(control, wanted, patient=time.monotonic() < deadline):
        time.sleep(min(0.5, pause))


def _cancelled(control: Control, wanted: list[str], *, patient: bool) -> bool:
    """Cancel what lives; return whether there was anything, or nobody could say."""
    try:
        found = control.look(wanted)
        live = sorted({ref[0] for ref, status in found.items() if status.live})
        control.cancel([(number, None) for number in live])
    except SiteError as error:
        if not (error.transient and patient):
            raise
        return True
    if live and not patient:
        raise SiteError(
            f"batch jobs of an earlier driver of the run do not end: {', '.join(live)}; "
            "cancel them by hand, then resume"
        )
    return bool(live)


def mark(path: Path) -> None:
    """Leave an empty file, where that is possible."""
    with suppress(OSError):  # the batch system is told the same in its own words
        path.touch()


def retire(folder: Path) -> None:
    """Note that no element of an array is left."""
    mark(folder / _OVER)
