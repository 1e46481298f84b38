"""The allocations of a run: what is asked of a real Slurm, and what is given back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.core.model import Resources
from pandaflow.executors.batch.allocations import Allocations, pilot_body, pilot_request
from pandaflow.executors.batch.contact import read_order
from pandaflow.executors.batch.fleet import Seen
from pandaflow.executors.batch.provision import Kind
from pandaflow.executors.batch.settings import BatchSettings
from pandaflow.executors.batch.slots import Slot
from pandaflow.executors.batch.slurm import Slurm as Backend
from pandaflow.testing.slurm import Slurm

pytestmark = pytest.mark.timeout(300)

ONE, TWO, HUGE = Resources(), Resources(cores=2), Resources(cores=99)


def settings(**said: Any) -> BatchSettings:
    given: dict[str, Any] = {"cores": 2, "walltime": 600.0, "max_nodes": 2, "poll_seconds": 0.01}
    return BatchSettings(backend=Backend(accounting=False), **{**given, **said})


class Site:
    """Makes allocations of one run, whose pilots only sleep."""

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm, self.folder = slurm, folder
        sleeper = folder / "python"  # a pilot that no driver is there for
        sleeper.write_text("#!/bin/sh\nexec sleep 100\n")
        sleeper.chmod(0o755)
        self.given: dict[str, Any] = {"python": str(sleeper)}
        self.given["commands_env"] = {"SLURM_CONF": slurm.env["SLURM_CONF"]}

    def allocations(self, **said: Any) -> Allocations:
        return Allocations(settings(**self.given, **said), "run", self.folder)

    def queue(self) -> list[str]:
        return self.slurm.run(["squeue", "-h", "-o", "%i"]).stdout.split()


@pytest.fixture
def site(slurm: Slurm, tmp_path: Path) -> Iterator[Site]:
    yield Site(slurm, tmp_path)
    slurm.cancel_all()


def wait_for(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- turns ------------------------------------------------------------------------------


def test_pilots_are_submitted_for_work_up_to_the_limit(site: Site) -> None:
    allocations = site.allocations()
    allocations.turn({}, {}, {})
    assert site.queue() == []
    allocations.turn({}, {}, {ONE: 2})
    assert len(site.queue()) == 1
    for _ in range(3):
        allocations.turn({}, {}, {ONE: 500})
    ids = site.queue()
    assert len(ids) == 2
    assert {allocations.kind_of(one) for one in ids} == {Kind("slurm", Slot(2))}
    assert allocations.slots == 4
    assert "2 pilot(s) wait" in allocations.trouble() or all(
        (status := allocations.status_of(one)) and status.state == "running" for one in ids
    )
    allocations.leave()
    assert site.queue() == []


def test_the_rate_of_submissions_is_kept(site: Site) -> None:
    allocations = site.allocations(max_nodes=4, submit_rate=3.0)
    for _ in range(4):
        allocations.turn({}, {}, {ONE: 500})
    assert len(site.queue()) == 3
    allocations.leave()


def test_as_many_as_are_to_be_kept_come_without_work(site: Site) -> None:
    allocations = site.allocations(min_nodes=1)
    for _ in range(2):
        allocations.turn({}, {}, {})
    assert len(site.queue()) == 1
    allocations.leave()


def test_what_is_idle_is_told_to_go_and_what_ended_is_told(site: Site) -> None:
    allocations = site.allocations(idle_seconds=0.05, max_nodes=1)
    allocations.turn({}, {}, {ONE: 1})
    (pilot,) = site.queue()
    allocations.turn({pilot: Seen(0)}, {}, {})
    time.sleep(0.1)
    assert allocations.turn({pilot: Seen(0)}, {}, {}).retire == {pilot}
    allocations.cancel(frozenset({pilot}))
    ended: dict[str, Any] = {}

    def gone() -> bool:
        ended.update(allocations.turn({}, {}, {}).ended)
        return pilot in ended

    wait_for(gone)
    assert ended[pilot].state == "cancelled"


def test_another_kind_of_jobs_gets_a_node_of_those_that_are_taken(site: Site) -> None:
    allocations = site.allocations()
    for _ in range(2):
        allocations.turn({}, {}, {ONE: 50})
    first, second = site.queue()
    kind = allocations.kind_of(first)
    assert kind is not None
    seen = {first: Seen(2), second: Seen(2)}
    allocations.turn(seen, {kind: 4}, {ONE: 46, TWO: 1})
    (recut,) = [one for one in (first, second) if allocations.kind_of(one) != kind]
    assert read_order(site.folder / "contact.json", recut) == Slot(1, cores=2)
    assert allocations.kind_of(recut) == Kind("slurm", Slot(1, cores=2))
    assert site.queue() == [first, second], "its batch job goes on"
    later = site.allocations()
    later.adopt()
    assert later.kind_of(recut) == allocations.kind_of(recut), "the next driver knows"
    allocations.leave()


def test_a_site_that_refuses_is_left_out_with_its_words(site: Site) -> None:
    allocations = site.allocations(sites=(pf.Site("nowhere", nodes=9), pf.Site("main", nodes=1)))
    assert allocations.several and allocations.slots == 20
    for _ in range(2):
        allocations.turn({}, {}, {ONE: 100})
    assert "invalid partition" in allocations.refused["nowhere"]
    assert allocations.slots == 2
    assert "nowhere: " in allocations.trouble()
    ranking = allocations.ranking(ONE)
    assert [each.name for each, _ in ranking.sites] == ["main"]
    assert "invalid partition" in ranking.refused["nowhere"]
    assert set(allocations.ranking(HUGE).refused) == {"nowhere", "main"}
    allocations.leave()


def test_a_job_that_needs_all_of_a_pilot_s_time_is_unfit(site: Site) -> None:
    allocations = site.allocations(margin=30.0)
    longest = 600.0 - 2 * 30.0 - 60.0  # the margin is up to twice as long
    assert allocations.ranking(Resources(walltime=longest)).sites
    said = allocations.ranking(Resources(walltime=longest + 1)).refused["slurm"]
    assert said == "asks for 481 s of walltime and it has 480 s of walltime"


def test_a_site_whose_pilots_begin_late_takes_no_job_that_needs_more(site: Site) -> None:
    allocations = site.allocations(margin=30.0)
    allocations.turn({}, {}, {ONE: 1})
    (pilot,) = site.queue()
    long, short = Resources(walltime=470.0), Resources(walltime=300.0)
    allocations.began(pilot, 500.0)
    assert allocations.ranking(long).sites and not allocations.late, "it is as was counted on"
    later = site.allocations(margin=30.0)
    later.adopt()
    later.began(pilot, 100.0)
    assert later.ranking(long).sites, "who was adopted began long ago"
    fresh = site.allocations(margin=30.0, max_nodes=1)
    fresh.turn({}, {}, {ONE: 1})
    (second,) = {*site.queue()} - {pilot}
    fresh.began(second, 400.0)
    assert fresh.late and fresh.ranking(short).sites and not fresh.ranking(long).sites
    said = fresh.ranking(long).refused["slurm"]
    assert "have 398 s left for jobs when they begin, and it asks for 470 s" in said
    assert "give the executor a longer walltime" in said
    assert "give the executor" not in fresh.ranking(Resources(walltime=590.0)).refused["slurm"]
    fresh.began(second, 480.0)
    assert fresh.ranking(long).sites, "the best that a pilot has had counts"
    for each in (allocations, fresh):
        each.leave()


# --- a batch system that does not obey --------------------------------------------------


@pytest.fixture
def broken(site: Site, tmp_path: Path) -> Path:
    """Put a command before each that changes something: while the file exists, it fails."""
    folder, flag = tmp_path / "commands", tmp_path / "broken"
    folder.mkdir()
    for name in ("sbatch", "scancel"):
        command = folder / name
        real = shutil.which(name)
        command.write_text(
            f'#!/bin/sh\n[ -e {flag} ] && {{ echo "Unable to contact slurm controller" >&2; '
            f'exit 1; }}\nexec {real} "$@"\n'
        )
        command.chmod(0o755)
    site.given["commands_env"] |= {"PATH": f"{folder}:{os.environ['PATH']}"}
    return flag


def test_what_ended_is_told_although_nothing_can_be_submitted(site: Site, broken: Path) -> None:
    allocations = site.allocations()
    allocations.turn({}, {}, {ONE: 1})
    (pilot,) = site.queue()
    site.slurm.run(["scancel", pilot])
    wait_for(lambda: site.queue() == [])
    broken.touch()
    ended: dict[str, Any] = {}

    def gone() -> bool:
        ended.update(allocations.turn({}, {}, {ONE: 50}).ended)
        return pilot in ended

    wait_for(gone)
    assert ended[pilot].state == "cancelled" and site.queue() == []
    broken.unlink()
    allocations.leave()


def test_a_cancellation_that_failed_is_repeated(site: Site, broken: Path) -> None:
    allocations = site.allocations(idle_seconds=0.05, max_nodes=1)
    allocations.turn({}, {}, {ONE: 1})
    (pilot,) = site.queue()
    allocations.turn({pilot: Seen(0)}, {}, {})
    broken.touch()
    time.sleep(0.1)
    retire = allocations.turn({pilot: Seen(0)}, {}, {}).retire
    allocations.cancel(retire)
    assert retire == {pilot} and site.queue() == [pilot]
    broken.unlink()
    wait_for(lambda: pilot in allocations.turn({}, {}, {}).ended)
    assert site.queue() == []


# --- after a change of drivers ----------------------------------------------------------


def test_pilots_of_the_driver_before_are_counted_in(site: Site) -> None:
    before = site.allocations()
    for _ in range(2):
        before.turn({}, {}, {ONE: 50})
    alive, dead = site.queue()
    site.slurm.run(["scancel", dead])
    with open(site.folder / "jobs", "a") as file:
        file.write("half a li")
    wait_for(lambda: site.queue() == [alive])
    after = site.allocations(max_nodes=1)
    after.adopt()
    after.turn({}, {}, {ONE: 50})
    assert site.queue() == [alive]
    assert after.kind_of(alive) == before.kind_of(alive)
    after.leave()
    assert site.queue() == []


def test_without_a_driver_before_nothing_is_adopted(site: Site) -> None:
    allocations = site.allocations()
    allocations.adopt()
    allocations.leave()


# --- what is submitted ------------------------------------------------------------------


def test_a_pilot_asks_for_a_whole_node_and_a_warning(tmp_path: Path) -> None:
    place = settings(gpus=4, memory=10**9, account="us", queue="q")
    request = pilot_request(place, Slot(2, gpus=2), "pf-run", str(tmp_path))
    assert (request.cores, request.memory, request.gpus) == (2, 10**9, 4)
    assert (request.queue, request.account, request.walltime) == ("q", "us", 600.0)
    assert request.warn == ("USR1", 60.0)
    assert request.stdout == f"{tmp_path}/{{id}}.out"
    assert pilot_request(place, Slot(2), "pf-run", str(tmp_path)).gpus == 0
    assert pilot_request(settings(walltime=40.0), Slot(1), "a", "/").warn == ("USR1", 10.0)


def run_body(place: BatchSettings, contact: Path, lines: str = "") -> list[str]:
    """Let a shell run a pilot's line; return the words that its interpreter was given."""
    body = pilot_body(place, contact, Slot(2, memory=5))
    done = subprocess.run(["bash", "-c", f"{lines}\n{body}"], capture_output=True, check=True)
    return [str(word) for word in json.loads(done.stdout)]


@pytest.fixture
def echo(tmp_path: Path) -> str:
    """An interpreter that tells its words."""
    path = tmp_path / "a python"
    path.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    path.chmod(0o755)
    return str(path)


def test_the_line_survives_the_shell(echo: str, tmp_path: Path) -> None:
    contact = tmp_path / "it's a $HOME" / "contact.json"
    words = run_body(settings(python=echo, scratch="/tmp/a b", margin=7.0), contact)
    assert words[:3] == ["-m", "pandaflow.executors.batch.pilot", str(contact)]
    said = dict(zip(words[3::2], words[4::2], strict=True))
    assert Slot.parse(said["--slot"]) == Slot(2, memory=5)
    assert said["--scratch"] == "/tmp/a b"
    assert (said["--margin"], said["--patience"]) == ("7", "300")
    assert 540 <= int(said["--walltime"]) <= 600


def test_the_time_of_the_prologue_is_taken_off(echo: str, tmp_path: Path) -> None:
    words = run_body(settings(python=echo), tmp_path / "c", lines="sleep 1.1")
    assert int(words[words.index("--walltime") + 1]) <= 599


def test_a_container_goes_around_the_interpreter(echo: str, tmp_path: Path) -> None:
    words = run_body(settings(python=echo, container="env -i A=1"), tmp_path / "c")
    assert words[0] == "-m"
    assert os.path.basename(echo) not in words
