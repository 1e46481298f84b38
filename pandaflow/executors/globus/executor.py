"""The executor on Globus Compute, as users make it: ``GlobusCompute(endpoint_id, data=...)``."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from pandaflow.executors.globus.flights import Facts
from pandaflow.executors.globus.settings import EndpointLike, make_settings, names_of
from pandaflow.ports import Report, Session


class GlobusCompute:
    """Runs jobs on endpoints of Globus Compute.

    Functions need PandaFlow on the endpoint, of this version. Under another minor version of
    Python, only those run that both sides import, ``pf.task(module.function)``: byte code does not
    travel. Commands run on any endpoint.

    Parameters
    ----------
    endpoint_id : str, UUID, Endpoint or Site, optional
        The endpoint; a ``Site`` has its id as ``queue``.
    user_endpoint_config : mapping, optional
        What the endpoint's template asks for.
    endpoints : sequence, optional
        Several endpoints: jobs go to the one that does best.
    slots : int, optional
        One-core jobs to run at once at each endpoint that does not say; default 4.
    nodes, cores : int, optional
        Nodes that one job may have, and cores of a node. Without ``nodes``, one.
    data : str, optional
        Folder or fsspec URL that driver and workers reach, for what is too large for the service;
        jobs there can be stopped at once, and are seen to start.
    client : globus_compute_sdk.Client, optional
        Default: one is made when a run begins, with the SDK's own sign-in.
    task_timeout : float, optional
        Seconds that a job without walltime may take, waiting included, before it counts as lost.
    **settings
        ``poll_seconds``, ``heartbeat``, ``request_bytes``, ``result_bytes``, ``request_tasks``,
        ``rate``, ``workdir``: see :class:`~pandaflow.executors.globus.settings.GlobusSettings`.

    Raises
    ------
    WorkflowError
        Names the setting.

    Notes
    -----
    The service cannot cancel tasks, so jobs are stopped by marks: files ``BUNDLE.stop``, which each
    job looks for while it runs. They are in ``data``; without it, in ``~/.pandaflow/RUN`` at the
    endpoint, where a task leaves them. That task needs a worker, so give an endpoint more workers
    than ``slots``, or ``data``, if you want to cancel jobs that run. A person with an account there
    can leave a mark as well: ``touch ~/.pandaflow/RUN/BUNDLE.stop``.

    Examples
    --------
    >>> import pandaflow as pf
    >>> pf.executors.GlobusCompute("4b116d3c-1703-4f8f-9f6f-39921e5864df", slots=64)
    GlobusCompute(4b116d3c-1703-4f8f-9f6f-39921e5864df)
    """

    #: Jobs may ask for several nodes: endpoints with an MPI engine have them.
    multi_node = True

    def __init__(
        self,
        endpoint_id: EndpointLike | None = None,
        *,
        user_endpoint_config: Mapping[str, Any] | None = None,
        endpoints: Iterable[EndpointLike] | None = None,
        **settings: Any,
    ) -> None:
        self.settings = make_settings(endpoint_id, user_endpoint_config, endpoints, settings)
        self._facts: dict[tuple[str, str], Facts] = {}
        self._client: Any = None
        self._lock = threading.Lock()

    def open(self, run_id: str, results: str, report: Report) -> Session:
        """Begin to work for a run.

        Raises
        ------
        SiteError
            No SDK, nobody is signed in, or an endpoint cannot be used; says what to do.
        """
        from pandaflow.executors.globus.link import make_client
        from pandaflow.executors.globus.session import GlobusSession

        with self._lock:
            if self._client is None:
                self._client = make_client(self.settings.client)
        return GlobusSession(self.settings, self._client, self._facts, run_id, results, report)

    def __repr__(self) -> str:
        return f"GlobusCompute({names_of(self.settings.endpoints)})"
