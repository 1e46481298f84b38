"""WebDAV stores over TLS, certificates, tokens; a real XRootD."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="no cryptography: extra 'server'")

from pandaflow.testing.xrootd import XRootD, XRootDMissing
from pandaflow_pilot import storage, transfer
from pandaflow_pilot.transfer import TransferError
from tests.unit.grid.auth_certificates import Authority

VARIABLES = (
    "X509_USER_PROXY", "X509_USER_CERT", "X509_USER_KEY", "X509_CERT_DIR", "BEARER_TOKEN",
    "BEARER_TOKEN_FILE",
)  # fmt: skip
DATA = b"data of a store" * 1_000


def fine() -> None:
    pass


class Door(BaseHTTPRequestHandler):
    server: Store

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        there = self.connection.getpeercert(binary_form=True)  # type: ignore[attr-defined]
        self.server.asked.append((self.path, self.headers.get("Authorization"), bool(there)))
        if self.server.elsewhere and self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", self.server.elsewhere)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        self.wfile.write(DATA)


class Store(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), Door)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.asked: list[tuple[str, str | None, bool]] = []
        self.elsewhere = ""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *words: object) -> None:
        pass


@pytest.fixture
def authority(tmp_path, monkeypatch) -> Authority:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    found = Authority()
    folder = tmp_path / "authorities"
    folder.mkdir()
    found.save(folder / "ca.pem")
    subprocess.run(["openssl", "rehash", folder], check=True)
    monkeypatch.setenv("X509_CERT_DIR", str(folder))
    return found


@pytest.fixture
def stores(authority, tmp_path) -> Iterator[tuple[Store, Store]]:
    chain = authority.issue(("CN", "localhost")).save(tmp_path / "host.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    context.load_verify_locations(capath=str(tmp_path / "authorities"))
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VERIFY_ALLOW_PROXY_CERTS
    pair = Store(context), Store(context)
    threads = [threading.Thread(target=one.serve_forever, args=(0.02,)) for one in pair]
    for thread in threads:
        thread.start()
    yield pair
    for one, thread in zip(pair, threads, strict=True):
        one.shutdown()
        thread.join()
        one.server_close()


def bring(url: str, folder: Path) -> bytes:
    transfer.fetch(url, str(folder / "x"), fine, storage.scheme_of(url))
    return (folder / "x").read_bytes()


@pytest.mark.parametrize("scheme", ["davs", "https"])
def test_a_token_is_for_the_store_alone(stores, tmp_path, monkeypatch, scheme):
    (tmp_path / "token").write_text("secret-token\n")
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(tmp_path / "token"))
    first, second = stores
    first.elsewhere = f"https://{second.host}/pool"
    assert bring(f"{scheme}://{first.host}/moved", tmp_path) == DATA
    assert first.asked == [("/moved", "Bearer secret-token", False)]
    assert second.asked == [("/pool", None, False)]


def test_a_proxy_certificate(stores, authority, tmp_path, monkeypatch):
    proxy = authority.issue(("CN", "Alice")).proxy().save(tmp_path / "proxy.pem")
    monkeypatch.setenv("X509_USER_PROXY", str(proxy))
    monkeypatch.setenv("BEARER_TOKEN", "not-needed")
    assert bring(f"davs://{stores[0].host}/x", tmp_path) == DATA
    assert stores[0].asked == [("/x", None, True)]


def test_a_store_that_nobody_vouches_for(stores, tmp_path, monkeypatch):
    monkeypatch.delenv("X509_CERT_DIR")
    monkeypatch.setenv("BEARER_TOKEN", "secret-token")
    with pytest.raises(TransferError, match="CERTIFICATE_VERIFY_FAILED") as caught:
        bring(f"davs://{stores[0].host}/x", tmp_path)
    assert "secret-token" not in str(caught.value) and stores[0].asked == []


def test_credentials_that_cannot_be_read(authority, tmp_path, monkeypatch):
    (tmp_path / "proxy").write_text("no certificate, but a secret")
    monkeypatch.setenv("X509_USER_PROXY", str(tmp_path / "proxy"))
    with pytest.raises(TransferError, match="cannot be used") as caught:
        bring("davs://store/x", tmp_path)
    assert "secret" not in str(caught.value) and not caught.value.transient
    monkeypatch.delenv("X509_USER_PROXY")
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(tmp_path / "none"))
    with pytest.raises(TransferError, match="BEARER_TOKEN_FILE"):
        bring("https://store/x", tmp_path)


@pytest.fixture(scope="module")
def xrootd() -> Iterator[XRootD]:
    try:
        server = XRootD()
    except XRootDMissing as error:
        pytest.skip(str(error))
    with server:
        yield server


def test_xrootd(xrootd, tmp_path):
    (tmp_path / "in").write_bytes(DATA)
    transfer.store(str(tmp_path / "in"), f"{xrootd.url}/d/x", fine)
    assert (xrootd.folder / "d" / "x").read_bytes() == DATA
    transfer.fetch(f"{xrootd.url}/d/x", str(tmp_path / "out"), fine)
    assert (tmp_path / "out").read_bytes() == DATA
    transfer.fetch(f"{xrootd.http}/d/x", str(tmp_path / "web"), fine)
    assert (tmp_path / "web").read_bytes() == DATA
    with pytest.raises(TransferError) as caught:
        transfer.fetch(f"{xrootd.url}/none", str(tmp_path / "none"), fine)
    assert caught.value.missing and not (tmp_path / "none").exists()


def test_an_xrootd_that_is_away(xrootd, tmp_path, monkeypatch):
    monkeypatch.setenv("XRD_CONNECTIONWINDOW", "1")
    monkeypatch.setenv("XRD_CONNECTIONRETRY", "1")
    (xrootd.folder / "x").write_bytes(DATA)
    xrootd.stop()
    try:
        with pytest.raises(TransferError) as caught:
            transfer.fetch(f"{xrootd.url}/x", str(tmp_path / "x"), fine)
    finally:
        xrootd.start()
    assert caught.value.transient and not caught.value.missing
    transfer.fetch(f"{xrootd.url}/x", str(tmp_path / "x"), fine)
    assert (tmp_path / "x").read_bytes() == DATA
