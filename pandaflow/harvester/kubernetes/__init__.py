"""Pilots as Kubernetes Jobs, one each."""

from __future__ import annotations

from pandaflow.harvester.kubernetes.settings import KubernetesSettings

__all__ = ["KubernetesSettings"]
