from __future__ import annotations

import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pandaflow.grid.auth.tls import TlsError, client_chain, server_context, with_certificates
from pandaflow.grid.auth.x509 import identify
from pandaflow.testing.daemons import wait_until
from tests.unit.grid.auth_certificates import Authority, Identity

ALICE = "/DC=org/DC=example/CN=Alice"


async def tell(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer with the caller's subject."""
    chain = client_chain(scope)
    body = identify(chain, time.time()).subject.encode() if chain else b"nobody"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Served:
    url: str
    port: int
    folder: Path
    authority: Authority

    def ask(self, identity: Identity | None = None, version: str = "") -> str:
        with self.client(identity, version) as client:
            return client.get(self.url).text

    def client(self, identity: Identity | None = None, version: str = "") -> httpx.Client:
        context = ssl.create_default_context(cafile=self.folder / "ca.pem")
        if version:
            context.maximum_version = ssl.TLSVersion[version]
        if identity is not None:
            context.load_cert_chain(identity.save(self.folder / "client.pem"))
        return httpx.Client(verify=context, timeout=20)


@contextmanager
def serving(base: type, context: Callable[..., ssl.SSLContext]) -> Iterator[int]:
    config = uvicorn.Config(
        tell,
        port=0,
        http=with_certificates(base),
        ssl_context_factory=context,
        lifespan="off",
        log_config=None,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, "the server")
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module", params=[HttpToolsProtocol, H11Protocol], ids=["httptools", "h11"])
def served(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority()
    ca = authority.save(folder / "ca.pem")
    cert = authority.issue(("CN", "localhost")).save(folder / "server.pem")
    with serving(request.param, lambda *_: server_context(cert, None, ca)) as port:
        yield Served(f"https://localhost:{port}/", port, folder, authority)


def test_callers_without_a_certificate_are_let_in(served: Served) -> None:
    assert served.ask() == "nobody"


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_certificates_and_proxies_reach_the_application(served: Served, version: str) -> None:
    alice = served.authority.issue()
    assert served.ask(alice, version) == ALICE
    assert served.ask(alice.proxy(), version) == ALICE
    assert served.ask(alice.proxy().proxy(number="2"), version) == ALICE


def test_each_request_of_a_connection_has_it(served: Served) -> None:
    with served.client(served.authority.issue()) as client:
        assert [client.get(served.url).text for _ in range(3)] == [ALICE] * 3


def test_expired_and_foreign_ones_get_no_connection(served: Served) -> None:
    alice = served.authority.issue()
    others = [
        served.authority.issue(expired=True),
        alice.proxy(expired=True),
        Authority("Other CA").issue(),
        Authority("Other CA").issue().proxy(),
    ]
    for one in others:
        with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
            served.ask(one)


def test_a_resumed_session_has_its_identity_or_none(served: Served) -> None:
    alice = served.authority.issue().proxy().save(served.folder / "session.pem")
    kept, port = served.folder / "session.sess", f"localhost:{served.port}"
    argv = ["openssl", "s_client", "-connect", port, "-cert", alice, "-key", alice, "-quiet"]
    argv += ["-cert_chain", alice, "-CAfile", served.folder / "ca.pem", "-tls1_2", "-ign_eof"]
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    first, second = (
        subprocess.run([*argv, *more], input=request, capture_output=True, timeout=30, check=False)
        for more in (["-sess_out", kept], ["-sess_in", kept])
    )
    assert ALICE.encode() in first.stdout, first.stderr
    assert ALICE.encode() in second.stdout or b"nobody" in second.stdout, second.stderr


def test_withdrawn_certificates_get_no_connection(tmp_path: Path) -> None:
    authority = Authority()
    ca = authority.save(tmp_path / "ca.pem")
    cert = authority.issue(("CN", "localhost")).save(tmp_path / "server.pem")
    alice, lost = authority.issue(), authority.issue(("CN", "Lost"))
    crl = authority.withdraw(tmp_path / "crl.pem", lost)
    make = lambda *_: server_context(cert, None, ca, crl)  # noqa: E731
    with serving(HttpToolsProtocol, make) as port:
        one = Served(f"https://localhost:{port}/", port, tmp_path, authority)
        assert one.ask(alice.proxy()) == ALICE
        for gone in (lost, lost.proxy()):
            with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
                one.ask(gone)


def test_a_folder_of_authorities_will_do(tmp_path: Path) -> None:
    authority = Authority()
    folder = tmp_path / "certificates"
    folder.mkdir()
    authority.save(tmp_path / "ca.pem")
    authority.save(folder / "ca.pem")
    subprocess.run(["openssl", "rehash", folder], check=True, capture_output=True)
    cert = authority.issue(("CN", "localhost")).save(tmp_path / "server.pem")
    with serving(HttpToolsProtocol, lambda *_: server_context(cert, client_ca=folder)) as port:
        one = Served(f"https://localhost:{port}/", port, tmp_path, authority)
        assert one.ask(authority.issue().proxy()) == ALICE


def test_files_that_are_no_good_are_named(tmp_path: Path) -> None:
    with pytest.raises(TlsError, match=r"missing\.pem cannot be used for TLS"):
        server_context(tmp_path / "missing.pem")
    cert = Authority().issue().save(tmp_path / "server.pem")
    (tmp_path / "bad.pem").write_text("nothing")
    with pytest.raises(TlsError, match=r"bad\.pem"):
        server_context(cert, None, tmp_path / "bad.pem")
