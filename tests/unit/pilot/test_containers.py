"""Containers: command lines as text, and bubblewrap for real."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from pandaflow.grid.messages import CommandJob
from pandaflow_pilot import containers
from pandaflow_pilot.codes import PilotError
from pandaflow_pilot.containers import Box

BOX = Box("docker://alpine:3", "/w/1", "name-1", ("/code",), ("/secret",), True, ("A", "B"))
needs_bwrap = pytest.mark.skipif(
    "bubblewrap" not in containers.working(), reason="bubblewrap does not work here"
)


def test_apptainer():
    line = containers.apptainer("/bin/apptainer", BOX, ["echo", "a b"])
    assert line == [
        "/bin/apptainer", "exec", "--contain", "--no-home", "--bind", "/code:/code:ro,/w/1:/w/1",
        "--nv", "--pwd", "/w/1", "docker://alpine:3", "echo", "a b",
    ]  # fmt: skip


def test_podman():
    line = containers.podman("podman", BOX, ["echo", "a b"])
    assert line[:6] == ["podman", "run", "--rm", "--name", "name-1", "--network"]
    assert line[-3:] == ["docker://alpine:3", "echo", "a b"]
    assert "/w/1:/w/1:rw" in line and "/code:/code:ro" in line
    assert [line[at + 1] for at, word in enumerate(line) if word == "--env"] == ["A", "B"]
    stop = containers.RUNTIMES["podman"].stop
    assert stop is not None and stop("podman", "name-1")[-1] == "name-1"


def test_the_runtime_must_take_the_image(tmp_path):
    programs = {"podman": "/p", "bubblewrap": "/b"}
    assert containers.chosen("docker://alpine", programs)[1] == "/p"
    assert containers.chosen("host", programs)[1] == "/b"
    assert containers.chosen(str(tmp_path), programs)[1] == "/b"
    with pytest.raises(PilotError, match="there is: bubblewrap"):
        containers.chosen("docker://alpine", {"bubblewrap": "/b"})
    with pytest.raises(ValueError, match="known are apptainer"):
        containers.working("docker")


@needs_bwrap
def test_the_host_as_an_image(front, start_pilot, tmp_path):
    """It writes in its work directory and nowhere else, and sees neither token nor neighbours."""
    token = tmp_path / "token"
    token.write_text("secret")
    lines = [
        "echo x > out; cat out; ls -a",
        "touch /etc/pandaflow-test /tmp/pandaflow-test; echo $?",
        f"cat {token}; echo end",
        "ls ../..; ls ../../..",
        "echo $$ $PANDAFLOW_INDEX; echo $TMPDIR > t; touch $TMPDIR/x && echo tmp",
        "exit 5",
        "kill -9 $$",
    ]
    jobs = tuple(
        CommandJob(position=at, line=line, shell=True, outputs=("out",) if at == 0 else ())
        for at, line in enumerate(lines)
    )
    bundle = front.submit(commands=jobs, needs={"container": "host"})
    start_pilot("--once", "--token-file", str(token))
    results = front.end_of(bundle).results
    assert results[0].out.startswith(b"x\n") and results[0].files[0].data == b"x\n"
    assert results[1].out == b"1\n" and not Path("/etc/pandaflow-test").exists()
    assert results[2].out == b"end\n"
    assert b"owner.json" not in results[3].out and b"code" not in results[3].out
    assert b"10" not in results[4].out.split()[:1] and b"tmp" in results[4].out
    assert int(results[4].out.split()[0]) < 20  # process numbers of its own
    assert (results[5].code, results[5].error.kind) == (5, "exit")
    assert results[6].error.kind == "exit"


@needs_bwrap
def test_a_folder_as_an_image(front, start_pilot, tmp_path):
    image = tmp_path / "image"
    (image / "etc").mkdir(parents=True)
    (image / "etc" / "marker").write_text("from the image\n")
    for name in ("usr", "bin", "lib", "lib64"):
        source = Path("/", name)
        if source.is_symlink():
            (image / name).symlink_to(source.readlink())
        elif source.is_dir() and name != "usr":
            (image / name).mkdir()
    for name in ("bin", "lib", "lib64"):
        target = image / "usr" / name
        target.mkdir(parents=True, exist_ok=True)
    _copy_program(image, "cat")
    line = f"cat /etc/marker {sys.executable}"
    bundle = front.submit(
        commands=(CommandJob(position=0, line=line),), needs={"container": str(image)}
    )
    start_pilot("--once")
    result = front.result_of(bundle)
    assert result.out == b"from the image\n"
    assert result.code == 1 and b"No such file" in result.err  # the node's files are not there


def _copy_program(image: Path, name: str) -> None:
    """Copy a program with the libraries that it loads."""
    import re
    import subprocess

    program = Path(shutil.which(name) or "")
    shutil.copy(program, image / "usr" / "bin" / name)
    said = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
    for library in re.findall(r"(/\S+)", said):
        source = Path(library).resolve()
        target = image / str(source.parent).lstrip("/") / Path(library).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
        loader = Path(library)
        if not (image / library.lstrip("/")).exists():
            place = image / str(loader.parent).lstrip("/")
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, place / loader.name)


@needs_bwrap
def test_limits_reach_into_the_container(front, start_pilot, eventually, tmp_path):
    line = "python3 -c 'x = bytearray(300_000_000); import time; time.sleep(60)'"
    memory = front.submit(line, needs={"container": "host", "memory": 100_000_000})
    time = front.submit("sleep 61.5", needs={"container": "host"}, walltime=0.5)
    start_pilot()
    assert front.result_of(memory).error.kind == "memory"
    assert front.result_of(time).error.kind == "walltime"
    assert eventually(lambda: not _runs("sleep\x0061.5"))


def _runs(words: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if words in path.read_text():
                return True
        except OSError:
            continue
    return False


@needs_bwrap
def test_an_image_that_nothing_here_runs(front, start_pilot):
    bundle = front.submit("echo", needs={"container": "docker://alpine"})
    start_pilot("--once", "--container-runtime", "bubblewrap")
    end = front.end_of(bundle)
    assert (end.kind, end.results[0].error.kind if end.results else end.error.kind) in {
        ("lost", "site"), ("ended", "site"),
    }  # fmt: skip
