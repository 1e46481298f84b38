"""What batch systems are asked for pilots, and what they say of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pandaflow.core.errors import SiteError
from pandaflow.harvester.batch import (
    BatchSettings,
    HtcondorSettings,
    LsfSettings,
    PbsSettings,
    SgeSettings,
    SlurmSettings,
)
from pandaflow.harvester.listing import LISTINGS, read
from pandaflow.harvester.submitter import Order, Shape

ORDER = Order(
    server="https://pool.example.org",
    queue="a queue",
    label="pf-q",
    shape=Shape(cores=4, memory=2_000_000_000, walltime=3600.0),
    token_file="/etc/token file",
    env={"X": "a b"},
)
SGE = "<job_info><queue_info><job_list state='running'><JB_job_number>7</JB_job_number>"
SGE += "<JB_name>pf-1</JB_name></job_list></queue_info><job_info/></job_info>"
PBS = {"7.s": {"Job_Name": "pf-1", "job_state": "R"}, "8.s": {"Job_Name": "x", "job_state": "F"}}
CONDOR = [
    {"ClusterId": 7, "JobBatchName": "pf-1", "JobStatus": 2},
    {"ClusterId": 8, "JobBatchName": "pf-2", "JobStatus": 3},
    {"ClusterId": 9, "JobStatus": 1},
]
ANSWERS = {
    "slurm": ("7|pf-1\n8_[1-3]|x\n9_4|y\n", "7"),
    "sge": (SGE, "7"),
    "openpbs": (json.dumps({"pbs_version": "23", "Jobs": PBS}), "7.s"),
    "torque": (
        "Job Id: 7.s\n    Job_Name = pf-\n\t1\n    job_state = R\n\n"
        "Job Id: 8.s\n    Job_Name = x\n    job_state = C\n",
        "7.s",
    ),
    "lsf": ("7|pf-1\n", "7"),
    "htcondor": (json.dumps(CONDOR), "7"),
}


@pytest.mark.parametrize("system", ANSWERS)
def test_names_of_jobs(system: str) -> None:
    text, id = ANSWERS[system]
    listing = LISTINGS[system]
    assert read(listing, text, "", 0) == {id: "pf-1"}
    assert listing.command("me")[0] in ("squeue", "qstat", "bjobs", "condor_q")


@pytest.mark.parametrize("system", ANSWERS)
def test_no_jobs_and_no_answer_are_not_the_same(system: str) -> None:
    listing = LISTINGS[system]
    nothing = json.dumps({"pbs_version": "23"}) if system == "openpbs" else ""
    assert read(listing, nothing, "", 0) == {}
    for said in (("", "cannot connect", 1), ("what is this?\n", "", 0), ("7|pf", "", 0)):
        with pytest.raises(SiteError) as caught:
            read(listing, *said)
        assert caught.value.transient
    if system == "lsf":
        assert read(listing, "", "No unfinished job found\n", 255) == {}


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        (
            SlurmSettings(partition="main", account="physics", extra=("--qos=high",)),
            ["#SBATCH --partition=main", "--account=physics", "--cpus-per-task=4", "--qos=high"],
        ),
        (SgeSettings(queue="all.q"), ["#$ ", "all.q"]),
        (PbsSettings(queue="batch"), ["#PBS ", "-q batch"]),
        (PbsSettings(queue="batch", dialect="torque"), ["#PBS ", "ppn=4"]),
        (LsfSettings(queue="normal"), ["#BSUB ", "normal"]),
        (
            HtcondorSettings(prologue=("module load python",)),
            ["request_cpus", "module load python"],
        ),
    ],
)
def test_scripts(settings: BatchSettings, lines: list[str]) -> None:
    text = settings.preview(ORDER, "pf-q-1")
    for line in (*lines, "pf-q-1"):
        assert line in text
    command = next(line for line in text.splitlines() if line.startswith("exec "))
    assert "--queue 'a queue' --name pf-q-1 --token-file '/etc/token file'" in command
    assert "--walltime 3540s" in command, "the pilot ends before its batch job does"
    assert "export X='a b'" in text or "a b" in text


def test_htcondor_s_own_parser_takes_the_description(tmp_path: Path) -> None:
    htcondor2: Any = pytest.importorskip("htcondor2")
    text = HtcondorSettings(folder=tmp_path).preview(ORDER, "pf-q-1")
    description = text.split("# ", 1)[1].split("\n", 1)[1].split("\n#!/bin/bash")[0]
    submit = htcondor2.Submit(description)
    assert submit.expand("request_cpus") == "4"
    assert submit.expand("batch_name") == "pf-q-1"
    assert Path(submit.expand("executable")).name == "pf-q-1.sh"
