"""Requests from outside become events, or are refused with the reason."""

from __future__ import annotations

import pytest

from pandaflow.core import events as ev
from pandaflow.core.engine import Engine
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import TaskSpec, WorkflowSpec
from pandaflow.core.policy import Retry
from pandaflow.wishes import task_id, wish


@pytest.fixture
def engine() -> Engine:
    named = enumerate(("fill", "merge"))
    tasks = [TaskSpec(id=k, name=name, token="t", payload="p", single=True) for k, name in named]
    return Engine(WorkflowSpec(name="w", tasks=tuple(tasks)))


def retry(engine: Engine, **body: object) -> ev.RetryRequested:
    event = wish(engine, "retry", body, 5.0)
    assert isinstance(event, ev.RetryRequested)
    return event


def test_a_retry_carries_what_was_named_and_no_more(engine: Engine) -> None:
    options = {"memory": "2 GiB", "cores": 4, "retries": 3, "executor": None}
    event = retry(engine, task="merge", restart=True, options=options, by="me")
    assert (event.at, event.task, event.restart, event.by) == (5.0, 1, True, "me")
    assert event.changes == {
        "memory": 2 * 2**30,
        "cores": 4,
        "retry": Retry(retries=3),
        "executor": None,
    }
    assert retry(engine).changes == {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory": "much"}, "option 'memory'"),
        ({"memry": 1}, "did you mean 'memory'"),
        ({"goal": 0.5}, "a retry cannot change 'goal'; it can change cores, memory"),
    ],
)
def test_options_that_a_retry_cannot_have(
    engine: Engine, options: dict[str, object], said: str
) -> None:
    with pytest.raises(WorkflowError, match=said):
        retry(engine, options=options)


def test_other_requests(engine: Engine) -> None:
    assert wish(engine, "cancel", {"task": "merge", "job": 3}, 1.0) == ev.CancelRequested(1.0, 1, 3)
    assert wish(engine, "cancel", {}, 1.0) == ev.CancelRequested(1.0)
    assert wish(engine, "pause", {"by": "me"}, 1.0) == ev.PauseRequested(1.0, "me")
    assert wish(engine, "resume", {}, 1.0) == ev.ResumeRequested(1.0)
    body = {"source": 0, "count": 2, "closed": 1}
    assert wish(engine, "append", body, 1.0) == ev.ItemsAppended(1.0, 0, 2, True)


def test_what_nobody_understands_is_refused(engine: Engine) -> None:
    for kind, body, said in (
        ("dance", {}, "unknown request 'dance'"),
        ("cancel", {"task": "fil"}, "no task 'fil' in this run; there are fill, merge"),
        ("grow", {"fragment": {"tasks": 3}}, "fragment|tasks"),
    ):
        with pytest.raises(WorkflowError, match=said):
            wish(engine, kind, body, 1.0)
    assert task_id(engine, "merge") == 1
