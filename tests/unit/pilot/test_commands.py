"""Commands from the pool to a pilot and back: files, variables, limits, several at once."""

from __future__ import annotations

import hashlib
import os
import shlex
import zlib
from pathlib import Path
from typing import Any

import pytest

from pandaflow.grid.identity import ANYBODY
from pandaflow.grid.messages import CommandJob, InputFile

RUN = "run-1"


def job(line: str, **fields: Any) -> CommandJob:
    return CommandJob(position=0, line=line, shell=fields.pop("shell", True), **fields)


def adler(data: bytes) -> str:
    return f"adler32:{zlib.adler32(data):08x}"


def test_commands_of_a_bundle_run_one_after_the_other(front, start_pilot):
    bundle = front.submit("echo a; echo b >&2", "exit 3", "kill -9 $$", "echo last")
    pilot = start_pilot("--once")
    end = front.end_of(bundle)
    assert [result.code for result in end.results] == [0, 3, -9, 0]
    assert [result.out for result in end.results] == [b"a\n", b"", b"", b"last\n"]
    assert end.results[0].err == b"b\n"
    assert [result.error and result.error.kind for result in end.results] == [
        None, "exit", "exit", None,
    ]  # fmt: skip
    assert [result.error.code for result in end.results[1:3]] == [3, -9]
    assert pilot.wait() == 0
    assert pilot.folders == []
    assert "1 bundles (4 jobs): 1 ended" in pilot.out


def test_a_command_sees_its_job_and_not_the_token(front, start_pilot):
    names = "RUN TASK INDEX ATTEMPT BUNDLE CORES TOKEN".split()
    words = " ".join(f"$PANDAFLOW_{name}" for name in names)
    bundle = front.submit(commands=(job(f"echo {words} $MINE", env={"MINE": "m"}),))
    start_pilot("--once", PANDAFLOW_TOKEN="secret")
    assert front.result_of(bundle).out == b"run-1 task 10 1 1 1 m\n"
    assert all(headers.get("Authorization") == "Bearer secret" for _, headers in front.heard)


def test_words_are_split_without_a_shell(front, start_pilot):
    bundle = front.submit(commands=(job("echo 'a  b' $HOME ;", shell=False),))
    nothing = front.submit(commands=(job("/no/such/program", shell=False),))
    unclosed = front.submit(commands=(job("echo 'a", shell=False),))
    start_pilot()
    assert front.result_of(bundle).out == b"a  b $HOME ;\n"
    for number in (nothing, unclosed):
        assert front.result_of(number).error.code == 1508


def test_files_come_and_go(front, start_pilot, tmp_path):
    source = tmp_path / "in put"
    source.write_bytes(b"abc" * 100)
    given = InputFile(
        name="sub/in.dat",
        replicas=("/not/there", f"file://{str(source).replace(' ', '%20')}"),
        size=300,
        checksum=adler(b"abc" * 100),
    )
    line = "cat sub/in.dat sub/in.dat > d/out.dat; echo small > s"
    bundle = front.submit(
        commands=(job("mkdir d; " + line, inputs=(given,), outputs=("d/out.dat", "s")),)
    )
    start_pilot("--once")
    files = {file.name: file for file in front.result_of(bundle).files}
    assert files["d/out.dat"].data == b"abc" * 200
    assert files["d/out.dat"].checksum == adler(b"abc" * 200)
    assert files["s"].data == b"small\n" and files["s"].size == 6


def test_large_outputs_go_to_the_store(front, start_pilot, tmp_path):
    data = os.urandom(1_200_000)
    (tmp_path / "data").write_bytes(data)
    line = f"cp {shlex.quote(str(tmp_path / 'data'))} 'o ut'"
    kept = front.submit(commands=(job(line, outputs=("o ut",)),), data=f"{tmp_path}/store")
    lost = front.submit(commands=(job(line, outputs=("o ut",)),))
    start_pilot()
    (file,) = front.result_of(kept).files
    assert file.data is None and file.size == len(data) and file.checksum == adler(data)
    assert Path(file.url).read_bytes() == data
    assert file.url.startswith(f"{tmp_path}/store/run-1/task/1-1-")
    assert len(list(Path(tmp_path, "store").rglob("*.part"))) == 0
    error = front.result_of(lost).error
    assert (error.kind, error.code) == ("output", 1506) and "data=" in error.message


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("true", 1165),
        ("ln -s /etc/passwd out", 1505),
        ("ln -s ../../owner.json out; touch ../../x", 1505),
        ("mkdir out", 1505),
        ("mkfifo out", 1505),
        ("ln -s nothing out", 1165),
        ("ln -s out out", 1505),
        ("ln -s /dev/zero out", 1505),
    ],
)
def test_tricks_with_outputs_are_refused(front, start_pilot, line, code):
    bundle = front.submit(commands=(job(line, outputs=("out",)),))
    start_pilot("--once")
    error = front.result_of(bundle).error
    assert (error.kind, error.code) == ("output", code)


def test_a_link_inside_is_an_output(front, start_pilot):
    bundle = front.submit(commands=(job("echo x > real; ln -s real out", outputs=("out",)),))
    start_pilot("--once")
    assert front.result_of(bundle).files[0].data == b"x\n"


def test_wrong_inputs_are_told_by_replica(front, start_pilot, tmp_path):
    (tmp_path / "short").write_bytes(b"ab")
    (tmp_path / "wrong").write_bytes(b"abd")
    digest = hashlib.sha256(b"abc").hexdigest()
    given = InputFile(
        name="x",
        replicas=("/none", str(tmp_path / "short"), str(tmp_path / "wrong"), "odd://x"),
        size=3,
        checksum=f"sha256:{digest}",
    )
    missing = InputFile(name="x", replicas=("/none", "/neither"))
    first = front.submit(commands=(job("echo no", inputs=(given,)),))
    second = front.submit(commands=(job("echo no", inputs=(missing,)),))
    start_pilot()
    result = front.result_of(first)
    assert result.out == b"" and result.error.kind == "input" and result.error.code == 1099
    for words in ("/none", "has 2 bytes", "its checksum is", "odd://"):
        assert words in result.error.message
    assert front.result_of(second).error.code == 1501


def test_a_node_is_filled(front, start_pilot):
    """Two bundles wait for each other: they must run at once."""
    meet = "touch {0}; while [ ! -e {1} ]; do sleep 0.05; done"
    folder = shlex.quote(str(front.folder))
    first = front.submit(meet.format(f"{folder}/a", f"{folder}/b"))
    second = front.submit(meet.format(f"{folder}/b", f"{folder}/a"))
    start_pilot()
    assert front.result_of(first).code == front.result_of(second).code == 0


def test_only_as_many_as_there_are_cores_and_memory_for(front, start_pilot, tmp_path):
    count = tmp_path / "count"
    count.mkdir()
    line = f"mkdir {count}/$$; sleep 0.3; ls {count} | wc -l; rmdir {count}/$$"
    cores = [front.submit(line, needs={"cores": 2}) for _ in range(3)]
    memory = [front.submit(line, needs={"memory": 600_000_000}) for _ in range(3)]
    start_pilot("--memory", "1GB")
    for bundle in cores + memory:
        assert front.result_of(bundle).out.strip() == b"1"


def test_much_output_is_cut(front, start_pilot):
    bundle = front.submit("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo end")
    start_pilot("--once")
    result = front.result_of(bundle)
    assert result.printed == 3_000_005
    assert len(result.out) == 10_000 and result.out.endswith(b"x\nend\n")


def test_the_log_of_what_failed_is_left_with_the_server(front, start_pilot):
    good = front.submit("echo fine")
    bad = front.submit("echo broken; exit 1")
    start_pilot()
    front.end_of(good)
    front.end_of(bad)
    assert "broken" in front.pool.log(ANYBODY, RUN, bad)
    assert "fine" not in front.pool.log(ANYBODY, RUN, good)
    assert all("lease" not in route for route, _ in front.heard)
