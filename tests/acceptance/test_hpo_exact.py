"""After kill -9 the next points are those of a study that was never interrupted."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow import hpo
from pandaflow.hpo.driver import StudyDriver
from pandaflow.hpo.engine import Dispatch
from pandaflow.hpo.searching import Settings, study_plan
from pandaflow.store.sql import open_store

pytest.importorskip("optuna")
pytest.importorskip("nevergrad")

SPACE = hpo.Space(
    x=hpo.float(-1, 1), lr=hpo.log(1e-4, 1), n=hpo.int(1, 9), kind=hpo.choice(["a", "b"])
)
NUMBERS = hpo.Space(x=hpo.float(-1, 1), y=hpo.float(-2, 1))
CASES = {
    "tpe": (lambda: hpo.optuna("tpe", seed=5), SPACE),
    "nsgaii": (lambda: hpo.optuna("nsgaii", seed=5), SPACE),
    "CMA": (lambda: hpo.nevergrad("CMA", seed=5), NUMBERS),
    "DiagonalCMA": (lambda: hpo.nevergrad("DiagonalCMA", seed=5), SPACE),
}
SCRIPT = """
import sys, time
import pandaflow as pf
from pandaflow import hpo
from tests.acceptance.test_hpo_exact import CASES, slow

store, folder, case, hold = sys.argv[1:]
make, space = CASES[case]
study = hpo.Study("killed", space=space, optimizer=make(), store=store)
study.optimize(slow, n_trials=60, parallel=4, progress=False, folder=folder, hold=int(hold),
               executor=pf.executors.Local(workers=4, processes=False))
"""


def value(**point: Any) -> float:
    """A smooth function of any point."""
    return sum(v * v for v in point.values() if isinstance(v, float)) + (point.get("kind") == "b")


def slow(folder: str, trial: hpo.Trial, hold: int = 60, **point: Any) -> float:
    """Note that it runs, take a moment; trials from ``hold`` on wait until they are killed."""
    handle = os.open(Path(folder, "evaluated"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{trial.number}\n".encode())
    os.close(handle)
    time.sleep(0.03 if trial.number < hold else 60)
    return value(**point)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["tpe", pytest.param("CMA", marks=pytest.mark.very_slow)])
def test_kill_9_changes_no_point(case: str, tmp_path: Path) -> None:
    """However often the driver dies, each logged point is what the log before it gives."""
    store, rng = f"sqlite:///{tmp_path}/s.db", random.Random(case)
    command = [sys.executable, "-c", SCRIPT, store, str(tmp_path), case]
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    for kill, hold in ((True, 25), (True, 50), (False, 60)):  # none ends before it is killed
        process = subprocess.Popen([*command, str(hold)], env=env)
        if kill:
            _wait_for_trials(store, 5, process)
            time.sleep(rng.uniform(0.0, 0.4))
            process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=100) == (-9 if kill else 0)
    make, space = CASES[case]
    study = hpo.Study("killed", space=space, optimizer=make(), store=store)
    assert len(study) == 60 and {trial.state for trial in study} == {"complete"}
    assert [trial.by for trial in study] == ["optimizer"] * 60
    assert not study.notes
    found = study.verify(last=60)
    assert found and found.compared == 60, found


def _wait_for_trials(store: str, more: int, process: subprocess.Popen[bytes]) -> None:
    known, deadline = _told(store), time.monotonic() + 60
    while _told(store) < known + more and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _told(store: str) -> int:
    state = open_store(store).study("killed")
    return 0 if state is None else sum(state.summary.get("trials", {}).values())


@pytest.mark.parametrize("case", ["tpe", "nsgaii", "DiagonalCMA"])
def test_dropped_drivers_give_the_same_points(case: str, tmp_path: Path) -> None:
    """The same order of completion, with and without three drivers that just vanish."""
    whole = _points(case, tmp_path / "whole", stops=())
    broken = _points(case, tmp_path / "broken", stops=(13, 30, 31))
    assert broken == whole and len(whole) == 45


def _points(case: str, folder: Path, stops: tuple[int, ...]) -> list[Any]:
    """Drive a study without an executor, completing trials in an order that is always the same."""
    folder.mkdir()
    make, space = CASES[case]
    store = open_store(f"sqlite:///{folder}/s.db")
    settings = Settings(optimizer=make(), n_trials=45, parallel=6, ahead=0)
    plan = study_plan("exact", space, settings)
    order, ended = random.Random(3), 0
    for stop in (*stops, None):
        driver = StudyDriver(store, plan, str(folder))
        commands = driver.begin()
        waiting: set[int] = set()
        while True:
            waiting |= {c.number for c in commands if isinstance(c, Dispatch)}
            if ended == stop or ended == 45:
                break
            commands = driver.pump(timeout=0.02)
            if driver.engine.requests or (commands and not waiting):
                continue
            waiting |= {c.number for c in commands if isinstance(c, Dispatch)}
            number = order.choice(sorted(waiting))
            waiting.remove(number)
            told = value(**space.arguments(driver.book.trials[number].point))
            commands = driver.work(
                driver.engine.outcome(number, {"s": "complete", "v": [told], "t": [0.0, 1.0]})
            )
            ended += 1
        _vanish(driver)
    return [trial.point for trial in driver.book.trials]


def _vanish(driver: StudyDriver) -> None:
    """Leave as a killed process does, but for the optimizer's process and the lease."""
    while driver.engine.requests and driver.book.told < 45:
        driver.pump(timeout=0.02)
    assert driver._asker is not None
    driver._asker.close()
    driver._writer.release()


def test_what_the_last_run_finished_is_not_evaluated_again(tmp_path: Path) -> None:
    """A driver that dies between a trial's end and its tell: the next session collects it."""
    store = open_store(f"sqlite:///{tmp_path}/s.db")
    executor = pf.executors.Local(workers=2, processes=False)
    study = hpo.Study("early", space=NUMBERS, optimizer=hpo.random(seed=1), store=store)
    given = {"executor": executor, "parallel": 2, "progress": False, "folder": str(tmp_path)}
    study.optimize(slow, n_trials=6, **given)
    _forget_the_last_tells(store, 2)
    again = hpo.Study("early", space=NUMBERS, optimizer=hpo.random(seed=1), store=store)
    assert again.book.counts["running"] == 2
    again.optimize(slow, n_trials=6, **given)
    executor.close()
    assert [trial.state for trial in again] == ["complete"] * 6
    assert len(Path(tmp_path, "evaluated").read_text().split()) == 6


def _forget_the_last_tells(store: Any, n: int) -> None:
    """Put a study's log back to before its last tells, as if the driver had died there."""
    import sqlite3

    with sqlite3.connect(store.path) as connection:
        rows = connection.execute(
            "select seq, kind from study_log where study = 1 order by seq"
        ).fetchall()
        cut = [seq for seq, kind in rows if kind == "tell"][-n]
        gone = connection.execute("delete from study_log where seq >= ?", (cut,)).rowcount
        assert gone >= n
        connection.execute("update studies set records = ?, status = 'stopped'", (cut - 1,))


NODE = """
import os, sys
import pandaflow as pf
from pandaflow import hpo
from pandaflow.hpo.engine import Announce
from pandaflow.hpo.steering import Steering

carry_out = Steering._carry_out

def dies(self, commands):
    if any(isinstance(c, Announce) and c.number == 5 for c in commands):
        os._exit(9)  # told, and not yet handed on
    return carry_out(self, commands)

Steering._carry_out = dies
from tests.acceptance.test_hpo_exact import tuned
tuned().run(executor=pf.executors.Local(workers=2, processes=False), store=sys.argv[1])
"""


@pf.task
def square(x: float) -> float:
    return x * x


@pf.task
def seen(trial: Any) -> int:
    return int(trial["number"])


@pf.task
def chosen(best: Any) -> Any:
    return best["params"]


@pf.workflow
def tuned() -> Any:
    space = {"x": hpo.float(-1, 1)}
    found = hpo.search(square, space, n_trials=12, parallel=2, optimizer=hpo.random(seed=1))
    return seen(found.trials), chosen(found.best)


def test_every_trial_is_handed_on_although_the_driver_died_before(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/s.db"
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", NODE, store], env=env, timeout=60, check=False)
    assert done.returncode == 9
    executor = pf.executors.Local(workers=2, processes=False)
    run = pf.resume("last", store=store, executor=executor)
    assert run.wait(60) == "done"
    executor.close()
    numbers, best = run.result()
    assert sorted(numbers) == list(range(12)) and set(best) == {"x"}
