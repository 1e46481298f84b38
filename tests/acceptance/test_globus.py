"""Runs on a real Globus Compute endpoint, behind the stand-in of its service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("globus_compute_sdk", reason="no Globus Compute SDK: extra 'globus'")

import pandaflow as pf
from pandaflow.testing import payloads
from pandaflow.testing.globus.endpoint import Endpoint
from pandaflow.testing.globus.limits import Limits
from pandaflow.testing.globus.local import Globus
from tests.acceptance.globus_work import (
    PATIENCE,
    all_noted,
    block,
    double,
    failures,
    length,
    lines,
    noted,
    over_when_begun,
    site,
    through,
    total,
    two_stages,
    wait_for,
)
from tests.acceptance.webhdfs import WebHDFS, webhdfs

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def executor(endpoint: Endpoint, tmp_path: Path) -> Any:
    return site(endpoint.id, tmp_path / "data")


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
    globus.service.forget_functions()
    assert two_stages(60).run(executor=executor, store=store).result() == 60 * 59
    assert len(globus.service.log.of("register_function")) > known


def test_stages_on_globus_and_here(executor: Any, store: str, threads: Any) -> None:
    @pf.workflow
    def mixed() -> Any:
        first = double(pf.items(range(40)))
        return total.options(n_jobs=1, executor="here")(first)

    run = mixed().run(executor=executor, executors={"here": threads}, store=store)
    assert run.result() == 40 * 39


def test_stage_two_begins_here_before_stage_one_has_ended_there(
    executor: Any, store: str, threads: Any, tmp_path: Path
) -> None:
    @pf.workflow
    def mixed() -> Any:
        first = noted(pf.items(range(24)), str(tmp_path), 0.5)
        return over_when_begun.options(executor="here")(first, str(tmp_path))

    run = mixed().run(executor=executor, executors={"here": threads}, store=store)
    assert len(run.result()) == 24
    assert min(run.result()) < 24, "some began while others of stage one were still to end"


def test_an_sdk_executor_of_the_user_s_own_gets_its_results(
    endpoint: Endpoint, executor: Any, store: str
) -> None:
    """The SDK's executors share the group that was set last; ours keeps its own to itself."""
    from globus_compute_sdk import Executor

    assert two_stages(20).run(executor=executor, store=store).status == "done"
    with Executor(endpoint.id) as theirs:
        futures = [theirs.submit(payloads.double, x) for x in range(200)]
        assert [future.result(timeout=PATIENCE) for future in futures] == list(range(0, 400, 2))


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


def test_cancel_without_a_store_stops_payloads(
    endpoint: Endpoint, store: str, tmp_path: Path
) -> None:
    executor = pf.executors.GlobusCompute(endpoint.id, slots=2, poll_seconds=1.0)
    run = all_noted(2, str(tmp_path), 60.0).submit(executor=executor, store=store)
    wait_for(lambda: len(lines(tmp_path, "begun")) == 2)
    run.cancel()
    assert run.wait(30) == "aborted"
    assert lines(tmp_path, "over") == []


# --- limits -----------------------------------------------------------------------------


def test_large_values_travel_through_the_data_store(executor: Any, store: str) -> None:
    assert through(9_000_000).run(executor=executor, store=store).result() == [9_000_000]


@pytest.fixture
def remote() -> Iterator[WebHDFS]:
    """A store that is no folder."""
    with webhdfs() as server:
        yield server


def test_large_values_travel_through_an_object_store(
    globus: Globus, endpoint: Endpoint, store: str, remote: WebHDFS
) -> None:
    executor = site(endpoint.id, f"{remote.url}/data")
    assert through(9_000_000).run(executor=executor, store=store).result() == [9_000_000]
    assert max(request.size for request in globus.service.log.of("submit")) < 1_000_000
    assert remote.names("/data") == [], "nothing is left"


def test_results_in_an_object_store(
    globus: Globus,
    endpoint: Endpoint,
    store: str,
    remote: WebHDFS,
    threads: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @pf.workflow
    def flow() -> Any:
        made = pf.command("printf %IN > %OUT{x}; echo said", name="made")(pf.items(["a", "b"]))
        return two_stages(200), through(9_000_000), [made]

    monkeypatch.setenv("PANDAFLOW_RESULTS", f"{remote.url}/results")
    run = flow().run(executor=site(endpoint.id, f"{remote.url}/data"), store=store)
    sums, lengths, ((first, second),) = run.result()
    assert (sums, lengths) == flow().run(executor=threads, store=store).result()[:2]
    files = {path.removeprefix("/results/"): data for path, data in remote.files.items()}
    assert files[str(first).partition("/results/")[2]] == b"a"
    assert str(second).startswith(f"{remote.url}/results/{run.id}/files/")
    assert run.logs("made[1]") == "said\n"
    known = len(globus.service.log.of("register_function"))
    assert two_stages(300).run(executor=site(endpoint.id), store=store).result() == 300 * 299
    assert len(globus.service.log.of("register_function")) == known, "their ids are there, too"


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
