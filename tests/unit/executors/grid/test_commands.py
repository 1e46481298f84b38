"""Commands on their way to a pilot, and what it tells of them."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from pandaflow.core.bundle import BundleValues, Missing, SourceSlice
from pandaflow.core.errors import DataError
from pandaflow.core.model import File, Input, Output, Resources
from pandaflow.data.plain import NotPlain
from pandaflow.data.results import ResultStore, adler32
from pandaflow.executors.command import CommandPayload
from pandaflow.executors.grid.commands import failure, local_name, prepare, said
from pandaflow.executors.remote import wire
from pandaflow.executors.remote.outcome import keep_commands
from pandaflow.grid.messages import JobResult, OutputFile, Trouble


def nowhere(file: File) -> None:
    """No data store: pilots see files in their place."""


def stored(file: File) -> str:
    return f"s3://bucket/{local_name(file)}"


def prepared(given: Any, upload: Any = nowhere, deps: Any = ()) -> Any:
    return prepare(given.spec, given.code, deps, upload)


def test_lines_are_rendered_job_by_job(make: Any) -> None:
    given = make(3, "run %IN %RNDM:5 -j %CORE_NUMBER", ["a b", 7], resources=Resources(cores=4))
    one, two = prepared(given)[0]
    assert (one.line, two.line) == ("run 'a b' 5 -j 4", "run 7 6 -j 4")
    assert (one.position, two.position) == (0, 1)
    assert one.env["PANDAFLOW_RUN"] == "run-1"
    assert one.env["PANDAFLOW_ATTEMPT"] == "1"
    assert [each.env["PANDAFLOW_INDEX"] for each in (one, two)] == ["0", "1"]
    assert one.env["PANDAFLOW_SEED"] != two.env["PANDAFLOW_SEED"]


def test_remote_files_are_inputs_under_names_of_their_own(make: Any) -> None:
    near = File("https://a.org/x.root", 7, "adler32:00000001", replicas=("root://b//x.root",))
    same = File("https://c.org/x.root")
    given = make(1, "cat %IN", [[near, same]])
    (job,) = prepared(given)[0]
    assert job.line == "cat inputs/x.root inputs/1/x.root"
    first, second = job.inputs
    assert first.replicas == ("https://a.org/x.root", "root://b//x.root")
    assert (first.size, first.checksum) == (7, "adler32:00000001")
    assert (second.name, second.replicas) == ("inputs/1/x.root", ("https://c.org/x.root",))


def test_a_file_that_comes_twice_is_staged_once(make: Any) -> None:
    file = File("https://a.org/x")
    (job,) = prepared(make(1, "cmp %IN", [[file, file]]))[0]
    assert job.line == "cmp inputs/x inputs/x"
    assert len(job.inputs) == 1


def test_local_files_stay_without_a_data_store_and_are_put_there_with_one(make: Any) -> None:
    for path in ("/data/x", "file:///data/x"):
        given = make(1, "cat %IN", [File(path, 3, "md5:" + "0" * 32)])
        (here,) = prepared(given)[0]
        assert (here.line, here.inputs) == ("cat /data/x", ())
        (there,) = prepared(given, stored)[0]
        assert there.line == "cat inputs/x"
        assert there.inputs[0].replicas == (stored(File(path, 3, "md5:" + "0" * 32)),)


def test_copies_of_different_files_never_share_a_name() -> None:
    """Adler-32 is the same for these texts."""
    one, two = (f"{number}\n".encode() * 5000 for number in (120, 201))
    assert adler32(one) == adler32(two)
    names = [local_name(File(path, 20_000, adler32(one))) for path in ("/a/x", "/b/x")]
    assert len(set(names)) == 2
    assert all(name.endswith("-x") for name in names)
    assert local_name(File("/a/x", 3, mtime=5.0)) != local_name(File("/a/x", 3, mtime=6.0))
    assert local_name(File("/a/x", 3)) == local_name(File("/a/x", 3))


def test_jobs_whose_inputs_are_missing_are_not_sent(make: Any) -> None:
    given = make(
        2, "echo %IN", [0, 1], inputs=(Input(Output(7)),), sources={}, outputs={7: (0,)},
        names={7: "before"},
    )  # fmt: skip
    up = make(1, "echo %IN", [0, 1]).spec
    values = BundleValues(up.jobs, [pickle.dumps("fine"), Missing("it failed")])
    jobs, made = prepared(given, deps=[values])
    assert [job.position for job in jobs] == [0]
    assert made.positions == (0,)
    assert set(made.blocked) == {1}


# --- and back ---------------------------------------------------------------------------


def result(code: int, error: Trouble | None = None, **more: Any) -> JobResult:
    return JobResult(position=0, code=code, began=1.0, ended=3.0, error=error, **more)


def trouble(code: int, kind: str = "exit", source: Any = "payload") -> Trouble:
    return Trouble(source=source, code=code, kind=kind, message="as the pilot says")


def kept(make: Any, tmp_path: Path, told: JobResult, outputs: tuple[str, ...] = ()) -> Any:
    spec = replace(make(1, "true", [1]).spec, results=str(tmp_path))
    return keep_commands(
        spec, {0: said(told, "n", str(tmp_path.parent))}, {}, outputs, ResultStore(str(tmp_path))
    )


@pytest.mark.parametrize(
    ("told", "kind", "code", "message", "charged"),
    [
        (result(3, trouble(3), err=b"a\nno such thing\n"), "exit", 3, "exit code 3: no such", True),
        (result(-9, trouble(-9)), "signal", 9, "SIGKILL", True),
        (result(137, trouble(137)), "signal", 9, "SIGKILL", True),
        (result(-15, trouble(1213, "walltime")), "walltime", 1213, "the pilot says", True),
        (result(1508, trouble(1508)), "exit", 1508, "the pilot says", True),
        (result(1501, trouble(1501, "input", "pilot")), "input", 1501, "the pilot says", False),
    ],
)
def test_failures_are_told_as_elsewhere_and_the_pilot_s_keep_its_codes(
    make: Any, tmp_path: Path, told: JobResult, kind: str, code: int, message: str, charged: bool
) -> None:
    found = kept(make, tmp_path, told).failures[0]
    assert (found.kind, found.code, found.charged) == (kind, code, charged)
    assert message in found.message


def test_a_process_that_a_signal_ended_has_the_kind_signal() -> None:
    found = failure(trouble(-11))
    assert (found.kind, found.code, found.charged) == ("signal", 11, True)
    assert failure(trouble(100, "site", "server")).charged is False


def test_files_come_from_the_report_or_the_store(make: Any, tmp_path: Path) -> None:
    url = str(tmp_path / "big")
    wire.write(url, b"big")
    files = (
        OutputFile(name="small", size=5, checksum=adler32(b"small"), data=b"small"),
        OutputFile(name="big", size=3, checksum=adler32(b"big"), url=url),
    )
    ended = kept(make, tmp_path / "run", result(0, files=files), ("small", "big"))
    (value,) = ResultStore(str(tmp_path / "run")).load(ended.location).values
    assert Path(value["small"]).read_bytes() == b"small"
    assert Path(value["big"]).read_bytes() == b"big"
    assert not Path(url).exists(), "the copy in the store is not needed any more"


class Shell:
    """Runs a command when it is unpickled."""

    def __init__(self, line: str) -> None:
        self.line = line

    def __reduce__(self) -> Any:
        return (os.system, (self.line,))


@pytest.mark.parametrize("where", ["item", "argument", "payload"])
def test_nothing_of_users_runs_where_lines_are_rendered(
    make: Any, tmp_path: Path, where: str
) -> None:
    evil = Shell(f"touch {tmp_path}/run")
    given = make(1, "echo %IN", ["fine"])
    if where == "item":
        sources = {0: SourceSlice(0, (pickle.dumps(evil),), pickled=True)}
        given = replace(given, spec=replace(given.spec, sources=sources))
    else:
        payload = CommandPayload("echo %IN", (evil,)) if where == "argument" else evil
        given = replace(given, code=cloudpickle.dumps(payload))
    with pytest.raises(NotPlain, match="system"):
        prepared(given)
    assert not (tmp_path / "run").exists()


def test_outputs_lie_nowhere_else(tmp_path: Path) -> None:
    away = OutputFile(name="x", size=1, checksum=adler32(b"y"), url="/etc/passwd")
    for data in ("", str(tmp_path)):
        with pytest.raises(DataError, match="'/etc/passwd'"):
            said(result(0, files=(away,)), "n", data)


def test_damaged_files_are_refused(make: Any, tmp_path: Path) -> None:
    wrong = OutputFile(name="x", size=1, checksum=adler32(b"y"), data=b"x")
    with pytest.raises(DataError, match="checksum"):
        said(result(0, files=(wrong,)), "n")
