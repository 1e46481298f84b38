"""A server that trusts some: over TLS, by certificates, and what it says to others."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator

import httpx
import pytest
from cryptography import x509

import pandaflow as pf
from pandaflow.core.errors import SiteError
from pandaflow.grid.auth.credentials import BearerToken, Nobody
from pandaflow.grid.auth.secret import Secret
from pandaflow.grid.http import GridClient
from pandaflow.store.spec import dump_workflow
from pandaflow.testing.grid import GridServer
from tests.acceptance.authority import Authority

POLICY = """
[[issuers]]
name = "nobody"
issuer = "https://127.0.0.1:1/"
audience = ["pool"]
client_id = "cli"

[[rules]]
certificates = ["/O=grid/CN=ada"]
vo = "atlas"
roles = ["user"]

[[rules]]
certificates = ["/O=grid/CN=otto"]
vo = "atlas"
roles = ["operator", "pilot"]

[[rules]]
certificates = ["/O=grid/CN=eve"]
vo = "cms"
roles = ["user", "operator", "pilot"]
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[GridServer]:
    policy = authority.folder / "policy.toml"
    policy.write_text(POLICY)
    host = authority.issue("host", x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    options = ["--policy", policy, "--tls-cert", host, "--client-ca", authority.folder / "ca.pem"]
    with GridServer(options=[str(option) for option in options]) as running:
        assert running.url.startswith("https://")
        yield running


def somebody(server: GridServer, authority: Authority, common: str | None) -> httpx.Client:
    context = ssl.create_default_context(cafile=authority.folder / "ca.pem")
    if common is not None:
        context.load_cert_chain(authority.issue(common))
    return httpx.Client(base_url=f"{server.url}/api/v1", verify=context, timeout=30)


def test_nobody_in_particular_is_told_to_sign_in(server: GridServer, authority: Authority) -> None:
    with somebody(server, authority, None) as http:
        for method, path in [
            ("GET", "/whoami"),
            ("GET", "/pool"),
            ("POST", "/pilot/acquire"),
            ("POST", "/pilot/update"),
            ("GET", "/metrics"),
            ("GET", "/pool/%00/bundles"),
        ]:
            answer = http.request(method, path)
            assert answer.status_code == 401, (path, answer.text)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.headers["content-type"] == "application/problem+json"
        assert http.get("/health").status_code == 200
        assert http.get("/auth").json()["issuers"][0]["client_id"] == "cli"
    assert not any("ANONYMOUS" in line for line in server.said)


def test_a_bad_token_is_refused_and_never_repeated(
    server: GridServer, authority: Authority
) -> None:
    token = "eyJhbGciOiJub25lIn0.eyJpc3MiOiJ4In0.c2VjcmV0"
    credentials = BearerToken(Secret(token))
    with GridClient(server.url, credentials, ca=authority.folder / "ca.pem") as client:
        with pytest.raises(SiteError, match="401") as caught:
            client.runs()
    assert not caught.value.transient
    assert token not in str(caught.value) and token not in "".join(server.said)


def test_a_server_of_an_unknown_authority_is_not_talked_to(server: GridServer) -> None:
    with GridClient(server.url, Nobody()) as client, pytest.raises(SiteError, match="ca="):
        client.health()


def test_certificates_say_who_one_is_and_what_one_may_do(
    server: GridServer, authority: Authority
) -> None:
    with (
        somebody(server, authority, "ada") as ada,
        somebody(server, authority, "otto") as otto,
        somebody(server, authority, "eve") as eve,
        somebody(server, authority, "mallory") as mallory,
    ):
        told = ada.get("/whoami").json()
        assert (told["vo"], told["roles"]) == ("atlas", ["user"])
        assert mallory.get("/whoami").status_code == 403
        assert ada.put("/queues/q", json={"vos": ["atlas"]}).status_code == 403
        assert otto.put("/queues/q", json={"vos": ["atlas"]}).status_code == 200
        assert ada.put("/pool/mine").status_code == 204
        assert ada.get("/pool").json()[0]["run"] == "mine"
        # Another VO does not even hear that it is there.
        assert eve.get("/pool").json() == []
        for method, path in [("GET", "/pool/mine/bundles"), ("DELETE", "/pool/mine")]:
            assert eve.request(method, path).status_code == 404
        assert eve.get("/pool/mine/events", params={"seconds": 0}).status_code == 404
        asked = {"pilot": "p", "queue": "q"}
        assert ada.post("/pilot/acquire", json=asked).status_code == 403
        assert ada.post("/pilot/update", json={"pilot": "p"}).status_code == 403
        assert otto.post("/pilot/acquire", json=asked).status_code == 200
        assert eve.post("/pilot/acquire", json=asked).status_code == 403
        assert ada.get("/metrics").status_code == 403
        assert otto.get("/metrics").status_code == 200


def test_unsafe_settings_do_not_start() -> None:
    for options, why in [
        (["--host", "0.0.0.0"], "--policy"),
        (["--behind-proxy"], "--policy"),
    ]:
        with pytest.raises(RuntimeError, match=why), GridServer(options=options):
            pass


def test_a_run_is_its_owners_to_change_and_its_vos_to_see(
    server: GridServer, authority: Authority
) -> None:
    body = b"a pickled function, for all that the server knows"
    wish = {"kind": "cancel"}
    with (
        somebody(server, authority, "ada") as ada,
        somebody(server, authority, "otto") as otto,
        somebody(server, authority, "eve") as eve,
        somebody(server, authority, None) as nobody,
    ):
        made = pf.workflow(lambda: pf.task(abs, name="work")(1), name="works")()
        for name in made._trace.blobs:
            assert ada.put(f"/runs/hers/blobs/{name}", content=body).status_code == 204
        spec = {"spec": dump_workflow(made._spec)}
        assert eve.put("/runs/hers", json=spec).status_code == 422  # she has uploaded nothing
        assert ada.put("/runs/hers", json=spec).status_code == 204
        paths = [
            path.replace("{run}", "hers").replace("{bundle}", "1").replace("{number}", "1")
            for path, methods in ada.get("/openapi.json").json()["paths"].items()
            if path.startswith("/api/v1/runs/{run}") and "get" in methods
        ]
        query = {"task": "work", "index": 0, "kind": "x", "seconds": 0}
        for path in [path.replace("{name}", name).removeprefix("/api/v1") for path in paths]:
            assert eve.get(path, params=query).status_code == 404, path
            assert nobody.get(path, params=query).status_code == 401, path
            assert otto.get(path, params=query).status_code in (200, 404), path
        assert [row["submitter"] for row in otto.get("/runs").json()] == ["/O=grid/CN=ada"]
        assert eve.get("/runs").json() == [] and eve.get("/runs/last").status_code == 404
        assert eve.post("/runs/hers/requests", json=wish).status_code == 404
        assert nobody.post("/runs/hers/requests", json=wish).status_code == 401
        assert ada.post("/runs/hers/requests", json=wish).status_code == 200
        assert otto.post("/runs/hers/requests", json=wish).status_code == 200
        asked = [row["body"]["by"] for row in ada.get("/runs/hers/requests").json()]
        assert len(set(asked)) == 2 and not any("eve" in by for by in asked)
        assert ada.get(f"/runs/hers/files/{name}").content == body
