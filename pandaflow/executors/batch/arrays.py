"""Job arrays of bundles: how many bundles an element takes, what it asks for, how it ended.

Everything here is a function of its arguments.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from pandaflow.core.brokerage import Ranking, cores_on_node
from pandaflow.core.bundle import BundleSpec
from pandaflow.core.events import BundleEnded, BundleLost
from pandaflow.core.model import Failure, Resources
from pandaflow.executors.batch.model import BatchRequest, BatchStatus, failure, plain_name
from pandaflow.executors.batch.settings import BatchSettings

#: Seconds of work aimed at in an element whose bundles are short: starting one costs a second.
PACK_S = 10.0
#: Seconds of work for each slot that a session wants to have at hand, to pack elements from.
AHEAD_S = 2 * PACK_S
#: Seconds that it costs to start an element: less work than that is not worth another one.
START_S = 1.0
#: Bundles in one element, and elements in one array, at most.
MOST_BUNDLES, MOST_ELEMENTS = 100, 500
#: Seconds that an element gets above the walltimes of its jobs, to start and to end.
MARGIN_S = 60.0
#: Bytes that an element gets above the memory of a job: the interpreter, and what it imports.
MARGIN_BYTES = 256 * 2**20


def pack(seconds: Sequence[float], slots: int, free: int, busy: float = 0.0) -> list[int]:
    """Divide bundles in order among elements that may start now.

    Parameters
    ----------
    seconds : sequence of float
        What each bundle should take, 0 where nobody knows.
    slots, free : int
        Elements that may run at the same time, and those that may start now.
    busy : float
        Seconds of work that the elements which run still have.

    Returns
    -------
    list of int
        How many bundles each element takes, at most ``free`` numbers. An element gets several
        only if they are short: so many that all slots should end at the same time, within
        ``PACK_S``, but no less than is worth a start.
    """
    aim = min(PACK_S, max(START_S, (sum(seconds) + busy) / max(1, slots)))
    sizes: list[int] = []
    at = 0
    while at < len(seconds) and len(sizes) < min(free, MOST_ELEMENTS):
        size, total = 1, seconds[at]
        while size < MOST_BUNDLES and at + size < len(seconds):
            more = seconds[at + size]
            if not (total and more) or total + 0.4 * more > aim:
                break
            size, total = size + 1, total + more
        sizes.append(size)
        at += size
    return sizes


def walltime(specs: Sequence[BundleSpec], limit: float) -> float:
    """Return what the element of these bundles asks for, in seconds."""
    each = [spec.resources.walltime for spec in specs]
    if None in each:
        return limit
    work = sum((spec.resources.walltime or 0.0) * len(spec.jobs) for spec in specs)
    return min(limit, work + MARGIN_S)


def memory(settings: BatchSettings, resources: Resources) -> int | None:
    """Return the bytes asked for on each node: the job's, or its cores' share of a node."""
    if resources.memory is not None:
        asked = resources.memory + MARGIN_BYTES
        return asked if settings.memory is None else min(asked, settings.memory)
    if settings.memory is None:
        return None
    return settings.memory * cores_on_node(resources) // settings.cores


def environment(resources: Resources) -> dict[str, str]:
    """Return what a payload may want to know to start its ranks."""
    return {
        "PANDAFLOW_NODES": str(resources.nodes),
        "PANDAFLOW_RANKS_PER_NODE": str(resources.ranks_per_node),
        # Since 22.05, srun does not take the cores of a rank from what sbatch was told.
        "SRUN_CPUS_PER_TASK": str(resources.cores),
    }


def array_request(
    settings: BatchSettings,
    specs: Sequence[Sequence[BundleSpec]],
    *,
    folder: Path,
    workdir: str,
) -> BatchRequest:
    """Return what is asked for an array, one element for each sequence of bundles.

    All bundles must ask for equal resources. A single element is no array: some systems have
    none of that size.
    """
    first = specs[0][0]
    resources = first.resources
    log = "0.log" if len(specs) == 1 else "{index}.log"
    return replace(
        settings.request(plain_name(f"pandaflow-{first.run}-{first.name}")),
        walltime=max(walltime(each, settings.walltime) for each in specs),
        nodes=resources.nodes,
        tasks_per_node=resources.ranks_per_node,
        cores=resources.cores,
        memory=memory(settings, resources),
        gpus=resources.gpus,
        env={**environment(resources), **settings.env},
        array=len(specs) if len(specs) > 1 else None,
        stdout=str(folder / log),
        workdir=workdir,
    )


def body(settings: BatchSettings, folder: Path) -> str:
    """Return the line of shell that runs an element of the array in ``folder``."""
    words = [settings.python, "-m", "pandaflow.executors.batch.element", str(folder)]
    before = f"{settings.container} " if settings.container else ""
    return f"exec {before}{shlex.join(words)}"


def queued(statuses: Iterable[tuple[str, BatchStatus]]) -> str:
    """Say in one line at which sites batch jobs wait, and why; empty if none does.

    Parameters
    ----------
    statuses : iterable of (str, BatchStatus)
        With the sites. How many wait is left out: it changes all the time.
    """
    reasons: dict[str, set[str]] = {}
    for site, status in statuses:
        if status.state in ("pending", "held"):
            reasons.setdefault(site, set()).add(status.reason)
    told = {site: ", ".join(sorted(filter(None, said))) for site, said in reasons.items()}
    return "; ".join(
        f"{site}: batch jobs wait in the queue" + (f" ({why})" if why else "")
        for site, why in told.items()
    )


# --- endings ----------------------------------------------------------------------------


def ending(
    status: BatchStatus,
    spec: BundleSpec,
    position: int | None,
    *,
    begun: bool,
    told: str,
    at: float,
) -> BundleEnded | BundleLost:
    """Say what became of a bundle whose element ended without a report of it.

    Parameters
    ----------
    status : BatchStatus
        Of the element; it has ended, or nobody knows it.
    spec : BundleSpec
    position : int or None
        The job that ran.
    begun : bool
        Whether the element came as far as beginning its work.
    told : str
        The last lines of the element's output.
    at : float
        Now, in seconds since the epoch.

    Returns
    -------
    BundleEnded or BundleLost
        A job that went over a limit has failed, and the others of its bundle are handed back;
        a job under which the element died is the suspect; where the element never began, all
        jobs fail and are not charged, so that the end comes after a few times. What the
        infrastructure did is nobody's fault.
    """
    why = failure(status) or Failure(kind="lost", message="its batch job ended without a report")
    reason = _with_output(f"batch job {_name(status)}: {why.message}", told)
    if status.infrastructure:
        return BundleLost(at, spec.bundle, reason, None, charged=False)
    if not begun:
        return refused(spec, f"{reason}; it did not come as far as running a job", at)
    if position is None:
        return BundleLost(at, spec.bundle, reason, None, charged=False)
    if status.state in ("timeout", "out_of_memory"):
        others = tuple(p for p in range(len(spec.jobs)) if p != position)
        failed = {position: replace(why, message=reason)}
        return BundleEnded(at=at, bundle=spec.bundle, failures=failed, unstarted=others)
    return BundleLost(at, spec.bundle, reason, position, charged=True)


def refused(spec: BundleSpec, reason: str, at: float) -> BundleEnded:
    """Fail all jobs of a bundle that cannot be run; it is not their fault."""
    return _all_failed(spec, Failure(kind="site", message=reason, charged=False), at)


def unfit(spec: BundleSpec, ranking: Ranking, at: float) -> BundleEnded:
    """Fail all jobs of a bundle that no site can run, for good."""
    why = Failure(kind="unfit", message=f"{spec.name} fits nowhere: {ranking.describe()}")
    return _all_failed(spec, why, at)


def _all_failed(spec: BundleSpec, why: Failure, at: float) -> BundleEnded:
    failures = dict.fromkeys(range(len(spec.jobs)), why)
    return BundleEnded(at=at, bundle=spec.bundle, failures=failures)


def _name(status: BatchStatus) -> str:
    return status.id if status.index is None else f"{status.id}[{status.index}]"


def _with_output(reason: str, told: str) -> str:
    return f"{reason}; its output ends: {told}" if told else reason


def last_words(data: bytes, most: int = 500) -> str:
    """Return the end of an output in one line."""
    text = data[-4 * most :].decode(errors="replace")
    line = re.sub(r"\s*\n\s*", " | ", text.strip())
    return line if len(line) <= most else f"... {line[-most:]}"
