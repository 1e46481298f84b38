"""What a runner decides by itself: when to try again, what it refuses, what its command takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pandaflow.cli import runner as command
from pandaflow.cli.app import app
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import SteererSpec, TaskSpec, WorkflowSpec
from pandaflow.executors.grid.executor import Grid
from pandaflow.ports import Submitter
from pandaflow.runners import BackOff, RunnerService, RunnerSettings
from pandaflow.store.serving import ServedRun
from pandaflow.store.sql import SqlStore

RUN = ServedRun("r1", "atlas", "https://iam.example.org/#me", ended=False)


def test_runs_that_give_trouble_are_left_alone_ever_longer() -> None:
    now = [100.0]
    later = BackOff(lambda: now[0])
    assert later.is_due("r")
    pauses = []
    for _ in range(12):
        pauses.append(later.add("r"))
        assert not later.is_due("r")
        now[0] += pauses[-1]
        assert later.is_due("r")
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (2.0, 300.0)
    assert later.is_due("other")
    later.forget("r")
    assert later.add("r") == 2.0


def test_bundles_belong_to_whoever_left_the_run() -> None:
    given = {"big": {"queue": "CERN"}, "near": {"queue": "B", "data": "s3://b"}}
    settings = RunnerSettings("", "https://pool.org", data="s3://a", executors=given)
    places = settings.places(RUN)
    assert list(places) == ["default", "big", "near"]
    made: list[Any] = [place.settings for place in places.values() if isinstance(place, Grid)]
    assert {each.owner for each in made} == {RUN.submitter}
    assert {each.vo for each in made} == {"atlas"}
    assert [each.name for each in made] == ["", "big", "near"]
    assert [each.queue for each in made] == ["", "CERN", "B"]
    assert [each.data for each in made] == ["s3://a", "s3://a", "s3://b"]


def test_a_bad_setting_is_told_at_once(tmp_path: Path) -> None:
    store = SqlStore(str(tmp_path / "s.db"))
    for wrong in ({"server": "pool.org"}, {"executors": {"a": {"nonsense": 1}}}):
        with pytest.raises(WorkflowError):
            RunnerService(RunnerSettings(**{"store": "", "server": "https://p", **wrong}), store)


def left(store: SqlStore, **more: Any) -> ServedRun:
    task = TaskSpec(id=0, name="t", token="t", payload="p", executor=more.pop("executor", None))
    spec = WorkflowSpec(name="w", tasks=(task,), **more)
    store.create_run(spec, run_id="r1", created=1.0, results="/no", served=Submitter())
    (run,) = store.waiting_runs()
    return run


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"executor": "gpu"}, "task 't' asks for executor 'gpu'; given: default"),
        ({"steerers": (SteererSpec(name="study", module="os", blob=""),)}, "study decides in"),
    ],
)
def test_runs_that_cannot_be_driven_end_with_the_reason(
    tmp_path: Path, more: Any, told: str
) -> None:
    """Before the server is asked for anything; no module of a steerer is imported."""
    store = SqlStore(str(tmp_path / "s.db"))
    run = left(store, **more)
    service = RunnerService(RunnerSettings("", "http://127.0.0.1:1"), store)
    assert service._take(run)
    row = store.reader().run("r1")
    assert row["status"] == "failed"
    assert told in row["reason"]
    assert told in row["tasks"][0]["reason"]
    assert store.waiting_runs() == []
    assert not store.driven("r1")


def test_executors_are_named_on_the_command_line_or_in_a_file(tmp_path: Path) -> None:
    assert command._named("big=CERN") == ("big", {"queue": "CERN"})
    for wrong in ("big", "big=", "=CERN", "default=CERN", "a/b=CERN"):
        with pytest.raises(WorkflowError, match="--executor"):
            command._named(wrong)
    file = tmp_path / "e.toml"
    file.write_text('[big]\nqueue = "CERN"\ntags = ["gpu"]\n')
    assert command._from_file(file) == {"big": {"queue": "CERN", "tags": ["gpu"]}}
    for text in ("[big", "x = 1", "[big]\nowner = 'root'", "[default]\nqueue = 'A'"):
        file.write_text(text)
        with pytest.raises(WorkflowError, match=r"e\.toml"):
            command._from_file(file)


def test_the_command_tells_what_is_wrong(tmp_path: Path) -> None:
    def call(*words: str) -> str:
        store = f"sqlite:///{tmp_path}/s.db"
        result = CliRunner().invoke(app, ["--store", store, "runner", *words])
        assert result.exit_code == 2
        return result.output

    assert "--server" in call()
    assert "give its URL" in call("--server", "pool")
    assert "does not answer" in call("--server", "http://127.0.0.1:1", "--once")
