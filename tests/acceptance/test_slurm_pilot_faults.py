"""Pilots on a real Slurm while things break: nothing is lost, and nobody pays for others."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client

import pandaflow as pf
from pandaflow.testing.slurm import Slurm
from tests.acceptance.batch_payloads import held
from tests.acceptance.test_slurm_pilots import (
    begun,
    counted,
    double,
    executor,
    failures,
    many,
    queue,
    running,
    wait_for,
)

pytestmark = pytest.mark.timeout(300)


@pf.workflow
def mixed(short: int, longer: int, folder: str, seconds: float) -> Any:
    return double(double(pf.items(range(short)))), counted(pf.items(range(longer)), folder, seconds)


def start(slurm: Slurm, flow: Any, folder: Path, **settings: Any) -> pf.Run:
    return flow.submit(executor=executor(slurm, **settings), store=f"sqlite:///{folder}/s.db")


MODULE = "pandaflow.executors.batch.pilot"


def processes(slurm: Slurm) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """Return pilots, and workers that they have forked, of this very cluster."""
    found = {}
    for process in psutil.process_iter(["cmdline", "ppid"]):
        if MODULE in (process.info["cmdline"] or ()):
            try:
                mine = process.environ().get("SLURMD_NODENAME") in slurm.nodes
            except psutil.Error:
                continue
            if mine:
                found[process.pid] = process
    pilots = [each for each in found.values() if each.info["ppid"] not in found]
    return pilots, [each for each in found.values() if each.info["ppid"] in found]


def kill_pilot(slurm: Slurm) -> None:
    processes(slurm)[0][0].kill()


def kill_worker(slurm: Slurm) -> None:
    processes(slurm)[1][0].kill()


def lost(run: pf.Run) -> set[str]:
    """Return why jobs that ran were handed on to somebody else."""
    moved = [event for event in run.events() if event["kind"] == "jobs_moved"]
    return {event["reason"] for event in moved if event["finish"] == "ready"}


def settled(slurm: Slurm, folder: Path) -> bool:
    """Whether two pilots run and jobs with them."""
    return len(begun(folder)) >= 4 and len(running(slurm)) == 2


# --- one thing after the other ----------------------------------------------------------


def test_a_pilot_is_not_requeued_unless_the_user_wants_it(slurm: Slurm, tmp_path: Path) -> None:
    with held(tmp_path):
        run = start(slurm, many(8, str(tmp_path), 0.5), tmp_path, max_nodes=1)
        wait_for(lambda: bool(begun(tmp_path)))
        with pytest.raises(RuntimeError, match="disabled"):
            slurm.requeue(running(slurm)[0])
    assert run.wait(60) == "done"


def test_a_pilot_that_is_requeued(slurm: Slurm, tmp_path: Path) -> None:
    flow = many(4, str(tmp_path), 0.5)
    with held(tmp_path):
        run = start(slurm, flow, tmp_path, extra="--requeue", max_nodes=1, cores=4)
        wait_for(lambda: len(begun(tmp_path)) == 4)
        (pilot,) = running(slurm)
        slurm.requeue(pilot)
        wait_for(lambda: bool(lost(run)))  # else they might end while it is being ended
    assert run.wait(120) == "done"
    assert failures(run) == 0 and set(begun(tmp_path)) == set(range(4))
    assert lost(run) == {f"its pilot {pilot} was taken back into the queue"}
    assert queue(slurm) == []


PREEMPTION = """
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
PartitionName=urgent Nodes=ALL MaxTime=10 PriorityTier=10 State=UP
"""


def test_a_pilot_that_is_preempted(tmp_path: Path) -> None:
    with Slurm(2, extra=PREEMPTION) as slurm:
        with held(tmp_path):
            run = start(slurm, many(40, str(tmp_path), 0.6), tmp_path, cores=4)
            wait_for(lambda: settled(slurm, tmp_path))
            urgent = slurm.submit("sleep 2", "-p", "urgent", "-c", "4", "--mem=100")
        wait_for(lambda: slurm.states()[urgent] == "COMPLETED")
        assert run.wait(120) == "done"
        assert "PREEMPTED" in slurm.states().values()
        assert set(begun(tmp_path)) == set(range(40))
        assert failures(run) == 0
        assert queue(slurm) == []


def test_a_node_whose_daemon_is_killed(slurm: Slurm, tmp_path: Path) -> None:
    """Its pilot lives on and works, unwatched; Slurm gives it up, and another one comes."""
    with held(tmp_path):
        run = start(slurm, many(70, str(tmp_path), 1.0), tmp_path)
        wait_for(lambda: settled(slurm, tmp_path))
        node = slurm.show(running(slurm)[0])["NodeList"]
        slurm.kill_slurmd(node)
    assert run.wait(150) == "done"
    assert failures(run) == 0 and set(begun(tmp_path)) == set(range(70))
    wait_for(lambda: processes(slurm) == ([], []), 30)
    slurm.restart_slurmd(node)
    wait_for(lambda: queue(slurm) == [], 60)


@pytest.mark.parametrize("kill", [kill_worker, kill_pilot])
def test_a_process_that_is_killed(
    slurm: Slurm, tmp_path: Path, kill: Callable[[Slurm], None]
) -> None:
    with held(tmp_path):
        run = start(slurm, many(24, str(tmp_path), 0.5), tmp_path)
        wait_for(lambda: settled(slurm, tmp_path))
        kill(slurm)
    assert run.wait(120) == "done"
    assert failures(run) == 0 and set(begun(tmp_path)) == set(range(24))
    assert queue(slurm) == []
    wait_for(lambda: processes(slurm) == ([], []))


# --- all of it --------------------------------------------------------------------------


def test_a_thousand_short_and_fifty_long_jobs_through_faults(slurm: Slurm, tmp_path: Path) -> None:
    run = start(
        slurm, mixed(1000, 50, str(tmp_path), 1.5), tmp_path, max_nodes=4, extra="--requeue"
    )
    faults: list[Callable[[], Any]] = [
        lambda: kill_worker(slurm),
        lambda: slurm.run(["scancel", running(slurm)[0]]),
        lambda: slurm.down(slurm.show(running(slurm)[0])["NodeList"]),
        lambda: slurm.requeue(running(slurm)[-1]),
        lambda: kill_pilot(slurm),
    ]
    for number, fault in enumerate(faults):
        wait_for(lambda n=number: len(begun(tmp_path)) >= 4 + 8 * n)
        with held(tmp_path):
            wait_for(lambda: len(running(slurm)) > 1)
            fault()
    assert run.wait(150) == "done"
    short, longer = run.result()
    assert short == [4 * x for x in range(1000)] and longer == list(range(50))
    assert failures(run) == 0
    assert queue(slurm) == []


# --- strangers --------------------------------------------------------------------------


def knock(address: str) -> None:
    async def connect() -> None:
        client = await Client(address, asynchronous=True, set_as_default=False, timeout=2)
        await client.close()

    asyncio.run(connect())


def test_nobody_else_can_talk_to_the_scheduler(slurm: Slurm, tmp_path: Path) -> None:
    run = start(slurm, many(8, str(tmp_path), 1.0), tmp_path, max_nodes=1, encrypt=True)
    wait_for(lambda: bool(begun(tmp_path)))
    (contact,) = tmp_path.rglob("contact.json")
    assert stat.S_IMODE(contact.stat().st_mode) == 0o600
    said = json.loads(contact.read_text())
    assert all(address.startswith("tls://") for address in said["addresses"])
    with pytest.raises(OSError, match=r"onnection reset|closed"):
        knock(said["addresses"][0].replace("tls://", "tcp://"))
    secret = said["tls"]["key.pem"].splitlines()[1]
    pilots, workers = processes(slurm)
    assert pilots and workers
    for process in (*pilots, *workers):
        assert secret not in f"{process.environ()} {process.cmdline()}"
    assert run.wait(60) == "done"
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path != contact]
    assert any(path.suffix == ".out" for path in kept) and any(p.suffix == ".sh" for p in kept)
    assert not [path for path in kept if secret.encode() in path.read_bytes()]


def test_without_encryption(slurm: Slurm, tmp_path: Path) -> None:
    run = start(slurm, many(8, str(tmp_path), 0.5), tmp_path, max_nodes=1, encrypt=False)
    wait_for(lambda: bool(begun(tmp_path)))
    (contact,) = tmp_path.rglob("contact.json")
    said = json.loads(contact.read_text())
    assert said["tls"] == {}
    assert stat.S_IMODE(contact.stat().st_mode) == 0o600
    knock(said["addresses"][0])
    assert run.wait(60) == "done"
