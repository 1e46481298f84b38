"""A study as a script that tests kill: ``hpo_script.py STORE FOLDER N SECONDS WORKERS``.

Each evaluation leaves a line with its trial's number in ``FOLDER/evaluated``.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pandaflow as pf
from pandaflow import hpo
from tests.acceptance.optimizers import Historian

SPACE = hpo.Space(x=hpo.float(-1, 1), kind=hpo.choice(["a", "b"]))


def objective(x: float, kind: str, folder: str, seconds: float, trial: hpo.Trial) -> float:
    """Note that it runs, take some time."""
    path = Path(folder, "evaluated")
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{trial.number} {os.getpid()}\n".encode())
    os.close(handle)
    time.sleep(seconds * (1 + trial.number % 3))
    return x * x + (kind == "b")


def study(store: str, folder: str) -> hpo.Study:
    """Return the study, to run it or to look at it."""
    optimizer = Historian(folder, snapshots=True)
    return hpo.Study("killed", space=SPACE, optimizer=optimizer, store=store)


def main(store: str, folder: str, n: str, seconds: str, workers: str) -> None:
    """Run the study until it is done."""
    count = int(workers)
    executor = pf.executors.Local(workers=max(2, count), processes=count > 0)
    made = study(store, folder)
    made.optimize(
        objective,
        n_trials=int(n),
        parallel=4,
        executor=executor,
        progress=False,
        folder=folder,
        seconds=float(seconds),
    )
    executor.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
