"""Pilots on several partitions of a real Slurm: jobs go where they fit, and nowhere else."""

from __future__ import annotations

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.testing.slurm import Slurm
from tests.acceptance.test_slurm_pilots import executor, failures, queue, wait_for

pytestmark = pytest.mark.timeout(300)

MB = 10**6
MAIN = pf.Site("main", nodes=3, cores=4, memory="1600 MB")
SMALL = pf.Site("small", nodes=1, cores=2, memory="480 MB", walltime=290)


def note(folder: str, **said: object) -> None:
    """Append a line in one write, which others' lines cannot cut."""
    handle = os.open(Path(folder, "notes"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{json.dumps(said)}\n".encode())
    os.close(handle)


@pf.task
def timed(x: int, folder: str, seconds: float) -> int:
    """Say when and where it ran, and with what."""
    start = time.time()
    time.sleep(seconds)
    seen = {
        name: os.environ.get(name, "")
        for name in ("SLURMD_NODENAME", "SLURM_JOB_ID", "SLURM_JOB_PARTITION")
    }
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    note(folder, x=x, start=start, end=time.time(), devices=devices, **seen)
    return x


@pf.task
def hungry(x: int, folder: str, megabytes: int) -> int:
    """Take memory bit by bit; the first attempt keeps it until somebody stops it."""
    note(folder, x=x, partition=os.environ["SLURM_JOB_ID"])
    taken = []
    for _ in range(megabytes // 20):
        taken.append(bytearray(os.urandom(1)) * 20 * MB)
        time.sleep(0.05)
    end = time.monotonic() + (60.0 if pf.current_job().attempt == 1 else 0.1)
    while time.monotonic() < end:
        time.sleep(0.02)
    return len(taken) * 20


def notes(folder: Path) -> list[dict[str, Any]]:
    path = folder / "notes"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def most(records: Iterable[dict[str, Any]], amount: Callable[[dict[str, Any]], int]) -> int:
    """Return the largest sum of ``amount`` over records that overlap in time."""
    steps = []
    for record in records:
        steps += [(record["start"], 1, amount(record)), (record["end"], 0, -amount(record))]
    total = highest = 0
    for _, _, change in sorted(steps):
        total += change
        highest = max(highest, total)
    return highest


def submit(slurm: Slurm, flow: Any, folder: Path, *sites: pf.Site, **settings: Any) -> pf.Run:
    given = {"cores": 4, "memory": "1600 MB", "sites": sites, **settings}
    return flow.submit(executor=executor(slurm, **given), store=f"sqlite:///{folder}/s.db")


def attempts(run: pf.Run, task: str, job: int = 0) -> list[dict[str, Any]]:
    return run._reader.attempts(run.id, task, job)


# --- where jobs go ----------------------------------------------------------------------


def test_jobs_of_all_sizes_share_nodes_and_never_more_than_there_is(
    slurm: Slurm, tmp_path: Path
) -> None:
    sizes = {"one": (12, 1, None), "two": (6, 2, None), "four": (4, 4, None), "fat": (4, 1, 600)}

    @pf.workflow
    def flow() -> Any:
        return [
            timed.options(name=name, cores=cores, memory=memory and f"{memory} MB")(
                pf.items([1000 * place + each for each in range(n)]), str(tmp_path), 0.6
            )
            for place, (name, (n, cores, memory)) in enumerate(sizes.items())
        ]

    run = submit(slurm, flow(), tmp_path, MAIN, SMALL)
    assert run.wait(120) == "done"
    found = list(sizes.values())

    def cores_of(record: dict[str, Any]) -> int:
        return found[record["x"] // 1000][1]

    def memory_of(record: dict[str, Any]) -> int:
        return found[record["x"] // 1000][2] or 0

    records = notes(tmp_path)
    assert len(records) == sum(n for n, *_ in found)
    nodes, pilots = defaultdict(list), defaultdict(list)
    for record in records:
        nodes[record["SLURMD_NODENAME"]].append(record)
        pilots[record["SLURM_JOB_PARTITION"], record["SLURM_JOB_ID"]].append(record)
    assert all(most(each, cores_of) <= 4 for each in nodes.values())
    for (partition, _), each in pilots.items():
        assert most(each, cores_of) <= (2 if partition == "small" else 4)
        assert most(each, memory_of) <= (480 if partition == "small" else 1600)
    assert max(most(each, cores_of) for each in nodes.values()) > 1, "they do share"
    assert failures(run) == 0 and queue(slurm) == []


def test_a_job_s_site_is_recorded_and_explained(slurm: Slurm, tmp_path: Path) -> None:
    @pf.workflow
    def flow() -> Any:
        longer = timed.options(name="longer", walltime=400)
        return timed(pf.items(range(4)), str(tmp_path), 0.1), longer(
            pf.items([10, 11]), str(tmp_path), 3.0
        )

    run = submit(slurm, flow(), tmp_path, SMALL, MAIN)
    wait_for(lambda: 0 in [row["index"] for row in run.jobs(task="longer", status="running")])
    explained = run.explain("longer[0]")
    assert "site: main" in explained
    assert "not at small: asks for 400 s of walltime and it has" in explained
    assert run.wait(60) == "done"
    where = {record["x"]: record["SLURM_JOB_PARTITION"] for record in notes(tmp_path)}
    assert where[10] == where[11] == "main"
    for row in run.jobs():
        x = row["index"] + (10 if row["task"] == "longer" else 0)
        assert row["site"] == where[x], "each job's record says where it ran"
    assert "not at small" in run.explain("longer[0]")


def test_what_fits_nowhere_fails_at_once_and_says_why(slurm: Slurm, tmp_path: Path) -> None:
    @pf.workflow
    def flow() -> Any:
        return (
            timed.options(name="broad", cores=5)(pf.items([1]), str(tmp_path), 0.0),
            timed.options(name="greedy", memory="2 GB", retries=3)(
                pf.items([2]), str(tmp_path), 0.0
            ),
            timed.options(name="fine")(pf.items([3]), str(tmp_path), 0.0),
        )

    run = submit(slurm, flow(), tmp_path, SMALL, MAIN)
    wait_for(lambda: len(run.jobs(status="failed")) == 2)
    assert run.wait(60) == "failed"
    for task, words in (("broad", "asks for 5 cores"), ("greedy", "asks for 1.863 GiB of memory")):
        (attempt,) = attempts(run, task)
        assert attempt["failure"]["kind"] == "unfit"
        explained = run.explain(f"{task}[0]")
        assert f"{task} fits nowhere" in explained
        assert f"not at small: {words}" in explained and f"not at main: {words}" in explained
    assert [record["x"] for record in notes(tmp_path)] == [3], "others go on"
    assert queue(slurm) == []


def test_a_walltime_that_no_pilot_could_ever_grant_fails_at_once(
    slurm: Slurm, tmp_path: Path
) -> None:
    """A pilot of 100 s has some less for a job: one that asks for all of it would wait for ever."""

    @pf.workflow
    def flow() -> Any:
        just = timed.options(name="just", walltime=80)(pf.items([1]), str(tmp_path), 0.1)
        return just, timed.options(name="all", walltime=100)(pf.items([2]), str(tmp_path), 0.1)

    run = submit(slurm, flow(), tmp_path, walltime=100.0, margin=5.0)
    assert run.wait(60) == "failed"
    assert attempts(run, "all")[0]["failure"]["kind"] == "unfit"
    assert [record["x"] for record in notes(tmp_path)] == [1]


def test_a_partition_that_refuses_is_left_out(slurm: Slurm, tmp_path: Path) -> None:
    @pf.workflow
    def flow() -> Any:
        return timed(pf.items(range(8)), str(tmp_path), 0.2)

    run = submit(slurm, flow(), tmp_path, pf.Site("nowhere", nodes=30), MAIN)
    assert run.wait(60) == "done"
    assert {record["SLURM_JOB_PARTITION"] for record in notes(tmp_path)} == {"main"}
    assert {row["site"] for row in run.jobs()} == {"main"}
    assert failures(run) == 0 and queue(slurm) == []


def test_what_only_fits_a_site_that_refuses_fails(slurm: Slurm, tmp_path: Path) -> None:
    @pf.workflow
    def flow() -> Any:
        big = timed.options(name="big", cores=16)(pf.items([1]), str(tmp_path), 0.0)
        return big, timed(pf.items([2]), str(tmp_path), 0.0)

    run = submit(slurm, flow(), tmp_path, pf.Site("nowhere", nodes=1, cores=64), MAIN)
    assert run.wait(60) == "failed"
    assert attempts(run, "big")[-1]["failure"]["kind"] == "site"
    assert "invalid partition" in run.explain("big[0]")
    assert [record["x"] for record in notes(tmp_path)] == [2]


def test_a_job_that_needs_more_memory_moves_to_a_larger_slot(slurm: Slurm, tmp_path: Path) -> None:
    lean = pf.Site("lean", queue="main", nodes=4, cores=2, memory="700 MB")
    rich = pf.Site("rich", queue="main", nodes=1, cores=2, memory="1800 MB")

    @pf.workflow
    def flow() -> Any:
        asks = hungry.options(memory="400 MB", retry=pf.Retry(retries=1, memory_factor=2))
        return asks(pf.items([1]), str(tmp_path), 440)

    run = submit(slurm, flow(), tmp_path, lean, rich)
    assert run.wait(90) == "done"
    assert run.result() == [440]
    first, second = attempts(run, "hungry")
    assert (first["failure"]["kind"], first["site"], second["site"]) == ("memory", "lean", "rich")
    assert len({record["partition"] for record in notes(tmp_path)}) == 2


# --- GPUs -------------------------------------------------------------------------------


def test_each_job_has_gpus_of_its_own_and_others_leave_them_alone(tmp_path: Path) -> None:
    with Slurm(2, gpus=2) as slurm:

        @pf.workflow
        def flow() -> Any:
            gpu = timed.options(name="gpu", gpus=1)(pf.items(range(6)), str(tmp_path), 0.8)
            return gpu, timed.options(name="cpu")(pf.items(range(100, 112)), str(tmp_path), 0.3)

        with_gpus = pf.Site("with", queue="main", nodes=1, cores=4, gpus=2)
        without = pf.Site("without", queue="main", nodes=1, cores=4, gpus=0)
        run = submit(slurm, flow(), tmp_path, with_gpus, without)
        assert run.wait(90) == "done"
        assert {row["site"] for row in run.jobs(task="gpu")} == {"with"}
        records = notes(tmp_path)
        on_gpus = [record for record in records if record["x"] < 100]
        by_device = defaultdict(list)
        for record in on_gpus:
            by_device[record["SLURM_JOB_ID"], record["devices"]].append(record)
        assert {devices for _, devices in by_device} == {"0", "1"}
        assert all(most(each, lambda _: 1) == 1 for each in by_device.values())
        plain = {record["SLURM_JOB_ID"] for record in records if record["x"] >= 100}
        assert not plain & {record["SLURM_JOB_ID"] for record in on_gpus}
        assert queue(slurm) == []


# --- time -------------------------------------------------------------------------------


def test_a_job_that_outlasts_its_pilot_fails_with_advice(slurm: Slurm, tmp_path: Path) -> None:
    @pf.workflow
    def flow() -> Any:
        endless = timed.options(name="endless")(pf.items([1]), str(tmp_path), 600.0)
        return endless, timed(pf.items(range(2, 6)), str(tmp_path), 0.2)

    run = submit(slurm, flow(), tmp_path, walltime=14.0, margin=3.0, max_nodes=2)
    assert run.wait(90) == "failed"
    ended = attempts(run, "endless")
    assert ended[-1]["failure"]["kind"] == "walltime"
    assert "give the task a walltime" in run.explain("endless[0]")
    assert Counter(record["x"] for record in notes(tmp_path)) == Counter(range(2, 6))
    assert queue(slurm) == []


# --- across executors -------------------------------------------------------------------


def test_stage_two_begins_here_before_stage_one_has_ended_there(
    slurm: Slurm, tmp_path: Path
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()

    @pf.workflow
    def flow() -> Any:
        first = timed.options(executor="slurm", name="first")(pf.items(range(12)), str(there), 0.5)
        return timed.options(executor="here", name="second")(first, str(here), 0.0)

    executors = {
        "here": pf.executors.Local(workers=1, processes=False),
        "slurm": executor(slurm, cores=2, max_nodes=1),
    }
    run = flow().submit(executors=executors, executor="here", store=f"sqlite:///{tmp_path}/s.db")
    assert run.wait(90) == "done"
    assert {record["SLURM_JOB_PARTITION"] for record in notes(here)} == {""}
    assert min(r["start"] for r in notes(here)) < max(r["end"] for r in notes(there))
    assert queue(slurm) == []
