"""The page that shows how to add a back-end starts with a kit that runs, and fails."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[4] / "docs" / "how-to" / "add-a-batch-system.md"


def test_the_kit_of_the_page_fails_where_nothing_is_written(tmp_path: Path) -> None:
    codes = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    (tmp_path / "test_mysystem.py").write_text(codes[0], encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", "-rA"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    failed = set(re.findall(r"^FAILED \S+::(\w+)", run.stdout, re.M))
    passed = set(re.findall(r"^PASSED \S+::(\w+)", run.stdout, re.M))
    assert {
        "test_a_submission_gives_the_id",
        "test_a_refusal_passes_on_the_systems_words",
        "test_silence_is_transient_for_every_command",
        "test_polls_and_histories_are_read",
        "test_cancelling_what_is_gone_is_no_error",
        "test_queues_are_read",
        "test_every_part_of_a_request_reaches_the_script",
    } <= failed
    assert {
        "test_there_are_texts_to_test_with",
        "test_commands_are_lists_of_words",
        "test_a_line_break_cannot_smuggle_in_a_directive",
    } <= passed


def test_the_script_of_the_page(capsys) -> None:
    codes = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    exec(compile(codes[1], "page", "exec"), {})
    said = capsys.readouterr().out
    assert "#SBATCH --array=0-9" in said and "python analyse.py" in said
