"""What users say about their batch system, and about each of its sites."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pandaflow as pf
from pandaflow.core.errors import WorkflowError
from pandaflow.executors.batch.settings import BatchSettings
from pandaflow.executors.batch.slurm import Slurm

GB = 10**9


def settings(**said: Any) -> BatchSettings:
    return BatchSettings(backend=Slurm(), **said)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"mode": "magic"}, "mode='magic': one of pilots, batch"),
        ({"max_nodes": 0}, "max_nodes=0: give a number of at least 1"),
        ({"max_nodes": True}, "max_nodes=True"),
        ({"max_nodes": 1.5}, "max_nodes=1.5"),
        ({"min_nodes": -1}, "min_nodes=-1: give a number of at least 0"),
        ({"min_nodes": 3, "max_nodes": 2}, "min_nodes=3 is above max_nodes=2"),
        ({"poll_seconds": 0.0}, "poll_seconds=0.0: give a number above 0"),
        ({"submit_rate": -1.0}, "submit_rate=-1.0"),
        ({"idle_seconds": float("nan")}, "idle_seconds=nan"),
        ({"margin": float("inf")}, "margin=inf"),
        ({"patience": 0.0}, "patience"),
        ({"queue_seconds": 0.0}, "queue_seconds"),
        ({"python": "a\nb"}, "python='a.nb': give one line"),
        ({"scratch": ""}, "scratch=''"),
        ({"container": "run\x00"}, "container"),
        ({"walltime": 0.0}, "walltime"),
        ({"cores": 0}, "cores"),
        ({"gpus": -1}, "gpus"),
        ({"memory": 0}, "memory"),
        ({"sites": (pf.Site("a"), pf.Site("b"), pf.Site("a"))}, "sites: 'a' is there twice"),
        ({"sites": (pf.Site("a", extra=["-x\n-y"]),)}, "extra"),
    ],
)
def test_what_cannot_be_is_refused_by_name(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(WorkflowError, match=words):
        settings(**wrong)


def test_without_sites_there_is_one_by_the_name_of_its_queue() -> None:
    plain = settings(queue="main", cores=4)
    assert plain.places() == {"main": plain}
    assert settings().name == "slurm"
    assert plain.site == pf.Site("main", queue="main", cores=4, walltime=3600, gpus=0, nodes=1)


def test_a_site_says_what_differs() -> None:
    given = settings(
        queue="unused",
        account="physics",
        walltime=7200.0,
        cores=64,
        memory=256 * GB,
        max_nodes=10,
        min_nodes=4,
        extra=("--exclusive",),
        scratch="/scratch",
        sites=(
            pf.Site("debug", walltime="10m", nodes=2, extra=["--qos=debug"]),
            pf.Site("gpu", queue="gpuq", account="ml", gpus=4, cores=32, memory="128 GB"),
            pf.Site("local", scratch="/local", disk="1 TB"),
        ),
    )
    places = given.places()
    assert list(places) == ["debug", "gpu", "local"], "the order of preference"
    debug, gpu, local = places.values()
    assert (debug.queue, debug.walltime, debug.max_nodes, debug.min_nodes) == ("debug", 600, 2, 2)
    assert debug.extra == ("--exclusive", "--qos=debug")
    assert (debug.cores, debug.memory, debug.account) == (64, 256 * GB, "physics")
    assert (gpu.queue, gpu.account, gpu.gpus, gpu.cores) == ("gpuq", "ml", 4, 32)
    assert (gpu.max_nodes, gpu.min_nodes, gpu.memory) == (10, 4, 128 * GB)
    assert (local.scratch, local.disk, debug.scratch) == ("/local", 10**12, "/scratch")


def test_a_place_is_about_itself_only() -> None:
    for name, place in settings(sites=(pf.Site("a"), pf.Site("b", queue="q"))).places().items():
        assert place.sites == ()
        assert place.places() == {name: place}
        assert place.site.name == name


def test_a_site_may_say_that_it_has_no_gpus() -> None:
    places = settings(gpus=2, sites=(pf.Site("cpu", gpus=0), pf.Site("gpu"))).places()
    assert [place.gpus for place in places.values()] == [0, 2]


def test_what_a_batch_job_asks_for_is_what_the_place_has() -> None:
    place = settings(
        account="a", env={"X": "1"}, sites=(pf.Site("s", cores=3, memory="2 GB", gpus=1),)
    ).places()["s"]
    request = place.request("name")
    assert (request.name, request.queue, request.account) == ("name", "s", "a")
    assert (request.cores, request.memory, request.gpus) == (3, 2 * GB, 1)
    assert request.env == {"X": "1"}


@given(st.floats(1.0, 1e7), st.floats(0.1, 1e5))
def test_there_is_always_time_for_work(walltime: float, margin: float) -> None:
    given_ = settings(walltime=walltime, margin=margin)
    assert 0 < given_.last_call <= walltime / 4
    assert walltime / 3 < given_.longest < walltime - 2 * given_.last_call
