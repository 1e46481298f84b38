"""The pilot process: whom it serves, when it goes, and what it hands to its workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

from pandaflow.executors.batch.contact import Contact, write_order
from pandaflow.executors.batch.pilot import Pilot, devices
from pandaflow.executors.batch.slots import Slot

pytestmark = pytest.mark.timeout(300)

ROOT = str(Path(__file__).parents[4])


class Driver:
    """A scheduler, its contact file, and pilots that read it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.contact = folder, folder / "contact.json"
        self.pilots: list[subprocess.Popen[str]] = []
        self.cluster = self._cluster()
        self.client = Client(self.cluster, set_as_default=False)

    @staticmethod
    def _cluster() -> LocalCluster:
        return LocalCluster(
            n_workers=0,
            host="127.0.0.1",
            dashboard_address=":0",
            scheduler_kwargs={"dashboard": False},
        )

    def write(self, *, over: bool = False, cluster: LocalCluster | None = None) -> None:
        address = (cluster or self.cluster).scheduler_address
        Contact(id=uuid.uuid4().hex, addresses=(address,), over=over).write(self.contact)

    def pilot(self, *more: str, count: int = 1, walltime: float = 60.0) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "pandaflow.executors.batch.pilot", str(self.contact)]
        words += ["--slot", Slot(count, cores=2).dump(), "--walltime", str(walltime)]
        words += ["--margin", "2", "--scratch", str(self.folder), *more]
        env = {**os.environ, "PANDAFLOW_BATCH_ID": "77", "PYTHONPATH": ROOT}
        pilot = subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)
        self.pilots.append(pilot)
        return pilot

    def workers(self) -> dict[str, Any]:
        """Return the workers that are there, by name without the node's."""
        there = self.client.scheduler_info(n_workers=-1)["workers"].values()
        return {worker["name"].partition("@")[0]: worker for worker in there}

    def close(self) -> None:
        for pilot in self.pilots:
            pilot.kill()
            pilot.communicate()
        self.client.close()
        self.cluster.close()


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    driver = Driver(tmp_path)
    yield driver
    driver.close()


def wait_for(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- workers ----------------------------------------------------------------------------


def test_a_worker_a_slot_that_offers_what_the_slot_has(driver: Driver) -> None:
    driver.write()
    pilot = driver.pilot(count=2, walltime=50.0)
    wait_for(lambda: len(driver.workers()) == 2)
    workers = driver.workers()
    assert set(workers) == {"pilot-77-2x2x0x0x0-0.1", "pilot-77-2x2x0x0x0-1.2"}
    assert {worker["nthreads"] for worker in workers.values()} == {1}
    offered = driver.client.run_on_scheduler(
        lambda dask_scheduler: [dict(w.resources) for w in dask_scheduler.workers.values()]
    )
    for each in offered:
        assert 0 < each.pop("walltime") <= 48.0
        assert (each["cores"], each["plain"]) == (2.0, 1.0)
    driver.write(over=True)
    assert pilot.wait(60) == 0
    assert os.listdir(driver.folder) == ["contact.json"], "its folder is gone"


def test_a_worker_that_dies_is_replaced_and_the_others_stay(driver: Driver) -> None:
    driver.write()
    driver.pilot(count=2)
    wait_for(lambda: len(driver.workers()) == 2)
    pids = driver.client.run(os.getpid)
    names = {
        worker["name"].partition("@")[0]: address for address, worker in _by_address(driver).items()
    }
    os.kill(pids[names["pilot-77-2x2x0x0x0-0.1"]], signal.SIGKILL)
    wait_for(lambda: set(driver.workers()) == {"pilot-77-2x2x0x0x0-0.3", "pilot-77-2x2x0x0x0-1.2"})
    assert pids[names["pilot-77-2x2x0x0x0-1.2"]] in driver.client.run(os.getpid).values()


def _by_address(driver: Driver) -> dict[str, Any]:
    return dict(driver.client.scheduler_info(n_workers=-1)["workers"])


def test_a_node_is_cut_anew_when_the_driver_wants_it(driver: Driver) -> None:
    driver.write()
    pilot = driver.pilot(count=2)
    wait_for(lambda: len(driver.workers()) == 2)
    write_order(driver.contact, "77", Slot(1, cores=4))
    wait_for(lambda: set(driver.workers()) == {"pilot-77-1x4x0x0x0-0.1"})
    assert pilot.poll() is None
    driver.write(over=True)
    assert pilot.wait(60) == 0


def test_it_goes_when_its_workers_were_sent_away(driver: Driver) -> None:
    driver.write()
    pilot = driver.pilot("--patience", "60")
    wait_for(lambda: len(driver.workers()) == 1)
    driver.client.retire_workers(list(_by_address(driver)))
    assert pilot.wait(60) == 0


# --- time -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_warning_lets_what_runs_end(driver: Driver, number: signal.Signals) -> None:
    driver.write()
    pilot = driver.pilot(count=2)
    wait_for(lambda: len(driver.workers()) == 2)
    gate, begun, ended = (driver.folder / name for name in ("gate", "begun", "ended"))

    def wait(path: str, begun: str, ended: str) -> None:
        open(begun, "w").close()
        while not os.path.exists(path):
            time.sleep(0.05)
        open(ended, "w").close()

    future = driver.client.submit(wait, str(gate), str(begun), str(ended))
    wait_for(begun.exists)
    pilot.send_signal(number)
    wait_for(lambda: len(driver.workers()) == 1)  # the idle one goes at once
    gate.touch()
    assert pilot.wait(60) == 0
    assert ended.exists(), "what the worker still knows of it goes with it"
    del future


def test_it_ends_in_time_whatever_runs(driver: Driver) -> None:
    driver.write()
    began = time.time()
    pilot = driver.pilot(walltime=8.0)
    wait_for(lambda: len(driver.workers()) == 1)
    driver.client.submit(time.sleep, 600)
    assert pilot.wait(60) == 0
    assert time.time() - began >= 4.0, "it did not give up before"
    wait_for(lambda: driver.workers() == {})


# --- drivers ----------------------------------------------------------------------------


def test_without_a_driver_it_waits_for_a_while(driver: Driver) -> None:
    pilot = driver.pilot("--patience", "0.5")
    assert pilot.wait(60) == 0


def test_when_the_run_is_over_it_does_not_begin(driver: Driver) -> None:
    driver.write(over=True)
    assert driver.pilot().wait(60) == 0


def test_garbage_is_told_and_waited_out(driver: Driver) -> None:
    driver.contact.write_bytes(b"\xff no JSON")
    pilot = driver.pilot("--patience", "1")
    _, said = pilot.communicate(timeout=60)
    assert pilot.returncode == 0
    assert "is no contact of a driver" in said and "Traceback" not in said


def test_a_new_driver_is_served_when_the_old_one_is_gone(driver: Driver) -> None:
    driver.write()
    pilot = driver.pilot("--patience", "60")
    wait_for(lambda: len(driver.workers()) == 1)
    with Driver._cluster() as other, Client(other, set_as_default=False) as client:
        driver.write(cluster=other)
        client.wait_for_workers(1, timeout=60)
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3
        wait_for(lambda: driver.workers() == {})
        driver.write(over=True)
        assert pilot.wait(60) == 0


def test_workers_end_with_a_pilot_that_is_killed(driver: Driver) -> None:
    driver.write()
    pilot = driver.pilot(count=2)
    wait_for(lambda: len(driver.workers()) == 2)
    pilot.kill()
    wait_for(lambda: driver.workers() == {})


# --- parts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "each", "expected"),
    [(0, 1, "3"), (1, 1, "5"), (0, 2, "3,5"), (1, 2, "6,GPU-ab"), (0, 0, None)],
)
def test_slots_share_the_devices(number: int, each: int, expected: str | None) -> None:
    env = {"CUDA_VISIBLE_DEVICES": "3,5,6,GPU-ab", "OTHER": "1,2", "ROCR_VISIBLE_DEVICES": ""}
    given = {} if expected is None else {"CUDA_VISIBLE_DEVICES": expected}
    assert devices(env, number, each) == given


def test_each_vendor_s_variable_is_shared() -> None:
    names = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
    assert devices(dict.fromkeys(names, "0,1"), 1, 1) == dict.fromkeys(names, "1")
    assert devices({}, 0, 1) == {}


def test_the_same_garbage_does_not_end_who_serves_a_driver(tmp_path: Path) -> None:
    path = tmp_path / "contact.json"
    pilot = Pilot(path, slot=Slot(1), until=0.0, margin=0.0, patience=1.0, folder=str(tmp_path))
    path.write_text("{")
    assert pilot._read() is None
    pilot._served = Contact(id="a", addresses=())
    assert pilot._read() is pilot._served
