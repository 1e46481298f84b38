"""The desk where runs are left: who may do what, and what is taken."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.core.errors import NotInRun, PandaflowError, RunNotFound, WorkflowError
from pandaflow.grid.identity import ANYBODY, Actor, Forbidden
from pandaflow.grid.pool import Pool
from pandaflow.grid.runs.codec import parse_state
from pandaflow.grid.runs.messages import Cancel
from pandaflow.server.desk import RunDesk
from pandaflow.server.problems import Refusal
from pandaflow.server.settings import Limits
from pandaflow.store.database import Database
from pandaflow.store.spec import dump_workflow
from pandaflow.store.sql import SqlStore

ADA = Actor("ada", "Ada", "atlas", frozenset({"user"}))
BEN = Actor("ben", "Ben", "atlas", frozenset({"user"}))
PIA = Actor("pia", "Pia", "atlas", frozenset({"production"}))
OTTO = Actor("otto", "Otto", "atlas", frozenset({"operator"}))
EVE = Actor("eve", "Eve", "cms", frozenset({"user", "production", "operator"}))
PILOT = Actor("pilot", "Pilot", "atlas", frozenset({"pilot"}))
LIMITS = Limits(upload_files=3, upload_bytes=10_000)
CANCEL = Cancel(kind="cancel")


@contextmanager
def opened(folder: Path) -> Iterator[RunDesk]:
    url = f"sqlite:///{folder}/pool.db"
    database, store = Database(url, 5.0), SqlStore(url)
    yield RunDesk(store, Pool(database), LIMITS, str(folder / "results"))
    store.close()
    database.dispose()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[RunDesk]:
    with opened(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDesk]:
    """A desk for those that leave nothing there."""
    with opened(tmp_path_factory.mktemp("desk")) as made:
        yield made


@pf.task
def double(x):
    return 2 * x


def workflow() -> Any:
    made = pf.workflow(lambda: double(pf.items([1, 2])), name="doubles")()
    return made._spec, made._trace.blobs


def spec_of() -> dict[str, Any]:
    return dump_workflow(workflow()[0])


def upload(desk: RunDesk, actor: Actor, run: str, name: str, data: bytes) -> None:
    blob, new = desk.blob(actor, run, name, time.time())
    try:
        blob.write(data)
        blob.keep(replace=new)
    finally:
        blob.drop()


def leave(desk: RunDesk, actor: Actor, run: str) -> None:
    spec, blobs = workflow()
    for name, data in blobs.items():
        upload(desk, actor, run, name, data)
    desk.leave(actor, run, dump_workflow(spec), time.time())


def refused(kind: type[PandaflowError], ask: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        ask()
    return str(caught.value)


def test_the_vo_sees_a_run_and_others_do_not_hear_of_it(desk: RunDesk) -> None:
    leave(desk, ADA, "run-1")
    for actor in (ADA, BEN, PIA, OTTO):
        assert desk.see(actor, "last")["submitter"] == "ada"
        assert [row["id"] for row in desk.reader(actor).runs()] == ["run-1"]
        assert desk.look(actor, "run-1", "events") == []
    for ask in (
        lambda: desk.see(EVE, "run-1"),
        lambda: desk.see(EVE, "last"),
        lambda: desk.run(EVE, "run"),
        lambda: desk.change(EVE, "run-1"),
        lambda: desk.wish(EVE, "run-1", CANCEL),
        lambda: desk.wish_state(EVE, "run-1", 1),
        lambda: desk.driven(EVE, "run-1"),
        lambda: desk.explain(EVE, "run-1", "double", 0),
        lambda: desk.state(EVE, "run-1"),
        lambda: desk.file(EVE, "run-1", "items-0"),
        lambda: desk.log(EVE, "run-1", "double", 0),
        lambda: desk.tail(EVE, "run-1", 1),
        lambda: desk.look(EVE, "run-1", "events"),
    ):
        assert "no run" in refused(RunNotFound, ask)
    assert desk.reader(EVE).runs() == []
    assert "results" not in str(desk.root) or desk.run(ADA, "run-1")["results"] == ""


def test_owner_production_and_operator_may_change_it(desk: RunDesk) -> None:
    leave(desk, ADA, "run-1")
    numbers = [desk.wish(actor, "run-1", CANCEL) for actor in (ADA, PIA, OTTO)]
    assert len(set(numbers)) == 3
    assert desk.wish_state(BEN, "run-1", numbers[0]).status == "open"
    by = [row["body"]["by"] for row in desk.look(ADA, "run-1", "open_requests")]
    assert by == ["Ada", "Pia", "Otto"]
    assert "another user's" in refused(Forbidden, lambda: desk.wish(BEN, "run-1", CANCEL))
    refused(Forbidden, lambda: upload(desk, BEN, "run-1", "stream-0-0", b""))
    refused(NotInRun, lambda: desk.wish_state(ADA, "run-1", 99))


def test_a_pilot_may_do_nothing_here(desk: RunDesk) -> None:
    leave(desk, ADA, "run-1")
    for ask in (
        lambda: desk.reader(PILOT),
        lambda: desk.see(PILOT, "run-1"),
        lambda: desk.blob(PILOT, "run-2", "a", 0.0),
        lambda: desk.leave(PILOT, "run-2", spec_of(), 0.0),
        lambda: desk.wish(PILOT, "run-1", CANCEL),
        lambda: desk.file(PILOT, "run-1", "items-0"),
    ):
        assert "role" in refused(Forbidden, ask)


def test_runs_of_nobody_are_seen_in_anonymous_mode_only(desk: RunDesk, tmp_path: Path) -> None:
    spec, _ = workflow()
    desk._store.create_run(spec, run_id="mine", created=1.0, results=str(tmp_path))
    assert desk.see(ANYBODY, "mine")["served"] is False
    assert desk.wish(ANYBODY, "mine", CANCEL) > 0
    refused(RunNotFound, lambda: desk.see(OTTO, "mine"))
    leave(desk, ADA, "run-1")
    refused(RunNotFound, lambda: desk.see(ANYBODY, "run-1"))
    assert desk.see(ADA, "last")["id"] == "run-1"


def test_leaving_may_be_repeated_but_an_id_is_taken_once(desk: RunDesk) -> None:
    leave(desk, ADA, "run-1")
    desk.leave(ADA, "run-1", spec_of(), time.time())
    other = dump_workflow(pf.workflow(lambda: double(3), name="other")()._spec)
    for actor, spec in ((ADA, other), (BEN, spec_of()), (EVE, spec_of())):
        if actor is not ADA:
            for name, data in workflow()[1].items():
                if actor is EVE:  # what another VO has is not even refused here
                    upload(desk, actor, "run-1", name, data)
        assert "choose another id" in refused(
            PandaflowError, lambda a=actor, s=spec: desk.leave(a, "run-1", s, 0.0)
        )
    assert len(desk.reader(ADA).runs()) == 1


def test_nobody_writes_into_what_another_uploads(desk: RunDesk) -> None:
    upload(desk, ADA, "run-1", "payload", b"ada's")
    upload(desk, BEN, "run-1", "payload", b"ben's")
    folder = desk._uploads.folder
    assert Path(folder(ADA, "run-1"), "payload").read_bytes() == b"ada's"
    assert Path(folder(BEN, "run-1"), "payload").read_bytes() == b"ben's"
    assert desk._uploads.names(folder(ADA, "run-1")) == {"payload"}


def test_before_the_run_is_left_blobs_change_and_afterwards_never(desk: RunDesk) -> None:
    blobs = workflow()[1]
    name, data = next(iter(blobs.items()))
    upload(desk, ADA, "run-1", name, b"half of i")
    leave(desk, ADA, "run-1")
    upload(desk, ADA, "run-1", name, data)  # an answer was lost: the same again
    for changed in (b"", data[:-1], data + b"!", b"x" * len(data)):
        with pytest.raises(Refusal) as caught:
            upload(desk, ADA, "run-1", name, changed)
        assert caught.value.status == 409
    upload(desk, ADA, "run-1", "stream-3-0", b"new items")
    file, _ = desk.file(ADA, "run-1", name)
    with file:
        assert file.read() == data
    assert not [n for n in os.listdir(desk._uploads.folder(ADA, "run-1")) if n.startswith(".")]


@pytest.mark.parametrize(
    "name",
    [
        *"../up a/b .. . .hidden values logs files claims C:\\x ~ -rf".split(" "),
        *("", "a b", "a\0", "a\n", "\u00e9", "x" * 201),
    ],
)
def test_names_that_lead_elsewhere_are_refused(shared: RunDesk, name: str) -> None:
    refused(WorkflowError, lambda: shared.blob(ADA, "names", name, 0.0))
    assert not list(Path(shared.root).rglob("*.part"))


@pytest.mark.parametrize(
    "run", ["", ".", "..", "../x", "a/b", "last", "a\0", "a\n", "a.b", "x" * 101, "a b", "\u2215"]
)
def test_ids_that_lead_elsewhere_are_refused(shared: RunDesk, run: str) -> None:
    refused(WorkflowError, lambda: shared.blob(ADA, run, "payload", 0.0))
    refused(WorkflowError, lambda: shared.leave(ADA, run, spec_of(), 0.0))
    known = {"names", "specs"}  # of other tests here
    assert {path.name for path in Path(shared.root).glob("*/*")} <= known


def test_uploads_are_limited_in_number_and_size(desk: RunDesk) -> None:
    for name in "abc":
        upload(desk, ADA, "run-1", name, b"1")
    upload(desk, ADA, "run-1", "c", b"2")
    with pytest.raises(Refusal) as caught:
        upload(desk, ADA, "run-1", "d", b"")
    assert caught.value.status == 413
    upload(desk, ADA, "run-2", "a", b"x" * 10_000)
    with pytest.raises(Refusal):
        upload(desk, ADA, "run-2", "b", b"")


def test_what_becomes_no_run_is_thrown_away(desk: RunDesk) -> None:
    leave(desk, ADA, "run-1")
    upload(desk, ADA, "run-2", "payload", b"1")
    stopped = desk._uploads.folder(ADA, "run-1")  # as if the server had stopped in between
    desk._uploads.begin(stopped, 1.0)
    strange = Path(desk.root, "somebody", "else")
    strange.mkdir(parents=True)
    assert desk.purge(time.time() - 60.0) == 0
    assert desk.purge(time.time() + 60.0) == 1
    assert not Path(desk._uploads.folder(ADA, "run-2")).exists()
    assert strange.is_dir()
    assert desk._uploads.names(stopped) == set(workflow()[1])
    assert desk.purge(time.time() + 60.0) == 0


def test_runs_leave_from_and_come_to_object_stores(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    url = f"sqlite:///{tmp_path}/pool.db"
    database, store = Database(url, 5.0), SqlStore(url)
    root = f"memory://desk-{tmp_path.name}"
    desk = RunDesk(store, Pool(database), LIMITS, root)
    try:
        leave(desk, ADA, "run-1")
        blobs = workflow()[1]
        name, data = next(iter(blobs.items()))
        upload(desk, ADA, "run-1", name, data)
        with pytest.raises(Refusal):
            upload(desk, ADA, "run-1", name, b"other")
        file, size = desk.file(BEN, "run-1", name)
        assert (file.read(), size) == (data, len(data))
        upload(desk, ADA, "run-2", "payload", b"1")
        assert desk.purge(time.time() + 60.0) == 1
        assert desk._uploads.names(desk._uploads.folder(ADA, "run-1")) == set(blobs)
    finally:
        fsspec.filesystem("memory").rm(root, recursive=True)
        store.close()
        database.dispose()


def test_a_state_is_told_in_full(desk: RunDesk) -> None:
    leave(desk, ADA, "run-1")
    with desk.state(BEN, "run-1") as file:
        lines = gzip.decompress(file.read()).decode().splitlines()
    found = parse_state(lines, "")
    assert (found.id, found.spec) == ("run-1", workflow()[0])


# --- specifications -----------------------------------------------------------------------


def changed(*path: Any, to: Any) -> dict[str, Any]:
    spec = json.loads(json.dumps(spec_of()))
    place: Any = spec
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return spec


FLOW = "workflow"
UNFIT = r"not there|do not fit"
TASK = (FLOW, "tasks", 0)
SOURCE = (FLOW, "sources", 0)
STEERER = {"name": "study", "module": "os", "blob": "items-0"}


def deep(depth: int) -> dict[str, Any]:
    dataset: dict[str, Any] = {"tag": "source", "id": 0}
    for _ in range(depth):
        dataset = {"tag": "concat", "parts": [dataset]}
    return changed(*TASK, "inputs", 0, "dataset", to=dataset)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({}, "damaged"),
        ({"version": 1}, "damaged"),
        ({"version": 2, FLOW: {}}, "version 2"),
        ({"version": 1, FLOW: {}}, "damaged"),
        ({"version": 1, FLOW: []}, "damaged"),
        ({"version": 1, FLOW: {"name": "x", "tasks": None}}, "damaged"),
        (changed(FLOW, "steerers", to=[STEERER]), r"executor=pf\.executors\.Grid"),
        (changed(FLOW, "name", to=""), "no name"),
        (changed(FLOW, "name", to="a\0b"), "no name"),
        (changed(FLOW, "name", to="x" * 1_001), "no name"),
        (changed(*TASK, "name", to="a\nb"), "no name"),
        (changed(FLOW, "tasks", to=2 * spec_of()[FLOW]["tasks"]), "2 tasks"),
        (changed(FLOW, "sources", to=2 * spec_of()[FLOW]["sources"]), "2 sources"),
        (changed(*TASK, "id", to=-1), "out of range"),
        (changed(*TASK, "id", to=2**70), "damaged|out of range"),
        (changed(*TASK, "n_static", to=10**12), "more than"),
        (changed(*TASK, "payload", to="../../../etc/passwd"), "upload first"),
        (changed(*TASK, "payload", to=""), "upload first"),
        (changed(*SOURCE, "blob", to="/etc/passwd"), "upload first"),
        (changed(*SOURCE, "blob", to=""), "where its items are"),
        (changed(*SOURCE, "n", to=10**12), "at most"),
        (changed(*SOURCE, "n", to=-1), "at most"),
        (changed(*SOURCE, "kind", to="range"), "as many as it says"),
        (changed(*SOURCE, "kind", to="files"), "as many as it says"),
        (changed(*TASK, "inputs", 0, "dataset", "id", to=17), UNFIT),
        (
            changed(*TASK, "inputs", 0, "dataset", to={"tag": "output", "task": 5}),
            UNFIT,
        ),
        (
            changed(*TASK, "inputs", 0, "dataset", to={"tag": "output", "task": 0}),
            UNFIT,
        ),
        (
            changed(*TASK, "inputs", 0, "dataset", to={"tag": "loop_end", "loop": 3}),
            UNFIT,
        ),
        (changed(*TASK, "guards", to=[[9, True]]), UNFIT),
        (deep(5_000), "no workflow"),
    ],
)
def test_a_specification_that_is_no_good_is_refused_with_the_reason(
    shared: RunDesk, spec: dict[str, Any], why: str
) -> None:
    for name, data in workflow()[1].items():
        upload(shared, ADA, "specs", name, data)
    with pytest.raises(WorkflowError, match=why):
        shared.leave(ADA, "specs", spec, 0.0)
    refused(RunNotFound, lambda: shared.see(ADA, "specs"))
