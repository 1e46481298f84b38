"""Executors as ``--executor`` names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.cli.places import parse_executor, parse_places
from pandaflow.core.errors import WorkflowError

SITE = """\
import gzip
import pandaflow as pf

perlmutter = pf.executors.Slurm("regular", account="m1", cores=128, walltime="12:00:00")
number = 3


def frontier():
    return pf.executors.Slurm("batch", cores=56)


def address():
    return "tcp://head:8786"


def forgetful():
    pf.executors.Slurm("batch")


def broken():
    raise OSError("no such cluster")
"""


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with executors, in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "site.py"  # also the name of a module of Python's own
    path.write_text(SITE)
    return path


# --- batch systems ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "system", "queue"),
    [
        ("slurm:main", "slurm", "main"),
        ("slurm", "slurm", None),
        ("sge:all.q", "sge", "all.q"),
        ("pbs:workq@server", "pbs", "workq@server"),
        ("lsf:normal", "lsf", "normal"),
        ("htcondor", "htcondor", None),
    ],
)
def test_batch_systems_by_name(text: str, system: str, queue: str | None) -> None:
    settings = parse_executor(text, None).settings
    assert (settings.backend.name, settings.queue) == (system, queue)
    assert (settings.cores, settings.max_nodes, settings.walltime) == (1, 10, 3600.0)


def test_settings_behind_a_question_mark() -> None:
    text = (
        "slurm:main?walltime=2h&cores=16&max_nodes=4&memory=64 GB&mode=batch&idle_seconds=2min"
        "&prologue=module load a%26b&prologue=umask 027&extra=--qos=x&env=A=1&env=B=x=y"
        "&submit_rate=90&account=m1"
    )
    settings = parse_executor(text, None).settings
    assert (settings.walltime, settings.cores, settings.max_nodes) == (7200.0, 16, 4)
    assert (settings.memory, settings.mode, settings.account) == (64 * 10**9, "batch", "m1")
    assert (settings.idle_seconds, settings.submit_rate) == (120.0, 90.0)
    assert settings.prologue == ("module load a&b", "umask 027")
    assert settings.extra == ("--qos=x",)
    assert settings.env == {"A": "1", "B": "x=y"}


def test_the_nodes_to_keep_may_be_many() -> None:
    assert parse_executor("sge:q?min_nodes=30", None).settings.max_nodes == 30


def test_a_dialect_of_pbs() -> None:
    assert parse_executor("pbs:q?dialect=torque", None).settings.backend.dialect == "torque"


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("coers=4", "'coers'"),
        ("cores=many", "cores='many'"),
        ("cores=0", "cores=0"),
        ("walltime=soon", "walltime='soon'"),
        ("memory=big", "memory='big'"),
        ("mode=fast", "mode='fast'"),
        ("min_nodes=4&max_nodes=2", "max_nodes=2"),
        ("cores", "'cores'"),
        ("cores=4&cores=8", "cores is given twice"),
        ("env=A", "env=NAME=VALUE"),
        ("idle_seconds=0", "idle_seconds"),
        ("sites=a", "FILE.py:NAME"),
        ("commands_env=A=1", "FILE.py:NAME"),
        ("queue=main", "'queue'"),
    ],
)
def test_errors_name_the_setting_and_what_was_written(query: str, told: str) -> None:
    with pytest.raises(WorkflowError) as caught:
        parse_executor(f"slurm:main?{query}", None)
    assert told in str(caught.value) and f"slurm:main?{query}" in str(caught.value)


ENDPOINT = "4b116d3c-1703-4f8f-9f6f-39921e5864df"


def test_an_endpoint_of_globus_compute() -> None:
    where = f"globus:{ENDPOINT}?slots=64&data=/scratch&config.ACCOUNT=m1234&config.NODES=2"
    executor = parse_executor(where, None)
    (endpoint,) = executor.settings.endpoints
    assert (endpoint.id, endpoint.slots) == (ENDPOINT, 64)
    assert endpoint.config == {"ACCOUNT": "m1234", "NODES": 2}
    assert executor.settings.data == "/scratch"


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("globus:here", "no UUID"),
        ("globus:", "no UUID"),
        (f"globus:{ENDPOINT}?slots=many", "slots='many'"),
        (f"globus:{ENDPOINT}?slot=4", "'slot'"),
        (f"globus:{ENDPOINT}?slots=4&slots=5", "slots is given twice"),
    ],
)
def test_endpoints_that_are_written_wrong(where: str, told: str) -> None:
    with pytest.raises(WorkflowError) as caught:
        parse_executor(where, None)
    assert told in str(caught.value) and where in str(caught.value)


def test_a_server_of_the_grid() -> None:
    executor = parse_executor("grid:https://pool:8443?queue=CERN&tags=a&tags=b&data=/scratch", None)
    settings = executor.settings
    assert (settings.server, settings.queue) == ("https://pool:8443", "CERN")
    assert (settings.tags, settings.data) == (("a", "b"), "/scratch")


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("grid:pool:8443", "give its URL"),
        ("grid:https://pool?queue=a&queue=b", "queue is given twice"),
        ("grid:https://pool?que=a", "'que'"),
        ("grid:https://pool?slots=0", "slots=0"),
    ],
)
def test_servers_that_are_written_wrong(where: str, told: str) -> None:
    with pytest.raises(WorkflowError) as caught:
        parse_executor(where, None)
    assert told in str(caught.value) and where in str(caught.value)


def test_htcondor_has_no_queues() -> None:
    with pytest.raises(WorkflowError, match="no queues"):
        parse_executor("htcondor:main", None)


# --- the user's own ---------------------------------------------------------------------


def test_an_executor_of_a_file_and_a_function_that_makes_one() -> None:
    assert parse_executor("site.py:perlmutter", None).settings.cores == 128
    assert parse_executor("site.py:frontier", None).settings.queue == "batch"
    assert isinstance(parse_executor("site.py:address", None), pf.executors.Dask)


def test_an_executor_of_a_module(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "places_of_ours"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nersc.py").write_text(SITE)
    assert parse_executor("places_of_ours.nersc:perlmutter", None).settings.account == "m1"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("missing.py:a", "no file 'missing.py'"),
        ("site.py", "perlmutter"),
        ("site.py:", "perlmutter"),
        ("site.py:perlmuter", "did you mean 'perlmutter'"),
        ("site.py:zzz", "it has perlmutter"),
        ("site.py:number", "is no executor"),
        ("site.py:gzip", "is no executor"),
        ("site.py:forgetful", "None is no executor"),
        ("site.py:broken", "no such cluster"),
        ("no.such.module:a", "no executor 'no.such.module'"),
        ("slrum:main", "did you mean 'slurm'"),
        ("moon", "slurm:PARTITION"),
        ("dask", "dask:tcp://"),
        ("local:4", "--workers N"),
    ],
)
def test_errors_say_what_there_is(text: str, told: str) -> None:
    with pytest.raises(WorkflowError) as caught:
        parse_executor(text, None)
    assert told in str(caught.value)


# --- several ----------------------------------------------------------------------------


def kinds(texts: list[str], workers: int | None = None) -> tuple[Any, dict[str, str]]:
    made = parse_places(texts, workers)
    named = {name: type(executor).__name__ for name, executor in made.executors.items()}
    return (None if made.executor is None else type(made.executor).__name__), named


def test_nothing_said_is_worker_processes_here() -> None:
    assert kinds([]) == ("Local", {})


def test_executors_for_tasks_that_name_one() -> None:
    assert kinds(["sync", "hpc=site.py:perlmutter", "grid=htcondor?env=A=1"]) == (
        "Local",
        {"hpc": "Slurm", "grid": "HTCondor"},
    )
    assert kinds(["hpc=slurm:main?walltime=2h"]) == ("Local", {"hpc": "Slurm"})
    assert kinds(["default=slurm:main"]) == (None, {"default": "Slurm"})


def test_an_equals_sign_of_a_setting_is_no_name() -> None:
    assert kinds(["slurm?cores=4"]) == ("Slurm", {})


def test_workers_are_for_the_local_ones() -> None:
    made = parse_places(["hpc=slurm:main", "threads"], 3)
    assert made.executor.workers == 3
    with pytest.raises(WorkflowError, match="--workers"):
        parse_places(["slurm:main"], 3)


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["local", "slurm:main"], "--executor NAME=slurm:main"),
        (["hpc=local", "hpc=slurm:main"], "hpc=... is given twice"),
        (["hpc=nowhere"], "no executor 'nowhere'"),
    ],
)
def test_two_for_the_same_tasks(texts: list[str], told: str) -> None:
    with pytest.raises(WorkflowError) as caught:
        parse_places(texts, None)
    assert told in str(caught.value)
