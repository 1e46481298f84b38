"""The page that shows how to add a back-end: its kit fails, and passes when it is filled in."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pandaflow.executors.batch.model import Backend
from pandaflow.executors.batch.systems import Batch, make_settings
from pandaflow.testing.batch import BackendTests

PAGE = Path(__file__).parents[4] / "docs" / "how-to" / "add-a-batch-system.md"


def blocks() -> list[str]:
    """Return the code of the page: the kit, the back-end that is written, a script."""
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def outcomes(folder: Path, code: str) -> dict[str, set[str]]:
    """Run the tests of a file of its own; return their names by outcome."""
    (folder / "test_mysystem.py").write_text(code, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", "-rA"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=250,
    )
    words = ("PASSED", "FAILED", "ERROR")
    return {word: set(re.findall(rf"^{word} \S+::(\w+)", run.stdout, re.M)) for word in words}


def test_the_kit_of_the_page_fails_where_nothing_is_written(tmp_path: Path) -> None:
    found = outcomes(tmp_path, blocks()[0])
    assert {
        "test_a_submission_gives_the_id",
        "test_a_refusal_passes_on_the_systems_words",
        "test_silence_is_transient_for_every_command",
        "test_polls_and_histories_are_read",
        "test_cancelling_what_is_gone_is_no_error",
        "test_queues_are_read",
        "test_every_part_of_a_request_reaches_the_script",
    } <= found["FAILED"]
    assert {
        "test_there_are_texts_to_test_with",
        "test_commands_are_lists_of_words",
        "test_a_line_break_cannot_smuggle_in_a_directive",
    } <= found["PASSED"]


def test_the_kit_of_the_page_passes_when_it_is_filled_in(tmp_path: Path) -> None:
    kit, written, _ = blocks()
    tests = kit[kit.index("class TestMySystem") :]
    found = outcomes(tmp_path, f"{written}\n\n{tests}")
    assert found["FAILED"] == found["ERROR"] == set()
    kits = {name for name in vars(BackendTests) if name.startswith("test_")}
    assert found["PASSED"] == kits
    # What is written keeps the shape of the kit: nothing of it is left out.
    methods = re.compile(r"^    def (\w+)\(self", re.M)
    assert methods.findall(kit[: kit.index("class Test")]) == methods.findall(written)


def test_the_executor_of_the_page() -> None:
    space: dict[str, Any] = {}
    exec(compile(blocks()[1], "page", "exec"), space)
    (line,) = re.findall(r"^`(Batch\(.*\))`", PAGE.read_text(encoding="utf-8"), re.M)
    made = eval(line, space | {"Batch": Batch, "make_settings": make_settings})
    assert isinstance(space["MySystem"](), Backend)
    assert (made.settings.queue, made.settings.walltime) == ("main", 7200.0)


def test_the_script_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(blocks()[-1], "page", "exec"), {})
    said = capsys.readouterr().out
    assert "#SBATCH --array=0-9" in said and "python analyse.py" in said
