"""Commands as scripts: run here by the shell that an endpoint would use."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pandaflow.core.model import Resources
from pandaflow.data.results import ResultStore
from pandaflow.executors.globus import shell
from pandaflow.executors.remote import outcome, wire
from pandaflow.executors.remote.outcome import Said

BIG = 2_000_000


class Bench:
    """Runs the commands of a bundle as an endpoint does, and keeps the outcome."""

    def __init__(self, make: Any, folder: Path) -> None:
        self.make, self.folder = make, folder
        self.results = ResultStore(str(folder / "run-1"))

    def lines(self, what: str, items: list[Any], data: str = "", **changes: Any) -> Any:
        given = self.make(1, what, items, **changes)
        made, blocked = shell.lines(
            given.spec, given.code, [], board=str(self.folder / "board"), data=data, room=BIG
        )
        assert blocked == {}
        return given.spec, made

    def said(self, script: str) -> Said:
        done = subprocess.run(
            script, shell=True, executable="/bin/bash", capture_output=True, text=True, check=True
        )
        return shell.hear({"stdout": done.stdout, "stderr": done.stderr})

    def ended(self, what: str, items: list[Any], outputs: tuple[str, ...] = (), **more: Any) -> Any:
        spec, made = self.lines(what, items, **more)
        said = {line.position: self.said(line.script) for line in made}
        return outcome.keep_commands(spec, said, {}, outputs, self.results)

    def values(self) -> list[Any]:
        return self.results.load(self.results.place(1)).values


@pytest.fixture
def bench(make: Any, tmp_path: Path) -> Bench:
    return Bench(make, tmp_path)


def test_what_is_printed_is_the_value(bench: Bench) -> None:
    ended = bench.ended("printf '%s|' %IN; echo {x} $PANDAFLOW_INDEX", ["a b", "it's", "{0}"])
    assert bench.values() == ["a b|{x} 0", "it's|{x} 1", "{0}|{x} 2"]
    assert ended.failures == {}
    assert bench.results.read_log(1, ended.logs[1]) == "it's|{x} 1\n"


def test_values_may_be_of_any_bytes_and_lines(bench: Bench) -> None:
    bench.ended("printf '\\377\\n%s\\n' 'pandaflow-0123456789abcdef code 7 0 0'", [1])
    (value,) = bench.values()
    assert value.splitlines()[1] == "pandaflow-0123456789abcdef code 7 0 0"


def test_the_first_job_leaves_a_mark_that_it_has_begun(bench: Bench) -> None:
    _, made = bench.lines("true", [1], data=str(bench.folder))
    began = bench.said(made[0].script).began
    assert began <= float((bench.folder / "board" / "1.begun").read_text()) <= time.time()


def test_nothing_is_left_behind(bench: Bench, monkeypatch: Any) -> None:
    monkeypatch.setenv("TMPDIR", str(bench.folder))
    _, made = bench.lines("touch a b; mkdir c", [1])
    assert bench.said(made[0].script).code == 0
    assert list(bench.folder.glob("pandaflow-*")) == []


def test_outputs_come_back(bench: Bench) -> None:
    what = "echo %IN > %OUT{a.txt}; mkdir sub; head -c 500000 /dev/urandom > %OUT{sub/b}"
    bench.ended(what, ["x"], ("a.txt", "sub/b"))
    (files,) = bench.values()
    assert Path(files["a.txt"]).read_text() == "x\n"
    assert files["sub/b"].size == Path(files["sub/b"]).stat().st_size == 500_000


def test_large_outputs_go_through_a_folder(bench: Bench) -> None:
    ended = bench.ended("head -c 3000000 /dev/zero > %OUT{b}", [1], ("b",))
    assert "data=" in ended.failures[0].message
    assert "3000000 bytes" in ended.failures[0].message
    data = bench.folder / "data"
    bench.ended("head -c 3000000 /dev/zero > %OUT{b}", [1], ("b",), data=str(data))
    (file,) = bench.values()
    assert Path(file).stat().st_size == 3_000_000
    assert not any(path.is_file() for path in (data / "files").iterdir())


def test_failures_of_each_kind(bench: Bench) -> None:
    told = {}
    for what in ("echo no >&2; exit 3", "kill -TERM $$", "true %OUT{x}"):
        ended = bench.ended(what, [1], ("x",) if "OUT" in what else ())
        told[what[:4]] = (ended.failures[0].kind, ended.failures[0].code)
    assert told == {"echo": ("exit", 3), "kill": ("signal", 15), "true": ("output", None)}


def test_a_walltime_ends_all_that_the_command_has_started(bench: Bench) -> None:
    beat = bench.folder / "beat"
    what = f"(while true; do echo x >> {beat}; sleep 0.05; done) & sleep 60"
    ended = bench.ended(what, [1], resources=Resources(walltime=1.0))
    assert ended.failures[0].kind == "walltime"
    assert ended.wall[0] >= 1.0
    size = beat.stat().st_size
    time.sleep(0.3)
    assert beat.stat().st_size == size


def test_an_exit_code_124_of_the_command_is_its_own(bench: Bench) -> None:
    assert bench.ended("exit 124", [1]).failures[0].kind == "exit"


def test_marks_stop_commands_that_run_and_those_that_wait(bench: Bench) -> None:
    _, made = bench.lines("sleep 60", [1], data=str(bench.folder))
    heard: list[Said] = []
    (bench.folder / "board").mkdir()
    thread = threading.Thread(target=lambda: heard.append(bench.said(made[0].script)))
    thread.start()
    deadline = time.monotonic() + 20
    while not wire.names(str(bench.folder / "board")) and time.monotonic() < deadline:
        time.sleep(0.01)
    subprocess.run(shell.stop_line([1], str(bench.folder / "board")), shell=True, check=True)
    thread.join(20)
    assert [said.code for said in heard] == [shell.STOPPED]
    _, made = bench.lines(f"touch {bench.folder}/ran", [1])
    assert bench.said(made[0].script).code == shell.STOPPED
    assert not (bench.folder / "ran").exists()


def test_ranks_are_started_by_the_engine_unless_the_command_does(bench: Bench) -> None:
    two = Resources(ranks_per_node=2)
    (plain,) = bench.lines("./a.out", [1], resources=two)[1]
    (own,) = bench.lines("mpirun ./a.out", [1], resources=two)[1]
    assert "setsid $PARSL_MPI_PREFIX /bin/sh -c ./a.out" in plain.script
    assert "PARSL_MPI_PREFIX" not in own.script
