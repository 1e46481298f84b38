"""What jobs say, what they are asked, and what a session knows of both."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import pickle
import threading
import time
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from pandaflow.core.errors import WorkflowError
from pandaflow.core.events import BundleEnded
from pandaflow.executors import channel, supervise
from pandaflow.executors.channel import BACKLOG, LIMIT, PAGE, Ask, Outbox, Roll, encode_body
from pandaflow.executors.command import CommandPayload
from pandaflow.executors.payload import JobContext, current_job, unpack_said
from pandaflow.ports import Channel

ISOLATIONS = ("process", "thread", "caller")


def said(bench: Any) -> list[Any]:
    return [
        event for report in bench.reports if report["op"] == "said" for event in unpack_said(report)
    ]


def spin(seconds: float) -> None:
    """Pass time in Python code, where an exception can arrive."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.002)


def begun(bench: Any) -> list[int]:
    """Return what jobs have sent as ``{"begun": x}``."""
    return [event.body["begun"] for event in said(bench) if "begun" in event.body]


def ask(jobs: list[tuple[int, int]], reason: str = "enough", grace: float = 0.0) -> None:
    channel.ask("run1", jobs, reason, grace)
    supervise.look()


# --- messages ---------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_messages_come_in_order_and_before_the_end(bench: Any, isolation: str) -> None:
    def work(x: int) -> None:
        for step in range(5):
            assert current_job().send({"x": x, "step": step})
            time.sleep(0.004)

    before = time.time()
    bench.run(work, bench.spec([10, 11], bundle=4), isolation=isolation)
    events = said(bench)
    assert bench.ended.failures == {} and bench.reports[-1]["op"] == "ended"
    assert [event.body for event in events] == [
        {"x": x, "step": step} for x in (10, 11) for step in range(5)
    ]
    assert [event.job for event in events] == [0] * 5 + [1] * 5
    assert {(event.bundle, event.attempt, event.task) for event in events} == {(4, 1, "fill")}
    assert all(before - 1 < event.at < time.time() + 1 for event in events)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_message_in_a_quiet_time_does_not_wait_for_the_end(
    bench: Any, until: Any, tmp_path: Path
) -> None:
    go = tmp_path / "go"

    def work(x: int) -> None:
        current_job().send({"hello": x})
        wait_for(go)

    thread = bench.aside(work, bench.spec([1]), isolation="thread")
    until(lambda: said(bench))
    assert not any(report["op"] == "ended" for report in bench.reports)
    go.touch()
    thread.join(60)
    assert len(said(bench)) == 1 and bench.ended.failures == {}


def test_ten_thousand_messages_of_one_job(bench: Any) -> None:
    def flood(n: int) -> int:
        job = current_job()
        return sum(job.send({"step": step}) for step in range(n))

    out = bench.run(flood, bench.spec([10_000]))
    assert out.values == [10_000]
    assert [event.body["step"] for event in said(bench)] == list(range(10_000))
    pages = [report["said"] for report in bench.reports if report["op"] == "said"]
    assert max(map(len, pages)) <= PAGE and bench.reports[-1]["op"] == "ended"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: {"lock": threading.Lock()}, "Object of type lock is not JSON serializable"),
        (lambda: {"x": b"bytes"}, "bytes"),
        (lambda: {(1, 2): 3}, "keys must be"),
        (lambda: [1, 2], "takes a dict, not list"),
        (lambda: None, "takes a dict, not NoneType"),
        (lambda: {"text": "x" * LIMIT}, "small messages"),
    ],
)
def test_what_cannot_be_sent_is_an_error_of_the_job(bench: Any, make: Any, why: str) -> None:
    def work(x: int) -> int:
        if x == 1:
            current_job().send(make())
        current_job().send({"fine": x})
        return x

    out = bench.run(work, bench.spec([0, 1, 2]))
    assert set(bench.ended.failures) == {1}
    failure = bench.ended.failures[1]
    assert failure.type.endswith("WorkflowError") and why in failure.message
    assert (out.values[0], out.values[2]) == (0, 2)
    assert [event.body for event in said(bench)] == [{"fine": 0}, {"fine": 2}]


def test_a_body_in_a_circle_is_refused() -> None:
    body: dict[str, Any] = {}
    body["self"] = body
    with pytest.raises(WorkflowError, match="send"):
        encode_body(body)


def test_numbers_arrive_as_they_were(bench: Any) -> None:
    body = {"tiny": 5e-324, "big": 2**80, "inf": math.inf, "none": None, "list": [1, "é\n"]}

    def work(x: int) -> None:
        changed = dict(body, nan=math.nan)
        current_job().send(changed)
        changed.clear()

    bench.run(work, bench.spec([0]))
    (event,) = said(bench)
    assert math.isnan(event.body.pop("nan")) and event.body == body


def test_threads_of_the_payload_speak_for_its_job(bench: Any) -> None:
    def work(x: int) -> None:
        kept = current_job()

        def by_context() -> None:
            current_job().send({"by": "context"})

        copied = copy_context()
        for target in (lambda: copied.run(by_context), lambda: kept.send({"by": "object"})):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()

    bench.run(work, bench.spec([0, 0]))
    assert [(event.job, event.body["by"]) for event in said(bench)] == [
        (0, "context"),
        (0, "object"),
        (1, "context"),
        (1, "object"),
    ]


def test_without_a_channel_nothing_is_sent() -> None:
    job = JobContext("run", "task", 0, 1, "task[0]", 7, "/nowhere")
    assert job.send({"x": 1}) is False and job.stopping == ""
    with pytest.raises(WorkflowError):
        job.send({"x": object()})


def test_a_copy_of_the_job_in_another_process_reaches_nobody(bench: Any) -> None:
    def work(x: int) -> tuple[bool, bool]:
        job = current_job()
        copy = pickle.loads(pickle.dumps(job))
        return copy == job, copy.send({"x": 1})

    assert bench.run(work, bench.spec([0])).values == [(True, False)]


def test_a_forked_child_reaches_nobody(bench: Any) -> None:
    def work(x: int) -> int:
        job = current_job()
        child = multiprocessing.get_context("fork").Process(
            target=lambda: os._exit(3 if job.send({"x": 1}) else 4)
        )
        child.start()
        child.join(20)
        return child.exitcode or 0

    assert bench.run(work, bench.spec([0])).values == [4]
    assert said(bench) == []


def test_messages_that_nobody_takes_are_refused_in_the_end() -> None:
    taken: list[Any] = []
    block, begun = threading.Event(), threading.Event()

    def post(report: dict[str, Any]) -> None:
        begun.set()
        assert block.wait(20)
        taken.extend(report["said"])

    outbox, message = Outbox(post), ("task", 0, 0, 1, 0.0, "{}")
    assert outbox.put(message) and begun.wait(60)
    put = sum(outbox.put(message) for _ in range(BACKLOG + 10))
    assert put == BACKLOG
    block.set()
    outbox.flush()
    assert len(taken) == BACKLOG + 1 and outbox.put(message)
    outbox.flush()


def test_a_closed_worker_does_not_end_the_postman(until: Any) -> None:
    def broken(report: dict[str, Any]) -> None:
        raise RuntimeError("the loop is closed")

    taken: list[Any] = []
    message = ("task", 0, 0, 1, 0.0, "{}")
    assert Outbox(broken).put(message)
    time.sleep(0.05)
    sound = Outbox(lambda report: taken.extend(report["said"]))
    assert sound.put(message)
    until(lambda: taken == [message])


def test_an_outbox_posts_to_the_latest_driver() -> None:
    first: list[Any] = []
    second: list[Any] = []
    outbox = channel.outbox_of("run-b", "w", first.append)
    assert channel.outbox_of("run-b", "w", second.append) is outbox
    outbox.put(("task", 0, 0, 1, 0.0, "{}"))
    outbox.flush()
    channel.forget("run-b")
    assert (len(first), len(second)) == (0, 1)
    assert channel.outbox_of("run-b", "w", first.append) is not outbox
    channel.forget("run-b")


# --- requests to stop -------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_the_third_of_five_is_stopped_by_force(bench: Any, until: Any, isolation: str) -> None:
    def work(x: int) -> int:
        current_job().send({"begun": x})
        if x == 2:
            spin(30)
        return x

    thread = bench.aside(work, bench.spec(range(5)), isolation=isolation)
    until(lambda: begun(bench) == [0, 1, 2])
    ask([(0, 2)], "no hope")
    thread.join(60)
    ended = bench.ended
    assert ended.skipped == {2: "no hope"}
    assert (ended.failures, ended.unstarted, begun(bench)) == ({}, (), [0, 1, 2, 3, 4])


def test_a_job_that_swallows_its_stop_is_still_skipped(bench: Any, until: Any) -> None:
    def stubborn(x: int) -> int:
        try:
            current_job().send({"begun": x})
            spin(30)
        except BaseException:  # noqa: BLE001, S110 - the point of the test
            pass
        return x

    thread = bench.aside(stubborn, bench.spec([7]), isolation="thread")
    until(lambda: begun(bench))
    ask([(0, 0)])
    thread.join(60)
    assert bench.ended.skipped == {0: "enough"} and bench.ended.failures == {}


def test_a_job_that_fails_when_stopped_is_skipped(bench: Any, until: Any) -> None:
    def touchy(x: int) -> None:
        try:
            current_job().send({"begun": x})
            spin(30)
        finally:
            raise ValueError("while it cleaned up")

    thread = bench.aside(touchy, bench.spec([7]), isolation="thread")
    until(lambda: begun(bench))
    ask([(0, 0)])
    thread.join(60)
    assert bench.ended.skipped == {0: "enough"} and bench.ended.failures == {}


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_job_that_polls_ends_as_it_likes(bench: Any, until: Any, isolation: str) -> None:
    def polite(x: int) -> str:
        job = current_job()
        assert job.stopping == ""
        job.send({"begun": x})
        while not job.stopping:
            time.sleep(0.002)
        job.send({"why": current_job().stopping})
        return job.stopping

    thread = bench.aside(polite, bench.spec([1]), isolation=isolation)
    until(lambda: begun(bench))
    ask([(0, 0)], "the reason", grace=30)
    thread.join(60)
    assert bench.ended.skipped == {} and bench.ended.failures == {}
    assert said(bench)[-1].body == {"why": "the reason"}


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_job_that_has_not_begun_never_does(
    bench: Any, until: Any, tmp_path: Path, isolation: str
) -> None:
    go = tmp_path / "go"

    def work(x: int) -> int:
        current_job().send({"begun": x})
        wait_for(go)
        return x

    thread = bench.aside(work, bench.spec(range(4)), isolation=isolation)
    until(lambda: begun(bench) == [0])
    ask([(0, 1), (0, 3)], "not wanted", grace=30)
    go.touch()
    thread.join(60)
    assert begun(bench) == [0, 2] and bench.ended.failures == {}
    assert bench.ended.skipped == {1: "not wanted", 3: "not wanted"}


def test_a_job_that_has_just_ended_protects_the_next(bench: Any, until: Any) -> None:
    """Ask each job to stop the moment it ends; the next one must not feel it."""

    def work(x: int) -> int:
        current_job().send({"x": x})
        spin(0.005)
        return x

    def meddle() -> None:
        seen = 0
        while seen < 40:
            events = said(bench)
            for event in events[seen:]:
                if event.job % 2 == 0:
                    time.sleep(0.005)  # about when it ends
                    ask([(0, event.job)])
            seen = len(events)
            time.sleep(0.001)

    meddler = threading.Thread(target=meddle)
    meddler.start()
    bench.run(work, bench.spec(range(40)), isolation="thread")
    meddler.join(60)
    assert not meddler.is_alive()
    assert bench.ended.failures == {} and len(bench.ended.wall) == 40
    assert {job % 2 for job in bench.ended.skipped} <= {0}, "an innocent job was stopped"


def test_a_stop_is_about_one_bundle(bench: Any) -> None:
    ask([(0, 0)])
    assert bench.run(lambda x: x, bench.spec([5], bundle=1, attempt=2)).values == [5]
    assert bench.ended.skipped == {}
    bench.run(lambda x: x, bench.spec([5]))
    assert bench.ended.skipped == {0: "enough"}


def test_the_first_request_counts_until_the_run_is_forgotten(bench: Any) -> None:
    ask([(0, 0)], "first")
    ask([(0, 0)], "second")
    assert channel.asked["run1", 0, 0].reason == "first"
    supervise.forget("run1")
    assert bench.run(lambda x: x, bench.spec([5])).values == [5]


def test_requests_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "KEPT", len(channel.asked) + 3)
    channel.ask("run-c", [(0, job) for job in range(10)], "", 0.0)
    kept = [job for run, _, job in channel.asked if run == "run-c"]
    channel.forget("run-c")
    assert kept == [7, 8, 9]
    assert not any(run == "run-c" for run, _, _ in channel.asked)


def test_a_job_that_cannot_be_stopped_costs_its_thread(bench: Any, until: Any) -> None:
    def deaf(x: int) -> int:
        current_job().send({"begun": x})
        ctypes.CDLL(None).usleep(ctypes.c_uint(int(2e6)))
        return x

    thread = bench.aside(deaf, bench.spec([0, 1]), isolation="thread")
    until(lambda: begun(bench))
    ask([(0, 0)])
    thread.join(60)
    ended = bench.ended
    assert ended.failures == {} and ended.unstarted == (1,)
    assert "enough" in ended.skipped[0] and "did not react" in ended.skipped[0]


def test_a_command_is_ended_without_delay(bench: Any, until: Any, tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    loop = f"while true; do echo x >> {beat}; sleep 0.02; done"
    spec = bench.spec([0], kind="command")
    thread = bench.aside(CommandPayload(loop), spec, isolation="thread")
    until(beat.exists)
    ask([(0, 0)], "no hope", grace=1000)
    thread.join(60)
    assert bench.ended.skipped == {0: "no hope"} and bench.ended.failures == {}
    size = beat.stat().st_size
    time.sleep(0.2)
    assert beat.stat().st_size == size


def test_a_detached_job_is_asked_under_the_bundle_it_began_in(bench: Any, until: Any) -> None:
    def slow(x: int) -> None:
        if x == 1:
            while not current_job().stopping:
                time.sleep(0.002)
            current_job().send({"why": current_job().stopping})
            spin(30)

    bench.run(slow, bench.spec(range(3), seconds=0.1), isolation="thread")
    assert bench.ended.detached == 1
    ask([(0, 1)], grace=0.1)
    until(lambda: said(bench))
    join = bench.spec(range(3), jobs=range(1, 2), bundle=1, join=0)
    bench.run(b"", join, isolation="thread")
    assert bench.ended.skipped == {0: "enough"} and bench.ended.failures == {}
    assert [event.body for event in said(bench)] == [{"why": "enough"}]


# --- what a session knows ---------------------------------------------------------------

REQUEST = Ask("enough", 0.0)


def test_only_jobs_that_are_out_are_asked(bench: Any) -> None:
    roll = Roll()
    roll.add(bench.spec(range(3), bundle=1))
    roll.add(bench.spec(range(3), bundle=2, jobs=range(3, 6)))
    roll.add(bench.spec(range(3), bundle=3, name="other"))
    assert roll.ask([("fill", 1), ("fill", 4), ("fill", 9), ("none", 1)], REQUEST) == [
        (1, 1),
        (2, 4),
    ]
    roll.ended(BundleEnded(at=0.0, bundle=1))
    roll.drop([2, 77])
    assert roll.ask([("fill", 1), ("fill", 4)], REQUEST) == []
    assert roll.ask([("other", 0)], REQUEST) == [(3, 0)]


def test_what_was_asked_is_known_until_the_bundle_ends(bench: Any) -> None:
    roll = Roll()
    roll.add(bench.spec(range(3), bundle=1))
    assert roll.asked_of(1) == []
    roll.ask([("fill", 2)], REQUEST)
    assert roll.asked_of(1) == [((1, 2), REQUEST)]
    roll.ended(BundleEnded(at=0.0, bundle=1))
    assert roll.asked_of(1) == []
    roll.add(bench.spec(range(3), bundle=2, attempt=2))
    assert roll.asked_of(2) == [], "the next attempt is another matter"


def test_a_job_that_is_handed_back_is_still_not_wanted(bench: Any) -> None:
    roll = Roll()
    roll.add(bench.spec(range(4), bundle=1))
    roll.ask([("fill", 0), ("fill", 3)], REQUEST)
    roll.ended(BundleEnded(at=0.0, bundle=1, detached=1, unstarted=(2, 3)))
    roll.add(bench.spec(range(4), bundle=2, jobs=range(2, 4)))
    assert roll.asked_of(2) == [((2, 3), REQUEST)]
    roll.add(bench.spec(range(4), bundle=3, jobs=range(2, 4)))
    assert roll.asked_of(3) == []


def test_a_detached_job_is_found_before_and_after_it_is_joined(bench: Any) -> None:
    roll = Roll()
    roll.add(bench.spec(range(3), bundle=1))
    roll.ended(BundleEnded(at=0.0, bundle=1, detached=1, unstarted=(2,)))
    assert roll.ask([("fill", job) for job in range(3)], REQUEST) == [(1, 1)]
    roll.add(bench.spec(range(3), bundle=2, jobs=range(1, 2), join=1))
    assert roll.ask([("fill", 1)], REQUEST) == [(1, 1)]
    roll.ended(BundleEnded(at=0.0, bundle=2))
    assert roll.ask([("fill", 1)], REQUEST) == []


def test_sessions_of_this_machine_have_a_channel(tmp_path: Path) -> None:
    from pandaflow.executors.dask import DaskSession
    from pandaflow.executors.local import CallerSession

    session = CallerSession("run-d", str(tmp_path), lambda event: None)
    assert isinstance(session, Channel) and issubclass(DaskSession, Channel)
    assert not isinstance(object(), Channel)
    session.close()
