"""A child process: whatever stops those who wait for it is heard, and nothing is left."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pandaflow.core.model import Failure
from pandaflow.executors.process import Limits, Process

#: Writes all the time, and has a child of its own.
CHATTY = "sleep 600 & echo $!; while true; do echo more; sleep 0.01; done"


class Stopped(BaseException):
    """What a thread is stopped with."""


def chatty(folder: Path, write: Callable[[bytes], None]) -> Process:
    return Process(
        ["/bin/sh", "-c", CHATTY], workdir=str(folder), env=dict(os.environ), write=write, keep=0
    )


def living(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def check_gone(output: bytearray) -> None:
    grandchild = int(output.split()[0])
    assert not living(grandchild)
    children = psutil.Process().children()
    assert grandchild not in [child.pid for child in children]
    assert not [child for child in children if child.status() == psutil.STATUS_ZOMBIE]


def test_an_exception_while_it_waits_is_heard_and_the_command_ends(tmp_path: Path) -> None:
    output = bytearray()

    def stop() -> Failure | None:
        if b"more" in output:
            raise Stopped
        return None

    with pytest.raises(Stopped) as caught:
        chatty(tmp_path, output.extend).wait(Limits(), stop)
    assert caught.value.__context__ is None
    check_gone(output)


def test_output_that_cannot_be_written_is_heard_and_the_command_ends(tmp_path: Path) -> None:
    output = bytearray()

    def full(data: bytes) -> None:
        output.extend(data)
        if b"more" in output:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        chatty(tmp_path, full).wait(Limits(), lambda: None)
    check_gone(output)


def test_a_stopped_command_says_why(tmp_path: Path) -> None:
    output = bytearray()
    why = Failure(kind="cancelled", message="enough", charged=False)
    ended = chatty(tmp_path, output.extend).wait(
        Limits(), lambda: why if b"more" in output else None
    )
    assert (ended.stopped, ended.code) == (why, -15)
    check_gone(output)
