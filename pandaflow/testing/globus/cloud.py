"""What the service knows: functions, endpoints, tasks and task groups, in memory only."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import EPStatusReport, Result

from pandaflow.testing.globus import wire
from pandaflow.testing.globus.bus import Bus, Message
from pandaflow.testing.globus.http import Refused
from pandaflow.testing.globus.limits import Limits

_Record = TypeVar("_Record")
#: Heartbeats that an endpoint may miss before it counts as offline.
MISSED_HEARTBEATS = 3


@dataclass(frozen=True)
class Function:
    """A registered function: its code as endpoints want it, and what was registered."""

    code: str
    registered: dict[str, Any]


@dataclass
class EndpointRecord:
    """What is known of an endpoint, or of a user endpoint.

    Parameters
    ----------
    id
        UUID.
    registered
        What it registered with; for a user endpoint, its configuration.
    parent
        The endpoint that starts it, of a user endpoint.
    """

    id: str
    registered: dict[str, Any]
    parent: str | None = None
    locked: bool = False
    forced_offline: bool = False
    last_report: float = 0.0
    period: float = 0.0
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def online(self) -> bool:
        """Whether its heartbeats come; it says itself when it shuts down."""
        patience = MISSED_HEARTBEATS * self.period
        return not self.forced_offline and time.monotonic() < self.last_report + patience

    def report(self, state: dict[str, Any]) -> None:
        """Note a heartbeat."""
        self.last_report = time.monotonic()
        self.period = float(state.get("heartbeat_period") or 0)
        self.state = state


@dataclass
class TaskRecord:
    """A task; `answer` is what the web routes say of it."""

    id: str
    group: str
    user_endpoint: str
    answer: dict[str, Any]

    @property
    def open(self) -> bool:
        """Whether it has no result yet."""
        return self.answer["completion_t"] is None


@dataclass
class TaskGroup:
    """Tasks that were submitted under one id; `queue` where their results are sent, too."""

    tasks: list[str] = field(default_factory=list)
    queue: bool = False


class Cloud:
    """The state of the service, and what changes it."""

    def __init__(self, url: str, limits: Limits) -> None:
        self.limits = limits
        self.bus = Bus(url, {"results": self._on_result, "heartbeats": self._on_heartbeat})
        self.functions: dict[str, Function] = {}
        self.endpoints: dict[str, EndpointRecord] = {}
        self.user_endpoints: dict[str, EndpointRecord] = {}
        self.tasks: dict[str, TaskRecord] = {}
        self.groups: dict[str, TaskGroup] = {}
        self._lock = threading.RLock()

    # --- endpoints and functions -----------------------------------------------------------

    def register_endpoint(self, endpoint: str | None, about: dict[str, Any]) -> dict[str, Any]:
        """Register an endpoint, or one that starts again; return where its queues are."""
        identifier = endpoint or str(uuid.uuid4())
        with self._lock:
            known = self.endpoints.setdefault(identifier, EndpointRecord(identifier, about))
            known.registered, known.locked = about, False
        self.bus.declare(wire.command_queue(identifier), "commands")
        return wire.registration(self.bus.url, identifier)

    def register_function(self, about: dict[str, Any]) -> str:
        """Register a function; return its new UUID, however often it was registered before."""
        try:
            code = str(about["function_code"])
            if not about.get("serialized", True):
                code = wire.source_code(about["function_name"], code)
        except KeyError as missing:
            raise Refused(400, "REQUEST_MALFORMED", f"no {missing}") from missing
        identifier = str(uuid.uuid4())
        with self._lock:
            self.functions[identifier] = Function(code, about)
        return identifier

    def endpoint(self, identifier: str) -> EndpointRecord:
        """Look up an endpoint, or a user endpoint; refuse with 404."""
        found = self.endpoints.get(identifier) or self.user_endpoints.get(identifier)
        return _found(found, "ENDPOINT_NOT_FOUND", identifier)

    def function(self, identifier: str) -> Function:
        """Look up a function; refuse with 404."""
        return _found(self.functions.get(identifier), "FUNCTION_NOT_FOUND", identifier)

    def task(self, identifier: str) -> TaskRecord:
        """Look up a task; refuse with 404."""
        return _found(self.tasks.get(identifier), "TASK_NOT_FOUND", identifier)

    def group(self, identifier: str) -> TaskGroup:
        """Look up a task group; refuse with 404."""
        return _found(self.groups.get(identifier), "TASK_GROUP_NOT_FOUND", identifier)

    # --- submission ------------------------------------------------------------------------

    def submit(self, endpoint: str, given: dict[str, Any]) -> dict[str, Any]:
        """Accept all tasks of a submission, or none; return their ids in the order given."""
        functions = self._checked(endpoint, given)
        config = given.get("user_endpoint_config") or {}
        user = wire.user_endpoint(endpoint, config)
        group = str(given.get("task_group_id") or uuid.uuid4())
        self._open_queues(endpoint, user[1], config, group, bool(given.get("create_queue")))
        command = wire.start_command(
            self.bus.url, endpoint, user, config, given.get("user_runtime")
        )
        ids: dict[str, list[str]] = {}
        messages: list[Message] = [command]
        for name, payloads in given["tasks"].items():
            ids[name] = [self._add_task(group, user[1]) for _ in payloads]
            messages += (
                wire.task_message(user[1], task, name, functions[name].code + payload, given)
                for task, payload in zip(ids[name], payloads, strict=True)
            )
        self.bus.publish(messages)
        accepted = {"request_id": str(uuid.uuid4()), "task_group_id": group}
        return accepted | {"endpoint_id": endpoint, "tasks": ids}

    def _checked(self, endpoint: str, given: dict[str, Any]) -> dict[str, Function]:
        record = self.endpoint(endpoint)
        if record.locked:
            raise Refused(423, "ENDPOINT_LOCKED", f"endpoint {endpoint} was stopped")
        tasks = given.get("tasks")
        if not isinstance(tasks, dict) or not tasks:
            raise Refused(400, "REQUEST_MALFORMED", "no tasks")
        allowed = record.registered.get("allowed_functions")
        for name in tasks:
            if allowed and name not in allowed:
                raise Refused(403, "FUNCTION_NOT_PERMITTED", f"function {name} is not allowed")
        return {name: self.function(name) for name in tasks}

    def _open_queues(
        self, endpoint: str, user: str, config: dict[str, Any], group: str, wanted: bool
    ) -> None:
        with self._lock:
            known = self.groups.setdefault(group, TaskGroup())
            self.user_endpoints.setdefault(user, EndpointRecord(user, config, endpoint))
            known.queue |= wanted
        if wanted:
            self.bus.declare(wire.RESULT_QUEUES + group)
        self.bus.declare(wire.task_queue(user), "tasks")

    def _add_task(self, group: str, user: str) -> str:
        task = str(uuid.uuid4())
        answer = {"task_id": task, "status": "waiting-for-ep", "completion_t": None}
        with self._lock:
            self.tasks[task] = TaskRecord(task, group, user, answer)
            self.groups[group].tasks.append(task)
        return task

    # --- what endpoints say ----------------------------------------------------------------

    def _on_result(self, body: bytes) -> None:
        result = _unpack(body)
        if not isinstance(result, Result):
            return
        size, limit = len(result.data), self.limits.result_bytes
        if size > limit:
            reason = f"the result has {size} bytes; the limit is {limit}"
            result = wire.failure(str(result.task_id), "RESULT_TOO_LARGE", reason)
            body = messagepack.pack(result)
        self._finish(result, body)

    def _finish(self, result: Result, body: bytes) -> None:
        """Store a result, and send it to whoever waits; later ones for the task are dropped."""
        failed = bool(result.is_error)
        with self._lock:
            task = self.tasks.get(str(result.task_id))
            if task is None or not task.open:
                return
            task.answer |= {
                "status": "failed" if failed else "success",
                "completion_t": str(time.time()),
                "exception" if failed else "result": result.data,
            }
            if result.details is not None:
                task.answer["details"] = result.details
        if self.groups[task.group].queue:
            properties = {"timestamp": int(time.time())}
            self.bus.publish([Message("", wire.RESULT_QUEUES + task.group, body, properties)])

    def _on_heartbeat(self, body: bytes) -> None:
        report = _unpack(body)
        if not isinstance(report, EPStatusReport):
            return
        endpoint, state = str(report.endpoint_id), report.global_state
        with self._lock:
            record = self.endpoints.get(endpoint) or self.user_endpoints.get(endpoint)
            if record:
                record.report(state)
            self._note_transitions(report.task_statuses or {})
            broken = self._open_tasks(endpoint) if state.get("error") else []
        for task in broken:
            result = wire.failure(task.id, "ENDPOINT_FAILED", str(state["error"]))
            self._finish(result, messagepack.pack(result))

    def _note_transitions(self, statuses: dict[str, Any]) -> None:
        for identifier, transitions in statuses.items():
            task = self.tasks.get(str(identifier))
            if task and task.open and transitions:
                task.answer["status"] = transitions[-1].state.name.lower()

    def _open_tasks(self, user_endpoint: str) -> list[TaskRecord]:
        tasks: Iterable[TaskRecord] = self.tasks.values()
        return [task for task in tasks if task.user_endpoint == user_endpoint and task.open]


def _found(record: _Record | None, code: str, identifier: str) -> _Record:
    if record is None:
        raise Refused(404, code, f"there is no {identifier}")
    return record


def _unpack(body: bytes) -> object:
    try:
        message: object = messagepack.unpack(body)
    except (ValueError, TypeError):
        return None  # nobody's message: the queue must not stop for it
    return message
