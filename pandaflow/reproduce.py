"""A small script that runs one job of a run alone, with the inputs it had."""

from __future__ import annotations

import base64
import pickle
import textwrap
from typing import TYPE_CHECKING

from pandaflow.core.commands import EmitBundle
from pandaflow.core.slices import bundle_spec
from pandaflow.data.items import StoredItems
from pandaflow.executors.alone import run_alone

if TYPE_CHECKING:
    from pandaflow.core.engine import Engine
    from pandaflow.data.results import ResultStore

_SCRIPT = '''\
"""Run job {task}[{index}] of run {run} alone: the same code, arguments and inputs.

Upstream values are read from {results}
Give --pdb to stop in the debugger where it fails.
"""

import base64
import pickle
import sys

from pandaflow.executors.alone import run_alone

SPEC = pickle.loads(base64.b64decode(
    """
{spec}
    """))

if __name__ == "__main__":
    value = run_alone(SPEC, payload={payload!r}, needs={needs!r}, debug="--pdb" in sys.argv)
    print(repr(value))
'''


def script(engine: Engine, results: ResultStore, run: str, task: str, index: int) -> str:
    """Return the text of the script."""
    from pandaflow.wishes import task_id

    assert run_alone is not None
    number = task_id(engine, task)
    spec = engine.tasks[number].spec
    jobs = range(index, index + 1)
    emit = EmitBundle(
        bundle=0,
        task=number,
        jobs=jobs,
        attempt=1,
        executor="",
        resources=spec.resources,
        needs=engine._bundles_for(engine.tasks[number], jobs),
    )
    items = StoredItems({source.id: source for source in engine.spec.sources}, results)
    made = bundle_spec(engine, emit, items, run=run, results=results.url)
    text = base64.b64encode(pickle.dumps(made)).decode()
    return _SCRIPT.format(
        task=task,
        index=index,
        run=run,
        results=results.url,
        spec="\n".join(textwrap.wrap(text, 96)),
        payload=spec.payload,
        needs=[results.place(need) for need in emit.needs],
    )
