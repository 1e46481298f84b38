"""The stand-in as a whole."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pandaflow.testing.kubernetes import sandbox
from pandaflow.testing.kubernetes.node import Node
from pandaflow.testing.kubernetes.objects import Objects
from pandaflow.testing.kubernetes.serving import Fault, Server

_ROUND = 0.05
#: The image that the node can pull, and the words that run its pilot.
IMAGE = "pandaflow-pilot:test"
ARCHIVE = "/image/pandaflow-pilot.pyz"
PROGRAM = (str(Path(sys.base_prefix, "bin", "python3")), ARCHIVE)


class ClusterMissing(RuntimeError):
    """The stand-in cannot run here."""


class Cluster:
    """A stand-in of a Kubernetes cluster with one node. Use it as a context manager.

    Parameters
    ----------
    cores : int
        Of its node.

    Attributes
    ----------
    namespace : str
    kubeconfig : Path
    objects : Objects
    server : Server

    Raises
    ------
    ClusterMissing
        bubblewrap or kubernetes-validate are not here.
    """

    def __init__(self, cores: int = 4) -> None:
        if find_spec("kubernetes_validate") is None or find_spec("kubernetes") is None:
            raise ClusterMissing("needs packages: pip install kubernetes kubernetes-validate")
        try:
            sandbox.require()
        except sandbox.SandboxMissing as error:
            raise ClusterMissing(str(error)) from error
        self.folder = Path(tempfile.mkdtemp(prefix="pandaflow-kubernetes-"))
        self.namespace, token = "pilots", secrets.token_urlsafe()
        self.objects = Objects(self.namespace)
        self.server = Server(self.objects, token)
        self.kubeconfig = self.folder / "kubeconfig"
        images = {IMAGE: {ARCHIVE: self._archive()}}
        self._node = Node(self.objects, self.folder / "pods", cores, images)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._token = token

    def __enter__(self) -> Self:
        url = self.server.start()
        self.kubeconfig.write_text(_kubeconfig(url, self._token, self.namespace), encoding="utf-8")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self._node.close()
        self.server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def fail(self, fault: Fault | None) -> None:
        """Let all answers be what this says from now on; None: all is well again."""
        self.server.fault = fault

    def strike(self, job: str, reason: str) -> None:
        """Kill a Job's container: ``OOMKilled``, or ``Evicted`` as a whole."""
        self._node.strike(self.pod(job)["metadata"]["name"], reason)

    def pod(self, job: str) -> dict[str, Any]:
        """Return the pod of a Job."""
        found = self.objects.page("pods", {"labelSelector": f"batch.kubernetes.io/job-name={job}"})
        pod: dict[str, Any] = found["items"][0]
        return pod

    def log(self, job: str) -> str:
        """Return what a Job's container has written."""
        return self._node.log(self.pod(job)["metadata"]["name"])

    def settings(self, **more: Any) -> Mapping[str, Any]:
        """Return settings of a submitter that uses this cluster."""
        return {"image": IMAGE, "kubeconfig": self.kubeconfig, "timeout": 10.0, **more}

    def _archive(self) -> Path:
        from pandaflow_pilot.archive import build

        return build(self.folder / "pandaflow-pilot.pyz")

    def _run(self) -> None:
        while not self._over.is_set():
            self._node.round()
            time.sleep(_ROUND)


def _kubeconfig(url: str, token: str, namespace: str) -> str:
    # JSON is YAML.
    found = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [
            {"name": "test", "context": {"cluster": "c", "user": "u", "namespace": namespace}}
        ],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": token}}],
    }
    return json.dumps(found)
