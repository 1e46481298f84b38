"""What may befall batch jobs on a real Slurm, one fault after the other."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.core.errors import SiteError
from pandaflow.core.events import BundleEnded
from pandaflow.executors.batch import leftovers, sender
from pandaflow.executors.batch.jobs import BatchJobs
from pandaflow.executors.batch.settings import BatchSettings
from pandaflow.executors.batch.slurm import Slurm as SlurmBackend
from pandaflow.ports import Report
from pandaflow.testing import payloads
from pandaflow.testing.probe import Probe
from pandaflow.testing.slurm import Slurm, SlurmMissing
from tests.acceptance.batch_payloads import many, wait_for
from tests.acceptance.test_slurm_batch import Site, site

__all__ = ["site"]
pytestmark = pytest.mark.timeout(240)


@pf.task
def pid_noted(x: int, folder: str) -> int:
    """Leave the number of the element's process; the first time, wait to be killed."""
    path = Path(folder, f"pid-{x}")
    again = path.exists()
    path.write_text(str(os.getpid()))
    if not again:
        time.sleep(60.0)
    return x


# --- in a run ---------------------------------------------------------------------------


def test_elements_that_are_killed_leave_no_trace(site: Site) -> None:
    @pf.workflow
    def flow() -> Any:
        return pid_noted(pf.items(range(6)), str(site.folder))

    run = site.submit(flow())
    wait_for(lambda: len([p for p in site.folder.glob("pid-*") if p.read_text()]) == 6)
    for path in site.folder.glob("pid-*"):
        os.kill(int(path.read_text()), signal.SIGKILL)
    assert run.wait(90) == "done"
    assert run.result() == list(range(6))
    for job in range(6):
        first, second = site.attempts(run, "pid_noted", job)
        assert (first["failure"]["kind"], first["charged"]) == ("lost", False)
        assert second["status"] == "finished"
    assert site.live() == []


def test_garbage_in_reports_is_passed_over(site: Site) -> None:
    run = site.submit(many(16, str(site.folder), 2.0))
    wait_for(lambda: len(site.begun()) == 16)
    reports = list(site.folder.rglob("batch/*/*.report"))
    assert len(reports) == 16
    for number, path in enumerate(reports):
        with open(path, "ab", buffering=0) as file:
            file.write(b'\0\0\0\n{"op": "ended", "bundle": 1}\n{"op": 3}\n\xff\xfe{"op\n')
            if number % 2:
                file.write(b'{"op": "started", "bundle"')  # the next line is lost with it
    assert run.wait(90) == "done"
    assert sorted(site.begun()) == list(range(16))
    assert site.live() == []


@pytest.mark.slow
def test_a_node_without_its_daemon_may_run_a_job_twice_and_one_counts(site: Site) -> None:
    run = site.submit(many(16, str(site.folder), 25.0))
    wait_for(lambda: len(site.begun()) == 16)
    node = site.slurm.nodes[0]
    site.slurm.kill_slurmd(node)  # what it has begun goes on
    assert run.wait(150) == "done"
    assert run.result() == list(range(16))
    times = Counter(site.begun())
    assert set(times) == set(range(16)) and sorted(times.values()) == [1] * 12 + [2] * 4
    twice = [job for job in range(16) if times[job] == 2]
    assert not any(a["charged"] for job in twice for a in site.attempts(run, "counted", job))
    assert site.live() == []
    site.slurm.restart_slurmd(node)
    state = ["sinfo", "-h", "-n", node, "-o", "%t"]
    wait_for(lambda: not site.slurm.run(state).stdout.startswith("down"))


# --- limits of the site -----------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow() -> Iterator[Slurm]:
    """A Slurm with arrays of at most three elements, and sixteen jobs in all."""
    try:
        cluster = Slurm(nodes=1, cpus=8, extra="MaxArraySize=4\nMaxJobCount=16\nMinJobAge=2")
    except SlurmMissing as error:
        pytest.skip(str(error))
    with cluster:
        yield cluster


def test_arrays_are_cut_to_what_the_site_takes(narrow: Slurm, tmp_path: Path) -> None:
    place = Site(narrow, tmp_path)
    run = place.submit(many(9, str(tmp_path), 0.2), cores=4, max_nodes=1)
    assert run.wait(120) == "done"
    assert sorted(place.begun()) == list(range(9))
    assert place.live() == []


@pytest.mark.slow  # sbatch itself waits for 20 s before it refuses
def test_room_that_others_take_is_waited_for(narrow: Slurm, tmp_path: Path) -> None:
    others = [narrow.submit("sleep 60") for _ in range(15)]
    place = Site(narrow, tmp_path)
    run = place.submit(many(4, str(tmp_path), 0.2), cores=4, max_nodes=1)
    time.sleep(1.0)  # so that it is refused
    narrow.run(["scancel", *others])
    assert run.wait(150) == "done"
    assert sorted(place.begun()) == list(range(4))
    assert place.live() == []


def test_a_site_that_never_has_room_is_given_up(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "FULL_S", 1.5)
    # What a policy of the site would say, said by a site: its submit command.
    wrapper = site.folder / "bin" / "sbatch"
    wrapper.parent.mkdir()
    words = "sbatch: error: QOSMaxSubmitJobPerUserLimit"
    wrapper.write_text(f"#!/bin/sh\necho '{words}' >&2\nexit 1\n")
    wrapper.chmod(0o755)
    env = {**site.settings["commands_env"], "PATH": f"{wrapper.parent}:{os.environ['PATH']}"}
    monkeypatch.setenv("PATH", env["PATH"])
    run = site.submit(many(2, str(site.folder), 0.0), commands_env=env)
    assert run.wait(60) == "failed"
    with pytest.raises(pf.RunFailed, match=r"no room for 1.5 s: .*QOSMaxSubmitJobPerUserLimit"):
        run.result()
    assert site.begun() == []


# --- sessions ---------------------------------------------------------------------------


class InBatch:
    """Opens sessions as drivers in processes of their own would."""

    def __init__(self, slurm: Slurm) -> None:
        self._settings = BatchSettings(
            backend=SlurmBackend(accounting=False),
            mode="batch",
            walltime=600.0,
            cores=4,
            max_nodes=4,
            poll_seconds=0.2,
            submit_rate=1200.0,
            commands_env={"SLURM_CONF": slurm.env["SLURM_CONF"]},
        )

    def open(self, run_id: str, results: str, report: Report) -> BatchJobs:
        leftovers.release(Path(results, "batch"))
        return BatchJobs(self._settings, run_id, results, report)

    def join(self, run_id: str, results: str, report: Report) -> BatchJobs:
        """Open the session of another executor of the same driver."""
        return BatchJobs(self._settings, run_id, results, report)


class Second(InBatch):
    """Another executor of the driver that has an :class:`InBatch`."""

    open = InBatch.join


def beats(folder: Path, *numbers: int) -> list[Path]:
    return [folder / f"beat-{number}" for number in numbers]


def test_a_session_that_wakes_up_too_late_touches_nothing(slurm: Slurm, tmp_path: Path) -> None:
    first = Probe(InBatch(slurm), tmp_path)
    paths = beats(tmp_path, 1, 2)
    first.submit(first.bundle(1, payloads.heartbeat, [str(paths[0])]))
    first.submit(first.bundle(2, payloads.heartbeat, [str(paths[1])]))
    first.started(1)
    first.started(2)
    second = Probe(InBatch(slurm), tmp_path, first.run)
    try:
        assert isinstance(second.session, BatchJobs)
        assert second.session.adopt([1, 3]) == {1}
        second.started(1)
        with suppress(SiteError):  # it may have noticed already
            first.submit(first.bundle(4, payloads.touch, [str(tmp_path / "late")]))
        first.session.cancel([1])
        first.session.close(kill=True)
        size = paths[0].stat().st_size
        wait_for(lambda: paths[0].stat().st_size > size)
        second.submit(second.bundle(5, payloads.double, [21]))
        assert second.values(5) == [42]
        assert not any(isinstance(event, BundleEnded) for event in second.of(1))
        assert not (tmp_path / "late").exists()
        wait_for(lambda: Counter(slurm.states().values())["RUNNING"] == 1)
    finally:
        second.session.close(kill=True)
    assert not any(state in ("PENDING", "RUNNING") for state in slurm.states().values())


def test_a_session_that_is_not_asked_to_adopt_ends_what_it_finds(
    slurm: Slurm, tmp_path: Path
) -> None:
    first = Probe(InBatch(slurm), tmp_path)
    (path,) = beats(tmp_path, 1)
    first.submit(first.bundle(1, payloads.heartbeat, [str(path)]))
    first.started(1)
    second = Probe(InBatch(slurm), tmp_path, first.run)
    try:
        second.submit(second.bundle(2, payloads.double, [1]))
        assert second.values(2) == [2]
        wait_for(lambda: Counter(slurm.states().values())["RUNNING"] == 0)
    finally:
        second.session.close()
        first.session.close()


def test_what_an_executor_left_that_is_gone_is_settled_too(slurm: Slurm, tmp_path: Path) -> None:
    one = Probe(InBatch(slurm), tmp_path)
    two = Probe(Second(slurm), tmp_path, one.run)
    paths = beats(tmp_path, 1, 2, 3)
    two.submit(two.bundle(2, payloads.heartbeat, [str(paths[1])]))
    two.started(2)  # an array each
    two.submit(two.bundle(3, payloads.heartbeat, [str(paths[2])]))
    two.started(3)
    one.submit(one.bundle(1, payloads.heartbeat, [str(paths[0])]))
    one.started(1)
    for name in ("batch", "batch-2"):  # as if their driver were another process
        leftovers.release(Path(one.results.url, name))
    next_one = Probe(InBatch(slurm), tmp_path, one.run)
    try:
        assert isinstance(next_one.session, BatchJobs)
        assert next_one.session.adopt([1, 3]) == {1, 3}
        next_one.started(1)
        next_one.started(3)
        wait_for(lambda: Counter(slurm.states().values())["RUNNING"] == 2)
        sizes = [paths[0].stat().st_size, paths[2].stat().st_size]
        wait_for(lambda: paths[0].stat().st_size > sizes[0] and paths[2].stat().st_size > sizes[1])
        two.session.close(kill=True)  # wakes up, and finds that its arrays are another's
        next_one.submit(next_one.bundle(5, payloads.double, [21]))
        assert next_one.values(5) == [42]
        assert not any(isinstance(e, BundleEnded) for n in (1, 3) for e in next_one.of(n))
    finally:
        next_one.session.close(kill=True)
        one.session.close()
    assert not any(state in ("PENDING", "RUNNING") for state in slurm.states().values())
