"""The kinds of submitters, by the name of their table in ``harvester.toml``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from pandaflow.harvester.submitter import SubmitterSettings

#: Where the settings of each kind are: imported when a queue uses them.
KINDS: Mapping[str, str] = {
    "local": "pandaflow.harvester.local:LocalSettings",
    "slurm": "pandaflow.harvester.batch:SlurmSettings",
    "sge": "pandaflow.harvester.batch:SgeSettings",
    "pbs": "pandaflow.harvester.batch:PbsSettings",
    "htcondor": "pandaflow.harvester.batch:HtcondorSettings",
    "lsf": "pandaflow.harvester.batch:LsfSettings",
    "kubernetes": "pandaflow.harvester.kubernetes:KubernetesSettings",
    "ssh": "pandaflow.harvester.ssh:SshSettings",
}


def settings_of(kind: str) -> type[SubmitterSettings]:
    """Return the class of the settings of a kind of submitter."""
    module, _, name = KINDS[kind].partition(":")
    found: type[SubmitterSettings] = getattr(import_module(module), name)
    return found
