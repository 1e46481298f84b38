"""Names of the batch jobs that wait or run: one command for each system, and its answer read.

Pilots are known by the names of their batch jobs, so that none is lost whose id nobody noted.
Everything here is a function of its arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pandaflow.core.errors import SiteError
from pandaflow.executors.batch.answers import json_object, not_understood, shown, xml_tree

Names = dict[str, str]


class Listing(NamedTuple):
    """How a system tells names.

    Attributes
    ----------
    command : callable
        Takes the user, returns the words of a command.
    parse : callable
        Takes its output, returns names by id.
    none : str
        Pattern of a complaint that means that there are no jobs.
    """

    command: Callable[[str], list[str]]
    parse: Callable[[str], Names]
    none: str = r"(?!)"


def read(listing: Listing, stdout: str, stderr: str, code: int) -> Names:
    """Return names by id from what a command has said.

    Raises
    ------
    SiteError
        Transient: it failed, or said something else.
    """
    if code and not stdout.strip() and re.search(listing.none, stderr, re.I):
        return {}
    if code:
        words = shown(stderr or stdout) or f"exit code {code}"
        raise SiteError(f"the batch system does not list its jobs: {words}", transient=True)
    return listing.parse(stdout)


def _slurm(stdout: str) -> Names:
    return _lines(stdout, "squeue", r"(\d{1,15})\|(.*)", r"\d{1,15}_.*\|.*")


def _lines(stdout: str, system: str, mine: str, other: str) -> Names:
    """Read lines of id and name; whatever is neither a job nor something else is no answer."""
    found: Names = {}
    for line in stdout.splitlines():
        if match := re.fullmatch(mine, line.strip()):
            found[match[1]] = match[2]
        elif line.strip() and not re.fullmatch(other, line.strip()):
            raise not_understood(system, stdout)
    if stdout and not stdout.endswith("\n"):
        raise not_understood(system, stdout)
    return found


def _sge(stdout: str) -> Names:
    # Some versions print nothing at all when there is nothing to tell.
    tree = xml_tree(stdout.strip() or "<job_info/>", "qstat")
    if tree.tag != "job_info":
        raise not_understood("qstat", stdout)
    entries = (
        (entry.findtext("JB_job_number"), entry.findtext("JB_name"))
        for entry in tree.iter("job_list")
    )
    return {id.strip(): name.strip() for id, name in entries if id and name}


def _openpbs(stdout: str) -> Names:
    answer = json_object(stdout, "qstat") if stdout.strip() else {"pbs_version": "", "Jobs": {}}
    if not isinstance(answer, dict) or "pbs_version" not in answer:
        raise not_understood("qstat", stdout)
    jobs = answer.get("Jobs") or {}
    if not isinstance(jobs, dict):
        raise not_understood("qstat", stdout)
    return {
        str(id): str(job["Job_Name"])
        for id, job in jobs.items()
        if isinstance(job, dict) and job.get("job_state") not in ("F", "X") and "Job_Name" in job
    }


def _torque(stdout: str) -> Names:
    if stdout.strip() and not re.search(r"^Job Id:", stdout, re.M):
        raise not_understood("qstat", stdout)
    # Long values go on in lines that begin with a tab.
    records = re.split(r"^Job Id:\s*", re.sub(r"\n\t", "", stdout), flags=re.M)[1:]
    found: Names = {}
    for record in records:
        fields = dict(re.findall(r"^\s+(\w+) = (.*)$", record, re.M))
        if fields.get("job_state") != "C" and "Job_Name" in fields:
            found[record.split("\n", 1)[0].strip()] = fields["Job_Name"].strip()
    return found


def _lsf(stdout: str) -> Names:
    return _lines(stdout, "bjobs", r"(\d{1,15})\|([^|]*)", r"(?i)no unfinished job found.*")


def _htcondor(stdout: str) -> Names:
    answer = json_object(stdout, "condor_q") if stdout.strip() else []
    if not isinstance(answer, list) or not all(isinstance(ad, dict) for ad in answer):
        raise not_understood("condor_q", stdout)
    return {
        str(ad["ClusterId"]): str(ad["JobBatchName"])
        for ad in answer
        # Removed and completed ones may be there for a while.
        if "ClusterId" in ad and "JobBatchName" in ad and ad.get("JobStatus") not in (3, 4)
    }


LISTINGS: Mapping[str, Listing] = {
    "slurm": Listing(lambda user: ["squeue", "-h", "-u", user, "-o", "%i|%j"], _slurm),
    "sge": Listing(lambda user: ["qstat", "-u", user, "-xml"], _sge),
    "openpbs": Listing(lambda user: ["qstat", "-f", "-F", "json"], _openpbs),
    "torque": Listing(lambda user: ["qstat", "-f"], _torque),
    "htcondor": Listing(
        lambda user: [
            *("condor_q", user, "-json"),
            *("-attributes", "ClusterId,JobBatchName,JobStatus"),
        ],
        _htcondor,
    ),
    "lsf": Listing(
        lambda user: ["bjobs", "-noheader", "-u", user, "-o", "jobid job_name delimiter='|'"],
        _lsf,
        r"no unfinished job found",
    ),
}
