from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pandaflow.core.errors import SiteError, StoreError
from pandaflow.harvester.account import Record
from pandaflow.harvester.journal import Journal, locked
from pandaflow.harvester.submitter import Shape

ONE = Record(name="a", shape=Shape(cores=2, memory=5, walltime=6.5), ordered=100.0)


def test_what_was_written_is_there_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    other = replace(ONE, name="b", id="7", first=1.5, worked=True, wish="drain")
    gone = replace(ONE, name="c", phase="gone", ordered=90.0, code=-9)
    journal.save("q", [ONE, other, gone])
    journal.save("r", [replace(ONE, name="d")])
    journal.note("q", {"reason": "é"})
    journal.close()
    again = Journal(tmp_path)
    assert {each.name: each for each in again.live("q")} == {"a": ONE, "b": other}
    assert again.gone("q") == [gone]
    assert (again.submitted("q", 95.0), again.submitted("q", 100.0)) == (2, 0)
    assert again.queue("q") == {"reason": "é"} and again.queue("r") == {}
    again.save("q", [replace(ONE, phase="gone")])
    again.forget(95.0)
    assert [each.name for each in again.gone("q")] == ["a"]
    again.close()


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"journal\.db cannot be used"):
        Journal(tmp_path / "file")
    (tmp_path / "journal.db").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match="not a database"):
        Journal(tmp_path)


def test_one_harvester_at_a_time(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pandaflow.harvester.journal import locked\n"
    )
    script += "with locked(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline()
        with pytest.raises(SiteError, match=f"another harvester uses .*process {holder.pid} on"):
            with locked(tmp_path):
                pass
        holder.kill()
    with locked(tmp_path), pytest.raises(SiteError):
        with locked(tmp_path):
            pass
