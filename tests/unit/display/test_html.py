from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from pandaflow.core.errors import WorkflowError
from pandaflow.display.html import (
    bar_html,
    dataset_html,
    plan_html,
    run_html,
    task_html,
    workflow_html,
)
from pandaflow.display.snapshot import parse_run
from pandaflow.display.text import run_line, run_text, task_text

EVIL = "<img src=x onerror=alert(1)>\"'&"


class Checker(HTMLParser):
    """Collects text and tags, and fails on tags that do not match."""

    VOID = frozenset({"img", "br", "rect", "path"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def run(**changes):
    tasks = [
        {
            "name": "select",
            "status": "done",
            "n": 1200,
            "closed": True,
            "jobs": {"finished": 1200},
        },
        {
            "name": "fit",
            "status": "exhausted",
            "reason": "no site has 3 TiB",
            "n": 5,
            "closed": False,
            "jobs": {"failed": 2, "pending": 3},
        },
    ]
    base = {"id": "zmumu-1", "name": "zmumu", "status": "running", "tasks": tasks}
    return {**base, "slots": 8, "busy": 3, "started": 100.0, **changes}


def evil_run():
    task = {"name": EVIL, "status": EVIL, "reason": EVIL, "n": 1, "jobs": {EVIL: 1}}
    return run(id=EVIL, name=EVIL, status=EVIL, tasks=[task])


def test_a_run_shows_its_state_and_its_tasks():
    text = Checker(run_html(run(), now=165.0)).text
    for part in ("zmumu", "running", "1 m 05 s", "3 of 8 slots", "1,200 / 1,200", "0 / 5+"):
        assert part in text
    assert "fit: no site has 3 TiB" in text


@pytest.mark.parametrize(
    "html",
    [
        run_html(evil_run()),
        task_html(evil_run()["tasks"][0]),
        dataset_html(EVIL, EVIL, None, [EVIL]),
        workflow_html(EVIL, "<svg></svg>", [{EVIL: EVIL}]),
        plan_html(EVIL, [{"task": EVIL, "jobs": None, "cached": 0, "run": None, "why": EVIL}]),
        bar_html({EVIL: 1}, 1),
    ],
)
def test_names_are_text_and_there_is_no_script(html):
    checked = Checker(html)
    assert not checked.tags & {"img", "script", "style", "link"}


def test_bars_are_in_proportion_and_failures_never_vanish():
    html = bar_html({"finished": 50, "failed": 1, "pending": 149}, 200)
    assert re.findall(r"width:([\d.]+)%", html) == ["25.00", "0.50"]
    assert "min-width:3px" in html
    assert 'title="50 finished, 1 failed, 149 pending"' in html


def test_datasets_tell_their_size_and_first_items():
    text = Checker(dataset_html("data/*.root", "files", 120, [f"f{k}" for k in range(20)])).text
    assert "120 files" in text and "f7" in text and "f8" not in text and "112 more" in text
    assert "open" in Checker(dataset_html("points", "stream", None, [])).text
    assert "1 item" in Checker(dataset_html("one", "items", 1, [5])).text


def test_workflows_show_graph_and_table():
    html = workflow_html("zmumu", '<svg class="g"></svg>', [{"task": "select", "jobs": 3}])
    assert '<svg class="g"></svg>' in html
    assert "workflow of 1 task" in Checker(html).text
    assert "jobs" in Checker(html).text


def test_hundreds_of_tasks_are_cut():
    tasks = [{"name": f"t{k}", "n": 1, "jobs": {}} for k in range(500)]
    assert "and 440 more tasks" in run_html(run(tasks=tasks))
    assert "and 460 more tasks" in run_text(run(tasks=tasks))


def test_text_of_a_run_is_a_plain_table():
    lines = run_text(run(status="failed", ended=130.0)).splitlines()
    assert (
        lines[0] == "run zmumu-1 (zmumu) failed after 30.0 s: 1,200 finished, 2 failed, 3 pending"
    )
    assert lines[1].split() == ["task", "status", "finished", "failed", "running"]
    assert lines[2].split() == ["select", "done", "1,200/1,200", "0", "0"]
    assert lines[-1] == "  fit: no site has 3 TiB"
    assert not any(line != line.rstrip() for line in lines)


def test_text_of_the_rest():
    parsed = parse_run(run())
    assert task_text(parsed.tasks[1]) == (
        "task fit exhausted (no site has 3 TiB): 2 failed, 3 pending"
    )
    assert run_line({"id": "x"}) == "run x defined: no jobs"


@pytest.mark.parametrize(
    "wrong",
    [{}, {"id": "x", "tasks": [{}]}, {"id": "x", "tasks": [{"name": "a", "jobs": {"b": "c"}}]}],
)
def test_what_is_no_run_is_refused(wrong):
    with pytest.raises(WorkflowError, match="not a"):
        run_text(wrong)
