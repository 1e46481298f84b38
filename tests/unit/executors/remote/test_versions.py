from __future__ import annotations

import json
import pickle
from importlib import metadata

import cloudpickle
import pytest

from pandaflow.core.bundle import BundleSpec
from pandaflow.core.chunking import Fixed
from pandaflow.core.events import BundleEnded
from pandaflow.core.model import Failure
from pandaflow.core.template import Payload
from pandaflow.data.results import ResultStore
from pandaflow.executors.outcome import pack_ended, unpack_ended
from pandaflow.executors.remote import versions
from pandaflow.executors.remote.wire import Work
from pandaflow.executors.remote.worker import _compared

FSSPEC = metadata.version("fsspec")


def test_packages_that_a_payload_mentions_are_found_without_reading_it():
    code = cloudpickle.dumps(Payload(_lambda()))  # by value, as functions of a script travel
    assert versions.mentioned(code)["fsspec"] == FSSPEC
    assert versions.mentioned(b"no pickle") == {}


def _lambda() -> object:
    import fsspec

    return lambda: fsspec.filesystem("memory")


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("it was unpickled",))


def test_looking_runs_nothing():
    versions.mentioned(pickle.dumps(Bomb()))


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"fsspec": FSSPEC}, ""),
        ({"fsspec": FSSPEC.rpartition(".")[0] + ".99999"}, ""),
        ({"fsspec": "1.2.3"}, f"fsspec is {FSSPEC} here and was 1.2.3 there"),
        ({"no-such-package": "4.5"}, "no-such-package 4.5 is not here"),
        ({}, ""),
    ],
)
def test_differences_in_words(told, words):
    assert versions.different(told) == words


def test_a_run_that_is_left_tells_python_too(tmp_path):
    results = ResultStore(str(tmp_path))
    assert versions.told_by(results) == {}
    results.put(versions.BLOB, versions.blob_of([cloudpickle.dumps(_lambda())]))
    told = versions.told_by(results)
    assert told[versions.PYTHON] == versions.this_python()
    assert told["fsspec"] == FSSPEC


@pytest.mark.parametrize("blob", [b"", b"[]", b'{"numpy": 2}', b"\xff"])
def test_garbage_tells_nothing(tmp_path, blob):
    results = ResultStore(str(tmp_path))
    results.put(versions.BLOB, blob)
    assert versions.told_by(results) == {}
    assert json.loads(versions.blob_of([b"garbage"])) == {"python": versions.this_python()}


def test_failures_name_what_is_different():
    spec = BundleSpec(
        run="r",
        bundle=1,
        task=0,
        name="t",
        token="t",
        kind="function",
        jobs=range(2),
        attempt=1,
        lists=False,
        inputs=(),
        chunks=Fixed(2),
    )
    failures = {
        0: Failure(kind="exception", message="no such attribute"),
        1: Failure(kind="walltime", message="too long"),
    }
    told = pack_ended(BundleEnded(at=1.0, bundle=1, failures=failures))
    work = Work(spec, versions=(("fsspec", "1.2.3"),))
    found = unpack_ended(_compared(work, told)).failures
    assert found[0].message == f"no such attribute (fsspec is {FSSPEC} here and was 1.2.3 there)"
    assert found[1] == failures[1]
    assert _compared(Work(spec), told) is told
    assert _compared(work, {"op": "said"}) == {"op": "said"}
