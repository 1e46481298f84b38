"""Requests made up from the OpenAPI document of a running server, by schemathesis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi", reason="no FastAPI: extra 'server'")
schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from schemathesis import checks  # noqa: E402
from schemathesis.core.result import Ok  # noqa: E402

from pandaflow.grid.places import QueueBody  # noqa: E402
from pandaflow.testing.grid import GridServer  # noqa: E402

checks.load_all_checks()
CHECKS = (
    checks.not_a_server_error,
    checks.CHECKS.get_one("status_code_conformance"),
    checks.CHECKS.get_one("content_type_conformance"),
    checks.CHECKS.get_one("response_schema_conformance"),
)
QUICK = settings(
    max_examples=8,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def server() -> Iterator[GridServer]:
    with GridServer(options=["--rate", "0"]) as running:
        with running.client() as client:
            client.open_run("run")
            client.put_queue("queue", QueueBody())
        yield running


@pytest.mark.slow
def test_any_request_that_the_document_allows_is_answered_as_it_says(server: GridServer) -> None:
    api = schemathesis.openapi.from_url(f"{server.url}/api/v1/openapi.json")
    asked = set()
    for found in api.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        if operation.path.endswith("/events"):  # a stream: ends when it is told to
            continue
        _try(operation)
        asked.add((operation.method, operation.path))
    assert len(asked) > 20
    with server.client() as client:
        assert client.health()["status"] == "ok"


def _try(operation) -> None:
    @QUICK
    @given(operation.as_strategy())
    def ask(case) -> None:
        if isinstance(case.query, dict) and "wait" in case.query:
            case.query["wait"] = 0
        if isinstance(case.body, dict) and "wait" in case.body:
            case.body["wait"] = 0
        case.validate_response(case.call(timeout=30), checks=list(CHECKS))

    ask()
