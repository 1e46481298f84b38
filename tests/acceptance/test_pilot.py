"""Real pilots and the real server: commands, functions' bytes, kills, restarts, cancellation."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pandaflow.grid.http import GridClient
from pandaflow.grid.messages import Bundle, CommandJob, Needs, Outcome
from pandaflow.grid.places import QueueBody
from pandaflow.testing.grid import GridServer, random_name

ROOT = Path(__file__).resolve().parents[2]
#: For child processes: this very checkout.
PATH = f"{ROOT}{os.pathsep}{ROOT / 'pilot'}"


class Ground:
    """A server, its client, and pilots."""

    def __init__(self, server: GridServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.client: GridClient = server.client(retries=5)
        self.run, self.queue = random_name("run"), random_name("queue")
        self.client.put_queue(self.queue, QueueBody(heartbeat=6.0, start=6.0))
        self.client.open_run(self.run)
        self.pilots: list[subprocess.Popen[str]] = []
        self.seen: dict[int, Outcome] = {}
        self.last = 0

    def pilot(self, *options: str, program: tuple[str, ...] = ("-m", "pandaflow_pilot")) -> Any:
        number = len(self.pilots)
        with open(self.folder / f"pilot-{number}.log", "w") as log:
            process = self._start(log, program, options)
        self.pilots.append(process)
        return process

    def _start(self, log: Any, program: tuple[str, ...], options: tuple[str, ...]) -> Any:
        return subprocess.Popen(
            [
                *(sys.executable, *program, "--server", self.server.url, "--queue", self.queue),
                *("--workdir", str(self.folder / "work"), "--cores", "2", "--grace", "1s"),
                *options,
            ],
            env={**os.environ, "PYTHONPATH": PATH},
            stdout=subprocess.DEVNULL,
            stderr=log,
            text=True,
        )

    def submit(self, *numbers: int, line: str, attempt: int = 1, **fields: Any) -> None:
        refused = self.client.submit(
            self.run,
            [
                Bundle(
                    bundle=number,
                    task="task",
                    jobs=(number,),
                    attempt=attempt,
                    kind="command",
                    needs=Needs(queue=self.queue),
                    commands=(CommandJob(position=0, line=line, shell=True, **fields),),
                )
                for number in numbers
            ],
        )
        assert refused == {}

    def look(self, wait: float = 0.5) -> list[Outcome]:
        """Return what happened since the last look, which is thereby acknowledged."""
        found = self.client.outcomes(self.run, after=self.last, wait=wait).outcomes
        for outcome in found:
            self.last = max(self.last, outcome.seq)
        return list(found)

    def until(self, holds: Callable[[], Any], patience: float = 60.0) -> Any:
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if found := holds():
                return found
            time.sleep(0.05)
        logs = "\n".join(path.read_text()[-2_000:] for path in self.folder.glob("pilot-*.log"))
        raise AssertionError(f"it never came to hold; pilots say:\n{logs}")

    def end(self, number: int) -> Outcome:
        def ended() -> Outcome | None:
            for outcome in self.look():
                if outcome.kind != "started":
                    self.seen[outcome.bundle] = outcome
            return self.seen.get(number)

        found: Outcome = self.until(ended)
        return found

    def close(self) -> None:
        for pilot in self.pilots:
            if pilot.poll() is None:
                pilot.send_signal(signal.SIGTERM)
                time.sleep(0.3)
                pilot.send_signal(signal.SIGTERM)
        for pilot in self.pilots:
            try:
                pilot.wait(20)
            except subprocess.TimeoutExpired:
                pilot.kill()
                pilot.wait()
        self.client.close()


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with GridServer(env={"PYTHONPATH": PATH}) as server:
        made = Ground(server, tmp_path)
        yield made
        made.close()


def test_commands_run_and_come_back(ground, tmp_path):
    (tmp_path / "in").write_text("input\n")
    given = {"name": "in", "replicas": (str(tmp_path / "in"),), "size": 6}
    ground.submit(1, line="cat in > out; echo done", inputs=(given,), outputs=("out",))
    ground.submit(2, line="exit 4")
    ground.pilot("--idle", "3s")
    first, second = ground.end(1), ground.end(2)
    (result,) = first.results
    assert (result.out, result.files[0].data, first.queue) == (b"done\n", b"input\n", ground.queue)
    assert second.results[0].error.code == 4
    assert ground.pilots[0].wait(30) == 0
    assert os.listdir(tmp_path / "work") == []


def test_the_pilot_that_the_server_hands_out(ground, tmp_path):
    path = tmp_path / "pilot.pyz"
    path.write_bytes(ground.client.pilot_archive())
    ground.submit(1, line="echo here")
    ground.pilot("--once", program=(str(path),))
    assert ground.end(1).results[0].out == b"here\n"


def test_pandaflow_pilot_is_the_same_program(ground):
    ground.submit(1, line="echo here")
    ground.pilot("--once", program=("-m", "pandaflow.cli", "pilot"))
    assert ground.end(1).results[0].out == b"here\n"


def test_cancelled_payloads_end(ground, tmp_path):
    pid = tmp_path / "pid"
    ground.submit(1, line=f"echo $$ > {pid}; sleep 60")
    ground.pilot()
    ground.until(lambda: pid.exists() and pid.read_text())
    ground.client.cancel(ground.run, [1])
    assert ground.until(lambda: not Path("/proc", pid.read_text().strip()).exists())
    ground.submit(2, line="echo on")
    assert ground.end(2).results[0].out == b"on\n"


def test_people_read_the_log_of_what_runs(ground):
    ground.submit(1, line="echo so far; sleep 60")
    ground.pilot()
    ground.until(lambda: ground.look())

    def heard() -> bool:
        ground.client.ask_tail(ground.run, 1)
        time.sleep(0.5)
        return "so far" in ground.client.log(ground.run, 1)

    assert ground.until(heard)


def test_pilots_are_drained_and_stopped_by_an_operator(ground):
    ground.submit(1, line="sleep 60")
    pilot = ground.pilot("--name", f"p-{ground.run}")
    ground.until(lambda: ground.look())
    ground.client.command_pilot(f"p-{ground.run}", "stop")
    assert ground.end(1).kind == "lost"
    assert pilot.wait(30) == 0


@pytest.mark.slow
def test_the_server_is_killed_and_comes_back(ground):
    """Three bundles: one ends while it is away, one begins before and ends after, one waits."""
    ground.submit(1, line="sleep 1; echo 1")
    ground.submit(2, line="sleep 6; echo 2")
    ground.pilot()
    ground.until(lambda: len(ground.client.bundle_rows(ground.run, "running")) == 2)
    ground.submit(3, line="echo 3")
    ground.server.kill()
    time.sleep(3.0)
    ground.server.start()
    for number in (1, 2, 3):
        assert ground.end(number).results[0].out == f"{number}\n".encode()


@pytest.mark.slow
def test_pilots_killed_at_random_lose_nothing(ground, tmp_path):
    """The test is the driver: what is lost is submitted again, as the next attempt."""
    number, rng = 40, random.Random(6)
    marks = tmp_path / "marks"
    marks.mkdir()
    line = (
        f"echo x >> {marks}/$PANDAFLOW_INDEX.$PANDAFLOW_ATTEMPT; sleep 0.2; echo $PANDAFLOW_INDEX"
    )
    ground.submit(*range(number), line=line)
    ground.pilot()
    ground.pilot()
    ended: dict[int, Outcome] = {}
    began, killed = time.monotonic(), 0
    while len(ended) < number:
        assert time.monotonic() - began < 100, sorted(ended)
        for outcome in ground.look():
            if outcome.kind == "lost":
                ground.submit(outcome.bundle, line=line, attempt=outcome.attempt + 1)
            elif outcome.kind == "ended":
                assert outcome.bundle not in ended
                ended[outcome.bundle] = outcome
        if killed < 3 and len(ended) > 5 * (killed + 1):
            rng.choice([pilot for pilot in ground.pilots if pilot.poll() is None]).kill()
            ground.pilot()
            killed += 1
    assert killed == 3
    for bundle, outcome in ended.items():
        assert outcome.results[0].out == f"{bundle}\n".encode()
        assert (marks / f"{bundle}.{outcome.attempt}").read_text() == "x\n"
