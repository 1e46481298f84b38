"""The stand-in's controller of Jobs and its one node.

Each round makes pods for Jobs, begins and ends containers, and writes down what became of them.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pandaflow.testing.kubernetes.objects import Objects, Thing, moment
from pandaflow.testing.kubernetes.rules import quantity
from pandaflow.testing.kubernetes.sandbox import Sandbox


class Node:
    """A node with some cores and images.

    Parameters
    ----------
    objects : Objects
    folder : Path
    cores : int
    images : mapping of str to mapping of str to Path
        Files of each image that can be pulled, by where containers see them.
    """

    def __init__(
        self,
        objects: Objects,
        folder: Path,
        cores: int,
        images: Mapping[str, Mapping[str, Path]],
    ) -> None:
        self._objects, self._folder, self._cores, self._images = objects, folder, cores, images
        self._running: dict[str, Sandbox] = {}
        self._fates: dict[str, str] = {}

    def round(self) -> None:
        """Do what there is to be done."""
        with self._objects.changed:
            for job in self._objects.all("jobs"):
                self._control(job)
            for pod in self._objects.all("pods"):
                self._keep(pod)

    def strike(self, pod: str, reason: str) -> None:
        """Kill a pod's container as the kernel or the kubelet does, for this reason."""
        with self._objects.changed:
            self._fates[pod] = reason
            self._running[pod].kill()

    def log(self, pod: str) -> str:
        """Return what a container has written."""
        found = list(self._folder.glob(f"{pod}/log"))
        return found[0].read_text(encoding="utf-8", errors="replace") if found else ""

    def close(self) -> None:
        """Kill all containers."""
        with self._objects.changed:
            for sandbox in self._running.values():
                sandbox.kill()

    # --- Jobs --------------------------------------------------------------------------------

    def _control(self, job: Thing) -> None:
        name, status = job["metadata"]["name"], job.setdefault("status", {})
        pods = [pod for pod in self._objects.all("pods") if _owner(pod) == name]
        if job["metadata"].get("deletionTimestamp"):
            self._delete(name, pods)
        elif "conditions" in status:
            if time.time() - _seconds(status["ended"]) > job["spec"]["ttlSecondsAfterFinished"]:
                self._delete(name, pods)
        elif not pods and not job["spec"].get("suspend"):
            self._objects.add("pods", _pod(job))
        elif pods:
            self._conclude(job, pods[0])

    def _delete(self, job: str, pods: list[Thing]) -> None:
        for pod in pods:
            if not pod["metadata"].get("deletionTimestamp"):
                self._objects.delete("pods", pod["metadata"]["name"])
        if not pods:
            self._objects.remove("jobs", job)

    def _conclude(self, job: Thing, pod: Thing) -> None:
        ends: Mapping[str, tuple[str, dict[str, str]]] = {
            "Succeeded": ("Complete", {}),
            "Failed": (
                "Failed",
                {
                    "reason": "BackoffLimitExceeded",
                    "message": "Job has reached the specified backoff limit",
                },
            ),
        }
        phase = pod["status"]["phase"]
        if phase in ends:
            kind, more = ends[phase]
            job["status"] |= {
                "ended": moment(),
                "conditions": [{"type": kind, "status": "True", **more}],
            }
            self._objects.touch(job)

    # --- pods --------------------------------------------------------------------------------

    def _keep(self, pod: Thing) -> None:
        name, status = pod["metadata"]["name"], pod["status"]
        leaving = pod["metadata"].get("deletionTimestamp")
        if status["phase"] == "Pending":
            self._objects.remove("pods", name) if leaving else self._begin(pod)
        elif status["phase"] == "Running":
            self._watch(pod)
        elif leaving:
            self._objects.remove("pods", name)

    def _begin(self, pod: Thing) -> None:
        why = self._refusal(pod)
        if why is not None:
            if pod["status"] != why:
                pod["status"] = why
                self._objects.touch(pod)
            return
        name = pod["metadata"]["name"]
        image = self._images[pod["spec"]["containers"][0]["image"]]
        self._running[name] = Sandbox(pod, self._folder / name, image, self._secrets())
        pod["status"] = {"phase": "Running", "startTime": moment(), "begun": time.time()}
        self._objects.touch(pod)

    def _refusal(self, pod: Thing) -> dict[str, Any] | None:
        container = pod["spec"]["containers"][0]
        wanted = quantity(container.get("resources", {}).get("requests", {}).get("cpu", "0"))
        if wanted > self._free():
            text = f"0/1 nodes are available: 1 Insufficient cpu ({wanted:g} wanted)."
            return _pending(condition={"reason": "Unschedulable", "message": text})
        if container["image"] not in self._images:
            text = f'Back-off pulling image "{container["image"]}"'
            return _pending(waiting={"reason": "ImagePullBackOff", "message": text})
        volumes = (volume.get("secret") for volume in pod["spec"].get("volumes", ()))
        missing = {v["secretName"] for v in volumes if v} - self._secrets().keys()
        if missing:
            return _pending(waiting={"reason": "ContainerCreating"})
        return None

    def _free(self) -> float:
        used = (
            quantity(pod["spec"]["containers"][0]["resources"]["requests"]["cpu"])
            for pod in self._objects.all("pods")
            if pod["status"]["phase"] == "Running"
        )
        return self._cores - sum(used)

    def _secrets(self) -> dict[str, Thing]:
        return {one["metadata"]["name"]: one for one in self._objects.all("secrets")}

    def _watch(self, pod: Thing) -> None:
        name, spec, sandbox = (
            pod["metadata"]["name"],
            pod["spec"],
            self._running[pod["metadata"]["name"]],
        )
        sandbox.renew(self._secrets())
        limit = spec.get("activeDeadlineSeconds")
        late = limit is not None and time.time() - pod["status"]["begun"] > limit
        leaving = bool(pod["metadata"].get("deletionTimestamp"))
        if (late or leaving) and not pod["status"].get("ending"):
            pod["status"]["ending"] = "DeadlineExceeded" if late else "deleted"
            sandbox.end(spec.get("terminationGracePeriodSeconds", 30))
        code = sandbox.code()
        if code is not None:
            pod["status"] = self._ended(pod, code)
            del self._running[name]
            self._objects.touch(pod)

    def _ended(self, pod: Thing, code: int) -> dict[str, Any]:
        fate = self._fates.get(pod["metadata"]["name"], "")
        container, whole = ("OOMKilled", "") if fate == "OOMKilled" else ("", fate)
        if pod["status"].get("ending") == "DeadlineExceeded":
            whole = "DeadlineExceeded"
        last = self.log(pod["metadata"]["name"])[-2000:]
        end = {"exitCode": code, "reason": container or ("Error" if code else "Completed")}
        if code:
            end["message"] = last
        found: dict[str, Any] = {
            "phase": "Failed" if code or whole else "Succeeded",
            "containerStatuses": [{"name": "pilot", "state": {"terminated": end}}],
        }
        return found | ({"reason": whole} if whole else {})


def _pending(
    condition: dict[str, str] | None = None, waiting: dict[str, str] | None = None
) -> dict[str, Any]:
    found: dict[str, Any] = {"phase": "Pending"}
    if condition:
        found["conditions"] = [{"type": "PodScheduled", "status": "False", **condition}]
    if waiting:
        found["containerStatuses"] = [{"name": "pilot", "state": {"waiting": waiting}}]
    return found


def _pod(job: Thing) -> Thing:
    template, name = job["spec"]["template"], job["metadata"]["name"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job["metadata"]["uid"]}
    labels = {**template["metadata"].get("labels", {}), "batch.kubernetes.io/job-name": name}
    return {
        "metadata": {
            "name": f"{name}-{secrets.token_hex(3)}",
            "labels": labels,
            "ownerReferences": [{**owner, "controller": True}],
        },
        "spec": template["spec"],
        "status": {"phase": "Pending"},
    }


def _owner(pod: Thing) -> str:
    return str(pod["metadata"]["ownerReferences"][0]["name"])


def _seconds(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
