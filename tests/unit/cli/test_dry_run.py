"""``pandaflow run --dry-run``: what people and scripts read, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pandaflow.cli.app import app

FLOW = """\
import pandaflow as pf


@pf.task
def square(x):
    return x * x


@pf.task(cores=4, executor="hpc")
def total(square):
    return square


@pf.workflow
def squares(n: int = 3):
    return total(square(pf.items(range(n))))
"""
SITE = 'import pandaflow as pf\nhpc = pf.executors.Slurm("regular", cores=64, mode="batch")\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PANDAFLOW_STORE", raising=False)
    (tmp_path / "flow.py").write_text(FLOW)
    (tmp_path / "nersc.py").write_text(SITE)
    return tmp_path


def dry(*args: str) -> Result:
    return CliRunner().invoke(app, ["run", "flow.py:squares", "--dry-run", *args])


def test_scripts_follow_the_plan(folder: Path) -> None:
    result = dry("--executor", "sge:all.q?cores=2", "--executor", "hpc=nersc.py:hpc")
    assert result.exit_code == 0, result.output
    plan, where, pilot, array = (
        result.stdout.index(text)
        for text in ("plan of squares", "where jobs may run", "#$ -q all.q", "--partition=regular")
    )
    assert plan < where < pilot < array
    assert {path.name for path in folder.iterdir()} <= {"flow.py", "nersc.py", "__pycache__"}


def test_a_task_that_fits_nowhere_exits_2() -> None:
    result = dry("--executor", "slurm:main", "--executor", "hpc=slurm:main?cores=2")
    assert result.exit_code == 2
    assert "FITS NOWHERE: not at main: asks for 4 cores and it has 2 cores" in result.stdout
    assert result.stderr.startswith("pandaflow: task 'total' fits nowhere")
    assert "#SBATCH" in result.stdout  # of the task that does fit


def test_rows_for_scripts() -> None:
    result = dry("--executor", "hpc=nersc.py:hpc", "--json")
    assert result.exit_code == 0, result.output
    square, total = json.loads(result.stdout)
    assert (square["task"], square["script"], square["command"]) == ("square", None, None)
    assert (total["task"], total["sites"], total["refused"]) == ("total", ["regular"], {})
    assert "#SBATCH --cpus-per-task=4" in total["script"]
    assert total["command"].startswith("sbatch ")


def test_rows_are_whole_when_a_task_fits_nowhere() -> None:
    result = dry("--executor", "hpc=lsf:normal?cores=2", "--json")
    rows = json.loads(result.stdout)
    assert result.exit_code == 2
    assert rows[1]["sites"] == [] and "4 cores" in rows[1]["refused"]["normal"]


def test_no_scripts_of_this_machine() -> None:
    result = dry("--executor", "local", "--executor", "hpc=threads")
    assert result.exit_code == 0
    assert result.stdout.endswith("no batch scripts: local\n")


def test_an_executor_that_a_task_names_is_missing() -> None:
    result = dry("--executor", "slurm:main")
    assert result.exit_code == 2
    assert "--executor hpc=" in result.stderr and "Traceback" not in result.output


def test_help_has_examples_of_places() -> None:
    text = CliRunner().invoke(app, ["run", "--help"]).stdout
    assert "slurm:main?walltime=2h&cores=16" in " ".join(text.split())
    assert "--executor hpc=site.py:perlmutter" in text
