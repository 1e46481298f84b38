"""Requests made up from the OpenAPI document of a running server, by schemathesis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="no FastAPI: extra 'server'")
schemathesis = pytest.importorskip("schemathesis")

from fastapi import APIRouter  # noqa: E402
from fastapi.responses import JSONResponse, Response  # noqa: E402
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from schemathesis import checks  # noqa: E402
from schemathesis.core.result import Ok  # noqa: E402

import pandaflow as pf  # noqa: E402
from pandaflow.grid.places import QueueBody  # noqa: E402
from pandaflow.grid.pool import Pool  # noqa: E402
from pandaflow.grid.runs.store import ServerStore  # noqa: E402
from pandaflow.server.app import make_app  # noqa: E402
from pandaflow.server.desk import RunDesk  # noqa: E402
from pandaflow.server.service import Service  # noqa: E402
from pandaflow.server.settings import ServerSettings  # noqa: E402
from pandaflow.store.database import Database  # noqa: E402
from pandaflow.store.sql import SqlStore  # noqa: E402
from pandaflow.testing.grid import GridServer  # noqa: E402

checks.load_all_checks()
CHECKS = (
    checks.not_a_server_error,
    checks.CHECKS.get_one("status_code_conformance"),
    checks.CHECKS.get_one("content_type_conformance"),
    checks.CHECKS.get_one("response_schema_conformance"),
)
#: What is there, by the names of parameters.
KNOWN: dict[str, object] = {
    "run": "run",
    "task": "work",
    "index": 1,
    "bundle": 1,
    "number": 1,
    "queue": "queue",
}
QUICK = settings(
    max_examples=8,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pf.task
def work(x):
    print(x)
    return x


@pytest.fixture(scope="module")
def server() -> Iterator[GridServer]:
    made = pf.workflow(lambda: work(pf.items([1, 2])), name="works")()
    with GridServer(options=["--rate", "0"]) as running:
        with running.client() as client:
            client.open_run("run")
            client.put_queue("queue", QueueBody())
        ServerStore(running.url).leave(made._spec, made._trace.blobs, "run")
        driving = pf.resume("run", store=running.store, executor="threads")
        assert driving.wait(60) == "done"
        yield running


@pytest.mark.slow
def test_any_request_that_the_document_allows_is_answered_as_it_says(server: GridServer) -> None:
    api = schemathesis.openapi.from_url(f"{server.url}/api/v1/openapi.json")
    seen: Counter[tuple[str, int]] = Counter()
    asked = set()
    for operation in operations(api):
        if operation.path.endswith("/events"):  # a stream: ends when it is told to
            continue
        for known in ({}, KNOWN):
            attempt(operation, known, seen)
        asked.add((operation.method, operation.path))
    assert len(asked) > 40
    of_runs = {path for _, path in asked if path.startswith("/api/v1/runs/{run}")}
    met = {path for path, status in seen if status < 300}
    assert of_runs - met <= {"/api/v1/runs/{run}/files/{name}", "/api/v1/runs/{run}/blobs/{name}"}
    with server.client() as client:
        assert client.health()["status"] == "ok"


def test_a_route_that_breaks_its_promise_is_found(tmp_path: Path) -> None:
    app = broken_app(tmp_path)
    api = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app)
    found = {}
    for operation in operations(api):
        if operation.path.startswith("/api/v1/broken"):
            with pytest.raises(BaseException) as caught:
                attempt(operation, {}, Counter())
            found[operation.path.rpartition("/")[2]] = _words(caught.value)
    assert "418" in found.pop("status")
    assert "schema" in found.pop("shape")
    assert "Server error" in found.pop("crash")
    assert not found


def _words(error: BaseException) -> str:
    """Return what an error, or a group of them, says."""
    inner = getattr(error, "exceptions", ())
    return " ".join([str(error), *map(_words, inner)])


def broken_app(folder: Path) -> Any:
    """Return the server's own application with three more routes, each wrong in its own way."""
    url = f"sqlite:///{folder}/pool.db"
    pool, settings = Pool(Database(url, 5.0)), ServerSettings(url)
    desk = RunDesk(SqlStore(url), pool, settings.limits)
    front = make_app(Service(pool, desk, settings))
    router = APIRouter(prefix="/api/v1/broken", tags=["broken"])

    @router.get("/status")
    async def status(n: int = 0) -> Response:
        return JSONResponse({}, 418)

    @router.get("/shape", response_model=dict[str, int])
    async def shape(n: int = 0) -> Response:
        return JSONResponse(["neither", "nor"])

    @router.get("/crash")
    async def crash(n: int = 0) -> dict[str, int]:
        raise ZeroDivisionError(n)

    front.app.include_router(router)
    return front


def operations(api: Any) -> Iterator[Any]:
    for found in api.get_all_operations():
        assert isinstance(found, Ok)
        yield found.ok()


def attempt(operation: Any, known: dict[str, object], seen: Counter[tuple[str, int]]) -> None:
    """Ask what the document allows; ``known``: parameters that name what is there."""

    @QUICK
    @given(operation.as_strategy())
    def ask(case: Any) -> None:
        for parameters in (case.path_parameters, case.query):
            if isinstance(parameters, dict):
                parameters.update({k: v for k, v in known.items() if k in parameters})
        if isinstance(case.query, dict) and "wait" in case.query:
            case.query["wait"] = 0
        if isinstance(case.body, dict) and "wait" in case.body:
            case.body["wait"] = 0
        answer = case.call(timeout=30)
        seen[operation.path, answer.status_code] += 1
        case.validate_response(answer, checks=list(CHECKS))

    ask()
