"""Batch scripts that really run, in a shell instead of a batch system."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pandaflow.executors.batch.htcondor import HTCondor
from pandaflow.executors.batch.lsf import LSF
from pandaflow.executors.batch.model import Backend, BatchRequest
from pandaflow.executors.batch.pbs import PBS
from pandaflow.executors.batch.script import ID, INDEX, batch_files, batch_script
from pandaflow.executors.batch.sge import SGE
from pandaflow.executors.batch.slurm import Slurm

SHOW = f'printf "%s %s" "${ID}" "${INDEX}"'


def run(script: str, **env: str) -> str:
    done = subprocess.run(
        ["bash", "-c", script],
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("backend", "env", "shown"),
    [
        (Slurm(), {"SLURM_JOB_ID": "12"}, "12 "),
        (
            Slurm(),
            {"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"},
            "12 3",
        ),
        (SGE(), {"JOB_ID": "12", "SGE_TASK_ID": "undefined"}, "12 "),
        (SGE(), {"JOB_ID": "12", "SGE_TASK_ID": "1"}, "12 0"),
        (PBS(), {"PBS_JOBID": "12.s"}, "12.s "),
        (
            PBS(),
            {"PBS_JOBID": "12[4].s", "PBS_ARRAY_ID": "12[].s", "PBS_ARRAY_INDEX": "4"},
            "12[].s 4",
        ),
        (PBS(dialect="torque"), {"PBS_JOBID": "12.s"}, "12.s "),
        (PBS(dialect="torque"), {"PBS_JOBID": "12[4].s", "PBS_ARRAYID": "4"}, "12[].s 4"),
        (LSF(), {"LSB_JOBID": "12", "LSB_JOBINDEX": "0"}, "12 "),
        (LSF(), {"LSB_JOBID": "12", "LSB_JOBINDEX": "10"}, "12 9"),
        (HTCondor(), {"_PANDAFLOW_CLUSTER": "12"}, "12 "),
        (HTCondor(), {"_PANDAFLOW_CLUSTER": "12", "_PANDAFLOW_PROCESS": "0"}, "12 0"),
    ],
)
def test_a_job_knows_its_id_and_element(backend: Backend, env: dict[str, str], shown: str) -> None:
    assert run(batch_script(backend, BatchRequest(name="a"), SHOW), **env) == shown


def test_output_is_opened_by_the_script_where_the_system_cannot(tmp_path: Path) -> None:
    request = BatchRequest(
        name="a",
        workdir=str(tmp_path),
        stdout=f"{tmp_path}/a b$-{{id}}-{{index}}.out",
        stderr=f"{tmp_path}/{{id}}.err",
    )
    script = batch_script(PBS(), request, "echo out; echo err >&2")
    env = {"PBS_JOBID": "12[4].s", "PBS_ARRAY_ID": "12[].s", "PBS_ARRAY_INDEX": "4"}
    assert run(script, **env) == ""
    assert (tmp_path / "a b$-12[].s-4.out").read_text() == "out\n"
    assert (tmp_path / "12[].s.err").read_text() == "err\n"


def test_a_script_warns_itself_where_the_system_cannot() -> None:
    request = BatchRequest(name="a", walltime=11, warn=("USR2", 10))
    body = "trap 'echo warned; exit 0' USR2\nfor i in $(seq 300); do sleep 0.05; done"
    assert run(batch_script(PBS(), request, body)) == "warned\n"
    assert "kill" not in batch_script(Slurm(), request, body)


def test_a_folder_that_cannot_be_entered_ends_the_job_with_its_name(tmp_path: Path) -> None:
    request = BatchRequest(name="a", workdir=str(tmp_path / "no where"))
    script = batch_script(Slurm(), request, "echo no", ["echo neither"])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    told = f"{socket.gethostname()} cannot enter the working directory {tmp_path}/no where\n"
    assert done.stderr.endswith(told)


def test_what_fails_first_is_told_in_the_output_that_the_script_opens(tmp_path: Path) -> None:
    request = BatchRequest(name="a", workdir="/nonexistent", stdout=f"{tmp_path}/{{id}}.out")
    script = batch_script(PBS(), request, "echo no")
    env = {"PATH": os.environ["PATH"], "PBS_JOBID": "12.s"}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")
    assert "working directory /nonexistent" in (tmp_path / "12.s.out").read_text()


def test_a_relative_output_is_in_the_working_directory(tmp_path: Path) -> None:
    request = BatchRequest(name="a", workdir=str(tmp_path), stdout="{id}.out")
    assert run(batch_script(PBS(), request, "echo here"), PBS_JOBID="12.s") == ""
    assert (tmp_path / "12.s.out").read_text() == "here\n"


def test_a_description_stands_beside_the_script() -> None:
    request = BatchRequest(name="a", array=3)
    files = batch_files(HTCondor(), "/a b/job.sh", request, "true")
    assert list(files) == ["/a b/job.sh", "/a b/job.sh.sub"]
    assert HTCondor().submit("/a b/job.sh", request)[-1] in files
    assert list(batch_files(Slurm(), "/a b/job.sh", request, "true")) == ["/a b/job.sh"]


@settings(max_examples=20, deadline=None)
@given(value=st.text(st.characters(exclude_characters="\0", codec="utf-8")))
def test_any_value_of_a_variable_arrives(value: str) -> None:
    request = BatchRequest(name="a", env={"VALUE": value})
    script = batch_script(Slurm(), request, 'printf %s "$VALUE" | od -An -v -tx1')
    assert bytes.fromhex("".join(run(script).split())) == value.encode()
