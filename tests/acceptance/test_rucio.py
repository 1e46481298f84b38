"""Inputs that a real Rucio has, read by real pilots."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="no FastAPI: extra 'server'")

import pandaflow as pf
from pandaflow.testing.grid import random_name
from pandaflow.testing.sites import MiniGrid
from tests.acceptance.grid_work import PATIENCE, failures

pytestmark = [pytest.mark.very_slow, pytest.mark.timeout(240)]

CHECK = (
    "python3 -c 'import sys, zlib; print(zlib.adler32(open(sys.argv[1], \"rb\").read()))' %IN"
    " > %OUT{sum.txt}"
)


@pytest.fixture(scope="module")
def grid(rucio) -> Iterator[MiniGrid]:
    """Two sites, each with storage of its own; the pilot of B has another account."""
    user = rucio.account(random_name("pilot"))
    with MiniGrid(heartbeat=3.0) as grid:
        for name, account in (("A", "root"), ("B", user)):
            grid.queue(name, cores=2)
            with rucio.here(account):
                grid.pilot(name, "--rse", f"SITE_{name}", cores=2)
        yield grid


def command(name: str, **options: Any) -> Any:
    return pf.command(CHECK, name=name, **options)


def started(grid: MiniGrid, task: Any, names: list[str], tmp_path: Any) -> Any:
    @pf.workflow
    def checked() -> Any:
        return task(pf.files([pf.File(f"rucio://test:{name}") for name in names]))

    executor = pf.executors.Grid(grid.url, wait=0.5)
    run = checked().submit(executor=executor, store=f"sqlite:///{tmp_path}/runs.db")
    assert run.wait(PATIENCE)
    return run


def test_commands_read_files_of_rucio_from_two_sites(rucio, grid, tmp_path):
    names = rucio.dataset("test", random_name("ds"), 8, "SITE_A", "SITE_B")
    for name in names[:2]:
        rucio.corrupt("test", name, "SITE_A")
    rucio.lose("test", names[2], "SITE_B")
    good = [rucio.path("test", n, "SITE_B" if n in names[:2] else "SITE_A") for n in names]
    wanted = [zlib.adler32(path.read_bytes()) for path in good]
    run = started(grid, command("sums", files_per_job=1), names, tmp_path)
    assert run.status == "done"
    found = [int(Path(file).read_text()) for file in run.result()]
    assert found == wanted
    sites = [rucio.suspicious("test", name) for name in names]
    assert all(set(one) <= {"SITE_A"} for one in sites[:2])
    assert set(sites[2]) <= {"SITE_B"} and not any(sites[3:])


def test_a_file_that_is_lost_everywhere_fails_its_job_alone(rucio, grid, tmp_path):
    names = rucio.dataset("test", random_name("ds"), 3, "SITE_A", "SITE_B")
    for element in ("SITE_A", "SITE_B"):
        rucio.lose("test", names[1], element)
    run = started(grid, command("lost", files_per_job=1, retries=1), names, tmp_path)
    assert run.status == "failed"
    assert [job["status"] for job in run.jobs("lost")] == ["finished", "failed", "finished"]
    (failure,) = failures(run).values()
    assert failure["kind"] == "input"
    for word in (names[1], "SITE_A", "SITE_B"):
        assert word in failure["message"]
