"""The pilot under the oldest Python that it promises: read by its grammar, and really run."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pandaflow.grid.messages import Bundle, CommandJob
from pandaflow.grid.places import QueueBody
from pandaflow.testing.grid import GridServer
from pandaflow_pilot import archive
from tests.oldest import OLDEST, oldest_python

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pilot" / "pandaflow_pilot"
FILES = sorted(PACKAGE.glob("*.py"))


@pytest.fixture(scope="module")
def python() -> str:
    found = oldest_python()
    if found is None:
        pytest.skip("no Python {}.{} on this machine".format(*OLDEST))
    return found


def test_the_package_promises_it() -> None:
    text = (ROOT / "pilot" / "pyproject.toml").read_text()
    assert re.search(r'requires-python = ">=3\.9"', text)


def test_its_grammar_reads_every_file() -> None:
    assert len(FILES) > 20
    for path in FILES:
        ast.parse(path.read_text(), feature_version=OLDEST)


def test_every_module_is_imported(python: str) -> None:
    """Without packages of anybody's, and without a warning."""
    names = [f"pandaflow_pilot.{path.stem}" for path in FILES if path.stem != "__main__"]
    line = f"import importlib; [importlib.import_module(name) for name in {names}]"
    words = [python, "-W", "error", "-S", "-c", line]
    subprocess.run(words, cwd=ROOT / "pilot", check=True, timeout=60)


def test_a_pilot_pulls_and_runs(python: str, grid_server: GridServer, tmp_path: Path) -> None:
    """One file, which needs nothing but this Python; functions run by another."""
    built = archive.build(tmp_path / "pilot.pyz")
    job = CommandJob(
        position=0, line="cat in.txt > out.txt; echo done", shell=True, **_files(tmp_path)
    )
    with grid_server.client() as client:
        client.put_queue("q", QueueBody())
        client.open_run("run")
        bundle = Bundle(bundle=1, task="t", jobs=(0,), kind="command", commands=(job,))
        assert client.submit("run", [bundle]) == {}
        pilot = [python, "-S", str(built), "--server", grid_server.url, "--queue", "q"]
        options = ["--once", "--workdir", str(tmp_path / "work"), "--python", sys.executable]
        ended = subprocess.run(
            [*pilot, *options], capture_output=True, text=True, timeout=120, check=False
        )
        assert ended.returncode == 0, ended.stderr
        told = client.outcomes("run", wait=10).outcomes[-1]
    (result,) = told.results
    assert (told.kind, result.error, result.out) == ("ended", None, b"done\n")
    assert [(file.name, file.data) for file in result.files] == [("out.txt", b"old and new")]
    assert abs(result.ended - time.time()) < 600


def _files(folder: Path) -> dict[str, object]:
    source = folder / "source.txt"
    source.write_text("old and new")
    given = {"name": "in.txt", "replicas": (str(source),), "size": 11}
    return {"inputs": (given,), "outputs": ("out.txt",)}
