"""The harvester as operators run it: a real server, real pilots, processes that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

pytest.importorskip("fastapi", reason="no FastAPI: extra 'server'")

import pandaflow as pf
from pandaflow.cli.app import app
from pandaflow.grid.messages import Bundle, CommandJob, Needs
from pandaflow.grid.places import Provision, QueueBody
from pandaflow.harvester.account import Record
from pandaflow.harvester.journal import Journal
from pandaflow.harvester.settings import label_of
from pandaflow.testing.grid import GridServer, random_name
from pandaflow.testing.slurm import Slurm
from pandaflow.testing.submitters import LASTING, pilot_program

pytestmark = pytest.mark.timeout(180)

PATIENCE = 60.0


def wait_for(condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.05)


class Harvest:
    """A queue of a server, and a harvester for it that may be killed."""

    def __init__(self, server: GridServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.name = random_name("queue")
        self.label = label_of(server.url, "main", self.name)
        self.client = server.client(retries=4)
        self.client.open_run(self.name)
        self._process: subprocess.Popen[bytes] | None = None
        self._submitted = 0

    # --- what is wanted -----------------------------------------------------------------

    def queue(self, cores: int = 2, heartbeat: float = 5.0, **provision: Any) -> None:
        wish = Provision(**{"max_pilots": 2, "idle": 2.0, **provision})
        body = QueueBody(site={"cores": cores}, heartbeat=heartbeat, provision=wish)
        self.client.put_queue(self.name, body)

    def jobs(self, count: int, line: str = "true", **needs: Any) -> None:
        first, self._submitted = self._submitted, self._submitted + count
        bundles = [
            Bundle(
                bundle=number,
                task="t",
                jobs=(number,),
                kind="command",
                commands=(CommandJob(position=0, line=line, shell=True),),
                needs=Needs(queue=self.name, **needs),
            )
            for number in range(first, self._submitted)
        ]
        assert self.client.submit(self.name, bundles) == {}

    def states(self) -> list[str]:
        return [row["state"] for row in self.client.bundle_rows(self.name)]

    def done(self) -> bool:
        return set(self.states()) == {"ended"}

    def heard(self) -> set[str]:
        return {str(row["pilot"]) for row in self.client.pilots(self.name)}

    # --- the harvester ------------------------------------------------------------------

    def configure(
        self,
        submitter: str = "[queues.{name}.local]\n",
        program: Sequence[str] | None = None,
        **settings: str,
    ) -> None:
        """Write ``harvester.toml``; a queue without a program runs real pilots."""
        said = {"every": "0.3 s", "backoff": "1 s", **settings}
        lines = ["[harvester]", f'server = "{self.server.url}"', f'state = "{self.state}"']
        lines += [f'{key} = "{value}"' for key, value in said.items()]
        lines.append(f"[queues.{self.name}]")
        # A pilot of a test ends soon, and finds no other work directories.
        lines.append(f'workdir = "{self.folder / "work"}"')
        if program is not None:
            lines.append(f"program = {json.dumps(list(program))}")
        text = "\n".join(lines) + "\n" + submitter.replace("{name}", self.name)
        (self.folder / "harvester.toml").write_text(text)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def start(self, *options: str) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pandaflow.cli", "harvester", *self._config(), *options],
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={k: v for k, v in os.environ.items() if not k.startswith("PANDAFLOW_")},
            )

    def _config(self) -> list[str]:
        return ["--config", str(self.folder / "harvester.toml")]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        return process.wait(PATIENCE)

    def wait_end(self) -> int:
        assert self._process is not None
        return self._process.wait(PATIENCE)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def status(self) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["harvester", "status", "--json", *self._config()])
        assert done.exit_code == 0, done.output
        (row,) = json.loads(done.stdout)
        return dict(row)

    def journal(self) -> list[Record]:
        journal = Journal(self.state)
        try:
            return [*journal.live(self.name), *journal.gone(self.name, 1_000)]
        finally:
            journal.close()

    def processes(self) -> set[str]:
        """Names of pilots of which a process lives, by their command lines."""
        found = set[str]()
        for process in psutil.process_iter(["cmdline", "status"]):
            words = process.info["cmdline"] or []
            if "--name" in words and process.info["status"] != psutil.STATUS_ZOMBIE:
                name = words[words.index("--name") + 1]
                found |= {name} if name.startswith(f"{self.label}-") else set()
        return found

    def close(self) -> None:
        self.end(signal.SIGKILL)
        for process in psutil.process_iter(["cmdline"]):
            if any(f"{self.label}-" in word for word in process.info["cmdline"] or []):
                process.kill()
        self.client.close()


@pytest.fixture(scope="module")
def server() -> Iterator[GridServer]:
    with GridServer() as server:
        yield server


@pytest.fixture
def harvest(server: GridServer, tmp_path: Path) -> Iterator[Harvest]:
    harvest = Harvest(server, tmp_path)
    harvest.configure()
    yield harvest
    harvest.close()


# --- pilots come and go -----------------------------------------------------------------


def test_pilots_come_with_jobs_and_go_without(harvest: Harvest) -> None:
    harvest.queue(min_pilots=0, max_pilots=2)
    harvest.start()
    wait_for(lambda: harvest.status().get("ready") == 0)
    assert harvest.processes() == set()
    harvest.jobs(8, "sleep 0.2")
    wait_for(harvest.done)
    assert len(harvest.heard()) == 2, "limits hold"
    wait_for(lambda: not harvest.processes())
    wait_for(lambda: all(each.phase == "gone" for each in harvest.journal()))
    told = harvest.status()
    assert (told["ready"], told["submitter"], told["reason"]) == (0, "local", "")
    assert {each.code for each in harvest.journal()} == {0}
    assert harvest.end() == 0
    assert "submitted 2 pilots of 2 cores" in harvest.log
    assert "no pilot is left" in harvest.log
    assert list((harvest.folder / "work").iterdir()) == []


def test_a_harvester_that_is_killed_never_doubles_pilots(harvest: Harvest) -> None:
    harvest.queue(max_pilots=3)
    gate = harvest.folder / "gate"
    harvest.jobs(12, f'until [ -e "{gate}" ]; do sleep 0.1; done')
    for _ in range(3):
        harvest.start()
        # Killed as soon as it has begun to submit, then later.
        wait_for(lambda: harvest.state.exists() and harvest.journal())
        harvest.end(signal.SIGKILL)
    harvest.start()
    wait_for(lambda: len(harvest.heard()) == 3 and harvest.states().count("running") == 6)
    assert len(harvest.processes()) == 3
    gate.touch()
    wait_for(harvest.done)
    assert len(harvest.heard()) == 3
    # The last one need not have come so far that it listens to signals.
    assert harvest.end() in (0, -signal.SIGTERM)


def test_a_lost_journal_is_made_good(harvest: Harvest) -> None:
    harvest.queue()
    gate = harvest.folder / "gate"
    harvest.jobs(8, f'until [ -e "{gate}" ]; do sleep 0.1; done')
    harvest.start()
    wait_for(lambda: len(harvest.heard()) == 2)
    harvest.end(signal.SIGKILL)
    for file in harvest.state.glob("journal.db*"):
        file.unlink()
    harvest.start()
    wait_for(lambda: len([each for each in harvest.journal() if each.first]) == 2)
    assert "was not in the journal: taken in" in harvest.log
    gate.touch()
    wait_for(harvest.done)
    assert len(harvest.heard()) == 2


def test_its_pilots_outlive_it_and_are_drained(harvest: Harvest) -> None:
    harvest.queue(idle=300.0)
    harvest.jobs(4, "sleep 0.5")
    harvest.start()
    wait_for(lambda: len(harvest.heard()) == 2)
    assert harvest.end() == 0
    assert "2 pilots go on by themselves" in harvest.log
    wait_for(harvest.done)
    assert len(harvest.processes()) == 2
    harvest.start("--drain")
    assert harvest.wait_end() == 0
    assert harvest.processes() == set()
    assert harvest.log.rstrip().endswith("no pilot is left")


def test_limits_are_changed_while_it_runs(harvest: Harvest) -> None:
    def limit(number: int) -> None:
        words = ["queues", "put", harvest.name, "--server", harvest.server.url]
        done = CliRunner().invoke(app, [*words, "--max-pilots", str(number)])
        assert done.exit_code == 0, done.output

    harvest.queue(max_pilots=1, idle=300.0)
    gate = harvest.folder / "gate"
    harvest.jobs(6, f'until [ -e "{gate}" ]; do sleep 0.1; done')
    harvest.start()
    wait_for(lambda: harvest.states().count("running") == 2)
    assert harvest.status()["reason"] == "max_pilots=1 is reached"
    limit(3)
    wait_for(lambda: harvest.states().count("running") == 6)
    limit(1)
    wait_for(lambda: sum(each.wish == "drain" for each in harvest.journal()) == 2)
    gate.touch()
    wait_for(lambda: len(harvest.processes()) == 1)
    harvest.client.close_queue(harvest.name, "rain")
    wait_for(lambda: harvest.status()["reason"] == "the queue is closed: rain")
    harvest.jobs(2)
    limit(0)
    wait_for(lambda: not harvest.processes())
    assert harvest.states().count("ready") == 2


# --- what goes wrong --------------------------------------------------------------------


def test_pilots_that_die_at_once_are_not_begun_for_ever(harvest: Harvest) -> None:
    real = f'{sys.executable} -m pandaflow_pilot "$@"'
    cure = harvest.folder / "cure"
    script = f'[ -e "{cure}" ] || {{ echo "no Python here" >&2; exit 3; }}; exec {real}'
    harvest.configure(program=pilot_program(script))
    harvest.queue(max_pilots=2)
    harvest.jobs(4)
    harvest.start()
    wait_for(lambda: harvest.status().get("backoff", {}).get("failures") == 2)
    told = harvest.status()
    assert "was never heard of: exit code 3, no Python here" in told["reason"]
    # Two in the first lot, then one after each pause.
    assert len(harvest.journal()) == 3
    cure.touch()
    wait_for(harvest.done)
    assert harvest.status()["backoff"]["failures"] == 0
    assert "no pilots for 1 s" in harvest.log and "no pilots for 2 s" in harvest.log


def test_a_ghost_is_reaped(harvest: Harvest) -> None:
    harvest.configure(program=pilot_program(LASTING), ghost="1 s", backoff="1 h")
    harvest.queue(max_pilots=1)
    harvest.jobs(1)
    harvest.start()
    wait_for(harvest.processes)
    wait_for(lambda: not harvest.processes())
    wait_for(lambda: "a ghost: never heard of" in harvest.status()["reason"])
    (one,) = harvest.journal()
    assert one.wish == "cancel"


@pytest.mark.very_slow
@pytest.mark.timeout(360)
def test_a_pilot_that_falls_silent_is_reaped(harvest: Harvest) -> None:
    harvest.configure(ghost="2 s")
    harvest.queue(max_pilots=1, heartbeat=1.0, idle=300.0)
    harvest.jobs(1, "sleep 0.1")
    harvest.start()
    wait_for(harvest.done)
    (note,) = harvest.state.glob("queues/*/*.pilot")
    os.kill(int(note.read_text()), signal.SIGSTOP)
    wait_for(lambda: any("a ghost: silent" in each.why for each in harvest.journal()), 150)
    wait_for(lambda: not harvest.processes(), 90)


def test_bundles_that_no_pilot_takes_get_no_more_of_them(harvest: Harvest) -> None:
    """Pilots find nothing, although all that the harvester knows of them would do."""
    harvest.queue(max_pilots=2)
    harvest.jobs(4, python="2.7")
    harvest.start()
    wait_for(lambda: harvest.status().get("refusals"))
    wait_for(lambda: not harvest.processes())
    assert "2.7" in harvest.status()["reason"]
    begun = len(harvest.journal())
    harvest.jobs(1)  # others still get theirs
    wait_for(lambda: "ended" in harvest.states())
    assert len(harvest.journal()) == begun + 1


@pytest.mark.very_slow
def test_silence_of_the_server_ends_nothing(tmp_path: Path) -> None:
    with GridServer() as server:
        harvest = Harvest(server, tmp_path)
        try:
            harvest.configure(ghost="3 s")
            harvest.queue(max_pilots=1, heartbeat=60.0, idle=300.0)
            harvest.jobs(1, "sleep 8")
            harvest.start()
            wait_for(lambda: "running" in harvest.states())
            server.kill()
            wait_for(lambda: "the server: " in harvest.status()["reason"])
            time.sleep(4)  # longer than a ghost is waited for
            server.start()
            wait_for(harvest.done)
            assert len(harvest.processes()) == 1 and len(harvest.journal()) == 1
        finally:
            harvest.close()


def test_a_harvester_is_alone(harvest: Harvest) -> None:
    harvest.queue()
    harvest.start()
    wait_for(
        lambda: (harvest.state / "lock").exists() and harvest.state.joinpath("journal.db").exists()
    )
    done = CliRunner().invoke(app, ["harvester", "--once", *harvest._config()])
    assert done.exit_code == 2 and "another harvester uses" in done.stderr


# --- the command line -------------------------------------------------------------------


def test_a_check_shows_what_would_be_submitted(harvest: Harvest) -> None:
    harvest.queue(max_pilots=7)
    harvest.jobs(3)
    harvest.configure('[queues.{name}.slurm]\npartition = "main"\n')
    done = CliRunner().invoke(app, ["harvester", "--check", *harvest._config()])
    assert done.exit_code == 0, done.output
    for words in ("3 ready bundles; 0 to 7 pilots", "#SBATCH --partition=main", "--cores 2"):
        assert words in done.stdout
    assert not harvest.state.exists()
    harvest.configure("[queues.{name}.slurm]\npartitoin = 3\n")
    done = CliRunner().invoke(app, ["harvester", "--check", *harvest._config()])
    assert done.exit_code == 2
    assert f"line 9, queues.{harvest.name}.slurm.partitoin: unknown setting" in done.stderr


def test_a_queue_that_is_not_there(harvest: Harvest) -> None:
    harvest.start("--once")
    assert harvest.wait_end() == 0
    assert f"there is no queue '{harvest.name}'" in harvest.status()["reason"]
    assert f"there is no queue '{harvest.name}'" in harvest.log


def test_an_example_and_no_configuration(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["harvester", "--example-config"])
    assert done.exit_code == 0 and "[queues.CERN.slurm]" in done.stdout
    done = CliRunner().invoke(app, ["harvester", "--config", str(tmp_path / "none")])
    assert done.exit_code == 2 and "--example-config" in done.stderr


# --- on a batch system ------------------------------------------------------------------


@pf.task(items_per_job=1)
def square(numbers: list[int], gate: str) -> int:
    while not os.path.exists(gate):
        time.sleep(0.1)
    return numbers[0] ** 2


@pf.workflow
def squares(n: int, gate: str) -> Any:
    return square(pf.items(list(range(n))), gate)


@pytest.mark.very_slow
def test_pilots_in_allocations_of_slurm(harvest: Harvest, slurm: Slurm, store: str) -> None:
    """A run over pilots that a harvester has submitted; one is cancelled, and replaced."""
    table = "[queues.{name}.slurm]\n" + f'partition = "main"\nfolder = "{harvest.folder}/shared"\n'
    table += f'commands_env = {{ SLURM_CONF = "{slurm.env["SLURM_CONF"]}" }}\n'
    program = [sys.executable, "-m", "pandaflow_pilot"]
    harvest.configure(table, [*program, "--python", sys.executable])
    harvest.queue(max_pilots=2, heartbeat=3.0, idle=3.0)
    harvest.start()
    grid = pf.executors.Grid(harvest.server.url, queue=harvest.name, wait=0.5)
    gate = harvest.folder / "gate"
    run = squares(60, str(gate)).submit(executor=grid, store=store)
    wait_for(lambda: len(harvest.heard()) == 2)
    first = next(each for each in harvest.journal() if each.phase == "running")
    slurm.end_now(first.id)
    wait_for(lambda: len(harvest.heard()) == 3)
    gate.touch()
    assert run.result() == [x * x for x in range(60)]
    (lost,) = [each for each in harvest.journal() if each.name == first.name]
    assert lost.phase == "gone" and not lost.wish
    wait_for(lambda: all(each.phase == "gone" for each in harvest.journal()))
    assert harvest.end() == 0
