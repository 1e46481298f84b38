"""What Kubernetes says of Jobs and pods, as states of pilots; no input or output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pandaflow.core.errors import SiteError
from pandaflow.harvester.kubernetes.manifest import CONTAINER, PILOT
from pandaflow.harvester.submitter import PilotState

Seen = Mapping[str, Any]
_LONGEST = 500


def name_of(thing: Seen) -> str:
    """Return the name of an object.

    Raises
    ------
    SiteError
        It has none.
    """
    try:
        return str(thing["metadata"]["name"])
    except (KeyError, TypeError) as error:
        raise SiteError("the cluster answers with objects without names", transient=True) from error


def pilot_of(job: Seen) -> str:
    """Return the name of a Job's pilot."""
    return str(_part(job, "metadata", "annotations").get(PILOT) or name_of(job))


def by_job(pods: Iterable[Seen]) -> dict[str, list[Seen]]:
    """Return pods by the names of the Jobs that own them."""
    found: dict[str, list[Seen]] = {}
    for pod in pods:
        for owner in _list(_part(pod, "metadata").get("ownerReferences")):
            if owner.get("kind") == "Job":
                found.setdefault(str(owner.get("name")), []).append(pod)
    return found


def state_of(job: Seen, pods: Sequence[Seen]) -> PilotState:
    """Return the state of a pilot from its Job and that Job's pods."""
    newest = max(pods, key=_begun, default=None)
    for condition in _list(_part(job, "status").get("conditions")):
        if condition.get("status") == "True" and condition.get("type") in ("Complete", "Failed"):
            return _ended(condition, newest)
    if newest is None:
        return _without_pod(job)
    return _deleted(_of_pod(newest)) if _leaving(job) else _of_pod(newest)


def _ended(condition: Seen, pod: Seen | None) -> PilotState:
    if condition.get("type") == "Complete":
        return PilotState(phase="gone", code=0)
    told = PilotState(phase="gone") if pod is None else _over(pod)
    # That the back-off limit is reached follows from any failure.
    plain = condition.get("reason") in ("BackoffLimitExceeded", None)
    own = "" if plain and told.reason else _said(condition)
    reason = "; ".join(text for text in (told.reason, own) if text)
    return PilotState(phase="gone", code=told.code, reason=reason[:_LONGEST])


def _without_pod(job: Seen) -> PilotState:
    if _leaving(job):
        return PilotState(phase="gone", reason="deleted")
    if _part(job, "spec").get("suspend"):
        return PilotState(phase="waiting", reason="suspended")
    return PilotState(phase="waiting")


def _deleted(state: PilotState) -> PilotState:
    if state.phase == "gone":
        return state
    return PilotState(phase="running", reason="is being deleted")


def _of_pod(pod: Seen) -> PilotState:
    phase = _part(pod, "status").get("phase")
    if phase in ("Succeeded", "Failed"):
        return _over(pod)
    if phase == "Running":
        return PilotState(phase="running", reason="is being deleted" if _leaving(pod) else "")
    if phase == "Unknown":
        # Its node does not answer; it may well go on.
        return PilotState(phase="running", reason="the node does not answer")
    return PilotState(phase="waiting", reason=_why_waiting(pod)[:_LONGEST])


def _why_waiting(pod: Seen) -> str:
    for status in _containers(pod):
        waiting = _part(status, "state", "waiting")
        if waiting and waiting.get("reason") not in ("ContainerCreating", "PodInitializing"):
            return _said(waiting)
    for condition in _list(_part(pod, "status").get("conditions")):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return _said(condition)
    return ""


def _over(pod: Seen) -> PilotState:
    """Return how a pod has ended: what became of it as a whole, and of its container."""
    reasons = [_said(_part(pod, "status"))]
    code: int | None = None
    for status in _containers(pod):
        end = _part(status, "state", "terminated")
        if not end or end.get("exitCode") == 0:
            continue
        if code is None or status.get("name") == CONTAINER:
            code = _code(end.get("exitCode"))
        reasons.append(_said({**end, "reason": _worth(end.get("reason"))}))
    if code is None and _part(pod, "status").get("phase") == "Succeeded":
        code = 0
    text = "; ".join(reason for reason in reasons if reason)
    return PilotState(phase="gone", code=code, reason=text[:_LONGEST])


def _worth(reason: object) -> object:
    # What the exit code says as well.
    return "" if reason == "Error" else reason


def _code(number: object) -> int | None:
    """Return an exit code; the one of a container that a signal ended is 128 and the signal."""
    if not isinstance(number, int):
        return None
    return 128 - number if 128 < number <= 192 else number


def _said(thing: Seen) -> str:
    words = (str(thing.get(key) or "").strip() for key in ("reason", "message"))
    return ": ".join(word.replace("\n", " | ") for word in words if word)


def _containers(pod: Seen) -> list[Seen]:
    status = _part(pod, "status")
    keys = ("initContainerStatuses", "containerStatuses")
    return [item for key in keys for item in _list(status.get(key))]


def _begun(pod: Seen) -> str:
    # Times are written so that they sort as text.
    return str(_part(pod, "metadata").get("creationTimestamp") or "")


def _leaving(thing: Seen) -> bool:
    return bool(_part(thing, "metadata").get("deletionTimestamp"))


def _part(thing: Seen, *keys: str) -> Seen:
    for key in keys:
        found = thing.get(key)
        if not isinstance(found, Mapping):
            return {}
        thing = found
    return thing


def _list(value: object) -> list[Seen]:
    if not isinstance(value, list):
        return []
    return [item for item in value if isinstance(item, Mapping)]
