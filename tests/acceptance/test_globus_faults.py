"""What may happen to runs on Globus Compute: endpoints, services, brokers and drivers go away."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("globus_compute_sdk", reason="no Globus Compute SDK: extra 'globus'")

import globus_compute_sdk

import pandaflow as pf
from pandaflow.testing.globus.endpoint import Endpoint
from pandaflow.testing.globus.local import Globus
from tests.acceptance.drivers import Drivers
from tests.acceptance.globus_work import (
    PATIENCE,
    all_noted,
    in_steps,
    lines,
    site,
    two_stages,
    wait_for,
)
from tests.acceptance.webhdfs import webhdfs

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def executor(endpoint: Endpoint, tmp_path: Path) -> Any:
    return site(endpoint.id, tmp_path / "data")


def test_jobs_wait_for_an_endpoint_that_is_offline(
    globus: Globus, endpoint: Endpoint, executor: Any, store: str
) -> None:
    globus.service.force_offline(endpoint.id)
    run = two_stages(20).submit(executor=executor, store=store)
    wait_for(lambda: any(run.jobs(task="double")))
    wait_for(lambda: "is offline" in run.explain("double[0]"))
    assert globus.service.log.of("submit") == []
    globus.service.force_offline(endpoint.id, False)
    assert run.result(timeout=PATIENCE) == 380


def test_an_endpoint_that_is_cut_off_during_a_run_loses_nothing(
    globus: Globus, endpoint: Endpoint, store: str, tmp_path: Path
) -> None:
    """Some jobs run there, some are in its queue, and some have not been sent."""
    run = all_noted(40, str(tmp_path), 0.5).submit(
        executor=site(endpoint.id, tmp_path / "data"), store=store
    )
    wait_for(lambda: len(lines(tmp_path, "over")) >= 2)
    (user,) = {task.user_endpoint for task in globus.service.tasks()[-10:]}
    for identifier in (endpoint.id, user):
        globus.service.force_offline(identifier)
    asked = len(globus.service.log.of("endpoint_status"))
    wait_for(lambda: "is offline; jobs wait" in run.explain("noted[39]"))
    wait_for(lambda: len(globus.service.log.of("endpoint_status")) >= asked + 10)
    for identifier in (endpoint.id, user):
        globus.service.force_offline(identifier, False)
    assert run.result(timeout=PATIENCE) == list(range(40))
    assert Counter(lines(tmp_path, "begun")) == Counter(range(40)), "none ran twice"
    assert {(job["attempt"], job["failure"]) for job in run.jobs()} == {(1, None)}


@pytest.mark.very_slow
def test_an_endpoint_that_dies_during_a_run_and_comes_back(
    mortal: Endpoint, store: str, tmp_path: Path
) -> None:
    run = all_noted(24, str(tmp_path), 2.0).submit(
        executor=site(mortal.id, tmp_path / "data"), store=store
    )
    wait_for(lambda: len(lines(tmp_path, "begun")) >= 2)
    mortal.kill()
    wait_for(lambda: "is offline" in run.explain("noted[23]"))
    mortal.restart()
    assert run.result(timeout=150) == list(range(24))
    assert all(job["failure"] is None for job in run.jobs())
    assert set(lines(tmp_path, "over")) == set(range(24)), "what it had taken has run again"


# --- the service ------------------------------------------------------------------------


def test_faults_during_a_run_change_no_result(
    globus: Globus, executor: Any, store: str, threads: Any, tmp_path: Path
) -> None:
    """Refused, forgotten after it was done, slow: each hits requests while jobs run."""
    here, faults = tmp_path / "here", globus.service.faults
    here.mkdir()
    run = in_steps(24, str(tmp_path), 0.3).submit(executor=executor, store=store)
    wait_for(lambda: len(lines(tmp_path, "begun")) >= 2)
    faults.answer(429, "submit", retry_after=1)
    faults.drop("submit")
    faults.answer(503, "submit")
    faults.answer(500, "endpoint_status", times=2)
    faults.answer(502, "batch_status")
    faults.delay(0.5, "submit")
    globus.rabbitmq.cut_connections()
    there = run.result(timeout=PATIENCE)
    assert there == in_steps(24, str(here), 0.0).run(executor=threads, store=store).result()
    for status in (429, 0, 503):
        assert globus.service.log.of("submit", status), "it was hit"
    assert {(job["attempt"], job["failure"]) for job in run.jobs()} == {(1, None)}
    assert Counter(lines(tmp_path, "begun")) == Counter(range(24)), "none ran twice"


def test_a_service_that_refuses_for_longer_than_the_sdk_tries(
    globus: Globus, endpoint: Endpoint, store: str, tmp_path: Path
) -> None:
    """With the SDK's own retries off, each refusal is one for PandaFlow to wait out."""
    client = globus_compute_sdk.Client(do_version_check=False)
    client._compute_web_client.v3.retry_config.max_retries = 0
    globus.service.faults.answer(503, "submit", times=2)
    globus.service.faults.answer(429, "submit", times=1)
    executor = site(endpoint.id, tmp_path / "data", client=client)
    run = two_stages(60).submit(executor=executor, store=store)
    wait_for(lambda: any(run.jobs(task="double")))
    wait_for(lambda: "nothing can be submitted now" in run.explain("double[0]"))
    assert run.result(timeout=PATIENCE) == 60 * 59
    assert globus.service.faults.left == 0
    assert {job["attempt"] for job in run.jobs()} == {1}


@pytest.mark.very_slow
@pytest.mark.parametrize("status", [429, 503])
def test_a_service_that_refuses_for_a_while(
    globus: Globus, executor: Any, store: str, status: int
) -> None:
    globus.service.faults.answer(status, "submit", times=8)
    run = two_stages(60).run(executor=executor, store=store)
    assert run.result() == 60 * 59
    assert globus.service.faults.left == 0
    assert {job["attempt"] for job in run.jobs()} == {1}


def test_submissions_that_are_doubled_count_once(globus: Globus, executor: Any, store: str) -> None:
    known = len(globus.service.tasks())
    globus.service.faults.drop("submit", times=3)
    run = two_stages(200).run(executor=executor, store=store)
    assert run.result() == 200 * 199
    assert {job["attempt"] for job in run.jobs()} == {1}
    bundles = {(job["task"], job["bundle"]) for job in run.jobs()}
    assert len(globus.service.tasks()) - known > len(bundles) + 2, "some were handed out twice"


# --- the broker -------------------------------------------------------------------------


def test_cut_connections_lose_nothing(
    globus: Globus, executor: Any, store: str, tmp_path: Path
) -> None:
    run = all_noted(8, str(tmp_path), 1.0).submit(executor=executor, store=store)
    wait_for(lambda: len(lines(tmp_path, "begun")) >= 2)
    globus.rabbitmq.cut_connections()
    assert run.result(timeout=PATIENCE) == list(range(8))


@pytest.mark.very_slow
def test_a_broker_that_is_away_for_long(
    globus: Globus, executor: Any, store: str, tmp_path: Path
) -> None:
    """So long that the SDK gives up: results are asked for again."""
    run = all_noted(8, str(tmp_path), 2.0).submit(executor=executor, store=store)
    wait_for(lambda: len(lines(tmp_path, "begun")) >= 2)
    globus.rabbitmq.stop()
    time.sleep(45)
    globus.rabbitmq.start()
    assert run.result(timeout=PATIENCE) == list(range(8))


# --- user endpoints ---------------------------------------------------------------------


@pf.workflow
def commands_noted(n: int, folder: str) -> Any:
    line = f"echo %IN >> {folder}/begun; sleep 4; echo %IN >> {folder}/over; echo %IN"
    return pf.command(line, name="noted")(pf.items(range(n)))


@pytest.mark.parametrize(
    "known", [True, pytest.param(False, marks=pytest.mark.very_slow)], ids=["known", "unknown"]
)
def test_commands_of_a_user_endpoint_that_was_killed_first_of_all_run_again(
    globus: Globus, mortal: Endpoint, store: str, tmp_path: Path, known: bool
) -> None:
    """None has ended that could have told which user endpoint they are at."""
    run = commands_noted(3, str(tmp_path)).submit(
        executor=site(mortal.id, tmp_path / "data"), store=store
    )
    wait_for(lambda: len(lines(tmp_path, "begun")) >= 2)
    user = globus.service.tasks()[-1].user_endpoint
    asked = f"/v2/endpoints/{user}/status"
    if known:
        wait_for(lambda: any(request.path == asked for request in globus.service.log))
    assert lines(tmp_path, "over") == []
    assert mortal.kill_user_endpoints() == 1
    assert run.result(timeout=200) == ["0", "1", "2"]
    assert all(job["failure"] is None for job in run.jobs())
    assert {0, 1, 2} == set(lines(tmp_path, "over"))


@pytest.mark.very_slow
def test_jobs_of_a_killed_user_endpoint_run_again_uncharged(
    mortal: Endpoint, store: str, tmp_path: Path
) -> None:
    run = all_noted(4, str(tmp_path), 3.0).submit(
        executor=site(mortal.id, tmp_path / "data"), store=store
    )
    wait_for(lambda: len(lines(tmp_path, "begun")) >= 2)
    assert mortal.kill_user_endpoints() == 1
    assert run.result(timeout=150) == list(range(4))
    assert all(job["failure"] is None for job in run.jobs())
    assert Counter(lines(tmp_path, "over")) == Counter(range(4))


# --- drivers ----------------------------------------------------------------------------

SCRIPT = """
import sys
import pandaflow as pf
from tests.acceptance.globus_work import all_noted, site

store, folder, endpoint, data, run, n, seconds = sys.argv[1:]
executor = site(endpoint, data)
if run == "new":
    run = all_noted(int(n), folder, float(seconds)).submit(executor=executor, store=store)
else:
    run = pf.resume(run, store=store, executor=executor)
print(run.id, flush=True)
print(run.wait(), flush=True)
"""


@pytest.fixture(params=["folder", "object store"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where results and data are."""
    if request.param == "folder":
        yield str(tmp_path)
        return
    with webhdfs() as server:
        yield server.url


def drivers_of(globus: Globus, endpoint: Endpoint, store: str, folder: Path, root: str) -> Drivers:
    argv = [sys.executable, "-c", SCRIPT, store, str(folder), endpoint.id, f"{root}/data"]
    return Drivers(argv, globus.env | {"PANDAFLOW_RESULTS": f"{root}/results"})


def test_the_next_driver_collects_what_finished_meanwhile(
    globus: Globus, endpoint: Endpoint, store: str, tmp_path: Path, root: str
) -> None:
    drivers = drivers_of(globus, endpoint, store, tmp_path, root)
    with drivers.killed(8, 3.0):
        wait_for(lambda: len(lines(tmp_path, "begun")) >= 4)
    begun = lines(tmp_path, "begun")
    wait_for(lambda: set(begun) <= set(lines(tmp_path, "over")))
    assert drivers.resume() == "done"
    assert Counter(lines(tmp_path, "begun")) == Counter(range(8)), "none ran twice"


@pytest.mark.very_slow
def test_the_next_driver_notices_that_the_user_endpoint_has_died_meanwhile(
    globus: Globus, mortal: Endpoint, store: str, tmp_path: Path
) -> None:
    drivers = drivers_of(globus, mortal, store, tmp_path, str(tmp_path))
    with drivers.killed(4, 10.0):
        wait_for(lambda: len(lines(tmp_path, "begun")) >= 4)
        journal = tmp_path / "results" / drivers.run / "globus" / "journal"
        wait_for(lambda: b"user_endpoint" in journal.read_bytes())
    assert mortal.kill_user_endpoints() == 1
    assert drivers.resume() == "done"
    assert Counter(lines(tmp_path, "over")) == Counter(range(4))
