"""What users may say, and what they are told."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from pandaflow.core.brokerage import Site
from pandaflow.core.errors import WorkflowError
from pandaflow.executors import GlobusCompute
from pandaflow.executors.globus.settings import Endpoint

ONE, TWO = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))


def test_an_endpoint_by_its_id() -> None:
    (endpoint,) = GlobusCompute(ONE, slots=8, user_endpoint_config={"q": "x"}).settings.endpoints
    assert (endpoint.id, endpoint.name, endpoint.slots) == (ONE, ONE, 8)
    assert endpoint.config == {"q": "x"}
    assert endpoint.place.nodes == 1, "who does not say has one node, or jobs would wait for ever"


def test_endpoints_of_all_kinds() -> None:
    site = Site("polaris", queue=TWO, nodes=10, cores=64)
    given = [uuid.UUID(ONE), site, Endpoint(ONE, config={"a": 1}, site=Site("other"))]
    executor = GlobusCompute(endpoints=given, user_endpoint_config={"b": 2})
    assert [e.name for e in executor.settings.endpoints] == [ONE, "polaris", "other"]
    assert [e.config for e in executor.settings.endpoints] == [{"b": 2}, {"b": 2}, {"a": 1}]
    assert executor.settings.endpoints[1].slots == 640
    assert repr(executor) == f"GlobusCompute({ONE}, polaris, other)"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "give an endpoint's id"),
        ({"endpoint_id": "no"}, "'no' is no UUID"),
        ({"endpoint_id": ONE, "slots": 0}, "slots=0"),
        ({"endpoint_id": ONE, "slot": 2}, "unknown setting 'slot'"),
        ({"endpoint_id": ONE, "poll_seconds": -1}, "poll_seconds=-1"),
        ({"endpoint_id": ONE, "task_timeout": float("inf")}, "task_timeout=inf"),
        ({"endpoint_id": ONE, "request_bytes": 10}, "request_bytes=10"),
        ({"endpoint_id": ONE, "data": "a\nb"}, "data="),
        ({"endpoint_id": ONE, "user_endpoint_config": {"a": object()}}, "JSON"),
        ({"endpoint_id": ONE, "user_endpoint_config": "x"}, "give a dict"),
        ({"endpoints": [ONE, ONE]}, "is there twice"),
        ({"endpoints": [Site("x")]}, "id as its queue"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(WorkflowError) as caught:
        GlobusCompute(**arguments)
    assert told in str(caught.value)


def test_the_sdk_is_imported_when_a_session_opens_and_not_before() -> None:
    import subprocess
    import sys

    code = f"import sys; import pandaflow as pf; pf.executors.GlobusCompute({ONE!r}); "
    code += "print([m for m in sys.modules if m.startswith('globus')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
