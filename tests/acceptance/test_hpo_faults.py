"""Studies whose driver, workers, optimizer or store fail: nothing is lost, nothing asked twice."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

import pandaflow as pf
from pandaflow import hpo
from pandaflow.hpo.asking import Broken, OwnProcess
from pandaflow.hpo.engine import Ask, Report
from pandaflow.hpo.port import Brief
from pandaflow.store.sql import SqlStore
from tests.acceptance.optimizers import Historian
from tests.acceptance.test_hpo import SPACE, Script, made, points, ran, square, states

N = 20


def log_of(store: str, name: str) -> list[Any]:
    with closing(SqlStore(store)) as opened:
        return list(opened.study_log(name))


def each_once(store: str, name: str, n: int) -> None:
    """All trials were asked for once and told once, with their points in the log."""
    records = log_of(store, name)
    assert [r.trial for r in records if r.kind == "ask"] == list(range(n))
    assert sorted(r.trial for r in records if r.kind == "tell") == list(range(n))


# --- the driver -------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "seed"), [(0, 1), (2, 2)])
def test_kill_9_of_the_driver_at_random_moments(
    store: str, tmp_path: Path, workers: int, seed: int
) -> None:
    rng, rounds = Random(seed), 0
    while True:
        with Script(store, tmp_path, n=N, seconds=0.01, workers=workers) as script:
            if rounds < 3:
                script.wait_for(len(script.evaluated()) + rng.randint(1, 4))
                time.sleep(rng.random() * 0.05)
                script.process.kill()
            code = script.process.wait(timeout=60)
            study = script.study()
        rounds += 1
        if code == 0:
            break
        assert code == -signal.SIGKILL, script.process.communicate()[1]
    assert rounds == 4 and study.status == "done"
    each_once(store, "killed", N)
    assert states(study) == ["complete"] * N and not [t for t in study.trials if t.by == "random"]
    evaluated = Counter(script.evaluated())
    assert set(evaluated) == set(range(N))
    assert sum(evaluated.values()) <= N + rounds * 6  # what was under way, and no more
    assert study.verify(), study.verify()
    assert len(study.book.sessions) == rounds


def test_an_optimizer_ends_with_its_driver(store: str, tmp_path: Path) -> None:
    with Script(store, tmp_path, n=N, seconds=0.05) as script:
        script.wait_for(2)
        (pid,) = _optimizers(tmp_path)
        script.process.kill()
        script.process.wait()
    deadline = time.monotonic() + 60
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(pid)


def _optimizers(folder: Path) -> list[int]:
    return [int(path.name.partition("-")[2]) for path in folder.glob("optimizer-*")]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- workers ----------------------------------------------------------------------------


def dies_once(x: float, folder: str, trial: hpo.Trial) -> float:
    mark = Path(folder, f"died-{trial.number}")
    if trial.number % 4 == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x


def test_trials_lost_with_their_worker_are_evaluated_again_and_not_told(
    processes: Any, store: str, tmp_path: Path
) -> None:
    study = ran(made(store), dies_once, processes, n_trials=8, parallel=2, folder=str(tmp_path))
    assert len(list(tmp_path.glob("died-*"))) == 2
    assert states(study) == ["complete"] * 8
    each_once(store, "s", 8)
    whole = ran(made(store, "whole"), square, processes, n_trials=8, parallel=2)
    assert points(study) == points(whole)


# --- the optimizer ----------------------------------------------------------------------


def odd(store: str, folder: Path, mode: str, name: str = "s", **given: Any) -> hpo.Study:
    return made(store, name, optimizer=Historian(str(folder), mode, **given), space=SPACE)


@pytest.mark.parametrize("mode", ["raise-once", "segfault-once", "exit-once", "hang-once"])
def test_an_optimizer_that_fails_once_goes_on_as_if_it_had_not(
    threads: Any, store: str, tmp_path: Path, mode: str
) -> None:
    patience = 3.0 if "hang" in mode else 60.0
    study = odd(store, tmp_path, mode)
    ran(study, square, threads, n_trials=10, parallel=1, patience=patience)
    assert {trial.by for trial in study.trials} == {"optimizer"}
    assert len(study.notes) == 1 and "started again" in study.notes[0]
    whole = ran(odd(store, tmp_path, "steady", "whole"), square, threads, n_trials=10, parallel=1)
    assert points(study) == points(whole)
    each_once(store, "s", 10)


@pytest.mark.parametrize("mode", ["raise", "segfault", "hang"])
def test_an_optimizer_that_always_fails_leaves_random_points_and_a_note(
    threads: Any, store: str, tmp_path: Path, mode: str
) -> None:
    study = odd(store, tmp_path, mode)
    ran(study, square, threads, n_trials=10, parallel=1, patience=3.0 if mode == "hang" else 60.0)
    assert [t.by for t in study.trials] == ["optimizer"] * 3 + ["random"] * 7
    # Started again twice in a row; one that answers a repeated question first begins a new row.
    *again, last = study.notes
    assert len((tmp_path / "misbehaved").read_text()) == len(study.notes) >= 3
    assert all("started again" in note for note in again)
    assert "random" in last and "started again" not in last
    assert states(study) == ["complete"] * 10
    each_once(store, "s", 10)
    assert not [pid for pid in _optimizers(tmp_path) if _alive(pid)]


def test_a_mended_optimizer_takes_the_random_points_in(
    threads: Any, store: str, tmp_path: Path
) -> None:
    ran(odd(store, tmp_path, "raise"), square, threads, n_trials=6)
    study = ran(odd(store, tmp_path, "steady"), square, threads, n_trials=9)
    assert [t.by for t in study.trials[6:]] == ["optimizer"] * 3
    assert states(study) == ["complete"] * 9


def slowly(x: float) -> float:
    time.sleep(0.02)
    return x * x


def held(x: float, folder: str, trial: hpo.Trial) -> float:
    """Work; trials from 20 on wait for the first kill of the optimizer, from 40 on the second."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if all(Path(folder, f"kill-{kill}").exists() for kill in range(trial.number // 20)):
            break
        time.sleep(0.01)
    return slowly(x)


def test_kill_9_of_the_optimizer_while_it_works(threads: Any, store: str, tmp_path: Path) -> None:
    killed: list[int] = []

    def killer() -> None:
        deadline = time.monotonic() + 60
        while len(killed) < 2 and time.monotonic() < deadline:
            fresh = [pid for pid in _optimizers(tmp_path) if pid not in killed]
            if fresh:
                time.sleep(0.15)
                os.kill(fresh[0], signal.SIGKILL)
                (tmp_path / f"kill-{len(killed)}").touch()
                killed.append(fresh[0])
            time.sleep(0.01)

    thread = threading.Thread(target=killer)
    thread.start()
    study = ran(odd(store, tmp_path, "steady"), held, threads, n_trials=60, folder=str(tmp_path))
    thread.join()
    assert len(killed) == 2 and sum("signal 9" in note for note in study.notes) >= 1
    assert {trial.by for trial in study.trials} == {"optimizer"}
    each_once(store, "s", 60)
    assert study.verify(), study.verify()


def test_an_optimizer_that_hangs_under_many_reports_does_not_hold_its_study(
    tmp_path: Path,
) -> None:
    """More than a pipe holds is sent to a process that reads nothing: sending returns."""
    said: list[Any] = []
    spec = Historian(str(tmp_path), "hang", at=0)
    asker = OwnProcess(spec, SPACE, Brief(("minimize",), 1), [], None, said.extend, patience=0.2)
    try:
        asker.send([Ask(0)])
        for _ in range(40):
            asker.send([Report(0, step, 0.5) for step in range(1000)])
        deadline = time.monotonic() + 60
        while not asker.overdue(time.monotonic()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "has not answered" in asker.overdue(time.monotonic())
    finally:
        asker.close()
    assert not _alive(asker.pid)


def test_one_failure_is_told_once(tmp_path: Path) -> None:
    """What the process says at its end, and that it ended, are the same failure."""
    said: list[Any] = []
    spec = Historian(str(tmp_path), "raise", at=0)
    asker = OwnProcess(spec, SPACE, Brief(("minimize",), 1), [], None, said.extend, patience=60)
    try:
        asker.send([Ask(0)])
        deadline = time.monotonic() + 60
        while (_alive(asker.pid) or not said) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)  # for a second one, which must not come
    finally:
        asker.close()
    assert [one.why for one in said if isinstance(one, Broken)] == [
        "ArithmeticError: singular matrix"
    ]


# --- snapshots --------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["none", "missing", "corrupt", "empty"])
def test_snapshots_of_the_optimizer(threads: Any, store: str, tmp_path: Path, damage: str) -> None:
    whole = odd(store, tmp_path, "steady", "whole")
    ran(whole, square, threads, n_trials=14, parallel=1)
    assert not list(tmp_path.rglob("whole*.optimizer"))
    ran(odd(store, tmp_path, "steady", snapshots=True), square, threads, n_trials=8, parallel=1)
    last = [r.body["file"] for r in log_of(store, "s") if r.kind == "snapshot"][-1]
    assert [str(path) for path in tmp_path.rglob("s-*.optimizer")] == [last]
    match damage:
        case "missing":
            Path(last).unlink()
        case "corrupt":
            Path(last).write_bytes(b"\x00garbage")
        case "empty":
            Path(last).write_bytes(b"")
    study = odd(store, tmp_path, "steady", snapshots=True)
    ran(study, square, threads, n_trials=14, parallel=1)
    assert (tmp_path / "from-snapshot").exists() == (damage == "none")
    assert points(study) == points(whole)
    assert {trial.by for trial in study.trials} == {"optimizer"}
    assert len(study.notes) == (1 if damage in ("corrupt", "empty") else 0)


# --- the store --------------------------------------------------------------------------


def test_a_store_that_is_locked_for_a_while(threads: Any, store: str) -> None:
    path = store.removeprefix("sqlite:///")
    study = ran(made(store), square, threads, n_trials=2)
    gone = threading.Event()

    def lock() -> None:
        with closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as other:
            for _ in range(3):
                other.execute("BEGIN IMMEDIATE")
                time.sleep(0.7)
                other.execute("COMMIT")
                time.sleep(0.05)
        gone.set()

    thread = threading.Thread(target=lock)
    thread.start()
    ran(study, slowly, threads, n_trials=40, parallel=4)
    thread.join()
    assert gone.is_set() and states(study) == ["complete"] * 40
    each_once(store, "s", 40)


def test_results_that_cannot_be_read_are_failed_trials(
    threads: Any, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each third reading of a result fails, as that of a damaged file does."""
    from pandaflow.data.results import ResultStore

    load, seen = ResultStore.load, []

    def damaged(self: ResultStore, place: Any, *rest: Any, **more: Any) -> Any:
        seen.append(place)
        if len(seen) % 3 == 0:
            raise pf.DataError("its checksum is wrong")
        return load(self, place, *rest, **more)

    monkeypatch.setattr(ResultStore, "load", damaged)
    study = ran(made(store), square, threads, n_trials=9, parallel=1)
    assert Counter(states(study)) == {"complete": 6, "failed": 3}
    assert all("checksum" in t.why for t in study.trials if t.state == "failed")
    by_point = ran(
        made(store, "own tasks"),
        square,
        threads,
        n_trials=6,
        parallel=1,
        resources=lambda params: {"cores": 1},
    )
    assert by_point.status == "done"
    assert set(states(by_point)) == {"complete", "failed"} and len(by_point) == 6
