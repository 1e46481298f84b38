"""``pandaflow runner``: a service that drives runs which were left with a server.

Rule 1: a run is driven under its lease, so that any number of runners may share a store.
Rule 2: what is in the pool outlives a runner; whoever takes its run next adopts it.
Rule 3: a runner moves bytes. It never unpickles or runs what users have written.
Rule 4: one run's trouble is told to its people, and ends neither the runner nor other runs.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pandaflow.config import read_settings
from pandaflow.core import commands as cmd
from pandaflow.core.errors import PandaflowError, RunLocked, RunNotFound, StoreError, WorkflowError
from pandaflow.core.growth import all_tasks
from pandaflow.core.status import RUN_TERMINAL, RunStatus, TaskStatus
from pandaflow.executors.grid.executor import Grid
from pandaflow.executors.grid.session import make_client
from pandaflow.executors.grid.settings import GridSettings
from pandaflow.offers import check_executors
from pandaflow.ports import Executor, RunState
from pandaflow.runner import Runner
from pandaflow.store.serving import ServedRun
from pandaflow.store.sql import SqlStore, open_store, this_process

logger = logging.getLogger("pandaflow.runners")

#: Seconds between looks for runs, at most.
POLL_S = 1.0
#: Runs that are taken at one look: other runners want some as well.
_AT_ONCE = 2
#: Seconds until a run whose driving failed is tried again: at first, and at most.
_BACK_OFF_S = (2.0, 300.0)
#: Seconds that a run must have been driven for its trouble to be forgotten.
_GOOD_S = 60.0
#: Seconds to wait for runs to be given back.
_GRACE_S = 60.0
#: Whom people see when a runner tells why a run waits.
_ME = "runner"
_ROLES = frozenset({"production", "operator"})
_REMEDY = "The runners of this server have no other: ask its operator, or submit it without"


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """Settings of a runner.

    Attributes
    ----------
    store : str
        SQLAlchemy URL of the state store that the server has.
    server : str
        URL of the server.
    runs : int
        To be driven at once.
    name : str
        For logs.
    vos : tuple of str
        Virtual organisations whose runs are driven; empty: that of the runner's identity.
    data : str
        Folder or fsspec URL that runners and pilots reach, for what is too large for the server.
    ca : str
        File of certificates that the server's is checked with; empty: the system's.
    executors : mapping of str to mapping
        What tasks may name by ``executor=``: settings of :class:`pandaflow.executors.Grid`.
    credentials : object or None
        Who asks; None: as the environment has it.
    """

    store: str
    server: str
    runs: int = 16
    name: str = ""
    vos: tuple[str, ...] = ()
    data: str = ""
    ca: str = ""
    executors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    credentials: Any = None

    def places(self, run: ServedRun) -> dict[str, Executor]:
        """Return the executors for a run, which act for whoever submitted it.

        Raises
        ------
        WorkflowError
            A setting is no good.
        """
        common = {
            "credentials": self.credentials,
            "vo": run.vo,
            "ca": self.ca,
            "data": self.data,
            "owner": run.submitter,
        }
        made: dict[str, Executor] = {"default": Grid(self.server, name="", **common)}
        for name, given in self.executors.items():
            made[name] = Grid(self.server, **{**common, **given, "name": name})
        return made


@dataclass(slots=True)
class _Drive:
    """A run that is driven here."""

    run: ServedRun
    runner: Runner
    began: float
    thread: threading.Thread | None = None


class RunnerService:
    """Drives runs until it is told to stop.

    Parameters
    ----------
    settings : RunnerSettings
    store : SqlStore, optional
        Default: that of the settings.

    Raises
    ------
    StoreError
        The store cannot be used.
    WorkflowError
        A setting is no good.
    """

    def __init__(self, settings: RunnerSettings, store: SqlStore | None = None) -> None:
        self._settings = settings
        self._store = store or open_store(settings.store)
        self._lease = read_settings().lease_seconds
        self._drives: dict[str, _Drive] = {}
        self._later = BackOff()
        self._lock = threading.Lock()
        self._stopping, self._bell = threading.Event(), threading.Event()
        settings.places(ServedRun("", "", "", ended=False))  # refuses bad settings now

    def serve(self, *, once: bool = False) -> None:
        """Drive what waits, and what comes, until :meth:`stop`.

        Parameters
        ----------
        once : bool
            End when there is nothing left to drive.

        Raises
        ------
        WorkflowError
            This runner may not act for the VOs.
        SiteError
            The server does not answer, or does not know us.
        """
        vos = self._check_in()
        told = ", ".join(vos) if any(vos) else "everybody"
        logger.info("%s drives runs of %s, %d at once", self._me, told, self._settings.runs)
        try:
            while not self._stopping.is_set():
                taken = self._look(vos)
                if once and not taken and not self._drives:
                    return
                self._pause(taken)
        finally:
            self._give_back()

    def stop(self) -> None:
        """Make :meth:`serve` give its runs back and return. Safe in a signal's handler."""
        self._stopping.set()
        self._bell.set()

    # --- finding runs -------------------------------------------------------------------

    @property
    def _me(self) -> str:
        return self._settings.name or "this runner"

    def _check_in(self) -> list[str]:
        """Return the VOs that this runner may act for."""
        return [self._vo_of(vo) for vo in self._settings.vos or ("",)]

    def _vo_of(self, vo: str) -> str:
        about = self._settings
        given: dict[str, Any] = {"credentials": about.credentials, "vo": vo, "ca": about.ca}
        with make_client(GridSettings(server=about.server, **given)) as client:
            who = client.whoami()
        if not _ROLES & set(who["roles"]):
            raise WorkflowError(
                f"{who['name'] or who['subject']} has the roles {', '.join(who['roles'])} in VO "
                f"{who['vo']!r}; a runner needs production or operator: give it a rule in the "
                "server's policy"
            )
        return str(who["vo"])

    def _look(self, vos: Sequence[str]) -> int:
        """Take some of the runs that wait; return how many."""
        free = self._settings.runs - len(self._drives)
        if free <= 0:
            return 0
        try:
            found = self._store.waiting_runs(vos, free + len(self._later) + _AT_ONCE)
        except StoreError as error:
            logger.warning("%s: the store does not tell what waits: %s", self._me, error)
            return 0
        due = [run for run in found if run.id not in self._drives and self._later.is_due(run.id)]
        taken = 0
        for run in due:
            taken += self._take(run)
            if taken == min(free, _AT_ONCE) or self._stopping.is_set():
                break
        return taken

    def _pause(self, taken: int) -> None:
        """Wait for the next look, never as long as another runner does."""
        longest = POLL_S / 5 if taken else POLL_S
        self._bell.wait(longest * random.uniform(0.5, 1.0))
        if not self._stopping.is_set():
            self._bell.clear()

    # --- driving ------------------------------------------------------------------------

    def _take(self, run: ServedRun) -> bool:
        """Take a run's lease and drive it in a thread; false if that was not to be."""
        try:
            if not self._may_begin(run):
                return True
            drive = _Drive(run, self._runner(run), time.monotonic())
        except (RunLocked, RunNotFound):
            return False  # another runner was faster, or somebody deleted it
        except Exception as error:  # noqa: BLE001 - one run's trouble must not end the others
            self._failed(run, error, 0.0)
            return False
        name = f"pandaflow-{run.id}"
        drive.thread = threading.Thread(target=self._drive, args=(drive,), name=name, daemon=True)
        with self._lock:
            self._drives[run.id] = drive
        drive.thread.start()
        return True

    def _runner(self, run: ServedRun) -> Runner:
        places = self._settings.places(run)
        owner = this_process()
        made = Runner(self._store, run.id, places, owner, lease=self._lease, lasting=True)
        logger.info("%s: taken%s", run.id, f" for {run.submitter}" if run.submitter else "")
        return made

    def _drive(self, drive: _Drive) -> None:
        run = drive.run
        try:
            status = drive.runner.drive()
        except RunLocked as error:
            logger.warning("%s: lost: %s", run.id, error)
        except Exception as error:  # noqa: BLE001 - one run's trouble must not end the others
            self._failed(run, error, time.monotonic() - drive.began)
        else:
            self._later.forget(run.id)
            seconds = time.monotonic() - drive.began
            told = f"is {status}" if status in RUN_TERMINAL else "given back"
            logger.info("%s: %s after %.1f s", run.id, told, seconds)
        finally:
            with self._lock:
                self._drives.pop(run.id, None)
            self._bell.set()

    def _give_back(self) -> None:
        """Let go of all runs; what they have in the pool stays there."""
        with self._lock:
            drives = list(self._drives.values())
        for drive in drives:
            drive.runner.stop()
        deadline = time.monotonic() + _GRACE_S
        for drive in drives:
            if drive.thread is not None:
                drive.thread.join(max(0.0, deadline - time.monotonic()))
        if self._drives:
            left = ", ".join(self._drives)
            logger.warning("%s: not given back, their leases run out: %s", self._me, left)

    # --- trouble ------------------------------------------------------------------------

    def _may_begin(self, run: ServedRun) -> bool:
        """End a run as failed that no runner like this one can ever drive; false if so."""
        state = self._store.state(run.id)
        why = self._unfit(run, state)
        if why and state.status == RunStatus.DEFINED:
            logger.warning("%s: refused: %s", run.id, why)
            self._write(run, lambda state: _refusal(state, why))
            return False
        if why:
            raise WorkflowError(why)
        if self._noted(run):
            self._note(run, "")
        return True

    def _unfit(self, run: ServedRun, state: RunState) -> str:
        spec = state.spec
        if spec.steerers:
            return (
                f"{spec.steerers[0].name} decides in the process that drives it, which no runner "
                "lets users' code do: drive it yourself, with executor=pf.executors.Grid(...)"
            )
        bodies = [task for loop in spec.loops for task in all_tasks(loop)]
        try:
            check_executors([*spec.tasks, *bodies], self._settings.places(run), _REMEDY)
        except WorkflowError as error:
            return str(error)
        return ""

    def _failed(self, run: ServedRun, error: Exception, seconds: float) -> None:
        """Tell people why a run is not driven, and leave it alone for a while."""
        if seconds > _GOOD_S:
            self._later.forget(run.id)
        pause = self._later.add(run.id)
        told = str(error) or type(error).__name__
        if isinstance(error, PandaflowError):
            logger.warning("%s: %s; tried again in %.0f s", run.id, told, pause)
        else:  # a mistake of ours: where it was matters
            logger.error("%s: %s; tried again in %.0f s", run.id, told, pause, exc_info=error)
        self._note(run, f"it cannot be driven now: {told}")

    def _note(self, run: ServedRun, reason: str) -> None:
        try:
            if self._noted(run) != reason:
                self._write(run, lambda _: [cmd.ExecutorNoted(time.time(), _ME, 0, reason)])
        except StoreError as error:
            logger.warning("%s: people are not told: %s", run.id, error)

    def _noted(self, run: ServedRun) -> str:
        """Return what runners have told last of why a run waits; empty: nothing does."""
        rows, _ = self._store.reader().noted(run.id, "executor_noted")
        told = [str(row["reason"]) for row in rows if row["detail"]["executor"] == _ME]
        return told[-1] if told else ""

    def _write(self, run: ServedRun, records: Callable[[RunState], Sequence[cmd.Record]]) -> None:
        """Commit records under a lease of a moment."""
        driver = self._store.drive(run.id, this_process(), self._lease)
        try:
            driver.commit(records(driver.load()))
        finally:
            driver.release()


class BackOff:
    """When runs that gave trouble may be tried again, by id. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._until: dict[str, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._until)

    def add(self, run: str) -> float:
        """Put a run off, longer each time; return for how many seconds."""
        with self._lock:
            _, last = self._until.get(run, (0.0, 0.0))
            pause = min(max(2 * last, _BACK_OFF_S[0]), _BACK_OFF_S[1])
            self._until[run] = (self._clock() + pause * random.uniform(0.5, 1.0), pause)
            return pause

    def forget(self, run: str) -> None:
        """Forget that a run gave trouble."""
        with self._lock:
            self._until.pop(run, None)

    def is_due(self, run: str) -> bool:
        """Tell whether a run may be tried."""
        with self._lock:
            until, _ = self._until.get(run, (0.0, 0.0))
            return self._clock() >= until


def _refusal(state: RunState, why: str) -> list[cmd.Record]:
    """Return the records that end a new run as failed; nothing if somebody has begun it."""
    if state.status != RunStatus.DEFINED:
        return []
    now = time.time()
    failed: list[cmd.Record] = [
        cmd.TaskMoved(now, row.id, TaskStatus.DEFINED, TaskStatus.FAILED, why)
        for row in state.tasks
    ]
    begin = cmd.RunMoved(now, RunStatus.DEFINED, RunStatus.RUNNING, "looked at by a runner")
    return [begin, *failed, cmd.RunMoved(now, RunStatus.RUNNING, RunStatus.FAILED, why)]
