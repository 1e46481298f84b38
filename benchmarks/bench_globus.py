"""Globus Compute on one machine, against the SDK's own ``Executor.submit`` of the same jobs.

``python -m benchmarks.bench_globus [rounds]``; needs the extra ``globus`` and a RabbitMQ. SDK,
endpoint and broker are the real ones; the hosted service is the stand-in of
``pandaflow.testing.globus``, so its distance and its queues are not in the numbers.

The stand-in's limit of 20 requests in 10 s is lifted: the SDK makes 8 to 10 requests for 1,000
jobs and PandaFlow 2, so with rounds back to back both would wait up to 10 s for what the SDK's
rounds have used up. PandaFlow keeps to that rate by itself.
"""

from __future__ import annotations

import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandaflow as pf
from benchmarks.table import Row
from pandaflow.testing import payloads
from pandaflow.testing.globus.broker import RabbitMissing, RabbitMQ

JOBS, MANY = 1_000, 20_000
#: Rounds on each engine; the second costs more to start than to measure.
ROUNDS = {"threads": 5, "htex": 3}
#: What people call an engine, and the options of the stand-in's endpoint for it.
ENGINES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "threads": ("ThreadPool", {}),
    "htex": ("HTEX", {"engine": "htex"}),
}
# The SDK sends functions of modules by name: one of a package that the endpoint has.
noop = pf.task(payloads.double, name="noop")


class Missing(RuntimeError):
    """What this benchmark needs is not here."""


@pf.workflow
def flat(n: int) -> Any:
    """One stage."""
    return noop(pf.items(range(n)))


@dataclass(frozen=True)
class Ground:
    """An endpoint that runs, and a store whose runs share registered functions."""

    endpoint: str
    store: str

    def ours(self, config: Mapping[str, Any]) -> Callable[[int], float]:
        """Return what runs so many jobs through PandaFlow, and takes the seconds of it."""
        executor = pf.executors.GlobusCompute(self.endpoint, user_endpoint_config=config)

        def run(jobs: int) -> float:
            began = time.monotonic()
            done = flat(jobs).run(executor=executor, store=self.store, progress=False)
            assert done.status == "done", done.status
            return time.monotonic() - began

        return run

    def theirs(self, config: Mapping[str, Any]) -> Callable[[int], float]:
        """Return what runs so many jobs through an executor of the SDK, as it is by default."""
        from globus_compute_sdk import Executor

        def run(jobs: int) -> float:
            # A group of its own: by default the SDK goes on with the last one of this process,
            # which was PandaFlow's. A new executor a round: one that has sent few tasks at once
            # several times slows itself down for 16 s.
            options = dict(config) or None
            group = uuid.uuid4()
            with Executor(self.endpoint, task_group_id=group, user_endpoint_config=options) as sdk:
                submit: Callable[..., Any] = sdk.submit
                began = time.monotonic()
                futures = [submit(payloads.double, x) for x in range(jobs)]
                assert sum(future.result() for future in futures) == jobs * (jobs - 1)
                return time.monotonic() - began

        return run


@contextmanager
def ground() -> Iterator[Ground]:
    """Start a broker, the stand-in and an endpoint.

    Raises
    ------
    Missing
        SDK, RabbitMQ or endpoint are not here.
    """
    try:
        from pandaflow.testing.globus.environment import GlobusMissing
        from pandaflow.testing.globus.limits import Limits
        from pandaflow.testing.globus.local import Globus
    except ImportError as error:
        raise Missing(f"no Globus Compute SDK ({error.name}): extra 'globus'") from error
    with ExitStack() as stack:
        try:
            globus = stack.enter_context(Globus(stack.enter_context(RabbitMQ())))
            endpoint = globus.endpoint()
        except (RabbitMissing, GlobusMissing) as error:
            raise Missing(str(error)) from error
        globus.service.limits = Limits(requests=1_000_000)
        stack.enter_context(globus.here())
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        yield Ground(endpoint.id, f"sqlite:///{Path(folder)}/bench.db")


def compare(there: Ground, engine: str, rounds: int) -> tuple[list[float], list[float]]:
    """Return the seconds of both, round by round; each has had one round before."""
    config = ENGINES[engine][1]
    ours, theirs = there.ours(config), there.theirs(config)
    pairs = [(ours(JOBS), theirs(JOBS)) for _ in range(rounds + 1)][1:]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def row(engine: str, ours: Sequence[float], theirs: Sequence[float]) -> Row:
    """Return the line of an engine."""
    mine, plain = median(ours), median(theirs)
    return Row(
        f"Globus Compute, {JOBS:,} no-op jobs, {ENGINES[engine][0]}, median of {len(ours)}",
        f"{mine:.2f} s",
        f"SDK's Executor.submit: {plain:.2f} s",
        f"{mine / plain:.2f}",
        "<= 0.9",
        mine <= 0.9 * plain,
    )


def rows() -> Iterator[Row]:
    """The same jobs through both, on two engines; and many of them."""
    try:
        with ground() as there:
            for engine in ENGINES:
                yield row(engine, *compare(there, engine, ROUNDS[engine]))
            spent = there.ours({})(MANY)
            yield Row(
                f"Globus Compute, {MANY:,} no-op jobs, ThreadPool",
                f"done, {MANY / spent:,.0f} jobs/s",
                "",
                "",
                "complete",
                True,
            )
    except Missing as missing:
        print(f"no benchmark of Globus Compute: {missing}", file=sys.stderr)


def main(rounds: int = 5) -> None:
    """Print the seconds of both, round by round."""
    with ground() as there:
        for engine in ENGINES:
            pairs = compare(there, engine, rounds)
            for mine, plain in zip(*pairs, strict=True):
                print(f"{engine}: PandaFlow {mine:.2f} s, SDK {plain:.2f} s", flush=True)
            print(f"{engine}: ratio of medians {row(engine, *pairs).ratio}", flush=True)
        print(f"{MANY:,} jobs: {there.ours({})(MANY):.2f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
