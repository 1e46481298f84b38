"""Runs one job alone, in the caller's thread, outside any run: for debugging."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pandaflow.core.bundle import BundleSpec, BundleValues
from pandaflow.core.errors import WorkflowError
from pandaflow.data.results import ResultStore
from pandaflow.executors import payload as payloads


def run_alone(spec: BundleSpec, *, payload: str, needs: Sequence[str], debug: bool = False) -> Any:
    """Run the one job of ``spec`` and return its value; nothing of the run is touched.

    Parameters
    ----------
    spec : BundleSpec
        Its ``results`` is the run's folder, from which payload and upstream values are read.
    payload : str
        Name of the pickled payload there.
    needs : sequence of str
        Places of upstream values.
    debug : bool
        Stop in the debugger where the payload raises.

    Raises
    ------
    RuntimeError
        The job failed; the message is its traceback.
    """
    results = _results(spec.results)
    code = results.get(payload)
    if spec.kind == "graph":
        frames = pickle.loads(code)
        code = pickle.dumps({job: frames[job] for job in spec.jobs})
    deps = [results.load(place) for place in needs]
    if debug:
        return _debug(spec, code, deps)
    reports: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="pandaflow-alone-") as folder:
        alone = replace(spec, results=folder, cache="", join=None, seconds=0.0)
        values = payloads.run_bundle(
            alone, code, deps, report=reports.append, worker="alone", isolation="caller"
        )
    ended = payloads.unpack_ended(reports[-1])
    if ended.failures:
        failure = next(iter(ended.failures.values()))
        raise RuntimeError(failure.traceback or failure.message)
    return values.values[0]


def _results(url: str) -> ResultStore:
    if not url.startswith(("https://", "http://")):
        return ResultStore(url)
    from pandaflow.grid.runs.results import open_results

    return open_results(url)


def _debug(spec: BundleSpec, code: bytes, deps: Sequence[BundleValues]) -> Any:
    """Call the payload here, and stop in the debugger where it raises."""
    import pdb

    from pandaflow.core.graph import call_job

    if spec.kind == "command":
        raise WorkflowError("a command has no Python frame to stop in; run it without --pdb")
    payload = pickle.loads(code)
    try:
        return call_job(spec, payload, deps)
    except BaseException as error:  # whatever the payload raises is what is looked at
        pdb.post_mortem(error.__traceback__)
        raise
