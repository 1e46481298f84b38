from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pandaflow.core.errors import WorkflowError
from pandaflow.server.gate import check_near
from pandaflow.server.problems import Refusal
from pandaflow.server.settings import ServerSettings

POLICY, CERT = Path("policy.toml"), Path("host.pem")


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"host": "::1"},
        {"policy": POLICY},
        {"host": "0.0.0.0", "policy": POLICY, "tls_cert": CERT},
        {"host": "0.0.0.0", "policy": POLICY, "behind_proxy": True},
    ],
)
def test_what_is_safe_is_taken(given: dict[str, Any]) -> None:
    ServerSettings("sqlite:///x.db", **given).check()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"host": "0.0.0.0"}, "--policy"),
        ({"host": "0.0.0.0", "tls_cert": CERT}, "--policy"),
        ({"behind_proxy": True}, "--policy"),
        ({"host": "10.0.0.1", "policy": POLICY}, "in clear"),
        ({"tls_key": CERT}, "--tls-cert"),
        ({"tls_cert": CERT, "client_ca": CERT}, "--policy"),
    ],
)
def test_what_is_not_is_refused(given: dict[str, Any], why: str) -> None:
    with pytest.raises(WorkflowError, match=why):
        ServerSettings("sqlite:///x.db", **given).check()


@pytest.mark.parametrize(
    ("headers", "taken"),
    [
        ({}, True),
        ({"host": "127.0.0.1:8790"}, True),
        ({"host": "localhost"}, True),
        ({"host": "[::1]:8790", "origin": "http://localhost:3000"}, True),
        ({"host": "evil.example:8790"}, False),
        ({"host": "127.0.0.1.evil.example"}, False),
        ({"host": "127.0.0.1", "origin": "https://evil.example"}, False),
        ({"host": "127.0.0.1", "origin": "null"}, False),
        ({"host": "[127.0.0.1"}, False),
    ],
)
def test_anonymous_servers_answer_no_web_pages(headers: dict[str, str], taken: bool) -> None:
    scope = {"headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    if taken:
        check_near(scope)
        return
    with pytest.raises(Refusal) as caught:
        check_near(scope)
    assert caught.value.status == 403
