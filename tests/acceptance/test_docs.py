"""What the documentation shows works: as a script, typed into a Python prompt, in a notebook.

Blocks fenced as ``python runnable`` belong to one session, in the order of the page. A ``text``
block right behind one holds what it prints.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

psutil = pytest.importorskip("psutil")

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/tutorial.md")
#: Pages whose blocks are run as scripts only.
SCRIPTS = (
    "docs/how-to/hpo.md",
    "docs/how-to/hpo-workflows.md",
    "docs/how-to/hpo-from-panda.md",
    "docs/how-to/scans.md",
    "docs/hpo-design.md",
)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
#: Graphs and timelines; six plots of studies.
PICTURES = {
    "01_quickstart.ipynb": {"svg": 2, "png": 0},
    "02_hpo.ipynb": {"svg": 0, "png": 6},
    "03_hpc.ipynb": {"svg": 2, "png": 0},
    "04_grid.ipynb": {"svg": 1, "png": 2},
    "05_globus_compute.ipynb": {"svg": 3, "png": 0},
}
#: Seconds that a whole page may take: a safety net.
PATIENCE = 300

_BLOCK = re.compile(
    r"^```python runnable\n(?P<code>.*?)^```\n(?:\n```text\n(?P<printed>.*?)^```\n)?", re.M | re.S
)
_TERMINAL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r")


@dataclass(frozen=True)
class Block:
    """A piece of code and what it prints."""

    code: str
    printed: tuple[str, ...]


def blocks(page: str) -> list[Block]:
    found = [
        Block(match["code"], tuple((match["printed"] or "").splitlines()))
        for match in _BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))
    ]
    assert found, f"{page} has no runnable block"
    return found


@pytest.mark.parametrize("page", [*PAGES, *SCRIPTS])
def test_every_block_of_a_page_that_runs_is_run(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(re.findall(r"^```python", text, re.M)) == len(blocks(page))


def assert_printed(expected: Sequence[Block], output: str) -> None:
    """Each promised line appears, in order; progress may come in between."""
    lines = iter(line.rstrip() for line in output.splitlines())
    for block in expected:
        for wanted in block.printed:
            assert any(wanted.rstrip() == line for line in lines), f"{wanted!r} is not in\n{output}"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder to work in; nothing that was started there may outlive the test."""
    yield tmp_path
    deadline = time.monotonic() + 10
    while left := working_in(tmp_path):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.05)


def working_in(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def environment() -> dict[str, str]:
    """As a user has it, but for settings of whoever runs the tests."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("PANDAFLOW_")}
    path = f"{ROOT}{os.pathsep}{ROOT / 'pilot'}"
    return {**mine, "PYTHONPATH": path, "PYTHON_BASIC_REPL": "1", "TERM": "xterm"}


@pytest.mark.parametrize("page", [*PAGES, *SCRIPTS])
def test_as_a_script(page: str, folder: Path) -> None:
    session = blocks(page)
    (folder / "page.py").write_text("\n".join(block.code for block in session), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "page.py"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert_printed(session, done.stdout)


@pytest.mark.parametrize("page", PAGES)
def test_typed_into_a_prompt(page: str, folder: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    session = blocks(page)
    prompt = pexpect.spawn(
        sys.executable,
        ["-q", "-i"],
        cwd=str(folder),
        env=environment(),
        encoding="utf-8",
        timeout=PATIENCE,
        dimensions=(50, 300),
    )
    prompt.delaybeforesend = None  # no password is asked for, so there is no echo to wait for
    heard: list[str] = []
    try:
        prompt.expect_exact(">>> ")
        for line in "\n".join(block.code + "\n" for block in session).splitlines():
            prompt.sendline(line)
            prompt.expect_exact([">>> ", "... "])
            heard.append(prompt.before)
        prompt.sendline("raise SystemExit(7)")
        prompt.expect(pexpect.EOF)
    finally:
        prompt.close(force=True)
    output = _TERMINAL.sub("", "".join(heard))
    assert not re.search("^Traceback|^SyntaxError|^IndentationError", output, re.M), output
    assert prompt.exitstatus == 7
    assert_printed(session, output)


def execute(notebook: object, folder: Path) -> str:
    """Execute a notebook in ``folder``; return what its cells printed."""
    nbclient = pytest.importorskip("nbclient")
    client = nbclient.NotebookClient(
        notebook,
        timeout=PATIENCE,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment())
    outputs = [output for cell in client.nb.cells for output in cell.get("outputs", ())]
    return "".join(output["text"] for output in outputs if output.get("name") == "stdout")


# Warnings of the notebook machinery are its own affair.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES)
def test_as_cells_of_a_notebook(page: str, folder: Path) -> None:
    v4 = pytest.importorskip("nbformat").v4
    session = blocks(page)
    cells = [v4.new_code_cell(block.code) for block in session]
    assert_printed(session, execute(v4.new_notebook(cells=cells), folder))


@pytest.mark.slow
@pytest.mark.timeout(600)  # a safety net: one of them trains a hundred networks
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook(path: Path, folder: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    if path.name == "03_hpc.ipynb":
        skip_without_slurm()
    if path.name == "04_grid.ipynb":
        for package in ("fastapi", "uvicorn", "httptools", "uvloop", "httpx", "matplotlib"):
            pytest.importorskip(package)
    if path.name == "05_globus_compute.ipynb":
        skip_without_globus()
    if path.name == "02_hpo.ipynb":
        for package in ("optuna", "nevergrad", "sklearn", "matplotlib", "pandas"):
            pytest.importorskip(package)
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    execute(notebook, folder)
    assert drawn(notebook) == PICTURES[path.name]


def skip_without_slurm() -> None:
    from pandaflow.testing.slurm import Slurm, SlurmMissing

    try:
        Slurm().start().close()
    except SlurmMissing as missing:
        pytest.skip(str(missing))


def skip_without_globus() -> None:
    pytest.importorskip("globus_compute_sdk", reason="no Globus Compute SDK: extra 'globus'")
    from pandaflow.testing.globus.broker import RabbitMissing, find_programs
    from pandaflow.testing.globus.environment import GlobusMissing, endpoint_environment

    try:
        find_programs()
        endpoint_environment()
    except (RabbitMissing, GlobusMissing) as missing:
        pytest.skip(str(missing))


def drawn(notebook: object) -> dict[str, int]:
    """Count the pictures that a notebook's cells show last, by format; live views aside."""
    found = {"svg": 0, "png": 0}
    for cell in notebook.cells:  # type: ignore[attr-defined]
        for output in cell.get("outputs", ()):
            data = output.get("data", {}) if output.output_type == "execute_result" else {}
            found["svg"] += any("<svg" in str(form) for form in data.values())
            found["png"] += "image/png" in data
    return found


def test_the_page_of_the_server_is_up_to_date() -> None:
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package, reason=f"no {package}: extra 'server'")
    made = subprocess.run(
        [sys.executable, "-c", "import make_api; print(make_api.render(), end='')"],
        cwd=ROOT / "docs",
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert made.returncode == 0, made.stderr
    page = (ROOT / "docs/reference/server.md").read_text(encoding="utf-8")
    assert page == made.stdout, "run: python docs/make_api.py"


def test_notebooks_are_there() -> None:
    assert [path.name for path in NOTEBOOKS] == list(PICTURES)
