"""Executors as users make them, and what they are told when something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.core.errors import SiteError, WorkflowError
from pandaflow.core.events import Event
from pandaflow.executors.batch import systems
from pandaflow.executors.batch.slurm import Slurm as Backend
from pandaflow.executors.batch.systems import Batch, make_settings

MAKERS: list[Callable[..., Batch]] = [
    systems.Slurm,
    systems.SGE,
    systems.PBS,
    systems.HTCondor,
    systems.LSF,
]


def test_texts_are_understood() -> None:
    made = make_settings(
        Backend(),
        "main",
        {
            "walltime": "02:00:00",
            "memory": "64 GB",
            "disk": "1 TiB",
            "prologue": "module load python",
            "extra": ["--qos=low", "--exclusive"],
            "sites": [pf.Site("a"), pf.Site("b")],
        },
    )
    assert made.walltime == 7200.0 and isinstance(made.walltime, float)
    assert (made.memory, made.disk) == (64 * 10**9, 2**40)
    assert made.prologue == ("module load python",)
    assert made.extra == ("--qos=low", "--exclusive")
    assert list(made.places()) == ["a", "b"]
    assert (made.queue, made.python) == ("main", sys.executable)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"partitoin": "x"}, "unknown setting 'partitoin'; known are account, .*walltime"),
        ({"site_name": "x"}, "unknown setting 'site_name'"),
        ({"backend": 1}, "unknown setting 'backend'"),
        ({"walltime": "soon"}, "walltime"),
        ({"memory": "much"}, "memory"),
        ({"disk": "1 parsec"}, "disk"),
        ({"cores": -1}, "cores"),
        ({"mode": "pilot"}, "mode='pilot': one of pilots, batch"),
    ],
)
def test_what_is_wrong_is_named(said: dict[str, Any], words: str) -> None:
    with pytest.raises(WorkflowError, match=words):
        make_settings(Backend(), None, said)


@pytest.mark.parametrize("maker", MAKERS)
def test_every_system_takes_the_same_settings(maker: Callable[..., Batch]) -> None:
    made = maker(cores=8, walltime="1h", max_nodes=3, mode="batch")
    assert (made.settings.cores, made.settings.walltime) == (8, 3600.0)
    assert repr(made) == (
        f"{type(made).__name__}(mode='batch', cores=8, max_nodes=3, walltime=3600)"
    )
    with pytest.raises(WorkflowError, match="unknown setting 'nodes'"):
        maker(nodes=3)


@pytest.mark.parametrize(("mode", "several"), [("pilots", False), ("batch", True)])
def test_only_batch_jobs_have_several_nodes(mode: str, several: bool) -> None:
    assert systems.Slurm(mode=mode).multi_node is several


def hear(event: Event) -> None:
    raise AssertionError(f"nothing is to be reported: {event}")


@pytest.mark.parametrize("mode", ["pilots", "batch"])
def test_results_must_be_in_a_folder(mode: str) -> None:
    with pytest.raises(SiteError, match="give a store whose folder"):
        systems.Slurm(mode=mode).open("run", "s3://bucket/results", hear)


@pytest.mark.parametrize("maker", MAKERS)
def test_without_the_system_s_commands_it_says_so_at_once(
    maker: Callable[..., Batch], tmp_path: Path
) -> None:
    executor = maker(commands_env={"PATH": str(tmp_path)})
    with pytest.raises(SiteError, match=r"is not here: the commands of \w+ must be on the PATH"):
        executor.open("run", str(tmp_path / "results"), hear)
