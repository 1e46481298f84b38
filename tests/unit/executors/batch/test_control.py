"""The commands of a batch system that are run: real programs, without a batch system."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from pandaflow.core.errors import SiteError
from pandaflow.executors.batch.control import Control
from pandaflow.executors.batch.lsf import LSF
from pandaflow.executors.batch.model import BatchRequest
from pandaflow.executors.batch.slurm import Slurm

COMMANDS = ("sbatch", "squeue")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with programs that answer as Slurm does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in COMMANDS:
        path = folder / name
        path.write_text('#!/bin/sh\n[ -e "$2" ] && echo "7;here"\n')
        path.chmod(0o755)
    return folder


def control(programs: Path) -> Control:
    return Control(Slurm(), {"PATH": f"{programs}"})


@pytest.mark.parametrize("missing", COMMANDS)
def test_missing_commands_are_told_before_anything_is_submitted(
    programs: Path, missing: str
) -> None:
    (programs / missing).unlink()
    with pytest.raises(SiteError, match=rf"{missing} is not here.*PATH.*login node") as caught:
        Control(Slurm(), {"PATH": str(programs)})
    assert not caught.value.transient


def test_the_commands_of_a_system_that_is_fed_through_a_shell() -> None:
    with pytest.raises(SiteError, match="is not here: the commands of lsf"):
        Control(LSF(), {"PATH": "/bin"})


def test_a_script_is_written_and_submitted(programs: Path, tmp_path: Path) -> None:
    script = tmp_path / "script"
    assert control(programs).submit(script, BatchRequest(name="a"), "true", ["umask 027"]) == "7"
    assert script.read_text().splitlines()[-2:] == ["umask 027", "true"]
    assert os.access(script, os.X_OK)


def test_a_command_that_went_away_or_cannot_be_run(programs: Path, tmp_path: Path) -> None:
    made, request = control(programs), BatchRequest(name="a")
    (programs / "sbatch").write_bytes(b"\x7fELF no program\n")
    with pytest.raises(SiteError, match="sbatch cannot be run"):
        made.submit(tmp_path / "script", request, "true")
    (programs / "sbatch").unlink()
    (programs / "sbatch").symlink_to("/nonexistent/sbatch")
    with pytest.raises(SiteError, match="sbatch is not here"):
        Control(Slurm(), {"PATH": str(programs)})


def test_the_owner_of_jobs_is_the_account(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "somebody-else")
    monkeypatch.setenv("LOGNAME", "somebody-else")
    assert control(programs)._user == pwd.getpwuid(os.getuid()).pw_name


def test_an_account_without_a_name(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", nameless)
    monkeypatch.delenv("USER", raising=False)
    assert control(programs)._user == str(os.getuid())
    monkeypatch.setenv("USER", "me")
    assert control(programs)._user == "me"
