"""Serves the application until it is told to stop."""

from __future__ import annotations

import gc
import logging
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import uvicorn

from pandaflow.grid.auth.policy import load_policy
from pandaflow.grid.auth.tls import server_context, with_certificates
from pandaflow.grid.pool import Pool
from pandaflow.server.app import make_app
from pandaflow.server.desk import RunDesk
from pandaflow.server.protocol import patient
from pandaflow.server.service import Service
from pandaflow.server.settings import ServerSettings
from pandaflow.store.database import Database
from pandaflow.store.sql import SqlStore

#: Seconds to wait for somebody else's lock in the database.
_LOCK_SECONDS = 30.0
#: Seconds for requests under way when the server is told to stop.
_GRACE = 10
_BACKLOG = 4096
#: Seconds after which a thread lets others run: Python's own 5 ms are long for one that has its
#: answer from the database, and is waited for by many.
_TURN = 0.0005
#: Objects more than before, after which young ones are looked through, and how often for older and
#: for all.
_RINGS = (20_000, 20, 1_000)
_log = logging.getLogger(__name__)


def serve(settings: ServerSettings, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; requests under way are answered first.

    Parameters
    ----------
    settings : ServerSettings
    ready : callable
        Is called with the server's URL when it takes connections.

    Raises
    ------
    WorkflowError, PolicyError, TlsError
        The settings are no good.
    StoreError
        The database cannot be used.
    OSError
        The address is not to be had.
    """
    settings.check()
    policy = load_policy(settings.policy) if settings.policy else None
    database = Database(settings.store, _LOCK_SECONDS)
    store = SqlStore(settings.store, timeout=_LOCK_SECONDS)
    try:
        pool = Pool(database)
        desk = RunDesk(store, pool, settings.limits, settings.results)
        service = Service(pool, desk, settings, policy)
        config = _config(settings, service)
        _tune()
        with _listen(settings) as listener:
            _Server(config, service, lambda: ready(url_of(settings, listener))).run([listener])
    finally:
        store.close()
        database.dispose()


def _tune() -> None:
    """Let this process, which does nothing else, keep nobody waiting."""
    sys.setswitchinterval(_TURN)
    # Looking through all objects for rings takes half a second where 10,000 pilots are connected;
    # what was made so far stays, and what requests leave behind is young.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_RINGS)


class _Server(uvicorn.Server):
    """Uvicorn that answers long polls at once when it is told to stop."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._ready = service, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.wake_all()
        await super().shutdown(sockets)


def _config(settings: ServerSettings, service: Service) -> uvicorn.Config:
    protocol = patient(settings.limits)
    context = None
    if settings.tls_cert is not None:
        context = server_context(settings.tls_cert, settings.tls_key, settings.client_ca)
    return uvicorn.Config(
        make_app(service, pilot_archive()),
        http=with_certificates(protocol) if settings.client_ca else protocol,
        ws="none",
        loop="uvloop",
        lifespan="on",
        proxy_headers=settings.behind_proxy,
        forwarded_allow_ips=settings.proxies,
        server_header=False,
        access_log=False,
        log_config=None,
        backlog=_BACKLOG,
        timeout_keep_alive=int(settings.limits.idle_seconds),
        timeout_graceful_shutdown=_GRACE,
        ssl_context_factory=None if context is None else lambda *_: context,
    )


def _listen(settings: ServerSettings) -> socket.socket:
    """Return a listening socket; a port that was just left may be taken again."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    return socket.create_server(
        (settings.host, settings.port), family=family, backlog=_BACKLOG, reuse_port=False
    )


def url_of(settings: ServerSettings, listener: socket.socket) -> str:
    """Return the address at which a server is reached."""
    scheme = "https" if settings.tls_cert else "http"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{scheme}://{host}:{listener.getsockname()[1]}"


def pilot_archive() -> bytes | None:
    """Return the pilot as one executable file; None: it is not installed here."""
    try:
        from pandaflow_pilot.archive import build
    except ImportError:
        return None
    with tempfile.TemporaryDirectory(prefix="pandaflow-pilot-") as folder:
        built: Path = build(Path(folder) / "pandaflow-pilot.pyz")
        return built.read_bytes()


def announce(url: str, settings: ServerSettings) -> list[str]:
    """Return what an operator should know when the server has begun."""
    lines = [f"pandaflow server: listening on {url}"]
    if settings.anonymous:
        lines.append(
            "pandaflow server: ANONYMOUS MODE: every program on this machine may submit, read, "
            "cancel and run anything here. Give --policy FILE for anything but a trial."
        )
    return lines
