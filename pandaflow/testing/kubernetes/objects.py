"""The objects of the stand-in, and the verbs on them."""

from __future__ import annotations

import copy
import itertools
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

from pandaflow.testing.kubernetes import rules

Thing = dict[str, Any]
KINDS: Mapping[str, tuple[str, str]] = {
    "jobs": ("batch/v1", "Job"),
    "pods": ("v1", "Pod"),
    "secrets": ("v1", "Secret"),
    "events": ("v1", "Event"),
}
_REASONS = {
    404: "NotFound",
    409: "AlreadyExists",
    410: "Expired",
    422: "Invalid",
    401: "Unauthorized",
}


class Failure(Exception):
    """An answer that is a ``Status`` of failure."""

    def __init__(self, code: int, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.code, self.message = code, message
        self.reason = reason or _REASONS.get(code, "InternalError")


class Objects:
    """What there is, by kind and name, in one namespace.

    Attributes
    ----------
    changed : threading.Condition
        Held around all changes, and notified after them.
    """

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.changed = threading.Condition(threading.RLock())
        self._all: dict[tuple[str, str], Thing] = {}
        self._version = itertools.count(1)

    def create(self, kind: str, body: Thing) -> Thing:
        """Keep a new object."""
        try:
            rules.check(body)
        except rules.Invalid as error:
            raise Failure(422, f"{kind} is invalid: {error}") from error
        name = body["metadata"]["name"]
        with self.changed:
            if (kind, name) in self._all:
                raise Failure(409, f'{kind} "{name}" already exists')
            return self._keep(kind, name, body)

    def apply(self, kind: str, name: str, body: Thing) -> Thing:
        """Create an object or replace what is said of it."""
        with self.changed:
            if (kind, name) not in self._all:
                return self.create(kind, body)
            found = self._all[kind, name]
            found |= {key: value for key, value in body.items() if key != "metadata"}
            self.touch(found)
            return copy.deepcopy(found)

    def get(self, kind: str, name: str) -> Thing:
        """Return an object."""
        with self.changed:
            if (kind, name) not in self._all:
                raise Failure(404, f'{kind} "{name}" not found')
            return copy.deepcopy(self._all[kind, name])

    def page(self, kind: str, query: Mapping[str, str]) -> Thing:
        """Return a page of the objects that the selectors choose."""
        with self.changed:
            names = sorted(name for one, name in self._all if one == kind)
            chosen = [self._all[kind, name] for name in names]
            found = [copy.deepcopy(one) for one in chosen if _selected(one, query)]
        first, size = int(query.get("continue") or 0), int(query.get("limit") or len(found) or 1)
        rest = str(first + size) if first + size < len(found) else ""
        version, name = KINDS[kind]
        return {
            "apiVersion": version,
            "kind": f"{name}List",
            "metadata": {"resourceVersion": str(next(self._version)), "continue": rest},
            "items": found[first : first + size],
        }

    def delete(self, kind: str, name: str) -> Thing:
        """Mark an object as going; who runs it takes it away when it has ended."""
        with self.changed:
            self.get(kind, name)
            found = self._all[kind, name]
            if kind in ("jobs", "pods"):
                found["metadata"].setdefault("deletionTimestamp", moment())
                self.touch(found)
            else:
                self.remove(kind, name)
            return copy.deepcopy(found)

    def all(self, kind: str) -> list[Thing]:
        """Return the objects themselves; hold :attr:`changed`."""
        return [thing for (one, _), thing in self._all.items() if one == kind]

    def add(self, kind: str, body: Thing) -> Thing:
        """Keep an object of the cluster's own making, and return it itself."""
        with self.changed:
            self._keep(kind, body["metadata"]["name"], body)
            return self._all[kind, body["metadata"]["name"]]

    def remove(self, kind: str, name: str) -> None:
        """Take an object away."""
        with self.changed:
            self._all.pop((kind, name), None)
            self.changed.notify_all()

    def touch(self, thing: Thing) -> None:
        """Tell that an object has changed; hold :attr:`changed`."""
        thing["metadata"]["resourceVersion"] = str(next(self._version))
        self.changed.notify_all()

    def _keep(self, kind: str, name: str, body: Thing) -> Thing:
        found = copy.deepcopy(body)
        version, word = KINDS[kind]
        found |= {"apiVersion": version, "kind": word}
        found["metadata"] |= {
            "namespace": self.namespace,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": moment(),
        }
        self._all[kind, name] = found
        self.touch(found)
        return copy.deepcopy(found)


def moment() -> str:
    """Return the time as Kubernetes writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _selected(thing: Thing, query: Mapping[str, str]) -> bool:
    labels = thing["metadata"].get("labels", {})
    return all(labels.get(k) == v for k, v in _pairs(query.get("labelSelector", ""))) and all(
        _field(thing, k) == v for k, v in _pairs(query.get("fieldSelector", ""))
    )


def _pairs(text: str) -> list[tuple[str, str]]:
    found = [part.replace("==", "=").partition("=") for part in text.split(",") if part]
    if any(not equals or key.endswith("!") for key, equals, _ in found):
        raise Failure(400, f"the stand-in knows no selector {text!r}", "BadRequest")
    return [(key, value) for key, _, value in found]


def _field(thing: Any, path: str) -> Any:
    for key in path.split("."):
        thing = thing.get(key, {})
    return thing
