"""The service, a broker and endpoints together, and how SDKs find them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from unittest import mock

from globus_compute_sdk.sdk import executor

from pandaflow.testing.daemons import Daemons, system_path
from pandaflow.testing.globus.broker import RabbitMQ
from pandaflow.testing.globus.endpoint import Endpoint
from pandaflow.testing.globus.environment import endpoint_environment
from pandaflow.testing.globus.service import GlobusService
from pandaflow.testing.globus.tokens import CLIENT_ID, CLIENT_SECRET

_REDIRECT = Path(__file__).parent / "redirect"


class Globus:
    """The service, and as many endpoints as asked for; use it as a context manager.

    Parameters
    ----------
    rabbitmq
        A running broker.
    programs
        Folder of ``globus-compute-endpoint``. None: of this environment, or of one that is made
        at the first endpoint and kept (`endpoint_environment`).

    Attributes
    ----------
    service : GlobusService
        The stand-in: faults, limits, log, status.
    rabbitmq : RabbitMQ
        The broker.
    env : dict[str, str]
        Environment in which the SDK of another process uses the stand-in, signed in by client
        credentials.
    """

    def __init__(self, rabbitmq: RabbitMQ, *, programs: Path | None = None) -> None:
        self.rabbitmq = rabbitmq
        self.service = GlobusService(rabbitmq.url)
        self._programs = programs
        self._endpoints: dict[str, Endpoint] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Globus:
        with ExitStack() as stack:
            stack.enter_context(self.service)
            self._daemons = Daemons("pf-globus-")
            stack.callback(self._daemons.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def env(self) -> dict[str, str]:
        """Environment for a process whose SDK is to use the stand-in."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("GLOBUS_")}
        path = [str(_REDIRECT), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"PYTHONPATH": os.pathsep.join(path), "PATH": system_path()}
        return kept | own | self._variables()

    @contextmanager
    def here(self) -> Iterator[None]:
        """Let the SDK of this process use the stand-in, signed in by client credentials.

        Clients that are made meanwhile keep their address. At the end, environment variables are
        restored, and the SDK's threads that wait for results are stopped: their futures end as
        cancelled.
        """
        address = mock.patch(
            "globus_compute_sdk.sdk.client.get_web_service_url",
            lambda envname=None: self.service.url,
        )
        with address, mock.patch.dict(os.environ, self._variables()):
            try:
                yield
            finally:
                _stop_watchers()

    def endpoint(
        self, name: str = "main", environment: Mapping[str, str] | None = None
    ) -> Endpoint:
        """Return the endpoint of this name, started when it does not run.

        Parameters
        ----------
        name
            Of the endpoint.
        environment
            More variables for its user endpoints and their workers; looked at when the endpoint
            is made.
        """
        if name not in self._endpoints:
            programs = self._programs or endpoint_environment() / "bin"
            more = environment or {}
            made = Endpoint(name, self.service, self._daemons, self.env, programs, more)
            self._endpoints[name] = made
        endpoint = self._endpoints[name]
        if not endpoint.alive():
            endpoint.start()
        return endpoint

    def reset(self) -> None:
        """Undo faults and limits, and empty the log. Endpoints stay as they are."""
        self.service.reset()

    def _variables(self) -> dict[str, str]:
        return {
            "PANDAFLOW_GLOBUS_URL": self.service.url,
            "GLOBUS_SDK_SERVICE_URL_AUTH": f"{self.service.url}/",
            "GLOBUS_COMPUTE_CLIENT_ID": CLIENT_ID,
            "GLOBUS_COMPUTE_CLIENT_SECRET": CLIENT_SECRET,
            "GLOBUS_COMPUTE_USER_DIR": str(self._daemons.folder / "sdk"),
        }


def _stop_watchers() -> None:
    # The SDK keeps one thread and one connection for each task group until the process ends,
    # whatever is shut down, and offers no other way to them.
    for watcher in tuple(executor._RESULT_WATCHERS.values()):
        watcher.shutdown(cancel_futures=True)  # type: ignore[no-untyped-call]
