"""Bundles of functions: packed by the driver, run by a Python that has PandaFlow."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from pandaflow import __version__
from pandaflow.core.bundle import BundleSpec, SourceSlice
from pandaflow.core.chunking import Fixed
from pandaflow.core.model import Input, Source
from pandaflow.data.results import ResultStore
from pandaflow.executors.payload import Payload, Slot, unpack_ended
from pandaflow.executors.remote import wire
from pandaflow.executors.remote.wire import Work
from pandaflow.grid.identity import ANYBODY

RUN = "run-1"
HERE = {"python": "{}.{}".format(*sys.version_info), "pandaflow": __version__}


def spec_of(items: list[Any]) -> BundleSpec:
    return BundleSpec(
        run=RUN,
        bundle=0,
        task=0,
        name="fill",
        token="token",
        kind="function",
        jobs=range(len(items)),
        attempt=1,
        lists=False,
        inputs=(Input(Source(0)),),
        chunks=Fixed(len(items), 1),
        sources={0: SourceSlice(0, items)},
        results="/nowhere",
    )


def packed(function: Any, items: list[Any], limit: int = 10**6) -> tuple[bytes, bytes]:
    """Return work and code of a bundle that calls ``function`` for each item."""
    code = cloudpickle.dumps(Payload(function, (Slot(0),), {}))
    return wire.pack(Work(spec_of(items), limit=limit)), code


def values_of(reply: bytes, folder: Path, data: str = "") -> tuple[list[Any], Any]:
    message, _ = wire.reply_of(reply, "the pilot", data)
    store = ResultStore(str(folder))
    for name, data in message.files.items():
        store.put(name, data)
    ended = unpack_ended(next(m for m in message.messages if m["op"] == "ended"))
    return list(store.load(store.place(0)).values), ended


def submit(front: Any, work: bytes, code: bytes, **fields: Any) -> int:
    digest = hashlib.sha256(code).hexdigest()
    front.pool.put_payload(ANYBODY, RUN, digest, code, time.time())
    needs = {**HERE, **fields.pop("needs", {})}
    return front.submit(kind="function", work=work, code=digest, needs=needs, **fields)


def test_functions_come_back_with_values(front, start_pilot, tmp_path):
    work, code = packed(lambda n: (n * n, __import__("os").getpid()), [1, 2, 3])
    first, second = submit(front, work, code), submit(front, work, code)
    start_pilot()
    pids = set()
    for number, bundle in enumerate((first, second)):
        end = front.end_of(bundle)
        assert end.kind == "ended" and end.error is None, end
        values, ended = values_of(end.reply, tmp_path / str(number))
        assert [square for square, _ in values] == [1, 4, 9] and not ended.failures
        pids |= {pid for _, pid in values}
        assert end.metrics["max_pss"] > 10**6 and end.metrics["cpu"] > 0
    assert len(pids) == 2  # a process for each bundle
    asked = [route for route, _ in front.heard if "payloads" in route]
    assert len(asked) == 1  # and the code came once


def test_an_exception_is_a_reply_and_an_exit_is_not(front, start_pilot, tmp_path):
    def fail(n: int) -> int:
        if n == 2:
            raise ValueError("two")
        return n

    def leave(n: int) -> None:
        os.write(2, b"about to leave")
        os._exit(9)

    raises = submit(front, *packed(fail, [1, 2]))
    leaves = submit(front, *packed(leave, [1]))
    start_pilot()
    values, ended = values_of(front.end_of(raises).reply, tmp_path / "r")
    assert values[0] == 1 and ended.failures[1].message == "ValueError: two"
    end = front.end_of(leaves)
    assert (end.kind, end.error.code, end.error.source) == ("ended", 9, "payload")
    assert "about to leave" in end.error.message


def test_what_a_function_prints_can_be_read_while_it_runs(front, start_pilot, eventually):
    def talk(n: int) -> None:
        print("I am talking", flush=True)
        time.sleep(60)

    front.heartbeat(1.5)
    bundle = submit(front, *packed(talk, [1]))
    start_pilot()
    eventually(lambda: front.outcomes())

    def heard() -> bool:
        front.pool.ask_tail(ANYBODY, RUN, bundle)
        return "I am talking" in front.pool.log(ANYBODY, RUN, bundle)

    assert eventually(heard)


def test_replies_that_are_too_large(front, start_pilot, tmp_path):
    """They go by the store that the work names; without one the payload says so."""

    def large(n: int) -> bytes:
        return os.urandom(2_000_000)

    spec = spec_of([1])
    code = cloudpickle.dumps(Payload(large, (Slot(0),), {}))
    stored = submit(front, wire.pack(Work(spec, limit=10**6, data=str(tmp_path / "d"))), code)
    unbound = submit(front, wire.pack(Work(spec, limit=10**9)), code)
    start_pilot()
    reference = front.end_of(stored).reply
    assert len(reference) < 1_000
    values, _ = values_of(reference, tmp_path / "r", str(tmp_path / "d"))
    assert len(values[0]) == 2_000_000
    assert front.end_of(unbound).error.code == 1518


def test_memory_beyond_what_the_job_watches_itself(front, start_pilot):
    def eat(n: int) -> None:
        command = "x = bytearray(900_000_000); import time; time.sleep(60)"
        subprocess.run([sys.executable, "-c", command], check=False)

    bundle = submit(front, *packed(eat, [1]), needs={"memory": 100_000_000})
    start_pilot("--once")
    end = front.end_of(bundle)
    assert end.error.kind == "memory"


def wheel(folder: Path) -> Path:
    """Make a package that pip can install without asking anybody."""
    path = folder / "pandaflowtestpkg-1.5-py3-none-any.whl"
    info = "pandaflowtestpkg-1.5.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("pandaflowtestpkg.py", "ANSWER = 42\n")
        meta = "Metadata-Version: 2.1\nName: pandaflowtestpkg\nVersion: 1.5\n"
        file.writestr(f"{info}/METADATA", meta)
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return path


@pytest.mark.very_slow
def test_requirements_make_an_environment(front, start_pilot, tmp_path):
    def answer(n: int) -> int:
        import pandaflowtestpkg

        return pandaflowtestpkg.ANSWER + n

    work, code = packed(answer, [1])
    good = submit(front, work, code, requirements=(str(wheel(tmp_path)),))
    bad = submit(front, work, code, requirements=(str(tmp_path / "none.whl"),))
    option = submit(front, work, code, requirements=("--index-url=http://127.0.0.1:9/",))
    start_pilot("--cores", "1")
    values, _ = values_of(front.end_of(good, 90.0).reply, tmp_path / "r")
    assert values == [43]
    for bundle in (bad, option):
        end = front.end_of(bundle, 90.0)
        assert (end.kind, end.error.code) == ("lost", 1514)


def test_a_pilot_without_python_gets_commands_only(front, start_pilot, tmp_path):
    stub = tmp_path / "python3"
    stub.write_text("#!/bin/sh\nexit 1\n")
    stub.chmod(0o755)
    pilot = start_pilot("--python", str(stub))
    assert pilot.wait() == 2 and "no Python that has PandaFlow" in pilot.err


def test_sigterm_makes_the_payload_reply_what_there_is(tmp_path):
    """A soft kill: jobs that had ended keep their values."""

    def slowly(n: int) -> int:
        if n == 2:
            Path(mark).touch()
            for _ in range(600):
                time.sleep(0.1)
        return n

    mark = str(tmp_path / "mark")
    work, code = packed(slowly, [1, 2, 3])
    for name, data in (("work", work), ("code", code)):
        (tmp_path / name).write_bytes(data)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "pandaflow.executors.grid.payload"),
            *(str(tmp_path / name) for name in ("work", "code", "reply")),
        ]
    )
    try:
        deadline = time.monotonic() + 30
        while not Path(mark).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    values, ended = values_of((tmp_path / "reply").read_bytes(), tmp_path / "r")
    assert values[0] == 1 and ended.failures[1].kind == "cancelled"


@pytest.mark.parametrize(("work", "code"), [(b"rubbish", 65), (None, 73)])
def test_the_payload_process_tells_what_it_cannot_read(tmp_path, work, code):
    if work is not None:
        (tmp_path / "work").write_bytes(work)
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "pandaflow.executors.grid.payload"),
            *(str(tmp_path / "work"), "-", str(tmp_path / "reply")),
        ],
        capture_output=True,
        check=False,
    )
    assert ended.returncode == code and b"Traceback" not in ended.stderr
    assert not (tmp_path / "reply").exists()
