"""Pilots that show who they are at a real server: their own tokens, and a policy that changes."""

from __future__ import annotations

import ipaddress
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from cryptography import x509

pytest.importorskip("fastapi", reason="no FastAPI: extra 'server'")

from pandaflow.cli.app import app
from pandaflow.testing.grid import GridServer
from tests.acceptance.authority import Authority
from tests.acceptance.grid_work import wait_for
from tests.acceptance.test_server_identity import POLICY

ASKED = {"pilot": "p", "queue": "q"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    return path


@pytest.fixture
def server(authority: Authority, policy: Path) -> Iterator[GridServer]:
    """A server with the queue ``q`` of the VO ``atlas``."""
    host = authority.issue("host", x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    options = ["--policy", policy, "--tls-cert", host, "--client-ca", authority.folder / "ca.pem"]
    with GridServer(options=[str(option) for option in options]) as running:
        with by_certificate(running, authority, "otto") as otto:
            assert otto.put("/queues/q", json={"vos": ["atlas"]}).status_code == 200
        yield running


def by_certificate(server: GridServer, authority: Authority, common: str) -> httpx.Client:
    context = ssl.create_default_context(cafile=authority.folder / "ca.pem")
    context.load_cert_chain(authority.issue(common))
    return httpx.Client(base_url=f"{server.url}/api/v1", verify=context, timeout=30)


def by_token(server: GridServer, authority: Authority, token: str) -> httpx.Client:
    context = ssl.create_default_context(cafile=authority.folder / "ca.pem")
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(
        base_url=f"{server.url}/api/v1", verify=context, timeout=30, headers=headers
    )


def made(server: GridServer, authority: Authority) -> str:
    with by_certificate(server, authority, "otto") as otto:
        answer = otto.post("/pilot/token", json=ASKED)
    assert answer.status_code == 200, answer.text
    assert 0 < answer.json()["seconds"] <= 6 * 3600
    return str(answer.json()["token"])


def test_a_pilot_s_own_token_does_what_pilots_do_and_nothing_else(
    server: GridServer, authority: Authority
) -> None:
    token = made(server, authority)
    with by_token(server, authority, token) as pilot:
        assert pilot.get("/whoami").json()["roles"] == ["pilot"]
        assert pilot.post("/pilot/acquire", json=ASKED).status_code == 200
        assert pilot.post("/pilot/update", json={"pilot": "p"}).status_code == 200
        for body in ({**ASKED, "pilot": "p2"}, {**ASKED, "queue": "other"}):
            for route in ("/pilot/acquire", "/pilot/token"):
                assert pilot.post(route, json=body).status_code == 403
        assert pilot.post("/pilot/update", json={"pilot": "p2"}).status_code == 403
        # Its holder is an operator, too: the token is not.
        for method, path in (
            ("GET", "/runs"),
            ("GET", "/queues"),
            ("POST", "/queues/q/close"),
            ("PUT", "/runs/mine"),
            ("GET", "/metrics"),
            ("GET", "/pilots"),
        ):
            assert pilot.request(method, path).status_code == 403, path
        again = pilot.post("/pilot/token", json=ASKED).json()["token"]
        assert again != token
    with by_token(server, authority, again) as pilot:
        assert pilot.post("/pilot/acquire", json=ASKED).status_code == 200
    store = b"".join(path.read_bytes() for path in server.folder.iterdir())
    assert token.encode() not in store and again.encode() not in store
    assert not any(token in line or again in line for line in server.said)


def test_who_gets_no_token(server: GridServer, authority: Authority) -> None:
    with (
        by_certificate(server, authority, "ada") as ada,
        by_certificate(server, authority, "eve") as eve,
        by_certificate(server, authority, "otto") as otto,
    ):
        assert ada.post("/pilot/token", json=ASKED).status_code == 403
        assert eve.post("/pilot/token", json=ASKED).status_code == 404
        lost = otto.post("/pilot/token", json={"pilot": "p", "queue": "qq"})
        assert lost.status_code == 404
        assert "no queue 'qq'; known: q" in lost.json()["detail"]
    for word in ("pfpilot_", "pfpilot_" + "x" * 43):
        with by_token(server, authority, word) as nobody:
            answer = nobody.post("/pilot/acquire", json=ASKED)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_goodbye_ends_a_token(server: GridServer, authority: Authority) -> None:
    token = made(server, authority)
    with by_token(server, authority, token) as pilot:
        assert pilot.post("/pilot/acquire", json=ASKED).status_code == 200
        told = {"pilot": "p", "gone": True}
        assert pilot.post("/pilot/update", json=told).status_code == 200
        # Remembered for some seconds, but a pilot that has gone gets nothing.
        wait_for(lambda: pilot.post("/pilot/update", json={"pilot": "p"}).status_code == 401)


@pytest.mark.parametrize("how", ["subject", "pilot", "role"])
def test_the_policy_withdraws_tokens_at_once(
    server: GridServer, authority: Authority, policy: Path, how: str
) -> None:
    token = made(server, authority)
    with by_token(server, authority, token) as pilot:
        assert pilot.post("/pilot/acquire", json=ASKED).status_code == 200
        if how == "role":
            policy.write_text(POLICY.replace('roles = ["operator", "pilot"]', 'roles = ["user"]'))
        else:
            denied = 'subjects = ["/O=grid/CN=otto"]' if how == "subject" else 'pilots = ["p"]'
            policy.write_text(f"{POLICY}\n[deny]\n{denied}\n")
        os.kill(server.pid, signal.SIGHUP)
        wait_for(lambda: pilot.post("/pilot/acquire", json=ASKED).status_code == 401)


def test_a_changed_policy_is_seen_without_a_signal_and_a_broken_one_is_not_taken(
    server: GridServer, authority: Authority, policy: Path
) -> None:
    with by_certificate(server, authority, "mallory") as mallory:
        assert mallory.get("/whoami").status_code == 403
        policy.write_text(POLICY + "\n[[rules]]\nvo = 3\n")
        wait_for(lambda: any("the policy in force stays" in line for line in server.said))
        assert any("line" in line and "policy.toml" in line for line in server.said)
        with by_certificate(server, authority, "ada") as ada:
            assert ada.get("/whoami").status_code == 200
        rule = '[[rules]]\ncertificates = ["/O=grid/CN=mallory"]\nvo = "atlas"\nroles = ["user"]\n'
        policy.write_text(f"{POLICY}\n{rule}")
        wait_for(lambda: mallory.get("/whoami").status_code == 200)
        told = sum("the policy in force stays" in line for line in server.said)
        assert told == 1, "a broken file is told once"


def test_a_real_pilot_changes_its_certificate_for_a_token(
    server: GridServer, authority: Authority, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "pandaflow_pilot", "--server", server.url, "--queue", "q"]
    proof = ["--cert", str(authority.issue("otto")), "--ca", str(authority.folder / "ca.pem")]
    ended = subprocess.run(
        [*command, *proof, "--idle", "2s", "--log-level", "debug", "--workdir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "a token of the pilot's own" in ended.stderr and "pfpilot_" not in ended.stderr
    with by_certificate(server, authority, "otto") as otto:
        (row,) = otto.get("/pilots").json()
    assert row["alive"] is False, "it said goodbye"


def test_a_pilot_that_is_refused_says_so(
    server: GridServer, authority: Authority, tmp_path: Path
) -> None:
    """Also where it ends because nothing came: there was nothing because it was refused."""
    ca = ["--ca", str(authority.folder / "ca.pem"), "--workdir", str(tmp_path), "--idle", "1s"]
    for more, why in (
        (["--queue", "q"], "401"),
        (["--queue", "q", "--cert", str(authority.issue("ada"))], "403"),
        (["--queue", "qq", "--cert", str(authority.issue("otto"))], "no queue 'qq'; known: q"),
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "pandaflow_pilot", "--server", server.url, *ca, *more],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 3, ended.stderr
        last = ended.stderr.splitlines()[-1]
        assert "turned this pilot away" in last and why in last


def test_login_and_whoami_take_an_authority(server: GridServer, authority: Authority) -> None:
    ca = str(authority.folder / "ca.pem")
    unknown = CliRunner().invoke(app, ["whoami", server.url], env={"PANDAFLOW_CA": None})
    assert unknown.exit_code == 2 and "certificate" in unknown.output.lower()
    asked = CliRunner().invoke(app, ["whoami", server.url, "--ca", ca])
    assert asked.exit_code == 2 and "401" in asked.output
    # The issuer of this policy is nowhere: what matters is that the server's offer was read.
    tried = CliRunner().invoke(app, ["login", server.url], env={"PANDAFLOW_CA": ca})
    assert tried.exit_code == 2 and "https://127.0.0.1:1" in tried.output
