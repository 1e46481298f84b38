"""What happens inside a worker when a bundle runs.

:func:`run_bundle` takes the claim, runs the jobs one after the other (under supervision, see
``supervise.py``), writes their values as one file, reports, and returns the values for Dask's
memory. The order matters: a job counts as finished only when its value is on disk.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Literal, cast

from pandaflow.core.bundle import BundleSpec, BundleValues, Missing
from pandaflow.core.events import BundleEnded
from pandaflow.core.model import Failure
from pandaflow.data.results import Claim, Encoded, ResultStore, encode
from pandaflow.executors import cache, capture, supervise
from pandaflow.executors.channel import STOPPED, Outbox, outbox_of, unpack_said
from pandaflow.executors.command import CommandPayload
from pandaflow.executors.jobs import JobContext, JobLoop, current_job, job_seed
from pandaflow.executors.outcome import BundleAbandoned, Skip, pack_ended, unpack_ended
from pandaflow.executors.supervise import Supervisor, cancel, forget
from pandaflow.executors.template import NodeRef, Payload, Slot

__all__ = [
    "BundleAbandoned",
    "CommandPayload",
    "JobContext",
    "NodeRef",
    "Payload",
    "Skip",
    "Slot",
    "cancel",
    "current_job",
    "forget",
    "job_seed",
    "pack_ended",
    "run_bundle",
    "unpack_ended",
    "unpack_said",
]

Isolation = Literal["process", "thread", "caller"]
Report = Callable[[dict[str, Any]], None]


def run_bundle(
    spec: BundleSpec,
    payload: bytes,
    deps: Sequence[BundleValues],
    *,
    report: Report,
    worker: str,
    isolation: Isolation,
    on_stuck: Callable[[], None] | None = None,
    workdir: str = "",
) -> BundleValues:
    """Run the jobs of a bundle, persist their values, report, and return the values.

    Parameters
    ----------
    spec : BundleSpec
    payload : bytes
        Pickled :class:`Payload`, ``CommandPayload``, or ``{job: pickled (function, args,
        kwargs)}``, as ``spec.kind`` says.
    deps : sequence of BundleValues
        Upstream values, as ``spec.outputs`` counts them.
    report : callable
        Gets plain dicts that msgpack can carry: ``{"op": "started", ...}``, then either
        ``{"op": "ended", ...}`` (see :func:`unpack_ended`) or ``{"op": "lost", ...}``. In
        between, and from another thread, ``{"op": "said", ...}``: what the jobs of the run's
        bundles send on this worker (see :func:`unpack_said`).
    worker : str
        Who runs it, for the report.
    isolation : {'process', 'thread', 'caller'}
        ``caller``: in this very thread, without limits, for debuggers.
    on_stuck : callable, optional
        Called, after the report, when a job cannot be stopped and ``isolation`` is
        ``process``: it should end this process.
    workdir : str
        Root of the jobs' work directories; default: a folder in the temporary directory.

    Raises
    ------
    BundleAbandoned
        An earlier execution of this bundle began and left no result.
    """
    store = ResultStore(spec.results)
    if location := store.find(spec.bundle):
        report(store.header(location)["report"])
        return store.load(location)
    try:
        claim = _claimed(spec, store, worker, report)
    except OSError as error:
        return _not_written(spec, BundleEnded(at=0.0, bundle=spec.bundle), error, report)
    report({"op": "started", "bundle": spec.bundle, "worker": worker, "at": time.time()})
    try:
        bundle = _Bundle(spec, store, isolation, _outbox(spec, worker, isolation, report))
        outcome = (
            bundle.join() if spec.join is not None else bundle.run(payload, deps, claim, workdir)
        )
        values = bundle.persist(outcome, worker, report)
    finally:
        claim.remove()
    if outcome.stuck and isolation == "process" and on_stuck is not None:
        on_stuck()
    return values


def _outbox(spec: BundleSpec, worker: str, isolation: Isolation, report: Report) -> Outbox:
    if isolation == "caller":
        return Outbox(report, at_once=True)
    return outbox_of(spec.run, worker, report)


def _claimed(spec: BundleSpec, store: ResultStore, worker: str, report: Report) -> Claim:
    """Take the claim, or say that somebody had it who is gone."""
    claim = store.claim(spec.bundle, spec.attempt, worker)
    if claim is None:
        position = store.claimed_position(spec.bundle)
        report({"op": "lost", "bundle": spec.bundle, "position": position})
        raise BundleAbandoned(f"bundle {spec.bundle} was begun before and left no result")
    return claim


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of a bundle, before it is persisted; ``keys`` are for the cache."""

    values: list[Any]
    ended: BundleEnded
    keys: dict[int, str] = field(default_factory=dict)
    stuck: bool = False


class _Bundle:
    """One execution of a bundle."""

    def __init__(
        self, spec: BundleSpec, store: ResultStore, isolation: Isolation, outbox: Outbox
    ) -> None:
        self._spec, self._store, self._isolation = spec, store, isolation
        self._outbox = outbox
        self._sink = capture.Sink(
            self._open_log,
            live=len(spec.jobs) == 1 or not spec.seconds,
            tee=isolation == "caller",
        )

    def run(
        self, payload: bytes, deps: Sequence[BundleValues], claim: Claim, workdir: str
    ) -> _Outcome:
        """Run the jobs."""
        spec, caller = self._spec, self._isolation == "caller"
        capture.install()
        loop = JobLoop(
            spec,
            payload,
            deps,
            store=self._store,
            sink=self._sink,
            claim=claim,
            caller=caller,
            workdir=workdir,
        )
        loop.outbox = self._outbox
        if caller:
            with supervise.enlisted(spec.run, spec.bundle, loop.track):
                loop.run()
            return self._outcome(loop, 0, loop.done)
        supervisor = Supervisor(loop.track, spec.resources)
        return self._supervised(loop, supervisor, spec.seconds if len(spec.jobs) > 1 else 0.0)

    def join(self) -> _Outcome:
        """Wait for the job that an earlier bundle left running in this process."""
        spec = self._spec
        left = supervise.take_running(spec.run, cast(int, spec.join))
        if left is None:
            text = "it was running in a process that is gone"
            return self._none(Failure(kind="lost", message=text, charged=False))
        loop: JobLoop = left.loop
        loop.sink.attach(self._open_log)
        self._sink = loop.sink
        return self._supervised(loop, left.supervisor, 0.0, loop.track.position)

    def persist(self, outcome: _Outcome, worker: str, report: Report) -> BundleValues:
        """Write the values, then report: in this order nothing finished is ever lost."""
        spec, store, values = self._spec, self._store, outcome.values
        self._outbox.flush()
        encoded = encode(values)
        ended = replace(
            outcome.ended,
            at=time.time(),
            worker=worker,
            location=store.place(spec.bundle),
            checksum=encoded.checksum,
            nbytes=len(encoded.body),
        )
        if encoded.refused:
            ended = _without(ended, encoded)
            for position in encoded.refused:
                values[position] = encoded.missing[position]
        packed = pack_ended(ended)
        try:
            store.save(spec, encoded, packed)
        except OSError as error:
            return _not_written(spec, ended, error, report)
        self._remember(outcome.keys, ended)
        report(packed)
        return BundleValues(spec.jobs, values)

    def _supervised(
        self, loop: JobLoop, supervisor: Supervisor, seconds: float, first: int = 0
    ) -> _Outcome:
        """Watch a loop until it ends; ``first`` is the position of the job that is ours."""
        spec, track = self._spec, loop.track
        with supervise.enlisted(spec.run, spec.bundle, track):
            if spec.join is None:
                supervise.start(track, loop.run)
            end = supervisor.watch(seconds, loop.sink.flush, lambda: self._part(loop))
            if end == "detached":
                supervise.leave_running(spec.run, spec.bundle, loop, supervisor)
        if end == "done":
            return self._outcome(loop, first, loop.done)
        outcome = self._outcome(loop, first, track.position)
        at = track.position - first
        if end == "detached":
            rest = outcome.ended.unstarted[1:]
            return replace(outcome, ended=replace(outcome.ended, detached=at, unstarted=rest))
        return self._stuck(outcome, at, cast(Failure, track.wanted))

    def _part(self, loop: JobLoop) -> None:
        """The running job goes on without this bundle, and takes its output along."""
        self._sink = loop.sink.hand_over()

    def _stuck(self, outcome: _Outcome, at: int, failure: Failure) -> _Outcome:
        gone = {
            "process": "so its process was ended",
            "thread": "so its thread was left behind and may go on",
        }[self._isolation]
        failure = replace(failure, message=f"{failure.message}; it did not react, {gone}")
        asked, values = failure.kind == STOPPED, outcome.values.copy()
        values[at] = Missing(failure.message, absent=asked)
        ended = replace(outcome.ended, unstarted=outcome.ended.unstarted[1:])
        if asked:
            ended = replace(ended, skipped={**ended.skipped, at: failure.message})
        else:
            ended = replace(ended, failures={**ended.failures, at: failure})
        return replace(outcome, values=values, ended=ended, stuck=True)

    def _outcome(self, loop: JobLoop, first: int, stop: int) -> _Outcome:
        """Take the outcomes of the positions ``[first, stop)``; all later ones are unstarted."""
        self._sink.close()
        size = len(self._spec.jobs)
        rest = size - (stop - first)

        def part(outcomes: Mapping[int, Any]) -> dict[int, Any]:
            return {p - first: what for p, what in dict(outcomes).items() if first <= p < stop}

        measures, cpu = part(loop.measures), loop.cpu[first:stop] + array("f", bytes(4 * rest))
        peaks = part(loop.track.peaks) | {p: measure.max_pss for p, measure in measures.items()}
        for position, measure in measures.items():
            cpu[position] = measure.cpu
        ended = BundleEnded(
            at=0.0,
            bundle=self._spec.bundle,
            failures=part(loop.failures),
            blocked=part(loop.blocked),
            unstarted=tuple(range(stop - first, size)),
            skipped=part(loop.skipped),
            cached=tuple(p - first for p in loop.cached if first <= p < stop),
            sizes=part(loop.sizes),
            truth=loop.truth,
            started=loop.started,
            wall=loop.wall[first:stop] + array("f", bytes(4 * rest)),
            cpu=cpu,
            max_pss=_column(peaks, size),
            read_bytes=_column({p: m.read_bytes for p, m in measures.items()}, size),
            written_bytes=_column({p: m.written_bytes for p, m in measures.items()}, size),
            disk=_column({p: m.disk for p, m in measures.items()}, size),
            logs={} if self._sink.broken else part(loop.logs),
        )
        values = loop.values[first:stop] + [Missing("handed back: not run yet")] * rest
        return _Outcome(values, ended, part(loop.keys))

    def _none(self, failure: Failure) -> _Outcome:
        positions = range(len(self._spec.jobs))
        failures = dict.fromkeys(positions, failure)
        ended = BundleEnded(at=0.0, bundle=self._spec.bundle, failures=failures)
        return _Outcome([Missing(failure.message) for _ in positions], ended)

    def _remember(self, keys: Mapping[int, str], ended: BundleEnded) -> None:
        root, _, run = self._store.url.rpartition("/")
        location = f"{run}/{ended.location}"
        for position, key in keys.items():
            if position not in ended.failures and position not in ended.skipped:
                with suppress(OSError):  # a cache that cannot be written is no failure
                    cache.remember(
                        root, key, location=location, position=position, checksum=ended.checksum
                    )

    def _open_log(self) -> BinaryIO:
        return self._store.open_log(self._spec.bundle)


def _column(known: Mapping[int, int], size: int) -> array[int]:
    """One number a job, 0 where there is none; empty if there is none at all."""
    return array("q", [known.get(p, 0) for p in range(size)]) if known else array("q")


def _without(ended: BundleEnded, encoded: Encoded) -> BundleEnded:
    """Turn jobs whose values cannot be kept into failures."""
    failures, sizes = dict(ended.failures), dict(ended.sizes)
    for position, why in encoded.refused.items():
        text = f"its value cannot be serialized ({why}); return plain data, arrays or a file"
        failures[position] = Failure(kind="unserializable", message=text)
        sizes.pop(position, None)
    return replace(ended, failures=failures, sizes=sizes)


def _not_written(
    spec: BundleSpec, ended: BundleEnded, error: OSError, report: Report
) -> BundleValues:
    """Every job fails, uncharged: its payload is not to blame for a full disk."""
    where = spec.results
    text = f"the results cannot be written to {where}: {error.strerror or error}; make room there"
    failure = Failure(kind="output", message=f"{text} (or mend it) and retry", charged=False)
    positions = range(len(spec.jobs))
    failed = BundleEnded(
        at=time.time(),
        bundle=spec.bundle,
        worker=ended.worker,
        failures=dict.fromkeys(positions, failure),
        started=ended.started,
        wall=ended.wall,
        cpu=ended.cpu,
        logs=ended.logs,
    )
    report(pack_ended(failed))
    return BundleValues(spec.jobs, [Missing(failure.message) for _ in positions])
