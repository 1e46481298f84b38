"""The batch systems that tests start: do they run jobs, break as asked, and leave nothing?"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from pandaflow.testing.daemons import Daemons, claim_ports, clean_environment, wait_until
from pandaflow.testing.gridengine import GridEngine, GridEngineMissing, changed
from pandaflow.testing.slurm import Slurm, SlurmMissing
from pandaflow.testing.torque import Torque, TorqueMissing, torque_commands

ROOT = Path(__file__).parents[2]


def processes_with(text: str) -> list[str]:
    """Command lines of living processes that have a text in their environment or arguments."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
            if text.encode() in line + (folder / "environ").read_bytes():
                found.append(line.replace(b"\0", b" ").decode())
        except OSError:  # it ended meanwhile; a zombie has no environment
            continue
    return found


def kill_owner(script: str, marker: str) -> dict:
    """Run a script until it tells of itself in a line of JSON; kill it; return the line."""
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), marker],
        stdout=subprocess.PIPE,
        env=clean_environment() | {"PYTHONPATH": str(ROOT)},
    )
    with owner:
        assert owner.stdout is not None
        told = json.loads(owner.stdout.readline())
        assert processes_with(marker)
        owner.kill()
    return told


@pytest.mark.skipif(sys.platform != "linux", reason="adopting orphans is Linux's")
class TestDaemons:
    @pytest.fixture
    def daemons(self) -> Iterator[Daemons]:
        daemons = Daemons("pandaflow-test-")
        yield daemons
        daemons.close()

    def test_kill_waits_for_the_end(self, daemons: Daemons) -> None:
        pid = daemons.start("sleeper", ["sleep", "1000"], clean_environment())
        assert daemons.alive("sleeper")
        daemons.kill("sleeper")
        assert not daemons.alive("sleeper")
        assert not Path(f"/proc/{pid}").exists()

    def test_an_unknown_daemon_is_not_alive(self, daemons: Daemons) -> None:
        assert not daemons.alive("nobody")

    def test_a_missing_program_is_an_error(self, daemons: Daemons) -> None:
        with pytest.raises(RuntimeError, match="no-such-program"):
            daemons.start("missing", ["no-such-program"], clean_environment())
        assert not daemons.alive("missing")

    def test_close_finds_orphans_in_sessions_of_their_own(self, daemons: Daemons) -> None:
        marker = secrets.token_hex(8)
        escape = f"setsid sh -c '(sleep 1000; : {marker}) & sleep 1000' & sleep 0.2"
        daemons.start("parent", ["sh", "-c", escape], {**clean_environment(), "MARK": marker})
        wait_until(lambda: not daemons.alive("parent"), "the parent to end")
        assert processes_with(marker)
        daemons.close()
        daemons.close()
        assert not processes_with(marker)
        assert not daemons.folder.exists()

    def test_claimed_ports_do_not_overlap(self) -> None:
        with ExitStack() as stack:
            claims = [stack.enter_context(claim_ports(10)) for _ in range(20)]
            firsts = sorted(claim.getsockname()[1] for claim in claims)
        assert all(b - a >= 10 for a, b in pairwise(firsts))

    def test_wait_until_tells_what_it_waited_for(self) -> None:
        with pytest.raises(TimeoutError, match="for the moon"):
            wait_until(lambda: False, lambda: "the moon", 0.05)


@dataclass(frozen=True)
class Waiting:
    """A cluster with faults that Slurm takes its time to notice."""

    cluster: Slurm
    limited: str
    abandoned: str
    moved: str
    broken: str


def accounted() -> Slurm:
    """Four nodes; with a database of jobs where its programs are installed."""
    try:
        return Slurm(accounting=True)
    except SlurmMissing:
        return Slurm()


@pytest.fixture(scope="module")
def waiting() -> Iterator[Waiting]:
    """Faults whose effects show while other tests run: after up to 30 s, 15 s and 7 s."""
    try:
        cluster = accounted()
    except SlurmMissing as error:
        pytest.skip(str(error))
    with cluster:
        jobs = [cluster.submit("exec sleep 1000", f"--nodelist={n}") for n in cluster.nodes[:2]]
        jobs.append(cluster.submit("exec sleep 1000", f"--exclude={','.join(cluster.nodes[:2])}"))
        for job in jobs:
            cluster.wait_state(job, "RUNNING")
        cluster.end_now(jobs[0])
        cluster.kill_slurmd(cluster.nodes[1])
        broken = cluster.show(jobs[2])["BatchHost"]
        cluster.down(broken)
        yield Waiting(cluster, *jobs, broken=broken)


class TestSlurm:
    def test_partitions_have_their_limits(self, slurm: Slurm) -> None:
        said = slurm.run(["sinfo", "-h", "-o", "%P %l %D %T"]).stdout.splitlines()
        assert sorted(said) == [
            "main* 1-00:00:00 4 idle",
            "short 1:00 4 idle",
            "small 5:00 1 idle",
        ]

    def test_clusters_do_not_see_each_other(self, slurm: Slurm, waiting: Waiting) -> None:
        other = waiting.cluster
        assert not set(slurm.nodes) & set(other.nodes)
        job = slurm.submit("true", "--job-name=mine")
        assert slurm.wait_state(job, "COMPLETED")
        assert slurm.show(job)["JobName"] == "mine"
        assert "mine" not in other.run(["squeue", "-h", "-t", "all", "-o", "%j"]).stdout

    def test_elements_of_an_array_end_each_in_their_way(self, slurm: Slurm) -> None:
        job = slurm.submit("test $SLURM_ARRAY_TASK_ID != 3 || exit 7", "--array=1-6")
        ends = [slurm.wait_state(f"{job}_{n}", "COMPLETED", "FAILED") for n in range(1, 7)]
        assert ends == ["COMPLETED"] * 2 + ["FAILED"] + ["COMPLETED"] * 3
        assert slurm.show(f"{job}_3")["ExitCode"] == "7:0"

    def test_a_refused_job_says_why(self, slurm: Slurm) -> None:
        with pytest.raises(RuntimeError, match="invalid partition"):
            slurm.submit("true", "--partition=nowhere")

    def test_scancel(self, slurm: Slurm) -> None:
        job = slurm.submit("exec sleep 1000")
        slurm.wait_state(job, "RUNNING")
        slurm.run(["scancel", job])
        assert slurm.wait_state(job, "CANCELLED")

    def test_a_node_that_breaks_loses_its_jobs(self, slurm: Slurm) -> None:
        where = f"--nodelist={slurm.nodes[0]}"
        again = slurm.submit("exec sleep 1000", "--requeue", where)
        fixed = slurm.submit("exec sleep 1000", "--no-requeue", where)
        slurm.wait_state(again, "RUNNING")
        slurm.wait_state(fixed, "RUNNING")
        slurm.down(slurm.nodes[0])
        assert slurm.wait_state(fixed, "NODE_FAIL")
        assert slurm.wait_state(again, "PENDING")

    def test_a_job_does_not_notice_that_slurmd_restarts(self, slurm: Slurm, tmp_path: Path) -> None:
        go = tmp_path / "go"
        job = slurm.submit(f"until test -e {go}; do sleep 0.1; done")
        slurm.wait_state(job, "RUNNING")
        node = slurm.show(job)["BatchHost"]
        slurm.kill_slurmd(node)
        slurm.restart_slurmd(node)
        go.touch()
        assert slurm.wait_state(job, "COMPLETED")
        assert slurm.show(job)["Restarts"] == "0"

    def test_a_job_does_not_notice_that_the_controller_restarts(self, slurm: Slurm) -> None:
        job = slurm.submit("exec sleep 1000")
        slurm.wait_state(job, "RUNNING")
        slurm.restart_controller()
        assert slurm.wait_state(job, "RUNNING")
        assert slurm.show(job)["Restarts"] == "0"

    def test_suspend_and_resume(self, slurm: Slurm) -> None:
        job = slurm.submit("exec sleep 1000")
        slurm.wait_state(job, "RUNNING")
        slurm.suspend(job)
        assert slurm.wait_state(job, "SUSPENDED")
        slurm.resume_job(job)
        assert slurm.wait_state(job, "RUNNING")

    def test_requeue(self, slurm: Slurm) -> None:
        job = slurm.submit("exec sleep 1000")
        slurm.wait_state(job, "RUNNING")
        slurm.requeue(job)
        assert slurm.wait_state(job, "PENDING")
        assert slurm.show(job)["Restarts"] == "1"

    def test_a_job_that_takes_too_much_memory_is_killed(self, slurm: Slurm) -> None:
        hungry = f"{sys.executable} -c 'import time; x = b\"x\" * 400_000_000; time.sleep(1000)'"
        job = slurm.submit(hungry, "--mem=50")
        ends = {True: ("OUT_OF_MEMORY",), False: ("FAILED", "OUT_OF_MEMORY")}
        assert slurm.wait_state(job, *ends[slurm.cgroups])

    def test_jobs_run_without_control_groups(self) -> None:
        try:
            cluster = Slurm(nodes=1, cgroups=False)
        except SlurmMissing as error:
            pytest.skip(str(error))
        with cluster:
            job = cluster.submit("true")
            assert cluster.wait_state(job, "COMPLETED")

    def test_reset_repairs(self, slurm: Slurm) -> None:
        slurm.submit("exec sleep 1000", "--array=1-30")
        for node in slurm.nodes[:2]:
            slurm.kill_slurmd(node)
        for node in slurm.nodes[1:3]:
            slurm.down(node)
        slurm.kill_controller()
        slurm.reset()
        assert slurm.run(["squeue", "-h"]).stdout == ""

    def test_it_needs_root(self, slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.geteuid", lambda: 1000)
        with pytest.raises(SlurmMissing, match="root"):
            Slurm()

    def test_nothing_stays_when_the_owner_is_killed(self, slurm: Slurm) -> None:
        marker = secrets.token_hex(8)
        told = kill_owner(KILLED_SLURM, marker)
        try:
            wait_until(lambda: not Path(told["folder"]).exists(), "the folder to go", 60)
        finally:
            os.kill(told["fork"], signal.SIGKILL)
        wait_until(lambda: not processes_with(told["folder"]), "the keeper to go", 60)
        wait_until(lambda: not processes_with(marker), "the fork to go", 60)
        for node in told["nodes"]:
            assert not list(Path("/sys/fs/cgroup").glob(f"*/slurm_{node}"))

    def test_a_missing_program_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(SlurmMissing, match=r"sbatch.*apt-get install"):
            Slurm()


class TestTorque:
    @pytest.fixture
    def torque(self, slurm: Slurm) -> Torque:
        try:
            return Torque(slurm, torque_commands())
        except TorqueMissing as error:
            pytest.skip(str(error))

    def test_its_jobs_are_those_of_slurm(self, torque: Torque) -> None:
        job = torque.submit("exit 7", "-N", "mine", "-q", "short")
        assert torque.slurm.wait_state(job, "FAILED")
        shown = torque.slurm.show(job)
        assert (shown["JobName"], shown["Partition"], shown["ExitCode"]) == ("mine", "short", "7:0")
        told = torque.run(["qstat", "-f", job]).stdout
        assert "Job_Name = mine" in told and "job_state = C" in told

    def test_delete(self, torque: Torque) -> None:
        job = torque.submit("exec sleep 1000")
        torque.slurm.wait_state(job, "RUNNING")
        torque.run(["qdel", job])
        assert torque.slurm.wait_state(job, "CANCELLED")

    def test_a_refused_job_says_why(self, torque: Torque) -> None:
        with pytest.raises(RuntimeError, match="invalid partition"):
            torque.submit("true", "-q", "nowhere")

    def test_its_commands_hide_those_of_grid_engine(self, torque: Torque) -> None:
        there = torque.run(["sh", "-c", "command -v qsub qstat qdel"]).stdout.split()
        assert {Path(path).parent for path in there} == {torque_commands()}

    def test_the_cache_is_filled_once(self, torque: Torque) -> None:
        made = torque_commands()
        before = (made / "qsub").stat().st_mtime_ns
        assert torque_commands() == made and (made / "qsub").stat().st_mtime_ns == before

    def test_no_tools_to_unpack_with(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(TorqueMissing, match="apt-get"):
            torque_commands(tmp_path)

    def test_a_cache_that_lost_its_files(self, tmp_path: Path) -> None:
        (tmp_path / "slurm-wlm-torque" / "usr" / "bin").mkdir(parents=True)
        with pytest.raises(TorqueMissing, match=r"qsub.*remove"):
            torque_commands(tmp_path)


# It holds a copy of the pipe to the keeper in a fork, and has jobs that run, escaped their
# session, and are frozen.
KILLED_SLURM = """
    import json, os, sys, time
    from pandaflow.testing.slurm import Slurm

    with Slurm(nodes=2) as slurm:
        fork = os.fork()
        if not fork:
            time.sleep(1000)
        job = slurm.submit(f": {sys.argv[1]}; setsid sleep 1000 & sleep 1000")
        frozen = slurm.submit(f": {sys.argv[1]}; sleep 1000")
        slurm.wait_state(job, "RUNNING")
        slurm.wait_state(frozen, "RUNNING")
        time.sleep(0.3)
        slurm.suspend(frozen)
        told = {"folder": str(slurm.folder), "nodes": slurm.nodes, "fork": fork}
        print(json.dumps(told), flush=True)
        time.sleep(1000)
"""

KILLED_GRIDENGINE = """
    import json, sys, time
    from pandaflow.testing.gridengine import GridEngine

    with GridEngine() as cluster:
        job = cluster.submit(f"export MARK={sys.argv[1]}; setsid sleep 1000 & sleep 1000")
        cluster.wait_state(job, "r")
        time.sleep(0.3)
        print(json.dumps({"folder": str(cluster.folder)}), flush=True)
        time.sleep(1000)
"""


class TestGridEngine:
    def test_elements_of_an_array_end_each_in_their_way(self, gridengine: GridEngine) -> None:
        job = gridengine.submit("test $SGE_TASK_ID != 2 || exit 7", "-t", "1-3")
        records = gridengine.wait_end(job, records=3)
        assert {r["taskid"]: r["exit_status"] for r in records} == {"1": "0", "2": "7", "3": "0"}

    def test_delete(self, gridengine: GridEngine) -> None:
        job = gridengine.submit("exec sleep 1000")
        gridengine.wait_state(job, "r")
        gridengine.run(["qdel", job])
        (record,) = gridengine.wait_end(job)
        assert record["exit_status"].split()[0] == "137"

    def test_a_time_limit_in_seconds(self, gridengine: GridEngine) -> None:
        job = gridengine.submit("exec sleep 1000", "-l", "h_rt=1")
        (record,) = gridengine.wait_end(job)
        assert record["failed"].startswith("37")

    def test_requeue(self, gridengine: GridEngine) -> None:
        job = gridengine.submit("exec sleep 1000")
        gridengine.wait_state(job, "r")
        gridengine.requeue(job)
        assert gridengine.wait_state(job, "Rq", "Rr")

    def test_suspend_and_resume(self, gridengine: GridEngine) -> None:
        job = gridengine.submit("exec sleep 1000")
        gridengine.wait_state(job, "r")
        gridengine.suspend(job)
        assert gridengine.wait_state(job, "s")
        gridengine.resume_job(job)
        assert gridengine.wait_state(job, "r")

    def test_a_disabled_queue_starts_nothing(self, gridengine: GridEngine) -> None:
        gridengine.down()
        job = gridengine.submit("true")
        said = gridengine.run(["qstat", "-f"]).stdout
        assert any("main.q" in line and line.rstrip().endswith("d") for line in said.splitlines())
        assert gridengine.states()[job] == "qw"
        gridengine.resume()
        gridengine.wait_end(job)

    def test_a_job_does_not_notice_that_daemons_restart(
        self, gridengine: GridEngine, tmp_path: Path
    ) -> None:
        beat = tmp_path / "beat"
        job = gridengine.submit(f"while :; do touch {beat}; sleep 0.1; done")
        gridengine.wait_state(job, "r")
        gridengine.kill_execd()
        gridengine.kill_qmaster()
        assert gridengine.run(["qstat"], check=False).returncode != 0
        gridengine.restart_qmaster()
        gridengine.restart_execd()
        assert gridengine.states() == {job: "r"}
        beat.unlink(missing_ok=True)
        wait_until(beat.exists, "a sign of life")

    def test_clusters_do_not_see_each_other(self, gridengine: GridEngine) -> None:
        with GridEngine(slots=1) as other:
            job = other.submit("sleep 1000")
            other.wait_state(job, "r")
            assert gridengine.states() == {}

    def test_nothing_stays_when_the_owner_is_killed(self, gridengine: GridEngine) -> None:
        marker = secrets.token_hex(8)
        told = kill_owner(KILLED_GRIDENGINE, marker)
        wait_until(lambda: not Path(told["folder"]).exists(), "the folder to go", 60)
        wait_until(lambda: not processes_with(told["folder"]), "the keeper to go", 60)
        assert not processes_with(marker)

    def test_a_missing_program_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pandaflow.testing.gridengine._PROGRAMS", Path("/nowhere"))
        with pytest.raises(GridEngineMissing, match=r"sge_qmaster.*apt-get install"):
            GridEngine()

    def test_it_needs_root(
        self, gridengine_session: GridEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("os.geteuid", lambda: 1000)
        with pytest.raises(GridEngineMissing, match="root"):
            GridEngine()

    def test_changed_replaces_joins_and_adds(self) -> None:
        text = "slots 1\nparams one \\\n  two\n"
        assert changed(text, {"slots": "8", "rerun": "TRUE"}).splitlines() == [
            "slots 8",
            "params one    two",
            "rerun TRUE",
        ]


class TestSlowFaults:
    """Last in the file: other tests fill the time until Slurm notices."""

    def test_a_job_on_a_node_that_breaks_moves_to_another(self, waiting: Waiting) -> None:
        assert waiting.cluster.wait_state(waiting.moved, "RUNNING")
        job = waiting.cluster.show(waiting.moved)
        assert job["Restarts"] == "1"
        assert job["BatchHost"] != waiting.broken

    @pytest.mark.slow
    def test_a_dead_slurmd_is_noticed(self, waiting: Waiting) -> None:
        assert waiting.cluster.wait_state(waiting.abandoned, "PENDING")
        assert waiting.cluster.show(waiting.abandoned)["Restarts"] == "1"

    @pytest.mark.slow
    def test_a_time_limit_that_ends(self, waiting: Waiting) -> None:
        assert waiting.cluster.wait_state(waiting.limited, "TIMEOUT")

    @pytest.mark.slow
    def test_accounting_remembers(self, waiting: Waiting) -> None:
        if not waiting.cluster.accounting:
            pytest.skip("no slurmdbd or no mariadb")
        ask = ["sacct", "-n", "-X", "-P", "-o", "State", "-j", waiting.limited]
        wait_until(lambda: waiting.cluster.run(ask).stdout == "TIMEOUT\n", "sacct to say TIMEOUT")
