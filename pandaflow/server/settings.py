"""What the operator of a server may choose, checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pandaflow.core.errors import WorkflowError
from pandaflow.grid.auth.web import is_loopback


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a server takes; beyond it says so and goes on.

    Attributes
    ----------
    connections : int
        Open at once.
    waiting : int
        Questions, and reports, that wait for the database; more are told to come again (503).
    held_bytes : int
        Of all bodies in memory at once.
    rate : float
        Requests a second of one identity, over some seconds; 0: any.
    burst : float
        Requests that may come at once.
    blob_bytes : int
        Of one thing that a run brings along: a pickled function, the items of a source.
    upload_bytes : int
        Of all that a run brings along.
    upload_files : int
        Things that a run brings along.
    spec_bytes : int
        Of a workflow's specification.
    head_bytes : int
        Of a request's line and headers.
    head_seconds : float
        For them to arrive.
    body_seconds : float
        For a body to arrive, and a second more for each 20 kB of it.
    idle_seconds : float
        That a connection stays open between requests.
    """

    connections: int = 12_000
    waiting: int = 10_000
    held_bytes: int = 512_000_000
    rate: float = 5_000.0
    burst: float = 10_000.0
    blob_bytes: int = 1_000_000_000
    upload_bytes: int = 4_000_000_000
    upload_files: int = 20_000
    spec_bytes: int = 64_000_000
    head_bytes: int = 64_000
    head_seconds: float = 20.0
    body_seconds: float = 30.0
    idle_seconds: float = 75.0


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of one instance.

    Attributes
    ----------
    store : str
        SQLAlchemy URL of the state store; all instances of one pool share it.
    results : str
        Folder or fsspec URL where runs that are left here keep their results, the same for all
        instances and runners; empty: beside the store.
    host : str
    port : int
        0: any that is free.
    tls_cert, tls_key : Path or None
        The server's certificate chain and key, PEM.
    client_ca : Path or None
        Authorities whose client certificates are taken.
    behind_proxy : bool
        A proxy in front of it does TLS; its word for the client's address is taken.
    proxies : str
        Addresses of such proxies, with commas.
    policy : Path or None
        Whom to trust; None: anybody, which is for loopback only.
    care_seconds : float
        Between two rounds of the pool's own care.
    upload_seconds : float
        After which an upload that became no run is thrown away.
    gather_seconds : float
        Between two transactions of the same kind at least, unless many requests wait: those that
        arrive meanwhile share one. The first after a pause does not wait.
    limits : Limits
    """

    store: str
    results: str = ""
    host: str = "127.0.0.1"
    port: int = 8790
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    behind_proxy: bool = False
    proxies: str = "127.0.0.1,::1"
    policy: Path | None = None
    care_seconds: float = 2.0
    upload_seconds: float = 86_400.0
    gather_seconds: float = 0.01
    limits: Limits = field(default_factory=Limits)

    @property
    def anonymous(self) -> bool:
        """Whether anybody may do anything."""
        return self.policy is None

    def check(self) -> None:
        """Refuse what would be unsafe or makes no sense.

        Raises
        ------
        WorkflowError
        """
        near = is_loopback(self.host)
        if self.anonymous and (not near or self.behind_proxy):
            raise WorkflowError(
                "a server without --policy takes orders from anybody: it may listen on "
                "127.0.0.1 only, and not behind a proxy. Give --policy FILE "
                "(pandaflow server --example-policy shows one)"
            )
        if not (near or self.behind_proxy or self.tls_cert):
            raise WorkflowError(
                f"tokens would travel in clear to {self.host}: give --tls-cert and --tls-key, or "
                "--behind-proxy where a proxy does TLS"
            )
        if (self.tls_key or self.client_ca) and not self.tls_cert:
            raise WorkflowError("--tls-key and --client-ca need --tls-cert")
        if self.client_ca and self.anonymous:
            raise WorkflowError("--client-ca needs --policy: it says who certificates stand for")
