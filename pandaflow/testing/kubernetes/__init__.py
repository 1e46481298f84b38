"""A small stand-in of a Kubernetes cluster for tests, and the real control plane where it is.

:class:`Cluster` speaks the REST protocol to the real client, checks what it is given by
Kubernetes' own schemas, and runs the pods' commands as processes in bubblewrap. It is *not*
Kubernetes: it knows Jobs, Pods, Secrets and Events only, has one node, no roles, and no admission
but the little that is written in :mod:`~pandaflow.testing.kubernetes.rules`.
:class:`ControlPlane` runs the real ``etcd``, ``kube-apiserver`` and ``kube-controller-manager``,
without nodes.
"""

from __future__ import annotations

from pandaflow.testing.kubernetes.cluster import Cluster, ClusterMissing
from pandaflow.testing.kubernetes.controlplane import ControlPlane, ControlPlaneMissing

__all__ = ["Cluster", "ClusterMissing", "ControlPlane", "ControlPlaneMissing"]
