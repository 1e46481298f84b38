"""The SDK as a session uses it: sign-in, functions, submission, status, results.

``globus_compute_sdk`` is imported here and nowhere else, when a session opens. Its ``Executor``
ends when a submission fails; the next one goes on with the same task group.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pandaflow.core.errors import SiteError
from pandaflow.core.model import Resources
from pandaflow.executors.globus.functions import Function
from pandaflow.executors.globus.settings import Endpoint

logger = logging.getLogger("pandaflow.executors")

_SIGN_IN = (
    "not signed in to Globus Compute: run `globus-compute-endpoint login`, or "
    '`python -c "from globus_compute_sdk import Client; Client().app.login()"`, or set '
    "GLOBUS_COMPUTE_CLIENT_ID and GLOBUS_COMPUTE_CLIENT_SECRET for a service account"
)
#: Lines of a shell function's output that come back: all, for its script keeps them few.
_LINES = 1_000_000
#: Calls that the SDK may put into one request: ours are together already.
_TOGETHER = 100_000
#: HTTP statuses with which the service refuses something for good.
FINAL = frozenset({400, 403, 413, 422, 423})
#: Of the SDK's own throttle: it counts small submissions, and ours are paced already.
_BURST, _BURST_S = 8, 1


@dataclass(frozen=True, slots=True)
class Call:
    """A function and its arguments; ``size`` is what they take in a request."""

    function: Function
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    size: int = 0


@dataclass(frozen=True, slots=True)
class Health:
    """What the service says of an endpoint; ``heartbeat`` in seconds, 0 if it does not tell."""

    online: bool
    heartbeat: float = 0.0


@dataclass(frozen=True, slots=True)
class TaskState:
    """What the service says of a task; ``endpoint`` is the user endpoint that has run it."""

    status: str
    pending: bool
    result: Any = None
    endpoint: str = ""


def make_client(given: Any = None) -> Any:
    """Return a client that is signed in.

    Raises
    ------
    SiteError
        The SDK is not installed, nobody is signed in, or the service does not answer.
    """
    try:
        import globus_compute_sdk
        import globus_sdk
    except ImportError as error:
        raise SiteError(
            f"no Globus Compute SDK here ({error}); install it: pip install 'pandaflow[globus]'"
        ) from None
    try:
        client = given or globus_compute_sdk.Client(do_version_check=False)
        # A user's app would ask for a code on the terminal, with its first request.
        if isinstance(client.app, globus_sdk.UserApp) and client.app.login_required():
            raise SiteError(_SIGN_IN)
        if given is None:
            client.version_check()
    except (globus_sdk.GlobusError, OSError) as error:
        raise _refused(error, "Globus Compute") from error
    except ValueError as error:  # half of the client credentials
        raise SiteError(f"{_SIGN_IN} ({error})") from None
    return client


def _refused(error: BaseException, what: str) -> SiteError:
    """Say why the service did not do what it was asked."""
    status = http_status(error)
    if status in (401, 403):
        return SiteError(f"{what} refuses this identity ({short(error)}): {_SIGN_IN}")
    if status == 404:
        return SiteError(f"{what} is not known to Globus Compute: {short(error)}")
    return SiteError(f"{what} does not answer: {short(error)}", transient=True)


def http_status(error: BaseException | None) -> int:
    """Return the HTTP status behind an error; 0 if there is none."""
    status = getattr(error, "http_status", 0)
    return status if isinstance(status, int) else 0


def short(error: BaseException | None) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:600]


def specification(resources: Resources) -> dict[str, int] | None:
    """Return the ``resource_specification`` of jobs; None for those of one rank."""
    if not resources.parallel:
        return None
    return {
        "num_nodes": resources.nodes,
        "ranks_per_node": resources.ranks_per_node,
        "num_ranks": resources.nodes * resources.ranks_per_node,
    }


class Link:
    """A session's way to the service.

    Parameters
    ----------
    client : globus_compute_sdk.Client
    group : str, optional
        The task group to go on with; default: the service opens one.

    Notes
    -----
    ``submit`` and ``group`` are for one thread, the others for any.
    """

    def __init__(self, client: Any, group: str | None = None) -> None:
        self._client, self._group = client, group
        self._executor: Any = None
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        """Address of the service."""
        return str(self._client.web_service_address)

    @property
    def group(self) -> str | None:
        """The task group, once there is one."""
        if self._executor is not None and self._executor.task_group_id is not None:
            self._group = str(self._executor.task_group_id)
        return self._group

    def check(self, endpoint: Endpoint) -> Health:
        """Return the state of an endpoint, or say in an error what is wrong with it.

        Raises
        ------
        SiteError
            Not signed in, not allowed, no such endpoint; ``transient`` if there was no answer.
        """
        from globus_sdk import GlobusError

        try:
            return self.health(endpoint.id)
        except (GlobusError, OSError) as error:
            raise _refused(error, f"endpoint {endpoint.name}") from error

    def health(self, identifier: str) -> Health:
        """Return the state of an endpoint or a user endpoint.

        Raises
        ------
        globus_sdk.GlobusError
            The service does not answer, or refuses.
        """
        told = self._client.get_endpoint_status(identifier)
        details = told.get("details") or {}
        period = details.get("heartbeat_period") if isinstance(details, dict) else None
        return Health(told.get("status") == "online", float(period or 0.0))

    def register(self, function: Function) -> str:
        """Register a function; return its id.

        Raises
        ------
        SiteError
            The service did not take it.
        """
        from globus_sdk import GlobusError

        try:
            if function.source:
                registered = self._client.register_source_code(function.source, function.name)
            else:
                registered = self._client.register_function(_shell(function))
        except (GlobusError, OSError) as error:
            raise _refused(error, f"function {function.name}") from error
        return str(registered)

    def submit(
        self,
        endpoint: Endpoint,
        calls: Sequence[tuple[str, Call]],
        specification: Mapping[str, int] | None = None,
    ) -> list[Future[Any]]:
        """Hand calls to the SDK as one request, as far as it keeps them together.

        Parameters
        ----------
        endpoint : Endpoint
        calls : sequence of (str, Call)
            With the ids of their functions.
        specification : mapping, optional
            ``resource_specification``, for MPI engines.
        """
        executor = self._ready()
        executor.endpoint_id = endpoint.id
        executor.user_endpoint_config = dict(endpoint.config) or None
        executor.resource_specification = dict(specification) if specification else None
        futures: list[Future[Any]] = []
        for identifier, call in calls:
            try:
                future = executor.submit_to_registered_function(
                    identifier, call.args, dict(call.kwargs)
                )
            except RuntimeError as error:  # an earlier request of this group has just failed
                future = Future()
                future.set_exception(error)
            futures.append(future)
        return futures

    def _ready(self) -> Any:
        if self._executor is None:
            self._executor = _own_executor(
                client=self._client,
                task_group_id=self._group,
                batch_size=_TOGETHER,
                api_burst_limit=_BURST,
                api_burst_window_s=_BURST_S,
            )
            # Otherwise the SDK takes the group of an executor of the user's in this process.
            self._executor.task_group_id = self._group
        return self._executor

    def renew(self) -> None:
        """Leave an SDK executor that a failed submission has ended."""
        if self._executor is not None:
            self._group = self.group
            with suppress(RuntimeError):
                self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None

    def reload(self) -> list[Future[Any]]:
        """Return futures of all tasks of the group that nobody here waits for any more.

        Raises
        ------
        globus_sdk.GlobusError, ValueError, KeyError
            The service did not answer, or not as it should.
        """
        return list(self._ready().reload_tasks()) if self.group else []

    def states(self, tasks: Iterable[str]) -> dict[str, TaskState]:
        """Ask how tasks are; those that failed are left out, for their futures tell.

        Raises
        ------
        globus_sdk.GlobusError
            The service does not answer, or refuses.
        """
        told = self._client.get_batch_result(list(tasks))
        return {task: _state(state) for task, state in told.items()}

    def close(self) -> None:
        """End the SDK's threads; what it still waits for is forgotten."""
        executor, self._executor = self._executor, None
        if executor is None:
            return
        watcher = _watcher_of(executor)
        executor.shutdown(wait=False, cancel_futures=True)
        if watcher is not None:
            # Otherwise it would keep the process alive for as long as a lost task does not end,
            # which is for ever; the SDK has no other way to say this.
            watcher.shutdown(wait=False, cancel_futures=True)


def _watcher_of(executor: Any) -> Any:
    from globus_compute_sdk.sdk import executor as module

    watchers: Callable[..., Any] = getattr(module, "_RESULT_WATCHERS", {}).get
    return watchers(executor.task_group_id)


def _state(told: Mapping[str, Any]) -> TaskState:
    details = told.get("details") or {}
    endpoint = details.get("endpoint_id") if isinstance(details, dict) else None
    return TaskState(
        str(told.get("status", "")),
        bool(told.get("pending", True)),
        told.get("result"),
        str(endpoint or ""),
    )


def _shell(function: Function) -> Any:
    from globus_compute_sdk import ShellFunction

    # Braces of the command line must not meet str.format: it comes as an argument.
    return ShellFunction(
        "{line}",
        walltime=function.walltime,
        snippet_lines=_LINES,
        name=function.name,
        return_dict=True,
    )


def _own_executor(**settings: Any) -> Any:
    """Return an SDK executor that keeps its task group to itself.

    The SDK remembers the group that was set last for all executors to come: one of the user's own
    would share our queue of results, and lose some of them when our session ends.
    """
    import uuid

    from globus_compute_sdk import Executor

    class OwnExecutor(Executor):
        @property
        def task_group_id(self) -> Any:
            return self._task_group_id

        @task_group_id.setter
        def task_group_id(self, group: Any) -> None:
            self._task_group_id = uuid.UUID(str(group)) if group else None

    return OwnExecutor(**settings)
