"""Orders as manifests of Kubernetes; everything here is a function of its arguments.

One Job is one pilot. The walltime limits the pod (``activeDeadlineSeconds`` of its spec), not the
Job, whose clock also runs while the pod waits for a node. A pod that is killed is not begun again
(``backoffLimit: 0``): the harvester decides that.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pandaflow.harvester.carried import AUTHORITIES, TOKEN
from pandaflow.harvester.submitter import Order

if TYPE_CHECKING:
    from pandaflow.harvester.kubernetes.settings import KubernetesSettings

Manifest = dict[str, Any]
#: Key of the label that marks all that belongs to a queue of a harvester.
LABEL = "pandaflow/label"
#: Keys of annotations, whose values may be anything.
PILOT, QUEUE = "pandaflow/pilot", "pandaflow/queue"
CONTAINER = "pilot"
_WORK, _SECRETS = "/work", "/run/pandaflow"
#: Lists of a pod whose items are known by one of their fields.
_KEYS: Mapping[str, str] = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
}
#: Seconds after its walltime that a pilot may need to end by itself.
_SPARE = 300


def job(
    order: Order, name: str, settings: KubernetesSettings, template: Mapping[str, Any]
) -> Manifest:
    """Return the Job of one pilot.

    Parameters
    ----------
    order : Order
    name : str
        Of the pilot and of the Job: a DNS label.
    settings : KubernetesSettings
    template : mapping
        ``metadata`` and ``spec`` of a pod. It wins over the defaults, and yields to what makes
        the pod this pilot: its command, its labels, its token, ``restartPolicy``.
    """
    pod = merged(_defaults(order, settings), template)
    pod = merged(pod, _required(order, name, settings))
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, **_marks(order, name, settings)},
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "ttlSecondsAfterFinished": math.ceil(settings.keep),
            "template": pod,
        },
    }


def secret_name(label: str) -> str:
    """Return the name of the Secret that a harvester makes for a queue."""
    return f"{label}-token"


def secret(label: str, files: Mapping[str, bytes]) -> Manifest:
    """Return the Secret with a queue's token and authorities."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": secret_name(label), "labels": _labels(label)},
        "data": {name: base64.b64encode(content).decode() for name, content in files.items()},
    }


def merged(one: Mapping[str, Any], other: Mapping[str, Any], key: str = "") -> Manifest:
    """Return both, where the second wins; mappings and named lists are merged item by item."""
    found = dict(one)
    for name, value in other.items():
        before = found.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            found[name] = merged(before, value)
        elif isinstance(before, list) and isinstance(value, list) and name in _KEYS:
            found[name] = _joined(before, value, _KEYS[name])
        else:
            found[name] = value
    return found


def _joined(one: list[Any], other: list[Any], key: str) -> list[Any]:
    found = {item.get(key): item for item in one}
    for item in other:
        found[item.get(key)] = merged(found.get(item.get(key), {}), item)
    return list(found.values())


def _labels(label: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "pandaflow-pilot",
        "app.kubernetes.io/managed-by": "pandaflow-harvester",
        LABEL: label,
    }


def _marks(order: Order, name: str, settings: KubernetesSettings) -> Manifest:
    return {
        "labels": {**settings.labels, **_labels(order.label)},
        "annotations": {PILOT: name, QUEUE: order.queue},
    }


def _defaults(order: Order, settings: KubernetesSettings) -> Manifest:
    """Return what a site may want otherwise."""
    spec: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": math.ceil(settings.grace),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": settings.user,
            "runAsGroup": settings.user,
            "fsGroup": settings.user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **_chosen(settings),
        "containers": [_container(order, settings)],
        "volumes": [_scratch("work", settings.disk), _scratch("tmp", settings.disk)],
    }
    if order.shape.walltime:
        spec["activeDeadlineSeconds"] = math.ceil(order.shape.walltime) + _SPARE
    return {"spec": spec}


def _chosen(settings: KubernetesSettings) -> Manifest:
    pulls = [{"name": name} for name in settings.image_pull_secrets]
    said = {
        "serviceAccountName": settings.service_account,
        "priorityClassName": settings.priority_class,
        "nodeSelector": settings.node_selector,
        "imagePullSecrets": pulls,
    }
    return {key: value for key, value in said.items() if value}


def _scratch(name: str, size: str) -> Manifest:
    return {"name": name, "emptyDir": {"sizeLimit": size} if size else {}}


def _container(order: Order, settings: KubernetesSettings) -> Manifest:
    found: Manifest = {
        "name": CONTAINER,
        "image": settings.image,
        "env": [{"name": "HOME", "value": _WORK}],
        "resources": _resources(order, settings),
        # A first SIGTERM lets a pilot finish what it runs, which takes longer than the cluster
        # waits. With the one that follows it gives its jobs back at once.
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", "kill -TERM 1; sleep 1"]}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "work", "mountPath": _WORK},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if settings.image_pull_policy:
        found["imagePullPolicy"] = settings.image_pull_policy
    return found


def _resources(order: Order, settings: KubernetesSettings) -> Manifest:
    shape = order.shape
    hard: dict[str, str] = {}
    if shape.memory:
        hard["memory"] = str(shape.memory + settings.pilot_memory)
    if shape.gpus:
        hard[settings.gpu] = str(shape.gpus)
    cores = {"cpu": str(shape.cores)}
    disk = {"ephemeral-storage": settings.disk} if settings.disk else {}
    limits = {**cores, **hard} if settings.cpu_limit else hard
    found = {"requests": {**cores, **disk, **hard}, "limits": limits}
    return {key: value for key, value in found.items() if value}


def _required(order: Order, name: str, settings: KubernetesSettings) -> Manifest:
    """Return what makes a pod this pilot."""
    container: Manifest = {
        "name": CONTAINER,
        "command": [_literal(word) for word in order.program],
        "args": _arguments(order, name),
        "env": [{"name": key, "value": _literal(value)} for key, value in order.env.items()],
    }
    spec: Manifest = {"restartPolicy": "Never", "containers": [container]}
    if order.token_file or order.ca:
        container["volumeMounts"] = [{"name": "pandaflow", "mountPath": _SECRETS, "readOnly": True}]
        source = {
            "secretName": settings.secret or secret_name(order.label),
            "defaultMode": 0o440,
        }
        spec["volumes"] = [{"name": "pandaflow", "secret": source}]
    return {"metadata": _marks(order, name, settings), "spec": spec}


def _arguments(order: Order, name: str) -> list[str]:
    words = order.command(
        name,
        token_file=f"{_SECRETS}/{TOKEN}" if order.token_file else "",
        ca=f"{_SECRETS}/{AUTHORITIES}" if order.ca else "",
        workdir=order.workdir or _WORK,
    )
    return [_literal(word) for word in words[len(order.program) :]]


def _literal(text: str) -> str:
    """Return a text of which the cluster makes this one: it replaces ``$(NAME)`` and ``$$``."""
    return text.replace("$", "$$")
