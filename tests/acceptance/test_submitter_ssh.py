"""Pilots begun by ssh on a real sshd of this machine."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pandaflow.core.errors import SiteError
from pandaflow.grid.messages import Bundle, CommandJob, Needs
from pandaflow.grid.places import QueueBody
from pandaflow.harvester.ssh import SshSettings
from pandaflow.harvester.ssh.submitter import Ssh
from pandaflow.harvester.submitter import Order, Shape
from pandaflow.testing.grid import GridServer, random_name
from pandaflow.testing.sshd import Sshd, SshdMissing
from pandaflow.testing.submitters import LASTING, Make, SubmitterTests, pilot_program
from pandaflow_pilot.archive import build


@pytest.fixture(scope="module")
def shared() -> Iterator[Sshd]:
    try:
        server = Sshd()
    except SshdMissing as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture
def sshd(shared: Sshd) -> Iterator[Sshd]:
    """Tests may stop it, and give it another key."""
    yield shared
    shared.stop()
    shared.trust()
    shared.start()


Open = Callable[..., Ssh]


@pytest.fixture
def opened(shared: Sshd, tmp_path: Path) -> Iterator[Open]:
    """Open submitters with other settings; their connections end with the test."""
    made: list[Ssh] = []

    def open_(label: str = "pf-own", **more: object) -> Ssh:
        fields = {"folder": str(tmp_path / "it's a $HOME"), "grace": 5.0, **more}
        made.append(SshSettings(**shared.settings(**fields)).open(label, tmp_path / label))
        return made[-1]

    yield open_
    for each in made:
        with suppress(SiteError):  # those that were opened where nothing answers
            if left := each.found():
                each.cancel(list(left))
        each.close()


class TestSsh(SubmitterTests):
    @pytest.fixture
    def make(self, opened: Open) -> Make:
        return opened

    @pytest.fixture
    def silent(self, opened: Open) -> Ssh:
        return opened("pf-silent", port=1)


def order(tmp_path: Path, script: str = LASTING, **more: object) -> Order:
    token = tmp_path / "token"
    token.write_text("first")
    found = Order(
        server="http://127.0.0.1:1",
        queue="q",
        label="pf-own",
        program=pilot_program(script),
        token_file=str(token),
    )
    return replace(found, **more)


def until(holds: Callable[[], object], patience: float = 60.0) -> None:
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.05)


def test_a_host_that_does_not_answer_has_lost_no_pilots(
    sshd: Sshd, opened: Open, tmp_path: Path
) -> None:
    submitter = opened()
    begun = submitter.submit(order(tmp_path), ["a", "b"])
    sshd.stop()
    with pytest.raises(SiteError) as caught:
        submitter.states(begun.values())
    assert caught.value.transient
    sshd.start()
    states = submitter.states(begun.values())
    assert {state.phase for state in states.values()} == {"running"}
    assert submitter.found() == begun


def test_a_host_with_another_key_is_not_trusted(sshd: Sshd, opened: Open) -> None:
    sshd.stop()
    sshd.new_host_key()
    sshd.start()
    with pytest.raises(SiteError, match="known_hosts") as caught:
        opened().found()
    assert not caught.value.transient


def test_a_key_that_is_not_accepted_is_said(shared: Sshd, opened: Open) -> None:
    with pytest.raises(SiteError, match="authorized_keys") as caught:
        opened(identity=shared.folder / "host").found()
    assert not caught.value.transient


def test_a_name_is_begun_once(opened: Open, tmp_path: Path) -> None:
    script = f"echo x >>'{tmp_path / 'counted'}'; {LASTING}"
    submitter, wanted = opened(), order(tmp_path, script)
    for _ in range(2):
        assert submitter.submit(wanted, ["once"]) == {"once": "once"}
    until((tmp_path / "counted").exists)
    assert (tmp_path / "counted").read_text() == "x\n"


def test_an_id_of_a_process_that_is_another_now_is_not_killed(opened: Open, tmp_path: Path) -> None:
    submitter = opened()
    submitter.submit(order(tmp_path), ["a"])
    (start,) = tmp_path.glob("it*/pf-own/pilots/a/start")
    pid, born, boot, host = start.read_text().split()
    mine = os.getpid()
    start.write_text(f"{mine} {born} {boot} {host}\n")
    state = submitter.states(["a"])["a"]
    assert state.phase == "gone" and "killed" in state.reason
    submitter.cancel(["a"])  # or this test ends here
    start.write_text(f"{pid} {born} 00-another-boot {host}\n")
    assert "started again" in submitter.states(["a"])["a"].reason
    start.write_text(f"{pid} {born} {boot} another-host\n")
    with pytest.raises(SiteError, match="another-host"):
        submitter.states(["a"])
    start.write_text(f"{pid} {born} {boot} {host}\n")
    assert submitter.states(["a"])["a"].phase == "running"


def test_a_pilot_that_was_killed_says_its_last_word(opened: Open, tmp_path: Path) -> None:
    submitter = opened()
    submitter.submit(order(tmp_path, f"echo 'no more space running gone'; {LASTING}"), ["a"])
    (start,) = tmp_path.glob("it*/pf-own/pilots/a/start")
    until(lambda: "space" in start.with_name("log").read_text())
    os.killpg(int(start.read_text().split()[0]), signal.SIGKILL)
    until(lambda: submitter.states(["a"])["a"].phase == "gone")
    assert "no more space" in submitter.states(["a"])["a"].reason


def test_a_pilot_that_will_not_end_is_killed_with_its_payloads(
    opened: Open, tmp_path: Path
) -> None:
    payload = f"setsid sh -c 'trap \"\" TERM; echo $$ >{tmp_path}/payload; {LASTING}' &"
    script = f"trap '' TERM; {payload} {LASTING}"
    submitter = opened(grace=2.0)
    submitter.submit(order(tmp_path, script), ["a"])
    until(lambda: (tmp_path / "payload").exists() and (tmp_path / "payload").read_text())
    pid = int((tmp_path / "payload").read_text())
    submitter.cancel(["a"])
    until(lambda: submitter.states(["a"])["a"].phase == "gone")
    until(lambda: not psutil.pid_exists(pid))


def test_a_token_that_is_renewed_here_is_renewed_there(opened: Open, tmp_path: Path) -> None:
    submitter = opened()
    submitter.submit(order(tmp_path), ["a"])
    (there,) = tmp_path.glob("it*/pf-own/token")
    assert there.read_text() == "first\n"
    assert there.stat().st_mode & 0o077 == 0
    (tmp_path / "token").write_text("second")
    submitter.states(["a"])
    assert there.read_text() == "second\n"
    (tmp_path / "token").write_text("third")
    opened().states([])  # of another harvester, that has to find out
    assert there.read_text() == "third\n"
    (tmp_path / "token").unlink()
    assert submitter.states(["a"])["a"].phase == "running"


def test_the_token_is_in_no_command_line(opened: Open, tmp_path: Path) -> None:
    secret = random_name("secret")
    submitter, wanted = opened(), order(tmp_path)
    (tmp_path / "token").write_text(secret)
    submitter.submit(wanted, ["a"])
    for process in psutil.process_iter(["cmdline"]):
        assert secret not in " ".join(process.info["cmdline"] or ())


def test_old_pilots_are_swept_away(opened: Open, tmp_path: Path) -> None:
    submitter = opened(keep=60.0)
    submitter.submit(order(tmp_path, "exit 0"), ["old", "new"])
    submitter.submit(order(tmp_path), ["lasts"])
    until(lambda: len(list(tmp_path.glob("it*/pf-own/pilots/*/code"))) == 2)
    folder = next(tmp_path.glob("it*/pf-own/pilots"))
    for name in ("old", "lasts"):
        os.utime(folder / name, (0, 0))
    submitter.submit(order(tmp_path), [])
    assert sorted(path.name for path in folder.iterdir()) == ["lasts", "new"]


def test_what_logins_print_does_no_harm(opened: Open, tmp_path: Path) -> None:
    script = "echo '@pandaflow-0 gone a 0'; echo; exit 7"
    submitter = opened(prologue=("echo prologue; export GIVEN=7",))
    submitter.submit(order(tmp_path, f"{script}; exit $GIVEN"), ["a"])
    until(lambda: submitter.states(["a"])["a"].phase == "gone")
    assert submitter.states(["a"])["a"].code == 7


def test_a_real_pilot_does_a_job(opened: Open, tmp_path: Path) -> None:
    archive = build(tmp_path / "pilot.pyz")
    with GridServer() as server, server.client() as client:
        client.put_queue("far", QueueBody())
        client.open_run("run")
        command = CommandJob(position=0, line=f"echo done >{tmp_path}/made", shell=True)
        bundle = Bundle(
            bundle=0, task="t", jobs=(0,), kind="command", needs=Needs(queue="far"),
            commands=(command,),
        )  # fmt: skip
        assert client.submit("run", [bundle]) == {}
        submitter = opened()
        wanted = Order(
            server=server.url, queue="far", label="pf-own", shape=Shape(walltime=300.0),
            program=(sys.executable, str(archive)), idle=1.0,
        )  # fmt: skip
        submitter.submit(wanted, ["pilot-a"])
        until(lambda: submitter.states(["pilot-a"])["pilot-a"].phase == "gone")
        assert submitter.states(["pilot-a"])["pilot-a"].code == 0
        assert (tmp_path / "made").read_text() == "done\n"
