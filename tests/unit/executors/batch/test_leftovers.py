"""What a session finds of earlier ones, and what it goes on with."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pandaflow.core.events import BundleEnded, BundleLost, BundleStarted
from pandaflow.executors.batch import element, orphans
from pandaflow.executors.batch.adoption import adopt
from pandaflow.executors.batch.control import Control
from pandaflow.executors.batch.leftovers import (
    Leftover,
    owns,
    release,
    reserve,
    reserve_rest,
    settle,
    take_over,
)
from pandaflow.executors.batch.slurm import Slurm
from tests.unit.executors.batch.test_account import Books, books
from tests.unit.executors.batch.test_jobs import settings, spec_of

__all__ = ["books"]


@pytest.fixture
def control(tmp_path: Path) -> Control:
    """Commands of a Slurm that knows no job."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scontrol", "scancel"):
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $@" >> {tmp_path}/calls\n')
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return Control(Slurm(accounting=False), {"PATH": path})


def called(tmp_path: Path) -> str:
    calls = tmp_path / "calls"
    return calls.read_text() if calls.exists() else ""


def array(
    root: Path,
    name: str,
    *groups: list[int],
    job: str | None = "7",
    system: str = "slurm",
    site: str = "wide",
) -> Path:
    """Leave an array, an element for each group of bundles."""
    folder = root / name
    folder.mkdir(parents=True)
    for index, group in enumerate(groups):
        works = tuple(element.Work(spec_of(1, bundle=number), b"code") for number in group)
        todo = element.Todo(name.partition("-")[2], works, system=system, site=site)
        element.write_todo(folder, index, todo)
    if job is not None:
        (folder / "id").write_text(job)
    return folder


def say(folder: Path, index: int, *messages: dict[str, Any]) -> None:
    with open(folder / f"{index}.report", "a") as file:
        file.writelines(json.dumps(message) + "\n" for message in messages)


def here(job: str = "7") -> dict[str, Any]:
    return {"op": "here", "id": job, "worker": "w", "at": 1.0}


def started(bundle: int) -> dict[str, Any]:
    return {"op": "started", "bundle": bundle, "worker": "w", "at": 1.0}


# --- taking over ------------------------------------------------------------------------


def test_arrays_of_earlier_sessions_are_kept_the_newest_first(
    control: Control, tmp_path: Path
) -> None:
    root = tmp_path / "batch"
    old, new = array(root, "00001-a", [1], [2]), array(root, "00002-b", [3], job="8")
    left = take_over(control, root, "me", 0.01)
    assert [(each.id, each.folder, each.size) for each in left] == [("8", new, 1), ("7", old, 2)]
    assert (root / element.OWNER).read_text().splitlines() == ["me", "00002-b", "00001-a"]
    assert owns(root, "me") and not owns(root, "b")
    assert element.wanted(old, 0, "a", 1) and not element.wanted(root / "00003-a", 0, "a", 1)
    assert called(tmp_path) == "", "nothing is cancelled"


def test_ids_may_be_known_from_elements_only(control: Control, tmp_path: Path) -> None:
    root = tmp_path / "batch"
    say(array(root, "00001-a", [1], job=None), 0, here("99"))
    array(root, "00002-a", [2], job=None)  # nobody knows whether it was submitted
    assert [left.id for left in take_over(control, root, "me", 0.01)] == ["99"]
    assert (root / "00002-a" / "over").exists()


@pytest.mark.parametrize("damage", ["void", "todo", "not a todo"])
def test_what_cannot_be_adopted_is_ended(control: Control, tmp_path: Path, damage: str) -> None:
    root = tmp_path / "batch"
    folder = array(root, "00001-a", [1])
    if damage == "void":
        (folder / element.VOID).touch()
    else:
        data = b"nonsense" if damage == "todo" else b"\x80\x05K\x01."
        (folder / "0.todo").write_bytes(data)
    assert take_over(control, root, "me", 0.01) == []
    assert "squeue" in called(tmp_path) and " 7 " in called(tmp_path)
    assert (folder / "over").exists()
    assert take_over(control, root, "again", 0.01) == [], "once is enough"


def test_jobs_of_another_batch_system_are_left_alone(control: Control, tmp_path: Path) -> None:
    root = tmp_path / "batch"
    array(root, "00001-a", [1], system="sge")
    assert take_over(control, root, "me", 0.01) == []
    assert called(tmp_path) == "", "its ids mean something else here"
    assert (root / element.OWNER).read_text() == "me", "its elements begin nothing more"


# --- executors that the run no longer has -----------------------------------------------


def test_folders_that_no_session_has_are_found_once(tmp_path: Path) -> None:
    mine = reserve(tmp_path)
    for name in ("batch", "batch-2", "batch-10", "batch-old", "batches", "values"):
        (tmp_path / name).mkdir()
    (tmp_path / "batch-3").touch()
    rest = reserve_rest(tmp_path)
    try:
        assert [path.name for path in rest] == ["batch-10", "batch-2"]
        assert reserve_rest(tmp_path) == []
        assert reserve(tmp_path).name == "batch-3", "whoever comes later gets another one"
    finally:
        for path in (mine, *rest, tmp_path / "batch-3"):
            release(path)


def test_orphans_of_the_same_system_may_be_adopted(control: Control, tmp_path: Path) -> None:
    root = tmp_path / "batch-2"
    folder = array(root, "00001-a", [1])
    orphans.sign(root, orphans.system_of(settings()))
    again = orphans.system_of(settings())
    (left,) = orphans.take_in(control, root, "me", again, 0.01)
    assert (left.id, left.folder) == ("7", folder)
    assert owns(root, "me") and element.wanted(folder, 0, "a", 1)


@pytest.mark.parametrize("signed", [True, False])
def test_orphans_elsewhere_begin_nothing_and_no_queue_is_touched(
    control: Control, tmp_path: Path, caplog: pytest.LogCaptureFixture, signed: bool
) -> None:
    root = tmp_path / "batch-2"
    folder = array(root, "00001-a", [1])
    if signed:
        there = settings(commands_env={"SLURM_CONF": "/another/cluster"})
        orphans.sign(root, orphans.system_of(there))
    here = orphans.system_of(settings())
    assert orphans.take_in(control, root, "me", here, 0.01) == []
    assert not element.wanted(folder, 0, "a", 1)
    assert called(tmp_path) == "", "its ids mean something else here"
    assert "another batch system" in caplog.text and str(root) in caplog.text


def test_a_system_that_does_not_answer_is_no_reason_to_end(
    control: Control, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, here = tmp_path / "batch-2", orphans.system_of(settings())
    (array(root, "00001-a", [1]) / element.VOID).touch()
    kept = array(root, "00002-a", [2], job="8")
    orphans.sign(root, here)
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\necho 'no such option' >&2\nexit 1\n")
    assert orphans.take_in(control, root, "me", here, 0.01) == []
    assert not element.wanted(kept, 0, "a", 2), "nobody would hear of it"
    assert "no such option" in caplog.text


def test_arrays_are_adopted_in_the_folder_they_are_in(control: Control, tmp_path: Path) -> None:
    here, there = tmp_path / "batch", tmp_path / "batch-2"
    array(here, "00001-a", [1])
    array(there, "00001-b", [2], job="8")
    array(there, "00002-b", [3], job="9")
    left = [one for root in (here, there) for one in take_over(control, root, "me", 0.01)]
    settle(left, "me", {2})
    assert (here / element.OWNER).read_text().splitlines() == ["me"]
    assert (there / element.OWNER).read_text().splitlines() == ["me", "00001-b"]


# --- adopting ---------------------------------------------------------------------------


def found(control: Control, root: Path) -> list[Leftover]:
    return take_over(control, root, "me", 0.01)


def test_what_is_wanted_goes_on_and_the_rest_does_not_begin(
    control: Control, tmp_path: Path, books: Books
) -> None:
    root = tmp_path / "batch"
    folder = array(root, "00001-a", [1, 2], [3], [4])
    say(folder, 0, here(), started(1))
    assert adopt(books.account, found(control, root), {1, 4}) == {1, 4}
    (kept,) = books.account.arrays.values()
    first, second, third = kept.elements
    assert (first.open, first.current, first.here) == ([1], 1, True)
    assert (second.open, third.open) == ([], [4])
    assert books.account.kills == {second}
    assert (folder / "2.drop").exists() and (folder / "1.void").exists()
    assert books.of(1) == [BundleStarted(1.0, 1, "w", "wide")]
    assert books.account.loads()["wide"].running == 1


def test_what_ended_meanwhile_is_told(control: Control, tmp_path: Path, books: Books) -> None:
    root = tmp_path / "batch"
    folder = array(root, "00001-a", [1, 2, 3])
    ended = {"op": "ended", "bundle": 1, "at": 5.0, "location": "values/000/1.values"}
    say(folder, 0, here(), started(1), ended, {"op": "lost", "bundle": 2, "position": None})
    assert adopt(books.account, found(control, root), {1, 2, 3}) == {1, 2, 3}
    assert isinstance(books.of(1)[-1], BundleEnded)
    assert isinstance(books.of(2)[-1], BundleLost)
    assert list(books.account.bundles) == [3]


def test_a_bundle_that_was_moved_is_where_it_was_sent_last(
    control: Control, tmp_path: Path, books: Books
) -> None:
    root = tmp_path / "batch"
    array(root, "00001-a", [1, 2])
    array(root, "00002-a", [2], job="8")
    assert adopt(books.account, found(control, root), {1, 2}) == {1, 2}
    assert {b: books.account.bundles[b].element.array.id for b in (1, 2)} == {1: "7", 2: "8"}  # type: ignore[union-attr]


def test_what_was_taken_back_is_not_adopted(control: Control, tmp_path: Path, books: Books) -> None:
    root = tmp_path / "batch"
    folder = array(root, "00001-a", [1, 2], [3])
    (folder / "2.drop").touch()
    (folder / "1.void").touch()
    assert adopt(books.account, found(control, root), {1, 2, 3}) == {1}


def test_an_element_that_runs_what_nobody_wants_is_ended(
    control: Control, tmp_path: Path, books: Books
) -> None:
    root = tmp_path / "batch"
    say(array(root, "00001-a", [1, 2]), 0, here(), started(1))
    assert adopt(books.account, found(control, root), {2}) == {2}
    assert [bundle.spec.bundle for bundle in books.account.ready] == [2], "it is sent again"
    assert len(books.account.kills) == 1


def test_a_site_that_is_gone_is_replaced(control: Control, tmp_path: Path, books: Books) -> None:
    root = tmp_path / "batch"
    array(root, "00001-a", [1], site="tight")
    array(root, "00002-a", [2], job="8", site="closed down")
    adopt(books.account, found(control, root), {1, 2})
    places = {id_: each.place.name for id_, each in books.account.arrays.items()}
    assert places == {"7": "tight", "8": "wide"}


def test_what_is_sent_again_is_what_it_was(control: Control, tmp_path: Path, books: Books) -> None:
    root = tmp_path / "batch"
    folder = array(root, "00001-a", [])
    spec = spec_of(3, bundle=5, cores=2)
    (root / "x.code").write_bytes(b"large code")
    work = element.Work(spec, str(root / "x.code"), ("values/000/1.values",))
    element.write_todo(folder, 0, element.Todo("a", (work,), system="slurm", site="wide"))
    adopt(books.account, found(control, root), {5})
    bundle = books.account.bundles[5]
    assert bundle.spec == replace(spec) and bundle.given.code == b"large code"
    assert [place for _, place in bundle.given.deps] == ["values/000/1.values"]
