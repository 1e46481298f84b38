from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pandaflow.core.bundle import SourceSlice
from pandaflow.core.errors import WorkflowError
from pandaflow.core.model import File, Input, Resources, Source
from pandaflow.data.results import ResultStore
from pandaflow.executors.cache import checksum
from pandaflow.executors.command import CommandPayload, Mark, parse_command
from pandaflow.executors.payload import Slot, cancel
from pandaflow.executors.process import _TAG, _Guard

FIRST = (Slot(0),)


class Commands:
    """Runs commands as jobs of a bundle."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        self.bundle = -1

    def spec(self, items: Any, **changes: Any) -> Any:
        self.bundle += 1
        return self.bench.spec(items, kind="command", bundle=self.bundle, **changes)

    def run(self, template: str, items: Any = (0,), *, args: Any = FIRST, **options: Any) -> Any:
        limits = {k: options.pop(k) for k in ("walltime", "memory", "disk") if k in options}
        changes = {k: options.pop(k) for k in ("jobs", "attempt", "lists") if k in options}
        kwargs = options.pop("kwargs", None)
        payload = CommandPayload(template, tuple(args), kwargs, **options)
        spec = self.spec(items, resources=Resources(cores=3, **limits), **changes)
        return self.bench.run(payload, spec)

    @property
    def ended(self) -> Any:
        return self.bench.ended

    def log(self, position: int = 0) -> str:
        store = ResultStore(self.bench.results)
        return str(store.read_log(self.bundle, self.ended.logs[position]))


@pytest.fixture
def commands(bench: Any) -> Commands:
    return Commands(bench)


# --- templates --------------------------------------------------------------------------


def test_placeholders_are_parsed() -> None:
    command = parse_command("run --in %IN --more %IN2 -o %OUT{a/b.root} -n %RNDM:10 %{x} 5%%")
    assert command.marks == (
        Mark("IN", 0),
        Mark("IN", 1),
        Mark("OUT", name="a/b.root"),
        Mark("RNDM", 10),
        Mark("NAMED", name="x"),
    )
    assert command.outputs == ("a/b.root",)
    assert command.parts[-1] == "%" or str(command.parts[-1]).endswith("%")


@pytest.mark.parametrize(
    "text",
    ["", "  ", "x %INPUT", "x %OUT", "x %OUT{/abs}", "x %OUT{../up}", "x %OUT{a b}", "x %{1}"],
)
def test_bad_commands_are_refused_when_built(text: str) -> None:
    with pytest.raises(WorkflowError):
        parse_command(text)


@pytest.mark.parametrize("text", ["x %NOSUCH", "x %OUT{}", "x %IN0", "x %RNDM{3}"])
def test_unknown_placeholders_are_refused_when_built(text: str) -> None:
    with pytest.raises(WorkflowError, match="unknown placeholder"):
        parse_command(text)


@pytest.mark.parametrize("text", ["printf '%s %d' a 1", "date +%s", "echo 50% of it", "a%"])
def test_other_percent_signs_stay(text: str) -> None:
    assert parse_command(text).parts == (text,)


@given(st.text("ab %{}INOUTRDM:1", max_size=20))
def test_parsing_ends_in_a_command_or_in_a_workflow_error(text: str) -> None:
    try:
        command = parse_command(text)
    except WorkflowError:
        return
    literal = "".join(part for part in command.parts if isinstance(part, str))
    assert command.marks or literal == text.replace("%%", "%")


def test_arguments_are_checked_against_placeholders() -> None:
    command = parse_command("a %IN %IN2 %{x} %MAXEVENTS")
    command.check(2, ["x", "max_events"])
    for n_args, names, culprit in [(1, ["x"], "%IN2"), (2, [], "%{x}"), (2, ["x", "y"], "y=")]:
        with pytest.raises(WorkflowError, match=culprit.replace("{", r"\{")):
            command.check(n_args, names)


# --- values -----------------------------------------------------------------------------


def test_without_outputs_the_value_is_what_was_printed(commands: Commands) -> None:
    out = commands.run("echo ' hello '; echo warn >&2; echo %IN", ["a b", "$HOME;'x'"])
    assert out.values == ["hello \na b", "hello \n$HOME;'x'"]
    assert sorted(commands.log(0).splitlines()) == [" hello ", "a b", "warn"]
    assert os.listdir(os.path.join(commands.bench.workdir, "run1", "fill")) == []


def test_placeholders_become_what_the_job_has(commands: Commands, tmp_path: Path) -> None:
    files = [File(str(tmp_path / "a b.root"), events=10), File("root://host//c", events=5)]
    out = commands.run(
        "echo %IN '|' %IN2 '|' %RNDM:100 %CORE_NUMBER %MAXEVENTS %SKIPEVENTS %FIRSTEVENT %{n} %%",
        [None, files],
        args=(Slot(0), "second"),
        kwargs={"n": [1, "two words"]},
        jobs=range(1, 2),
    )
    first = os.path.join(str(tmp_path), "a b.root")
    assert out.values == [f"{first} root://host//c | second | 101 3 15 0 15 1 two words %"]


def test_unknown_events_and_events_given(commands: Commands) -> None:
    text = "echo %MAXEVENTS %SKIPEVENTS %FIRSTEVENT"
    assert commands.run(text, [File("/a")]).values == ["-1 0 0"]
    given = {"max_events": 7, "first_event": 70, "skip_events": 1}
    assert commands.run(text, [0], kwargs=given).values == ["7 1 70"]


def test_relative_inputs_are_found_from_the_work_directory(
    commands: Commands, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("content")
    assert commands.run("cat %IN", [File("in.txt")]).values == ["content"]


def test_one_output_is_a_file_in_the_results(commands: Commands) -> None:
    out = commands.run("echo %IN > %OUT{hist.txt}; echo said", ["x", "y"], attempt=2)
    first, second = out.values
    assert isinstance(first, File) and Path(first).read_text() == "x\n"
    assert Path(second).read_text() == "y\n"
    assert first.path == os.path.join(commands.bench.results, "files", "fill", "0.2", "hist.txt")
    assert first.size == 2 and first.checksum == checksum(first.path)
    assert commands.log(1) == "said\n"


def test_several_outputs_are_a_dict(commands: Commands) -> None:
    out = commands.run("mkdir sub; echo a > %OUT{a}; echo b > %OUT{sub/b}")
    assert {k: Path(v).read_text() for k, v in out.values[0].items()} == {
        "a": "a\n",
        "sub/b": "b\n",
    }


def test_outputs_go_to_remote_stores_too(commands: Commands) -> None:
    fsspec = pytest.importorskip("fsspec")
    commands.bench.results = "memory://runs/run1"
    out = commands.run("echo a > %OUT{a}")
    assert out.values[0].path == "memory://runs/run1/files/fill/0.1/a"
    assert fsspec.open(out.values[0].path).open().read() == b"a\n"
    assert ResultStore(commands.bench.results).load(commands.ended.location) == out


def test_environment_and_direct_commands(commands: Commands) -> None:
    out = commands.run("printenv MINE", env={"MINE": "yes"})
    assert out.values == ["yes"]
    out = commands.run("printf '%s|' 'a b' %IN $HOME", [["c d", "e"]], shell=False)
    assert out.values == ["a b|c d|e|$HOME|"]
    commands.run("no-such-program-here", shell=False)
    assert "cannot be started" in commands.ended.failures[0].message
    assert commands.ended.failures[0].code == 127


def test_standard_input_is_empty(commands: Commands) -> None:
    assert commands.run("cat; echo end", walltime=20).values == ["end"]


# --- failures ---------------------------------------------------------------------------


def test_an_exit_code_is_a_failure_with_the_last_lines(commands: Commands) -> None:
    commands.run("echo one; echo two >&2; exit 3")
    failure = commands.ended.failures[0]
    assert (failure.kind, failure.code) == ("exit", 3)
    assert "one" in failure.message and "two" in failure.message
    workdir = failure.message.partition("kept: ")[2].rstrip(")")
    assert os.path.isdir(workdir)


@pytest.mark.parametrize("template", ["kill -SEGV $$", "sh -c 'kill -SEGV $$'; exit $?"])
def test_a_signal_is_a_failure_with_its_name(commands: Commands, template: str) -> None:
    commands.run(template)
    failure = commands.ended.failures[0]
    assert (failure.kind, failure.code) == ("signal", signal.SIGSEGV)
    assert "SIGSEGV" in failure.message


def test_a_missing_output_is_a_failure_that_names_it(commands: Commands) -> None:
    commands.run("echo a > %OUT{a}; true %OUT{b}")
    failure = commands.ended.failures[0]
    assert failure.kind == "output" and "output b " in failure.message
    assert not os.path.exists(os.path.join(commands.bench.results, "files"))


def test_failures_leave_their_neighbours_alone(commands: Commands) -> None:
    out = commands.run("test %IN != 1 && echo %IN", [0, 1, 2])
    assert out.values[0] == "0" and out.values[2] == "2"
    assert set(commands.ended.failures) == {1}


# --- limits and the end of processes ----------------------------------------------------


def pids(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


#: A grandchild that leaves session, group and parent, and ignores SIGTERM.
ESCAPE = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.close(1); os.close(2)
        open(sys.argv[1], "w").write(str(os.getpid()))
        time.sleep(100)
    os._exit(0)
os.wait()
while not os.path.exists(sys.argv[1]) or not open(sys.argv[1]).read():
    time.sleep(0.01)
"""


def test_walltime_ends_everything(commands: Commands, tmp_path: Path) -> None:
    script = tmp_path / "escape.py"
    script.write_text(ESCAPE)
    commands.run(
        f"sleep 100 & echo $! > {tmp_path}/child; "
        f"{sys.executable} -I -S {script} {tmp_path}/escaped; wait",
        walltime=4.0,  # the script has begun by then
    )
    failure = commands.ended.failures[0]
    assert failure.kind == "walltime" and "4 s" in failure.message
    for name in ("escaped", "child"):
        assert gone(int((tmp_path / name).read_text()))


def test_what_a_command_leaves_behind_is_ended(commands: Commands, tmp_path: Path) -> None:
    out = commands.run(f"sleep 100 & echo $! > {tmp_path}/pid; echo done")
    assert out.values == ["done"] and gone(int((tmp_path / "pid").read_text()))


def test_a_command_may_end_gracefully(commands: Commands) -> None:
    commands.run("trap 'echo bye; exit 0' TERM; while true; do sleep 0.05; done", walltime=2.0)
    assert commands.ended.failures[0].kind == "walltime"
    assert commands.log().endswith("bye\n")


EAT = "import time; kept = b'x' * (200 << 20); time.sleep(30)"


def test_memory_of_the_whole_tree_is_limited(commands: Commands) -> None:
    commands.run(f'{sys.executable} -c "{EAT}"; true', memory=100 << 20)
    failure = commands.ended.failures[0]
    assert failure.kind == "memory" and "100 MiB" in failure.message
    assert commands.ended.max_pss[0] > 100 << 20


def test_disk_of_the_work_directory_is_limited(commands: Commands) -> None:
    commands.run("head -c 3000000 /dev/zero > big; sleep 30", disk=1_000_000)
    assert "of disk, more than its 1 MiB" in commands.ended.failures[0].message
    assert commands.ended.disk[0] == 3_000_000


@pytest.mark.parametrize("deaf", ["", "trap '' TERM; "])
def test_cancel_ends_the_command(commands: Commands, tmp_path: Path, until: Any, deaf: str) -> None:
    import cloudpickle

    pid = tmp_path / "pid"
    payload = CommandPayload(f"{deaf}echo $$ > {pid}; while true; do sleep 0.05; done")
    spec = commands.spec([0, 1], inputs=())
    thread = commands.bench.aside(cloudpickle.dumps(payload), spec, isolation="thread")
    until(lambda: pid.exists() and pid.read_text().strip())
    assert cancel("run1", 0)
    thread.join(60)
    assert not thread.is_alive() and gone(int(pid.read_text()))
    assert commands.ended.failures[0].kind == "cancelled"
    assert commands.ended.unstarted == (1,)


def test_a_command_dies_with_its_worker(bench: Any, tmp_path: Path, until: Any) -> None:
    pid = tmp_path / "pid"
    code = f"""
    import sys; sys.path.insert(0, {os.getcwd()!r})
    import cloudpickle
    from pandaflow.core.bundle import BundleSpec
    from pandaflow.core.chunking import NoItems
    from pandaflow.executors.payload import run_bundle, CommandPayload
    spec = BundleSpec(run="r", bundle=0, task=0, name="t", token="", kind="command", jobs=range(1),
        attempt=1, lists=False, inputs=(), chunks=NoItems(1), results={bench.results!r})
    payload = CommandPayload("echo $$ > {pid}; while true; do sleep 0.1; done")
    run_bundle(spec, cloudpickle.dumps(payload), [], report=print, worker="w",
        isolation="process", workdir={bench.workdir!r})
    """
    worker = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    try:
        until(lambda: pid.exists() and pid.read_text().strip())
    finally:
        worker.kill()
        worker.wait()
    until(lambda: gone(int(pid.read_text())))


def test_a_command_dies_with_its_worker_that_was_killed_while_it_began() -> None:
    """The guard does not know the process then, only the tag in its environment."""
    tag = uuid.uuid4().hex
    guard = _Guard(tag)
    command = subprocess.Popen(["sleep", "100"], env={_TAG: tag}, start_new_session=True)
    try:
        guard._child.stdin.close()
        assert command.wait(60) == -signal.SIGKILL
        assert guard._child.wait(60) == 0
    finally:
        command.kill()
        command.wait()


def test_a_slow_command_is_detached_and_joined(commands: Commands, tmp_path: Path) -> None:
    import cloudpickle

    go = tmp_path / "go"
    text = f"echo a; test %IN = 0 || while ! test -e {go}; do sleep 0.02; done; echo b"
    data = cloudpickle.dumps(CommandPayload(text, (Slot(0),)))
    commands.bench.run(data, commands.spec([0, 1, 2], seconds=0.3))
    assert commands.ended.detached == 1 and commands.ended.unstarted == (2,)
    threading.Timer(0.2, go.touch).start()
    out = commands.bench.run(data, commands.spec([0, 1, 2], jobs=(1,), join=0))
    assert out.values == ["a\nb"] and commands.log() == "a\nb\n"


# --- output and measures ----------------------------------------------------------------


def test_the_log_is_written_while_the_command_runs(
    commands: Commands, tmp_path: Path, until: Any
) -> None:
    import cloudpickle

    go = tmp_path / "go"
    payload = CommandPayload(f"echo early; while ! test -e {go}; do sleep 0.02; done")
    spec = commands.spec([0], inputs=())
    thread = commands.bench.aside(cloudpickle.dumps(payload), spec)
    until(lambda: ResultStore(commands.bench.results).read_log(0) == "early\n")
    go.touch()
    thread.join(60)


def test_floods_of_output_are_survived(commands: Commands) -> None:
    out = commands.run("head -c 30000000 /dev/zero | tr '\\0' x; echo > %OUT{a}; echo end")
    assert isinstance(out.values[0], File)
    log = commands.log()
    assert len(log) < 10_100_000 and log.endswith("xend\n") and "left out" in log
    commands.run("head -c 30000000 /dev/zero | tr '\\0' x")
    assert commands.ended.failures[0].kind == "output"


def test_what_a_command_used_is_measured(commands: Commands) -> None:
    burn = "import time\nwhile time.process_time() < 0.5: pass"
    write = "head -c 5000000 /dev/zero > kept; sync kept"
    commands.run(f"{sys.executable} -c '{burn}'; {write}")
    ended = commands.ended
    assert 0.5 <= ended.cpu[0] < 20 and ended.wall[0] >= 0.5
    assert ended.disk[0] == 5_000_000
    assert ended.max_pss[0] > 1 << 20


def test_an_earlier_crash_in_the_same_directory_does_no_harm(commands: Commands) -> None:
    left = Path(commands.bench.workdir, "run1", "fill", "0.1")
    left.mkdir(parents=True)
    (left / "old").touch()
    assert commands.run("ls").values == [""]


def test_no_process_is_left() -> None:
    time.sleep(0.05)
    names = [p.name() for p in psutil.Process().children()]
    assert "sh" not in names and "sleep" not in names


def test_a_second_slot_is_the_second_input(commands: Commands) -> None:
    spec = dataclasses.replace(
        commands.spec([1, 2]),
        inputs=(Input(Source(0)), Input(Source(1))),
        sources={0: SourceSlice(0, [1, 2]), 1: SourceSlice(0, [3, 4])},
    )
    payload = CommandPayload("echo %IN %IN2 %{k}", (Slot(0), Slot(1)), {"k": Slot(1)})
    assert commands.bench.run(payload, spec).values == ["1 3 3", "2 4 4"]
