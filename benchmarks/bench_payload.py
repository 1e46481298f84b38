"""CPU a job inside a worker: bundles of no-op jobs against a plain loop that calls the function.

Everything counts: filling arguments, measuring, writing the values file, packing the report.
The bundles run in this process; ``--profile`` shows where the time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable

import cloudpickle

from pandaflow.core.bundle import BundleSpec, SourceSlice
from pandaflow.core.chunking import Fixed
from pandaflow.core.model import Input, Source
from pandaflow.executors.payload import Payload, Slot, run_bundle


def noop(x: int) -> int:
    """Do nothing."""
    return x


def spec_of(bundle: int, size: int, results: str) -> BundleSpec:
    """Describe a bundle of one-item jobs."""
    lo = bundle * size
    return BundleSpec(
        run="bench",
        bundle=bundle,
        task=0,
        name="noop",
        token="noop",
        kind="function",
        jobs=range(lo, lo + size),
        attempt=1,
        lists=False,
        inputs=(Input(Source(0)),),
        chunks=Fixed(10**9),
        sources={0: SourceSlice(lo, range(lo, lo + size))},
        results=results,
    )


def cpu_per_job(work: Callable[[], None], jobs: int) -> tuple[float, float]:
    """Return microseconds of CPU and of wall time a job."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    used = time.process_time() - cpu
    return used / jobs * 1e6, (time.perf_counter() - wall) / jobs * 1e6


def main() -> None:
    """Run and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--bundles", type=int, default=100)
    options.add_argument("--size", type=int, default=1000)
    options.add_argument("--isolation", default="process", choices=["process", "caller"])
    options.add_argument("--profile", action="store_true")
    args = options.parse_args()
    payload = cloudpickle.dumps(Payload(noop, (Slot(0),)))
    jobs = args.bundles * args.size
    with tempfile.TemporaryDirectory() as folder:

        def bundles() -> None:
            for bundle in range(args.bundles):
                spec = spec_of(bundle, args.size, folder)
                run_bundle(spec, payload, [], report=len, worker="bench", isolation=args.isolation)

        def loop() -> None:
            for bundle in range(args.bundles):
                [noop(x) for x in range(bundle * args.size, (bundle + 1) * args.size)]

        profile = cProfile.Profile() if args.profile else None
        yardstick = cpu_per_job(loop, jobs)
        ours = (
            profile.runcall(cpu_per_job, bundles, jobs) if profile else cpu_per_job(bundles, jobs)
        )
    print(f"{args.bundles} bundles of {args.size} no-op jobs, isolation={args.isolation}")
    print(f"plain loop   {yardstick[0]:8.3f} us CPU a job   {yardstick[1]:8.3f} us wall")
    print(f"run_bundle   {ours[0]:8.3f} us CPU a job   {ours[1]:8.3f} us wall")
    print(f"ratio        {ours[0] / max(yardstick[0], 1e-9):8.1f}")
    if profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(18)


if __name__ == "__main__":
    main()
