from __future__ import annotations

import json
import logging

import pytest
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from pandaflow.core.errors import StoreError, StoreUnavailable, WorkflowError
from pandaflow.grid.auth.errors import IssuerUnavailable, Unauthenticated
from pandaflow.grid.identity import Forbidden
from pandaflow.grid.messages import PilotUpdate
from pandaflow.grid.pool import NotThere
from pandaflow.server.problems import Refusal, answer_to


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Refusal(413, "too much"), 413),
        (Forbidden("no"), 403),
        (NotThere("no run"), 404),
        (WorkflowError("a site has cores"), 422),
        (Unauthenticated("sign in", "invalid_token"), 401),
        (IssuerUnavailable("it is away"), 503),
        (StoreUnavailable("postgresql://host/db restarts"), 503),
        (OverflowError("int too large"), 422),
        (HTTPException(405, headers={"Allow": "GET"}), 405),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_have_their_status(error: Exception, status: int) -> None:
    answer = answer_to(error, "/here")
    told = json.loads(bytes(answer.body))
    assert answer.status_code == told["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert told["title"] and told["detail"] and told["instance"] == "/here"


def test_headers_say_what_to_do() -> None:
    assert answer_to(Refusal(429, "slow", retry=0.2)).headers["retry-after"] == "1"
    assert answer_to(StoreUnavailable("x")).headers["retry-after"]
    challenge = answer_to(Unauthenticated("sign in", "invalid_token")).headers["www-authenticate"]
    assert challenge.startswith("Bearer ")
    assert answer_to(HTTPException(405, headers={"Allow": "GET"})).headers["allow"] == "GET"


def test_a_bad_body_is_told_by_its_place_and_never_by_what_was_there() -> None:
    body = '{"pilot": "p", "reports": [{"id": 1, "lease": "SECRET\\u0000", "seq": 0}]}'
    with pytest.raises(ValidationError) as caught:
        PilotUpdate.model_validate_json(body)
    answer = answer_to(caught.value)
    told = json.loads(bytes(answer.body))
    assert answer.status_code == 422
    assert "reports/0/seq" in {error["place"] for error in told["errors"]}
    assert b"SECRET" not in bytes(answer.body)


def test_where_the_database_is_stays_a_secret() -> None:
    answer = answer_to(StoreUnavailable("the store postgresql://panda@db7/flow was shut down"))
    assert b"db7" not in bytes(answer.body)


@pytest.mark.parametrize("error", [KeyError("hunter2"), StoreError("bad rule at db7")])
def test_what_nobody_foresaw_is_logged_and_not_told(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "pandaflow"):
        answer = answer_to(error)
    told = json.loads(bytes(answer.body))
    assert answer.status_code == 500
    assert "hunter2" not in str(told) and "db7" not in str(told)
    assert told["reference"] in caplog.text
