"""What the service puts into messages and answers, in the shapes of SDK and endpoint 4.19."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from typing import Any

from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Result, ResultErrorDetails, Task

from pandaflow.testing.globus.bus import Message
from pandaflow.testing.globus.tokens import IDENTITY, USERNAME

#: Of the names of result queues: followed by a task group.
RESULT_QUEUES = "tg."


def command_queue(endpoint: str) -> str:
    """Return the name of the queue on which an endpoint gets its commands."""
    return f"{endpoint}.commands"


def task_queue(user_endpoint: str) -> str:
    """Return the name of the queue on which a user endpoint gets its tasks."""
    return f"{user_endpoint}.tasks"


def publishing(url: str, kind: str, endpoint: str) -> dict[str, Any]:
    """Tell an endpoint how to publish results or heartbeats."""
    how = {
        "exchange": kind,
        "routing_key": f"{endpoint}.{kind}",
        "mandatory": True,
        "properties": {"delivery_mode": 2},
    }
    return {"connection_url": url, "exchange": kind, "queue": kind, "queue_publish_kwargs": how}


def registration(url: str, endpoint: str) -> dict[str, Any]:
    """Answer an endpoint that registered: its id and its queues."""
    return {
        "endpoint_id": endpoint,
        "task_id": str(uuid.uuid4()),
        "command_queue_info": {"connection_url": url, "queue": command_queue(endpoint)},
        "heartbeat_queue_info": publishing(url, "heartbeats", endpoint),
    }


def user_endpoint(endpoint: str, config: dict[str, Any]) -> tuple[str, str]:
    """Return name and id of the user endpoint for a configuration: one for each."""
    text = json.dumps(config, sort_keys=True)
    name = f"uep.{endpoint}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return name, str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def start_command(
    url: str, endpoint: str, user: tuple[str, str], config: dict[str, Any], runtime: Any
) -> Message:
    """Ask an endpoint to start a user endpoint, or to give a running one fresh credentials."""
    name, user_id = user
    credentials = {
        "endpoint_id": user_id,
        "task_queue_info": {"connection_url": url, "queue": task_queue(user_id)},
        "result_queue_info": publishing(url, "results", user_id),
        "heartbeat_queue_info": publishing(url, "heartbeats", user_id),
    }
    command = {
        "command": "cmd_start_endpoint",
        "args": [],
        "kwargs": {
            "name": name,
            "amqp_creds": credentials,
            "user_opts": config,
            "user_runtime": runtime or {},
        },
        "globus_effective_identity": IDENTITY,
        "globus_username": USERNAME,
        "globus_identity_set": [{"sub": IDENTITY, "username": USERNAME}],
    }
    # The endpoint refuses commands that are more than three minutes off its clock.
    properties = {"content_type": "application/json", "timestamp": int(time.time())}
    return Message("commands", command_queue(endpoint), json.dumps(command).encode(), properties)


def task_message(
    user_id: str, task: str, function: str, buffer: str, options: dict[str, Any]
) -> Message:
    """Send one task to a user endpoint; `buffer` is the function's code, then its arguments."""
    headers: dict[str, Any] = {"function_uuid": function, "task_uuid": task}
    if options.get("resource_specification"):
        headers["resource_specification"] = json.dumps(options["resource_specification"])
    if options.get("result_serializers"):
        headers["result_serializers"] = options["result_serializers"]
    body = messagepack.pack(Task(task_id=uuid.UUID(task), task_buffer=buffer))
    return Message("tasks", task_queue(user_id), body, {"headers": headers})


def failure(task: str, code: str, reason: str) -> Result:
    """Return the result of a task that the service gives up."""
    details = ResultErrorDetails(code=code, user_message=reason)
    return Result(task_id=uuid.UUID(task), data=reason, error_details=details)


def source_code(name: str, source: str) -> str:
    """Return source code as the endpoint unpacks it: the SDK leaves that to the service."""
    body = f"st\n{name}:{source}"
    return f"{len(body)}\n{body}"
