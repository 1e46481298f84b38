"""A study that feeds a run: points in, outcomes out.

Runs in a thread of the process that drives the run, beside the run's own loop. Points go into
the run as items of a stream (one job each) or as sub-workflows (tasks of their own each); what
was committed comes back through the run's watchers, and intermediate values through the channel
of its executors.
"""

from __future__ import annotations

import logging
import pickle
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pandaflow.core import commands as cmd
from pandaflow.core.errors import StoreError
from pandaflow.core.events import JobSaid
from pandaflow.core.model import SteererSpec
from pandaflow.executors.payload import job_seed
from pandaflow.hpo.driver import StudyDriver, finished
from pandaflow.hpo.engine import Announce, Command, Dispatch, Finish, Outcome, Prune
from pandaflow.hpo.evaluations import PRUNED, Evaluations, aborted, evaluations, stream_items
from pandaflow.hpo.searching import SearchPlan

logger = logging.getLogger("pandaflow.hpo")

#: Seconds between looks at the clock.
_TICK_S = 0.5


def steer(run: Any, spec: SteererSpec) -> Steering:
    """Return what feeds ``run`` with the trials of a study; called before the run is driven."""
    plan = pickle.loads(run._results().get(spec.blob))
    return Steering(run, plan)


def study_name(run_id: str, plan: SearchPlan) -> str:
    """Return the name of a search's study: its own, or one within the run."""
    return plan.study.name or f"{run_id}/{plan.label}"


class Steering:
    """One study, and the run that evaluates its trials.

    Parameters
    ----------
    run : Run
    plan : SearchPlan
    """

    def __init__(self, run: Any, plan: SearchPlan) -> None:
        self._run, self._plan = run, plan
        name = study_name(run.id, plan)
        results = run._results().url
        study = replace(plan.study, name=name)
        folder = f"{results.rpartition('/')[0]}/studies"
        before = run._store.study(name)
        self._before = before.run if before is not None and before.run != run.id else None
        self._driver = StudyDriver(run._store, study, folder, run.id)
        try:
            self._connect()
        except BaseException:
            self._driver.close()
            raise

    def _connect(self) -> None:
        run, plan, name = self._run, self._plan, self._driver.plan.name
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._driver.wake = lambda: self._queue.put(None)
        self._thread = threading.Thread(target=self._main, name=f"hpo-{name}", daemon=True)
        self._over = threading.Event()
        self._evaluations: Evaluations = evaluations(run, plan, self._driver.book)
        self._trials_stream = _open_stream(run, plan.stream("trials"))
        self._best_stream = _open_stream(run, plan.stream("result"))
        self._trials_read = _is_read(run, plan.stream("trials"))
        self._warned = False
        run._watchers.append(self._saw)
        run._listen(self._heard)

    def start(self) -> None:
        """Begin to feed the run."""
        self._thread.start()

    def close(self) -> None:
        """The run is not driven any more."""
        self._over.set()
        self._queue.put(None)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        elif not self._thread.ident:  # it was never started
            self._driver.close()

    # --- called in other threads --------------------------------------------------------

    def _saw(self, records: Sequence[cmd.Record]) -> None:
        if aborted(records):  # what runs may take its time to stop; the study need not wait
            self._over.set()
            self._queue.put(None)
            return
        if any(self._evaluations.concerns(record) for record in records):
            self._queue.put(records)

    def _heard(self, said: JobSaid, task: str) -> None:
        if self._evaluations.is_trial(task) and "report" in said.body:
            self._queue.put(said)

    # --- the loop -----------------------------------------------------------------------

    def _main(self) -> None:
        status = "stopped"
        try:
            status = self._drive()
        except BaseException as error:
            logger.debug("study %s", self._driver.plan.name, exc_info=True)
            self._run._fail(error)
        finally:
            try:
                self._driver.close(status)
            except StoreError as error:
                logger.warning("study %s: %s", self._driver.plan.name, error)

    def _drive(self) -> str:
        self._announce_missing()
        done = self._collect(self._of_run_before())
        done = self._carry_out(self._driver.begin()) or done
        done = self._collect(self._evaluations.earlier()) or done
        ticked = time.monotonic()
        while done is None and not self._over.is_set():
            out = self._driver.pump()
            for message in self._messages():
                out += self._handle(message)
            out += self._driver.pump()
            if time.monotonic() - ticked > _TICK_S:
                ticked = time.monotonic()
                out += self._driver.tick()
            done = self._carry_out(out)
        return "stopped" if done is None else done.status

    def _collect(self, found: Iterable[tuple[int, Outcome]]) -> Finish | None:
        """Take in outcomes that were there before this process drove the study."""
        done = None
        for number, outcome in found:
            work = self._driver.work(self._driver.engine.outcome(number, outcome))
            done = self._carry_out(work) or done
        return done

    def _of_run_before(self) -> Iterator[tuple[int, Outcome]]:
        """Yield what the run of an earlier session has finished and nobody has told."""
        if self._before is None:
            return
        earlier = type(self._run)(self._before, self._run._store)
        for spec in self._run._store.state(earlier.id).spec.steerers:
            plan = pickle.loads(earlier._results().get(spec.blob))
            if plan.study.name == self._driver.plan.name:
                found = evaluations(earlier, plan, self._driver.book).earlier()
                yield from ((n, outcome) for n, outcome in found if outcome["s"] != "failed")

    def _messages(self) -> list[Any]:
        """Return all that has come, waiting a little for the first."""
        found: list[Any] = []
        try:
            found.append(self._queue.get(timeout=_TICK_S))
            while True:
                found.append(self._queue.get(False))
        except queue.Empty:
            return [message for message in found if message is not None]

    def _handle(self, message: Any) -> list[Command]:
        engine, commands = self._driver.engine, []
        if isinstance(message, JobSaid):
            step, value = message.body["report"]
            body = message.body
            commands = engine.said(body["trial"], body["repeat"], step, value)
        else:
            for number, outcome in self._evaluations.outcomes(message):
                commands += engine.outcome(number, outcome)
        return self._driver.work(commands)

    def _carry_out(self, commands: Iterable[Command]) -> Finish | None:
        """Do what is to be done outside the study; return the end, if this is it."""
        listed = list(commands)
        fresh = [c.number for c in listed if isinstance(c, Dispatch)]
        if fresh:
            self._dispatch(fresh)
        for command in listed:
            if isinstance(command, Prune):
                self._prune(command.number)
        if self._trials_read and self._trials_stream is not None:
            told = [self._told(c.number) for c in listed if isinstance(c, Announce)]
            if told:
                self._trials_stream.append(*told)
        end = finished(listed)
        if end is not None:
            self._finish(end)
        return end

    def _dispatch(self, numbers: Sequence[int]) -> None:
        plan, space = self._driver.plan, self._driver.plan.space
        work = []
        for number in numbers:
            if not self._driver.engine.expects(number):
                continue  # its outcome was there already
            record = self._driver.book.trials[number]
            arguments = space.arguments(record.point)
            for repeat in range(plan.terms.repeats):
                seed = job_seed(plan.name, f"{self._driver.brief.seed}.{repeat}", number)
                work.append((number, repeat, arguments, seed))
        self._evaluations.send(work)

    def _prune(self, number: int) -> None:
        if not self._evaluations.stop(number, PRUNED) and not self._warned:
            self._warned = True
            self._driver.note(
                "this executor has no channel to its running jobs, so trials are not pruned"
            )

    def _told(self, number: int) -> dict[str, Any]:
        record = self._driver.book.trials[number]
        values = list(record.values)
        return {
            "number": record.number,
            "state": record.state,
            "params": self._driver.plan.space.arguments(record.point),
            "value": values[0] if len(values) == 1 else None,
            "values": values,
            "constraints": list(record.constraints),
            "attrs": dict(record.attrs),
        }

    def _announce_missing(self) -> None:
        """Hand on trials that were told when the last driver died, before they were handed on."""
        if not self._trials_read or self._trials_stream is None:
            return
        handed = {item["number"] for item in stream_items(self._run, self._plan.stream("trials"))}
        ended = [t.number for t in self._driver.book.trials if t.state != "running"]
        missing = [self._told(number) for number in ended if number not in handed]
        if missing:
            self._trials_stream.append(*missing)

    def _finish(self, end: Finish) -> None:
        best = self._driver.book.best
        if self._best_stream is not None:
            name = self._driver.plan.name
            if best is None or end.status == "failed":
                why = end.reason if end.status == "failed" else "no trial has a value"
                self._best_stream.append({"error": f"study {name}: {why}"})
            else:
                self._best_stream.append(self._told(best.number))
        for stream in (self._trials_stream, self._best_stream):
            if stream is not None:
                stream.close()
        self._evaluations.close()


def _open_stream(run: Any, name: str) -> Any:
    """Return the feed of one of the run's streams; None if it is closed already."""
    stream = run.stream(name)
    return None if stream.closed else stream


def _is_read(run: Any, stream: str) -> bool:
    """Whether a task of the run reads a stream."""
    spec = run._store.state(run.id).spec
    number = next(source.id for source in spec.sources if source.name == stream)
    texts = (repr(slot.dataset) for task in spec.tasks for slot in task.inputs)
    return any(f"Source(id={number}," in text for text in texts)
