"""What a payload may not: limits, wishes of the server, and ends that reach every process."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time

from pandaflow.grid.identity import ANYBODY

RUN = "run-1"
EAT = "exec python3 -c 'x = bytearray(300_000_000); import time; time.sleep(60)'"


def alive(path) -> bool:
    """Whether the process whose number is in a file lives."""
    try:
        os.kill(int(path.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def test_too_much_memory(front, start_pilot):
    bundle = front.submit(EAT, needs={"memory": 100_000_000})
    start_pilot("--once")
    result = front.result_of(bundle)
    assert (result.error.kind, result.error.source) == ("memory", "payload")
    assert result.code == -signal.SIGTERM
    assert result.metrics["max_pss"] > 100_000_000


def test_memory_of_children_counts(front, start_pilot):
    children = f"({EAT}) & ({EAT}) & wait"
    bundle = front.submit(children, needs={"memory": 450_000_000})
    start_pilot("--once")
    assert front.result_of(bundle).error.kind == "memory"


def test_too_much_disk(front, start_pilot):
    line = "head -c 30000000 /dev/zero > x; sleep 60"
    bundle = front.submit(line, needs={"disk": 10_000_000})
    printed = front.submit("head -c 30000000 /dev/zero; sleep 60", needs={"disk": 10_000_000})
    start_pilot()
    assert front.result_of(bundle).error.kind == "disk"
    assert front.result_of(printed).error.kind == "disk"


def test_too_long(front, start_pilot):
    bundle = front.submit("echo a; sleep 60", "echo next", walltime=0.7)
    whole = front.submit("sleep 60", "echo never", needs={"walltime": 0.7})
    start_pilot()
    first, second = front.end_of(bundle).results
    assert (first.error.kind, first.out, second.out) == ("walltime", b"a\n", b"next\n")
    end = front.end_of(whole)
    assert [result.error.kind for result in end.results] == ["walltime"]
    assert end.error.kind == "walltime" and "1 of its commands" in end.error.message


def test_looping(front, start_pilot):
    idle = front.submit("echo a; sleep 60")
    busy = front.submit("for i in 1 2 3 4 5 6 7; do echo $i; sleep 0.5; done")
    start_pilot("--looping", "2s")
    assert front.result_of(idle).error.kind == "looping"
    assert front.result_of(busy).error is None


def test_a_payload_that_ignores_sigterm_is_killed(front, start_pilot):
    bundle = front.submit("trap '' TERM; while :; do sleep 0.1; done", walltime=0.3)
    start_pilot("--grace", "0.5s")
    result = front.result_of(bundle)
    assert (result.code, result.error.kind) == (-9, "walltime")


def test_nothing_of_a_payload_lives_on(front, start_pilot, tmp_path, eventually):
    left = tmp_path / "left"
    script = f"setsid sh -c 'echo $$ > {left}; trap \"\" TERM HUP; while :; do sleep 1; done' &"
    bundle = front.submit(f"{script} while [ ! -s {left} ]; do sleep 0.02; done")
    start_pilot("--once")
    assert front.result_of(bundle).code == 0
    assert eventually(lambda: not alive(left))


def test_a_cancelled_bundle_is_killed_and_not_reported(front, start_pilot, tmp_path, eventually):
    front.heartbeat(1.5)
    pid = tmp_path / "pid"
    bundle = front.submit(f"echo $$ > {pid}; sleep 60")
    pilot = start_pilot()
    eventually(lambda: pid.exists() and pid.read_text())
    assert front.pool.cancel(ANYBODY, RUN, [bundle], time.time(), kill=True) == 1
    eventually(lambda: not alive(pid))
    eventually(lambda: len(pilot.folders) == 1 and not any(
        name.startswith("bundle") for name in os.listdir(pilot.workdir / pilot.folders[0])
    ))  # fmt: skip
    after = front.submit("echo on")
    assert front.result_of(after).out == b"on\n"
    assert [one for one in front.outcomes() if one.bundle == bundle and one.kind == "ended"] == []


def test_a_cancelled_payload_is_asked_to_end_and_then_killed(
    front, start_pilot, tmp_path, eventually
):
    """What listens to SIGTERM tidies up; what does not is killed after the grace."""
    front.heartbeat(1.5)
    tidy, deaf, left = (tmp_path / name for name in ("tidy", "deaf", "left"))
    lines = (
        f"trap 'echo saved > {left}; echo bye; exit 0' TERM; echo $$ > {tidy}; "
        "while :; do sleep 0.05; done",
        f"trap '' TERM; echo $$ > {deaf}; while :; do sleep 0.05; done",
    )
    bundles = [front.submit(line) for line in lines]
    pilot = start_pilot("--grace", "2s")
    for path in (tidy, deaf):
        eventually(lambda path=path: path.exists() and path.read_text())
    assert front.pool.cancel(ANYBODY, RUN, bundles, time.time()) == 2
    eventually(lambda: not alive(tidy))
    assert left.read_text() == "saved\n"
    eventually(lambda: not alive(deaf))
    eventually(lambda: front.pool.runs(ANYBODY)[0]["held"] == 0)
    assert [one for one in front.outcomes() if one.kind != "started"] == []
    after = front.submit("echo on")
    assert front.result_of(after).out == b"on\n"
    pilot.close()
    assert pilot.err.count("asked to end by the server") == 2, "once for each, not each second"


def test_the_end_of_a_log_is_sent_when_asked_for(front, start_pilot, eventually):
    front.heartbeat(1.5)
    bundle = front.submit("echo so far; sleep 60")
    start_pilot()
    eventually(lambda: [one for one in front.outcomes() if one.kind == "started"])
    assert front.pool.ask_tail(ANYBODY, RUN, bundle)
    assert eventually(lambda: "so far" in front.pool.log(ANYBODY, RUN, bundle))


def test_sigterm_drains_and_a_second_one_stops(front, start_pilot, tmp_path, eventually):
    go = tmp_path / "go"
    first = front.submit(f"while [ ! -e {shlex.quote(str(go))} ]; do sleep 0.05; done")
    pilot = start_pilot("--cores", "1")
    eventually(lambda: front.outcomes())
    later = front.submit("echo later")
    pilot.signal(signal.SIGTERM)
    time.sleep(0.5)
    assert pilot.process.poll() is None
    go.touch()
    assert front.result_of(first).code == 0
    assert pilot.wait() == 0
    other = start_pilot("--cores", "1")
    assert front.result_of(later).out == b"later\n"
    stuck = front.submit("sleep 60")
    eventually(lambda: [one for one in front.outcomes() if one.bundle == stuck])
    other.signal(signal.SIGTERM)
    time.sleep(0.5)
    other.signal(signal.SIGTERM)
    assert other.wait() == 0
    end = front.end_of(stuck)
    assert (end.kind, end.error.kind, end.error.code) == ("lost", "site", 1379)
    assert other.folders == []


def test_the_server_drains_and_stops_pilots(front, start_pilot, eventually):
    front.heartbeat(1.5)
    front.submit("sleep 60")
    pilot = start_pilot("--name", "mine")
    eventually(lambda: front.outcomes())
    front.pool.command_pilot(ANYBODY, "mine", "stop")
    assert pilot.wait() == 0
    assert front.end_of(1).kind == "lost"


def test_a_pilot_ends_when_its_time_is_up(front, start_pilot):
    bundle = front.submit("sleep 60")
    pilot = start_pilot("--walltime", "4s", "--margin", "2s")
    end = front.end_of(bundle)
    assert (end.kind, end.error.code) == ("lost", 1510)
    assert pilot.wait() == 0 and pilot.folders == []


def test_a_pilot_ends_when_nothing_comes(start_pilot):
    pilot = start_pilot("--idle", "1s")
    assert pilot.wait() == 0
    assert "0 bundles" in pilot.out and pilot.folders == []


def test_a_pilot_that_ends_says_goodbye(front, start_pilot, eventually):
    pilot = start_pilot("--idle", "1s")
    assert pilot.wait() == 0
    (row,) = front.pool.pilots(ANYBODY, time.time())
    assert row["alive"] is False
    assert front.pool.queue(ANYBODY, "site", time.time()).pilots == 0


def says(front, *commands, accepted=True):
    """Let the server add commands to its first answer to a heartbeat."""
    served, left = front.serve, [1]

    def serve(route, body, query, handler):
        status, answer, *more = served(route, body, query, handler)
        if route == "/pilot/update" and b'"running"' in body and left:
            left.clear()
            message = json.loads(answer)
            message["verdicts"][0].update(commands=list(commands), accepted=accepted)
            answer = json.dumps(message).encode()
        return status, answer, *more

    front.serve = serve


def test_a_soft_kill_reports_what_is_left(front, start_pilot):
    says(front, "soft_kill")
    line = "trap 'echo bye; exit 7' TERM; echo begun; while :; do sleep 0.05; done"
    bundle = front.submit(line, "echo never")
    start_pilot("--once")
    end = front.end_of(bundle)
    (result,) = end.results
    assert end.kind == "ended" and end.error.kind == "cancelled"
    assert (result.code, result.error.kind, result.error.source) == (7, "cancelled", "server")
    assert result.out in (b"begun\nbye\n", b"")  # the signal may come before the shell is ready


def test_a_kill_is_obeyed_and_told(front, start_pilot, tmp_path, eventually):
    says(front, "kill")
    bundle = front.submit("trap '' TERM; while :; do sleep 0.05; done")
    pilot = start_pilot("--once")
    assert pilot.wait() == 0
    assert "1 lost" in pilot.out
    assert [one.kind for one in front.outcomes() if one.bundle == bundle] == ["started", "lost"]


def test_a_single_refused_heartbeat_does_no_harm(front, start_pilot):
    says(front, accepted=False)
    bundle = front.submit("sleep 1; echo here")
    start_pilot("--once")
    assert front.result_of(bundle).out == b"here\n"
