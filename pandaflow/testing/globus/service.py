"""A stand-in of the hosted web service of Globus Compute, for tests.

The unmodified SDK and the unmodified endpoint work with it, through a real RabbitMQ. It is *not*
the hosted service, and nothing but a test ground:

- no Globus Auth: client credentials of one made-up client, any scope, one identity; no log-in by
  browser, no consents, no refresh tokens, tokens are random words;
- no permissions: everybody may use every function and endpoint; policies, groups, subscriptions,
  high assurance and roles are accepted and ignored;
- no persistence: all of it is in the memory of this process, results are kept until the end and
  no task is ever abandoned for its age;
- limits are the published ones, but how the hosted service words its refusals, and in which order
  it checks, is not published: status codes are to be trusted, texts are not;
- nothing is encrypted: HTTP and AMQP in plain, on 127.0.0.1.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pandaflow.testing.globus import tokens, wire
from pandaflow.testing.globus.bus import AWAY
from pandaflow.testing.globus.cloud import Cloud, EndpointRecord, TaskRecord
from pandaflow.testing.globus.faults import Faults, LoggedRequest, RequestLog
from pandaflow.testing.globus.http import Answer, Call, JsonServer, Refused, Route
from pandaflow.testing.globus.limits import Limits, RateGate

_VERSIONS = {
    "api": "1.0.0",
    "min_sdk_version": "2.0.0",
    "min_ep_version": "2.0.0",
    "ep": "4.19.0",
}
#: Routes that need no access token.
_OPEN_TO_ALL = frozenset({"version", "token", "revoke", "unknown"})


class GlobusService:
    """The web service on a free port of 127.0.0.1; use it as a context manager.

    Parameters
    ----------
    broker_url
        AMQP URL of a RabbitMQ, for the service, SDKs and endpoints.
    limits
        What it refuses; may be replaced at any time.

    Attributes
    ----------
    limits : Limits
        What it refuses.
    faults : Faults
        Faults to come.
    log : RequestLog
        What it was asked.
    tokens : tokens.Tokens
        Access tokens; `tokens.issue()` makes one for ``AccessTokenAuthorizer``.
    """

    def __init__(self, broker_url: str, limits: Limits | None = None) -> None:
        self.faults = Faults()
        self.log = RequestLog()
        self.tokens = tokens.Tokens()
        self._cloud = Cloud(broker_url, limits or Limits())
        self._gate = RateGate()
        self._routes = tuple(self._all_routes())
        self._server: JsonServer | None = None
        self._port = 0

    def __enter__(self) -> GlobusService:
        self._cloud.bus.start()
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self._cloud.bus.close()

    # --- for tests -------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def limits(self) -> Limits:
        """What it refuses."""
        return self._cloud.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._cloud.limits = limits

    def start(self) -> None:
        """Listen; again on the same port after a `stop`."""
        self._server = JsonServer(self._port, self._answer)
        self._port = self._server.server_port
        self._server.start()

    def stop(self) -> None:
        """Stop to listen and cut all connections. What is known is kept. May be called twice."""
        server, self._server = self._server, None
        if server:
            server.close()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Keep the web service away for a while; the broker and endpoints go on."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def reset(self) -> None:
        """Forget faults, log, counted requests and lowered limits; keep what is registered."""
        self.faults.clear()
        self.log.clear()
        self._gate.clear()
        self.limits = Limits()
        for record in (*self._cloud.endpoints.values(), *self._cloud.user_endpoints.values()):
            record.forced_offline = False

    def online(self, endpoint: str, since: float = 0.0) -> bool:
        """Whether an endpoint, or user endpoint, sends heartbeats; one after `since`.

        `since` is a time of the monotonic clock.
        """
        record = self._cloud.endpoint(endpoint)
        return record.online and record.last_report >= since

    def force_offline(self, endpoint: str, offline: bool = True) -> None:
        """Say of an endpoint that it is offline, whatever it does; or stop to say so."""
        self._cloud.endpoint(endpoint).forced_offline = offline

    def user_endpoints(self, endpoint: str) -> list[EndpointRecord]:
        """Return the user endpoints that an endpoint was asked to start."""
        return [one for one in self._cloud.user_endpoints.values() if one.parent == endpoint]

    def task_group(self, group: str) -> list[TaskRecord]:
        """Return the tasks of a task group, in the order of submission."""
        return [self._cloud.task(task) for task in self._cloud.group(group).tasks]

    def task(self, task: str) -> TaskRecord:
        """Return one task."""
        return self._cloud.task(task)

    def tasks(self) -> list[TaskRecord]:
        """Return all tasks ever accepted, in the order of submission."""
        return list(self._cloud.tasks.values())

    def forget_functions(self) -> None:
        """Lose every registered function, as a service that has expired them."""
        self._cloud.functions.clear()

    # --- requests --------------------------------------------------------------------------

    def _answer(self, call: Call) -> Answer:
        found = ((route, ids) for route in self._routes if (ids := route.match(call)) is not None)
        route, ids = next(found, (_UNKNOWN, ()))
        fault = self.faults.take(route.name)
        if fault.status:
            refusal = Refused(
                fault.status, "INJECTED_FAULT", "a test asked for it", retry_after=fault.retry_after
            )
            answer = _refusal(refusal)
        else:
            answer = self._act(route, ids, call)
        if fault.drop:
            answer = Answer(0, None)
        self._note(route, call, answer)
        return answer

    def _act(self, route: Route, ids: tuple[str, ...], call: Call) -> Answer:
        try:
            if route.name not in _OPEN_TO_ALL:
                self._gate.check(self.limits, route.name, self.tokens.client(call))
            self.limits.check_size(route.name, call.size)
            return Answer(200, route.act(*ids, call))
        except Refused as error:
            return _refusal(error)
        except AWAY as error:
            return _refusal(Refused(503, "SERVICE_UNAVAILABLE", f"no broker: {error!r}"))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            return _refusal(Refused(400, "REQUEST_MALFORMED", repr(error)))

    def _note(self, route: Route, call: Call, answer: Answer) -> None:
        agent = call.headers.get("User-Agent", "")
        self.log.add(
            LoggedRequest(
                route.name, call.method, call.path, answer.status, call.size, agent, time.time()
            )
        )

    def _all_routes(self) -> Iterator[Route]:
        yield from self._sign_in_routes()
        yield from self._endpoint_routes()
        yield from self._function_routes()
        yield from self._task_routes()

    def _sign_in_routes(self) -> Iterator[Route]:
        yield Route("version", "GET", "/v2/version", lambda call: _VERSIONS)
        yield Route("token", "POST", "/v2/oauth2/token", self.tokens.grant)
        yield Route("revoke", "POST", "/v2/oauth2/token/revoke", lambda call: {"active": False})
        yield Route("userinfo", "GET", "/v2/oauth2/userinfo", lambda call: tokens.userinfo())
        yield Route("identities", "GET", "/v2/api/identities", lambda call: tokens.identities())

    def _endpoint_routes(self) -> Iterator[Route]:
        register = self._cloud.register_endpoint
        for version in ("v2", "v3"):
            base = f"/{version}/endpoints"
            yield Route("register_endpoint", "POST", base, lambda call: register(None, call.data))
            yield Route("lock_endpoint", "POST", f"{base}/{{id}}/lock", self._lock_endpoint)
        yield Route(
            "update_endpoint", "PUT", "/v3/endpoints/{id}", lambda id, call: register(id, call.data)
        )
        yield Route("endpoints", "GET", "/v2/endpoints", self._list_endpoints)
        yield Route("endpoint", "GET", "/v2/endpoints/{id}", self._describe_endpoint)
        yield Route("endpoint_status", "GET", "/v2/endpoints/{id}/status", self._endpoint_status)
        yield Route("delete_endpoint", "DELETE", "/v2/endpoints/{id}", self._delete_endpoint)
        allowed = "/v3/endpoints/{id}/allowed_functions"
        yield Route("allowed_functions", "GET", allowed, self._allowed_functions)

    def _function_routes(self) -> Iterator[Route]:
        for version in ("v2", "v3"):
            path = f"/{version}/functions"
            yield Route("register_function", "POST", path, self._register_function)
        yield Route("function", "GET", "/v2/functions/{id}", self._describe_function)
        yield Route("delete_function", "DELETE", "/v2/functions/{id}", self._delete_function)

    def _task_routes(self) -> Iterator[Route]:
        yield Route("submit", "POST", "/v3/endpoints/{id}/submit", self._submit)
        yield Route("task", "GET", "/v2/tasks/{id}", lambda id, call: self._cloud.task(id).answer)
        yield Route("batch_status", "POST", "/v2/batch_status", self._batch_status)
        yield Route("task_group", "GET", "/v2/taskgroup/{id}", self._describe_group)
        path = "/v2/get_amqp_result_connection_url"
        yield Route("result_queue", "GET", path, self._result_queue)

    # --- what the routes answer ------------------------------------------------------------

    def _submit(self, endpoint: str, call: Call) -> dict[str, Any]:
        return self._cloud.submit(endpoint, call.data)

    def _result_queue(self, call: Call) -> dict[str, Any]:
        return {"queue_prefix": wire.RESULT_QUEUES, "connection_url": self._cloud.bus.url}

    def _batch_status(self, call: Call) -> dict[str, Any]:
        known = self._cloud.tasks
        wanted = [str(task) for task in call.data.get("task_ids", ())]
        return {"results": {task: known[task].answer for task in wanted if task in known}}

    def _describe_group(self, group: str, call: Call) -> dict[str, Any]:
        tasks = self._cloud.group(group).tasks
        return {"taskgroup_id": group, "tasks": [{"id": task} for task in tuple(tasks)]}

    def _list_endpoints(self, call: Call) -> list[dict[str, Any]]:
        return [_description(one) for one in tuple(self._cloud.endpoints.values())]

    def _describe_endpoint(self, endpoint: str, call: Call) -> dict[str, Any]:
        return _description(self._cloud.endpoint(endpoint))

    def _endpoint_status(self, endpoint: str, call: Call) -> dict[str, Any]:
        record = self._cloud.endpoint(endpoint)
        return {"status": "online" if record.online else "offline", "details": record.state}

    def _allowed_functions(self, endpoint: str, call: Call) -> dict[str, Any]:
        allowed = self._cloud.endpoint(endpoint).registered.get("allowed_functions") or []
        return {"endpoint_id": endpoint, "restricted": bool(allowed), "functions": allowed}

    def _lock_endpoint(self, endpoint: str, call: Call) -> dict[str, Any]:
        self._cloud.endpoint(endpoint).locked = True
        return {"result": 200}

    def _delete_endpoint(self, endpoint: str, call: Call) -> dict[str, Any]:
        self._cloud.endpoint(endpoint)
        self._cloud.endpoints.pop(endpoint, None)
        return {"result": 200}

    def _register_function(self, call: Call) -> dict[str, Any]:
        return {"function_uuid": self._cloud.register_function(call.data)}

    def _describe_function(self, function: str, call: Call) -> dict[str, Any]:
        return self._cloud.function(function).registered | {"function_uuid": function}

    def _delete_function(self, function: str, call: Call) -> dict[str, Any]:
        self._cloud.function(function)
        self._cloud.functions.pop(function, None)
        return {"result": 302}


def _no_route(call: Call) -> None:
    raise Refused(404, "NOT_FOUND", f"this stand-in does not serve {call.method} {call.path}")


_UNKNOWN = Route("unknown", "", "", _no_route)


def _refusal(error: Refused) -> Answer:
    body = {
        "status": "Failed",
        "code": error.code,
        "error_args": [],
        "reason": error.reason,
        "message": error.reason,
        "http_status_code": error.status,
    }
    if error.code == "invalid_client":  # of OAuth2, which has its own words
        body |= {"error": error.code, "error_description": error.reason}
    return Answer(error.status, body, error.retry_after)


def _description(record: EndpointRecord) -> dict[str, Any]:
    about = record.registered
    own = {"uuid": record.id, "name": about.get("endpoint_name"), "owner_id": tokens.IDENTITY}
    return about | own
