"""Identities with a real OpenID Connect provider: sign-in, renewal, services, refused tokens."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import uvicorn
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from pandaflow.grid.auth import oauth, signin
from pandaflow.grid.auth.cache import SignedIn, TokenCache
from pandaflow.grid.auth.credentials import ClientCredentials, find_credentials
from pandaflow.grid.auth.errors import (
    IssuerUnavailable,
    SignInFailed,
    SignInNeeded,
    Unauthenticated,
)
from pandaflow.grid.auth.keys import FRESH, KEEP
from pandaflow.grid.auth.policy import parse_policy
from pandaflow.grid.auth.secret import Secret
from pandaflow.grid.auth.signin import Offer, Prompt, SignIn, find_offers, sign_in, sign_out
from pandaflow.grid.auth.verify import Authenticator
from pandaflow.grid.identity import Actor, Forbidden
from pandaflow.testing.daemons import wait_until
from pandaflow.testing.oidc.environment import OidcMissing
from pandaflow.testing.oidc.provider import AUDIENCE, CLIENT, PILOTS, OidcProvider, SigningKey

WRONG = "wr0ng-s3cret"
RULES = """
[[rules]]
issuer = "op"
groups = ["/atlas"]
vo = "atlas"
roles = ["user"]

[[rules]]
issuer = "op"
groups = ["/atlas/production"]
vo = "atlas"
roles = ["production"]

[[rules]]
issuer = "op"
groups = ["/cms"]
vo = "cms"
roles = ["user"]

[[rules]]
issuer = "op"
clients = ["pandaflow-pilots"]
scopes = ["pf.pilot"]
vo = "atlas"
roles = ["pilot"]
"""


@pytest.fixture(scope="module")
def provider() -> Iterator[OidcProvider]:
    try:
        one = OidcProvider()
    except OidcMissing as error:
        pytest.skip(str(error))
    with one:
        yield one


@pytest.fixture
def op(provider: OidcProvider) -> Iterator[OidcProvider]:
    yield provider
    provider.reset()


@pytest.fixture
def judge(op: OidcProvider) -> Authenticator:
    issuer = (
        f'[[issuers]]\nname = "op"\nissuer = "{op.issuer}"\naudience = ["{AUDIENCE}"]\n'
        f'client_id = "{CLIENT}"\nscopes = ["openid", "offline_access", "pf.submit"]\n'
    )
    return Authenticator(parse_policy(issuer + RULES))


@pytest.fixture
def server(judge: Authenticator) -> Iterator[str]:
    """A server with the two routes that clients need to say who they are."""

    async def whoami(request: Request) -> JSONResponse:
        header = request.headers.get
        shown = (header("authorization"), header("x-pandaflow-vo"), None, time.time())
        try:
            who = judge.known(*shown) or await asyncio.to_thread(judge.authenticate, *shown)
        except Unauthenticated as error:
            words = {"title": "Unauthorized", "status": 401, "detail": str(error)}
            return JSONResponse(words, 401, {"www-authenticate": error.challenge})
        except Forbidden as error:
            return JSONResponse({"title": "Forbidden", "detail": str(error)}, 403)
        found = {"subject": who.subject, "name": who.name, "vo": who.vo}
        return JSONResponse({**found, "roles": sorted(who.roles)})

    async def auth(request: Request) -> JSONResponse:
        return JSONResponse(judge.offers())

    app = Starlette(routes=[Route("/api/v1/whoami", whoami), Route("/api/v1/auth", auth)])
    running = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None))
    thread = threading.Thread(target=running.run)
    thread.start()
    wait_until(lambda: running.started, "the server")
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    running.should_exit = True
    thread.join()


@pytest.fixture
def cache(tmp_path: Path) -> TokenCache:
    return TokenCache(environ={"XDG_CONFIG_HOME": str(tmp_path)})


def soon(seconds: float) -> None:
    """Wait less than an issuer wants: it does not mind."""
    time.sleep(0.02)


def offer(op: OidcProvider) -> Offer:
    scopes = ("openid", "offline_access", "pf.submit")
    return Offer(issuer=op.issuer, client_id=CLIENT, audience=AUDIENCE, scopes=scopes)


def signed_in(op: OidcProvider, cache: TokenCache, server: str = "https://pf.test") -> SignedIn:
    return sign_in(server, offer(op), lambda prompt: op.approve(prompt.code), cache, soon)


def judged(judge: Authenticator, token: str, vo: str | None = None, now: float = 0.0) -> Actor:
    return judge.authenticate(f"Bearer {token}", vo, None, now or time.time())


def with_variables(error: BaseException) -> str:
    """Return a traceback as some tools show it, with the variables of each function."""
    found = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(found.format())


# --- the device flow --------------------------------------------------------------------


def test_a_person_signs_in_and_is_known(
    op: OidcProvider, judge: Authenticator, server: str, cache: TokenCache
) -> None:
    (found,) = find_offers(server)
    assert found == offer(op)
    sign_in(server, found, lambda prompt: op.approve(prompt.code), cache, soon)
    header = find_credentials(server, {}, cache).header()
    answer = httpx.get(f"{server}/api/v1/whoami", headers=header)
    assert answer.json() == {
        "subject": f"{op.issuer}#alice",
        "name": "Alice",
        "vo": "atlas",
        "roles": ["production", "user"],
    }


def test_the_issuer_is_asked_until_the_person_is_done(op: OidcProvider) -> None:
    device = signin.begin(offer(op))
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 4:
            op.approve(device.prompt.code)

    op.set(slow=2)
    tokens = signin.wait(device, sleep)
    assert tokens.access and tokens.refresh
    assert waits == [5.0, 10.0, 15.0, 15.0]  # told twice to slow down, then to wait


def test_an_issuer_that_is_away_is_asked_less_often(op: OidcProvider) -> None:
    device = signin.begin(offer(op))
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        {1: op.stop, 3: op.start}.get(len(waits), lambda: None)()

    with pytest.raises(SignInFailed, match="took too long"):
        signin.wait(device, sleep)  # what it was to remember is gone
    assert waits == [5.0, 10.0, 20.0]


def test_a_person_may_refuse(op: OidcProvider, cache: TokenCache) -> None:
    with pytest.raises(SignInFailed, match="was refused in the browser"):
        sign_in("https://pf.test", offer(op), lambda p: op.deny(p.code), cache, soon)
    assert cache.servers() == []


def test_a_code_expires(op: OidcProvider, cache: TokenCache) -> None:
    op.set(device=1)
    with pytest.raises(SignInFailed, match="took too long: run pandaflow login again"):
        sign_in("https://pf.test", offer(op), lambda prompt: time.sleep(2.1), cache, soon)


def test_a_client_that_the_issuer_does_not_know_is_told(op: OidcProvider) -> None:
    with pytest.raises(SignInFailed, match="invalid_client"):
        signin.begin(offer(op).model_copy(update={"client_id": "nobody"}))


# --- renewal ----------------------------------------------------------------------------

_RENEW = """
import sys, time
from pandaflow.grid.auth.cache import TokenCache
from pandaflow.grid.auth.signin import SignIn
one = SignIn(sys.argv[1], TokenCache())
print("ready", flush=True)
sys.stdin.readline()
for _ in range(12):
    print(one.header()["Authorization"].split()[1][-24:], flush=True)
    time.sleep(0.25)
"""


def test_processes_renew_one_after_the_other(
    op: OidcProvider, judge: Authenticator, cache: TokenCache, tmp_path: Path
) -> None:
    op.set(access=2)
    first = signed_in(op, cache)
    before = op.counts().get("/token", 0)
    env = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
    argv = [sys.executable, "-c", _RENEW, "https://pf.test"]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(argv, env=env, **pipes) for _ in range(2)]
    for child in children:
        child.stdout.readline()
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    said = [child.communicate(timeout=60)[0].split() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    tokens = {token for words in said for token in words}
    renewed = op.counts()["/token"] - before
    # Each refresh token was spent once: a second time would have ended the sign-in.
    assert renewed >= 2
    assert len(tokens - {first.access.reveal()[-24:]}) == renewed
    op.set(access=600)
    judged(judge, SignIn("https://pf.test", cache).header()["Authorization"].split()[1])


def test_threads_share_one_renewal(op: OidcProvider, cache: TokenCache) -> None:
    op.set(access=1)
    signed_in(op, cache)
    op.set(access=600)
    time.sleep(1)
    before, found, one = op.counts()["/token"], set(), SignIn("https://pf.test", cache)
    threads = [
        threading.Thread(target=lambda: found.add(one.header()["Authorization"])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1
    assert op.counts()["/token"] == before + 1


def test_a_sign_in_that_was_withdrawn_says_what_to_do(op: OidcProvider, cache: TokenCache) -> None:
    op.set(access=1)
    kept = signed_in(op, cache)
    assert sign_out("https://pf.test", cache)
    assert not sign_out("https://pf.test", cache)
    cache.write(kept)  # somebody has a copy
    time.sleep(1)
    with pytest.raises(SignInNeeded, match=r"has ended.*pandaflow login https://pf\.test"):
        SignIn("https://pf.test", cache).header()


# --- services ---------------------------------------------------------------------------


def test_pilots_have_a_client_of_their_own(
    op: OidcProvider, judge: Authenticator, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(op.secret + "\n")
    environ = {
        "PANDAFLOW_ISSUER": op.issuer,
        "PANDAFLOW_CLIENT_ID": PILOTS,
        "PANDAFLOW_CLIENT_SECRET_FILE": str(file),
        "PANDAFLOW_AUDIENCE": AUDIENCE,
        "PANDAFLOW_SCOPES": "pf.pilot",
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    found = find_credentials("https://pf.test", environ)
    before = op.counts().get("/token", 0)
    header = [found.header()["Authorization"] for _ in range(3)]
    assert op.counts()["/token"] == before + 1
    who = judged(judge, header[0].split()[1])
    assert (who.name, who.vo, who.roles) == (PILOTS, "atlas", {"pilot"})


def test_a_pilot_without_the_scope_is_none(op: OidcProvider, judge: Authenticator) -> None:
    with pytest.raises(Forbidden, match="no rule"):
        judged(judge, op.token("pf.submit"))


def test_a_service_renews_its_token(op: OidcProvider) -> None:
    op.set(access=1)
    found = ClientCredentials(op.issuer, PILOTS, Secret(op.secret), AUDIENCE, "pf.pilot")
    one = found.header()
    time.sleep(0.8)
    assert found.header() != one


def test_a_wrong_secret_is_told_and_not_shown(op: OidcProvider) -> None:
    found = ClientCredentials(op.issuer, PILOTS, Secret(WRONG), AUDIENCE)
    with pytest.raises(SignInFailed, match="check the client 'pandaflow-pilots'") as caught:
        found.header()
    shown = with_variables(caught.value)
    assert "_fresh" in shown and WRONG not in shown


def test_a_spent_token_is_not_shown_either(op: OidcProvider, cache: TokenCache) -> None:
    kept = signed_in(op, cache)
    assert kept.refresh is not None
    signin.refresh(kept)
    with pytest.raises(SignInFailed, match="invalid_grant") as caught:
        signin.refresh(kept)
    shown = with_variables(caught.value)
    assert "refresh_token" in shown
    assert kept.refresh.reveal() not in shown
    assert kept.access.reveal() not in shown


# --- VOs --------------------------------------------------------------------------------


def test_people_act_for_a_vo_of_theirs(op: OidcProvider, judge: Authenticator) -> None:
    carol, mallory = (op.key.sign(op.claims(person)) for person in ("carol", "mallory"))
    with pytest.raises(Forbidden, match="atlas, cms: say for which"):
        judged(judge, carol)
    assert judged(judge, carol, "cms").vo == "cms"
    with pytest.raises(Forbidden, match=r"may not act for 'atlas\.production'"):
        judged(judge, carol, "atlas.production")
    with pytest.raises(Forbidden, match="no rule"):
        judged(judge, mallory, "atlas")


# --- tokens that are refused ------------------------------------------------------------


def _encode(*parts: bytes) -> str:
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def by_nobody(op: OidcProvider) -> str:
    header = json.dumps({"alg": "none", "typ": "at+jwt"}).encode()
    return _encode(header, json.dumps(op.claims()).encode(), b"")


def by_the_public_key(op: OidcProvider) -> str:
    """Sign with what everybody has, as if it were a shared secret."""
    public = op.key.private.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head = {"alg": "HS256", "typ": "at+jwt", "kid": op.key.kid}
    body = _encode(json.dumps(head).encode(), json.dumps(op.claims()).encode())
    return f"{body}.{_encode(hmac.new(pem, body.encode(), hashlib.sha256).digest())}"


def tampered(op: OidcProvider) -> str:
    head, body, signature = op.token().split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    claims["wlcg.groups"] = ["/atlas/production"]
    return f"{head}.{_encode(json.dumps(claims).encode())}.{signature}"


def wrong_audience(op: OidcProvider) -> str:
    return op.token(audience="https://storage.test")


def expired(op: OidcProvider) -> str:
    return op.key.sign(op.claims(exp=int(time.time()) - 60))


def of_somebody_else(op: OidcProvider) -> str:
    return op.key.sign(op.claims(iss="https://iam.evil.test"))


def with_a_key_of_their_own(op: OidcProvider) -> str:
    return SigningKey().sign(op.claims(), {"kid": op.key.kid})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (by_nobody, "'none', which this server does not take"),
        (by_the_public_key, "'HS256', which this server does not take"),
        (tampered, "signature is not its issuer's; sign in again: pandaflow login"),
        (wrong_audience, f"meant for somebody else: ask for the audience {AUDIENCE}"),
        (expired, "has expired; sign in again: pandaflow login"),
        (of_somebody_else, "tokens of 'https://iam.evil.test' are not taken here, those of"),
        (with_a_key_of_their_own, "signature is not its issuer's"),
    ],
)
def test_bad_tokens_are_refused_and_the_way_is_told(
    op: OidcProvider,
    judge: Authenticator,
    server: str,
    make: Callable[[OidcProvider], str],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    token = make(op)
    judged(judge, op.token())  # keys are there
    with pytest.raises(Unauthenticated, match=re.escape(said)) as caught:
        judged(judge, token)
    answer = httpx.get(f"{server}/api/v1/whoami", headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 401
    assert said in answer.json()["detail"]
    told = [*traceback.format_exception(caught.value), answer.text, str(answer.headers)]
    pieces = [piece for piece in token.split(".") if piece]
    assert not any(piece in text for text in (*told, caplog.text) for piece in pieces)


def test_a_short_lived_token_of_the_provider_itself_expires(
    op: OidcProvider, judge: Authenticator
) -> None:
    op.set(access=1)
    token = op.token()
    judged(judge, token)
    with pytest.raises(Unauthenticated, match="expired"):
        judged(judge, token, now=time.time() + 12)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_keys_are_rotated_and_withdrawn(
    op: OidcProvider, judge: Authenticator, algorithm: str
) -> None:
    now = time.time()
    old = op.key.sign(op.claims(exp=int(now) + 9_000))
    judged(judge, old)
    op.rotate(keep=True, algorithm=algorithm)
    new = op.key.sign(op.claims(exp=int(now) + 9_000))
    later = now + FRESH + 1
    assert judged(judge, new, now=later).name == judged(judge, old, now=later).name
    op.rotate()
    gone = later + FRESH + 1
    for token in (old, new):
        assert judge.known(f"Bearer {token}", None, None, gone) is None
        with pytest.raises(Unauthenticated, match="its key was withdrawn"):
            judged(judge, token, now=gone)
    judged(judge, op.token(), now=gone)


def test_the_provider_may_be_away_for_a_while(op: OidcProvider, judge: Authenticator) -> None:
    now = time.time()
    known, new = (op.key.sign(op.claims(p, exp=int(now) + 90_000)) for p in ("alice", "bob"))
    judged(judge, known)
    op.stop()
    try:
        judged(judge, known, now=now + KEEP - 1)
        judged(judge, new, now=now + KEEP - 1)
        with pytest.raises(IssuerUnavailable, match="try again later"):
            judged(judge, known, now=now + KEEP + FRESH)
    finally:
        op.start()
    judged(judge, known, now=now + KEEP + 2 * FRESH)


# --- the command line -------------------------------------------------------------------


def pandaflow(tmp_path: Path, *argv: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pandaflow.cli", *argv],
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_login_whoami_logout(op: OidcProvider, server: str, tmp_path: Path) -> None:
    login = pandaflow(tmp_path, "login", server)
    assert login.stderr is not None
    shown = ""
    while not (found := re.search(r"code (\S+)", shown)):
        line = login.stderr.readline()
        assert line, shown
        shown += line
    op.approve(found[1])
    out, err = login.communicate(timeout=60)
    assert (login.returncode, out) == (0, f"signed in at {server}\n"), err
    assert f"{op.issuer}/device" in shown
    out, err = pandaflow(tmp_path, "whoami").communicate(timeout=60)
    assert re.search(r"^vo +atlas\nroles +production, user$", out, re.M), err
    out, err = pandaflow(
        tmp_path, "whoami", "--json", server, PANDAFLOW_VO="atlas.user"
    ).communicate(timeout=60)
    assert json.loads(out)["roles"] == ["user"], err
    out, err = pandaflow(tmp_path, "whoami", PANDAFLOW_VO="cms").communicate(timeout=60)
    assert "may not act for 'cms'" in err
    out, err = pandaflow(tmp_path, "logout").communicate(timeout=60)
    assert out == f"signed out at {server}\n", err
    asked = pandaflow(tmp_path, "whoami", server)
    out, err = asked.communicate(timeout=60)
    assert asked.returncode == 2
    assert "401" in err and "pandaflow login" in err


def test_discovery_is_exact(op: OidcProvider) -> None:
    from pandaflow.grid.auth.web import BadAnswer

    with pytest.raises(BadAnswer, match="exactly as it calls itself"):
        oauth.discover(op.issuer + "/")
    assert jwt.decode(op.token(), options={"verify_signature": False})["iss"] == op.issuer


def test_a_prompt_cannot_play_tricks_on_a_terminal(op: OidcProvider) -> None:
    shown: Prompt = signin.begin(offer(op)).prompt
    assert all(text.isprintable() for text in (shown.url, shown.code, shown.complete))
