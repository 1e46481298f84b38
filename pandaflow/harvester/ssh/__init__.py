"""Pilots on a host that is reached by ssh."""

from __future__ import annotations

from pandaflow.harvester.ssh.settings import SshSettings

__all__ = ["SshSettings"]
