"""Messages between driver and workers, and what a worker makes of a bundle."""

from __future__ import annotations

import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pandaflow.core.errors import DataError
from pandaflow.data.results import ResultStore, encode
from pandaflow.executors.remote import outcome, wire, worker
from pandaflow.executors.remote.wire import Ref, Reply, Work
from pandaflow.testing import payloads

LIMIT = 10 * 2**20


def reply_of(packed: bytes, folder: str = "") -> Reply:
    return wire.reply_of(packed, "it", folder)[0]


@pytest.mark.parametrize("files", [{}, {"a": b"b" * 9_000}])
def test_messages_come_out_as_they_went_in(make: Any, files: Any) -> None:
    reply = Reply(7, [{"op": "started"}], files)
    assert reply_of(wire.pack(reply)) == reply
    work = Work(make(3, payloads.double, [4]).spec, limit=LIMIT)
    assert wire.work_of(wire.pack(work)) == work


def test_what_compresses_travels_compressed() -> None:
    assert len(wire.pack(Reply(1, files={"a": bytes(1_000_000)}))) < 10_000
    noise = os.urandom(1_000_000)
    assert len(wire.pack(Reply(1, files={"a": noise}))) < len(noise) + 300


@pytest.mark.parametrize("data", [b"", b"p", b"znonsense", b"p" + pickle.dumps({"a": 1})])
def test_damaged_messages_are_named(data: bytes) -> None:
    with pytest.raises(DataError, match=r"message|dict instead of work"):
        wire.work_of(data)
    with pytest.raises(DataError, match="it sent"):
        reply_of(data)


class Evil:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("where", ["instead", "message", "file"])
@pytest.mark.parametrize("compressed", [False, True])
def test_replies_run_nothing(tmp_path: Path, where: str, compressed: bool) -> None:
    evil, filler = Evil(tmp_path / "run"), {"x": bytes(9_000)} if compressed else {}
    reply = {
        "instead": evil,
        "message": Reply(1, [{"op": evil}], filler),
        "file": Reply(1, [], {"values": evil, **filler}),  # type: ignore[dict-item]
    }[where]
    with pytest.raises(DataError, match=r"it sent .*system is no class of plain values"):
        reply_of(wire.pack(reply))  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        Reply("1"),  # type: ignore[arg-type]
        Reply(1, [{"op": 5}]),
        Reply(1, ["ended"]),  # type: ignore[list-item]
        Reply(1, [], {"a": "text"}),  # type: ignore[dict-item]
        Reply(1, large="much"),  # type: ignore[arg-type]
    ],
)
def test_replies_whose_fields_are_others_are_refused(wrong: Reply) -> None:
    with pytest.raises(DataError, match="of another kind"):
        reply_of(wire.pack(wrong))


@pytest.mark.parametrize("url", ["/etc/passwd", "{}/../x", "{}x", "memory://x"])
@pytest.mark.parametrize("data", [True, False])
def test_references_lead_nowhere_else(tmp_path: Path, url: str, data: bool) -> None:
    folder = str(tmp_path / "data") if data else ""
    ref = wire.pack(Ref(url.format(folder or tmp_path), 1))
    with pytest.raises(DataError, match="it names"):
        wire.reply_of(ref, "it", folder)


def test_a_reply_does_not_unpack_to_more_than_memory_holds(monkeypatch: Any) -> None:
    from pandaflow.data import plain

    monkeypatch.setattr(plain, "LIMIT", 100_000)
    with pytest.raises(DataError, match="more than 100000 bytes"):
        reply_of(wire.pack(Reply(1, files={"a": bytes(200_000)})))


@pytest.mark.parametrize("limit", [10_000, 1_000_000])
def test_what_has_room_stays_below_the_limit(limit: int) -> None:
    assert wire.travelling(wire.room(limit)) <= limit
    assert wire.travelling(wire.room(limit) + 4) > limit


@pytest.mark.parametrize("remote_store", [False, True])
def test_stores(tmp_path: Path, remote_store: bool) -> None:
    root = f"memory://{tmp_path.name}" if remote_store else str(tmp_path)
    assert wire.names(f"{root}/board") == set()
    wire.write(f"{root}/board/1.stop", b"x")
    assert wire.exists(f"{root}/board/1.stop")
    assert not wire.exists(f"{root}/board/2.stop")
    assert wire.names(f"{root}/board") == {"1.stop"}
    assert wire.read(Ref(f"{root}/board/1.stop", 1)) == b"x"
    wire.remove(f"{root}/board")
    wire.remove(f"{root}/board")
    assert not wire.exists(f"{root}/board/1.stop")


# --- on a worker ------------------------------------------------------------------------


def test_a_worker_returns_values_and_logs_that_the_driver_keeps(make: Any, tmp_path: Path) -> None:
    given, results = make(3, payloads.say, ["a", "b"]), ResultStore(str(tmp_path))
    reply = reply_of(worker.run(wire.pack(Work(given.spec, limit=LIMIT)), given.code))
    ended = outcome.keep(reply, given.spec, results)
    assert ended is not None
    assert results.load(ended.location).values == ["a", "b"]
    assert results.read_log(3, ended.logs[1]) == "payload says b\n"
    assert [message["op"] for message in reply.messages] == ["started", "ended"]


def test_code_may_come_with_the_work_and_the_work_by_reference(make: Any, tmp_path: Path) -> None:
    given = make(3, payloads.double, [4])
    wire.write(f"{tmp_path}/code", given.code)
    packed = wire.pack(Work(given.spec, code=Ref(f"{tmp_path}/code", 0), limit=LIMIT))
    wire.write(f"{tmp_path}/work", packed)
    reply = reply_of(worker.run(wire.pack(Ref(f"{tmp_path}/work", len(packed)))))
    ended = outcome.keep(reply, given.spec, ResultStore(str(tmp_path)))
    assert ended is not None
    assert ResultStore(str(tmp_path)).load(ended.location).values == [8]


def test_work_without_code_is_refused(make: Any) -> None:
    with pytest.raises(DataError, match="no code"):
        worker.run(wire.pack(Work(make(3, payloads.double, [4]).spec, limit=LIMIT)))


def test_large_replies_need_a_store(make: Any, tmp_path: Path) -> None:
    given = make(3, os.urandom, [100_000])
    reply = reply_of(worker.run(wire.pack(Work(given.spec, limit=50_000)), given.code))
    assert reply.large > 100_000
    assert reply.files == {}
    work = Work(given.spec, limit=50_000, data=str(tmp_path))
    packed = worker.run(wire.pack(work), given.code)
    assert len(packed) < 1_000
    reply, url = wire.reply_of(packed, "it", str(tmp_path))
    assert Path(url).parent == tmp_path / "replies"
    assert reply.large == 0
    assert set(reply.files) == {"values/000/3.values"}


def test_a_remote_result_store_is_written_by_the_worker(make: Any, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/run-1"
    given = make(3, payloads.double, [4], results=url)
    reply = reply_of(worker.run(wire.pack(Work(given.spec, direct=True, limit=LIMIT)), given.code))
    assert reply.files == {}
    assert ResultStore(url).load(ResultStore(url).place(3)).values == [8]


def test_a_bundle_that_was_told_to_stop_does_not_begin(make: Any, tmp_path: Path) -> None:
    given = make(3, payloads.touch, [str(tmp_path / "begun")])
    wire.write(worker.stop_mark(str(tmp_path), 3), b"")
    work = Work(given.spec, board=str(tmp_path), limit=LIMIT)
    assert reply_of(worker.run(wire.pack(work), given.code)).dropped
    assert not (tmp_path / "begun").exists()


def test_a_mark_stops_a_bundle_that_runs(make: Any, tmp_path: Path) -> None:
    given = make(4, payloads.heartbeat, [str(tmp_path / "beat")])
    work = wire.pack(Work(given.spec, board=str(tmp_path / "board"), marks=True, limit=LIMIT))
    thread = threading.Thread(target=worker.run, args=(work, given.code))
    thread.start()
    deadline = time.monotonic() + 30
    while not (tmp_path / "beat").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert wire.names(str(tmp_path / "board")) == {"4.begun"}
    wire.write(worker.stop_mark(str(tmp_path / "board"), 4), b"")
    thread.join(10)
    assert not thread.is_alive()


def test_values_of_others_are_read_where_they_were_sent(make: Any, tmp_path: Path) -> None:
    from pandaflow.core.model import Input, Output

    first = make(1, payloads.double, [1, 2])
    results = ResultStore(str(tmp_path))
    results.save(first.spec, encode([10, 20]), {"op": "ended"})
    second = make(
        2, payloads.double, [0, 0], inputs=(Input(Output(0)),), sources={}, outputs={0: (0,)}
    )
    work = Work(second.spec, deps=(results.get(results.place(1)),), limit=LIMIT)
    reply = reply_of(worker.run(wire.pack(work), second.code))
    ended = outcome.keep(reply, second.spec, results)
    assert ended is not None
    assert results.load(ended.location).values == [20, 40]


@pytest.mark.parametrize("outputs", [1, 2])
def test_files_of_commands_come_back_where_the_driver_keeps_them(
    make: Any, tmp_path: Path, outputs: int
) -> None:
    """A command that a worker renders, because only its user's code reads its arguments."""
    line = "echo %IN > %OUT{a.txt}" + "; echo b > %OUT{b.txt}" * (outputs - 1)
    given = make(3, line, ["x", "y"], results=str(tmp_path / "run"))
    results = ResultStore(given.spec.results)
    reply = reply_of(worker.run(wire.pack(Work(given.spec, limit=LIMIT)), given.code))
    ended = outcome.keep(reply, given.spec, results)
    assert ended is not None
    assert not ended.failures
    first, second = results.load(ended.location, only_plain=True).values
    files = [each["a.txt"] if outputs == 2 else each for each in (first, second)]
    assert [Path(file.path).read_text() for file in files] == ["x\n", "y\n"]
    assert all(Path(file.path).is_relative_to(tmp_path / "run/files") for file in files)
    assert all(file.size == 2 for file in files)
