"""``pandaflow hpo run`` in a terminal, and stopped by signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from pandaflow import hpo

TUNE = """
import time
import pandaflow as pf
from pandaflow import hpo

@pf.task
def slow(x, pause=0.02):
    time.sleep(pause)
    return x * x

@pf.task
def simulate(x, condition):
    return x * condition

@pf.task(n_jobs=1)
def merge(xs):
    return sum(xs)

@pf.workflow
def detector(x):
    return merge(simulate(x, pf.items([1, 2, 3])))

X = hpo.Space(x=hpo.float(-1, 1))
study = hpo.Study("slow", objective=slow, space=X, optimizer=hpo.random(seed=1))
design = hpo.Study("design", objective=detector, space=X, optimizer=hpo.random(seed=1))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PANDAFLOW_STORE", raising=False)
    (tmp_path / "tune.py").write_text(TUNE)
    yield tmp_path


def command(name: str, *args: object) -> list[str]:
    words = ["-m", "pandaflow.cli", "hpo", "run", f"tune.py:{name}", "--executor", "threads"]
    return [sys.executable, *words, "--workers", "2", *map(str, args)]


def in_terminal(name: str, *args: object) -> str:
    program, *words = command(name, *args)
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("COLUMNS", None)  # others may have set it, and it counts more than the terminal
    child = pexpect.spawn(
        program,
        words,
        dimensions=(24, 110),
        timeout=60,
        encoding="utf-8",
        env=environment,
        use_poll=True,
    )
    try:
        return str(child.read())
    finally:
        child.close(force=True)


def test_a_terminal_shows_the_study_beside_the_run() -> None:
    shown = in_terminal("study", "--n-trials", 60)
    assert "slow/trial" in shown
    assert "60/60 trials" in shown
    assert "\N{BLACK DIAMOND} slow" in shown
    assert f"(trial {hpo.load('slow').best_trial.number})" in shown
    assert "x=" in shown


def test_the_tasks_of_sub_workflows_are_a_row_each() -> None:
    shown = in_terminal("design", "--n-trials", 12)
    assert "detector/*/simulate" in shown and "detector/*/merge" in shown
    assert "/3.0/" not in shown


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_study_goes_on(number: signal.Signals, code: int) -> None:
    first = subprocess.Popen(
        command("study", "--n-trials", 40, "-P", "pause=0.5"),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not _ended("slow"):
            assert time.monotonic() < deadline and first.poll() is None
            time.sleep(0.05)
        first.send_signal(number)
        _, said = first.communicate(timeout=60)
    finally:
        first.kill()
        first.wait()
    assert first.returncode == code, said
    assert "study 'slow' is stopped; the same command goes on with it" in said
    before = {t.number: (dict(t.point), t.values) for t in hpo.load("slow").trials if t.values}
    assert 0 < len(before) < 40
    done = subprocess.run(
        command("study", "--n-trials", 40, "-P", "pause=0.001"), timeout=60, check=True
    )
    assert done.returncode == 0
    trials = hpo.load("slow").trials
    assert [t.state for t in trials] == ["complete"] * 40
    assert {n: (dict(trials[n].point), trials[n].values) for n in before} == before


def _ended(name: str) -> int:
    known = {study.name: study for study in hpo.studies()} if Path(".pandaflow").exists() else {}
    return known[name].book.counts["complete"] if name in known else 0
