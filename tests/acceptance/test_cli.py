"""The command line as a person, a pipe and cron use it, with a real engine and a real store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from click.testing import CliRunner, Result

from pandaflow.cli.app import app

ROOT = Path(__file__).parents[2]

ANALYSIS = '''
"""A small analysis."""
from pathlib import Path
import time
import pandaflow as pf
from constants import SCALE

@pf.task
def square(x, offset=0):
    return SCALE * x * x + offset

@pf.task(n_jobs=1)
def total(xs):
    return sum(xs)

@pf.task
def picky(x, gate):
    print(f"looking at {x}")
    if x == 2 and not Path(gate).exists():
        raise OSError("the gate is shut")
    return x

@pf.task
def patient(x, gate):
    while not Path(gate).exists():
        time.sleep(0.02)
    return x

@pf.workflow
def squares(n: int, offset: int = 0, name: str = "unnamed"):
    """Sum some squares.

    More words.
    """
    return total(square(pf.items(range(n)), offset=offset))

@pf.workflow
def gated(gate: str, n: int = 4):
    return total(picky(pf.items(range(n)), gate))

@pf.workflow
def waiting(gate: str, n: int = 4):
    return total(patient(pf.items(range(n)), gate))

@pf.workflow
def afar(gate: str, n: int = 4):
    return total(picky.options(executor="far")(pf.items(range(n)), gate))

@pf.workflow
def waiting_afar(gate: str, n: int = 4):
    return total(patient.options(executor="far")(pf.items(range(n)), gate))

@pf.workflow
def broken():
    return undefined_name

not_a_workflow = 1
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "analysis.py").write_text(ANALYSIS)
    (tmp_path / "constants.py").write_text("SCALE = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PANDAFLOW_STORE", f"sqlite:///{tmp_path}/flow.db")
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name in ("analysis", "constants", "broken_file", "workflow_json"):
            del sys.modules[name]


def _call(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)


def _json(*args: object) -> Any:
    result = _call(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _run(*args: object) -> Result:
    return _call("run", *args, "--executor", "threads", "--workers", 2)


# --- help ---------------------------------------------------------------------------------


#: The pilot is a program of its own, with its own help.
OWN_HELP = ("pilot", "store")


@pytest.mark.parametrize("name", [name for name in sorted(app.commands) if name not in OWN_HELP])
def test_every_command_has_an_example(name: str) -> None:
    result = _call(name, "--help")
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert f"pandaflow {name}" in result.stdout
    assert len(max(result.stdout.splitlines(), key=len)) <= 100


def test_help_is_quick_to_import() -> None:
    code = "import sys, pandaflow.cli; print('dask' in sys.modules, 'sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_help_of_a_workflow_lists_its_parameters(folder: Path) -> None:
    result = _call("run", "analysis.py:squares", "--help")
    assert result.exit_code == 0
    assert "Sum some squares." in result.stdout
    assert "--n INTEGER" in result.stdout
    assert "[default: 0]" in result.stdout
    assert "-P name=VALUE" in result.stdout, "--name is an option of run"


# --- run ----------------------------------------------------------------------------------


def test_a_run_prints_its_result_on_stdout_only(folder: Path) -> None:
    result = _run("analysis.py:squares", "--n", 4)
    assert result.exit_code == 0, result.output
    assert result.stdout == "14\n"
    assert "done" in result.stderr


def test_a_quiet_run_says_nothing_else(folder: Path) -> None:
    result = _run("analysis.py:squares", "--n", 4, "--offset=1", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "18\n", "")


def test_a_run_as_json(folder: Path) -> None:
    result = _run("analysis.py:squares", "--n", 4, "--json", "--quiet")
    summary = json.loads(result.stdout)
    assert (summary["status"], summary["result"]) == ("done", 14)
    assert {task["name"]: task["jobs"]["finished"] for task in summary["tasks"]} == {
        "square": 4,
        "total": 1,
    }


def test_a_dry_run_runs_nothing(folder: Path) -> None:
    result = _run("analysis.py:squares", "--n", 4, "--dry-run")
    assert result.exit_code == 0
    assert "square" in result.stdout
    rows = json.loads(_run("analysis.py:squares", "--n", 4, "--dry-run", "--json").stdout)
    assert [(row["task"], row["jobs"]) for row in rows] == [("square", 4), ("total", 1)]
    assert _json("ls") == []


def test_a_parameter_named_like_an_option_is_given_by_name(folder: Path) -> None:
    result = _run("analysis.py:squares", "-P", "name=mine", "-P", "n=2", "--name", "the run")
    assert result.exit_code == 0, result.output
    assert _json("ls")[0]["name"] == "the run"


def test_modules_beside_the_file_travel_to_worker_processes(folder: Path) -> None:
    result = _call("run", "analysis.py:squares", "--n", 3, "--executor", "local", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert result.stdout == "5\n"


def test_one_job_at_a_time_in_this_process(folder: Path) -> None:
    result = _call("run", "analysis.py:squares", "--n", 3, "--executor", "sync")
    assert (result.exit_code, result.stdout) == (0, "5\n")


# --- what goes wrong ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("run", "missing.py:w"), "missing.py"),
        (("run", "analysis.py:square_s"), "did you mean 'squares'"),
        (("run", "analysis.py"), "squares"),
        (("run", "analysis.py:not_a_workflow"), "@pf.workflow"),
        (("run", "analysis.py:squares"), "--n"),
        (("run", "analysis.py:squares", "--n", "many"), "many"),
        (("run", "analysis.py:squares", "--n", "1", "--m", "2"), "--m"),
        (("run", "analysis.py:squares", "--n", "1", "-P", "m"), "NAME=VALUE"),
        (("run", "analysis.py:squares", "--n", "1", "--executor", "moon"), "local"),
        (("run", "analysis.py:squares", "--n", "1", "--executor", "dask"), "dask:tcp://"),
        (("run", "analysis.py:broken"), "undefined_name"),
        (("graph", "analysis.py:broken"), "undefined_name"),
        (("status", "nosuchrun"), "nosuchrun"),
        (("status", "last"), "run"),
        (("explain", "last", "square"), "run"),
        (("logs", "last"), "--failed"),
        (("ls", "--store", "nosuchdb://host"), "nosuchdb"),
        (("jobs", "last", "--status", "sleepy"), "sleepy"),
        (("dance",), "dance"),
    ],
)
def test_a_bad_request_exits_2_and_says_what_to_do(
    folder: Path, args: tuple[str, ...], told: str
) -> None:
    result = _call(*args)
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_a_file_that_fails_to_import_is_told_with_its_line(folder: Path) -> None:
    (folder / "broken_file.py").write_text("x = 1\nraise SystemExit('half way')\n")
    result = _call("run", "broken_file.py:w")
    assert result.exit_code == 2
    assert "broken_file.py:2" in result.stderr
    assert "half way" in result.stderr


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert _call("--version").stdout == f"pandaflow {project['version']}\n"


def test_debug_shows_the_traceback(folder: Path) -> None:
    done = _process("--debug", "run", "analysis.py:broken").communicate(timeout=60)
    assert "Traceback" in done[1]
    assert "NameError" in done[1]


def test_a_file_named_like_a_library_is_not_confused_with_it(folder: Path) -> None:
    (folder / "json.py").write_text(ANALYSIS.replace("from constants import SCALE", "SCALE = 2"))
    result = _run("json.py:squares", "--n", 3)
    assert (result.exit_code, result.stdout) == (0, "10\n")


def test_a_failed_run_is_told_looked_at_and_tried_again(folder: Path) -> None:
    gate = folder / "gate"
    failed = _run("analysis.py:gated", "--gate", gate, "--json", "--quiet")
    assert failed.exit_code == 1
    assert "picky[2]" in failed.stderr
    assert "the gate is shut" in failed.stderr
    assert json.loads(failed.stdout)["status"] == "failed"

    assert [row["index"] for row in _json("jobs", "last", "--status", "failed")] == [2]
    assert "the gate is shut" in _call("logs", "last", "--failed").stdout
    assert "looking at 2" in _call("logs", "last", "picky[2]").stdout
    assert "analysis.py" in _call("logs", "last", "picky[2]").stdout, "with its traceback"
    assert "looking at 1" in _call("logs", "last", "picky:1").stdout
    assert "the gate is shut" in _call("explain", "last", "picky[2]").stdout
    assert "def" in _call("reproduce", "last", "picky[2]").stdout or "import" in (
        _call("reproduce", "last", "picky[2]").stdout
    )

    gate.touch()
    again = _call("retry", "last", "--executor", "threads", "--quiet")
    assert (again.exit_code, again.stdout) == (0, "6\n"), again.output
    rows = _json("jobs", "last", "--task", "picky")
    assert [row["attempt"] for row in rows] == [1, 1, 2, 1]


def test_a_retry_takes_executors_by_name(folder: Path) -> None:
    gate = folder / "gate"
    places = ("--executor", "sync", "--executor", "far=threads")
    first = _call("run", "analysis.py:afar", "--gate", gate, *places, "--quiet")
    assert first.exit_code == 1, first.output
    gate.touch()
    again = _call("retry", "last", *places, "--quiet")
    assert (again.exit_code, again.stdout) == (0, "6\n"), again.output


# --- look ---------------------------------------------------------------------------------


@pytest.fixture
def two_runs(folder: Path) -> Path:
    assert _run("analysis.py:squares", "--n", 2, "--name", "first").exit_code == 0
    assert _run("analysis.py:squares", "--n", 3, "--name", "second").exit_code == 0
    return folder


def test_runs_are_listed_newest_first(two_runs: Path) -> None:
    rows = _json("ls")
    assert [row["name"] for row in rows] == ["second", "first"]
    assert all({"id", "name", "status", "created"} <= set(row) for row in rows)
    assert [row["name"] for row in _json("ls", "--limit", 1)] == ["second"]
    lines = _call("ls").stdout.splitlines()
    assert lines[0].split() == ["ID", "NAME", "STATUS", "CREATED", "JOBS"]
    assert [line.split()[1] for line in lines[1:]] == ["second", "first"]


def test_a_run_is_named_by_id_prefix_or_last(two_runs: Path) -> None:
    newest, oldest = _json("ls")
    assert _json("status", "last")["id"] == newest["id"]
    assert _json("status", oldest["id"])["name"] == "first"


def test_status_tells_the_tasks(two_runs: Path) -> None:
    summary = _json("status", "last")
    assert summary["status"] == "done"
    assert [(t["name"], t["status"], t["jobs"]["finished"]) for t in summary["tasks"]] == [
        ("square", "done", 3),
        ("total", "done", 1),
    ]
    text = _call("status", "last").stdout
    assert "second" in text
    assert "3 finished" in text


def test_jobs_are_listed_filtered_and_cut(two_runs: Path) -> None:
    rows = _json("jobs", "last")
    assert [(r["task"], r["index"], r["status"], r["attempt"]) for r in rows] == [
        *(("square", k, "finished", 1) for k in range(3)),
        ("total", 0, "finished", 1),
    ]
    assert len(_json("jobs", "last", "--task", "total")) == 1
    assert len(_json("jobs", "last", "--limit", 2)) == 2
    assert _json("jobs", "last", "--status", "failed") == []


def test_events_are_numbered_and_can_be_continued(two_runs: Path) -> None:
    rows = _json("events", "last")
    assert len(rows) > 3
    followed = _call("events", "last", "--follow", "--json").stdout.splitlines()
    assert [json.loads(line) for line in followed] == rows


def test_a_graph_as_text_json_and_picture(two_runs: Path) -> None:
    for target in (("analysis.py:squares", "--n", 3), ("last",)):
        text = _call("graph", *target).stdout
        assert text == "range(0, 3)  3 items\n  square  3 jobs\n    total  1 job\n"
    rows = _json("graph", "analysis.py:squares", "--n", 3)
    assert [(row["task"], row["kind"], row["after"]) for row in rows] == [
        ("range(0, 3)", "source", []),
        ("square", "function", ["range(0, 3)"]),
        ("total", "function", ["square"]),
    ]
    assert _call("graph", "last", "--svg", "graph.svg").exit_code == 0
    assert "<svg" in Path("graph.svg").read_text()


def test_a_timeline_is_drawn(two_runs: Path) -> None:
    assert _call("timeline", "last", "--out", "timeline.svg").exit_code == 0
    assert "<svg" in Path("timeline.svg").read_text()


def test_a_job_is_reproduced_by_a_script(two_runs: Path) -> None:
    assert _call("reproduce", "last", "square[2]", "--out", "again.py").exit_code == 0
    done = subprocess.run(
        [sys.executable, "again.py"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "4" in done.stdout


def test_the_store_is_upgraded_and_may_be_again(folder: Path) -> None:
    for _ in range(2):
        result = _call("store", "upgrade")
        assert result.exit_code == 0, result.output
        assert "up to date" in result.stdout


def test_the_demonstration_needs_no_extras(folder: Path) -> None:
    result = _call("demo", "--samples", 4, "--executor", "threads", "--workers", 2)
    assert result.exit_code == 0, result.output
    assert "91.188 GeV" in result.stdout


# --- processes: pipes, signals, cron ------------------------------------------------------


def _process(*args: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pandaflow.cli", *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture
def started(folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start processes in a session of their own, and leave none behind."""
    processes: list[subprocess.Popen[str]] = []

    def start(*args: object, **options: Any) -> subprocess.Popen[str]:
        processes.append(_process(*args, start_new_session=True, **options))
        return processes[-1]

    yield start
    (folder / "gate").touch()
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.communicate(timeout=30)


def _until_running(process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 60
    while time.monotonic() < limit and process.poll() is None:
        found = _call("jobs", "last", "--status", "running", "--json")
        if found.exit_code == 0 and json.loads(found.stdout):
            return
        time.sleep(0.1)
    pytest.fail(f"nothing runs: {process.communicate(timeout=30)}")


def _waiting(folder: Path, *executor: object) -> tuple[object, ...]:
    """Return a command whose jobs run until the gate exists."""
    gate = folder / "gate"
    return ("run", "analysis.py:waiting", "--gate", gate, "--executor", *executor)


Start = Callable[..., "subprocess.Popen[str]"]


def test_ctrl_c_cancels_and_exits_130(started: Start, folder: Path) -> None:
    process = started(*_waiting(folder, "local", "--workers", 1))
    _until_running(process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "retry" in said
    assert "Traceback" not in said
    assert _json("status", "last")["status"] == "aborted"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_driver_leaves_a_run_that_can_be_resumed(
    number: signal.Signals, started: Start, folder: Path
) -> None:
    process = started(*_waiting(folder, "local", "--workers", 1))
    _until_running(process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else -number), said
    assert _json("status", "last")["status"] == "running"
    if number == signal.SIGTERM:
        assert f"pandaflow resume {_json('ls')[0]['id']}" in said
        assert "Traceback" not in said
    (folder / "gate").touch()
    result = _call("resume", "last", "--executor", "threads", "--quiet")
    assert (result.exit_code, result.stdout) == (0, "6\n"), result.output


def test_a_run_whose_tasks_name_an_executor_is_resumed(started: Start, folder: Path) -> None:
    places = ("--executor", "sync", "--executor", "far=threads")
    process = started("run", "analysis.py:waiting_afar", "--gate", folder / "gate", *places)
    _until_running(process)
    process.kill()
    process.communicate(timeout=60)
    (folder / "gate").touch()
    result = _call("resume", "last", *places, "--quiet")
    assert (result.exit_code, result.stdout) == (0, "6\n"), result.output


def test_a_run_is_steered_from_another_process(started: Start, folder: Path) -> None:
    process = started(*_waiting(folder, "threads", "--workers", 1))
    _until_running(process)
    assert _call("pause", "last").exit_code == 0
    assert _call("resume", "last").exit_code == 0
    assert _call("cancel", "last", "--json").exit_code == 0
    (folder / "gate").touch()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert _json("status", "last")["status"] == "aborted"


def test_cron_has_no_terminal_no_home_and_little_environment(started: Start, folder: Path) -> None:
    bare = {"PATH": "/usr/bin:/bin", "PANDAFLOW_STORE": f"sqlite:///{folder}/flow.db"}
    bare |= {key: os.environ[key] for key in ("PYTHONPATH",) if key in os.environ}
    process = started("run", f"{folder}/analysis.py:squares", "--n", 3, env=bare, cwd="/")
    out, said = process.communicate(timeout=100)
    assert (process.returncode, out) == (0, "5\n"), said
    assert "\x1b" not in out + said


def test_output_in_a_pipe_has_no_colour_and_survives_head(two_runs: Path) -> None:
    command = f"{sys.executable} -m pandaflow.cli jobs last | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("TASK")
    assert "\x1b" not in done.stdout
    assert "Traceback" not in done.stderr


def test_on_a_terminal_progress_and_tables_are_drawn(folder: Path) -> None:
    environ = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    environ.pop("NO_COLOR", None)
    start = ["-m", "pandaflow.cli"]
    run = [*start, "run", "analysis.py:squares", "--n", "3", "--executor", "threads"]
    for args, told in ((run, "square"), ([*start, "status", "last"], "done")):
        output, code = pexpect.run(
            f"{sys.executable} {' '.join(args)}", env=environ, timeout=60, withexitstatus=True
        )
        assert code == 0, output
        assert told in output.decode()
        assert b"\x1b[" in output
