"""A pilot in a world that breaks: servers that go, answers that are cut, nodes that are killed."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import time

import pytest


def cut(handler, route):
    """A fault: the connection is cut in the middle of the answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"bundles": [')
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True
    return True


def says(*answers: tuple[int, bytes], route: str):
    """A fault: these answers, one after the other, instead of the pool's."""
    left = list(answers)

    def fault(handler, asked):
        if not left or asked != route:
            return False
        handler.answer(*left.pop(0))
        return True

    return fault


def stays(fault):
    """A fault that does not go after it was met once."""

    class Forever:
        def __call__(self, handler, route):
            met = fault(handler, route)
            handler.server.front.faults.insert(0, self) if met else None
            return met

    return Forever()


def test_the_server_goes_and_comes_back(front, start_pilot, tmp_path, eventually):
    """Away at the end of one bundle and for the whole life of the next phase of another."""
    go = tmp_path / "go"
    ends = front.submit("sleep 1; echo ended meanwhile")
    runs = front.submit(f"while [ ! -e {shlex.quote(str(go))} ]; do sleep 0.1; done; echo still")
    start_pilot()
    eventually(lambda: len(front.outcomes()) == 2)
    front.stop()
    time.sleep(4.0)
    front.start()
    assert front.result_of(ends).out == b"ended meanwhile\n"
    go.touch()
    assert front.result_of(runs).out == b"still\n"
    after = front.submit("echo after")
    assert front.result_of(after).out == b"after\n"
    assert len([one for one in front.outcomes() if one.kind == "ended"]) == 3


@pytest.mark.very_slow
def test_the_server_is_away_for_twenty_seconds(front, start_pilot, eventually):
    bundle = front.submit("sleep 5; echo survived")
    start_pilot()
    eventually(lambda: front.outcomes())
    front.stop()
    time.sleep(20.0)
    front.start()
    assert front.result_of(bundle).out == b"survived\n"


def test_a_lease_that_ran_out_is_given_up(front, start_pilot, tmp_path, eventually):
    front.heartbeat(2.0)
    pid = tmp_path / "pid"
    front.submit(f"echo $$ > {pid}; sleep 60")
    start_pilot()
    eventually(lambda: pid.exists() and pid.read_text() and front.outcomes())
    front.stop()

    def gone() -> bool:
        return not os.path.exists(f"/proc/{pid.read_text().strip()}")

    assert eventually(gone)
    front.pool.care(time.time() + 10)
    front.start()
    assert front.end_of(1).kind == "lost"


def test_lost_answers_to_last_reports_do_no_harm(front, start_pilot):
    """The pool has taken the report; the pilot does not know, and says it again."""

    lost: list[str] = []
    served = front.serve

    def serve(route, body, query, handler):
        answer = served(route, body, query, handler)
        if b'"state":"ended"' in body and len(lost) < 2:
            lost.append(route)
            handler.connection.shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        return answer

    front.serve = serve
    bundle = front.submit("echo once")
    pilot = start_pilot("--once")
    assert pilot.wait() == 0
    assert lost == ["/pilot/update"] * 2
    ends = [one for one in front.outcomes() if one.bundle == bundle and one.kind == "ended"]
    assert len(ends) == 1 and ends[0].results[0].out == b"once\n"
    assert "refused" not in pilot.err


def test_answers_cut_in_the_middle(front, start_pilot):
    front.faults += [cut, cut, cut]
    bundle = front.submit("echo here")
    start_pilot("--once")
    assert front.result_of(bundle).out == b"here\n"
    assert front.faults == []


@pytest.mark.parametrize(
    "answer",
    [
        (200, b"<html>"),
        (200, b"[]"),
        (200, b'{"bundles": 7}'),
        (200, b'{"bundles": [[]]}'),
        (200, b"\xff\xfe"),
        (200, b'{"bundles": [{"id": "x"}], "retry": "soon"}'),
        (200, b"9" * 100_000),
        (302, b"elsewhere"),
        (500, b"oops"),
        (503, b'{"title": "busy"}'),
    ],
)
def test_garbage_answers(front, start_pilot, answer):
    front.faults.append(says(answer, route="/pilot/acquire"))
    front.faults.append(says(answer, route="/pilot/update"))
    bundle = front.submit("echo here")
    pilot = start_pilot("--once")
    assert front.result_of(bundle).out == b"here\n"
    assert pilot.wait() == 0


def test_a_bundle_that_is_not_understood_is_given_back(front, start_pilot):
    served = front.serve

    def serve(route, body, query, handler):
        status, answer, *more = served(route, body, query, handler)
        if b'"lease"' in answer and b'"bundles"' in answer:
            message = json.loads(answer)
            message["bundles"][0]["commands"][0]["outputs"] = ["../../etc/passwd"]
            answer = json.dumps(message).encode()
        return status, answer, *more

    front.serve = serve
    bundle = front.submit("echo never")
    start_pilot("--once")
    end = front.end_of(bundle)
    assert (end.kind, end.error.code) == ("lost", 1516)
    assert "no path inside" in end.error.message


def test_what_a_newer_server_adds_is_left_alone(front, start_pilot):
    served = front.serve

    def serve(route, body, query, handler):
        status, answer, *more = served(route, body, query, handler)
        if answer.startswith(b"{"):
            message = json.loads(answer)
            message["weather"] = "fine"
            for bundle in message.get("bundles", ()):
                bundle["colour"] = bundle["needs"] = {**bundle.get("needs", {}), "taste": 1}
            answer = json.dumps(message).encode()
        return status, answer, *more

    front.serve = serve
    bundle = front.submit("echo here")
    start_pilot("--once")
    assert front.result_of(bundle).out == b"here\n"


def test_a_new_token_is_read_and_a_pilot_that_stays_refused_ends(front, start_pilot, tmp_path):
    token = tmp_path / "token"
    token.write_text("old\n")

    def fault(handler, route):
        if handler.headers["Authorization"] == "Bearer new":
            return False
        token.write_text("new\n")
        handler.answer(401, b'{"detail": "expired"}')
        return True

    front.faults.append(stays(fault))
    bundle = front.submit("echo here")
    pilot = start_pilot("--once", "--token-file", str(token))
    assert front.result_of(bundle).out == b"here\n"
    assert pilot.wait() == 0
    front.faults[:] = [stays(lambda handler, route: handler.answer(403, b"{}") or True)]
    refused = start_pilot("--token-file", str(token), "--patience", "1s")
    assert refused.wait() == 3
    assert "does not want this pilot" in refused.err
    assert refused.err.splitlines()[-1].endswith("turned this pilot away: 403: Forbidden")
    assert "new" not in refused.err.replace("renew", "")


def test_a_refused_pilot_does_not_say_that_nothing_came(front, start_pilot):
    front.faults[:] = [
        stays(lambda handler, route: handler.answer(403, b'{"detail": "no"}') or True)
    ]
    pilot = start_pilot("--idle", "1s")
    assert pilot.wait() == 3
    assert pilot.err.splitlines()[-1].endswith("turned this pilot away: 403: no")
    assert "nothing came" not in pilot.err


def test_a_token_of_the_pilot_s_own_is_used_and_renewed(front, start_pilot, tmp_path, eventually):
    token = tmp_path / "token"
    token.write_text("bootstrap\n")
    front.token_seconds = 2.0
    pilot = start_pilot("--token-file", str(token), "--log-level", "debug")
    eventually(lambda: len(front.tokens) >= 3)
    shown = [headers.get("Authorization") for route, headers in list(front.heard)]
    asked = [
        headers.get("Authorization")
        for route, headers in list(front.heard)
        if route == "/pilot/token"
    ]
    assert asked[0] == "Bearer bootstrap"
    assert asked[1:3] == [f"Bearer {each}" for each in front.tokens[:2]]
    token.unlink()  # it need not stay
    bundle = front.submit("env; echo here")
    out = front.result_of(bundle).out
    assert b"here" in out
    pilot.close()
    assert shown.count("Bearer bootstrap") <= 3
    for each in front.tokens:
        assert each not in pilot.err and each.encode() not in out


def test_a_pilot_whose_own_token_is_refused_shows_what_it_was_started_with(
    front, start_pilot, tmp_path, eventually
):
    token = tmp_path / "token"
    token.write_text("bootstrap\n")
    front.token_seconds = 3_600.0
    start_pilot("--token-file", str(token))
    eventually(lambda: front.tokens)
    first = front.tokens[0]

    def withdrawn(handler, route):
        if handler.headers["Authorization"] != f"Bearer {first}":
            return False
        handler.answer(401, b'{"detail": "withdrawn"}')
        return True

    front.faults[:] = [stays(withdrawn)]
    eventually(lambda: len(front.tokens) >= 2)
    bundle = front.submit("echo here")
    assert front.result_of(bundle).out == b"here\n"


def test_a_line_is_said_once_a_minute(front, start_pilot):
    front.faults[:] = [
        stays(lambda handler, route: handler.answer(503, b'{"detail": "busy"}') or True)
    ]
    pilot = start_pilot("--idle", "3s")
    assert pilot.wait() == 0
    assert pilot.err.count("no work can be asked for (503: busy)") == 1


def test_a_killed_payload_is_told(front, start_pilot, tmp_path, eventually):
    pid = tmp_path / "pid"
    bundle = front.submit(f"echo $$ > {pid}; sleep 60")
    start_pilot("--once")
    eventually(lambda: pid.exists() and pid.read_text())
    os.kill(int(pid.read_text()), signal.SIGKILL)
    result = front.result_of(bundle)
    assert (result.code, result.error.code, result.error.kind) == (-9, -9, "exit")


def test_a_killed_pilot_leaves_nothing(front, start_pilot, tmp_path, eventually):
    pid = tmp_path / "pid"
    front.submit(f"setsid sleep 60 & echo $! > {pid}; chmod 000 .; wait")
    pilot = start_pilot()
    eventually(lambda: pid.exists() and pid.read_text())
    assert len(pilot.folders) == 1
    pilot.process.kill()
    assert eventually(lambda: not os.path.exists(f"/proc/{pid.read_text().strip()}"))
    assert eventually(lambda: pilot.folders == [])


def test_the_next_pilot_cleans_up_where_guard_and_pilot_were_killed(
    front, start_pilot, tmp_path, eventually
):
    pid = tmp_path / "pid"
    front.submit(f"echo $$ > {pid}; sleep 60")
    pilot = start_pilot()
    eventually(lambda: pid.exists() and pid.read_text())
    children = subprocess.run(
        ["ps", "--ppid", str(pilot.process.pid), "-o", "pid=,args="],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    guard = next(int(line.split()[0]) for line in children if "pandaflow_pilot" in line)
    os.kill(guard, signal.SIGKILL)
    pilot.process.kill()
    pilot.process.wait()
    left = pilot.folders
    assert len(left) == 1 and os.path.exists(f"/proc/{pid.read_text().strip()}")
    (pilot.workdir / "somebody-else").mkdir()
    other = start_pilot("--idle", "0.5s")
    assert other.wait() == 0
    assert other.folders == ["somebody-else"]
    assert eventually(lambda: not os.path.exists(f"/proc/{pid.read_text().strip()}"))


def test_a_pilot_leaves_a_living_one_alone(front, start_pilot, eventually):
    first = start_pilot("--cores", "1")
    eventually(lambda: len(first.folders) == 1)
    second = start_pilot("--cores", "1", "--idle", "0.5s")
    assert second.wait() == 0
    bundle = front.submit("echo here")
    assert front.result_of(bundle).out == b"here\n"


def test_a_full_disk_is_the_sites_fault(front, start_pilot, tmp_path, eventually):
    if os.geteuid() != 0:
        pytest.skip("needs the right to mount")
    disk = tmp_path / "work"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        bundle = front.submit("head -c 20000000 /dev/zero > x")
        after = front.submit("echo fits")
        pilot = start_pilot("--cores", "1")
        result = front.result_of(bundle)
        assert (result.error.kind, result.error.code) == ("site", 1098)
        assert result.code != 0
        assert front.result_of(after).out == b"fits\n"
        pilot.close()
        eventually(lambda: pilot.folders == [])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_work_directory_that_cannot_be_made(front, start_pilot, tmp_path):
    (tmp_path / "work").write_text("a file")
    pilot = start_pilot()
    assert pilot.wait() == 2
    assert "no work directory" in pilot.err and "Traceback" not in pilot.err


def test_somebody_elses_bundle_is_dropped(front, start_pilot, tmp_path, eventually):
    """The pool takes a bundle back while its pilot is mute; what it says later does not count."""
    front.heartbeat(3.0)
    pid = tmp_path / "pid"
    bundle = front.submit(f"echo $$ > {pid}; sleep 60")
    start_pilot()
    eventually(lambda: pid.exists() and pid.read_text() and front.outcomes())
    front.pool.care(time.time() + 60)
    assert front.end_of(bundle).kind == "lost"
    assert eventually(lambda: not os.path.exists(f"/proc/{pid.read_text().strip()}"))
    assert [one.kind for one in front.outcomes() if one.bundle == bundle][-1] == "lost"
