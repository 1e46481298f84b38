"""What would be submitted, without a batch system."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.core.errors import WorkflowError


@pf.task
def small(x: int) -> int:
    return x


@pf.task(cores=4, memory="2 GB", walltime="10 min")
def large(x: int) -> int:
    return x


@pf.task
def told(x: int) -> list[int]:
    return [x]


@pf.task
def total(x: list[int]) -> int:
    return sum(x)


@pf.workflow
def both(n: int = 3) -> Any:
    return large(small(pf.items(range(n))))


@pf.workflow
def growing() -> Any:
    return small(pf.scatter(told(pf.items([1]))))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in an empty folder, without any batch system's commands, and leave it empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("PANDAFLOW_STORE", raising=False)
    monkeypatch.delenv("PANDAFLOW_RESULTS", raising=False)
    return tmp_path


def by_task(run: Any) -> dict[str, dict[str, Any]]:
    return {row["task"]: row for row in run.rows}


def directives(script: str, prefix: str = "#SBATCH --") -> dict[str, str]:
    lines = [line.removeprefix(prefix) for line in script.splitlines() if line.startswith(prefix)]
    return dict(line.partition("=")[::2] for line in lines)


def test_batch_mode_shows_an_array_for_each_task(folder: Path) -> None:
    executor = pf.executors.Slurm("main", mode="batch", cores=8, walltime="2h", account="a b")
    found = both().dry_run(executor=executor)
    assert [draft.tasks for draft in found.drafts] == [("small",), ("large",)]
    first, second = (directives(draft.script) for draft in found.drafts)
    assert first["array"] == "0-2" and second["array"] == "0-1"  # 2 x 4 cores fit a node
    assert (first["cpus-per-task"], second["cpus-per-task"]) == ("1", "4")
    assert first["partition"] == "main" and first["time"] == "02:00:00"
    assert second["time"] == "00:11:00" and int(second["mem"][:-1]) >= 2e9 / 2**20
    assert "3 jobs: an array of 2; more as these end" in str(found)
    assert list(folder.iterdir()) == []


def test_commands_name_the_files_that_are_shown(folder: Path) -> None:
    found = both().dry_run(executor=pf.executors.HTCondor(mode="batch", cores=8))
    for draft in found.drafts:
        assert shlex.split(draft.command)[0] == "condor_submit"
        assert shlex.split(draft.command)[-1] in draft.files
        assert all(Path(path).is_relative_to(folder) for path in draft.files)
        assert "queue 3" in draft.script or "queue 2" in draft.script


@pytest.mark.parametrize(
    ("make", "command", "prefix"),
    [
        (lambda: pf.executors.Slurm("q", cores=4, memory="8 GB"), "sbatch", "#SBATCH"),
        (lambda: pf.executors.SGE("q", cores=4, memory="8 GB"), "qsub", "#$"),
        (lambda: pf.executors.PBS("q", cores=4, memory="8 GB"), "qsub", "#PBS"),
        (lambda: pf.executors.LSF("q", cores=4, memory="8 GB"), "bsub", "#BSUB"),
        (lambda: pf.executors.HTCondor(cores=4, memory="8 GB"), "condor_submit", "request_cpus"),
    ],
)
@pytest.mark.parametrize("mode", ["pilots", "batch"])
def test_scripts_of_all_systems_are_valid_shell(
    make: Any, command: str, prefix: str, mode: str
) -> None:
    executor = make()
    executor.settings = replace(executor.settings, mode=mode, prologue=("module load x",))
    found = both().dry_run(executor=executor)
    assert found.drafts and not found.homeless
    for draft in found.drafts:
        script = next(text for text in draft.files.values() if text.startswith("#!/bin/bash"))
        subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=True, timeout=60)
        lines = script.splitlines()
        assert lines.index("module load x") == len(lines) - 2
        assert command in draft.command
        assert any(line.startswith(prefix) for line in draft.script.splitlines())


def test_pilots_are_shown_once_for_each_site_and_shape() -> None:
    executor = pf.executors.Slurm(
        sites=[
            pf.Site("wide", cores=8, memory=16 * 10**9, nodes=2),
            pf.Site("thin", cores=2, memory=4 * 10**9, walltime=1800.0),
        ],
    )
    found = both().dry_run(executor=executor)
    assert [(draft.site, draft.tasks) for draft in found.drafts] == [
        ("wide", ("small",)),
        ("wide", ("large",)),
        ("thin", ("small",)),
    ]
    assert [d.command.split()[-1] in d.files for d in found.drafts] == [True] * 3
    assert len({path for d in found.drafts for path in d.files}) == 3
    assert [directives(d.script)["partition"] for d in found.drafts] == ["wide", "wide", "thin"]
    assert "up to 2 pilots of 8 jobs at once" in str(found)
    rows = by_task(found)
    assert rows["small"]["sites"] == ["wide", "thin"] and rows["small"]["refused"] == {}
    assert rows["large"]["sites"] == ["wide"] and "4 cores" in rows["large"]["refused"]["thin"]
    assert directives(rows["small"]["script"])["partition"] == "wide"


def test_tasks_of_one_shape_share_pilots() -> None:
    found = growing().dry_run(executor=pf.executors.Slurm("main", cores=4))
    assert [set(draft.tasks) for draft in found.drafts] == [{"told", "small"}]


def test_a_task_that_fits_nowhere_is_said_loudly() -> None:
    found = both().dry_run(executor=pf.executors.Slurm("main", cores=2))
    assert found.homeless == ["large"]
    assert "FITS NOWHERE: not at main: asks for 4 cores" in str(found)
    assert "FITS NOWHERE" in found._repr_html_()
    assert found.complaint().startswith("task 'large' fits nowhere: not at main")
    row = by_task(found)["large"]
    assert row["script"] is None and row["command"] is None and row["sites"] == []
    assert both().dry_run(executor=pf.executors.Slurm("main", cores=4)).complaint() == ""


def test_an_unknown_number_of_jobs_is_said() -> None:
    executor = pf.executors.Slurm("main", mode="batch", cores=2)
    found = growing().dry_run(executor=executor)
    draft = next(draft for draft in found.drafts if draft.tasks == ("small",))
    assert "known only when the workflow runs" in draft.note
    assert "array" not in directives(draft.script)


def test_executors_by_name_and_executors_without_scripts() -> None:
    @pf.workflow
    def across() -> Any:
        return total(told.options(executor="hpc")(pf.items([1])))

    hpc = pf.executors.SGE("all.q")
    found = across().dry_run(executors={"hpc": hpc}, executor="sync")
    assert [draft.tasks for draft in found.drafts] == [("told",)]
    rows = by_task(found)
    assert rows["told"]["executor"] == "hpc" and rows["told"]["sites"] == ["all.q"]
    assert rows["total"]["executor"] == "default" and rows["total"]["script"] is None
    assert str(found).endswith("no batch scripts: local")
    with pytest.raises(WorkflowError, match=r"'hpc'.*--executor hpc="):
        across().dry_run(executor="sync")


def test_nothing_is_written_and_results_lie_beside_the_store(folder: Path) -> None:
    executor = pf.executors.Slurm("main", cores=4)
    found = both().dry_run(executor=executor, store=f"sqlite:///{folder}/deep/store.db")
    path = next(iter(found.drafts[0].files))
    assert Path(path).is_relative_to(folder / "deep" / "results")
    assert list(folder.iterdir()) == []


def test_notebooks_get_scripts_to_unfold() -> None:
    html = both().dry_run(executor=pf.executors.Slurm("a&b", cores=4))._repr_html_()
    assert html.count("<details>") == html.count("</details>") == 2
    assert "a&amp;b" in html and "--partition=" in html and "a&b" not in html
