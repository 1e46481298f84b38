"""Runs on a real Globus Compute endpoint, behind the stand-in of its service."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("globus_compute_sdk", reason="no Globus Compute SDK: extra 'globus'")

import pandaflow as pf
from pandaflow.core.brokerage import Site
from pandaflow.core.errors import SiteError
from pandaflow.testing.globus.endpoint import Endpoint, mpi_missing
from pandaflow.testing.globus.environment import GlobusMissing
from pandaflow.testing.globus.limits import Limits
from pandaflow.testing.globus.local import Globus

pytestmark = pytest.mark.timeout(240)

PATIENCE = 90.0


@pf.task
def double(x: int) -> int:
    return 2 * x


@pf.task
def total(xs: list[int]) -> int:
    return sum(xs)


@pf.task
def block(size: int) -> bytes:
    """Return bytes that do not compress."""
    import os

    return os.urandom(size)


@pf.task
def length(data: bytes) -> int:
    return len(data)


@pf.task
def noted(x: int, folder: str, seconds: float) -> int:
    """Leave a line when it begins, and one when it has ended."""
    with open(Path(folder, "begun"), "a") as file:
        file.write(f"{x}\n")
    time.sleep(seconds)
    with open(Path(folder, "over"), "a") as file:
        file.write(f"{x}\n")
    return x


@pf.workflow
def two_stages(n: int) -> Any:
    sums = total.options(items_per_job=50)(double(pf.items(range(n))))
    return total.options(n_jobs=1, name="grand")(sums)


@pf.workflow
def all_noted(n: int, folder: str, seconds: float) -> Any:
    return noted(pf.items(range(n)), folder, seconds)


@pytest.fixture
def endpoint(globus: Globus) -> Endpoint:
    try:
        return globus.endpoint()
    except GlobusMissing as error:
        pytest.skip(str(error))


@pytest.fixture
def mortal(globus: Globus) -> Iterator[Endpoint]:
    """An endpoint for tests that kill."""
    try:
        endpoint = globus.endpoint("mortal")
    except GlobusMissing as error:
        pytest.skip(str(error))
    yield endpoint
    endpoint.stop()


@pytest.fixture
def executor(endpoint: Endpoint, tmp_path: Path) -> Any:
    return pf.executors.GlobusCompute(
        endpoint.id, data=str(tmp_path / "data"), poll_seconds=1.0, heartbeat=5.0
    )


def lines(folder: Path, name: str) -> list[int]:
    path = folder / name
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def failures(run: Any) -> list[dict[str, Any]]:
    return [job["failure"] for job in run.jobs(status="failed")]


# --- work -------------------------------------------------------------------------------


def test_two_stages_give_what_they_give_here(executor: Any, store: str, threads: Any) -> None:
    there = two_stages(1000).run(executor=executor, store=store)
    here = two_stages(1000).run(executor=threads, store=store)
    assert there.result() == here.result() == 999_000


def test_a_code_version_is_registered_once(globus: Globus, executor: Any, store: str) -> None:
    two_stages(60).run(executor=executor, store=store).result()
    known = len(globus.service.log.of("register_function"))
    two_stages(70).run(executor=executor, store=store).result()
    assert len(globus.service.log.of("register_function")) == known


def test_a_function_that_the_service_has_forgotten_is_registered_again(
    globus: Globus, executor: Any, store: str
) -> None:
    two_stages(60).run(executor=executor, store=store).result()
    known = len(globus.service.log.of("register_function"))
    globus.service._cloud.functions.clear()
    assert two_stages(60).run(executor=executor, store=store).result() == 60 * 59
    assert len(globus.service.log.of("register_function")) > known


def test_stages_on_globus_and_here(executor: Any, store: str, threads: Any) -> None:
    @pf.workflow
    def mixed() -> Any:
        first = double(pf.items(range(40)))
        return total.options(n_jobs=1, executor="here")(first)

    run = mixed().run(executor=executor, executors={"here": threads}, store=store)
    assert run.result() == 40 * 39


def test_twenty_thousand_jobs_in_few_requests(globus: Globus, executor: Any, store: str) -> None:
    @pf.workflow
    def many() -> Any:
        return double(pf.items(range(20_000)))

    run = many().run(executor=executor, store=store)
    assert run.result() == [2 * x for x in range(20_000)]
    assert len(globus.service.log.of("submit")) < 100


def test_commands_need_no_pandaflow_there(executor: Any, store: str) -> None:
    told = pf.command("echo hello %IN; echo aside >&2", name="told")
    made = pf.command("printf abc%s %IN > %OUT{x.txt}; head -c 9000000 /dev/zero > %OUT{big}")
    count = pf.command("wc -c < %IN", name="count")

    @pf.workflow
    def flow() -> Any:
        files = made(pf.items(["x y"]))
        return told(pf.items(["a", "b c"])), files, count(length_of(files))

    @pf.task
    def length_of(files: dict[str, Any]) -> Any:
        return files["big"]

    run = flow().run(executor=executor, store=store)
    said, (files,), counted = run.result()
    assert said == ["hello a", "hello b c"]
    assert Path(files["x.txt"]).read_text() == "abcx y"
    assert files["big"].size == Path(files["big"]).stat().st_size == 9_000_000
    assert counted == ["9000000"]
    assert run.logs("told[1]") == "hello b c\naside\n"


def test_commands_fail_as_they_do_elsewhere(executor: Any, store: str) -> None:
    bad = pf.command("echo no >&2; exit 3", name="bad")
    slow = pf.command("sleep 60", name="slow").options(walltime=1)
    dead = pf.command("kill -KILL $$", name="dead")
    none = pf.command("echo %OUT{nothing}", name="none")

    @pf.workflow
    def flow() -> Any:
        return [each(pf.items([1])) for each in (bad, slow, dead, none)]

    run = flow().run(executor=executor, store=store)
    told = {job["task"]: job["failure"] for job in run.jobs(status="failed")}
    assert (told["bad"]["kind"], told["bad"]["code"]) == ("exit", 3)
    assert told["bad"]["message"] == "exit code 3: no"
    assert told["slow"]["kind"] == "walltime"
    assert (told["dead"]["kind"], told["dead"]["code"]) == ("signal", 9)
    assert (told["none"]["kind"], told["none"]["message"]) == (
        "output",
        "did not write its output nothing",
    )


# --- limits -----------------------------------------------------------------------------


@pf.workflow
def through(size: int) -> Any:
    return length(block(pf.items([size])))


def test_large_values_travel_through_the_data_store(executor: Any, store: str) -> None:
    assert through(9_000_000).run(executor=executor, store=store).result() == [9_000_000]


def test_large_results_without_a_store_say_what_to_do(endpoint: Endpoint, store: str) -> None:
    executor = pf.executors.GlobusCompute(endpoint.id)
    run = through(9_000_000).run(executor=executor, store=store)
    (failure,) = failures(run)
    assert failure["kind"] == "output"
    for what in ("block[0]", "9000", "data="):
        assert what in failure["message"]


def test_large_inputs_without_a_store_are_refused_before_submission(
    globus: Globus, endpoint: Endpoint, store: str
) -> None:
    executor = pf.executors.GlobusCompute(endpoint.id, request_bytes=200_000)
    run = through(1_000_000).run(executor=executor, store=store)
    (failure,) = failures(run)
    assert failure["kind"] == "input"
    for what in ("length[0]", "100", "data="):
        assert what in failure["message"]


def test_requests_stay_below_the_limits_of_the_service(
    globus: Globus, endpoint: Endpoint, store: str
) -> None:
    """Sixty values of 20 kB, and a service that takes 250 kB and 12 requests in 2 s."""
    globus.service.limits = Limits(submission_bytes=250_000, requests=12, window_seconds=2.0)
    executor = pf.executors.GlobusCompute(
        endpoint.id, slots=30, request_bytes=240_000, rate=(12, 2.0)
    )

    @pf.workflow
    def flow() -> Any:
        return length(block(pf.items([20_000] * 60)))

    run = flow().run(executor=executor, store=store)
    assert run.result() == [20_000] * 60
    assert globus.service.log.of("submit", 413) == []
    assert globus.service.log.of("submit", 429) == []


# --- refusals ---------------------------------------------------------------------------


def test_more_nodes_than_there_are_is_refused_at_once(endpoint: Endpoint, store: str) -> None:
    wide = pf.command("true", name="wide").options(nodes=3)

    @pf.workflow
    def flow() -> Any:
        return wide(pf.items([1]))

    site = Site("leader", queue=endpoint.id, nodes=2)
    run = flow().run(executor=pf.executors.GlobusCompute(site), store=store)
    (failure,) = failures(run)
    assert failure["kind"] == "unfit"
    assert "asks for 3 nodes at once and it has 2" in failure["message"]


def test_nobody_is_signed_in(globus: Globus, endpoint: Endpoint, store: str, monkeypatch) -> None:
    monkeypatch.delenv("GLOBUS_COMPUTE_CLIENT_ID")
    monkeypatch.delenv("GLOBUS_COMPUTE_CLIENT_SECRET")
    executor = pf.executors.GlobusCompute(endpoint.id)
    globus.service.log.clear()
    with pytest.raises(SiteError, match="globus-compute-endpoint login"):
        two_stages(10).run(executor=executor, store=store)
    assert globus.service.log.of("submit") == []


def test_a_wrong_secret_is_named(
    globus: Globus, endpoint: Endpoint, store: str, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GLOBUS_COMPUTE_CLIENT_SECRET", "wrong")
    monkeypatch.setenv("GLOBUS_COMPUTE_USER_DIR", str(tmp_path))
    with pytest.raises(SiteError, match="GLOBUS_COMPUTE_CLIENT_SECRET"):
        two_stages(10).run(executor=pf.executors.GlobusCompute(endpoint.id), store=store)


def test_an_endpoint_that_nobody_knows(globus: Globus, endpoint: Endpoint, store: str) -> None:
    nobody = "00000000-0000-0000-0000-000000000001"
    with pytest.raises(SiteError, match=nobody):
        two_stages(10).run(executor=pf.executors.GlobusCompute(nobody), store=store)


def test_an_endpoint_that_cannot_start_fails_its_jobs(endpoint: Endpoint, store: str) -> None:
    config = {"engine": "NoSuchEngine"}
    executor = pf.executors.GlobusCompute(endpoint.id, user_endpoint_config=config)
    run = two_stages(10).run(executor=executor, store=store)
    assert run.status == "failed"
    (message,) = {failure["message"] for failure in failures(run)}
    assert "NoSuchEngine" in message


# --- faults -----------------------------------------------------------------------------


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
    globus.service.faults.drop("submit", times=3)
    run = two_stages(200).run(executor=executor, store=store)
    assert run.result() == 200 * 199
    assert {job["attempt"] for job in run.jobs()} == {1}


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


def test_jobs_of_a_killed_user_endpoint_run_again_uncharged(
    mortal: Endpoint, store: str, tmp_path: Path
) -> None:
    executor = pf.executors.GlobusCompute(
        mortal.id, data=str(tmp_path / "data"), poll_seconds=1.0, heartbeat=5.0
    )
    run = all_noted(4, str(tmp_path), 3.0).submit(executor=executor, store=store)
    wait_for(lambda: len(lines(tmp_path, "begun")) >= 2)
    assert mortal.kill_user_endpoints() == 1
    assert run.result(timeout=150) == list(range(4))
    assert all(job["failure"] is None for job in run.jobs())
    assert Counter(lines(tmp_path, "over")) == Counter(range(4))


SCRIPT = """
import sys
import pandaflow as pf
from tests.acceptance.test_globus import all_noted

store, folder, endpoint, run, n, seconds = sys.argv[1:]
executor = pf.executors.GlobusCompute(endpoint, data=folder + "/data", poll_seconds=1.0)
if run == "new":
    run = all_noted(int(n), folder, float(seconds)).submit(executor=executor, store=store)
else:
    run = pf.resume(run, store=store, executor=executor)
print(run.id, flush=True)
print(run.wait(), flush=True)
"""


def test_the_next_driver_collects_what_finished_meanwhile(
    globus: Globus, endpoint: Endpoint, store: str, tmp_path: Path
) -> None:
    def start(run: str, n: int, seconds: float) -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", SCRIPT, store, str(tmp_path), endpoint.id, run]
        return subprocess.Popen(
            [*argv, str(n), str(seconds)], stdout=subprocess.PIPE, text=True, env=globus.env
        )

    first = start("new", 8, 3.0)
    assert first.stdout is not None
    try:
        run = first.stdout.readline().strip()
        wait_for(lambda: len(lines(tmp_path, "begun")) >= 4)
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    begun = lines(tmp_path, "begun")
    wait_for(lambda: set(begun) <= set(lines(tmp_path, "over")))
    second = start(run, 0, 0.0)
    try:
        told, _ = second.communicate(timeout=PATIENCE)
    finally:
        second.kill()
        second.wait()
    assert told.split()[-1] == "done"
    assert Counter(lines(tmp_path, "begun")) == Counter(range(8)), "none ran twice"


def test_cancel_without_a_store_stops_payloads(
    endpoint: Endpoint, store: str, tmp_path: Path
) -> None:
    executor = pf.executors.GlobusCompute(endpoint.id, slots=2, poll_seconds=1.0)
    run = all_noted(2, str(tmp_path), 60.0).submit(executor=executor, store=store)
    wait_for(lambda: len(lines(tmp_path, "begun")) == 2)
    run.cancel()
    assert run.wait(30) == "aborted"
    assert lines(tmp_path, "over") == []


# --- several endpoints, MPI -------------------------------------------------------------


def test_several_endpoints_share_the_work(
    globus: Globus, endpoint: Endpoint, mortal: Endpoint, store: str, tmp_path: Path
) -> None:
    sites = [Site("one", queue=endpoint.id, cores=2), Site("two", queue=mortal.id, cores=2)]
    executor = pf.executors.GlobusCompute(
        endpoints=sites, data=str(tmp_path / "data"), poll_seconds=1.0
    )
    run = all_noted(40, str(tmp_path), 0.5).run(executor=executor, store=store)
    assert run.result() == list(range(40))
    assert {job["site"] for job in run.jobs()} == {"one", "two"}


def test_an_endpoint_that_is_offline_gets_nothing(
    globus: Globus, endpoint: Endpoint, mortal: Endpoint, store: str, tmp_path: Path
) -> None:
    globus.service.force_offline(mortal.id)
    sites = [Site("off", queue=mortal.id), Site("on", queue=endpoint.id)]
    executor = pf.executors.GlobusCompute(endpoints=sites, data=str(tmp_path / "data"))
    run = all_noted(4, str(tmp_path), 0.0).run(executor=executor, store=store)
    assert {job["site"] for job in run.jobs()} == {"on"}


@pytest.mark.very_slow
def test_the_pilot_engine_survives_the_death_of_workers(endpoint: Endpoint, store: str) -> None:
    from pandaflow.testing import payloads

    deadly = pf.task(payloads.die)

    @pf.workflow
    def flow() -> Any:
        return deadly(pf.items(["fine", "fine", "die", "fine"]))

    executor = pf.executors.GlobusCompute(endpoint.id, user_endpoint_config={"engine": "htex"})
    run = flow().run(executor=executor, store=store)
    assert [job["index"] for job in run.jobs(status="failed")] == [2]
    assert two_stages(500).run(executor=executor, store=store).result() == 500 * 499


@pytest.mark.slow
@pytest.mark.skipif(bool(mpi_missing()), reason=mpi_missing())
def test_ranks_of_a_command(endpoint: Endpoint, store: str) -> None:
    ranks = pf.command("echo rank $PMI_RANK", name="ranks").options(ranks_per_node=2)

    @pf.workflow
    def flow() -> Any:
        return ranks(pf.items([1]))

    executor = pf.executors.GlobusCompute(endpoint.id, user_endpoint_config={"engine": "mpi"})
    run = flow().run(executor=executor, store=store)
    (said,) = run.result()
    assert sorted(said.split("\n")) == ["rank 0", "rank 1"]
