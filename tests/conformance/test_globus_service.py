"""The stand-in of Globus Compute's web service: what the unmodified SDK and endpoint make of it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import inspect
import json
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

sdk = pytest.importorskip("globus_compute_sdk", reason="no Globus Compute SDK: extra 'globus'")

import globus_sdk  # noqa: E402
from globus_compute_sdk import Client, Executor, MPIFunction, ShellFunction  # noqa: E402
from globus_compute_sdk.errors import TaskExecutionFailed, TaskPending  # noqa: E402

from pandaflow.testing.daemons import wait_until  # noqa: E402
from pandaflow.testing.globus.broker import RabbitMQ  # noqa: E402
from pandaflow.testing.globus.endpoint import Endpoint, mpi_missing  # noqa: E402
from pandaflow.testing.globus.limits import Limits  # noqa: E402
from pandaflow.testing.globus.local import Globus  # noqa: E402
from pandaflow.testing.globus.payloads import add, fail, make_bytes, sleep  # noqa: E402
from pandaflow.testing.globus.tokens import IDENTITY  # noqa: E402

SECONDS = 60.0
#: Nothing is throttled by the SDK itself.
FAST = {"api_burst_limit": 8, "api_burst_window_s": 1}


@pytest.fixture
def endpoint(globus: Globus) -> Endpoint:
    return globus.endpoint()


@pytest.fixture
def victim(globus: Globus) -> Endpoint:
    """An endpoint for tests that kill: what is killed is in nobody's way."""
    return globus.endpoint("victim")


@pytest.fixture
def client(globus: Globus) -> Client:
    return Client()


@pytest.fixture
def executor(client: Client, endpoint: Endpoint) -> Iterator[Executor]:
    with Executor(endpoint_id=endpoint.id, client=client, **FAST) as executor:
        yield executor


def run_batch(client: Client, endpoint: Endpoint, function: str, *calls: tuple) -> dict:
    batch = client.create_batch()
    for args in calls:
        batch.add(function, args=args)
    return client.batch_run(endpoint.id, batch)


def collect(client: Client, tasks: list[str]) -> dict[str, dict]:
    wait_until(lambda: len(finished(client, tasks)) == len(tasks), "tasks to end", SECONDS)
    return finished(client, tasks)


def finished(client: Client, tasks: list[str]) -> dict[str, dict]:
    found = client.get_batch_result(tasks)
    return {task: state for task, state in found.items() if not state["pending"]}


class TestSignIn:
    def test_client_credentials_get_a_token_once(self, globus: Globus, client: Client):
        client.get_endpoints()
        globus.service.log.clear()
        for _ in range(3):
            client.get_endpoints()
        assert globus.service.log.counts() == {"endpoints": 3}

    def test_a_wrong_secret_is_refused(self, globus: Globus, monkeypatch, tmp_path):
        monkeypatch.setenv("GLOBUS_COMPUTE_CLIENT_SECRET", "wrong")
        monkeypatch.setenv("GLOBUS_COMPUTE_USER_DIR", str(tmp_path))
        with pytest.raises(globus_sdk.AuthAPIError) as caught:
            Client().get_endpoints()
        assert caught.value.http_status == 401

    def test_a_revoked_token_is_replaced(self, globus: Globus, client: Client):
        client.get_endpoints()
        globus.service.tokens.revoke_all()
        client.get_endpoints()
        statuses = [one.status for one in globus.service.log.of("endpoints")]
        assert statuses == [200, 401, 200]

    def test_an_authorizer_with_a_token_works(self, globus: Globus):
        token = globus.service.tokens.issue()
        client = Client(authorizer=globus_sdk.AccessTokenAuthorizer(token))
        client.get_endpoints()
        with pytest.raises(globus_sdk.GlobusAPIError, match="USER_UNAUTHENTICATED"):
            Client(authorizer=globus_sdk.AccessTokenAuthorizer("unknown")).get_endpoints()

    def test_userinfo_names_the_one_identity(self, globus: Globus, client: Client):
        auth = globus_sdk.AuthClient(app=client.app)
        auth.add_app_scope(["openid", "profile"])
        assert auth.userinfo()["sub"] == IDENTITY

    def test_another_process_is_redirected_by_the_environment(self, globus: Globus):
        code = "import globus_compute_sdk as g; print(g.Client().web_service_address)"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=globus.env,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.stdout.strip() == globus.service.url, done.stderr


class TestExecutor:
    def test_results_come_back(self, executor: Executor):
        futures = [executor.submit(add, number, 1) for number in range(50)]
        assert [future.result(SECONDS) for future in futures] == list(range(1, 51))

    def test_an_exception_is_a_text(self, executor: Executor):
        error = executor.submit(fail, "too bad").exception(SECONDS)
        assert isinstance(error, TaskExecutionFailed)
        assert "ValueError: too bad" in str(error)
        assert error.__cause__ is None

    def test_tasks_of_one_moment_are_one_submission(self, globus: Globus, executor: Executor):
        executor.register_function(add)
        futures = [executor.submit(add, number, 1) for number in range(100)]
        concurrent.futures.wait(futures, SECONDS)
        assert len(globus.service.log.of("submit", 200)) <= 10
        assert len({future.task_id for future in futures}) == 100

    def test_registered_functions_and_source_code(self, client: Client, executor: Executor):
        function = client.register_function(add)
        code = executor.register_source_code("def twice(x):\n    return 2 * x\n", "twice")
        sums = executor.submit_to_registered_function(function, (1,), {"right": 2})
        doubles = executor.submit_to_registered_function(code, (21,))
        assert (sums.result(SECONDS), doubles.result(SECONDS)) == (3, 42)
        assert client.get_function(function)["function_name"] == "add"

    def test_a_function_that_is_registered_twice_has_two_ids(self, client: Client):
        first, second = client.register_function(add), client.register_function(add)
        assert first != second
        client.delete_function(second)
        assert client.get_function(first)["function_uuid"] == first
        with pytest.raises(globus_sdk.GlobusAPIError, match="FUNCTION_NOT_FOUND"):
            client.get_function(second)

    def test_a_shell_function_reports_output_and_code(self, executor: Executor):
        result = executor.submit(ShellFunction("echo {what}; exit 3"), what="hello")
        shell = result.result(SECONDS)
        assert (shell.returncode, shell.stdout.strip()) == (3, "hello")

    def test_a_shell_function_beyond_its_walltime_returns_124(self, executor: Executor):
        shell = executor.submit(ShellFunction("sleep 60", walltime=0.5)).result(SECONDS)
        assert shell.returncode == 124

    def test_every_configuration_has_a_user_endpoint(
        self, globus: Globus, client: Client, endpoint: Endpoint
    ):
        config = {"engine": "threads", "workers": 3}
        with Executor(endpoint.id, client, user_endpoint_config=config, **FAST) as other:
            assert other.submit(add, 1, 1).result(SECONDS) == 2
        configs = [one.registered for one in globus.service.user_endpoints(endpoint.id)]
        assert configs.count(config) == 1

    def test_a_user_endpoint_that_cannot_start_fails_its_tasks(
        self, client: Client, endpoint: Endpoint
    ):
        config = {"engine": "NoSuchEngine"}
        with Executor(endpoint.id, client, user_endpoint_config=config, **FAST) as broken:
            error = broken.submit(add, 1, 1).exception(SECONDS)
        assert isinstance(error, TaskExecutionFailed)
        assert "NoSuchEngine" in str(error)

    def test_a_resource_specification_is_refused_without_mpi(
        self, client: Client, endpoint: Endpoint
    ):
        wanted = {"num_nodes": 2}
        with Executor(endpoint.id, client, resource_specification=wanted, **FAST) as executor:
            error = executor.submit(add, 1, 1).exception(SECONDS)
        assert isinstance(error, TaskExecutionFailed)
        assert re.search("resource_?spec", str(error), re.IGNORECASE)

    def test_a_cancelled_future_does_not_stop_its_task(self, globus: Globus, executor: Executor):
        future = executor.submit(sleep, 1.0)
        wait_until(lambda: future.task_id is not None, "the task to be accepted")
        assert future.cancel()
        task = globus.service.task(future.task_id)
        wait_until(lambda: not task.open, "the task to end")
        assert task.answer["status"] == "success"
        assert executor.submit(add, 1, 1).result(SECONDS) == 2

    @pytest.mark.slow
    def test_the_pilot_engine(self, client: Client, endpoint: Endpoint):
        with Executor(endpoint.id, client, user_endpoint_config={"engine": "htex"}, **FAST) as htex:
            futures = [htex.submit(add, number, 1) for number in range(20)]
            assert [future.result(90) for future in futures] == list(range(1, 21))

    @pytest.mark.slow
    @pytest.mark.skipif(bool(mpi_missing()), reason=mpi_missing())
    def test_the_mpi_engine(self, client: Client, endpoint: Endpoint):
        wanted = {"num_nodes": 1, "ranks_per_node": 2}
        with Executor(
            endpoint.id,
            client,
            user_endpoint_config={"engine": "mpi"},
            resource_specification=wanted,
            **FAST,
        ) as executor:
            done = executor.submit(MPIFunction("echo rank")).result(90)
        assert (done.returncode, done.stdout.split()) == (0, ["rank", "rank"])


class TestBatches:
    def test_300_tasks_in_one_request(self, globus: Globus, client: Client, endpoint: Endpoint):
        function = client.register_function(add)
        accepted = run_batch(client, endpoint, function, *((n, 1) for n in range(300)))
        tasks = accepted["tasks"][function]
        found = collect(client, tasks)
        assert [found[task]["result"] for task in tasks] == list(range(1, 301))
        assert len(globus.service.log.of("submit")) == 1

    def test_failed_tasks_are_missing_in_a_batch_result(self, client: Client, endpoint: Endpoint):
        function = client.register_function(fail)
        (task,) = run_batch(client, endpoint, function, ("no",))["tasks"][function]

        def pending():
            try:
                client.get_result(task)
            except TaskPending:
                return True
            except TaskExecutionFailed as error:
                assert "ValueError: no" in str(error)
                return False
            raise AssertionError("a failed task has a result")

        wait_until(lambda: not pending(), "the task to fail", SECONDS)
        assert client.get_batch_result([task]) == {}

    def test_a_new_executor_reloads_a_task_group(self, client: Client, endpoint: Endpoint):
        group = str(uuid.uuid4())
        with Executor(endpoint.id, client, task_group_id=group, **FAST) as first:
            tasks = [first.submit(add, n, 1) for n in range(5)] + [first.submit(sleep, 1.5)]
            wait_until(lambda: all(one.task_id for one in tasks), "tasks to be accepted")
            ids = {one.task_id for one in tasks}
            first.shutdown(wait=False)
        with Executor(endpoint.id, client, **FAST) as second:
            reloaded = list(second.reload_tasks(group))
            assert {one.task_id for one in reloaded} <= ids
            assert all(one.result(SECONDS) is not None for one in reloaded)

    def test_another_process_collects_what_finished(
        self, globus: Globus, client: Client, endpoint: Endpoint
    ):
        group = str(uuid.uuid4())
        with Executor(endpoint.id, client, task_group_id=group, **FAST) as first:
            done = [first.submit(add, number, 1) for number in range(4)]
            concurrent.futures.wait(done, SECONDS)
        code = (
            "import sys; from globus_compute_sdk import Executor\n"
            "with Executor(sys.argv[1]) as e:\n"
            "    print(sorted(f.result(30) for f in e.reload_tasks(sys.argv[2])))"
        )
        argv = [sys.executable, "-c", code, endpoint.id, group]
        ended = subprocess.run(
            argv, env=globus.env, capture_output=True, text=True, timeout=SECONDS
        )
        assert ended.stdout.strip() == "[1, 2, 3, 4]", ended.stderr

    def test_all_or_nothing(self, globus: Globus, client: Client, endpoint: Endpoint):
        batch = client.create_batch()
        batch.add(client.register_function(add), args=(1, 1))
        batch.add(str(uuid.uuid4()), args=(1, 1))
        before = len(globus.service.tasks())
        with pytest.raises(globus_sdk.GlobusAPIError, match="FUNCTION_NOT_FOUND"):
            client.batch_run(endpoint.id, batch)
        assert len(globus.service.tasks()) == before


class TestLimits:
    def test_a_submission_beyond_the_limit_is_refused(
        self, globus: Globus, client: Client, endpoint: Endpoint
    ):
        function = client.register_function(add)
        with pytest.raises(globus_sdk.GlobusAPIError) as caught:
            run_batch(client, endpoint, function, (b"", bytes(4_000_000)))
        assert (caught.value.http_status, caught.value.code) == (413, "PAYLOAD_TOO_LARGE")
        (seen,) = globus.service.log.of("submit")
        assert seen.size > globus.service.limits.submission_bytes

    def test_an_executor_stops_after_a_refused_submission(
        self, globus: Globus, client: Client, endpoint: Endpoint
    ):
        globus.service.limits = Limits(submission_bytes=2000)
        executor = Executor(endpoint.id, client, **FAST)
        error = executor.submit(add, b"", bytes(4000)).exception(SECONDS)
        assert isinstance(error, globus_sdk.GlobusAPIError)
        wait_until(lambda: executor._stopped, "the executor to stop")
        with pytest.raises(RuntimeError, match="shutdown"):
            executor.submit(add, 1, 1)

    def test_an_executor_does_not_split_what_is_too_large_together(
        self, globus: Globus, client: Client, endpoint: Endpoint
    ):
        executor = Executor(endpoint.id, client, **FAST)
        executor.register_function(add)
        futures = [executor.submit(add, b"", bytes(100_000)) for _ in range(60)]
        # A refused request ends the executor; what it had not sent yet is cancelled.
        concurrent.futures.wait(futures, SECONDS)
        errors = [future.exception() for future in futures if not future.cancelled()]
        assert {getattr(error, "http_status", 0) for error in errors} == {413}
        assert globus.service.log.of("submit", 200) == []

    def test_too_many_submissions_wait_for_the_window(
        self, globus: Globus, client: Client, endpoint: Endpoint
    ):
        globus.service.limits = replace(Limits(), requests=2, window_seconds=1.5)
        function = client.register_function(add)
        for _ in range(3):
            run_batch(client, endpoint, function, (1, 1))
        statuses = [one.status for one in globus.service.log.of("submit")]
        assert statuses.count(200) == 3
        assert 429 in statuses

    def test_a_result_above_ten_mebibytes_fails(self, executor: Executor):
        error = executor.submit(make_bytes, 8_000_000).exception(SECONDS)
        assert isinstance(error, TaskExecutionFailed)
        assert "MaxResultSizeExceeded" in str(error)

    def test_a_result_just_below_it_arrives(self, executor: Executor):
        assert len(executor.submit(make_bytes, 7_500_000).result(SECONDS)) == 7_500_000

    def test_the_service_has_a_limit_for_results_too(self, globus: Globus, executor: Executor):
        globus.service.limits = Limits(result_bytes=1000)
        error = executor.submit(make_bytes, 2000).exception(SECONDS)
        assert isinstance(error, TaskExecutionFailed)


class TestFaults:
    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_the_sdk_asks_again(self, globus: Globus, client: Client, status: int):
        globus.service.faults.answer(status, "endpoints", retry_after=1)
        client.get_endpoints()
        statuses = [one.status for one in globus.service.log.of("endpoints")]
        assert statuses == [status, 200]

    @pytest.mark.slow
    def test_an_executor_stops_when_retries_do_not_help(
        self, globus: Globus, client: Client, endpoint: Endpoint
    ):
        function = client.register_function(add)
        globus.service.faults.answer(503, "submit", times=6, retry_after=1)
        executor = Executor(endpoint.id, client, **FAST)
        future = executor.submit_to_registered_function(function, (1, 1))
        error = future.exception(SECONDS)
        assert (type(error).__name__, error.http_status) == ("ComputeAPIError", 503)
        assert len(globus.service.log.of("submit", 503)) == 6
        wait_until(lambda: executor._stopped, "the executor to stop")

    def test_a_dropped_answer_doubles_a_submission(
        self, globus: Globus, client: Client, endpoint: Endpoint
    ):
        function = client.register_function(add)
        group = uuid.uuid4()
        batch = client.create_batch(task_group_id=group)
        batch.add(function, args=(1, 1))
        globus.service.faults.drop("submit")
        accepted = client.batch_run(endpoint.id, batch)["tasks"][function]
        assert [one.status for one in globus.service.log.of("submit")] == [0, 200]
        both = [task.id for task in globus.service.task_group(str(group))]
        assert len(both) == 2
        assert accepted == both[1:]
        assert {one["result"] for one in collect(client, both).values()} == {2}

    def test_a_slow_answer_is_waited_for(self, globus: Globus, client: Client):
        globus.service.faults.delay(0.3, "version")
        client.version_check()
        assert globus.service.faults.left == 0

    def test_results_survive_a_cut_of_all_broker_connections(
        self, rabbitmq: RabbitMQ, executor: Executor
    ):
        assert executor.submit(add, 1, 1).result(SECONDS) == 2
        late = executor.submit(sleep, 2.0)
        wait_until(lambda: late.task_id is not None, "the task to be accepted")
        rabbitmq.cut_connections()
        assert late.result(SECONDS) == 2.0

    def test_the_web_service_may_be_away_while_tasks_run(self, globus: Globus, executor: Executor):
        executor.submit(add, 1, 1).result(SECONDS)
        late = executor.submit(sleep, 1.0)
        wait_until(lambda: late.task_id is not None, "the task to be accepted")
        with globus.service.stopped():
            assert late.result(SECONDS) == 1.0
        assert executor.submit(add, 2, 2).result(SECONDS) == 4

    @pytest.mark.slow
    def test_a_restarted_broker_keeps_what_waits(
        self, rabbitmq: RabbitMQ, client: Client, endpoint: Endpoint
    ):
        function = client.register_function(sleep)
        tasks = run_batch(client, endpoint, function, *[(3.0,)] * 6)["tasks"][function]
        rabbitmq.restart()
        assert {one["result"] for one in collect(client, tasks).values()} == {3.0}


@pytest.mark.slow
def test_nothing_is_left_of_a_broker_whose_owner_was_killed(rabbitmq: RabbitMQ):
    code = (
        "import time; from pandaflow.testing.globus.broker import RabbitMQ\n"
        "with RabbitMQ() as r: print(r.folder, flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with owner:
        folder = owner.stdout.readline().strip()
        assert {"beam.smp", "epmd"} <= processes_of(folder)
        owner.kill()
    wait_until(lambda: not processes_of(folder), "the broker's processes to end")
    wait_until(lambda: not Path(folder).exists(), "its folder to be removed")


def processes_of(home: str) -> set[str]:
    """Names of the processes with this home folder."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOME") == home:
                found.add(process.name())
    return found


class TestEndpoints:
    def test_status_and_description(self, globus: Globus, client: Client, endpoint: Endpoint):
        assert client.get_endpoint_status(endpoint.id)["status"] == "online"
        assert client.get_endpoint_metadata(endpoint.id)["name"] == "main"
        assert endpoint.id in [one["uuid"] for one in client.get_endpoints()]
        assert client.get_allowed_functions(endpoint.id)["restricted"] is False

    def test_a_status_by_force(self, globus: Globus, client: Client, endpoint: Endpoint):
        globus.service.force_offline(endpoint.id)
        assert client.get_endpoint_status(endpoint.id)["status"] == "offline"
        globus.service.force_offline(endpoint.id, False)
        assert client.get_endpoint_status(endpoint.id)["status"] == "online"

    def test_an_unknown_endpoint(self, client: Client):
        with pytest.raises(globus_sdk.GlobusAPIError) as caught:
            client.get_endpoint_status(uuid.uuid4())
        assert (caught.value.http_status, caught.value.code) == (404, "ENDPOINT_NOT_FOUND")

    @pytest.mark.slow
    def test_a_killed_endpoint_goes_offline_and_tasks_wait_for_it(
        self, globus: Globus, client: Client, victim: Endpoint
    ):
        victim.kill()
        wait_until(lambda: not globus.service.online(victim.id), "the endpoint to be offline")
        config = {"engine": "threads", "workers": 2}
        with Executor(victim.id, client, user_endpoint_config=config, **FAST) as executor:
            waiting = executor.submit(add, 20, 22)
            wait_until(lambda: waiting.task_id is not None, "the task to be accepted")
            assert not waiting.done()
            identifier = victim.id
            victim.restart()
            assert victim.id == identifier
            assert waiting.result(SECONDS) == 42

    @pytest.mark.slow
    def test_an_endpoint_that_is_restarted_at_once_takes_tasks(
        self, client: Client, victim: Endpoint
    ):
        config = {"engine": "threads", "workers": 2, "round": "restart"}
        executor = Executor(victim.id, client, user_endpoint_config=config, **FAST)
        victim.restart()
        assert executor.submit(add, 20, 22).result(SECONDS) == 42
        executor.shutdown(wait=False)

    @pytest.mark.slow
    def test_a_killed_user_endpoint_loses_what_runs(
        self, globus: Globus, client: Client, victim: Endpoint
    ):
        config = {"engine": "threads", "workers": 1}
        executor = Executor(victim.id, client, user_endpoint_config=config, **FAST)
        assert executor.submit(add, 1, 1).result(SECONDS) == 2
        lost = executor.submit(sleep, 3.0)
        time.sleep(1.0)  # the endpoint acknowledges it when its engine has it
        assert victim.kill_user_endpoints() >= 1
        # Until the old pid file is stale, new tasks fail.
        errors: list[str] = []
        wait_until(
            lambda: works_again(executor, errors),
            lambda: f"a new user endpoint: {errors}\n{victim.log()}",
        )
        assert any("Another instance" in text for text in errors)
        # Nobody ever says so; and an executor that waits in its shutdown would wait for ever.
        assert globus.service.task(lost.task_id).open or lost.exception() is not None
        executor.shutdown(wait=False)


def works_again(executor: Executor, errors: list[str]) -> bool:
    try:
        error = executor.submit(add, 1, 1).exception(3.0)
    except TimeoutError:
        # The endpoint had not noticed yet that its child is dead; the task waits for the next.
        return False
    if error is not None:
        errors.append(str(error))
        time.sleep(1.0)
    return error is None


def test_the_sdk_uses_no_route_that_is_not_served(globus: Globus):
    """Ask the stand-in for every path in the source of the SDK's web clients."""
    source = inspect.getsource(globus_sdk.services.compute.client)
    pattern = r'self\.(get|post|put|delete)\(\s*f?"(/v[23]/[^"]*)"'
    routes = {
        (m.upper(), re.sub(r"\{\w+\}", str(uuid.UUID(int=0)), p))
        for m, p in re.findall(pattern, source)
    }
    assert len(routes) >= 15
    token = globus.service.tokens.issue()
    unserved = {route for route in routes if unknown(globus, token, *route)}
    # Version 2 of these is older than the endpoint and the SDK that are supported.
    assert unserved == {("POST", "/v2/submit")}


def unknown(globus: Globus, token: str, method: str, path: str) -> bool:
    import requests

    headers = {"Authorization": f"Bearer {token}"}
    answer = requests.request(method, globus.service.url + path, headers=headers, timeout=SECONDS)
    return (
        json.loads(answer.text).get("code") == "NOT_FOUND" if answer.status_code == 404 else False
    )
