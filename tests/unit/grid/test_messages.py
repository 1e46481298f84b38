"""What bodies may hold: numbers that databases take, names that are steps of addresses, bytes."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from pandaflow.grid.messages import (
    Acquire,
    Bundle,
    Cancellation,
    CommandJob,
    JobResult,
    Message,
    Needs,
    OutputFile,
    PilotUpdate,
    Report,
    Submission,
    TokenRequest,
)

REPORT = {"id": 1, "lease": "w", "seq": 1, "state": "running"}
BUNDLE = {"bundle": 1, "task": "t", "jobs": [0], "kind": "command"}
RESULT = {"position": 0, "code": 0, "began": 1.0, "ended": 2.0}
TROUBLE = {"source": "pilot", "code": 1, "kind": "site", "message": "m"}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Report, {**REPORT, "id": 2**63}),
        (Report, {**REPORT, "id": -1}),
        (Report, {**REPORT, "seq": 2**31}),
        (Report, {**REPORT, "error": {**TROUBLE, "code": 2**31}}),
        (Bundle, {**BUNDLE, "bundle": 2**31}),
        (Bundle, {**BUNDLE, "attempt": 2**31}),
        (Bundle, {**BUNDLE, "jobs": [2**31]}),
        (Bundle, {**BUNDLE, "jobs": [-1]}),
        (JobResult, {**RESULT, "position": 2**31}),
        (JobResult, {**RESULT, "code": 2**31}),
        (JobResult, {**RESULT, "printed": 2**63}),
        (Needs, {"memory": 2**63}),
        (Needs, {"disk": 2**63}),
        (Acquire, {"pilot": "p", "queue": "q", "memory": 2**63}),
        (Cancellation, {"bundles": [2**31]}),
        (OutputFile, {"name": "f", "size": 2**63, "checksum": "adler32:00000000"}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_numbers_that_no_database_keeps_are_refused(
    kind: type[Message], fields: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(fields)


def numbers(kind: type[BaseModel]) -> list[str]:
    """Return the fields of a message, and of what it holds, whose numbers have no upper bound."""
    schema = kind.model_json_schema()
    found = []
    for name, table in {kind.__name__: schema, **schema.get("$defs", {})}.items():
        for field, told in table.get("properties", {}).items():
            for each in [told, *told.get("anyOf", ()), told.get("items", {})]:
                if each.get("type") == "integer" and not {"maximum", "exclusiveMaximum"} & set(
                    each
                ):
                    found.append(f"{name}.{field}")
    return found


@pytest.mark.parametrize("kind", [Acquire, Cancellation, PilotUpdate, Submission])
def test_every_whole_number_has_a_bound(kind: type[BaseModel]) -> None:
    assert numbers(kind) == []


@pytest.mark.parametrize("name", ["a/b", "/", ".", "..", "", "a\nb", "x" * 201])
@pytest.mark.parametrize("kind", [Acquire, TokenRequest])
@pytest.mark.parametrize("field", ["pilot", "queue"])
def test_names_are_steps_of_addresses(kind: type[Message], field: str, name: str) -> None:
    fields = {"pilot": "p", "queue": "q"}
    kind.model_validate(fields)
    with pytest.raises(ValidationError):
        kind.model_validate({**fields, field: name})


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/passwd",
        "~/x",
        "a/../../x",
        "a\\..\\x",
        "..",
        "a\x00b",
        "a\nb",
        "",
        "x" * 1_001,
    ],
)
@pytest.mark.parametrize("where", ["input", "output", "result"])
def test_paths_stay_in_the_work_directory(where: str, name: str) -> None:
    command = {"position": 0, "line": "true"}
    asked: dict[str, tuple[type[Message], Any]] = {
        "input": (CommandJob, lambda n: {**command, "inputs": [{"name": n, "replicas": ["/r"]}]}),
        "output": (CommandJob, lambda n: {**command, "outputs": [n]}),
        "result": (OutputFile, lambda n: {"name": n, "size": 1, "checksum": "adler32:00000000"}),
    }
    kind, body = asked[where]
    kind.model_validate(body("deep/down/file name.txt"))
    with pytest.raises(ValidationError):
        kind.model_validate(body(name))


def test_the_document_says_how_bytes_travel() -> None:
    """By a pattern that what is written fits, and by the words of JSON Schema."""
    schema = PilotUpdate.model_json_schema()["$defs"]
    places = [
        schema["Report"]["properties"]["reply"]["anyOf"][0],
        schema["JobResult"]["properties"]["out"],
        schema["OutputFile"]["properties"]["data"]["anyOf"][0],
        Bundle.model_json_schema()["properties"]["work"]["anyOf"][0],
    ]
    for place in places:
        assert (place["type"], place["contentEncoding"]) == ("string", "base64url")
    data = bytes(range(256)) + b"\xff\xfe"
    told = json.loads(Bundle.model_validate({**BUNDLE, "work": data}).model_dump_json())
    assert re.fullmatch(places[-1]["pattern"], told["work"])
    assert base64.urlsafe_b64decode(told["work"]) == data
