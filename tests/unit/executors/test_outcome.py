from __future__ import annotations

import json
from array import array
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pandaflow.core.events import BundleEnded
from pandaflow.core.model import Failure
from pandaflow.executors.outcome import failure_of, pack_ended, unpack_ended

positions = st.integers(0, 50)
seconds = st.lists(st.floats(0, 1e6, width=32), max_size=5).map(lambda x: array("f", x))
sizes = st.lists(st.integers(0, 2**60), max_size=5).map(lambda x: array("q", x))
failures = st.builds(
    Failure,
    kind=st.sampled_from(["exception", "walltime"]),
    message=st.text(),
    type=st.text(),
    mro=st.lists(st.text(), max_size=3).map(tuple),
    code=st.none() | st.integers(-9, 255),
    traceback=st.text("ab\n"),
    charged=st.booleans(),
)
reports = st.builds(
    BundleEnded,
    at=st.floats(0, 1e10),
    bundle=st.integers(0, 2**53),
    worker=st.text(),
    location=st.text(),
    checksum=st.text(),
    nbytes=st.integers(0, 2**40),
    failures=st.dictionaries(positions, failures),
    blocked=st.dictionaries(positions, st.sampled_from(["a", "b"])),
    unstarted=st.sets(positions).map(lambda x: tuple(sorted(x))),
    detached=st.none() | positions,
    skipped=st.dictionaries(positions, st.text()),
    cached=st.sets(positions).map(lambda x: tuple(sorted(x))),
    sizes=st.dictionaries(positions, st.integers(0, 2**40)),
    truth=st.none() | st.booleans(),
    started=st.floats(0, 1e10),
    wall=seconds,
    cpu=seconds,
    max_pss=sizes,
    read_bytes=sizes,
    written_bytes=sizes,
    disk=sizes,
    logs=st.dictionaries(positions, st.tuples(st.integers(0, 2**40), st.integers(0, 2**40))),
)


def normal(report: BundleEnded) -> Any:
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, array | tuple) else value

    return {name: plain(getattr(report, name)) for name in BundleEnded.__slots__}


@settings(max_examples=50, deadline=None)
@given(reports)
def test_a_report_survives_the_way_to_the_driver(report: BundleEnded) -> None:
    packed = pack_ended(report)
    assert normal(unpack_ended(packed)) == normal(report)
    travelled = msgpack.unpackb(msgpack.packb(packed), strict_map_key=True)
    assert normal(unpack_ended(travelled)) == normal(report)


def test_a_thousand_healthy_jobs_make_a_small_message() -> None:
    report = BundleEnded(at=1.0, bundle=1, wall=array("f", [1e-6] * 1000), cpu=[1e-6] * 1000)
    assert len(msgpack.packb(pack_ended(report))) < 8_300


def test_a_thousand_jobs_that_fail_alike_share_their_traceback() -> None:
    def fail(x: int) -> None:
        raise ValueError(f"bad {x}")

    kept = {}
    for x in range(1000):
        try:
            fail(x)
        except ValueError as error:
            kept[x] = failure_of(error)
    report = BundleEnded(at=1.0, bundle=1, failures=kept)
    packed = pack_ended(report)
    assert len(packed["tracebacks"]) == 1
    assert unpack_ended(packed).failures == kept
    assert len(json.dumps(packed)) < 200_000


def test_a_traceback_shows_the_causes() -> None:
    with pytest.raises(KeyError) as caught:
        try:
            raise OSError("root cause")
        except OSError as error:
            raise KeyError("outer") from error
    failure = failure_of(caught.value)
    assert "root cause" in failure.traceback and "outer" in failure.traceback
    assert failure.mro[:3] == ("KeyError", "LookupError", "Exception")


class Mine(ValueError):
    pass


def test_types_are_qualified_and_rules_may_use_plain_names() -> None:
    failure = failure_of(Mine("x"))
    assert failure.type == f"{__name__}.Mine"
    assert {"Mine", f"{__name__}.Mine", "ValueError"} <= set(failure.mro)
