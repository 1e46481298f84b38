"""What users say about their endpoints, checked once."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, TypeAlias

from pandaflow.core.brokerage import Site
from pandaflow.core.errors import WorkflowError
from pandaflow.executors.remote import wire

#: Bytes: of a request (the service takes 5 MB), and of a result (workers refuse above 10 MiB).
REQUEST_BYTES, RESULT_BYTES = 4_000_000, 10 * 2**20
#: Requests in so many seconds that the service takes from one client.
RATE = (20, 10.0)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint, and what may be asked of it.

    Parameters
    ----------
    id : str
        UUID of the endpoint.
    config : mapping, optional
        ``user_endpoint_config``: what its template asks for. JSON values.
    slots : int
        One-core jobs to run there at once; more are kept here.
    site : Site, optional
        Its name, and what one of its nodes has. Nodes are what one job may ask for; not said: 1.

    Raises
    ------
    WorkflowError
        Says what is wrong.
    """

    id: str
    _: KW_ONLY
    config: Mapping[str, Any] = field(default_factory=dict)
    slots: int = 4
    site: Site | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", _identifier(self.id))
        object.__setattr__(self, "config", _config(self.config))
        _whole("slots", self.slots, 1)
        said = self.site or Site(self.id)
        object.__setattr__(self, "site", replace(said, nodes=said.nodes or 1))

    @property
    def place(self) -> Site:
        """Its description for brokerage."""
        assert self.site is not None  # __post_init__ has made one
        return self.site

    @property
    def name(self) -> str:
        """What people call it."""
        return self.place.name

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from others: the same endpoint configured otherwise is another."""
        return self.id, json.dumps(self.config, sort_keys=True)


EndpointLike: TypeAlias = str | uuid.UUID | Site | Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobusSettings:
    """Endpoints, and how to use them.

    Attributes
    ----------
    endpoints : tuple of Endpoint
    data : str
        Folder or fsspec URL that driver and workers reach, for what is too large for the
        service; empty: there is none.
    client : globus_compute_sdk.Client or None
        None: one is made, with the SDK's own sign-in.
    task_timeout : float or None
        Seconds that a job may take which says no walltime, waiting at the endpoint included;
        after it, it counts as lost. None: for ever.
    poll_seconds : float
        Between two looks at the status of endpoints and tasks.
    heartbeat : float
        Seconds between heartbeats of the endpoints, where they do not tell.
    request_bytes, result_bytes : int
        What one request, and one result, may take.
    request_tasks : int
        Tasks in one request at most.
    rate : tuple of (int, float)
        Requests in so many seconds at most.
    workdir : str
        On the workers, root of the jobs' work directories; empty: their temporary directory.

    Raises
    ------
    WorkflowError
        Names the setting.
    """

    endpoints: tuple[Endpoint, ...]
    data: str = ""
    client: Any = None
    task_timeout: float | None = None
    poll_seconds: float = 10.0
    heartbeat: float = 30.0
    request_bytes: int = REQUEST_BYTES
    result_bytes: int = RESULT_BYTES
    request_tasks: int = 500
    rate: tuple[int, float] = RATE
    workdir: str = ""

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise WorkflowError("give an endpoint's id, or several as endpoints=[...]")
        names = [endpoint.name for endpoint in self.endpoints]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise WorkflowError(f"endpoints: {twice[0]!r} is there twice; give them names: Site")
        for name in ("poll_seconds", "heartbeat", "task_timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise WorkflowError(f"{name}={value!r}: give a number of seconds above 0")
        _whole("request_bytes", self.request_bytes, 10_000)
        _whole("result_bytes", self.result_bytes, 10_000)
        _whole("request_tasks", self.request_tasks, 1)
        for name in ("data", "workdir"):
            value = getattr(self, name)
            if not isinstance(value, str) or (value and not value.isprintable()):
                raise WorkflowError(f"{name}={value!r}: give a folder or a URL")


def make_settings(
    endpoint_id: EndpointLike | None,
    config: Mapping[str, Any] | None,
    endpoints: Iterable[EndpointLike] | None,
    given: Mapping[str, Any],
) -> GlobusSettings:
    """Parse what a user gave.

    Parameters
    ----------
    endpoint_id : str, UUID, Site, Endpoint or None
    config : mapping or None
        For all endpoints that have none of their own.
    endpoints : iterable or None
    given : mapping
        ``slots``, ``nodes`` and ``cores`` for all endpoints, and fields of ``GlobusSettings``.

    Raises
    ------
    WorkflowError
        Names the setting.
    """
    rest = {name: value for name, value in given.items() if value is not None}
    sizes = [name for name in ("slots", "nodes", "cores") if name in rest]
    common: dict[str, Any] = {name: rest.pop(name) for name in sizes}
    known = set(GlobusSettings.__dataclass_fields__) - {"endpoints"}
    unknown = sorted(set(rest) - known)
    if unknown:
        said = ", ".join(sorted(known | {"slots", "nodes", "cores"}))
        raise WorkflowError(f"unknown setting {unknown[0]!r}; known are {said}")
    if isinstance(endpoints, str | Site | Endpoint | uuid.UUID):
        endpoints = [endpoints]
    listed = [*([] if endpoint_id is None else [endpoint_id]), *(endpoints or ())]
    if "data" in rest:
        data = str(rest["data"]).rstrip("/")
        rest["data"] = wire.local_path(data) or data
    parsed = tuple(_endpoint(each, config or {}, common) for each in listed)
    return GlobusSettings(endpoints=parsed, **rest)


def _endpoint(
    given: EndpointLike, config: Mapping[str, Any], common: Mapping[str, Any]
) -> Endpoint:
    if isinstance(given, Endpoint):
        return given if given.config else replace(given, config=config)
    if isinstance(given, Site):
        if given.queue is None:
            raise WorkflowError(f"site {given.name!r}: give the endpoint's id as its queue")
        slots = common.get("slots") or (given.nodes or 1) * (given.cores or 4)
        return Endpoint(given.queue, config=config, slots=slots, site=given)
    identifier = _identifier(given)
    site = Site(identifier, nodes=common.get("nodes"), cores=common.get("cores"))
    return Endpoint(identifier, config=config, slots=common.get("slots", 4), site=site)


def _identifier(value: object) -> str:
    try:
        return str(uuid.UUID(str(value)))
    except ValueError:
        raise WorkflowError(
            f"endpoint {value!r} is no UUID; `globus-compute-endpoint list` shows the ids"
        ) from None


def _config(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise WorkflowError(f"user_endpoint_config={value!r}: give a dict")
    try:
        json.dumps(dict(value))
    except (TypeError, ValueError) as error:
        raise WorkflowError(f"user_endpoint_config takes JSON values only: {error}") from None
    return dict(value)


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise WorkflowError(f"{name}={value!r}: give a whole number of at least {least}")


def names_of(endpoints: Sequence[Endpoint]) -> str:
    """Return the names of endpoints for people."""
    return ", ".join(endpoint.name for endpoint in endpoints)
