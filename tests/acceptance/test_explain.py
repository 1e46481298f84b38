"""Why a job is where it is, as the store tells it: sites, what is waited for, the story."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pandaflow.cli.app import app
from pandaflow.core import commands as cmd
from pandaflow.core.brokerage import Site, rank
from pandaflow.core.model import Choice, Input, LoopEnd, Output, Resources, TaskSpec, WorkflowSpec
from pandaflow.core.status import JobStatus, TaskStatus
from pandaflow.explain import explain
from pandaflow.store.sql import SqlStore, this_process
from pandaflow.testing.records import (
    T0,
    bundle_records,
    example_spec,
    failure,
    moved,
    opening_records,
)

Told = Callable[..., str]
#: What brokerage says of a job with 8 cores.
WHY = rank(Resources(cores=8), [Site("long", cores=64), Site("short", cores=4)]).describe()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    store = SqlStore(str(tmp_path / "state.db"))
    yield store
    store.close()


def commit(store: SqlStore, records: list[cmd.Record], spec: WorkflowSpec | None = None) -> None:
    store.create_run(spec or example_spec(), run_id="r1", created=T0, results="")
    driver = store.drive("r1", this_process(), 60.0)
    driver.commit(records)
    driver.release()


def site_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.startswith("  site: ")), "")


def sited(bundle: int, site: str, reason: str = "", attempt: int = 1) -> cmd.BundleSited:
    return cmd.BundleSited(T0 + 1, bundle, 0, range(10), attempt, site, reason)


def test_a_live_job_tells_its_site_and_why_not_elsewhere(store: SqlStore) -> None:
    sent, running, _ = bundle_records(1, range(10))
    commit(store, [*opening_records(), sent, sited(1, "", WHY), sited(1, "long", WHY), running])
    text = explain(store.reader(), "r1", "select", 3)
    assert site_line(text) == (
        "  site: long; may run at long (weight 9); "
        "not at short: asks for 8 cores and it has 4 cores"
    )
    story = text.partition("story:")[2].splitlines()
    assert [line.split("  ")[-1] for line in story[1:]] == [
        "ready -> sent (bundle 1)",
        f"may be placed (bundle 1): {WHY}",
        f"placed at long (bundle 1): {WHY}",
        "sent -> running (bundle 1)",
    ]


def test_a_site_may_not_be_chosen_yet(store: SqlStore) -> None:
    commit(store, [*opening_records(), bundle_records(1, range(10))[0], sited(1, "", WHY)])
    assert site_line(explain(store.reader(), "r1", "select", 0)) == f"  site: not chosen yet; {WHY}"


def test_a_site_known_only_from_the_start(store: SqlStore) -> None:
    sent, running, _ = bundle_records(1, range(10))
    commit(store, [*opening_records(), sent, replace(running, site="short")])
    text = explain(store.reader(), "r1", "select", 0)
    assert site_line(text) == "  site: short"
    assert "sent -> running at short (bundle 1)" in text


def test_without_sites_nothing_is_said_of_them(store: SqlStore) -> None:
    commit(store, [*opening_records(), *bundle_records(1, range(10))[:2]])
    text = explain(store.reader(), "r1", "select", 0)
    assert "site" not in text and "placed" not in text


def test_only_the_placement_of_the_attempt_in_flight_counts(store: SqlStore) -> None:
    sent, running, _ = bundle_records(1, range(10))
    back = moved(
        range(10), JobStatus.RUNNING, JobStatus.READY, attempt=1, bundle=1, failure=failure()
    )
    again = bundle_records(2, range(10), attempt=2)[0]
    commit(store, [*opening_records(), sent, sited(1, "long", WHY), running, back, again])
    text = explain(store.reader(), "r1", "select", 0)
    assert site_line(text) == ""
    assert "attempt 1: failed after ? on w1 at long" in text


def test_a_job_that_has_ended_tells_its_site_with_its_attempt(store: SqlStore) -> None:
    sent, running, ended = bundle_records(1, range(10), wall=[1.0] * 10)
    commit(store, [*opening_records(), sent, sited(1, "long", WHY), running, ended])
    text = explain(store.reader(), "r1", "select", 0)
    assert site_line(text) == ""
    assert "attempt 1: finished after 1 s on w1 at long" in text


# --- what is waited for -------------------------------------------------------------------


def task(number: int, *inputs: Any, name: str = "", **more: Any) -> TaskSpec:
    slots = tuple(Input(dataset) for dataset in inputs)
    name = name or f"t{number}"
    return TaskSpec(id=number, name=name, token="t", payload="p", inputs=slots, **more)


def waiting(store: SqlStore, *tasks: TaskSpec, ended: int = 0) -> str:
    """Tell why job 0 of the last task waits; the first ``ended`` tasks are done."""
    last = tasks[-1].id
    records: list[cmd.Record] = [cmd.TaskGrew(T0, last, 1, True, JobStatus.PENDING)]
    for number in range(ended):
        records.append(cmd.TaskMoved(T0, number, TaskStatus.DEFINED, TaskStatus.DONE))
    commit(store, records, WorkflowSpec(name="w", tasks=tasks))
    text = explain(store.reader(), "r1", tasks[-1].name, 0)
    said = [line for line in text.splitlines() if "tasks before it" in line]
    return said[0].strip() if said else ""


def test_it_waits_for_what_it_depends_on_and_not_for_strangers(store: SqlStore) -> None:
    tasks = [task(k) for k in range(5)]
    last = task(5, Output(3), Choice(1, Output(2), Output(0)), guards=((4, True),))
    assert waiting(store, *tasks, last, ended=1) == (
        "tasks before it still work: t1 (0 of 0 finished), t2 (0 of 0 finished), "
        "t3 (0 of 0 finished), t4 (0 of 0 finished)"
    )


def test_a_barrier_is_waited_for(store: SqlStore) -> None:
    last = task(2, after=(Output(1),))
    assert waiting(store, task(0), task(1), last) == (
        "tasks before it still work: t1 (0 of 0 finished)"
    )


def test_what_has_ended_is_not_waited_for(store: SqlStore) -> None:
    assert waiting(store, task(0), task(1, Output(0)), ended=1) == ""


def test_behind_a_loop_a_few_of_many_are_named(store: SqlStore) -> None:
    said = waiting(store, *(task(k) for k in range(9)), task(9, LoopEnd(0)))
    assert said.startswith("tasks before it still work: t0 (0 of 0 finished), t1 ")
    assert said.endswith("t4 (0 of 0 finished) and 4 more")


# --- the command line ---------------------------------------------------------------------


@pytest.fixture
def told(tmp_path: Path) -> Told:
    def call(*args: str) -> str:
        result = CliRunner().invoke(app, ["--store", str(tmp_path / "state.db"), *args])
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


def test_jobs_show_their_site_only_where_there_is_one(store: SqlStore, told: Told) -> None:
    commit(store, [*opening_records(), *bundle_records(1, range(5))])
    heading = told("jobs", "r1").splitlines()[0].split()
    assert "SITE" not in heading
    assert '"site": null' in told("jobs", "r1", "--json")
    driver = store.drive("r1", this_process(), 60.0)
    placed = cmd.BundleSited(T0, 2, 0, range(5, 6), 1, "long")
    driver.commit([bundle_records(2, range(5, 6))[0], placed])
    driver.release()
    table = [line.split() for line in told("jobs", "r1").splitlines()]
    assert table[0] == [*heading[:-1], "SITE", heading[-1]]
    place = table[0].index("SITE")
    assert table[6][:3] == ["select", "5", "sent"]
    assert [row[1] for row in table if "long" in row] == ["5"]
    assert '"site": "long"' in told("jobs", "r1", "--json")
    assert store.reader().sites("r1") == ["long"]
    assert len(table[0]) == place + 2


def test_status_folds_numbered_sub_workflows(store: SqlStore, told: Told) -> None:
    names = [f"scan/{trial}.0/{part}" for trial in range(30) for part in ("simulate", "fit")]
    tasks = [task(k, name=name) for k, name in enumerate(["prepare", *names])]
    commit(store, [], WorkflowSpec(name="w", tasks=tuple(tasks)))
    rows = [line.split()[0] for line in told("status", "r1").splitlines()[2:]]
    assert rows[:3] == ["prepare", "scan/*/simulate", "scan/*/fit"]
    assert len(rows) <= 4  # and who drives it
    assert told("status", "r1", "--json").count('"name": "scan/') == 60
