"""Pilots in allocations: Dask workers held by batch jobs, as many as the run has work for.

The driver's process has the scheduler; batch jobs bring workers to it. A thread keeps the account
(:class:`~pandaflow.executors.batch.fleet.Fleet`): it asks the batch system and the scheduler
every few seconds, submits, retires and cancels. What a worker that dies leaves behind is charged
to its job only if its allocation is not to blame.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
from distributed import Client, LocalCluster

from pandaflow.core.errors import SiteError
from pandaflow.core.events import BundleEnded, BundleLost, SlotsChanged
from pandaflow.core.model import Failure
from pandaflow.executors.batch.control import Control
from pandaflow.executors.batch.fleet import Fleet, Limits, Plan, Seen
from pandaflow.executors.batch.model import BatchRequest, BatchStatus, plain_name
from pandaflow.executors.batch.settings import BatchSettings
from pandaflow.executors.dask import DaskSession
from pandaflow.ports import Assignment, Report

logger = logging.getLogger("pandaflow.executors")

#: Seconds that a cancelled batch job is given to leave the queue.
_LEAVE_S = 20.0
#: Seconds that a lost bundle waits for its batch system to say why.
_VERDICT_S = 15.0


class PilotSession(DaskSession):
    """One run's bundles on workers in allocations.

    Parameters
    ----------
    settings : BatchSettings
    run_id, results, report
        As for any session; ``results`` must be a folder that the nodes see.
    """

    def __init__(self, settings: BatchSettings, run_id: str, results: str, report: Report) -> None:
        self._settings = settings
        self._control = Control(settings.backend, settings.commands_env)
        self._folder = Path(results) / "pilots"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._fleet = Fleet(_limits(settings))
        self._lost: list[tuple[float, BundleLost, str]] = []
        self._ended: dict[str, BatchStatus | None] = {}
        self._pilot_of: dict[str, str] = {}
        self._trouble = self._refused = ""
        self._sizes: dict[int, int] = {}
        self._over = threading.Event()
        self._name = plain_name(f"pf-{run_id}")
        self._cluster = _scheduler(settings)
        client = Client(self._cluster, set_as_default=False)
        super().__init__(client, run_id, results, report, owns_client=True)
        self._adopt()
        self._write_contact()
        self._keeper = threading.Thread(target=self._keep, name="pandaflow-pilots", daemon=True)
        self._keeper.start()

    # --- the port -----------------------------------------------------------------------

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Add a slice to the graph; pilots come for it."""
        self._sizes |= {one.emit.bundle: len(one.spec.jobs) for one in assignments}
        if self._refused:
            self._refuse([one.emit.bundle for one in assignments])
        else:
            super().submit(assignments)

    def release(self, bundles: Sequence[int]) -> None:
        """Let Dask forget values."""
        super().release(bundles)
        for bundle in bundles:
            self._sizes.pop(bundle, None)

    def close(self, *, kill: bool = False) -> None:
        """Give all allocations back and wait until they have left the queue."""
        if self._over.is_set():
            return
        self._over.set()
        self._keeper.join(timeout=60)
        self._write_contact(over=True)
        super().close(kill=kill)
        self._leave()
        self._cluster.close(timeout=5)

    # --- what the base class asks -------------------------------------------------------

    def _count_slots(self) -> None:
        """Tell the slots that there may be: the engine sends work, and workers come for it."""
        slots = 0 if self._trouble else self._settings.max_nodes * self._settings.cores
        if slots != self._slots:
            self._slots = slots
            self._report(SlotsChanged(time.time(), "", slots, self._trouble))

    def _tell_lost(self, lost: BundleLost, worker: str) -> None:
        """Wait with a verdict until the batch system has said what became of the pilot."""
        with self._lock:
            self._lost.append((time.monotonic(), lost, self._pilot_of.get(worker, "")))

    # --- the account --------------------------------------------------------------------

    def _keep(self) -> None:
        while not self._over.wait(self._settings.poll_seconds):
            try:
                self._turn()
            except SiteError as error:
                logger.warning("%s: %s", self._run, error)

    def _turn(self) -> None:
        statuses, workers = self._statuses(), self._workers()
        plan = self._fleet.look(time.monotonic(), statuses, workers, self._waiting())
        self._ended.update(plan.ended)
        self._judge(statuses, workers)
        self._carry_out(plan)
        self._trouble = plan.trouble and f"{plan.trouble}: {self._last_words()}"

    def _statuses(self) -> dict[str, BatchStatus]:
        found = self._control.look(sorted(self._fleet.pilots))
        return {ref[0]: status for ref, status in found.items()}

    def _workers(self) -> dict[str, Seen]:
        """Return what workers the pilots have, by the batch job that holds them."""
        found: dict[str, Seen] = {}
        for address, worker in list(self._cluster.scheduler.workers.items()):
            pilot = _pilot_of(str(worker.name))
            self._pilot_of[address] = pilot
            busy, draining = len(worker.processing), worker.status.name != "running"
            known = found.get(pilot, Seen(0, draining=True))
            found[pilot] = Seen(known.busy + busy, draining and known.draining)
        return found

    def _waiting(self) -> int:
        """Return the nodes that could run if there were a slot."""
        scheduler = self._cluster.scheduler
        return len(scheduler.queued) + len(scheduler.unrunnable)

    def _judge(self, statuses: Mapping[str, BatchStatus], workers: Mapping[str, Seen]) -> None:
        """Report bundles whose worker died, charged or not, once it is known why it did.

        Where other workers of the same pilot live on, the job itself is to blame; where none
        does, the batch system is given some seconds to say what became of the allocation.
        """
        with self._lock:
            waiting, self._lost = self._lost, []
        for since, lost, pilot in waiting:
            status = statuses.get(pilot) or self._ended.get(pilot)
            over = status is not None and not status.live
            if over or pilot in workers or time.monotonic() - since > _VERDICT_S:
                self._report(_charged(lost, status if over else None))
            else:
                with self._lock:
                    self._lost.append((since, lost, pilot))

    def _carry_out(self, plan: Plan) -> None:
        if plan.cancel:
            self._control.cancel([(one, None) for one in plan.cancel])
        if plan.retire:
            self._retire(set(plan.retire))
        for _ in range(plan.submit):
            try:
                pilot = self._submit()
            except SiteError as error:
                self._fleet.refused(time.monotonic())
                if not error.transient:
                    self._give_up(str(error))
                raise
            self._fleet.submitted([pilot], time.monotonic())

    def _retire(self, pilots: set[str]) -> None:
        """Give idle allocations back."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"]
        gone = [a for a, worker in workers.items() if _pilot_of(str(worker["name"])) in pilots]
        self._client.retire_workers(workers=gone, close_workers=True, remove=True)
        self._control.cancel([(one, None) for one in sorted(pilots)])

    def _give_up(self, why: str) -> None:
        """Fail what waits: the batch system will never take a pilot as it is asked for."""
        if not self._fleet.pilots:
            self._refused = why
            self._refuse(list(self._sizes))

    def _refuse(self, bundles: Sequence[int]) -> None:
        for bundle in bundles:
            failure = Failure(kind="site", message=self._refused)
            failures = dict.fromkeys(range(self._sizes.pop(bundle, 0)), failure)
            if failures:
                self._report(BundleEnded(at=time.time(), bundle=bundle, failures=failures))

    def _submit(self) -> str:
        settings = self._settings
        script = self._folder / f"pilot-{uuid.uuid4().hex[:8]}.sh"
        request = pilot_request(settings, self._name, str(self._folder))
        pilot = self._control.submit(
            script, request, pilot_body(settings, self._folder / "contact.json"), settings.prologue
        )
        with open(self._folder / "jobs", "a", encoding="utf-8") as file:
            file.write(f"{pilot}\n")
        return pilot

    def _last_words(self) -> str:
        """Return the end of what the newest pilot wrote."""
        logs = sorted(self._folder.glob("*.out"), key=os.path.getmtime)
        text = logs[-1].read_text(errors="replace").strip() if logs else ""
        return text.splitlines()[-1][:300] if text else "it wrote nothing"

    # --- beginning and end --------------------------------------------------------------

    def _adopt(self) -> None:
        """Count pilots in that a driver before this one left alive: they read the contact."""
        with suppress(OSError):
            ids = (self._folder / "jobs").read_text(encoding="utf-8").split()
            alive = {ref[0] for ref, s in self._control.look(ids).items() if s.live}
            self._fleet.submitted(sorted(alive), time.monotonic())

    def _write_contact(self, *, over: bool = False) -> None:
        address = self._cluster.scheduler_address
        contact = {"id": uuid.uuid4().hex, "address": address, **({"over": True} if over else {})}
        scratch = self._folder / "contact.part"
        scratch.write_text(json.dumps(contact), encoding="utf-8")
        scratch.replace(self._folder / "contact.json")

    def _leave(self) -> None:
        """Cancel what is left, and stay until it is gone."""
        deadline = time.monotonic() + _LEAVE_S
        left = sorted(self._fleet.pilots)
        while left and time.monotonic() < deadline:
            try:
                self._control.cancel([(one, None) for one in left])
                statuses = self._control.look(left)
            except SiteError as error:
                logger.warning("%s: %s", self._run, error)
                statuses = {}
            else:
                left = sorted({ref[0] for ref, s in statuses.items() if s.live or s.remains})
            if left:
                time.sleep(0.3)


def _pilot_of(worker: str) -> str:
    """Return the batch job behind a worker's name, ``pilot-<id>-<slot>.<start>``."""
    return worker.removeprefix("pilot-").rpartition("-")[0]


def _limits(settings: BatchSettings) -> Limits:
    return Limits(
        least=settings.min_nodes,
        most=settings.max_nodes,
        slots=settings.cores,
        idle=settings.idle_seconds,
        per_minute=settings.submit_rate,
    )


def _scheduler(settings: BatchSettings) -> Any:
    """Start a scheduler that compute nodes can reach."""
    quiet = {
        "distributed.scheduler.allowed-failures": 1000,
        "distributed.scheduler.worker-saturation": 1.0 if settings.cores == 1 else 1.25,
        "distributed.comm.timeouts.connect": "30s",
        "distributed.admin.low-level-log-length": 100,
        "distributed.admin.large-graph-warning-threshold": "100MB",
    }
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with dask.config.set(quiet):
        return LocalCluster(
            n_workers=0,
            processes=True,
            host=settings.host,
            dashboard_address=":0",
            scheduler_kwargs={"dashboard": False},
            silence_logs=logging.CRITICAL,
        )


def pilot_request(settings: BatchSettings, name: str, folder: str) -> BatchRequest:
    """Return what is asked of the batch system for one pilot."""
    return replace(
        settings.request(name),
        stdout=f"{folder}/{{id}}.out",
        workdir=folder,
        warn=("USR1", min(60.0, settings.walltime / 4)),
    )


def pilot_body(settings: BatchSettings, contact: Path) -> str:
    """Return the line of the script that becomes the pilot."""
    words = [
        *(settings.python, "-m", "pandaflow.executors.batch.pilot", str(contact)),
        *("--slots", str(settings.cores), "--walltime", f"{settings.walltime:g}"),
        *("--margin", f"{min(settings.margin, settings.walltime / 4):g}"),
        *("--patience", f"{settings.patience:g}"),
        *(("--scratch", settings.scratch) if settings.scratch else ()),
    ]
    inside = f"{settings.container} " if settings.container else ""
    return f"exec {inside}{shlex.join(words)}"


def _charged(lost: BundleLost, status: BatchStatus | None) -> BundleLost:
    """Say who is to blame: the job, unless its allocation ended for reasons of its own."""
    if status is None or status.live:
        return lost
    fault = status.infrastructure or status.state == "timeout"
    told = f"its pilot {status.id} ended: {status.state} {status.reason}".rstrip()
    return replace(lost, reason=told, charged=lost.charged and not fault)
