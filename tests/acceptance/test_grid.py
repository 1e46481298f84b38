"""Runs on a grid of this machine: a real server, real pilots, several queues."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="no FastAPI: extra 'server'")

import pandaflow as pf
from pandaflow.data.results import adler32
from pandaflow.testing.sites import MiniGrid
from tests.acceptance.grid_work import (
    PATIENCE,
    all_noted,
    block,
    double,
    failures,
    length,
    lines,
    records,
    wait_for,
)

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def grid() -> Iterator[MiniGrid]:
    """Two queues with a pilot each, and one without; tests leave them as they are."""
    with MiniGrid(heartbeat=3.0) as grid:
        for name in ("A", "B"):
            grid.queue(name, cores=2)
            grid.pilot(name, cores=2)
        grid.queue("empty", cores=4)
        yield grid


@pytest.fixture
def own_grid() -> Iterator[MiniGrid]:
    """A grid of the test's own, with the queue ``here`` and no pilot."""
    with MiniGrid(heartbeat=3.0) as grid:
        grid.queue("here")
        yield grid


def site(grid: MiniGrid, data: object = "", **settings: Any) -> pf.executors.Grid:
    """Return the executor on a grid of tests; reasons come with answers, so it asks often."""
    return pf.executors.Grid(grid.url, data=str(data) or None, wait=0.5, **settings)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A web server of a folder's files; its URL."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Say nothing."""

    handler = functools.partial(Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# --- several sites ----------------------------------------------------------------------


@pf.task
def first(x: int, folder: str) -> int:
    """Job 1 ends only when the second stage has begun."""
    if x == 1:
        wait_for(Path(folder, "second").exists)
    return 10 * x


@pf.task
def second(x: int, folder: str) -> int:
    Path(folder, "second").touch()
    return x + 1


@pytest.mark.parametrize("there", ["B", "local"])
def test_stage_two_begins_elsewhere_while_stage_one_still_runs(
    grid: MiniGrid, store: str, threads: Any, tmp_path: Path, there: str
) -> None:
    """Two queues of one server, and a queue and this machine."""
    other = threads if there == "local" else site(grid, queue="B")
    flow = partial_chain(str(tmp_path), there)
    run = flow.run(executor=site(grid, queue="A"), executors={there: other}, store=store)
    assert run.result() == [1, 11]
    where = {(job["task"], job["site"]) for job in records(run, store)}
    assert where == {("first", "A"), ("second", "B" if there == "B" else None)}


@pf.workflow
def partial_chain(folder: str, there: str) -> Any:
    return second.options(executor=there)(first(pf.items([0, 1]), folder), folder)


def test_a_queue_s_name_binds_jobs_to_it(grid: MiniGrid, store: str, tmp_path: Path) -> None:
    runs = [
        all_noted(2, str(tmp_path), 0.0).submit(executor=site(grid, queue=name), store=store)
        for name in ("A", "B")
    ]
    for run, name in zip(runs, ("A", "B"), strict=True):
        assert run.result(timeout=PATIENCE) == [0, 1]
        assert {job["site"] for job in records(run, store)} == {name}


def test_what_is_near_goes_first(own_grid: MiniGrid, store: str, tmp_path: Path) -> None:
    """Both wait for a pilot; the later run is near to the queue where one comes."""
    folders = [tmp_path / "far", tmp_path / "near"]
    runs = []
    for folder, near in zip(folders, ((), ("here",)), strict=True):
        folder.mkdir()
        line = f"date +%s%N > {folder}/begun"
        run = pf.command(line, name="mark")
        executor = site(own_grid, near=near)
        runs.append(marked(run).submit(executor=executor, store=store))
        wait_for(functools.partial(_ready, own_grid, len(runs)))
    own_grid.pilot("here", cores=1)
    assert [run.wait(PATIENCE) for run in runs] == ["done", "done"]
    at_far, at_near = (int((folder / "begun").read_text()) for folder in folders)
    assert at_near < at_far


@pf.workflow
def marked(command: Any) -> Any:
    return command(pf.items([1]))


def _ready(grid: MiniGrid, n: int) -> bool:
    with grid.server.client() as client:
        return sum(int(run["ready"]) for run in client.runs()) == n


def test_two_drivers_at_once(grid: MiniGrid, tmp_path: Path) -> None:
    """Runs of two stores share pilots, and nothing else."""
    runs = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        store = f"sqlite:///{folder}/store.db"
        flow = all_noted(6, str(folder), 0.01)
        runs.append(flow.submit(executor=site(grid), store=store))
    for number, run in enumerate(runs, 1):
        assert run.result(timeout=PATIENCE) == list(range(6))
        assert Counter(lines(tmp_path / str(number), "over")) == Counter(range(6))
    with grid.server.client() as client:
        assert not {run.id for run in runs} & {row["run"] for row in client.runs()}, "forgotten"


# --- files ------------------------------------------------------------------------------


def test_commands_read_urls_and_leave_files(grid: MiniGrid, store: str, tmp_path: Path) -> None:
    """Inputs by HTTP and from this machine; a small output in the report, a big one in data."""
    (tmp_path / "web").mkdir()
    texts = [b"one\n", b"two\n"]
    for number, text in enumerate(texts):
        (tmp_path / "web" / f"{number}.txt").write_bytes(text)
    (tmp_path / "local.txt").write_bytes(b"from here\n")
    # random but the same for all: what is compared below
    make = pf.command(
        "cat %IN %IN2 > %OUT{small.txt}; yes %RNDM:7 | head -c 2000000 > %OUT{big.bin}",
        name="make",
    )

    with served(tmp_path / "web") as url:

        @pf.workflow
        def flow() -> Any:
            remote = [
                pf.File(f"{url}/{n}.txt", size=len(text), checksum=adler32(text))
                for n, text in enumerate(texts)
            ]
            return make(pf.items(remote), pf.File(str(tmp_path / "local.txt")))

        run = flow().run(executor=site(grid, tmp_path / "data"), store=store)
        made = run.result()
    for number, files in enumerate(made):
        assert Path(files["small.txt"]).read_bytes() == texts[number] + b"from here\n"
        big = Path(files["big.bin"]).read_bytes()
        assert big == (f"{7 + number}\n".encode() * 1_000_000)[:2_000_000]
        assert files["big.bin"].checksum == adler32(big)
        assert files["small.txt"].checksum == adler32(Path(files["small.txt"]).read_bytes())


def test_a_damaged_replica_is_passed_over(grid: MiniGrid, store: str, tmp_path: Path) -> None:
    for name, text in (("damaged", "what it wos"), ("good", "what it was")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "input").write_text(text)
    with served(tmp_path) as url:
        first, other = f"{url}/damaged/input", f"{url}/good/input"
        file = pf.File(first, size=11, checksum=adler32(b"what it was"), replicas=(other,))

        @pf.workflow
        def flow() -> Any:
            return pf.command("cat %IN", name="show")(pf.items([file]))

        assert flow().run(executor=site(grid), store=store).result() == ["what it was"]


def test_large_values_travel_through_data(grid: MiniGrid, store: str, tmp_path: Path) -> None:
    run = through(3_000_000).run(executor=site(grid, tmp_path / "data"), store=store)
    assert run.result() == [3_000_000]
    left = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert left == []


@pf.workflow
def through(size: int) -> Any:
    return length(block(pf.items([size])))


@pf.workflow
def measured(data: bytes) -> Any:
    return length(pf.items([data]))


def test_large_values_without_data_say_what_to_do(grid: MiniGrid, store: str) -> None:
    out = through(3_000_000).run(executor=site(grid), store=store)
    back = measured(os.urandom(3_000_000)).run(executor=site(grid), store=store)
    results, inputs = failures(out)["block"], failures(back)["length"]
    assert (results["kind"], inputs["kind"]) == ("output", "input")
    for failure in (results, inputs):
        assert "data=" in failure["message"] and "3" in failure["message"]


# --- where jobs run ---------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="no bubblewrap")
def test_containers(grid: MiniGrid, store: str, tmp_path: Path) -> None:
    """In the node's own system, read-only: what a job may write is its work directory."""
    outside = tmp_path / "outside"
    line = f"touch {outside}; echo $$ > %OUT{{pid}}"

    @pf.task
    def inside(path: str) -> str:
        try:
            Path(path).touch()
        except OSError as error:
            return type(error).__name__
        return "written"

    @pf.workflow
    def flow() -> Any:
        boxed = pf.command(line, name="boxed").options(container="host")
        return boxed(pf.items([1])), inside.options(container="host")(pf.items([str(outside)]))

    (pid,), (told,) = flow().run(executor=site(grid), store=store).result()
    assert told == "OSError"
    assert not outside.exists()
    assert int(Path(pid).read_text()) < 50, "it has process numbers of its own"


def wheel(folder: Path) -> Path:
    """Return a package that nobody has: pip needs no network for it."""
    path, about = folder / "gridtestpkg-1.0-py3-none-any.whl", "gridtestpkg-1.0.dist-info"
    texts = {
        "gridtestpkg.py": "ANSWER = 42\n",
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: gridtestpkg\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        f"{about}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
    return path


@pytest.mark.very_slow
def test_requirements_are_installed(grid: MiniGrid, store: str, tmp_path: Path) -> None:
    @pf.task
    def answer(n: int) -> int:
        import gridtestpkg  # type: ignore[import-not-found]

        return int(gridtestpkg.ANSWER) + n

    @pf.workflow
    def flow() -> Any:
        return answer(pf.items([1]))

    executor = site(grid, requirements=[str(wheel(tmp_path))])
    assert flow().run(executor=executor, store=store).result() == [43]


def test_needs_that_no_queue_fits_fail_at_once(grid: MiniGrid, store: str) -> None:
    @pf.workflow
    def flow() -> Any:
        return double.options(cores=64)(pf.items([1]))

    run = flow().run(executor=site(grid), store=store)
    failure = failures(run)["double"]
    assert failure["kind"] == "unfit"
    told = run.explain("double[0]")
    for name, cores in (("A", 2), ("B", 2), ("empty", 4)):
        assert f"{name} " in told and f"{cores}" in told
    assert "64 cores" in told


def test_jobs_that_wait_for_pilots_say_so(grid: MiniGrid, store: str, tmp_path: Path) -> None:
    run = all_noted(1, str(tmp_path), 0.0).submit(executor=site(grid, queue="empty"), store=store)
    try:
        wait_for(lambda: any(run.jobs()))
        wait_for(lambda: "no pilot has asked for work lately at queue empty" in told(run))
        assert lines(tmp_path, "begun") == []
    finally:
        run.cancel()
    assert run.wait(PATIENCE) == "aborted"


def told(run: Any) -> str:
    return str(run.explain("noted[0]"))


def test_jobs_wait_for_a_pilot_with_their_versions(
    own_grid: MiniGrid, store: str, tmp_path: Path
) -> None:
    """A pilot whose PandaFlow is another one gets no functions, and the reason is said."""
    old = tmp_path / "old" / "pandaflow"
    old.mkdir(parents=True)
    (old / "__init__.py").write_text("__version__ = '0.0.1'\n")
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nPYTHONSAFEPATH=1 PYTHONPATH={old.parent} exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    own_grid.pilot("here", "--python", str(python))
    run = all_noted(1, str(tmp_path), 0.0).submit(executor=site(own_grid), store=store)
    version = f"Python {sys.version_info[0]}.{sys.version_info[1]} with PandaFlow {pf.__version__}"
    wait_for(lambda: any(run.jobs()))
    wait_for(lambda: version in told(run))
    own_grid.pilot("here")
    assert run.result(timeout=PATIENCE) == [0]


# --- failures ---------------------------------------------------------------------------


@pf.task
def crash(how: str) -> str:
    import os
    import signal
    import time

    if how == "raise":
        raise KeyError("told to raise")
    if how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "slow":
        time.sleep(60)
    if how == "greedy":
        fill = bytearray(400_000_000)
        time.sleep(30)
        return str(len(fill))
    return how


def test_failures_have_the_kinds_that_they_have_elsewhere(grid: MiniGrid, store: str) -> None:
    bad = pf.command("echo no >&2; exit 3", name="bad")
    late = pf.command("sleep 60", name="late").options(walltime=1)
    dead = pf.command("kill -KILL $$", name="dead")
    none = pf.command("echo %OUT{nothing}", name="none")

    @pf.workflow
    def flow() -> Any:
        raised = crash.options(name="raised")(pf.items(["raise", "fine"]))
        died = crash.options(name="died")(pf.items(["segfault"]))
        slow = crash.options(name="slow", walltime=1)(pf.items(["slow"]))
        greedy = crash.options(name="greedy", memory="150 MB")(pf.items(["greedy"]))
        return [
            raised,
            died,
            slow,
            greedy,
            *(each(pf.items([1])) for each in (bad, late, dead, none)),
        ]

    run = flow().run(executor=site(grid), store=store)
    kinds = {task: (each["kind"], each["code"]) for task, each in failures(run).items()}
    assert kinds == {
        "raised": ("exception", None),
        "died": ("signal", 11),
        "slow": ("walltime", None),
        "greedy": ("memory", None),
        "bad": ("exit", 3),
        "late": ("walltime", 1213),
        "dead": ("signal", 9),
        "none": ("output", 1165),
    }
    assert "no" in failures(run)["bad"]["message"]
    (fine,) = run.jobs(task="raised", status="finished")
    assert fine["index"] == 1


def test_a_retry_with_more_memory(grid: MiniGrid, store: str) -> None:
    @pf.task
    def grow(x: int) -> int:
        import time

        fill = bytearray(300_000_000)
        time.sleep(2.0)
        return len(fill)

    @pf.workflow
    def flow() -> Any:
        retry = pf.Retry(retries=2, memory_factor=4.0, delay=0.0)
        return grow.options(memory="150 MB", retries=retry)(pf.items([1]))

    run = flow().run(executor=site(grid), store=store)
    assert run.result() == [300_000_000]
    (job,) = run.jobs()
    assert job["attempt"] == 2
    assert "memory" in run.explain("grow[0]")


def test_logs(grid: MiniGrid, store: str) -> None:
    @pf.task
    def talk(x: int) -> int:
        print(f"function says {x}")
        return x

    @pf.workflow
    def flow() -> Any:
        said = pf.command("echo command says %IN; echo aside >&2", name="said")
        return talk(pf.items([7])), said(pf.items([8]))

    run = flow().run(executor=site(grid), store=store)
    assert run.result() == ([7], ["command says 8"])
    assert run.logs("talk[0]") == "function says 7\n"
    assert run.logs("said[0]") == "command says 8\naside\n"


def test_cancel_ends_payloads(grid: MiniGrid, store: str, tmp_path: Path) -> None:
    run = all_noted(8, str(tmp_path), 60.0).submit(executor=site(grid), store=store)
    wait_for(lambda: lines(tmp_path, "begun"))
    run.cancel()
    assert run.wait(PATIENCE) == "aborted"
    assert lines(tmp_path, "over") == []
    with grid.server.client() as client:
        assert run.id not in {row["run"] for row in client.runs()}
