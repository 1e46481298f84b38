"""Back-ends against systems that run: Slurm, by its own commands and by PBS's, and Grid Engine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from pandaflow.core.errors import SiteError
from pandaflow.executors.batch.model import Backend, BatchRequest, BatchStatus, JobRef
from pandaflow.executors.batch.pbs import PBS
from pandaflow.executors.batch.script import ID, INDEX, batch_files
from pandaflow.executors.batch.sge import SGE
from pandaflow.executors.batch.slurm import Slurm
from pandaflow.testing import gridengine, torque
from pandaflow.testing import slurm as cluster

PATIENCE = 60.0


@pytest.fixture(scope="module")
def site() -> Iterator[cluster.Slurm]:
    try:
        running = cluster.Slurm(nodes=2)
    except cluster.SlurmMissing as error:
        pytest.skip(str(error))
    with running:
        yield running


class Caller:
    """Runs what the back-end says and gives it what is printed."""

    def __init__(
        self,
        site: cluster.Slurm | gridengine.GridEngine | torque.Torque,
        backend: Backend,
        folder: Path,
    ) -> None:
        self.site, self.backend, self.folder = site, backend, folder

    def ask(self, command: Sequence[str], parse: Callable[[str, str, int], Any]) -> Any:
        settings = [f"{key}={value}" for key, value in self.backend.environment.items()]
        done: CompletedProcess[str] = self.site.run(["env", *settings, *command], check=False)
        return parse(done.stdout, done.stderr, done.returncode)

    def submit(self, request: BatchRequest, body: str) -> str:
        path = str(self.folder / "a job.sh")
        for name, text in batch_files(self.backend, path, request, body).items():
            Path(name).write_text(text)
        return str(self.ask(self.backend.submit(path, request), self.backend.parse_submit))

    def poll(self, *ids: str) -> dict[JobRef, BatchStatus]:
        found = self.ask(self.backend.poll(ids, "root"), self.backend.parse_poll)
        return {ref: status for ref, status in found.items() if ref[0] in ids}

    def until(self, wanted: Callable[[dict[JobRef, BatchStatus]], bool], *ids: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not wanted(found := self.poll(*ids)):
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return found

    def ended(self, *ids: str) -> dict[JobRef, BatchStatus]:
        self.until(lambda found: bool(found) and all(s.over for s in found.values()), *ids)
        found = self.ask(self.backend.history(ids, "root"), self.backend.parse_history)
        return {ref: status for ref, status in found.items() if ref[0] in ids}


@pytest.fixture
def caller(site: cluster.Slurm, tmp_path: Path) -> Caller:
    return Caller(site, Slurm(accounting=False), tmp_path)


def test_an_array_knows_its_elements_and_how_they_ended(caller: Caller, tmp_path: Path) -> None:
    request = BatchRequest(
        name="it's an array",
        walltime=120,
        memory=50 * 2**20,
        array=3,
        max_running=2,
        workdir=str(tmp_path),
        stdout=str(tmp_path / "100% out-{id}-{index}"),
        env={"WORDS": "a 'b' \"$c\""},
    )
    body = f'echo "${ID} ${INDEX} $WORDS $(pwd)"; exit "${INDEX}"'
    job = caller.submit(request, body)
    found = caller.ended(job)
    assert {ref: (s.state, s.exit_code) for ref, s in found.items()} == {
        (job, 0): ("done", 0),
        (job, 1): ("failed", 1),
        (job, 2): ("failed", 2),
    }
    assert all(s.started and s.ended and abs(time.time() - s.ended) < 600 for s in found.values())
    said = (tmp_path / f"100% out-{job}-1").read_text()
    assert said == f"{job} 1 a 'b' \"$c\" {tmp_path}\n"


def test_a_signal_is_no_exit_code(caller: Caller) -> None:
    job = caller.submit(BatchRequest(name="kill", walltime=60, stdout="/dev/null"), "kill -9 $$")
    status = caller.ended(job)[job, None]
    assert (status.state, status.exit_code, status.signal) == ("failed", None, 9)


def test_pending_held_running_cancelled(caller: Caller, site: cluster.Slurm) -> None:
    request = BatchRequest(name="long", walltime=600, array=4, max_running=1, stdout="/dev/null")
    job = caller.submit(request, "exec sleep 600")
    caller.until(lambda found: found.get((job, 0), _NONE).state == "running", job)
    site.run(["scontrol", "hold", f"{job}_3"])
    found = caller.until(lambda found: found[job, 3].state == "held", job)
    assert [found[job, index].state for index in range(3)] == ["running", "pending", "pending"]
    assert found[job, 0].nodes and found[job, 0].nodes[0] in site.nodes
    backend = caller.backend
    caller.ask(backend.cancel([(job, 0), (job, 1)]), backend.parse_cancel)
    caller.until(lambda found: found[job, 2].state == "running", job)
    caller.ask(backend.cancel([(job, None), ("999999", None)]), backend.parse_cancel)
    found = caller.ended(job)
    assert {status.state for status in found.values()} == {"cancelled"}
    assert not any(status.remains for status in found.values())


@pytest.mark.slow
def test_the_warning_reaches_the_shell(caller: Caller, tmp_path: Path) -> None:
    # Slurm warns up to a minute early, so the signal comes at once.
    request = BatchRequest(
        name="warned", walltime=60, warn=("USR1", 58), stdout=str(tmp_path / "out")
    )
    body = "trap 'echo warned; exit 0' USR1\nwhile true; do sleep 0.1; done"
    job = caller.submit(request, body)
    assert caller.ended(job)[job, None].state == "done"
    assert (tmp_path / "out").read_text() == "warned\n"


def test_refusals_and_unknown_jobs(caller: Caller) -> None:
    with pytest.raises(SiteError, match=r"(?i)invalid partition.*sinfo") as caught:
        caller.submit(BatchRequest(name="a", queue="nosuch"), "true")
    assert not caught.value.transient
    with pytest.raises(SiteError, match="not available"):
        caller.submit(BatchRequest(name="a", memory=2**50), "true")
    assert caller.poll("999999") == {}
    assert caller.poll("999999", "999998") == {}


def test_partitions(caller: Caller, site: cluster.Slurm) -> None:
    backend = caller.backend
    found = {queue.name: queue for queue in caller.ask(backend.queues(), backend.parse_queues)}
    assert found["main"].default and found["main"].open
    assert (found["main"].walltime, found["main"].nodes) == (86400.0, 2)
    assert found["short"].walltime == 60.0 and found["short"].cores


_NONE = BatchStatus(id="", state="unknown")


# --- Slurm, spoken to as if it were PBS -------------------------------------------------------


@pytest.fixture
def wrapped(site: cluster.Slurm, tmp_path: Path) -> Caller:
    try:
        commands = torque.torque_commands()
    except torque.TorqueMissing as error:
        pytest.skip(str(error))
    return Caller(torque.Torque(site, commands), PBS(dialect="slurm"), tmp_path)


def test_the_wrappers_run_what_is_asked_for(
    wrapped: Caller, site: cluster.Slurm, tmp_path: Path
) -> None:
    request = BatchRequest(
        name="as-pbs",
        queue="main",
        account="physics",
        walltime=150,
        nodes=2,
        tasks_per_node=2,
        memory=300 * 2**20,
        workdir=str(tmp_path),
        stdout=str(tmp_path / "100% out-{id}"),
        env={"WORDS": "a 'b' \"$c\""},
        requeue=True,
    )
    nodes = wrapped.backend.inside.nodes
    job = wrapped.submit(request, f'echo "${ID} ${INDEX} $WORDS $(pwd)"; {nodes}; exit 7')
    found = wrapped.ended(job)[job, None]
    shown = site.show(job)
    assert (shown["NumNodes"], shown["NumCPUs"], shown["TimeLimit"]) == ("2", "4", "00:03:00")
    assert (shown["Partition"], shown["Account"], shown["Requeue"]) == ("main", "physics", "1")
    assert (shown["JobName"], shown["MinMemoryNode"]) == ("as-pbs", "300M")
    assert (tmp_path / f"100% out-{job}").read_text() == "\n".join(
        [f"{job}  a 'b' \"$c\" {tmp_path}", *site.nodes, ""]
    )
    assert shown["ExitCode"] == "7:0", "what the wrappers keep to themselves"
    assert (found.state, found.exit_code) == ("cancelled", None)
    assert found.started and found.ended and abs(time.time() - found.ended) < 600


def test_the_wrappers_poll_and_cancel(wrapped: Caller) -> None:
    request = BatchRequest(name="long", walltime=600, stdout="/dev/null", cores=4)
    jobs = [wrapped.submit(request, "exec sleep 600") for _ in range(3)]
    found = wrapped.until(
        lambda all_: Counter(s.state for s in all_.values())["running"] == 2, *jobs
    )
    assert Counter(status.state for status in found.values()) == {"running": 2, "pending": 1}
    backend = wrapped.backend
    refs = [(job, None) for job in jobs]
    wrapped.ask(backend.cancel([*refs, ("999999", None)]), backend.parse_cancel)
    assert {status.state for status in wrapped.ended(*jobs).values()} == {"cancelled"}
    wrapped.ask(backend.cancel(refs), backend.parse_cancel)
    assert wrapped.poll("999999") == {}
    assert set(wrapped.ask(backend.poll(None, "root"), backend.parse_poll)) >= set(refs)


def test_the_wrappers_refuse_and_tell_queues(wrapped: Caller) -> None:
    with pytest.raises(SiteError, match=r"(?i)invalid partition.*qstat -Q") as caught:
        wrapped.submit(BatchRequest(name="a", queue="nosuch"), "true")
    assert not caught.value.transient
    backend = wrapped.backend
    found = wrapped.ask(backend.queues(), backend.parse_queues)
    assert {queue.name for queue in found if queue.open} == {"main", "short", "small"}


# --- Grid Engine ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid() -> Iterator[gridengine.GridEngine]:
    try:
        running = gridengine.GridEngine(slots=4)
    except gridengine.GridEngineMissing as error:
        pytest.skip(str(error))
    with running:
        yield running


@pytest.fixture
def asker(grid: gridengine.GridEngine, tmp_path: Path) -> Caller:
    return Caller(grid, SGE(), tmp_path)


def accounted(asker: Caller, *refs: JobRef) -> dict[JobRef, BatchStatus]:
    """Wait until qacct, which is some seconds late, knows all of these."""
    backend, ids = asker.backend, sorted({job for job, _ in refs})
    deadline = time.monotonic() + PATIENCE
    while True:
        found = asker.ask(backend.history(ids, "root"), backend.parse_history)
        if set(refs) <= set(found):
            return {ref: found[ref] for ref in refs}
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def test_grid_engine_runs_arrays(asker: Caller, tmp_path: Path) -> None:
    request = BatchRequest(
        name="1: an/array@home*",
        walltime=120,
        array=2,
        max_running=2,
        workdir=str(tmp_path),
        stdout=str(tmp_path / "out put-{id}-{index}"),
        env={"WORDS": "a 'b' \"$c\""},
    )
    job = asker.submit(request, f'echo "${ID} ${INDEX} $WORDS $(pwd)"; exit "$((7 * {INDEX}))"')
    found = accounted(asker, (job, 0), (job, 1))
    assert (found[job, 0].state, found[job, 0].exit_code) == ("done", 0)
    assert (found[job, 1].state, found[job, 1].exit_code) == ("failed", 7)
    assert (tmp_path / f"out put-{job}-2").read_text() == f"{job} 1 a 'b' \"$c\" {tmp_path}\n"
    assert asker.poll(job) == {}


def test_grid_engine_limits_holds_and_cancels(asker: Caller, tmp_path: Path) -> None:
    limited = asker.submit(
        BatchRequest(name="wall", walltime=2, workdir=str(tmp_path)), "exec sleep 600"
    )
    warned = asker.submit(
        BatchRequest(
            name="warn",
            walltime=600,
            warn=("USR1", 598),
            workdir=str(tmp_path),
            stdout=str(tmp_path / "warned"),
        ),
        "trap 'echo warned; exit 0' USR1\nwhile true; do sleep 0.1; done",
    )
    array = asker.submit(
        BatchRequest(name="long", array=3, max_running=1, workdir=str(tmp_path)), "exec sleep 600"
    )
    asker.until(lambda found: found.get((array, 0), _NONE).state == "running", array)
    backend = asker.backend
    assert asker.poll(array)[array, 2].state == "pending"
    asker.ask(backend.cancel([(array, 1), ("999999", None)]), backend.parse_cancel)
    asker.until(lambda found: (array, 1) not in found, array)
    assert (array, 2) in asker.poll(array)
    asker.ask(backend.cancel([(array, None)]), backend.parse_cancel)
    asker.until(lambda found: not found, array)
    found = accounted(asker, (limited, None), (warned, None))
    assert found[limited, None].state == "timeout"
    assert found[warned, None].state == "done"
    assert (tmp_path / "warned").read_text() == "warned\n"


def test_grid_engine_refuses_and_tells_its_queues(asker: Caller) -> None:
    with pytest.raises(SiteError, match=r"unknown queue.*qconf") as caught:
        asker.submit(BatchRequest(name="a", queue="nosuch.q"), "true")
    assert not caught.value.transient
    backend = asker.backend
    (main,) = asker.ask(backend.queues(), backend.parse_queues)
    assert (main.name, main.cores, main.walltime) == ("main.q", 4, None)
