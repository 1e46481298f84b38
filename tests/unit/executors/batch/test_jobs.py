"""Batch mode without a batch system: packing, requests, endings, the files of elements."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pandaflow.core.bundle import BundleSpec, SourceSlice
from pandaflow.core.chunking import Fixed
from pandaflow.core.events import BundleEnded, BundleLost
from pandaflow.core.model import Input, Resources, Source
from pandaflow.core.template import Payload, Slot
from pandaflow.data.results import ResultStore
from pandaflow.executors.batch import arrays, element
from pandaflow.executors.batch.inflight import Array, Element, shortest
from pandaflow.executors.batch.leftovers import ids, own, owns
from pandaflow.executors.batch.model import BatchStatus
from pandaflow.executors.batch.places import Place
from pandaflow.executors.batch.settings import BatchSettings
from pandaflow.executors.batch.slurm import Slurm
from pandaflow.executors.outcome import unpack_ended
from pandaflow.testing import payloads

GB = 2**30


def spec_of(n: int = 3, bundle: int = 1, results: str = "", **resources: Any) -> BundleSpec:
    return BundleSpec(
        run="run",
        bundle=bundle,
        task=0,
        name="fit",
        token="t",
        kind="function",
        jobs=range(n),
        attempt=1,
        lists=False,
        inputs=(Input(Source(0)),),
        chunks=Fixed(n),
        sources={0: SourceSlice(0, tuple(range(n)))},
        resources=Resources(**resources),
        results=results,
        seconds=0.001,
    )


def settings(**changes: Any) -> BatchSettings:
    given = {"backend": Slurm(), "mode": "batch", "cores": 8, "memory": 16 * GB, "walltime": 3600.0}
    return BatchSettings(**{**given, **changes})


# --- packing ----------------------------------------------------------------------------


@given(
    st.lists(st.floats(0, 30), max_size=200),
    st.integers(1, 64),
    st.integers(0, 64),
    st.floats(0, 1000),
)
def test_packing_keeps_its_limits(seconds: list[float], slots: int, free: int, busy: float) -> None:
    sizes = arrays.pack(seconds, slots, free, busy)
    assert len(sizes) <= free and sum(sizes) <= len(seconds)
    assert sum(sizes) == len(seconds) or len(sizes) == free
    at = 0
    for size in sizes:
        part = seconds[at : at + size]
        assert size == 1 or all(part), "what nobody knows goes alone"
        assert size == 1 or sum(part[:-1]) <= arrays.PACK_S
        assert 1 <= size <= arrays.MOST_BUNDLES
        at += size


@pytest.mark.parametrize(
    ("seconds", "slots", "free", "busy", "sizes"),
    [
        ([0.0] * 5, 4, 4, 0.0, [1, 1, 1, 1]),  # nobody knows how long they take
        ([0.5] * 12, 4, 4, 0.0, [3, 3, 3, 3]),
        ([0.5] * 12, 4, 1, 0.0, [3]),  # the others will want some too
        ([0.5] * 9, 4, 1, 1.5, [3]),  # as they do here
        ([0.1] * 12, 4, 4, 0.0, [10, 2]),  # not worth four starts
        ([6.0] * 8, 4, 4, 0.0, [2, 2, 2, 2]),
        ([12.0] * 8, 4, 4, 0.0, [1, 1, 1, 1]),
        ([0.2] * 1000, 4, 4, 0.0, [50, 50, 50, 50]),
        ([0.2] * 5, 4, 0, 0.0, []),
    ],
)
def test_packing(
    seconds: list[float], slots: int, free: int, busy: float, sizes: list[int]
) -> None:
    assert arrays.pack(seconds, slots, free, busy) == sizes


# --- requests ---------------------------------------------------------------------------


def test_an_array_asks_for_what_its_jobs_need(tmp_path: Path) -> None:
    few, more = spec_of(2, walltime=100.0, cores=2), spec_of(4, walltime=100.0, cores=2)
    request = arrays.array_request(
        settings(gpus=2), [[few], [few, more]], folder=tmp_path, workdir="/"
    )
    assert (request.array, request.cores, request.gpus) == (2, 2, 0)
    assert request.walltime == 600 + arrays.MARGIN_S
    assert request.memory == 4 * GB, "its share of a node"
    assert not request.requeue


def test_one_element_is_no_array(tmp_path: Path) -> None:
    request = arrays.array_request(settings(), [[spec_of()]], folder=tmp_path, workdir="/")
    assert request.array is None
    assert request.walltime == 3600.0, "nobody knows how long its jobs take"
    assert request.stdout == f"{tmp_path}/0.log"


def test_no_element_asks_for_more_than_a_batch_job_may() -> None:
    specs = [spec_of(100, walltime=1000.0)]
    assert arrays.walltime(specs, 3600.0) == 3600.0
    assert arrays.memory(settings(), Resources(memory=16 * GB)) == 16 * GB
    assert arrays.memory(settings(), Resources(memory=GB)) == GB + arrays.MARGIN_BYTES
    assert arrays.memory(settings(memory=None), Resources()) is None


def test_ranks_are_asked_for_node_by_node(tmp_path: Path) -> None:
    spec = spec_of(1, nodes=2, ranks_per_node=3, cores=2, gpus=1)
    request = arrays.array_request(
        settings(env={"SRUN_CPUS_PER_TASK": "1"}, extra=("--exclusive",)),
        [[spec]],
        folder=tmp_path,
        workdir="/",
    )
    assert (request.nodes, request.tasks_per_node, request.cores) == (2, 3, 2)
    assert (request.gpus, request.extra) == (1, ("--exclusive",))
    assert request.memory == 12 * GB, "six of the eight cores of each node"
    assert request.env["PANDAFLOW_NODES"] == "2"
    assert request.env["PANDAFLOW_RANKS_PER_NODE"] == "3"
    assert request.env["SRUN_CPUS_PER_TASK"] == "1", "users have the last word"


def test_the_command_survives_a_shell(tmp_path: Path) -> None:
    line = arrays.body(settings(container="apptainer exec a.sif"), tmp_path / "a b")
    assert line.startswith("exec apptainer exec a.sif ") and line.endswith(f"'{tmp_path}/a b'")


# --- endings ----------------------------------------------------------------------------


def end(state: Any, position: int | None, *, begun: bool = True, **known: Any) -> Any:
    status = BatchStatus(id="7", index=2, state=state, **known)
    return arrays.ending(status, spec_of(), position, begun=begun, told="a | b", at=1.0)


@pytest.mark.parametrize(("state", "kind"), [("timeout", "walltime"), ("out_of_memory", "memory")])
def test_a_limit_fails_the_job_that_ran(state: str, kind: str) -> None:
    event = end(state, 1)
    assert isinstance(event, BundleEnded)
    assert {p: (f.kind, f.charged) for p, f in event.failures.items()} == {1: (kind, True)}
    assert event.unstarted == (0, 2)
    assert "batch job 7[2]" in event.failures[1].message and "a | b" in event.failures[1].message


@pytest.mark.parametrize("state", ["cancelled", "node_fail", "preempted", "unknown"])
@pytest.mark.parametrize("position", [None, 1])
@pytest.mark.parametrize("begun", [True, False])
def test_the_infrastructure_is_never_charged(state: str, position: int | None, begun: bool) -> None:
    event = end(state, position, begun=begun)
    assert isinstance(event, BundleLost)
    assert not event.charged


def test_a_job_under_which_the_element_died_is_the_suspect() -> None:
    event = end("failed", 1, signal=9)
    assert isinstance(event, BundleLost)
    assert (event.position, event.charged) == (1, True)
    assert "signal 9" in event.reason


def test_an_element_that_never_began_fails_its_jobs_uncharged() -> None:
    event = end("failed", None, begun=False, exit_code=127)
    assert isinstance(event, BundleEnded)
    assert {(f.kind, f.charged) for f in event.failures.values()} == {("site", False)}
    assert sorted(event.failures) == [0, 1, 2]
    assert "exit code 127" in event.failures[0].message


def test_between_jobs_nobody_is_to_blame() -> None:
    event = end("timeout", None)
    assert isinstance(event, BundleLost)
    assert not event.charged


def test_last_words_are_one_line_of_bounded_length() -> None:
    assert arrays.last_words(b"one\n\n  two\n") == "one | two"
    assert len(arrays.last_words(b"x" * 10_000)) < 600
    assert arrays.last_words(b"") == ""


# --- cancelling -------------------------------------------------------------------------


def test_whole_arrays_are_named_once() -> None:
    array = Array("7", Path(), True, Place(settings()))
    array.elements = [Element(array, index, 1, []) for index in range(3)]
    alone = Array("8", Path(), False, Place(settings()))
    alone.elements = [Element(alone, 0, 1, [])]
    assert shortest(array.elements[:2]) == [("7", 0), ("7", 1)]
    array.elements[2].gone = True
    assert shortest([*array.elements[:2], *alone.elements]) == [("7", None), ("8", None)]


# --- elements ---------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of an array whose session is in charge."""
    folder = tmp_path / "batch" / "00001"
    folder.mkdir(parents=True)
    element.write_whole(tmp_path / "batch" / element.OWNER, b"me")
    return folder


def todo(folder: Path, *bundles: int, function: Any = payloads.double) -> None:
    code = cloudpickle.dumps(Payload(function, (Slot(0),)))
    results = str(folder.parent.parent)
    works = [element.Work(spec_of(bundle=b, results=results), code) for b in bundles]
    element.write_todo(folder, 0, element.Todo("me", tuple(works), scratch=str(folder / "work")))


def told(folder: Path) -> list[tuple[str, Any]]:
    messages, _ = element.read_reports(folder / "0.report", 0)
    return [(message["op"], message.get("bundle")) for message in messages]


def test_an_element_runs_its_bundles_one_after_the_other(folder: Path) -> None:
    todo(folder, 1, 2)
    assert element.run_element(folder, 0, "77") == 2
    expected = [("started", 1), ("ended", 1), ("started", 2), ("ended", 2)]
    assert told(folder) == [("here", None), *expected]
    messages, _ = element.read_reports(folder / "0.report", 0)
    ended = unpack_ended(messages[2])
    assert ResultStore(str(folder.parent.parent)).load(ended.location).values == [0, 2, 4]
    assert ended.detached is None, "bundles take their time"
    assert ids(folder) == {"77"}


def test_an_element_that_is_started_again_runs_nothing_twice(folder: Path) -> None:
    todo(folder, 1, 2)
    store = ResultStore(str(folder.parent.parent))
    assert store.claim(2, 1, "another") is not None  # begun by somebody who is gone
    element.run_element(folder, 0)
    element.run_element(folder, 0)
    first = [("here", None), ("started", 1), ("ended", 1), ("lost", 2)]
    assert told(folder) == [*first, ("here", None), ("ended", 1), ("lost", 2)]


@pytest.mark.parametrize("mark", ["void", "0.void", "2.drop"])
def test_what_was_cancelled_does_not_begin(folder: Path, mark: str) -> None:
    todo(folder, 2)
    (folder / mark).touch()
    assert element.run_element(folder, 0) == 0
    assert told(folder) == [("here", None), ("dropped", 2)]


@pytest.mark.parametrize("owner", ["another", None])
def test_elements_of_a_session_that_is_gone_begin_nothing(folder: Path, owner: str | None) -> None:
    todo(folder, 1)
    path = folder.parent / element.OWNER
    path.unlink()
    if owner is not None:
        path.write_text(owner)
    assert element.run_element(folder, 0) == 0


def test_elements_that_another_session_has_adopted_go_on(folder: Path) -> None:
    todo(folder, 1)
    own(folder.parent, "another", [folder])
    assert owns(folder.parent, "another") and not owns(folder.parent, "me")
    assert element.run_element(folder, 0) == 1
    own(folder.parent, "another", [folder.with_name("00002-me")])
    todo(folder, 2)
    assert element.run_element(folder, 0) == 0, "the earlier session sent it after that"


def test_values_that_are_gone_are_told(folder: Path) -> None:
    results = str(folder.parent.parent)
    work = element.Work(spec_of(results=results), b"", ("values/000/9.values",))
    element.write_todo(folder, 0, element.Todo("me", (work,)))
    element.run_element(folder, 0)
    messages, _ = element.read_reports(folder / "0.report", 0)
    assert messages[1]["op"] == "lost"
    assert "9.values" in messages[1]["reason"]


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    path = tmp_path / "0.report"
    assert element.read_reports(path, 0) == ([], 0)
    line = json.dumps({"op": "here"}).encode() + b"\n"
    path.write_bytes(line + b"\0\0\n" + line[:5])
    messages, offset = element.read_reports(path, 0)
    assert [message["op"] for message in messages] == ["here"]
    with open(path, "ab") as file:
        file.write(line[5:])
    messages, end_ = element.read_reports(path, offset)
    assert [message["op"] for message in messages] == ["here"]
    assert end_ == os.path.getsize(path)


def test_what_was_cut_short_spoils_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "0.report"
    path.write_bytes(b'{"op": "here"}\n{"op": "star')
    reporter = element.Reporter(path)
    reporter({"op": "here", "again": True})
    reporter.close()
    messages, offset = element.read_reports(path, 0)
    assert messages == [{"op": "here"}, {"op": "here", "again": True}]
    assert offset == path.stat().st_size


@pytest.mark.parametrize("line", [b"[1]", b'{"op": 5}', b"{}", b"null", b"\xff", b'{"op":"x"} {}'])
def test_lines_that_are_no_messages_are_left_out(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "0.report"
    path.write_bytes(line + b'\n{"op": "here"}\n')
    assert element.read_reports(path, 0)[0] == [{"op": "here"}]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_delays_reports_and_spoils_none(small_disk: Path) -> None:
    path, filler = small_disk / "0.report", small_disk / "filler"
    reporter = element.Reporter(path)
    reporter({"op": "here"})
    with suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
    told = [{"op": "ended", "bundle": n, "text": 5000 * "x"} for n in range(4)]
    for message in told:
        reporter(message)
    messages, _ = element.read_reports(path, 0)
    assert messages == [{"op": "here"}]
    filler.unlink()
    reporter.close()
    assert element.read_reports(path, 0)[0] == [{"op": "here"}, *told]


def test_bytes_survive_a_report(tmp_path: Path) -> None:
    reporter = element.Reporter(tmp_path / "0.report")
    reporter({"op": "ended", "wall": b"\x00\xff"})
    reporter.close()
    messages, _ = element.read_reports(tmp_path / "0.report", 0)
    assert messages == [{"op": "ended", "wall": b"\x00\xff"}]
