from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
import threading

import pexpect
import pytest
from rich.console import Console

from pandaflow.core.errors import StoreError
from pandaflow.display.progress import Progress, watch
from pandaflow.display.progress_table import ProgressView

START = 1_000_000.0


def snapshot(finished=0, total=100, status="running", **changes):
    task = {
        "name": "select",
        "status": status,
        "n": total,
        "closed": True,
        "jobs": {"finished": finished, "running": 2, "failed": 1},
    }
    run = {
        "id": "zmumu-1",
        "name": "zmumu",
        "status": status,
        "tasks": [task],
        "slots": 4,
        "busy": 2,
        "started": START,
    }
    return {**run, **changes}


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        self.now += 10.0  # far beyond any throttle
        return self.now


def rendered(view: ProgressView, width: int = 130, height: int = 40) -> str:
    out = io.StringIO()
    Console(file=out, width=width, height=height, force_terminal=False).print(view)
    return out.getvalue()


def fed(*points: tuple[float, int], **changes) -> ProgressView:
    view = ProgressView(window=10.0)
    for at, finished in points:
        view.update(snapshot(finished, **changes), START + at)
    return view


def test_a_task_has_a_line_with_its_numbers():
    lines = rendered(fed((0, 10), (5, 30))).splitlines()
    assert "zmumu" in lines[0] and "5.0 s" in lines[0] and "slots 2/4" in lines[0]
    cells = lines[2].split()
    assert cells[:2] == ["select", "running"]
    # 20 jobs in 5 s; 100 - 30 - 1 jobs to go
    assert cells[3:] == ["30/100", "2", "1", "4.0/s", "17.2", "s"]


def test_rates_are_taken_over_the_window_only():
    view = fed((0, 0), (10, 10), (20, 60), (25, 85))
    task = view.run.tasks[0]
    assert view.pace(task).rate == pytest.approx(5.0)


def test_no_rate_no_eta():
    assert fed((0, 10)).pace(fed((0, 10)).run.tasks[0]).rate is None
    stalled = fed((0, 10), (5, 10))
    assert stalled.pace(stalled.run.tasks[0]).eta is None


def test_open_tasks_have_a_rate_but_no_eta():
    view = ProgressView()
    for at, finished in ((0, 0), (2, 10)):
        open_ = snapshot(finished)
        open_["tasks"][0]["closed"] = False
        view.update(open_, START + at)
    pace = view.pace(view.run.tasks[0])
    assert (pace.rate, pace.eta) == (5.0, None)
    assert "10/100+" in rendered(view)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_lines_fit_the_screen(width):
    view = fed((0, 10), (5, 30))
    for line in rendered(view, width).splitlines():
        assert len(line) <= width


def test_more_tasks_than_lines_show_those_in_motion():
    run = snapshot()
    run["tasks"] = [
        {"name": f"task{k}", "status": "running" if k == 77 else "done", "n": 1, "jobs": {}}
        for k in range(100)
    ]
    view = ProgressView()
    view.update(run, START)
    lines = rendered(view, height=20).splitlines()
    assert len(lines) <= 20
    assert any("task77" in line for line in lines)
    assert "more" in lines[-1]


WAITING = [
    {"name": "default", "slots": 0, "reason": "the Dask cluster has no workers"},
    {"name": "hpc", "slots": 4, "reason": ""},
    {"name": "slurm", "slots": 2, "reason": "2 pilot(s) wait in the queue (Resources)"},
]


def test_why_jobs_wait_stands_below_the_table_while_they_do():
    view = fed((0, 10), executors=WAITING)
    lines = rendered(view).splitlines()
    assert lines[-2:] == [
        "  the Dask cluster has no workers",
        "  slurm: 2 pilot(s) wait in the queue (Resources)",
    ]
    assert "  slurm: 2 pilot(s) wa" in rendered(view, width=30)
    assert max(map(len, rendered(view, width=30).splitlines())) <= 30
    assert "the Dask cluster has no workers" in view.html()
    ended = fed((0, 10), executors=WAITING, status="done")
    for text in (rendered(ended), ended.html()):
        assert "wait" not in text


def test_notes_take_their_lines_from_the_table():
    tasks = [{"name": f"t{k}", "status": "ready", "n": 1, "jobs": {}} for k in range(40)]
    view = fed((0, 10), executors=WAITING, tasks=tasks)
    assert len(rendered(view, height=20).splitlines()) < 20


def test_internal_tasks_show_only_when_they_fail():
    run = snapshot()
    run["tasks"].append({"name": "gate", "status": "running", "n": 1, "jobs": {}, "internal": True})
    view = ProgressView()
    view.update(run, START)
    assert "gate" not in rendered(view)
    run["tasks"][-1]["status"] = "failed"
    view.update(run, START)
    assert "gate" in rendered(view)


def test_quiet_writes_one_line_at_each_end():
    out = io.StringIO()
    with watch(mode="quiet", stream=out, clock=Clock()) as view:
        for finished in range(0, 100, 10):
            view.update(snapshot(finished))
        view.close(snapshot(100, status="done", ended=START + 12))
        view.close(snapshot(100, status="done"))
    lines = out.getvalue().splitlines()
    assert lines[0] == "pandaflow: run zmumu-1 (zmumu) started: 1 task, 100 jobs, 4 slots"
    assert lines[1].startswith("pandaflow: run zmumu-1 (zmumu) done after 12.0 s: 100 finished")
    assert len(lines) == 2


def test_auto_is_quiet_without_a_terminal_and_off_is_off():
    out = io.StringIO()
    with watch(mode="auto", stream=out, clock=Clock()) as view:
        view.update(snapshot())
    assert "\x1b" not in out.getvalue() and "started" in out.getvalue()
    silent = io.StringIO()
    with watch(mode="off", stream=silent) as view:
        view.update(snapshot())
    assert silent.getvalue() == ""
    with pytest.raises(ValueError, match="progress mode"):
        watch(mode="loud")


def test_terminal_lines_are_redrawn_in_place_and_the_cursor_comes_back():
    out = io.StringIO()
    with watch(mode="tty", stream=out, clock=Clock()) as view:
        view.update(snapshot(10))
        view.update(snapshot(20))
    text = out.getvalue()
    assert "10/100" in text and "20/100" in text
    assert "\x1b[1A" in text  # went up to draw over the first
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


class Gone(io.StringIO):
    """A pipe whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError("nobody reads")


@pytest.mark.parametrize("mode", ["tty", "quiet"])
def test_a_broken_screen_does_not_reach_the_run(mode):
    with watch(mode=mode, stream=Gone(), clock=Clock()) as view:
        view.update(snapshot())
        view.update(snapshot())
    view.close(snapshot())


def test_nonsense_does_not_reach_the_run():
    out = io.StringIO()
    with watch(mode="quiet", stream=out, clock=Clock()) as view:
        view.update({"id": 1, "tasks": 7})
        view.update(snapshot())
    assert out.getvalue() == ""  # silent after its first error


def test_errors_of_the_program_are_not_swallowed():
    class Interrupting:
        def draw(self, view: ProgressView) -> None:
            raise KeyboardInterrupt

        def finish(self, view: ProgressView) -> None:
            return None

    with pytest.raises(KeyboardInterrupt), Progress(Interrupting(), clock=Clock()) as view:
        view.update(snapshot())


def test_refreshes_are_throttled():
    drawn = []

    class Screen:
        def draw(self, view: ProgressView) -> None:
            drawn.append(view.now)

        def finish(self, view: ProgressView) -> None:
            return None

    times = iter([START, START + 0.01, START + 0.02, START + 60])
    progress = Progress(Screen(), clock=lambda: next(times))
    for finished in range(4):
        progress.update(snapshot(finished))
    assert drawn == [START, START + 60]


def test_the_last_state_is_fetched_on_leaving():
    out = io.StringIO()
    with watch(
        lambda: snapshot(100, status="done"), mode="quiet", stream=out, clock=Clock()
    ) as view:
        view.update(snapshot(1))
    assert "done" in out.getvalue().splitlines()[-1]


def test_a_fetch_that_fails_on_leaving_does_not_reach_the_run():
    def fetch():
        raise StoreError("the disk is full")

    with watch(fetch, mode="quiet", stream=io.StringIO(), clock=Clock()) as view:
        view.update(snapshot())


def test_follow_ends_with_the_run_or_when_told():
    states = iter(["running", "running", "done"])
    out = io.StringIO()
    view = watch(lambda: snapshot(status=next(states)), mode="quiet", stream=out)
    view.follow(threading.Event(), every=0.001)
    assert "done" in out.getvalue()
    told = threading.Event()
    told.set()
    watch(snapshot, mode="off").follow(told)


def test_on_a_real_terminal():
    script = """
        from pandaflow.display.progress import watch
        run = {"id": "r1", "name": "demo", "status": "running",
               "tasks": [{"name": "select", "status": "running", "n": 9, "jobs": {"finished": 4}}]}
        with watch() as view:
            view.update(run)
            print("a payload prints")
    """
    child = pexpect.spawn(
        sys.executable,
        ["-c", textwrap.dedent(script)],
        env={**os.environ, "TERM": "xterm-256color"},
        dimensions=(24, 100),
        timeout=60,
        encoding="utf-8",
    )
    text = child.read()
    child.close()
    assert child.exitstatus == 0
    assert "4/9" in text
    assert "a payload prints" in text
    assert text.rstrip().endswith("\x1b[?25h")


def test_what_is_piped_stays_clean_and_rich_loads_late():
    script = """
        import sys
        from pandaflow.display.progress import watch
        assert "rich" not in sys.modules
        with watch() as view:
            view.update({"id": "r1", "status": "running", "tasks": []})
            print("data")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "data\n"
    assert "r1" in done.stderr


def test_in_a_notebook_one_cell_is_updated_in_place(monkeypatch):
    from IPython import display as ipython

    shown, updates = [], []

    class Handle:
        def update(self, html):
            updates.append(html.data)

    def display(html, display_id):
        shown.append(html.data)
        return Handle()

    monkeypatch.setattr(ipython, "display", display)
    with watch(mode="notebook", clock=Clock()) as view:
        view.update(snapshot(1))
        view.update(snapshot(50))
    assert len(shown) == 1
    assert ">50<" in updates[0]
