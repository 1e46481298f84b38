"""Functions that are registered, once."""

from __future__ import annotations

import base64
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from pandaflow.core.template import Payload, Slot
from pandaflow.data.results import ResultStore
from pandaflow.executors.globus import functions
from pandaflow.executors.globus.functions import Function, Registry
from pandaflow.executors.remote import outcome, wire
from pandaflow.testing import payloads


class Service:
    def __init__(self) -> None:
        self.registered: list[Function] = []

    def __call__(self, function: Function) -> str:
        self.registered.append(function)
        return f"id-{len(self.registered)}"


def test_ids_are_kept_for_the_next_run(tmp_path: Path) -> None:
    service = Service()
    one, two = functions.bundle_function(b"1"), functions.bundle_function(b"2")
    first = Registry("https://here", service, str(tmp_path))
    assert [first.id_of(one), first.id_of(two), first.id_of(one)] == ["id-1", "id-2", "id-1"]
    later = Registry("https://here", service, str(tmp_path))
    assert later.id_of(one) == "id-1"
    assert Registry("https://there", service, str(tmp_path)).id_of(one) == "id-3"
    later.forget(one)
    assert later.id_of(one) == "id-4"
    assert Registry("https://here", service, str(tmp_path)).id_of(two) == "id-2"


def test_a_damaged_or_missing_folder_is_no_failure(tmp_path: Path) -> None:
    service = Service()
    (tmp_path / "globus-functions.json").write_text("{")
    assert Registry("x", service, str(tmp_path)).id_of(functions.probe_function()) == "id-1"
    assert Registry("x", service, str(tmp_path / "no")).id_of(functions.probe_function()) == "id-2"
    assert Registry("x", service, None).id_of(functions.probe_function()) == "id-3"


def test_ids_are_kept_in_an_object_store_as_well() -> None:
    service, root = Service(), f"memory://{uuid.uuid4()}/results"
    folder = functions.beside(ResultStore(f"{root}/run-1"))
    assert folder == root
    one = functions.bundle_function(b"1")
    assert Registry("x", service, folder).id_of(one) == "id-1"
    assert Registry("x", service, folder).id_of(one) == "id-1"


@pytest.mark.parametrize(
    ("run", "folder"),
    [("/a/b/run-1", "/a/b"), ("s3://bucket/run", "s3://bucket"), ("s3://run", None)],
)
def test_ids_lie_beside_the_results_of_runs(run: str, folder: str | None) -> None:
    assert functions.beside(ResultStore(run)) == folder


def test_byte_code_is_told_from_names() -> None:
    named = Payload(payloads.double, (Slot(0), "CodeTypes", b"\x80 no pickle"))
    assert not functions.has_byte_code(cloudpickle.dumps(named))
    for function in (lambda x: x, partial(lambda x, y: x, 1)):
        coded = cloudpickle.dumps(Payload(function, (Slot(0),)))
        assert functions.has_byte_code(coded)
        assert functions.has_byte_code(cloudpickle.dumps({0: coded}))


def test_keys_tell_functions_apart() -> None:
    made = [
        functions.bundle_function(None),
        functions.bundle_function(b""),
        functions.bundle_function(b"x"),
        functions.shell_function(None),
        functions.shell_function(5.0),
        functions.probe_function(),
    ]
    assert len({function.key for function in made}) == len(made)


def called(function: Function, *args: Any) -> Any:
    """Do what an endpoint does with a source."""
    namespace: dict[str, Any] = {}
    exec(function.source, namespace)
    return namespace[function.name](*args)


def test_the_probe_tells_versions() -> None:
    import sys

    told = called(functions.probe_function())
    assert told["python"] == list(sys.version_info[:3])
    assert told["pandaflow"] == functions.__version__


def test_the_registered_source_runs_a_bundle_with_its_code(make: Any) -> None:
    given = make(1, payloads.double, [21])
    function = functions.bundle_function(given.code)
    assert base64.b85encode(given.code).decode() in function.source
    work = wire.pack(wire.Work(given.spec, limit=10**7))
    reply, _ = wire.reply_of(called(function, work), "it", "")
    assert isinstance(reply, wire.Reply)
    assert reply.messages[-1]["op"] == "ended"


def test_what_failed_results_mean() -> None:
    from pandaflow.executors.globus.verdicts import judge

    class TaskExecutionFailed(Exception):
        """Like the SDK's, by name."""

    table = {
        "Another instance of this endpoint is running.  (Perhaps": "endpoint",
        "parsl...WorkerLost: Task failure due to loss of worker 0": "worker",
        "ManagerLost: Task failure due to loss of manager x": "node",
        "MaxResultSizeExceeded: Task result of 11 bytes exceeded": "large",
        "InvalidResourceSpecification: Invalid keys": "unfit",
        "File pandaflow_bundle\nOSError: no space left": "ours",
        "no such engine": "broken",
    }
    assert {text: judge(TaskExecutionFailed(text))[0] for text in table} == table
    assert judge(ConnectionError("cut"))[0] == "unheard"


def test_outcome_of_damaged_scripts() -> None:
    import pytest

    from pandaflow.core.errors import DataError
    from pandaflow.executors.globus import shell

    for result in ({"stdout": "something else", "stderr": "bash: no"}, "text", None):
        with pytest.raises(DataError, match="did not come to its end"):
            shell.hear(result)
    assert outcome.keep(wire.Reply(1), None) is None  # type: ignore[arg-type]
