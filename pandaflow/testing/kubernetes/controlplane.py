"""A real control plane of Kubernetes without nodes, for tests that play the kubelet.

The programs are not part of PandaFlow: name the folder that has ``etcd``, ``kube-apiserver`` and
``kube-controller-manager`` by ``KUBEBUILDER_ASSETS``, as the test tools of Kubernetes do.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_PATIENCE = 120.0
_PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager")
_SCRATCH = "application/strategic-merge-patch+json"


class ControlPlaneMissing(RuntimeError):
    """The programs are not here."""


class ControlPlane:
    """``etcd``, ``kube-apiserver`` and ``kube-controller-manager``. Use it as a context manager.

    Attributes
    ----------
    kubeconfig : Path
        Of a user who may do anything.
    limited : Path
        Of the user ``harvester``, who may do what roles say.
    namespace : str
    """

    def __init__(self) -> None:
        assets = os.environ.get("KUBEBUILDER_ASSETS", "")
        if not assets or any(not Path(assets, name).is_file() for name in _PROGRAMS):
            raise ControlPlaneMissing(
                f"KUBEBUILDER_ASSETS names no folder with {', '.join(_PROGRAMS)}"
            )
        self._assets, self.namespace = Path(assets), "default"
        self.folder = Path(tempfile.mkdtemp(prefix="pandaflow-kube-"))
        self.kubeconfig, self._token = self.folder / "kubeconfig", secrets.token_hex(16)
        self.limited, self._other = self.folder / "limited", secrets.token_hex(16)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._url = f"https://127.0.0.1:{_free_port()}"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:  # also Ctrl-C: nothing may stay
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all of it and remove its files."""
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """Ask the API server; returns its JSON.

        Raises
        ------
        urllib.error.HTTPError
        """
        request = urllib.request.Request(
            self._url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": kind},
        )
        with urllib.request.urlopen(request, context=self._trust(), timeout=20) as answer:
            return json.loads(answer.read())

    def pod(self, job: str) -> dict[str, Any]:
        """Return the pod of a Job, once the controller has made it."""
        path = f"/api/v1/namespaces/{self.namespace}/pods?labelSelector=job-name%3D{job}"
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            items = self.call("GET", path)["items"]
            if items:
                found: dict[str, Any] = items[0]
                return found
            time.sleep(0.1)
        raise RuntimeError(f"no pod of {job}:\n{self.logs()}")

    def play(self, job: str, status: dict[str, Any]) -> None:
        """Say what became of a Job's pod, as its kubelet would."""
        name = self.pod(job)["metadata"]["name"]
        path = f"/api/v1/namespaces/{self.namespace}/pods/{name}/status"
        self.call("PATCH", path, {"status": status}, _SCRATCH)

    def logs(self) -> str:
        """Return the ends of the logs."""
        found = (path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.log"))
        return "\n".join(found)

    def _start(self) -> None:
        etcd, peers = f"http://127.0.0.1:{_free_port()}", f"http://127.0.0.1:{_free_port()}"
        self._run(
            "etcd", f"--data-dir={self.folder / 'etcd'}", f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}", f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}", f"--initial-cluster=default={peers}",
            "--unsafe-no-fsync",
        )  # fmt: skip
        self._serve(etcd)
        self._wait()
        self._run(
            "kube-controller-manager", f"--kubeconfig={self.kubeconfig}",
            f"--service-account-private-key-file={self.folder / 'sa.key'}",
            "--use-service-account-credentials=false", "--leader-elect=false", "--port=0",
            f"--secure-port={_free_port()}", f"--cert-dir={self.folder / 'manager'}",
            "--controllers=job,resourcequota,serviceaccount,serviceaccount-token,garbagecollector,ttl-after-finished",
            "--feature-gates=TTLAfterFinished=true",
        )  # fmt: skip
        self._await_account()

    def _serve(self, etcd: str) -> None:
        tokens, key = self.folder / "tokens.csv", self.folder / "sa.key"
        users = f'{self._token},test,test,"system:masters"\n{self._other},harvester,harvester\n'
        tokens.write_text(users, encoding="utf-8")
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        self._run(
            "kube-apiserver", f"--etcd-servers={etcd}", "--bind-address=127.0.0.1",
            f"--secure-port={self._url.rpartition(':')[2]}", f"--cert-dir={self.folder / 'certs'}",
            f"--token-auth-file={tokens}", "--authorization-mode=RBAC",
            f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.0.0.0/24", "--feature-gates=TTLAfterFinished=true",
        )  # fmt: skip

    def _run(self, program: str, *options: str) -> None:
        with (self.folder / f"{program}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(self._assets / program), *options], stdout=log, stderr=log, cwd=self.folder
            )
        self._processes.append(process)

    def _wait(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            if any(process.poll() is not None for process in self._processes):
                break
            try:
                if self.call("GET", f"/api/v1/namespaces/{self.namespace}"):
                    return self._write_kubeconfigs()
            except (OSError, ValueError):
                time.sleep(0.2)
        raise RuntimeError(f"the control plane does not start:\n{self.logs()}")

    def _await_account(self) -> None:
        """Wait for the account without which no pod is admitted."""
        path = f"/api/v1/namespaces/{self.namespace}/serviceaccounts/default"
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            try:
                if self.call("GET", path).get("secrets"):
                    return
            except urllib.error.HTTPError:
                pass
            time.sleep(0.2)
        raise RuntimeError(f"the controllers do not start:\n{self.logs()}")

    def _trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self._authority()))

    def _authority(self) -> Path:
        return self.folder / "certs" / "apiserver.crt"

    def _write_kubeconfigs(self) -> None:
        for path, token in ((self.kubeconfig, self._token), (self.limited, self._other)):
            found = {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": self._cluster()}],
                "users": [{"name": "u", "user": {"token": token}}],
            }
            path.write_text(json.dumps(found), encoding="utf-8")

    def _cluster(self) -> dict[str, str]:
        return {"server": self._url, "certificate-authority": str(self._authority())}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
